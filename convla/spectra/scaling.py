"""Operators scaled by a power of two, so that no square of a norm can overflow or underflow, and the way back."""

from __future__ import annotations

import functools
import math
import sys

import numpy as np

from convla._array import is_exact, namespace, on_device_of, to_numpy
from convla.operators import ConvOperator

__all__ = ["scale_down", "scale_up", "scaled_to_unit"]


def scaled_to_unit(operator: ConvOperator) -> tuple[ConvOperator, int]:
    """Return an operator whose largest kernel entry lies in [0.5, 1), and the exponent e with M = 2^e scaled.

    Taps that never meet the image are set to 0, as M does not hold them; a kernel without a live entry becomes zero.
    Integers become float64.

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
    kernel = operator.kernel
    xp = namespace(kernel)
    if kernel.dtype == object:
        raise TypeError("operator must have a kernel of float32, float64 or integers, got dtype object")
    if is_exact(kernel):
        kernel = xp.astype(kernel, xp.float64)
    live = operator.geometry.live_taps
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
        half = exponent // 2  # in two factors: 2^e itself may be beyond the dtype's range
        kernel = kernel * 2.0**-half * 2.0 ** -(exponent - half)
    return operator.with_kernel(kernel), exponent


def scale_up(value: float, exponent: int) -> float:
    """Return the least float64 that is at least ``value 2^exponent``, value being at least 0.

    Examples
    --------
    >>> from convla.spectra.scaling import scale_up
    >>> scale_up(1.5, -1074), scale_up(1.0, 1024)
    (1e-323, inf)
    """
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
    return scaled if math.ldexp(scaled, -exponent) >= value else math.nextafter(scaled, math.inf)


def scale_down(value: float, exponent: int) -> float:
    """Return the largest float64 that is at most ``value 2^exponent``, value being at least 0.

    Examples
    --------
    >>> from convla.spectra.scaling import scale_down
    >>> scale_down(1.5, -1074), scale_down(1.0, 1024)
    (5e-324, 1.7976931348623157e+308)
    """
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError:
        return sys.float_info.max
    return scaled if math.ldexp(scaled, -exponent) <= value else math.nextafter(scaled, 0.0)
