"""What rounding in float64 does to the matrix of a convolution, and to its products."""

from __future__ import annotations

import math

from convla._array import device_of, namespace
from convla.operators import ConvOperator
from convla.spectra.certificate import U64, gamma

__all__ = ["in_double", "product_error", "rounding_of_entries", "schur_bound"]


def in_double(operator: ConvOperator) -> ConvOperator:
    """Return the operator of the same kernel in float64, by direct sums: the rounding bounds here are theirs."""
    xp = namespace(operator.kernel)
    return operator.with_engine("direct").with_kernel(xp.astype(operator.kernel, xp.float64))


def rounding_of_entries(operator: ConvOperator) -> float:
    """Bound the norm of what float64 makes of the matrix wrong: taps that meet in one entry are summed."""
    meeting = operator.geometry.largest_entry_count
    return gamma(meeting, U64) * schur_bound(operator) if meeting > 1 else 0.0


def product_error(operator: ConvOperator) -> float:
    """Bound the rounding error of the product of the operator, or its transpose, with a vector of norm 1, in float64.

    ``norm(fl(M v) - M v) <= gamma norm(abs(M)) norm(v)`` for direct sums in any order, and the norm of ``abs(M)`` is at
    most the root of its longest row times its longest column, times its largest entry.
    """
    geometry = operator.geometry
    rows, columns = geometry.largest_row_count, geometry.largest_column_count
    largest = float(namespace(operator.kernel).max(namespace(operator.kernel).abs(operator.kernel)))
    return 2 * gamma(max(rows, columns) + 2, U64) * math.sqrt(rows * columns) * largest


def schur_bound(operator: ConvOperator) -> float:
    """Bound the norm of the matrix, and of that of its moduli, by their largest row and column sums: Schur's test."""
    xp = namespace(operator.kernel)
    moduli = abs(in_double(operator))
    geometry = operator.geometry
    ones = [
        xp.ones(s, dtype=xp.float64, device=device_of(operator.kernel))
        for s in (geometry.domain_shape, geometry.range_shape)
    ]
    rows, columns = float(xp.max(moduli.apply(ones[0]))), float(xp.max(moduli.adjoint(ones[1])))
    terms = max(geometry.largest_row_count, geometry.largest_column_count) + 4
    return math.sqrt(rows * columns) * (1 + 2 * gamma(terms, U64))
