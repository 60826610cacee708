"""What a spectral function is given, made ready: the convolution behind it, in host memory, scaled; and back again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import array_api_compat
import numpy as np

from convla._array import device_of, is_exact, namespace, on_device_of, to_numpy
from convla._checks import check_not_followed
from convla._validate import check_real
from convla.errors import ShapeError
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.result import SingularValues, read_off
from convla.spectra.scaling import scaled_to_unit
from convla.spectra.status import Status
from convla.typing import Array

__all__ = ["Problem", "convolution_of", "prepared", "tolerance_of"]


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
    exponent : int
        What was given is ``2^exponent`` times this map.
    given : LinearMap
    """

    operator: LinearMap
    transposed: bool
    exponent: int
    given: LinearMap

    @property
    def convolution(self) -> ConvOperator | None:
        """The map, where it is a convolution."""
        return self.operator if isinstance(self.operator, ConvOperator) else None

    def finished(self, result: SingularValues) -> SingularValues:
        """Return a result for what was given: scaled back, in its library, transposed if it was, with its nullity.

        Raises
        ------
        OverflowError
            If a value is beyond float64.
        """
        like, xp = self.given.like, namespace(self.given.like)
        if self.transposed and result.left is not None:
            result = self._turned(result)
        half = self.exponent // 2

        def rescale(quantity: Any) -> Any:
            return quantity * 2.0**half * 2.0 ** (self.exponent - half)

        with np.errstate(over="ignore", under="ignore"):
            values = rescale(result.values)
            residuals = None if result.residuals is None else rescale(result.residuals)
            errors, upper = rescale(result.errors), rescale(result.upper)
            # What becomes subnormal on the way back is rounded: outward.
            unseen = np.nextafter(0.0, 1.0) * (
                (np.asarray(to_numpy(values)) < np.finfo(float).tiny) & (np.asarray(to_numpy(result.values)) > 0)
            )
            errors, upper = errors + unseen, upper + float(unseen.max(initial=0.0))
        if not math.isfinite(float(values[0])):
            raise OverflowError(
                f"the largest singular value, {result.value:.3g} * 2**{self.exponent}, is beyond float64: "
                "scale the kernel"
            )

        def returned(vectors: Array | None, dtype: Any) -> Array | None:
            if vectors is None or namespace(vectors) is xp:
                return vectors
            return on_device_of(to_numpy(vectors), like, xp, dtype=dtype)

        floating = xp.float64 if is_exact(like) else like.dtype
        rows, columns = self.given.shape
        return replace(
            result,
            values=returned(values, xp.float64),
            left=returned(result.left, floating),
            right=returned(result.right, floating),
            residuals=residuals,
            errors=errors,
            upper=upper,
            nullity=max(0, columns - rows) + (result.status == Status.RANK_DEFICIENT),
        )

    def _turned(self, result: SingularValues) -> SingularValues:
        """Return what a result says of the transpose, the relation of its right vectors made exact.

        It can raise the values, by less than their errors; but for a smallest one that is tiny beside the largest: then
        both relations hold as well as rounding lets them.
        """
        xp = namespace(self.operator.like)
        values, left, right, residuals = read_off(self.operator.T, result.left)
        if len(values) != result.values.shape[0] or float(values[0]) - result.value > result.errors[0]:
            return result.transposed
        return replace(
            result,
            values=on_device_of(values, result.values, xp, dtype=xp.float64),
            left=xp.astype(left, self.operator.dtype),
            right=xp.astype(right, self.operator.dtype),
            residuals=residuals,
        )


def prepared(operator: LinearMap) -> Problem:
    """Return the map whose spectrum is that of an operator, ready to be worked on.

    Raises
    ------
    TypeError
        If `operator` is no `LinearMap`, holds exact objects, or is a tensor that autograd follows.
    """
    if not isinstance(operator, LinearMap):
        raise TypeError(f"operator must be a LinearMap, such as a ConvOperator, got {type(operator).__name__}")
    try:
        convolution, transposed = convolution_of(operator)
    except TypeError:
        return _prepared_map(operator)
    check_not_followed("kernel", convolution.kernel, "a singular value")
    scaled, exponent = scaled_to_unit(_in_host_memory(convolution))
    return Problem(scaled, transposed, exponent, operator)


def _prepared_map(operator: LinearMap) -> Problem:
    """Return a map that is no convolution, scaled by what it makes of random arrays."""
    xp = namespace(operator.like)
    if operator.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"operator must work in float32 or float64, got dtype {operator.dtype}")
    for name in ("domain_shape", "range_shape"):
        shape = getattr(operator, name)
        if not 2 <= len(shape) <= 4:
            raise ShapeError(f"operator.{name} must be (c, *positions) with 1 to 3 axes of positions, got {shape}")
    check_not_followed("operator.like", operator.like, "a singular value")
    draws = [np.random.default_rng(0).standard_normal(s) for s in (operator.domain_shape, operator.range_shape)]
    arrays = [on_device_of(draw, operator.like, xp, dtype=operator.dtype) for draw in draws]
    sizes = [float(xp.max(xp.abs(image))) for image in (operator.apply(arrays[0]), operator.adjoint(arrays[1]))]
    if not all(map(math.isfinite, sizes)):
        raise ValueError("operator must map finite arrays to finite ones, got infinity or NaN for random ones")
    exponent = math.frexp(max(sizes))[1]
    return Problem(operator * Fraction(2) ** -exponent, False, exponent, operator)


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
    if array_api_compat.is_torch_array(kernel):
        if device_of(kernel).type != "cpu":
            return convolution
    elif array_api_compat.is_jax_array(kernel):
        if getattr(device_of(kernel), "platform", "") != "cpu":
            return convolution
    else:
        return convolution
    return ConvOperator(to_numpy(kernel), convolution.geometry, order=convolution.order)
