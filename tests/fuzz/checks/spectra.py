"""Singular values, their vectors and enclosures against independent ones.

The rules:

- "exact" and "confirmed" are promises. The value must be within rtol of the true one ("exact": 0), beside what rounding
  does: `Truth.floor` for the matrix, two units in the last place of the result's dtype, and the least number of it. Nor
  may it be off by more than the error that comes with it, beside these units. Where LAPACK, which itself is off by up
  to 50 units where values are nearly equal, does not agree, long double decides.
- "estimated" is none: how often it is beyond rtol, and beyond the error that comes with it, is counted.
- "rank deficient" must be true to rounding: sigma_min at most 8 times the floor. It must be said, and the condition
  number be infinite, where the matrix of the floats as they are has not full rank. For a matrix of full rank with a
  sigma_min of at most 8 times the floor either answer is right.
- "not converged" says nothing, but a smallest value that did not converge must be above the true one, as documented.
- An enclosure must hold, without any slack.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.fuzz import oracles
from tests.fuzz.case import Case, check
from tests.fuzz.draw import Layer
from tests.fuzz.oracles import Truth

PROMISES = ("exact", "confirmed", "converged")
DOUBT = 8.0
PRECISE_SIDE = 300  # what long double rotations and the elimination take a second for


def dtype_of(layer: Layer) -> Any:
    return layer.kernel.dtype.type if layer.kernel.dtype.kind == "f" else np.float64


def units(layer: Layer, truth: Truth, value: float) -> float:
    """What rounding a value to the result's dtype may change, over 2^exponent."""
    info = np.finfo(dtype_of(layer))
    return 2 * float(info.eps) * value + truth.unscaled(info.smallest_subnormal)


def drawn_rtol(case: Case, layer: Layer) -> tuple[str, float]:
    """An argument, as source text, and the tolerance it means."""
    single = dtype_of(layer) is np.float32
    rtol = case.one_of((None, None, 1e-3, 1e-6, *(() if single else (1e-10,))))
    return ("" if rtol is None else f", rtol={rtol!r}"), (1e-6 if single else 1e-10) if rtol is None else rtol


def drawn_method(case: Case, layer: Layer, names: tuple[str, ...]) -> str:
    """The method as source text: usually the default's; one that writes a matrix only where that is small."""
    if not case.chance(0.35):
        return ""
    name = case.one_of(names)
    small = math.prod(oracles.matrix_shape(layer)) <= 2**18
    return f", method={name!r}" if small or name not in ("dense", "symbol") else ""


def overflows(layer: Layer, truth: Truth, margin: float = 1.0) -> bool:
    return margin * truth.largest > truth.unscaled(np.finfo(dtype_of(layer)).max)


def evaluate(case: Case, expression: str, layer: Layer, truth: Truth) -> Any:
    """Evaluate, or return None where an OverflowError said the truth."""
    try:
        return case.evaluate(expression)
    except OverflowError:
        case.counts["overflow"] += 1
        wrong = f"OverflowError, but sigma_max is {truth.largest} * 2**{truth.exponent}"
        case.expect(overflows(layer, truth, 1.001), wrong)
        return None


def judge_value(
    case: Case,
    layer: Layer,
    end: str,
    value: float,
    true: float,
    own: float,
    floor: float,
    status: str,
    errors: float,
    rtol: float,
) -> None:
    """Compare one value with the true one, both over 2^exponent: a promise must hold, an estimate is counted.

    Rounding it, `own`, and the matrix, `floor`, is allowed for; an error that is promised has to cover the second.
    """
    allowed = floor + own
    off = abs(value - true)
    if status in PROMISES:
        promised = allowed + (0.0 if status == "exact" else rtol * true)
        if off > min(promised, errors) and (precise := decided(layer)) is not None:
            true = float(precise[0 if end == "max" else -1])
            off, promised = abs(value - true), min(promised, errors + own)
        relative = off / max(true, 1e-300)
        wrong = f"sigma_{end} is {value!r}, {status!r}; right is {true!r}: off by {relative:.2e} (rtol {rtol:.0e})"
        case.expect(off <= promised, f"{wrong}, its error {errors!r}")
    elif status == "estimated":
        case.counts["estimated beyond rtol"] += bool(off > allowed + rtol * true)
        case.counts["estimated beyond errors"] += bool(off > allowed + errors)


def decided(layer: Layer) -> Any:
    """All singular values in long double, over 2^exponent, where that takes no more than a second; else None."""
    return oracles.precise_singular_values(layer)[0] if min(oracles.matrix_shape(layer)) <= PRECISE_SIDE else None


