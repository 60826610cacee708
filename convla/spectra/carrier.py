"""Where the vectors of a map's uncoupled parts are in one array, and how far its kernel has moved: a tracker's carrier.

A Krylov or block iteration stays in the parts that its vectors touch, and one vector for all parts mixes them: each
part needs vectors of its own. An image has room for one of every part. Of parts that are equal the first stands for
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import array_api_extra as xpx
import numpy as np

from convla._array import device_of, namespace, on_device_of, row_dots, to_numbers
from convla.algebra import BlockDiagonal
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.batch import Batch
from convla.spectra.krylov import KrylovSpace
from convla.spectra.parts import Part, blocks_of, direct_sum, live_taps
from convla.spectra.scaling import scaled_by, unit_scaled
from convla.typing import Array

__all__ = ["Carrier"]

_LARGE_CHANGE = 0.5
"""Of the kernel, in units of its norm and by the bound of its effect: from there on its old vectors say little."""

_LARGE_CHANGE_OF_PARAMETERS = 0.1
"""The same of a map that is no convolution, where no bound of the effect is known."""


class Carrier:
    """The parts of a linear map, and arrays that hold vectors of all of them.

    Parameters
    ----------
    linear_map : LinearMap
        A `ConvOperator` or its transpose falls into parts by its geometry and its zero taps, a block diagonal map into
        its blocks; any other map is one part.

    Attributes
    ----------
    linear_map : LinearMap
        Over ``2^exponent``: the map itself, unless its fourth powers, which residuals are made of, would leave the
        range of its dtype.
    exponent : int
    parts : list of Part
        Empty if the kernel is zero.
    groups : int
        Of channels, which are a batch in every part.
    parameters : array of shape (groups, p)
        What the map depends on, group by group: the kernel.
    single : bool
        Whether the map is one part of one group.
    spaces : dict of int to KrylovSpace
        By part, the Krylov spaces that a search from nothing at one end of the spectrum has left for the other.
    """

    def __init__(self, linear_map: LinearMap) -> None:
        given = linear_map
        linear_map, self.exponent = _in_range(given)
        self.linear_map = linear_map
        self.spaces: dict[int, KrylovSpace] = {}
        self._moves: list[tuple[Array, tuple[list[float], list[bool]]]] = []
        self._xp = namespace(linear_map.like)
        transposed = linear_map.T
        self._turned = isinstance(transposed, ConvOperator)
        convolution = transposed if self._turned else linear_map
        self.convolution = convolution if isinstance(convolution, ConvOperator) else None
        self.parts: Sequence[Part[LinearMap]]
        if self.convolution is None:
            self.groups = 1
            self.parts = blocks_of(linear_map) if isinstance(linear_map, BlockDiagonal) else [Part(linear_map)]
            kernels = [self._xp.reshape(kernel, (-1,)) for kernel in given.kernels]
            self.parameters = self._xp.concat([*kernels, self._xp.reshape(linear_map.like, (-1,))[:0]])[None, :]
        else:
            self.groups, self.parts = self.convolution.geometry.groups, direct_sum(self.convolution)
            kernel = getattr(given.T if self._turned else given, "kernel")  # noqa: B009
            self.parameters = self._xp.reshape(kernel, (self.groups, -1))
        whole = [part.operator is convolution for part in self.parts] == [True]
        self._whole, self.single = whole, whole and self.groups == 1

    @property
    def order(self) -> int:
        """The entries of an argument for each group."""
        return self.linear_map.shape[1] // self.groups

    def has_the_parts_of(self, before: Array) -> bool:
        """Tell whether a map with other parameters falls into the same parts: whether the same taps are zero."""
        if self.convolution is None:
            return True
        shape = tuple(self.convolution.kernel.shape)
        now, then = (live_taps(self._xp.reshape(kernel, shape)) for kernel in (self.parameters, before))
        return bool((now == then).all())

    def moved(self, before: Array) -> tuple[list[float], list[bool]]:
        """Return how far the singular values of each group, scaled, can have moved since it had other parameters.

        With it comes whether its vectors of then say little of it now.
        """
        if before is self.parameters:
            return [0.0] * self.groups, [False] * self.groups
        for known, moves in self._moves:
            if known is before:
                return moves
        self._moves.append((before, self._moved_since(before)))
        return self._moves[-1][1]

    def _moved_since(self, before: Array) -> tuple[list[float], list[bool]]:
        xp = self._xp
        change = self.parameters - xp.astype(before, self.parameters.dtype, copy=False)
        change, parameters = (scaled_by(array, -self.exponent) for array in (change, self.parameters))
        changes, sizes = (np.array(to_numbers(xp.sqrt(row_dots(a, a, xp)))) for a in (change, parameters))
        if self.convolution is None:
            return changes.tolist(), (changes > _LARGE_CHANGE_OF_PARAMETERS * sizes).tolist()
        geometry = self.convolution.geometry
        rows = geometry.out_channels // geometry.groups
        readers = math.sqrt(geometry.largest_column_count // rows)
        # The norm of a matrix is at most Frobenius', and at least the mean length of its rows: for the usual small
        # change these do.
        drifts, least = readers * changes, sizes / math.sqrt(rows)
        for group in np.flatnonzero(drifts > _LARGE_CHANGE * least).tolist() if rows > 1 else ():
            drifts[group] = readers * self._norm(change, group, rows)
            least[group] = self._norm(parameters, group, rows)
        return drifts.tolist(), (drifts > _LARGE_CHANGE * least).tolist()

    def _norm(self, parameters: Array, group: int, rows: int) -> float:
        """Return the norm of one group's kernel as a matrix of so many rows."""
        xp = self._xp
        matrix = xp.reshape(parameters[group, :], (rows, -1))
        if rows > matrix.shape[1]:
            matrix = xp.matrix_transpose(matrix)
        return math.sqrt(max(0.0, float(xp.max(xp.linalg.eigvalsh(matrix @ xp.matrix_transpose(matrix))))))

    def batch(self, part: int, groups: Sequence[int]) -> Batch:
        """Return one part's maps of some groups."""
        operator = self.parts[part].operator
        if isinstance(operator, ConvOperator) and len(groups) < self.groups:
            operator = self._of_groups(operator, groups)
        return Batch(operator.T if self._turned else operator, len(groups))

    def _of_groups(self, operator: ConvOperator, groups: Sequence[int]) -> ConvOperator:
        """Return the convolution of some of the groups of one."""
        xp, kernel, geometry = self._xp, operator.kernel, operator.geometry
        grouped = xp.reshape(kernel, (geometry.groups, -1, *kernel.shape[1:]))
        taken = xp.take(grouped, on_device_of(np.asarray(groups), kernel, xp), axis=0)
        taken = xp.reshape(taken, (-1, *kernel.shape[1:]))
        fewer = geometry.replace(kernel_shape=tuple(taken.shape), groups=len(groups))
        return ConvOperator(taken, fewer, order=operator.order, engine=operator.engine)

    def split(self, vectors: Array, part: int, groups: Sequence[int]) -> Array:
        """Take the vectors of one part's maps out of flat arguments (j, columns): (groups, j, n)."""
        rows = self._of_part(vectors, part)
        if len(groups) < self.groups:
            rows = self._xp.take(rows, on_device_of(np.asarray(groups), rows, self._xp), axis=1)
        return self._xp.permute_dims(rows, (1, 0, 2))

    def join(self, rows: Array, vectors: Array, part: int, groups: Sequence[int]) -> Array:
        """Lay vectors (groups, j, n) where `split` takes them from, into a copy; zeros where it has more rows."""
        xp = self._xp
        missing = vectors.shape[0] - rows.shape[1]
        rows = xp.permute_dims(rows, (1, 0, 2))
        if missing > 0:
            zeros = xp.zeros((missing, *rows.shape[1:]), dtype=rows.dtype, device=device_of(rows))
            rows = xp.concat([rows, zeros])
        if len(groups) < self.groups:
            old = self._of_part(vectors, part)
            among = np.zeros(self.groups, np.int64)
            among[list(groups)] = np.arange(len(groups))
            chosen = on_device_of(np.isin(np.arange(self.groups), groups), rows, xp)
            rows = xp.where(chosen[None, :, None], xp.take(rows, on_device_of(among, rows, xp), axis=1), old)
        if self._whole:
            return xp.reshape(rows, tuple(vectors.shape))
        images = xp.reshape(vectors, (-1, *self.linear_map.domain_shape))
        where = (slice(None), self.parts[part].inputs, *self._positions(part, 0, values=False))
        shape = tuple(images[where].shape)
        return xp.reshape(xpx.at(images)[where].set(xp.reshape(rows, shape)), tuple(vectors.shape))

    def place(self, vector: Array, value: Array, part: int, group: int, copy: int) -> tuple[Array, Array]:
        """Lay a vector of one part, and its value, where its `copy`-th part has them; zeros elsewhere."""
        shapes = self.linear_map.domain_shape, self.linear_map.range_shape
        placed = []
        for row, shape, values in zip((vector, value), shapes, (False, True), strict=True):
            size = shape[0] // self.groups
            channels = self.parts[part].outputs if values else self.parts[part].inputs
            channels = slice(group * size, (group + 1) * size) if self.groups > 1 else channels
            where = (channels, *self._positions(part, copy, values=values))
            whole = self._xp.zeros(shape, dtype=row.dtype, device=device_of(row))
            placed.append(xpx.at(whole)[where].set(self._xp.reshape(row, tuple(whole[where].shape))))
        return placed[0], placed[1]

    def unread(self, count: int) -> list[Array]:
        """Return up to so many unit vectors of entries that are in no part: the map takes them to zero."""
        mask = np.ones(self.linear_map.domain_shape, bool)
        for number, part in enumerate(self.parts):
            for copy in range(part.copies):
                mask[(part.inputs, *self._positions(number, copy, values=False))] = False
        xp, like, units = self._xp, self.linear_map.like, []
        for place in np.flatnonzero(mask)[:count]:
            unit = np.zeros(mask.size)
            unit[place] = 1.0
            units.append(on_device_of(unit.reshape(mask.shape), like, xp, dtype=like.dtype))
        return units

    def _positions(self, part: int, copy: int, *, values: bool) -> tuple[slice, ...]:
        found = self.parts[part]
        return found.output(copy) if values != self._turned else found.image(copy)

    def _of_part(self, vectors: Array, part: int) -> Array:
        """Return flat arguments (j, columns) as one part has them: (j, all groups, n)."""
        rows = vectors.shape[0]
        images = self._xp.reshape(vectors, (rows, *self.linear_map.domain_shape))
        if not self._whole:
            images = images[(slice(None), self.parts[part].inputs, *self._positions(part, 0, values=False))]
        return self._xp.reshape(images, (rows, self.groups, -1))


def _in_range(linear_map: LinearMap) -> tuple[LinearMap, int]:
    """Return a map whose residuals are within the range of its dtype, and the exponent e with M = 2^e scaled.

    The square of a residual is a fourth power. A map that is not made of convolutions, or holds one that is zero, is
    as it is.
    """
    leaves = list(linear_map._leaves())
    if not all(isinstance(leaf, ConvOperator) and bool(namespace(leaf.like).any(leaf.like != 0)) for leaf in leaves):
        return linear_map, 0
    scaled, exponent = unit_scaled(linear_map)
    limit = math.frexp(float(namespace(linear_map.like).finfo(scaled.dtype).max))[1] // 6
    return (scaled, exponent) if exponent is not None and abs(exponent) > limit else (linear_map, 0)
