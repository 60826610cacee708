"""A proved upper bound of the norm of any map, from those of the maps that it is made of.

Bounds are combined as fractions: nothing is rounded, and nothing overflows, until the end.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from convla._array import is_numpy, namespace, to_numpy
from convla.algebra import BlockDiagonal, Diagonal, Identity, Product, Scaled, Stack, Sum, Zero
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.dense import decomposition_is_cheap, dense_values
from convla.spectra.enclosure import dense_upper_bound, symbol_upper_bound
from convla.spectra.folding import folded
from convla.spectra.roundoff import schur_bound
from convla.spectra.scaling import scaled_to_unit, unit_scaled

__all__ = ["NormBound", "norm_bound", "written_out_bound"]

_DENSE_SIDE = 256
_ROOT_BITS = 128  # of a square root of a fraction


class NormBound(NamedTuple):
    """What a norm does not exceed, and what proves it, in words."""

    value: Fraction
    certificate: str


def norm_bound(linear_map: LinearMap, rng: np.random.Generator) -> NormBound | None:
    """Bound the norm of a map by those of its parts; None where one of them is bounded by nothing.

    Parameters
    ----------
    linear_map : LinearMap
        Of floats.
    rng : numpy.random.Generator

    Notes
    -----
    The norm of a sum is at most the sum of the norms, that of a product their product, that of a direct sum their
    largest, and that of a stack the root of the sum of their squares. Convolutions are bounded by their symbols, maps
    that are one convolution as that one, and maps of one's own by their matrices or, where these are too large and the
    map defines its modulus, by the row and column sums of that.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, identity
    >>> from convla.spectra.norms import norm_bound
    >>> mean = ConvOperator(np.array([[[0.5, 0.5, 0.0]]]), (300,), boundary="circular")
    >>> bound = norm_bound(identity((1, 300)) + 2 * mean.T @ mean, np.random.default_rng(0))
    >>> round(float(bound.value), 12), bound.certificate
    (3.0, 'sum of bounds of the terms')
    """
    return _bound(linear_map, rng, {})


def _bound(linear_map: LinearMap, rng: np.random.Generator, made: dict[int, NormBound | None]) -> NormBound | None:
    if id(linear_map) not in made:
        made[id(linear_map)] = _of_leaf(linear_map, rng) if not linear_map._parts else None
        if linear_map._parts:
            made[id(linear_map)] = _as_convolution(linear_map, rng) or _of_parts(linear_map, rng, made)
    return made[id(linear_map)]


def _of_parts(linear_map: LinearMap, rng: np.random.Generator, made: dict[int, NormBound | None]) -> NormBound | None:
    bounds = [_bound(part, rng, made) for part in linear_map._parts]
    values = [bound.value for bound in bounds if bound is not None]
    if len(values) < len(bounds) or bounds[0] is None:
        return None
    if isinstance(linear_map, Sum):
        return NormBound(sum(values, Fraction(0)), "sum of bounds of the terms")
    if isinstance(linear_map, Product):
        return NormBound(functools.reduce(lambda a, b: a * b, values), "product of bounds of the factors")
    if isinstance(linear_map, Stack):
        root = _root_above(sum((value**2 for value in values), Fraction(0)))
        return NormBound(root, "root of the sum of squares of bounds of the parts")
    if isinstance(linear_map, BlockDiagonal):
        return NormBound(max(values), "largest of bounds of the blocks")
    return bounds[0]._replace(value=values[0] * (abs(linear_map.factor) if isinstance(linear_map, Scaled) else 1))


def _root_above(square: Fraction) -> Fraction:
    """Return a fraction that is not below the square root of another, by less than a part in 2^100 above it."""
    if square == 0:
        return Fraction(0)
    shift = _ROOT_BITS - (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    scaled = square * Fraction(4) ** shift
    return Fraction(math.isqrt(scaled.numerator // scaled.denominator) + 1) / Fraction(2) ** shift


def _of_leaf(leaf: LinearMap, rng: np.random.Generator) -> NormBound | None:
    if isinstance(leaf, ConvOperator):
        return _convolution_bound(leaf, rng)
    if isinstance(leaf, (Identity, Zero)):
        return NormBound(Fraction(int(isinstance(leaf, Identity))), "identity, or zero")
    if isinstance(leaf, Diagonal):
        largest = float(np.abs(np.asarray(to_numpy(leaf.values), np.float64)).max())
        return NormBound(Fraction(largest), "the largest factor of a diagonal map")
    scaled, exponent = unit_scaled(leaf)
    if decomposition_is_cheap(leaf):
        return _times(written_out_bound(scaled), exponent)
    if type(leaf).__abs__ is LinearMap.__abs__:
        return None
    moduli = NormBound(Fraction(schur_bound(scaled)), "row and column sums of the modulus that the map defines")
    return _times(moduli, exponent)


def _convolution_bound(operator: ConvOperator, rng: np.random.Generator) -> NormBound:
    """Bound the norm of a convolution of any scale: by its matrix where that is small, else by its symbol."""
    scaled, exponent = scaled_to_unit(operator)
    if not bool(namespace(scaled.kernel).any(scaled.kernel != 0)):
        return NormBound(Fraction(0), "no entry of the kernel that meets the image differs from zero")
    if min(scaled.shape) <= _DENSE_SIDE:
        return _times(written_out_bound(scaled), exponent)
    found = symbol_upper_bound(scaled, guess=0.0, rng=rng)
    return _times(NormBound(Fraction(found.value), found.certificate), exponent)


def written_out_bound(scaled: LinearMap) -> NormBound:
    """Bound the norm of a map with parts of order 1 by its matrix, written out.

    Raises
    ------
    MemoryError
        If the matrix would not fit in memory.
    """
    found = dense_upper_bound(scaled, guess=dense_values(scaled).value)
    return NormBound(Fraction(found.value), found.certificate)


def _as_convolution(linear_map: LinearMap, rng: np.random.Generator) -> NormBound | None:
    """Bound the norm of a map as one convolution, where it is one."""
    if not is_numpy(linear_map.like):
        return None
    scaled, exponent = unit_scaled(linear_map)
    fold = folded(scaled) or folded(scaled.T)
    if fold is None or not math.isfinite(fold.error):
        return None
    bound = _convolution_bound(fold.operator, rng)
    whole = NormBound(bound.value + Fraction(fold.error), f"{bound.certificate}, of the one that the map folds into")
    return _times(whole, exponent)


def _times(bound: NormBound, exponent: int | None) -> NormBound:
    return bound._replace(value=bound.value * Fraction(2) ** (exponent or 0))
