"""All singular values of a small layer, as a descent records them, and whether their powers fit into its dtype."""

from __future__ import annotations

import math

from convla._array import namespace
from convla.operators import ConvOperator
from convla.penalties.value import gram_map

__all__ = ["Spectrum", "fourth_powers_fit", "measure_spectrum"]

Spectrum = tuple[float, float, float, float]
"""The true penalty, sigma_max, sigma_min and the condition number."""


def fourth_powers_fit(operator: ConvOperator) -> bool:
    """Tell whether fourth powers of the singular values are sure to be finite: the norms of ``B^T B v`` need them."""
    xp = namespace(operator.kernel)
    largest = float(xp.max(xp.abs(operator.kernel)))
    entries = math.prod(operator.geometry.kernel_shape) * operator.geometry.largest_row_count
    # Roots, not powers, so that nothing overflows on the way.
    return largest * math.sqrt(entries) <= math.sqrt(math.sqrt(float(xp.finfo(operator.dtype).max)))


def measure_spectrum(operator: ConvOperator, alpha: float, gram: str) -> Spectrum:
    """Return the true penalty, sigma_max, sigma_min and the condition number, from all singular values."""
    xp = namespace(operator.kernel)
    values = xp.linalg.svdvals(operator.to_dense())
    largest, smallest = float(values[0]), float(values[-1])
    rows, columns = gram_map(operator, gram).shape
    lower = smallest**2 if rows >= columns else 0.0
    condition = largest / smallest if smallest > 0.0 else math.inf
    return max(largest**2 - alpha, alpha - lower), largest, smallest, condition
