"""Maps scaled by a power of two, so that no square of a norm can overflow or underflow, and the way back."""

from __future__ import annotations

import functools
import math
import operator
import sys
from fractions import Fraction

import numpy as np

from convla._array import is_exact, namespace, on_device_of, to_numpy
from convla.algebra import BlockDiagonal, Converted, Diagonal, Identity, Product, Scaled, Stack, Sum, Zero
from convla.algebra.composite import steps_of
from convla.linear_map import LinearMap, Transpose
from convla.operators import ConvOperator
from convla.typing import Array

__all__ = [
    "exponent_of",
    "rounded_down",
    "rounded_up",
    "scaled_by",
    "scaled_by_images",
    "scaled_to_unit",
    "unit_scaled",
]


def scaled_to_unit(convolution: ConvOperator) -> tuple[ConvOperator, int]:
    """Return an operator whose largest kernel entry lies in [0.5, 1), and the exponent e with M = 2^e scaled.

    Taps that never meet the image are set to 0, as M does not hold them; a kernel without a live entry becomes zero.
    Integers become float64. An operator that is so already is returned as it is, with what it has made of its kernel.

    Raises
    ------
    TypeError
        If the kernel holds exact objects.

    Notes
    -----
    Scaling by a power of two is exact but for entries that become subnormal, or that the library flushes to zero, as
    JAX does with all subnormal numbers. What an entry loses is at most ``2^-69`` for float32 and ``2^-156`` for
    float64: far below the rounding unit of float64, and covered by the error bounds of `convla.spectra.roundoff`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.scaling import scaled_to_unit
    >>> scaled, exponent = scaled_to_unit(ConvOperator(np.array([[[1e200, 3.0, 1e200]]]), (1,)))
    >>> scaled.kernel, exponent
    (array([[[0.  , 0.75, 0.  ]]]), 2)
    """
    kernel = convolution.kernel
    xp = namespace(kernel)
    if kernel.dtype == object:
        raise TypeError("operator must have a kernel of float32, float64 or integers, got dtype object")
    if is_exact(kernel):
        kernel = xp.astype(kernel, xp.float64)
    live = convolution.geometry.live_taps
    if not all(map(all, live)):
        mask = functools.reduce(np.multiply.outer, map(np.array, live))
        kernel = xp.where(on_device_of(mask, kernel, xp), kernel, xp.zeros_like(kernel))
    largest, info = float(xp.max(xp.abs(kernel))), xp.finfo(kernel.dtype)
    if largest < float(info.smallest_normal) / float(info.eps) ** 3:
        # Of so small a kernel a library that flushes subnormal numbers would lose too much: NumPy does not.
        host = to_numpy(kernel)
        exponent = math.frexp(float(np.max(np.abs(host))))[1]
        kernel = on_device_of(np.ldexp(host, -exponent), kernel, xp, dtype=kernel.dtype)
    else:
        exponent = math.frexp(largest)[1]
        kernel = scaled_by(kernel, -exponent)
    return convolution if kernel is convolution.kernel else convolution.with_kernel(kernel), exponent


