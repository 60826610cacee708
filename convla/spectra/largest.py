"""The largest singular values of a convolution's parts: decomposed, found by Lanczos, confirmed where that is cheap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from convla._array import namespace, on_device_of
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.dense import dense_triplets
from convla.spectra.enclosure import upper_bound
from convla.spectra.fourier import fourier_is_exact
from convla.spectra.inertia import Confirmed, confirm_largest, factorisation_is_cheap, vector_of
from convla.spectra.merge import all_of_parts, largest_of_parts, values_in
from convla.spectra.method import Method, Search
from convla.spectra.parts import direct_sum
from convla.spectra.result import SingularValues, of_zero, triplets
from convla.spectra.roundoff import rounding_of_entries
from convla.spectra.search import lanczos_triplets
from convla.spectra.status import Status
from convla.typing import Array

__all__ = ["fourier_is_best", "largest_by_lanczos", "largest_in_parts"]

_FOURIER_CHANNELS_PER_TAP = 16  # above, the c^3 work at all frequencies costs more than the iteration's convolutions
_MATVECS_BEFORE_FACTORISATION = 120
_ENCLOSURE_RTOL = 3e-4  # below, an enclosure by the symbol seldom closes


def largest_by_lanczos(
    operator: LinearMap,
    k: int,
    search: Search,
    start: Array | None,
    *,
    block: int = 2,
    basis_size: int | None = None,
) -> SingularValues:
    """Return the k largest singular triplets of a map by iteration; one value is confirmed where that is cheap."""
    banded = search.criterion == "value" and isinstance(operator, ConvOperator) and factorisation_is_cheap(operator)
    found = lanczos_triplets(
        operator,
        k,
        rtol=search.rtol,
        criterion=search.criterion,
        # Where a factorisation follows, the iteration only has to come near.
        max_matvecs=min(search.max_matvecs, _MATVECS_BEFORE_FACTORISATION) if banded else search.max_matvecs,
        rng=search.rng,
        start=start,
        block=block,
        basis_size=basis_size,
    )
    if banded and found.value > 0 and isinstance(operator, ConvOperator):
        return _confirmed(operator, found, search)
    wide_enough = search.criterion == "value" and search.rtol >= _ENCLOSURE_RTOL
    if wide_enough and found.status == Status.ESTIMATED and isinstance(operator, ConvOperator):
        return _enclosed(operator, found, search)
    return found


def _enclosed(operator: ConvOperator, found: SingularValues, search: Search) -> SingularValues:
    """Return the largest triplet with what its enclosure says of it, if this closes within the tolerance."""
    upper = upper_bound(operator, guess=found.value, rng=search.rng)
    if upper > found.value * (1 + search.rtol):
        return found
    upper = max(upper, found.value * (1 + 16 * float(np.finfo(float).eps)))
    return replace(found, errors=np.array([upper - found.value]), upper=upper, status=Status.CONFIRMED)


def _confirmed(operator: ConvOperator, found: SingularValues, search: Search) -> SingularValues:
    """Return the largest triplet with what a factorisation says of it."""
    budget = search.max_matvecs - found.matvecs
    shown = confirm_largest(operator, found.value, search.rtol, max_matvecs=budget, rng=search.rng)
    matvecs = found.matvecs + shown.matvecs
    if shown.vector is None and not shown.proved:  # something is above the value, and was not found
        return replace(found, matvecs=matvecs, status=Status.NOT_CONVERGED)
    if shown.vector is not None:
        vector = vector_of(shown, operator)
        xp = namespace(vector)
        values, left, right, residuals = triplets(operator, vector, wide=shown.wide)
        found = replace(
            found,
            values=on_device_of(values, operator.kernel, xp, dtype=xp.float64),
            left=xp.astype(left, operator.dtype),
            right=xp.astype(right, operator.dtype),
            residuals=residuals,
        )
    # Of the matrix that is factorised every entry is rounded.
    upper = max(shown.upper, found.value) + rounding_of_entries(operator)
    return replace(
        found,
        errors=np.array([upper - found.value]),
        upper=upper,
        matvecs=matvecs,
        status=_status_of(shown, upper, found.value, search.rtol),
    )


def _status_of(shown: Confirmed, upper: float, value: float, rtol: float) -> Status:
    """Return what a factorisation says of a value: for a tolerance below its own rounding errors, nothing."""
    if not shown.proved:
        return Status.NOT_CONVERGED
    return Status.CONFIRMED if upper - value <= rtol * value else Status.ESTIMATED


def largest_in_parts(
    operator: ConvOperator, k: int | None, method: Method, search: Search, start: Array | None
) -> SingularValues:
    """Return the k largest singular triplets of a convolution, or all values, from those of the parts it falls into."""
    parts = direct_sum(operator)
    if k is None:
        if not parts:
            return replace(of_zero(operator, min(operator.shape)), left=None, right=None, residuals=None)
        return all_of_parts(operator, parts, [method.all(part.operator) for part in parts])
    if values_in(parts) < k:  # zeros are wanted, with vectors
        return dense_triplets(operator, k) if parts else of_zero(operator, k)
    found = []
    for part in parts:
        ours = None if start is None else start[(..., *part.image())]
        found.append(method.largest(part.operator, min(k, *part.operator.shape), search, ours))
    return found[0] if parts[0].operator is operator else largest_of_parts(operator, parts, found, k)


def fourier_is_best(operator: ConvOperator, k: int | None) -> bool:
    """Tell whether decomposing the symbol at all frequencies costs less than the iteration's convolutions."""
    geometry = operator.geometry
    if not fourier_is_exact(geometry):
        return False
    symbol_side = min(geometry.out_channels, geometry.in_channels) // geometry.groups
    return k is None or (k == 1 and symbol_side <= _FOURIER_CHANNELS_PER_TAP * math.prod(geometry.kernel_size))
