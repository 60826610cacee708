"""Vectors of every uncoupled part of a map in one image: what a block iteration on a direct sum works with.

A Krylov or block iteration stays in the parts that its vectors touch, and one vector for all parts mixes them: each
part needs vectors of its own. As an image has room for one vector of every part, they cost no more applications than
those of a single part would. Parts whose matrices are equal for any kernel are represented by one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from convla._array import device_of, namespace, on_device_of
from convla.geometry import ConvGeometry
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.components import PositionKind, component_labels, position_kinds
from convla.typing import Array, Namespace

__all__ = ["Summands"]

IndexArray = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


class Summands:
    """The distinct uncoupled parts of a linear map, and its products with vectors of all of them.

    Parameters
    ----------
    linear_map : LinearMap
        A `ConvOperator` or its transpose falls into parts by its geometry; any other map is one part.

    Attributes
    ----------
    groups : int
        Channel groups, whose parts are treated as one batch.
    copies : tuple of int
        For each kind of positions, how many parts of it there are in each group.
    domain_sizes : tuple of int
        For each kind, the number of entries of one part's argument.

    Notes
    -----
    Vectors of kind k are arrays of shape (groups, rows, domain_sizes[k]), and so are their values, in the range.
    """

    def __init__(self, linear_map: LinearMap) -> None:
        self.linear_map = linear_map
        self._xp: Namespace = namespace(linear_map.like)
        transposed = linear_map.T
        self._geometry: ConvGeometry | None = None
        self._turned = isinstance(transposed, ConvOperator)
        for convolution in (linear_map, transposed):
            if isinstance(convolution, ConvOperator):
                self._geometry = convolution.geometry
        if self._geometry is None:
            sides = [_Side(shape, 1, None) for shape in (linear_map.domain_shape, linear_map.range_shape)]
            copies: tuple[int, ...] = (1,)
            self.groups = 1
        else:
            sides = list(_sides(self._geometry))
            self.groups, copies = self._geometry.groups, tuple(map(len, position_kinds(self._geometry)))
        self.copies = copies
        self._domain, self._range = reversed(sides) if self._turned else sides
        self.domain_sizes = self._domain.sizes

    @property
    def single(self) -> bool:
        """Whether the map is one part."""
        return self.groups == 1 and self._domain.whole and self._range.whole

    @property
    def unread(self) -> IndexArray:
        """The flat entries of an argument that are in no part: the map takes them to zero."""
        if self._geometry is None:
            return np.empty(0, int)
        return np.flatnonzero(component_labels(self._geometry)[1 if self._turned else 0] < 0)

    def apply(self, vectors: Sequence[Array]) -> list[Array]:
        """Map vectors of each kind, in one application to as many images as the kind with most rows has."""
        return self._product(vectors, self._domain, self._range, self.linear_map.apply)

    def adjoint(self, values: Sequence[Array]) -> list[Array]:
        """Map values of each kind by the transpose."""
        return self._product(values, self._range, self._domain, self.linear_map.adjoint)

    def _product(self, rows: Sequence[Array], source: _Side, target: _Side, product: Any) -> list[Array]:
        if not max((part.shape[1] for part in rows), default=0):
            return [part[:, :0, :0] for part in rows]
        found = target.split(product(source.join(rows, self._xp)), self._xp)
        return [part[:, : given.shape[1], :] for part, given in zip(found, rows, strict=True)]

    def join(self, vectors: Sequence[Array]) -> Array:
        """Lay vectors of all kinds into flat arguments (rows, columns): the n-th of every part into the n-th."""
        if not vectors:  # every output reads zeros only
            return self._xp.reshape(self.linear_map.like[:0, ...], (0, self.linear_map.shape[1]))
        joined = self._domain.join(vectors, self._xp)
        return self._xp.reshape(joined, (joined.shape[0], -1))

    def split(self, rows: Array) -> list[Array]:
        """Take the vectors of each kind out of flat arguments: the inverse of `join`."""
        images = self._xp.reshape(rows, (rows.shape[0], *self.linear_map.domain_shape))
        return self._domain.split(images, self._xp)

    def place(self, vector: Array, value: Array, kind: int, group: int, copy: int) -> tuple[Array, Array]:
        """Lay one part's vector, and its value, where its `copy`-th part has them; zeros elsewhere."""
        return (
            self._domain.place(vector, kind, group, copy, self._xp),
            self._range.place(value, kind, group, copy, self._xp),
        )


