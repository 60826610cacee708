"""Operators scaled by a power of two, so that no square of a norm can overflow or underflow."""

from __future__ import annotations

import math

from convla._array import is_exact, namespace
from convla.operators import ConvOperator

__all__ = ["scaled_to_unit"]


def scaled_to_unit(operator: ConvOperator) -> tuple[ConvOperator, int]:
    """Return an operator whose largest kernel entry lies in [0.5, 1), and the exponent e with M = 2^e scaled.

    Integers become float64; a zero kernel stays. Scaling by a power of two is exact but for entries that become
    subnormal, which are below the rounding error of the singular values.

    Raises
    ------
    TypeError
        If the kernel holds exact objects.
    """
    kernel = operator.kernel
    xp = namespace(kernel)
    if kernel.dtype == object:
        raise TypeError("operator must have a kernel of float32, float64 or integers, got dtype object")
    if is_exact(kernel):
        kernel = xp.astype(kernel, xp.float64)
    largest = float(xp.max(xp.abs(kernel)))
    exponent = math.frexp(largest)[1]
    # In two factors: 2^e itself may be beyond the dtype's range.
    half = exponent // 2
    kernel = kernel * 2.0**-half * 2.0 ** -(exponent - half)
    return operator.with_kernel(kernel), exponent