def judge_vectors(case: Case, layer: Layer, result: Any, truth: Truth) -> None:
    """M v = s u, orthonormal vectors, and norm(M^T u - s v) as reported: to rounding of the result's dtype."""
    if result.left is None or result.right is None:
        return
    prepared = oracles.scale(layer)
    left, right = (np.asarray(vectors, np.float64) for vectors in (result.left, result.right))
    values = np.array([truth.unscaled(float(value)) for value in np.asarray(result.values)])
    forward, backward = (oracles.adjoint, oracles.apply) if layer.transposed else (oracles.apply, oracles.adjoint)
    column = values.reshape(-1, *(1,) * (left.ndim - 1))
    image, back = forward(layer, prepared.kernel, right), backward(layer, prepared.kernel, left)
    eps = float(np.finfo(dtype_of(layer)).eps)
    sides = max(left[0].size, right[0].size)
    rounding = 8 * eps * (prepared.moduli + math.sqrt(sides) * truth.largest) + truth.floor
    rounding += math.sqrt(sides) * truth.unscaled(np.finfo(dtype_of(layer)).smallest_subnormal)
    reported = np.array([truth.unscaled(x) for x in np.asarray(result.residuals, np.float64)])
    relation = np.linalg.norm((image - column * left).reshape(len(left), -1), axis=1)
    wrong = f"norm(M v - s u) is {relation.max() / max(truth.largest, 1e-300):.2e} of sigma_max, {result.status}"
    # For a smallest value that an iteration finds, the residual is the larger of the two defects, as documented: small
    # where the value is confirmed.
    iterated = result.method in ("inverse", "lanczos") and not math.isfinite(result.upper)
    case.expect(np.all(relation <= rounding + (reported if iterated else 0.0)), wrong)
    if iterated and result.status == "confirmed":
        case.expect(np.all(relation <= rounding + 1e-9 * truth.largest), wrong)
    for name, vectors in (("left", left), ("right", right)):
        rows = vectors.reshape(len(vectors), -1)
        defect = np.abs(rows @ rows.T - np.eye(len(rows))).max()
        case.expect(defect <= 8 * eps * math.sqrt(sides), f"the {name} vectors are {defect:.2e} from orthonormal")
    residuals = np.linalg.norm((back - column * right).reshape(len(left), -1), axis=1)
    wrong = f"norm(M^T u - s v) is {residuals} * 2**{truth.exponent}, reported as {reported} * 2**{truth.exponent}"
    case.expect(np.all(residuals <= reported * (1 + 1e-3) + rounding), wrong)


@check(weight=5)
def largest(case: Case) -> None:
    layer = case.layer()
    truth = oracles.singular_values(layer)
    argument, rtol = drawn_rtol(case, layer)
    method = drawn_method(case, layer, ("lanczos", "lanczos", "dense"))
    result = evaluate(case, f"largest_singular_value(op{argument}{method})", layer, truth)
    if result is None:
        return
    case.counts[result.status] += 1
    value, error = truth.unscaled(result.value), truth.unscaled(float(result.errors[0]))
    own = units(layer, truth, truth.largest)
    judge_value(case, layer, "max", value, truth.largest, own, truth.floor, result.status, error, rtol)
    judge_vectors(case, layer, result, truth)


@check(weight=4)
def smallest(case: Case) -> None:
    layer = case.layer()
    truth = oracles.singular_values(layer)
    argument, rtol = drawn_rtol(case, layer)
    method = drawn_method(case, layer, ("inverse", "inverse", "lanczos", "dense"))
    if layer.library not in ("numpy", "cupy") and "inverse" in method:  # which says that it needs sparse matrices
        method = ""
    result = evaluate(case, f"smallest_singular_value(op{argument}{method})", layer, truth)
    if result is None:
        return
    case.counts[result.status] += 1
    value, error = truth.unscaled(result.value), truth.unscaled(float(result.errors[0]))
    own = units(layer, truth, truth.smallest)
    if result.status == "rank deficient":
        wrong = f"'rank deficient' is not true: sigma_min is {truth.smallest!r}, sigma_max {truth.largest!r}"
        case.expect(truth.smallest <= DOUBT * truth.floor + units(layer, truth, 0.0), wrong)
    elif deficient(layer, truth) and result.status in PROMISES:
        case.expect(value == 0.0, f"the matrix has not full rank; sigma_min is {value!r}, {result.status!r}")
    elif result.status == "not converged":
        wrong = f"sigma_min did not converge, and is {value!r}, below {truth.smallest!r}"
        case.expect(value >= truth.smallest - truth.floor - own, wrong)
    else:
        judge_value(case, layer, "min", value, truth.smallest, own, truth.floor, result.status, error, rtol)
    judge_vectors(case, layer, result, truth)


def deficient(layer: Layer, truth: Truth) -> bool:
    """Whether the matrix is known to have less than full rank."""
    if truth.smallest > DOUBT * truth.floor:
        return False
    return truth.largest == 0.0 or (
        min(oracles.matrix_shape(layer)) <= PRECISE_SIDE and oracles.is_rank_deficient(layer)
    )


