"""The singular values of a direct sum, from those of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla.linear_map import LinearMap
from convla.spectra.parts import Part
from convla.spectra.result import SingularValues, placed, weakest
from convla.spectra.status import Status
from convla.typing import Array

__all__ = ["all_of_parts", "largest_of_parts", "smallest_of_parts", "values_in"]

Parts = Sequence[Part[LinearMap]]


def values_in(parts: Parts) -> int:
    """Return how many singular values the parts of a matrix have together; what is missing in the matrix is zero."""
    return sum(part.copies * min(part.operator.shape) for part in parts)


def _ranked_errors(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return what descending values of several parts may be off, each by its place among all.

    Values nearer than their errors may have changed places: the j-th largest of all lies between the j-th largest of
    the lower and the j-th largest of the upper ends of their intervals.
    """
    lower, upper = (np.sort(ends)[::-1] for ends in (values - errors, values + errors))
    ranked: np.ndarray = np.maximum(errors, np.maximum(values - lower, upper - values))
    return ranked


def all_of_parts(operator: LinearMap, parts: Parts, found: Sequence[SingularValues]) -> SingularValues:
    """Return all singular values of a map, given all of each part."""
    xp = namespace(operator.like)
    pieces = [np.tile(to_numpy(result.values), part.copies) for part, result in zip(parts, found, strict=True)]
    errors = [np.tile(result.errors, part.copies) for part, result in zip(parts, found, strict=True)]
    zeros = np.zeros(min(operator.shape) - sum(map(len, pieces)))
    values, doubts = np.concatenate([*pieces, zeros]), np.concatenate([*errors, zeros])
    order = np.argsort(-values, kind="stable")
    return replace(
        found[0],
        values=on_device_of(values[order], operator.like, xp, dtype=xp.float64),
        errors=_ranked_errors(values[order], doubts[order]),
        upper=max(result.upper for result in found),
        status=weakest([result.status for result in found]),
    )


def largest_of_parts(operator: LinearMap, parts: Parts, found: Sequence[SingularValues], k: int) -> SingularValues:
    """Return the k largest singular triplets of a map, given as many of each part, or all that it has."""
    places = [
        (float(value), number, index, copy)
        for number, (part, result) in enumerate(zip(parts, found, strict=True))
        for index, value in enumerate(to_numpy(result.values).tolist())
        for copy in range(min(part.copies, k))
    ]
    places.sort(key=lambda place: -place[0])
    return _collected(operator, parts, found, places[:k], upper=max(result.upper for result in found))


def smallest_of_parts(operator: LinearMap, parts: Parts, found: Sequence[SingularValues]) -> SingularValues:
    """Return the smallest singular triplet of a map, given that of each part, none of which lacks vectors."""
    # A part that cannot be told from a singular one comes first, whatever smaller value another has.
    least = min(
        range(len(parts)), key=lambda number: (found[number].status != Status.RANK_DEFICIENT, found[number].value)
    )
    return _collected(operator, parts, found, [(found[least].value, least, 0, 0)], upper=math.inf)


def _collected(
    operator: LinearMap,
    parts: Parts,
    found: Sequence[SingularValues],
    places: list[tuple[float, int, int, int]],
    *,
    upper: float,
) -> SingularValues:
    xp = namespace(operator.like)
    first = found[places[0][1]]
    statuses = [result.status for result in found]
    if Status.RANK_DEFICIENT in statuses and first.status == Status.RANK_DEFICIENT:
        status = Status.RANK_DEFICIENT
    else:
        status = weakest(statuses)

    def gathered(name: str) -> Array:
        rows = []
        for _, number, index, copy in places:
            part, vectors = parts[number], getattr(found[number], name)
            there = vectors[index : index + 1, ...]
            if name == "left":
                rows.append(placed(there, part.outputs, part.output(copy), operator.range_shape))
            else:
                rows.append(placed(there, part.inputs, part.image(copy), operator.domain_shape))
        return xp.concat(rows)

    def numbers(name: str) -> np.ndarray:
        return np.array([getattr(found[number], name)[index] for _, number, index, _ in places])

    whole = first.left is not None and first.right is not None
    return SingularValues(
        values=on_device_of([place[0] for place in places], operator.like, xp, dtype=xp.float64),
        left=gathered("left") if whole else None,
        right=gathered("right") if whole else None,
        residuals=numbers("residuals") if whole else None,
        errors=_ranked_errors(np.array([place[0] for place in places]), numbers("errors")),
        upper=upper,
        matvecs=sum(result.matvecs for result in found),
        status=status,
        method=first.method,
    )
