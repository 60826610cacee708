"""The penalty on the singular values, its gradient, and descents on it, against the dense spectrum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.fuzz import oracles
from tests.fuzz.case import Case, check
from tests.fuzz.draw import Layer

TRACKED = 2e-3
"""Of sigma_max^2: what the block tracker's residuals, a thousandth of it, leave open, with its rounding."""


def moderate_layer(case: Case) -> Layer:
    """A tiny layer whose squares are in range, in float64 or float32."""
    layer = replace(case.family(case.rng, "tiny", floating=True, library=False), transposed=False)
    largest = float(np.abs(layer.kernel).max())
    if not 1e-6 < largest < 1e6:
        kernel = np.where(np.isfinite(layer.kernel / (largest or 1.0)), layer.kernel / (largest or 1.0), 1.0)
        layer = replace(layer, kernel=np.asarray(kernel, layer.kernel.dtype))
    return case.use(layer)


def true_penalty(layer: Layer, alpha: float, gram: str) -> tuple[float, float]:
    """The penalty by its definition, and sigma_max^2 or alpha, whichever is larger."""
    truth = oracles.singular_values(layer)
    largest, smallest = (float(np.ldexp(x, truth.exponent)) for x in (truth.largest, truth.smallest))
    rows, columns = oracles.matrix_shape(layer)
    lower = 0.0 if gram == "input" and columns > rows else smallest
    return max(largest**2 - alpha, alpha - lower**2), max(largest**2, alpha)


@check(weight=1)
def penalty(case: Case) -> None:
    """Value, and gradient where the active eigenvalue is simple."""
    layer = moderate_layer(case)
    gram = case.one_of(("input", "smaller"))
    prepared = oracles.scale(layer)
    values = oracles.singular_values(layer)
    largest = float(np.ldexp(max(values.largest, 1e-3), values.exponent))
    alpha = case.give("alpha", largest**2 * 10.0 ** case.rng.uniform(-2, 2))
    found = float(case.evaluate(f"penalty(op, alpha, gram={gram!r})"))
    gradient = np.asarray(case.evaluate(f"penalty_gradient(op, alpha, gram={gram!r})", "gradient"), float)
    true, size = true_penalty(layer, alpha, gram)
    eps = float(np.finfo(layer.kernel.dtype).eps)
    sides = oracles.matrix_shape(layer)
    # The value has the kernel's dtype, which has no more digits than its least subnormal.
    rounding = 4 * (max(sides) + 8) * eps * size + float(np.finfo(layer.kernel.dtype).smallest_subnormal)
    case.expect(abs(found - true) <= rounding, f"the penalty is {found!r}, right is {true!r}")
    # The derivative of sigma^2 at a simple singular value is 2 sigma u^T dM v.
    blocks = oracles.matrices(layer.kernel.astype(float), oracles.axes_of(layer), layer.groups)
    u, s, vt = np.linalg.svd(blocks, full_matrices=False)
    lower_end = not (gram == "input" and sides[1] > sides[0])
    distances = np.concatenate(
        ((s**2 - alpha).reshape(-1), (alpha - s**2).reshape(-1) if lower_end else np.full(s.size, -np.inf))
    )
    order = np.argsort(distances)[::-1]
    null = alpha if not lower_end else -np.inf
    second = max(distances[order[1]], null) if len(order) > 1 else null
    if distances[order[0]] < null + 1e-3 * size:
        case.counts["null space active"] += 1
        return
    if distances[order[0]] - second < 1e-2 * size:
        case.counts["not simple"] += 1
        return
    sign, (group, place) = (1 if order[0] < s.size else -1), np.unravel_index(order[0] % s.size, s.shape)
    left, right = np.zeros((layer.groups, u.shape[1])), np.zeros((layer.groups, vt.shape[2]))
    left[group], right[group] = u[group, :, place], vt[group, place]
    shape = (1, -1, *oracles.outputs_of(layer))
    expected = (
        sign
        * 2
        * s[group, place]
        * oracles.kernel_adjoint(layer, left.reshape(shape), right.reshape(1, -1, *layer.setting.image_shape))
    )
    off = np.linalg.norm(gradient - expected)
    # A vector turns by the roundoff over the gap, which is a hundredth at least; taps that meet repeat it.
    allowed = 1600 * (max(sides) + 8) * eps * np.sqrt(size) * prepared.kernel.size
    case.counts["gradients"] += 1
    case.expect(off <= allowed, f"the gradient is off by {off:.2e} (norm {np.linalg.norm(expected):.2e})")


@check(weight=1.5)
def descent(case: Case) -> None:
    """What a descent reports of the penalty is true at every iterate; an accepted step does not raise it."""
    layer = moderate_layer(case)
    tracker, step = case.one_of(("block", "block", "exact")), case.one_of(("fixed", "backtracking"))
    gram = case.one_of(("input", "smaller"))
    truth = oracles.singular_values(layer)
    largest = float(np.ldexp(max(truth.largest, 1e-3), truth.exponent))
    alpha = case.give("alpha", largest**2 * case.one_of((0.1, 0.5, 1.0)))
    clustered = case.one_of(("", "cluster_rtol=0.01"))
    rule = {"fixed": "FixedStep", "backtracking": "Backtracking"}[step]
    options = f"tracker={tracker.title()}({clustered}), step={rule}({case.one_of((1e-3, 1e-2, 0.1))}), gram={gram!r}"
    kernels: list[Any] = [layer.kernel]
    case.names["record"] = lambda state: kernels.append(np.array(state.kernel)) and None
    steps = int(case.rng.integers(1, 25))
    call = f"minimize_penalty(op, alpha, iterations={steps}, {options}"
    result = case.evaluate(f"{call}, callback=record)")
    if result.status == "diverged":
        case.counts["diverged"] += 1
    reported = result.trace.reported
    before = np.inf
    for i, (kernel, value) in enumerate(zip(kernels, reported, strict=False)):
        true, size = true_penalty(replace(layer, kernel=kernel, factors=None), alpha, gram)
        sides = oracles.matrix_shape(layer)
        limits = np.finfo(kernel.dtype)
        # Squares below the dtype's range are zero.
        rounding = 8 * (max(sides) + 8) * max(float(limits.eps) * size, float(limits.smallest_subnormal))
        allowed = rounding + (TRACKED * size if tracker == "block" else 0.0)
        case.expect(
            abs(value - true) <= allowed, f"iterate {i}: the penalty is reported as {value!r}, right is {true!r}"
        )
        if step == "backtracking":
            case.expect(true <= before + 2 * allowed, f"step {i} raised the penalty from {before!r} to {true!r}")
        before = true
    case.counts[result.status] += 1