class _Side:
    """The arguments, or the values, of a map: channels in groups, positions of each kind."""

    def __init__(self, shape: tuple[int, ...], groups: int, kinds: Sequence[Sequence[IndexArray]] | None) -> None:
        self.shape, self.groups = shape, groups
        self.positions = int(np.prod(shape[1:]))
        self.channels = shape[0] // groups
        # A map that is one part of its positions is never taken apart.
        self.whole = kinds is None or (len(kinds) == 1 and len(kinds[0]) == 1 and kinds[0][0].size == self.positions)
        self.kinds: Sequence[Sequence[IndexArray]] = kinds or ()
        parts = [kind[0] for kind in self.kinds]
        counts = [self.positions] if self.whole else [part.size for part in parts]
        self.sizes = tuple(self.channels * count for count in counts)
        self._table = _inverse(np.concatenate(parts), self.positions) if parts and not self.whole else None

    def split(self, images: Array, xp: Namespace) -> list[Array]:
        grouped = xp.reshape(images, (-1, self.groups, self.channels, self.positions))
        parts = [grouped] if self.whole else [self._take(grouped, kind[0], xp) for kind in self.kinds]
        return [xp.reshape(xp.permute_dims(part, (1, 0, 2, 3)), (self.groups, part.shape[0], -1)) for part in parts]

    def join(self, parts: Sequence[Array], xp: Namespace) -> Array:
        rows = max(part.shape[1] for part in parts)
        local = [xp.reshape(_with_rows(part, rows, xp), (self.groups, rows, self.channels, -1)) for part in parts]
        joined = local[0] if self.whole else self._laid(xp.concat(local, axis=3), self._table, xp)
        return xp.reshape(xp.permute_dims(joined, (1, 0, 2, 3)), (rows, *self.shape))

    def place(self, row: Array, kind: int, group: int, copy: int, xp: Namespace) -> Array:
        local = xp.reshape(row, (self.channels, -1))
        if not self.whole:
            local = self._laid(local, _inverse(self.kinds[kind][copy], self.positions), xp)
        others = [xp.zeros_like(local)] * self.groups
        others[group] = local
        return xp.reshape(xp.concat(others, axis=0), self.shape)

    def _laid(self, local: Array, table: IndexArray | None, xp: Namespace) -> Array:
        """Lay the last axis where a table of places says; its last place, and -1, is a zero."""
        zero = xp.zeros_like(local[..., :1])
        return self._take(xp.concat([local, zero], axis=-1), table, xp)

    def _take(self, array: Array, places: Any, xp: Namespace) -> Array:
        return xp.take(array, on_device_of(places, array, xp), axis=-1)


@functools.lru_cache(maxsize=64)
def _sides(geometry: ConvGeometry) -> tuple[_Side, _Side]:
    kinds = position_kinds(geometry)
    return (
        _Side(geometry.domain_shape, geometry.groups, [_Positions(kind, "inputs") for kind in kinds]),
        _Side(geometry.range_shape, geometry.groups, [_Positions(kind, "outputs") for kind in kinds]),
    )


class _Positions(Sequence[IndexArray]):
    """The positions of the components of one kind at one side."""

    def __init__(self, kind: PositionKind, side: str) -> None:
        self._kind, self._side = kind, side

    def __len__(self) -> int:
        return len(self._kind)

    def __getitem__(self, place: Any) -> Any:
        return getattr(self._kind[place], self._side)


def _inverse(places: IndexArray, size: int) -> IndexArray:
    """Return where each of `size` positions stands among `places`; behind their last one if it does not."""
    table = np.full(size, places.size)
    table[places] = np.arange(places.size)
    return table


def _with_rows(part: Array, rows: int, xp: Namespace) -> Array:
    missing = rows - part.shape[1]
    if not missing:
        return part
    shape = (part.shape[0], missing, part.shape[2])
    return xp.concat([part, xp.zeros(shape, dtype=part.dtype, device=device_of(part))], axis=1)
