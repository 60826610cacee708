"""The smallest singular value of a map, in float64: decomposed, by the symbol, through a factorisation, or iterated."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from convla._array import namespace, on_device_of
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.border import Problem
from convla.spectra.dense import among_groups, group_operators
from convla.spectra.fourier import fourier_is_exact, fourier_triplets, values_of_symbol
from convla.spectra.inertia import factorisation_is_cheap, shown_of_smallest
from convla.spectra.inverse import SmallestTriplet, smallest_by_inverse
from convla.spectra.merge import smallest_of_parts, values_in
from convla.spectra.method import Method, Search
from convla.spectra.parts import direct_sum
from convla.spectra.result import SingularValues, smallest_triplet
from convla.spectra.roundoff import rounding_of_entries, schur_bound
from convla.spectra.search import lanczos_triplets
from convla.spectra.status import Status

__all__ = [
    "exactly_singular",
    "smallest_by_factorisation",
    "smallest_by_fourier",
    "smallest_by_lanczos",
    "smallest_of_problem",
]


def smallest_of_problem(problem: Problem, method: Method, search: Search) -> SingularValues:
    """Return the smallest triplet of a scaled map, in float64."""
    operator = problem.operator
    xp = namespace(operator.like)
    if problem.convolution is None:
        return method.smallest(operator, search)
    precise = problem.convolution.astype(xp.float64)
    method = method.chosen(precise, 1, "smallest")
    if method.whole:
        return method.smallest(precise, search)
    parts = direct_sum(precise)
    if values_in(parts) < min(precise.shape):
        return exactly_singular(precise, method.name)
    found = [method.smallest(part.operator, search) for part in parts]
    result = found[0] if parts[0].operator is precise else smallest_of_parts(precise, parts, found)
    left, right = (
        None if vectors is None else xp.astype(vectors, operator.dtype) for vectors in (result.left, result.right)
    )
    return replace(result, left=left, right=right)


def smallest_by_lanczos(
    operator: LinearMap, search: Search, *, block: int = 2, basis_size: int | None = None
) -> SingularValues:
    """Return the smallest triplet of a map by iteration, which seldom converges."""
    found = lanczos_triplets(
        operator,
        1,
        rtol=search.rtol,
        criterion="value",
        max_matvecs=search.max_matvecs,
        rng=search.rng,
        end="smallest",
        block=block,
        basis_size=basis_size,
    )
    if not isinstance(operator, ConvOperator):
        return found
    floor = max(operator.shape) * float(np.finfo(np.float64).eps) * schur_bound(operator)
    return _judged(operator, found, floor, search.rtol)


def smallest_by_factorisation(operator: ConvOperator, search: Search) -> SingularValues:
    """Return the smallest triplet of a convolution by Lanczos on its pseudo-inverse, group by group."""
    xp = namespace(operator.kernel)
    best: SmallestTriplet | None = None
    where = matvecs = 0
    for number, group in enumerate(group_operators(operator)):
        found = smallest_by_inverse(group, rtol=search.rtol, max_matvecs=search.max_matvecs, rng=search.rng)
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
    return _judged(operator, result, best.floor if best.value > best.floor else math.inf, search.rtol)


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


def smallest_by_fourier(operator: ConvOperator) -> SingularValues:
    """Return the smallest triplet of a convolution on a torus, from its symbol."""
    # Repeated outputs, and phases that no tap reads, add singular values 0 to those of the symbol.
    if fourier_is_exact(operator.geometry) and values_of_symbol(operator) < min(operator.shape):
        return exactly_singular(operator, "fourier")
    return fourier_triplets(operator, 1, smallest=True)


def exactly_singular(operator: LinearMap, method: str) -> SingularValues:
    """Return the value 0, without vectors."""
    method = "dense" if method == "auto" else method  # what was chosen counted the values, and decomposed nothing
    xp = namespace(operator.like)
    zero = on_device_of(np.zeros(1), operator.like, xp, dtype=xp.float64)
    return SingularValues(zero, None, None, None, np.zeros(1), math.inf, 0, Status.RANK_DEFICIENT, method)
