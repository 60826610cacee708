"""Clipped kernels and gradients of singular values, against the dense spectrum."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from tests.fuzz import oracles
from tests.fuzz.case import Case, check
from tests.fuzz.checks.penalties import moderate_layer
from tests.fuzz.checks.spectra import PRECISE_SIDE
from tests.fuzz.draw import Layer, any_layer

LONG = np.longdouble


@check(weight=1)
def clipping(case: Case) -> None:
    """The maximum holds without any slack, and what is said of distances is true."""
    drawn = any_layer(case.rng, "tiny", floating=True, library=False)
    layer = case.use(replace(drawn, transposed=False))
    truth = oracles.singular_values(layer)
    largest = np.ldexp(LONG(truth.largest), truth.exponent)
    maximum = float(largest * LONG(case.one_of((0.3, 0.9, 0.999, 1.0, 1.5)))) or 1.0
    if not 1e-300 < maximum < 1e300:
        return
    case.give("maximum", maximum)
    iterations = case.one_of((1, 20, 200))
    options = f"maximum=maximum, method={case.one_of(('auto', 'matrix', 'torus'))!r}, max_iterations={iterations}"
    options += f", nearest={case.chance(0.5)}"
    found = case.evaluate(f"clip_singular_values(kernel, {layer.arguments}, {options})")
    case.counts[found.status] += 1
    case.expect(found.upper <= maximum, f"upper is {found.upper!r}, above the maximum")
    _judge_upper(case, replace(layer, kernel=found.kernel, factors=None), found.upper)
    size = float(np.abs(layer.kernel).max())
    unit = LONG(size or 1.0)
    moved = float(np.sqrt(np.sum(((found.kernel.astype(LONG) - layer.kernel.astype(LONG)) / unit) ** 2)))
    case.expect(math.isclose(found.distance, moved * size, rel_tol=1e-9), f"the distance is {moved * size!r}")
    if largest > maximum:
        # A multiple of the kernel obeys the maximum, and is so far away.
        multiple = float(
            (1 - LONG(maximum) / largest) * np.sqrt(np.sum((layer.kernel.astype(LONG) / unit) ** 2)) * unit
        )
        case.expect(found.least_distance <= multiple * (1 + 1e-6), f"a kernel is as near as {multiple!r}")


def _judge_upper(case: Case, layer: Layer, upper: float) -> None:
    truth = oracles.singular_values(layer)
    if truth.largest + truth.floor <= truth.unscaled(upper) or min(oracles.matrix_shape(layer)) > PRECISE_SIDE:
        return
    values, exponent = oracles.precise_singular_values(layer)
    slack = (max(oracles.matrix_shape(layer)) + 8) * float(np.finfo(LONG).eps) * values[0]
    case.expect(values[0] - slack <= np.ldexp(LONG(upper), -exponent), f"sigma_max is above upper, {upper!r}")


@check(weight=1)
def spectral_gradients(case: Case) -> None:
    """Simple singular values away from 0, the condition number and their logarithms: slopes along a direction."""
    layer = moderate_layer(case)
    blocks = oracles.matrices(layer.kernel.astype(float), oracles.axes_of(layer), layer.groups)
    u, s, vt = np.linalg.svd(blocks, full_matrices=False)
    order = np.argsort(s.reshape(-1))[::-1]
    values = s.reshape(-1)[order]
    name = case.one_of(("largest_singular_value", "smallest_singular_value", "condition_number"))
    ends = {"largest_singular_value": [0], "smallest_singular_value": [-1], "condition_number": [0, -1]}[name]
    if values[ends[-1]] < 1e-2 * values[0] or not values[0]:
        case.counts["tiny"] += 1
        return
    gaps = -np.diff(values)
    if any((gaps[end : end + 1] if end == 0 else gaps[-1:]).min(initial=np.inf) < 1e-2 * values[0] for end in ends):
        case.counts["not simple"] += 1
        return
    log = case.chance(0.3)
    found = case.evaluate(f"{name}_and_gradient(op, log={log})")
    case.counts["gradients"] += 1
    direction = case.rng.standard_normal(layer.kernel.shape)
    change = oracles.matrices(direction, oracles.axes_of(layer), layer.groups)
    slopes = np.einsum("gip,gij,gpj->gp", u, change, vt).reshape(-1)[order]
    relative = [float(slopes[end] / values[end]) for end in ends]  # of the logarithms
    value = float(values[ends[0]]) if len(ends) == 1 else float(values[0] / values[-1])
    slope = relative[0] - sum(relative[1:])
    value, slope = (math.log(value), slope) if log else (value, value * slope)
    size = 1.0 if log else value
    sides = max(oracles.matrix_shape(layer)) + 8
    # A vector turns by the roundoff over the gap, which is a hundredth of the largest value at least.
    eps = float(np.finfo(layer.kernel.dtype).eps)
    rounding = 1e4 * sides * eps * size * float(np.linalg.norm(change)) * values[0] / values[ends[-1]] ** 2
    got = _slope(found.gradient, direction)
    case.expect(abs(float(found.value) - value) <= 1e2 * sides * eps * size * 1e2, f"the value is {value!r}")
    case.expect(abs(got - slope) <= rounding, f"the slope is {got!r}, right is {slope!r}, allowed {rounding:.1e}")


def _slope(gradient: Any, direction: Any) -> float:
    return float(np.sum(np.asarray(gradient, float) * direction))
