"""In what unit a projection measures a kernel and its limits, so that their squares are in range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla._array import to_numpy
from convla.operators import ConvOperator
from convla.projections.blocks import FloatArray

__all__ = ["FAR", "distance_between", "frobenius_norm", "from_units", "in_units", "unit_of", "with_kernel"]

FAR = 400  # binary orders of magnitude: twice as many, and some, are in the range of float64


def unit_of(operator: ConvOperator, minimum: float = 0.0) -> int:
    """Return the exponent of the unit of a kernel and a lower limit.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.projections.units import in_units, unit_of
    >>> unit = unit_of(ConvOperator(np.array([[[3e200, 1.0]]]), (5,)))
    >>> unit, in_units(2.0**666, unit), in_units(0.0, unit)
    (666, 1.0, 0.0)
    """
    return math.frexp(max(float(np.max(np.abs(to_numpy(operator.kernel)))), minimum))[1]


def in_units(limit: float, unit: int) -> float:
    """Return a limit in such a unit, and no farther from the kernel than its squares are in range; 0 as 0.

    What is so far away is as good as 0, or as no limit at all: the last scaling obeys the one asked for.
    """
    mantissa, exponent = math.frexp(limit)
    return math.ldexp(mantissa, min(max(exponent - unit, -FAR), FAR))


def from_units(norm: float, unit: int) -> float:
    """Return what a norm in such a unit is; infinity where that is out of range."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(norm, unit))


def with_kernel(operator: ConvOperator, kernel: np.ndarray[Any, Any] | FloatArray) -> ConvOperator:
    """Return the operator of a kernel of any shape of as many entries, rounded to its dtype."""
    return operator.with_kernel(kernel.reshape(operator.geometry.kernel_shape).astype(operator.dtype))


def frobenius_norm(array: np.ndarray[Any, Any]) -> float:
    """Return the Frobenius norm of an array of float64, of whatever size its entries are."""
    unit = math.frexp(float(np.abs(array).max()))[1]
    return from_units(float(np.linalg.norm(np.ldexp(array, -unit))), unit)


def distance_between(one: ConvOperator, two: ConvOperator) -> float:
    """Return the Frobenius norm of the difference of two kernels, of whatever size they are."""
    return frobenius_norm(np.subtract(to_numpy(one.kernel), to_numpy(two.kernel), dtype=np.float64))
