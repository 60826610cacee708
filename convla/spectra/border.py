"""What a spectral function is given, made ready: the convolution behind it, in host memory, scaled; and back again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import array_api_compat
import numpy as np

from convla._array import as_float_array, device_of, is_exact, is_numpy, namespace, on_device_of, to_numpy
from convla._checks import check_not_followed
from convla._validate import check_array, check_real
from convla.algebra import Diagonal, Scaled
from convla.algebra.leaves import Free, Leaf
from convla.errors import ShapeError
from convla.linear_map import LinearMap, check_linear_map
from convla.operators import ConvOperator
from convla.spectra.certificate import U64
from convla.spectra.folding import folded
from convla.spectra.result import End, SingularValues, read_off
from convla.spectra.roundoff import product_error
from convla.spectra.scaling import exponent_of, scaled_by_images, scaled_to_unit, unit_scaled
from convla.spectra.status import Status
from convla.typing import Array, ArrayLike

__all__ = [
    "Problem",
    "check_map",
    "convolution_of",
    "finished",
    "given_vectors",
    "prepared",
    "tolerance_of",
    "without_factor",
]


@dataclass(frozen=True)
class Problem:
    """A map whose spectrum is wanted, and how it came of what was given.

    Attributes
    ----------
    operator : LinearMap
        A `ConvOperator` scaled to entries of order 1, in host memory where that is where the kernel is; or the map
        that was given, where that is no convolution.
    transposed : bool
        Whether what was given is the transpose of a convolution.
    factor : Fraction
        What was given is this many times the map, or its transpose.
    given : LinearMap
    slack : float
        What the map may differ from that by, in norm, folded into one convolution or with its products rounded: terms
        of a sum may cancel; or where entries became subnormal when it was scaled.
    """

    operator: LinearMap
    transposed: bool
    factor: Fraction
    given: LinearMap
    slack: float = 0.0

    @property
    def convolution(self) -> ConvOperator | None:
        """The map, where it is a convolution."""
        return self.operator if isinstance(self.operator, ConvOperator) else None

    def finished(self, result: SingularValues, rtol: float, end: End = "largest") -> SingularValues:
        """Return a result for what was given: scaled back, in its library, transposed if it was, with its nullity.

        Where `slack` leaves more open than the tolerance, a value is not said to be confirmed; and a smallest one that
        it covers cannot be told from zero.

        Raises
        ------
        OverflowError
            If a value is beyond float64.
        """
        if self.transposed and result.left is not None:
            result = self._turned(result, result.left)
        if self.slack:
            errors, status = result.errors + self.slack, result.status
            if status == Status.CONFIRMED and float(errors[0]) > rtol * result.value:
                status = Status.ESTIMATED
            if end == "smallest" and result.value <= self.slack:
                status = Status.RANK_DEFICIENT
            result = replace(result, errors=errors, upper=result.upper + self.slack, status=status)
        return finished(result, self.factor, self.given)

    def _turned(self, result: SingularValues, vectors: Array) -> SingularValues:
        """Return what a result says of the transpose, the relation of its right vectors made exact.

        It can raise the values, by less than their errors; but for a smallest one that is tiny beside the largest: then
        both relations hold as well as rounding lets them.
        """
        xp = namespace(self.operator.like)
        values, left, right, residuals = read_off(self.operator.T, vectors)
        if len(values) != result.values.shape[0] or float(values[0]) - result.value > result.errors[0]:
            return result.transposed
        return replace(
            result,
            values=on_device_of(values, result.values, xp, dtype=xp.float64),
            left=xp.astype(left, self.operator.dtype),
            right=xp.astype(right, self.operator.dtype),
            residuals=residuals,
            least=None,
        )


def finished(result: SingularValues, factor: Fraction, given: LinearMap) -> SingularValues:
    """Return a result for a map from that for a part of its: times a factor, in its library, with its nullity.

    Raises
    ------
    OverflowError
        If a value is beyond float64.
    """
    like, xp = given.like, namespace(given.like)
    exponent = exponent_of(factor)
    half = exponent // 2
    mantissa = float(abs(factor) / Fraction(2) ** exponent)

    def rescale(quantity: Any) -> Any:
        return quantity * mantissa * 2.0**half * 2.0 ** (exponent - half)

    with np.errstate(over="ignore", under="ignore"):
        values = rescale(result.values)
        residuals = None if result.residuals is None else rescale(result.residuals)
        errors, upper = rescale(result.errors), rescale(result.upper)
        size = np.asarray(to_numpy(values))
        if mantissa != 1:  # else nothing has been rounded
            errors, upper = (errors + 4 * U64 * size) * (1 + 4 * U64), upper * (1 + 4 * U64)
        # What becomes subnormal on the way back is rounded: outward.
        unseen = np.nextafter(0.0, 1.0) * ((size < np.finfo(float).tiny) & (np.asarray(to_numpy(result.values)) > 0))
        errors, upper = errors + unseen, upper + float(unseen.max(initial=0.0))
    if not math.isfinite(float(values[0])):
        raise OverflowError(
            f"the largest singular value, {result.value:.3g} * {mantissa:.3g} * 2**{exponent}, is beyond float64: "
            "scale the kernel"
        )
    floating = xp.float64 if is_exact(like) else like.dtype

    def returned(array: Array, dtype: Any) -> Array:
        if namespace(array) is xp:
            return xp.astype(array, dtype, copy=False)
        return on_device_of(to_numpy(array), like, xp, dtype=dtype)

    rows, columns = given.shape
    left = result.left if factor > 0 or result.left is None else -result.left
    vectors = (left, result.right, result.least)
    left, right, least = (None if array is None else returned(array, floating) for array in vectors)
    return replace(
        result,
        values=returned(values, xp.float64),
        left=left,
        right=right,
        residuals=residuals,
        errors=errors,
        upper=upper,
        least=least,
        nullity=max(0, columns - rows) + (result.status == Status.RANK_DEFICIENT),
    )


def prepared(operator: LinearMap) -> Problem:
    """Return the map whose spectrum is that of an operator, ready to be worked on.

    Raises
    ------
    TypeError
        If `operator` is no `LinearMap`, holds exact objects, or is a tensor that autograd follows.
    """
    check_map(operator)
    unscaled, factor = without_factor(operator)
    try:
        convolution, transposed = convolution_of(unscaled)
    except TypeError:
        return _prepared_map(unscaled, factor, operator)
    scaled, exponent = scaled_to_unit(_in_host_memory(convolution))
    return Problem(scaled, transposed, factor * Fraction(2) ** exponent, operator, _lost(scaled, exponent))


def _lost(scaled: ConvOperator, exponent: int) -> float:
    """Bound the norm of what is lost of entries that become subnormal where a kernel is scaled down."""
    if exponent <= 0:
        return 0.0
    geometry, info = scaled.geometry, namespace(scaled.kernel).finfo(scaled.dtype)
    subnormal = float(info.smallest_normal) * float(info.eps)
    return subnormal * math.ceil(math.sqrt(geometry.largest_row_count * geometry.largest_column_count) / 2)


def check_map(operator: Any) -> None:
    """Raise unless an argument is a map of floats or integers whose values nobody differentiates."""
    check_linear_map(operator)
    if operator.dtype == object:
        raise TypeError("operator must have a kernel of float32, float64 or integers, got dtype object")
    for leaf in operator._leaves():
        check_not_followed(
            "kernel" if isinstance(leaf, ConvOperator) else "operator.like", leaf.like, "a singular value"
        )
    for name in ("domain_shape", "range_shape"):
        shape = getattr(operator, name)
        if not 2 <= len(shape) <= 4:
            raise ShapeError(f"operator.{name} must be (c, *positions) with 1 to 3 axes of positions, got {shape}")


def given_vectors(operator: LinearMap, start: SingularValues | ArrayLike) -> Array:
    """Return the right singular vectors of a result, or images, to start from: floats of shape (k, *domain_shape).

    Raises
    ------
    TypeError, ShapeError, ValueError
        If they are none of the map's library, or not of its domain; or the result has no vectors.
    """
    vectors = start.right if isinstance(start, SingularValues) else start
    if vectors is None:
        raise ValueError("start must hold singular vectors, got a result without them")
    shape, xp = operator.domain_shape, namespace(vectors, operator.like)
    axes = f"(..., {', '.join(map(str, shape))})"
    array = check_array("start", vectors, xp, min_ndim=len(shape), axes=axes)
    if tuple(array.shape[-len(shape) :]) != shape:
        raise ShapeError(f"start must have shape {axes}, got {tuple(array.shape)}")
    return xp.reshape(as_float_array(array, xp), (-1, *shape))


def without_factor(operator: LinearMap) -> tuple[LinearMap, Fraction]:
    """Return a map without the number that it is multiplied by, and that number."""
    if isinstance(operator, Scaled):
        return operator.unscaled, Fraction(operator.factor)
    return operator, Fraction(1)


def _prepared_map(operator: LinearMap, factor: Fraction, given: LinearMap) -> Problem:
    """Return a map that is no convolution: one that it can be folded into, or with parts of order 1 as a whole."""
    xp = namespace(operator.like)
    if not is_exact(operator.like) and operator.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"operator must work in float32 or float64, got dtype {operator.dtype}")
    known = all(isinstance(leaf, (ConvOperator, Leaf)) for leaf in operator._leaves())
    if known:  # sums in which much cancels keep more digits so
        operator = operator._changed(_leaf_in_host_memory)
        operator = operator.astype(namespace(operator.like).float64)
    elif is_exact(operator.like):
        operator = operator.astype(xp.float64)
    scaled, exponent = unit_scaled(operator)
    factor = factor * Fraction(2) ** (exponent or 0)
    for transposed in (False, True):
        fold = folded(scaled.T if transposed else scaled) if known and is_numpy(scaled.like) else None
        if fold is not None:
            convolution, shift = scaled_to_unit(fold.operator)
            slack = fold.error * 2.0**-shift if shift > -1000 else math.inf
            return Problem(convolution, transposed, factor * Fraction(2) ** shift, given, slack)
    scaled, shift = scaled_by_images(scaled)
    slack = product_error(scaled) if known else 0.0
    return Problem(scaled, False, factor * Fraction(2) ** shift, given, slack)


def _leaf_in_host_memory(leaf: LinearMap) -> LinearMap:
    """Return a map that is made of no others, and is of this library, on NumPy arrays, where that moves nothing."""
    if not _is_in_host_memory(leaf.like):
        return leaf
    if isinstance(leaf, ConvOperator):
        return _in_host_memory(leaf)
    if isinstance(leaf, Diagonal):
        return Diagonal(to_numpy(leaf.values), leaf.domain_shape, leaf.order)
    assert isinstance(leaf, Free)
    return leaf.settled(to_numpy(leaf.like), leaf.order)


def convolution_of(operator: LinearMap) -> tuple[ConvOperator, bool]:
    """Return the `ConvOperator` behind an argument, and whether the argument is its transpose."""
    if isinstance(operator, ConvOperator):
        return operator, False
    if isinstance(operator, LinearMap) and isinstance(operator.T, ConvOperator):
        return operator.T, True
    raise TypeError(f"operator must be a ConvOperator or its transpose, got {type(operator).__name__}")


def tolerance_of(operator: LinearMap, rtol: float | None, default: tuple[float, float]) -> float:
    """Return a relative tolerance: the default for float32, or for what is wider, where none is given.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, or smaller than rounding allows.
    """
    single = operator.dtype == namespace(operator.like).float32
    if rtol is None:
        return default[0] if single else default[1]
    floor = 4 * float(np.finfo(np.float32 if single else np.float64).eps)
    value = check_real("rtol", rtol, positive=True)
    if value < floor:
        raise ValueError(f"rtol must be at least {floor:.1e} for a kernel of {operator.dtype}, got {value}")
    return value


def _in_host_memory(convolution: ConvOperator) -> ConvOperator:
    """Return a convolution on NumPy arrays, where its kernel is in the memory that NumPy sees; nothing is moved."""
    kernel = convolution.kernel
    if is_numpy(kernel) or not _is_in_host_memory(kernel):
        return convolution
    return ConvOperator(to_numpy(kernel), convolution.geometry, order=convolution.order)


def _is_in_host_memory(array: Array) -> bool:
    """Tell whether NumPy sees the memory of an array of its own, PyTorch's or JAX's."""
    if array_api_compat.is_torch_array(array):
        return bool(device_of(array).type == "cpu")
    if array_api_compat.is_jax_array(array):
        return getattr(device_of(array), "platform", "") == "cpu"
    return is_numpy(array)
