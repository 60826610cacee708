"""Into which uncoupled parts a convolution falls: the connected components of its matrix, from the geometry alone.

An output and an input are coupled where some tap of the kernel stands between them. Channels are coupled within their
group, positions along one axis where the axis map of the geometry says so, and the entries of M where both hold along
every axis: M is, but for the order of its rows and columns, a direct sum with one summand for each group and each
choice of a component along every axis. (Two connected bipartite graphs have a connected product here, since a walk in
one can go to and fro while the other catches up.) Strides and dilations split axes; a kernel of one tap splits all.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from convla.geometry import ConvGeometry

__all__ = ["Component", "PositionKind", "axis_components", "component_labels", "position_kinds"]

IndexArray = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


@dataclass(frozen=True, eq=False)
class Component:
    """Positions that are coupled with each other and with no others.

    Attributes
    ----------
    inputs, outputs : numpy.ndarray of int
        Increasing. Neither is empty.
    """

    inputs: IndexArray
    outputs: IndexArray


def axis_components(geometry: ConvGeometry, axis: int) -> list[Component]:
    """Return the components of the positions along one axis, in the order of their first outputs.

    Parameters
    ----------
    geometry : ConvGeometry
    axis : int
        An image axis, counted from 0.

    Returns
    -------
    list of Component
        A position that no output reads, or an output that reads zeros only, is in none.

    Examples
    --------
    >>> from convla import ConvGeometry
    >>> from convla.spectra.components import axis_components
    >>> for part in axis_components(ConvGeometry((1, 1, 3), (5,), padding="same", dilation=2), 0):
    ...     print(part.inputs, part.outputs)
    [0 2 4] [0 2 4]
    [1 3] [1 3]
    """
    sources = geometry.axis_map(axis)
    rows, taps = np.nonzero(sources >= 0)
    outputs, inputs = geometry.output_shape[axis], geometry.image_shape[axis]
    columns = outputs + sources[rows, taps]
    graph = coo_array((np.ones(rows.size, bool), (rows, columns)), shape=(outputs + inputs,) * 2)
    _, labels = connected_components(graph, directed=False)
    read = np.unique(columns)
    return [
        Component(read[labels[read] == label] - outputs, np.flatnonzero(labels[:outputs] == label))
        for label in dict.fromkeys(labels[np.unique(rows)])
    ]


def component_labels(geometry: ConvGeometry) -> tuple[IndexArray, IndexArray]:
    """Return in which uncoupled part of a convolution each entry of an image and of its features is.

    Parameters
    ----------
    geometry : ConvGeometry

    Returns
    -------
    domain_labels, range_labels : numpy.ndarray of int, of shape `domain_shape` and `range_shape`
        Of equal label where, and only where, a kernel without zeros couples them, over others perhaps; -1 for an entry
        that is coupled with none: a zero column or row of the matrix.

    Examples
    --------
    >>> from convla import ConvGeometry
    >>> from convla.spectra.components import component_labels
    >>> component_labels(ConvGeometry((2, 1, 1), (3,), padding=0, stride=2, groups=2))[0]
    array([[ 0, -1,  1],
           [ 2, -1,  3]])
    """
    axes = [axis_components(geometry, axis) for axis in range(geometry.ndim)]
    return (
        _labels([[part.inputs for part in parts] for parts in axes], geometry.domain_shape, geometry.groups),
        _labels([[part.outputs for part in parts] for parts in axes], geometry.range_shape, geometry.groups),
    )


def _labels(axes: list[list[IndexArray]], shape: tuple[int, ...], groups: int) -> IndexArray:
    labels = np.repeat(np.arange(groups), shape[0] // groups)
    for parts, size in zip(axes, shape[1:], strict=True):
        along = np.full(size, -1)
        for number, positions in enumerate(parts):
            along[positions] = number
        labels = labels[..., None]
        labels = np.where((labels < 0) | (along < 0), -1, labels * max(1, len(parts)) + along)
    return labels


class PositionKind(Sequence[Component]):
    """Components of the positions of all axes together whose parts of the matrix are equal, whatever the kernel.

    The n-th input, and the n-th output, of one component stands for the n-th of another. Positions are flat, row-major.
    """

    def __init__(self, geometry: ConvGeometry, axes: Sequence[Sequence[Component]]) -> None:
        self._geometry, self._axes = geometry, axes

    def __len__(self) -> int:
        return math.prod(map(len, self._axes))

    def __getitem__(self, place: Any) -> Any:
        places = np.unravel_index(range(len(self))[place], tuple(map(len, self._axes)))
        parts = [along[int(number)] for along, number in zip(self._axes, places, strict=True)]
        return Component(
            np.ravel_multi_index(np.ix_(*(part.inputs for part in parts)), self._geometry.image_shape).ravel(),
            np.ravel_multi_index(np.ix_(*(part.outputs for part in parts)), self._geometry.output_shape).ravel(),
        )


@functools.lru_cache(maxsize=64)
def position_kinds(geometry: ConvGeometry) -> tuple[PositionKind, ...]:
    """Return the components of the positions of all axes together, those of equal parts of the matrix as one kind.

    Parameters
    ----------
    geometry : ConvGeometry

    Returns
    -------
    tuple of PositionKind
        Empty where every output reads zeros only.

    Examples
    --------
    >>> from convla import ConvGeometry
    >>> from convla.spectra.components import position_kinds
    >>> [[part.inputs for part in kind] for kind in position_kinds(ConvGeometry((1, 1, 1), (3,), padding=0))]
    [[array([0]), array([1]), array([2])]]
    """
    axes = [_axis_kinds(geometry, axis) for axis in range(geometry.ndim)]
    return tuple(PositionKind(geometry, choice) for choice in itertools.product(*axes))


def _axis_kinds(geometry: ConvGeometry, axis: int) -> list[list[Component]]:
    """Sort the components along an axis by what their outputs read of their inputs through which taps."""
    sources = geometry.axis_map(axis)
    kinds: dict[bytes, list[Component]] = {}
    for part in axis_components(geometry, axis):
        read = sources[part.outputs]
        pattern = np.where(read < 0, -1, np.searchsorted(part.inputs, read))
        kinds.setdefault(pattern.astype(np.int64).tobytes(), []).append(part)
    return list(kinds.values())
