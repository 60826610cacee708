"""What stands outside the image: its extension by the boundary, and the transpose of that."""

from __future__ import annotations

import numpy as np

from convla._array import device_of, on_device_of
from convla.geometry import ConvGeometry
from convla.typing import Array, IndexArray, Namespace

__all__ = ["extend", "fold"]


def extend(image: Array, geometry: ConvGeometry, xp: Namespace) -> Array:
    """Extend images (..., c_in, *image) to (..., c_in, *padded) as the boundary says."""
    for axis, (low, high) in enumerate(geometry.padding):
        if (low, high) == (0, 0):
            continue
        along = axis - geometry.ndim
        if geometry.boundary == "zero":
            core = _core(geometry, axis)
            image = _between_zeros(image, along, core, core.start + low, geometry.padded_shape[axis], xp)
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
            core = _core(geometry, axis)
            there = slice(core.start + low, core.stop + low)
            extended = _between_zeros(extended, along, there, core.start, geometry.image_shape[axis], xp)
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


def _core(geometry: ConvGeometry, axis: int) -> slice:
    """Return the positions of the image that its extension holds: all of them, unless some are cropped."""
    size, (low, high) = geometry.image_shape[axis], geometry.padding[axis]
    first = min(max(0, -low), size)
    return slice(first, max(first, min(size, size + high)))


def _between_zeros(array: Array, axis: int, core: slice, before: int, size: int, xp: Namespace) -> Array:
    """Return a piece of an array along an axis, with zeros around it: `before` of them, and up to `size` in all."""
    if core.stop == core.start:
        return _zeros_along(array, axis, size, xp)
    piece = array[(..., core, *(slice(None),) * (-axis - 1))]
    after = size - before - (core.stop - core.start)
    if not before and not after:
        return piece
    return xp.concat((_zeros_along(array, axis, before, xp), piece, _zeros_along(array, axis, after, xp)), axis=axis)


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
