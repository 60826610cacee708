"""Powers of two split off and put back, so that products of large or small numbers stay in their dtype on the way."""

from __future__ import annotations

import math

import array_api_compat

from convla._array import on_device_of
from convla.typing import Array, Namespace

__all__ = ["power_of", "times_power", "times_powers"]


def power_of(array: Array, xp: Namespace) -> int:
    """Return the e with the largest modulus of a floating-point array in [2^(e - 1), 2^e); 0 for zeros."""
    if array_api_compat.is_torch_array(array):
        array = array.detach()  # a number read from a tensor that autograd follows brings a warning
    return math.frexp(float(xp.max(xp.abs(array))))[1]


def times_power(array: Array, exponent: int, xp: Namespace) -> Array:
    """Return array * 2^exponent, also where the power alone is out of range."""
    if exponent == 0:
        return array
    return times_powers(array, on_device_of(float(exponent), array, xp, dtype=array.dtype), xp)


def times_powers(array: Array, exponents: Array, xp: Namespace) -> Array:
    """Return array * 2^exponents, entry by entry, in six steps of one direction."""
    step = xp.where(exponents < 0, xp.ceil(exponents / 6), xp.floor(exponents / 6))
    power = 2.0**step
    for _ in range(5):
        array = array * power
    return array * 2.0 ** (exponents - 5 * step)
