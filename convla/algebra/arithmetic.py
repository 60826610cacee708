"""What the operators of `LinearMap` make: sums, products, powers and multiples, as simple as they can be."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from convla._array import describe, device_of, is_exact, namespace
from convla._validate import check_array, check_integer, check_real
from convla.algebra.composite import Product, Scaled, Sum
from convla.algebra.leaves import Diagonal, Free, Identity, Zero
from convla.errors import ShapeError
from convla.linear_map import LinearMap

__all__ = [
    "in_one_setting",
    "multiple",
    "power",
    "product",
    "reciprocal",
    "total",
]


def total(left: LinearMap, right: Any) -> LinearMap:
    """Return the sum of two maps: nested sums as one, without what is zero."""
    if not isinstance(right, LinearMap):
        hint = ": add a multiple of the identity, c * identity(shape)" if isinstance(right, numbers.Number) else ""
        raise TypeError(f"a LinearMap is added to LinearMaps only, got {describe(right)}{hint}")
    if (left.domain_shape, left.range_shape) != (right.domain_shape, right.range_shape):
        raise ShapeError(
            f"maps are added that have the same shapes: the left one maps {left.domain_shape} to {left.range_shape}, "
            f"the right one {right.domain_shape} to {right.range_shape}"
        )
    maps = in_one_setting("a sum", (left, right))
    terms = [term for one in maps for term in (one._parts if isinstance(one, Sum) else (one,))]
    terms = [term for term in terms if not isinstance(term, Zero)] or [maps[0]]
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))


def product(left: LinearMap, right: LinearMap) -> LinearMap:
    """Return the product of two maps: nested products as one, without identities; zero where a factor is zero.

    A multiple of the identity is a number: it multiplies the product, whose values may be in the range of the dtype
    where its own are not.
    """
    if left.domain_shape != right.range_shape:
        raise ShapeError(
            f"the product of maps of shapes {left.shape} and {right.shape} needs the values of the right one as "
            f"arguments of the left one: the left one takes {left.domain_shape}, the right one gives "
            f"{right.range_shape}"
        )
    left, right = in_one_setting("a product", (left, right))
    if isinstance(left, Zero) or isinstance(right, Zero):
        return Zero(left.range_shape, right.domain_shape, like=left.like, order=left.order)
    factors = [f for one in (left, right) for f in (one._parts if isinstance(one, Product) else (one,))]
    numbers_among = [f.factor for f in factors if isinstance(f, Scaled) and isinstance(f.unscaled, Identity)]
    factors = [f for f in factors if not isinstance(f.unscaled if isinstance(f, Scaled) else f, Identity)]
    unit: LinearMap = Identity(left.range_shape, like=left.like, order=left.order)
    found = factors[0] if len(factors) == 1 else Product(tuple(factors)) if factors else unit
    return functools.reduce(multiple, numbers_among, found)


def power(linear_map: LinearMap, exponent: Any) -> LinearMap:
    """Return a power of a map of a space to itself; the identity for the exponent 0."""
    exponent = check_integer("the exponent of a map", exponent, minimum=0)
    if linear_map.domain_shape != linear_map.range_shape:
        raise ShapeError(
            "powers are of maps of a space to itself, got one that maps "
            f"{linear_map.domain_shape} to {linear_map.range_shape}"
        )
    unit: LinearMap = Identity(linear_map.domain_shape, like=linear_map.like, order=linear_map.order)
    return functools.reduce(product, [linear_map] * exponent, unit)


def multiple(linear_map: LinearMap, factor: Any) -> LinearMap:
    """Return a multiple of a map: nested factors as one, zero times a map as zero, one times it as itself."""
    factor = _factor_for(linear_map, factor, "the factor of a map")
    if factor == 0:
        return Zero(linear_map.range_shape, linear_map.domain_shape, like=linear_map.like, order=linear_map.order)
    if isinstance(linear_map, Zero):
        return linear_map
    if isinstance(linear_map, Scaled):
        factor, linear_map = factor * linear_map.factor, linear_map.unscaled
    return linear_map if factor == 1 else Scaled(linear_map, factor)


def reciprocal(linear_map: LinearMap, divisor: Any) -> Any:
    """Return what a map is to be multiplied by to be divided: a fraction where the divisor is an integer or a float."""
    number = _factor_for(linear_map, divisor, "the divisor of a map")
    if number == 0:
        raise ZeroDivisionError("a map is divided by zero")
    if linear_map.dtype != object and is_exact(linear_map.like) and abs(number) != 1:
        raise TypeError(
            f"a map of {linear_map.dtype} is not divided, its values would be no integers: take its astype() of floats"
        )
    return Fraction(1, number) if isinstance(number, int) else 1 / number


def _factor_for(linear_map: LinearMap, factor: Any, name: str) -> Any:
    """Return a number as one that a map of the dtype is multiplied by: for floats the fraction that it is."""
    if isinstance(factor, LinearMap):
        raise TypeError(f"{name} must be a real number, got {describe(factor)}: maps are multiplied by maps with @")
    if isinstance(factor, (bool, np.bool_)) or getattr(factor, "ndim", 0) > 0:
        raise TypeError(f"{name} must be a real number, got {describe(factor)}")
    if linear_map.dtype == object:
        return check_array(name, np.array(factor, dtype=object), namespace(), ndim=0)[()]
    if is_exact(linear_map.like):
        whole = isinstance(factor, Fraction) and factor.denominator == 1
        return check_integer(name, factor.numerator if whole else factor)
    if isinstance(factor, numbers.Rational):
        return Fraction(int(factor.numerator), int(factor.denominator))  # of Python's integers, not of NumPy's
    return Fraction(check_real(name, factor))


def in_one_setting(what: str, maps: Sequence[LinearMap]) -> tuple[LinearMap, ...]:
    """Return maps that go together: identities and zeros take the library, dtype and order of the others."""
    if not isinstance(maps, Iterable):
        raise TypeError(f"{what} takes a sequence of LinearMaps, got {describe(maps)}")
    maps = tuple(maps)
    if not maps:
        raise ValueError(f"{what} takes at least one map, got none")
    for place, one in enumerate(maps):
        if not isinstance(one, LinearMap):
            raise TypeError(f"{what} takes LinearMaps, got {describe(one)} at place {place}")
    like = next((one for one in maps if not all(isinstance(leaf, Free) for leaf in one._leaves())), maps[0]).like
    leaves = [leaf for one in maps for leaf in one._leaves()]
    order = next((leaf for leaf in leaves if not isinstance(leaf, (Free, Diagonal))), leaves[0]).order

    def settled(leaf: LinearMap) -> LinearMap:
        return leaf.settled(like, order) if isinstance(leaf, (Free, Diagonal)) else leaf

    found = tuple(one._changed(settled) for one in maps)
    for one in found:
        namespace(like, one.like)  # raises where the libraries differ
        if one.dtype != like.dtype:
            raise TypeError(f"{what} takes maps of one dtype, got {like.dtype} and {one.dtype}: convert one by astype")
        if device_of(one.like) != device_of(like):
            raise TypeError(f"{what} takes maps on one device, got {device_of(like)} and {device_of(one.like)}")
        if one.order != order:
            raise ValueError(f"{what} takes maps of one order of vec(), got {order!r} and {one.order!r}")
    return found
