"""The smallest singular value of a map, in float64: decomposed, by the symbol, through a factorisation, or iterated."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from convla._array import namespace, on_device_of
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.border import Problem
from convla.spectra.dense import (
    among_groups,
    decomposition_is_cheap,
    decomposition_work,
    dense_triplets,
    group_operators,
)
from convla.spectra.fourier import fourier_is_exact, fourier_triplets, values_of_symbol
from convla.spectra.inertia import factorisation_is_cheap, shown_of_smallest
from convla.spectra.inverse import SmallestTriplet, factorisation_work, smallest_by_inverse
from convla.spectra.merge import smallest_of_parts, values_in
from convla.spectra.parts import direct_sum
from convla.spectra.result import SingularValues, smallest_triplet
from convla.spectra.roundoff import rounding_of_entries, schur_bound
from convla.spectra.search import lanczos_triplets
from convla.spectra.status import Status

__all__ = ["SmallestMethod", "exactly_singular", "smallest_of_problem"]

SmallestMethod = Literal["auto", "dense", "fourier", "inverse", "lanczos"]

_DIRECT_LIMIT = 2e12  # operations of a decomposition or factorisation: about 20 s


def smallest_of_problem(
    problem: Problem, rtol: float, method: SmallestMethod, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    """Return the smallest triplet of a scaled map, in float64."""
    operator = problem.operator
    xp = namespace(operator.like)
    if problem.convolution is None:
        return _smallest_of_map(operator, rtol, method, max_matvecs, rng)
    precise = problem.convolution.astype(xp.float64)
    if method == "fourier" or (method == "auto" and fourier_is_exact(precise.geometry)):
        return _smallest_by_fourier(precise)
    parts = direct_sum(precise)
    if values_in(parts) < min(precise.shape):
        return exactly_singular(precise, method if method != "auto" else "dense")
    found = [_smallest_of_map(part.operator, rtol, method, max_matvecs, rng) for part in parts]
    result = found[0] if parts[0].operator is precise else smallest_of_parts(precise, parts, found)
    in_dtype = {
        side: xp.astype(vectors, operator.dtype)
        for side in ("left", "right")
        if (vectors := getattr(result, side)) is not None
    }
    return replace(result, **in_dtype)


def _smallest_of_map(
    operator: LinearMap, rtol: float, method: SmallestMethod, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    """Return the smallest triplet of a map that is not known to fall into parts."""
    if method == "auto":
        method = _cheapest_for_smallest(operator)
    if method == "dense":
        return dense_triplets(operator, 1, "smallest")
    if method == "fourier":
        raise ValueError(f"method 'fourier' needs a convolution, got {type(operator).__name__}")
    if method == "inverse":
        if not isinstance(operator, ConvOperator):
            raise ValueError(f"method 'inverse' needs a convolution, got {type(operator).__name__}")
        return _smallest_by_inverse(operator, rtol, max_matvecs, rng)
    found = lanczos_triplets(
        operator, 1, rtol=rtol, criterion="value", max_matvecs=max_matvecs, rng=rng, end="smallest"
    )
    if not isinstance(operator, ConvOperator):
        return found
    floor = max(operator.shape) * float(np.finfo(np.float64).eps) * schur_bound(operator)
    return _judged(operator, found, floor, rtol)


def _cheapest_for_smallest(operator: LinearMap) -> SmallestMethod:
    if decomposition_is_cheap(operator):
        return "dense"
    dense = decomposition_work(operator) if decomposition_is_cheap(operator, limit=_DIRECT_LIMIT) else math.inf
    sparse = factorisation_work(operator) if isinstance(operator, ConvOperator) else math.inf
    if min(dense, sparse) > _DIRECT_LIMIT:
        return "lanczos"
    return "dense" if dense <= sparse else "inverse"


def _smallest_by_inverse(
    operator: ConvOperator, rtol: float, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    xp = namespace(operator.kernel)
    best: SmallestTriplet | None = None
    where = matvecs = 0
    for number, group in enumerate(group_operators(operator)):
        found = smallest_by_inverse(group, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
        if found is None:
            return exactly_singular(operator, "inverse")
        matvecs += found.matvecs
        # A group that cannot be told from a singular one comes first, whatever smaller value another has.
        if best is None or (found.value > found.floor, found.value) < (best.value > best.floor, best.value):
            best, where = found, number
    assert best is not None
    wide = operator.shape[0] < operator.shape[1]
    side, place, groups = operator.T if wide else operator, np.array([where]), operator.geometry.groups
    right = among_groups(best.right[None, :], place, side, groups)
    left = among_groups(best.left[None, :], place, side.T, groups)
    left, right = (right, left) if wide else (left, right)
    values, left, right, residuals = smallest_triplet(operator, left, right, wide=wide)
    result = SingularValues(
        values=on_device_of(values, operator.kernel, xp, dtype=xp.float64),
        left=left,
        right=right,
        residuals=residuals,
        errors=np.array([best.error]),
        upper=math.inf,
        matvecs=matvecs + 3,
        status=Status.ESTIMATED if best.converged else Status.NOT_CONVERGED,
        method="inverse",
    )
    return _judged(operator, result, best.floor if best.value > best.floor else math.inf, rtol)


def _judged(operator: ConvOperator, found: SingularValues, floor: float, rtol: float) -> SingularValues:
    """Return the smallest triplet that an iteration found with what rounding, and factorisations, say of its value.

    Parameters
    ----------
    operator : ConvOperator
        With entries of order 1.
    found : SingularValues
    floor : float
        What cannot be told from zero.
    rtol : float
    """
    entries = rounding_of_entries(operator)
    bounded = found.errors if found.status != Status.NOT_CONVERGED else np.maximum(found.errors, found.value)
    found = replace(found, errors=bounded + entries)
    if found.value <= max(floor, entries):
        return replace(found, status=Status.RANK_DEFICIENT)
    if not factorisation_is_cheap(operator):
        return found
    least, refuted = shown_of_smallest(operator, found.value, rtol)
    error = found.value - least + entries
    if error <= rtol * found.value:
        return replace(found, errors=np.array([error]), status=Status.CONFIRMED)
    return replace(found, errors=np.array([error]), status=Status.NOT_CONVERGED) if refuted else found


def _smallest_by_fourier(operator: ConvOperator) -> SingularValues:
    # Repeated outputs, and phases that no tap reads, add singular values 0 to those of the symbol.
    if fourier_is_exact(operator.geometry) and values_of_symbol(operator) < min(operator.shape):
        return exactly_singular(operator, "fourier")
    return fourier_triplets(operator, 1, smallest=True)


def exactly_singular(operator: LinearMap, method: str) -> SingularValues:
    """Return the value 0, without vectors."""
    xp = namespace(operator.like)
    zero = on_device_of(np.zeros(1), operator.like, xp, dtype=xp.float64)
    return SingularValues(zero, None, None, None, np.zeros(1), math.inf, 0, Status.RANK_DEFICIENT, method)