def unit_scaled(linear_map: LinearMap) -> tuple[LinearMap, int | None]:
    """Return a map whose parts are of order 1 beside each other, and the exponent e with M = 2^e scaled.

    Convolutions are scaled as by `scaled_to_unit`, a map of one's own by what it makes of random arrays. Between the
    parts of a sum the relation of their sizes stays; what vanishes beside the largest is below ``2^-1000`` of it.

    Returns
    -------
    scaled : LinearMap
    exponent : int or None
        None where the map is known to be zero.

    Raises
    ------
    ValueError
        If a map of one's own gives infinity or NaN for finite arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.scaling import unit_scaled
    >>> small, large = (ConvOperator(np.array([[[size]]]), (1,)) for size in (1e-200, 1e200))
    >>> scaled, exponent = unit_scaled(small @ large @ large)
    >>> round(float(scaled.to_dense()[0, 0]), 6), exponent  # 0.326605 * 2^666 = 1e200
    (0.326605, 666)
    """
    if isinstance(linear_map, ConvOperator):
        scaled, exponent = scaled_to_unit(linear_map)
        zero = not bool(namespace(scaled.kernel).any(scaled.kernel != 0))
        return scaled, None if zero else exponent
    if isinstance(linear_map, (Identity, Zero)):
        return linear_map, 0 if isinstance(linear_map, Identity) else None
    if isinstance(linear_map, Scaled):
        inner, found = unit_scaled(linear_map.unscaled)
        shift = exponent_of(linear_map.factor)
        return inner * (linear_map.factor / Fraction(2) ** shift), None if found is None else found + shift
    if isinstance(linear_map, (Transpose, Converted)):
        inner, found = unit_scaled(linear_map._parts[0])
        return linear_map._rebuilt((inner,)), found
    if isinstance(linear_map, (Sum, Product, Stack, BlockDiagonal)):
        pairs = [unit_scaled(part) for part in linear_map._parts]
        exponents = [found for _, found in pairs if found is not None]
        if isinstance(linear_map, Product):
            whole = sum(exponents) if len(exponents) == len(pairs) else None
            return linear_map._rebuilt(tuple(part for part, _ in pairs)), whole
        top = max(exponents, default=0)
        parts = (part if found in (None, top) else part * Fraction(2) ** (found - top) for part, found in pairs)
        return linear_map._rebuilt(tuple(parts)), top if exponents else None
    if isinstance(linear_map, Diagonal):
        largest = float(namespace(linear_map.values).max(namespace(linear_map.values).abs(linear_map.values)))
        if largest == 0:
            return linear_map, None
        exponent = math.frexp(largest)[1]
        values = functools.reduce(operator.mul, steps_of(Fraction(2) ** -exponent), linear_map.values)
        return Diagonal(values, linear_map.domain_shape, linear_map.order), exponent
    found = _size_of_images(linear_map)
    return (linear_map * Fraction(2) ** -found if found else linear_map), found


def scaled_by_images(linear_map: LinearMap) -> tuple[LinearMap, int]:
    """Return a map scaled by what it makes of random arrays, and the exponent e with M = 2^e scaled."""
    found = _size_of_images(linear_map) or 0
    return (linear_map * Fraction(2) ** -found if found else linear_map), found


def _size_of_images(linear_map: LinearMap) -> int | None:
    """Return the exponent of the largest entry of the images of random arrays under a map and its transpose."""
    like, xp = linear_map.like, namespace(linear_map.like)
    shapes = (linear_map.domain_shape, linear_map.range_shape)
    draws = [np.random.default_rng(0).standard_normal(shape) for shape in shapes]
    arrays = [on_device_of(draw, like, xp, dtype=linear_map.dtype) for draw in draws]
    with np.errstate(over="ignore", invalid="ignore"):
        images = (linear_map.apply(arrays[0]), linear_map.adjoint(arrays[1]))
        sizes = [float(xp.max(xp.abs(image))) for image in images]
    if not all(map(math.isfinite, sizes)):
        raise ValueError("operator must map finite arrays to finite ones, got infinity or NaN for random ones")
    return math.frexp(max(sizes))[1] if max(sizes) > 0 else None


def scaled_by(array: Array, exponent: int) -> Array:
    """Return an array times a power of two."""
    half = exponent // 2  # in two factors: 2^e itself may be beyond the dtype's range
    return array * 2.0**half * 2.0 ** (exponent - half) if exponent else array


def exponent_of(number: Fraction) -> int:
    """Return an integer e with ``2^(e-1) < abs(number) < 2^(e+1)``."""
    return abs(number.numerator).bit_length() - number.denominator.bit_length()


def rounded_up(value: Fraction) -> float:
    """Return the least float64 that is at least a number, which is not negative.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from convla.spectra.scaling import rounded_up
    >>> rounded_up(Fraction(3, 2) / 2**1074), rounded_up(Fraction(2) ** 1024)
    (1e-323, inf)
    """
    try:
        nearest = float(value)
    except OverflowError:
        return math.inf
    return nearest if nearest == math.inf or Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def rounded_down(value: Fraction) -> float:
    """Return the largest float64 that is at most a number, which is not negative.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from convla.spectra.scaling import rounded_down
    >>> rounded_down(Fraction(3, 2) / 2**1074), rounded_down(Fraction(2) ** 1024)
    (5e-324, 1.7976931348623157e+308)
    """
    try:
        nearest = float(value)
    except OverflowError:
        return sys.float_info.max
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, 0.0)
