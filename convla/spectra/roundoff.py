"""What rounding in float64 does to the matrix of a map, and to its products."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import TypeVar

from convla._array import device_of, namespace
from convla.algebra import Diagonal, Identity, Product, Scaled, Stack, Sum, Zero
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.certificate import U64, gamma
from convla.typing import Array

__all__ = ["in_double", "product_error", "rounding_of_entries", "schur_bound"]

M = TypeVar("M", bound=LinearMap)


def in_double(operator: M) -> M:
    """Return the same map in float64, convolutions by direct sums: the rounding bounds here are theirs."""

    def precise(leaf: LinearMap) -> LinearMap:
        xp = namespace(leaf.like)
        double = leaf.astype(xp.float64)
        return double if not isinstance(double, ConvOperator) or double._sums_directly else double.with_engine("direct")

    return operator._changed(precise)  # type: ignore[return-value]


def rounding_of_entries(operator: LinearMap) -> float:
    """Bound the norm of what float64 makes of the matrix wrong, when it is written out: the images of unit vectors.

    Of a convolution, taps that meet in one entry are summed. A map of one's own is the matrix that it writes out.
    """
    relative = _relative(operator, units=True)
    return relative * _size(operator) * (1 + 1e-9) if relative else 0.0


def product_error(operator: LinearMap) -> float:
    """Bound the rounding error of the product of the operator, or its transpose, with a vector of norm 1, in float64.

    For a convolution ``norm(fl(M v) - M v) <= gamma norm(abs(M)) norm(v)`` for direct sums in any order, and the norm
    of ``abs(M)`` is at most the root of its longest row times its longest column, times its largest entry.
    """
    if not isinstance(operator, ConvOperator):
        return _relative(operator, units=False) * _size(operator) * (1 + 1e-9)
    geometry = operator.geometry
    rows, columns = geometry.largest_row_count, geometry.largest_column_count
    largest = float(namespace(operator.kernel).max(namespace(operator.kernel).abs(operator.kernel)))
    return 2 * gamma(max(rows, columns) + 2, U64) * math.sqrt(rows * columns) * largest


def _relative(operator: LinearMap, *, units: bool) -> float:
    """Return r with ``abs(fl(M v) - M v) <= r G abs(v)`` for the matrix ``G >= abs(M)`` whose norm `_size` bounds.

    It holds for the transpose too. With `units`, v is a unit vector: an entry is a sum of no more than one product for
    each place of its own.
    """
    if isinstance(operator, ConvOperator):
        geometry = operator.geometry
        if units:
            return gamma(geometry.largest_entry_count, U64) if geometry.largest_entry_count > 1 else 0.0
        return gamma(max(geometry.largest_row_count, geometry.largest_column_count) + 2, U64)
    if isinstance(operator, (Identity, Zero)):
        return 0.0
    if isinstance(operator, Diagonal):
        return 0.0 if units else U64
    parts = operator._parts
    if not parts:  # a map of one's own, whose products are taken for sums of products in its dtype
        eps = float(namespace(operator.like).finfo(operator.dtype).eps)
        return 0.0 if units else gamma(max(operator.shape) + 2, eps / 2)
    if isinstance(operator, Product):
        # fl(A fl(B v)) errs by what A makes of the error of B, and by its own of what B gave.
        inner = [_relative(part, units=False) for part in parts]
        chains = [inner]
        if units:  # the images are of the unit vectors of one side or the other
            chains = [[_relative(parts[0], units=True), *inner[1:]], [*inner[:-1], _relative(parts[-1], units=True)]]
        return max(functools.reduce(lambda a, b: a + b + a * b, chain) for chain in chains) * (1 + 1e-9)
    relative = max(_relative(part, units=units) for part in parts)
    if isinstance(operator, Scaled):
        exact = all(math.frexp(step)[0] in (0.5, -0.5) for step in operator.steps)
        return relative if exact else relative + gamma(len(operator.steps) + 1, U64) * (1 + relative)
    if isinstance(operator, Sum) or (isinstance(operator, Stack) and not units):
        return relative + gamma(len(parts), U64) * (1 + relative)
    return relative


def _size(operator: LinearMap) -> float:
    """Bound the norm of a matrix that bounds the moduli of a map's entries."""
    if isinstance(operator, (Identity, Zero)):
        return float(isinstance(operator, Identity))
    if isinstance(operator, Diagonal):
        return _largest_modulus(operator.values)
    if not operator._parts:
        defined = type(operator).__abs__ is not LinearMap.__abs__
        return schur_bound(operator) if defined else _written_schur_bound(operator)
    sizes = [_size(part) for part in operator._parts]
    if isinstance(operator, Scaled):
        factor = abs(operator.factor)
        return sizes[0] * (float(factor) if factor < Fraction(2) ** 1000 else math.inf)
    if isinstance(operator, Product):
        return math.prod(sizes)
    if isinstance(operator, Sum):
        return sum(sizes)
    return math.hypot(*sizes) if isinstance(operator, Stack) else max(sizes)


def _written_schur_bound(operator: LinearMap) -> float:
    xp = namespace(operator.like)
    moduli = xp.abs(xp.astype(operator.to_dense(), xp.float64))
    rows, columns = (float(xp.max(xp.sum(moduli, axis=axis))) for axis in (0, 1))
    return math.sqrt(rows) * math.sqrt(columns) * (1 + 2 * gamma(max(operator.shape) + 4, U64))


def _largest_modulus(array: Array) -> float:
    xp = namespace(array)
    return float(xp.max(xp.abs(array)))


def schur_bound(operator: LinearMap) -> float:
    """Bound the norm of the matrix, and of that of its moduli, by their largest row and column sums: Schur's test."""
    xp = namespace(operator.like)
    moduli = abs(in_double(operator))
    ones = [
        xp.ones(s, dtype=xp.float64, device=device_of(operator.like))
        for s in (operator.domain_shape, operator.range_shape)
    ]
    rows, columns = float(xp.max(moduli.apply(ones[0]))), float(xp.max(moduli.adjoint(ones[1])))
    terms = max(operator.shape)
    if isinstance(operator, ConvOperator):
        terms = max(operator.geometry.largest_row_count, operator.geometry.largest_column_count)
    return math.sqrt(rows) * math.sqrt(columns) * (1 + 2 * gamma(terms + 6, U64))
