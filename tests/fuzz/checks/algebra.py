"""Maps made of maps: their matrices, their spectra and the bounds of those, against the same expression of matrices.

The matrices are in long double, whose sums and products keep the digits that cancel in the library's own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from convla.errors import ShapeError
from tests.fuzz import oracles
from tests.fuzz.case import Case, check
from tests.fuzz.checks.spectra import DOUBT, PROMISES
from tests.fuzz.draw import Layer, any_layer
from tests.geometries import Seeded, any_setting

LONG = np.longdouble
ULP = float(np.finfo(LONG).eps)
SIDE = 400
RANGE = 1e120


class Term(NamedTuple):
    """A map by the name that it has in the case, its matrix, and one that bounds what its terms are before they cancel.

    `roundings` counts the products and sums that an entry of it has gone through.
    """

    name: str
    matrix: Any
    moduli: Any
    domain: tuple[int, ...]
    range: tuple[int, ...]
    roundings: int


def dense(layer: Layer, kernel: Any) -> Any:
    blocks = oracles.matrices(kernel, oracles.axes_of(layer), layer.groups)
    groups, rows, columns = blocks.shape
    matrix = np.zeros((groups, rows, groups, columns), kernel.dtype)
    matrix[np.arange(groups), :, np.arange(groups)] = blocks
    return matrix.reshape(groups * rows, groups * columns)


def convolution(case: Case, name: str, layer: Layer) -> Term:
    """Name the operator of a layer."""
    case.give(f"k_{name}", layer.kernel)
    case.evaluate(f"ConvOperator(k_{name}, {layer.arguments})", name)
    kernel = layer.kernel.astype(LONG)
    domain = (layer.kernel.shape[1] * layer.groups, *layer.setting.image_shape)
    reach = (len(layer.kernel), *oracles.outputs_of(layer))
    roundings = 2 + layer.kernel[0].size
    return Term(name, dense(layer, kernel), dense(layer, np.abs(kernel)), domain, reach, roundings)


def leaves(case: Case) -> list[Term]:
    """Two convolutions of one setting, the second near the first at times, one on their images, and simpler maps."""
    rng = case.rng
    while True:
        layer = replace(
            any_layer(rng, case.one_of(("tiny", "tiny", "mid")), floating=True, library=False),
            order="C",
            transposed=False,
        )
        largest = float(np.abs(layer.kernel).max())
        if max(oracles.matrix_shape(layer)) <= SIDE and (largest == 0 or 1 / RANGE < largest < RANGE):
            break
    noise = rng.standard_normal(layer.kernel.shape) * float(np.abs(layer.kernel).max())
    near = layer.kernel + rng.choice([0.0, 1e-12, 1e-7, 1e-3, 1.0]) * noise
    found = [convolution(case, "a", layer)]
    found.append(convolution(case, "b", replace(layer, kernel=near.astype(layer.kernel.dtype), factors=None)))
    domain = found[0].domain
    setting = any_setting(
        Seeded(rng), axes=(len(domain) - 1,), groups=(1,), strides=(1,), paddings=("same",), taps=(3, 3, 2)
    )
    setting = setting._replace(kernel_shape=(domain[0], domain[0], *setting.kernel_shape[2:]), image_shape=domain[1:])
    try:
        setting.geometry  # noqa: B018
        kernel = rng.standard_normal(setting.kernel_shape).astype(layer.kernel.dtype)
        found.append(convolution(case, "c", Layer(kernel, setting)))
    except ShapeError:  # a boundary that the image is too small for
        pass
    for name, shape in (("i", domain), ("j", found[0].range)):
        case.evaluate(f"identity({shape!r}).astype(k_a.dtype)", name)
        eye = np.eye(math.prod(shape), dtype=LONG)
        found.append(Term(name, eye, eye, shape, shape, 0))
    whole = case.chance(0.5)
    values = rng.choice([0.0, 1.0, -1.0, 0.5, 3.0, 1e-9], domain if whole else domain[:1]).astype(layer.kernel.dtype)
    case.give("d", values)
    case.evaluate(f"diagonal(d, {domain!r})", "e")
    spread = np.broadcast_to(values.reshape(domain if whole else (-1, *(1,) * (len(domain) - 1))), domain)
    matrix = np.diag(spread.reshape(-1).astype(LONG))
    found.append(Term("e", matrix, np.abs(matrix), domain, domain, 1))
    return found


def combined(case: Case, pool: list[Term], place: int) -> Term | None:
    """Make one map of one or two others; None where the draw does not fit."""
    one, two = case.one_of(pool), case.one_of(pool)
    kind = case.one_of(
        (
            "sum",
            "sum",
            "difference",
            "product",
            "product",
            "scaled",
            "transpose",
            "gram",
            "power",
            "vstack",
            "hstack",
            "block",
            "shifted",
            "shifted",
        )
    )
    name = f"m{place}"
    if kind in ("sum", "difference"):
        if (one.domain, one.range) != (two.domain, two.range):
            return None
        sign = 1 if kind == "sum" else -1
        found = Term(name, one.matrix + sign * two.matrix, one.moduli + two.moduli, one.domain, one.range, 0)
        call = f"{one.name} {'+' if sign > 0 else '-'} {two.name}"
    elif kind == "shifted":
        if one.domain != one.range:
            return None
        # By an eigenvalue's size, so that much cancels.
        shift = float(case.one_of((-1.0, 1.0, 2.0, -float(np.linalg.norm(one.matrix.astype(float), 2)))))
        if not math.isfinite(shift):
            return None
        eye = np.eye(len(one.matrix), dtype=LONG)
        found = Term(name, one.matrix + LONG(shift) * eye, one.moduli + abs(shift) * eye, one.domain, one.range, 0)
        call = f"{one.name} + {shift!r} * identity({one.domain!r})"
    elif kind in ("product", "gram"):
        left, right, call = one, two, f"{one.name} @ {two.name}"
        if kind == "gram":
            left, call = transposed(one), f"{one.name}.T @ {one.name}"
            right = one
        if left.domain != right.range:
            return None
        roundings = left.roundings + right.roundings
        found = Term(name, left.matrix @ right.matrix, left.moduli @ right.moduli, right.domain, left.range, roundings)
    elif kind == "power":
        exponent = int(case.one_of((0, 1, 2, 3, 5)))
        if one.domain != one.range:
            return None
        matrix, moduli = (np.linalg.matrix_power(m, exponent) for m in (one.matrix, one.moduli))
        found = Term(name, matrix, moduli, one.domain, one.range, exponent * one.roundings)
        call = f"{one.name} ** {exponent}"
    elif kind == "scaled":
        factor = float(case.one_of((0.5, -3.0, 0.1, 1e-9, 1e9, 1e-40, 1e40, 0.0)))
        found = Term(name, LONG(factor) * one.matrix, abs(LONG(factor)) * one.moduli, one.domain, one.range, 0)
        call = f"{factor!r} * {one.name}"
    elif kind == "transpose":
        found, call = transposed(one)._replace(name=name), f"{one.name}.T"
    else:
        joined = _joined(kind, one, two)
        if joined is None:
            return None
        found = joined._replace(name=name)
        call = f"{'block_diagonal' if kind == 'block' else kind}([{one.name}, {two.name}])"
    # Sums and images beyond the range of the dtype overflow, as they should.
    limit = 1e30 if case.names["k_a"].dtype == np.float32 else RANGE
    if max(found.matrix.shape) > SIDE or not np.max(found.moduli, initial=0) < limit:
        return None
    case.evaluate(call, name)
    return found._replace(roundings=max(found.roundings, one.roundings, two.roundings) + 2)


def transposed(term: Term) -> Term:
    return Term(term.name, term.matrix.T, term.moduli.T, term.range, term.domain, term.roundings)


def _joined(kind: str, one: Term, two: Term) -> Term | None:
    same = {"vstack": one.domain == two.domain, "hstack": one.range == two.range, "block": True}[kind]
    if not same or one.domain[1:] != two.domain[1:] or one.range[1:] != two.range[1:]:
        return None
    domain = one.domain if kind == "vstack" else (one.domain[0] + two.domain[0], *one.domain[1:])
    reach = one.range if kind == "hstack" else (one.range[0] + two.range[0], *one.range[1:])

    def join(x: Any, y: Any) -> Any:
        if kind != "block":
            return np.concatenate((x, y), axis=0 if kind == "vstack" else 1)
        return np.block([[x, np.zeros((len(x), y.shape[1]), LONG)], [np.zeros((len(y), x.shape[1]), LONG), y]])

    return Term("", join(one.matrix, two.matrix), join(one.moduli, two.moduli), domain, reach, 0)


class Truth:
    """The spectrum of a term over 2^exponent: by LAPACK, and where that cannot tell in long double."""

    def __init__(self, term: Term) -> None:
        largest = np.max(np.abs(term.matrix), initial=0)
        self.exponent = int(np.frexp(largest)[1])
        self.matrix = np.ldexp(term.matrix, -self.exponent)
        self.values = np.linalg.svd(self.matrix.astype(float), compute_uv=False)
        self.largest, self.smallest = float(self.values[0]), float(self.values[-1])
        self.floor = (max(self.matrix.shape) + 8) * oracles.EPS * self.largest
        with np.errstate(over="ignore"):
            moduli = np.ldexp(term.moduli, -self.exponent)
        # What the library's own rounding can change, whose sums may have cancelled.
        size = float(np.sqrt(moduli.sum(axis=0).max() * moduli.sum(axis=1).max()))
        self.size = size
        self.slack = (term.roundings + sum(self.matrix.shape) + 8) * ULP * size

    def of(self, value: Any) -> float:
        with np.errstate(over="ignore"):
            return float(np.ldexp(LONG(value), -self.exponent))

    def precise(self) -> Any:
        return oracles.jacobi(self.matrix)


@check(weight=2)
def compositions(case: Case) -> None:
    """A drawn expression of maps: its matrix, both ends of its spectrum with what is promised of them, and bounds."""
    pool = leaves(case)
    for place in range(int(case.rng.integers(1, 5))):
        for _ in range(20):
            made = combined(case, pool, place)
            if made is not None:
                pool.append(made)
                break
    term = pool[-1]
    name = term.name
    single = case.names["k_a"].dtype == np.float32
    eps = float(np.finfo(np.float32 if single else np.float64).eps)
    truth = Truth(term)
    case.counts[f"{type(case.names[name]).__name__}"] += 1
    _judge_matrix(case, term, eps, single)
    for end in ("largest", "smallest"):
        if end == "smallest" and case.chance(0.5):
            continue
        _judge_end(case, term, truth, end, single)
    _judge_bounds(case, term, truth)


def _judge_matrix(case: Case, term: Term, eps: float, single: bool) -> None:
    found = np.asarray(case.evaluate(f"{term.name}.to_dense()", "matrix")).astype(LONG)
    case.expect(found.shape == term.matrix.shape, f"the matrix has shape {found.shape}")
    tiny = float(np.finfo(np.float32 if single else np.float64).tiny)
    terms = 2 * term.roundings + 2 * sum(found.shape)
    allowed = terms * eps * (term.moduli + float(np.max(term.moduli)) * ULP) + terms * tiny * max(
        1.0, float(np.max(term.moduli))
    )
    case.expect(np.all(np.abs(found - term.matrix) <= allowed), "an entry of the matrix is wrong")


def _judge_end(case: Case, term: Term, truth: Truth, end: str, single: bool) -> None:
    rtol = case.one_of((None, 1e-3, 1e-5))
    argument = "" if rtol is None else f", rtol={rtol!r}"
    if case.chance(0.4):
        argument += ", method='lanczos'"
    try:
        result = case.evaluate(f"{end}_singular_value({term.name}{argument})")
    except OverflowError:
        case.expect(truth.largest > 0 and truth.exponent > 1000, "OverflowError")
        return
    case.counts[f"{end} {result.status}"] += 1
    rtol = (1e-6 if single else 1e-10) if rtol is None else rtol
    value, error, upper = truth.of(result.value), truth.of(float(result.errors[0])), truth.of(result.upper)
    ulps = 2 * oracles.EPS * value + truth.of(5e-324)
    rounding = (term.roundings + sum(term.matrix.shape) + 8) * oracles.EPS * truth.size
    place = 0 if end == "largest" else -1
    if result.status in PROMISES:
        allowed = rounding + ulps + (0.0 if result.status == "exact" else rtol * truth.values[place])
        if result.status == "confirmed":
            allowed = min(allowed, rtol * truth.values[place] * (1 + 1e-9) + truth.floor + ulps)
        allowed = min(allowed, error + truth.floor + ulps)
        # LAPACK may be off by more than its usual few units: long double decides.
        true = float(truth.values[place] if abs(value - truth.values[place]) <= allowed else truth.precise()[place])
        off = abs(value - true)
        wrong = f"sigma_{end} is {value!r}, {result.status}, right is {true!r}: off by {off / max(true, 1e-300):.2e}"
        case.expect(off <= allowed, f"{wrong}; errors are {error:.2e}, rtol {rtol:.0e}")
    elif result.status == "rank deficient":
        wrong = f"'rank deficient', but sigma_{end} is {truth.values[place]!r} (rounding {rounding!r})"
        case.expect(truth.values[place] <= DOUBT * rounding + truth.of(1e-300), wrong)
    elif result.status == "estimated":
        off = abs(value - truth.values[place])
        case.counts["estimated"] += 1
        case.counts["estimated beyond rtol"] += bool(off > rounding + rtol * truth.values[place])
        case.counts["estimated beyond errors"] += bool(off > rounding + ulps + error)
    if end == "largest" and result.status in PROMISES and upper < truth.largest:
        precise = truth.precise()
        case.expect(upper >= precise[0] - truth.slack, f"upper is {upper!r}, right is {float(precise[0])!r}")


def _judge_bounds(case: Case, term: Term, truth: Truth) -> None:
    try:
        result = case.evaluate(f"singular_value_bounds({term.name})")
    except OverflowError:
        case.expect(truth.exponent > 1000, "OverflowError")
        return
    case.counts["enclosures"] += 1
    lower, upper = (np.ldexp(LONG(x), -truth.exponent) for x in (result.lower, result.upper))
    if lower <= truth.largest - truth.floor and truth.largest + truth.floor <= upper:
        return
    precise = truth.precise()[0]
    wrong = f"[{result.lower!r}, {result.upper!r}] leaves out {float(precise)!r} * 2**{truth.exponent}"
    case.expect(lower <= precise + truth.slack and precise - truth.slack <= upper, wrong)
