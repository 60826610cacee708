"""What stands outside the image: its extension by the boundary, and the transpose of that."""

from __future__ import annotations

import numpy as np

from convla._array import device_of, on_device_of
from convla.geometry import ConvGeometry, IndexArray
from convla.typing import Array, Namespace

__all__ = ["extend", "fold"]


def extend(image: Array, geometry: ConvGeometry, xp: Namespace) -> Array:
    """Extend images (..., c_in, *image) to (..., c_in, *padded) as the boundary says."""
    for axis, (low, high) in enumerate(geometry.padding):
        if (low, high) == (0, 0):
            continue
        along = axis - geometry.ndim
        if geometry.boundary == "zero":
            edges = [_zeros_along(image, along, amount, xp) for amount in (low, high)]
            image = xp.concat((edges[0], image, edges[1]), axis=along)
        else:
            image = xp.take(image, on_device_of(geometry.sources(axis), image, xp), axis=along)
    return image


def fold(extended: Array, geometry: ConvGeometry, xp: Namespace) -> Array:
    """Apply the transpose of `extend`: add each extended position to the image entry that it was read from."""
    for axis, (low, high) in enumerate(geometry.padding):
        if (low, high) == (0, 0):
            continue
        along = axis - geometry.ndim
        if geometry.boundary == "zero":
            core = slice(low, low + geometry.image_shape[axis])
            extended = extended[(..., core, *(slice(None),) * (-along - 1))]
        else:
            # The transpose of a gather, as a sum of gathers: row r of the table names the r-th position that reads
            # each image entry, or the appended zero.
            extended = xp.concat((extended, _zeros_along(extended, along, 1, xp)), axis=along)
            rows = [on_device_of(row, extended, xp) for row in _readers(geometry, axis)]
            total = xp.take(extended, rows[0], axis=along)
            for row in rows[1:]:
                total = total + xp.take(extended, row, axis=along)
            extended = total
    return extended


def _readers(geometry: ConvGeometry, axis: int) -> IndexArray:
    """Return a table (most readers, image) of the extended positions that read each image index.

    Short columns are filled up with the first position beyond the extended axis.
    """
    sources = geometry.sources(axis)
    order = np.argsort(sources, kind="stable")
    counts = np.bincount(sources, minlength=geometry.image_shape[axis])
    first = np.cumsum(counts) - counts
    table = np.full((int(counts.max()), counts.size), sources.size)
    rank = np.arange(sources.size) - np.repeat(first, counts)
    table[rank, sources[order]] = order
    return table


def _zeros_along(array: Array, axis: int, amount: int, xp: Namespace) -> Array:
    shape = list(array.shape)
    shape[axis] = amount
    return xp.zeros(tuple(shape), dtype=array.dtype, device=device_of(array))