@check(weight=1)
def condition(case: Case) -> None:
    layer = case.layer()
    truth = oracles.singular_values(layer)
    argument, rtol = drawn_rtol(case, layer)
    both = [evaluate(case, f"{name}_singular_value(op{argument})", layer, truth) for name in ("largest", "smallest")]
    value = None if None in both else case.evaluate(f"float(condition_number(op{argument}))")
    if value is None:
        return
    floor = truth.floor + units(layer, truth, 0.0)
    if deficient(layer, truth):
        case.counts["infinite"] += 1
        if both[1].status in (*PROMISES, "rank deficient"):
            case.expect(math.isinf(value), f"the matrix has not full rank; its condition number is {value!r}")
    elif truth.smallest > DOUBT * floor:
        true = truth.largest / truth.smallest
        wrong = f"the condition number is {value!r}, right is {true!r}"
        case.expect(math.isfinite(value), wrong)
        if all(result.status in PROMISES for result in both):
            slack = 3 * rtol + 8 * float(np.finfo(dtype_of(layer)).eps) + 4 * floor / truth.smallest
            case.expect(abs(value - true) <= slack * true, wrong)
    else:
        case.counts["in doubt"] += 1


@check(weight=2)
def several(case: Case) -> None:
    """The k largest singular values with their vectors, or all."""
    layer = case.layer()
    truth = oracles.singular_values(layer)
    sides = oracles.matrix_shape(layer)
    every = case.chance(0.4) and math.prod(sides) <= 2**20
    k = None if every else int(case.rng.integers(1, min(6, *sides) + 1))
    method = drawn_method(case, layer, ("lanczos", "dense")) if k else ""
    result = evaluate(case, f"singular_values(op, {k}{method})", layer, truth)
    if result is None:
        return
    case.counts[result.status] += 1
    values = np.array([truth.unscaled(float(value)) for value in np.asarray(result.values)])
    case.expect(len(values) == (k or len(truth.values)), f"{len(values)} values")
    case.expect(np.all(np.diff(values) <= 0), f"the values {values} do not decrease")
    single = dtype_of(layer) is np.float32
    own = units(layer, truth, truth.largest)
    floor = truth.floor + own
    rtol = (1e-5 if single else 1e-10) if result.method == "lanczos" else 0.0
    true = truth.values[: len(values)]
    off = np.abs(values - true)
    if result.status in PROMISES:
        errors = np.array([truth.unscaled(error) for error in result.errors])
        promised = np.full(len(values), floor + rtol * truth.largest)
        if np.any(off > np.minimum(promised, errors)) and (precise := decided(layer)) is not None:
            true = precise[: len(values)].astype(float)
            off, promised = np.abs(values - true), np.minimum(promised, errors + own)
        worst = int(np.argmax(off - promised))
        wrong = f"value {worst} is {values[worst]!r}, {result.status!r}; right is {true[worst]!r}"
        case.expect(np.all(off <= promised), f"{wrong}, its error {result.errors[worst]!r}")
    elif result.status == "estimated":
        case.counts["estimated beyond rtol"] += bool(np.any(off > floor + rtol * truth.largest))
    judge_vectors(case, layer, result, truth)


@check(weight=5)
def bounds(case: Case) -> None:
    """The enclosure of the largest singular value."""
    layer = case.layer()
    truth = oracles.singular_values(layer)
    method = drawn_method(case, layer, ("symbol", "symbol", "dense"))
    try:
        given = ""
        if case.chance(0.2):
            case.evaluate("largest_singular_value(op)", "found")
            given = ", start=found"
        result = case.evaluate(f"singular_value_bounds(op{method}{given})")
    except OverflowError:
        # The bound from above may be out of range where the value is not yet.
        case.expect(overflows(layer, truth, 4.0), f"OverflowError at sigma_max {truth.largest} * 2**{truth.exponent}")
        return
    case.counts["enclosures"] += 1
    lower, upper = truth.unscaled(result.lower), truth.unscaled(result.upper)
    if lower <= truth.largest <= upper:
        return
    wrong = f"the enclosure [{result.lower!r}, {result.upper!r}] leaves out {{}} * 2**{truth.exponent}"
    case.expect(lower - truth.floor <= truth.largest <= upper + truth.floor, wrong.format(truth.largest))
    # As far as LAPACK tells. Long double decides.
    if min(oracles.matrix_shape(layer)) > PRECISE_SIDE:
        case.counts["undecided"] += 1
        return
    values, exponent = oracles.precise_singular_values(layer)
    slack = (max(oracles.matrix_shape(layer)) + 8) * np.finfo(np.longdouble).eps * values[0]
    ends = [np.ldexp(np.longdouble(end), -exponent) for end in (result.lower, result.upper)]
    case.expect(ends[0] <= values[0] + slack and values[0] - slack <= ends[1], wrong.format(values[0]))
