"""All singular values of a small map, as a descent records them, and whether their powers fit into its dtype."""

from __future__ import annotations

import math

from convla._array import namespace
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.penalties.pairs import Shifted

__all__ = ["Spectrum", "fourth_powers_fit", "measure_spectrum"]

Spectrum = tuple[float, float, float, float]
"""The true penalty, sigma_max, sigma_min and the condition number."""


def fourth_powers_fit(operator: LinearMap) -> bool:
    """Tell whether fourth powers of the singular values are sure to be finite: the norms of ``B^T B v`` need them.

    Of a map that is no convolution nothing is known beforehand.
    """
    convolution = operator if isinstance(operator, ConvOperator) else operator.T
    if not isinstance(convolution, ConvOperator):
        return True
    xp = namespace(convolution.kernel)
    largest = float(xp.max(xp.abs(convolution.kernel)))
    entries = math.prod(convolution.geometry.kernel_shape) * convolution.geometry.largest_row_count
    # Roots, not powers, so that nothing overflows on the way.
    return largest * math.sqrt(entries) <= math.sqrt(math.sqrt(float(xp.finfo(operator.dtype).max)))


def measure_spectrum(target: Shifted) -> Spectrum:
    """Return the true penalty, sigma_max, sigma_min and the condition number, from all singular values."""
    xp = namespace(target.operator.like)
    values = xp.linalg.svdvals(target.operator.to_dense())
    largest, smallest = float(values[0]), float(values[-1])
    lower = 0.0 if target.nulls else smallest**2
    condition = largest / smallest if smallest > 0.0 else math.inf
    return max(largest**2 - target.alpha, target.alpha - lower), largest, smallest, condition
