"""What the CUDA convolutions read: the tables of a cross-correlation, of its image adjoint, and of folding.

Along an axis, cross-correlation reads through tap t at output i the entry ``i * stride + t * dilation`` of the extended
image. The image adjoint is a cross-correlation itself: pixel q receives through tap t from output p where
``p * stride + t * dilation = q + low``. For the pixels ``q = f + i * stride`` of a phase f this is an output
``i + delta`` of some taps, the same for all of the phase, and none of the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from convla.geometry import ConvGeometry
from convla.typing import IndexArray

__all__ = ["MapTable", "adjoint_table", "correlation_table", "folding_table", "is_folded"]


class MapTable(NamedTuple):
    """The table of a map, and what of it its launch depends on.

    Attributes
    ----------
    table : numpy.ndarray of int64
    groups, outs, ins : int
        The groups, and the channels of one in the result and in what is given.
    places : int
        Those of a phase in one image.
    repeats : int
        Groups times phases.
    kernel_taps, taps : int
        The taps of the kernel, and the most that a phase reads through.
    largest : int
        The largest number that stands in the table or counts the entries of a channel.
    """

    table: IndexArray
    groups: int
    outs: int
    ins: int
    places: int
    repeats: int
    kernel_taps: int
    taps: int
    largest: int


class _Axis(NamedTuple):
    """One axis of a map; see `Map` in convolution.cu."""

    taps: int = 1
    dilation: int = 1
    places: int = 1
    result: int = 1
    given: int = 1
    phases: int = 1
    step: int = 1
    sources: IndexArray = np.zeros(1, np.int64)
    slots: tuple[tuple[tuple[int, int], ...], ...] = (((0, 0),),)
    """For each phase the taps that read anything, each with its shift."""


def correlation_table(geometry: ConvGeometry) -> MapTable:
    """Return the table of cross-correlation, and of its kernel adjoint."""
    out, inner = geometry.out_channels // geometry.groups, geometry.kernel_shape[1]
    return _table(geometry, out, inner, [_correlation_axis(geometry, axis) for axis in range(geometry.ndim)])


def adjoint_table(geometry: ConvGeometry) -> MapTable:
    """Return the table of the image adjoint: to the extended image, where that `is_folded`, else to the image."""
    out, inner = geometry.out_channels // geometry.groups, geometry.kernel_shape[1]
    folded = is_folded(geometry)
    return _table(geometry, inner, out, [_adjoint_axis(geometry, axis, folded) for axis in range(geometry.ndim)])


def is_folded(geometry: ConvGeometry) -> bool:
    """Tell whether several outputs read one pixel through one tap: then the adjoint of the extension comes after."""
    return any(not _is_cut(geometry, axis) and not _wraps(geometry, axis) for axis in range(geometry.ndim))


def _is_cut(geometry: ConvGeometry, axis: int) -> bool:
    """Tell whether an extended axis holds no pixel twice, and pixels in a row: around them there are zeros."""
    return geometry.boundary == "zero" or max(geometry.padding[axis]) <= 0


def _wraps(geometry: ConvGeometry, axis: int) -> bool:
    """Tell whether the outputs go round the axis of a periodic image once: each pixel has one of them for each tap."""
    around = geometry.output_shape[axis] * geometry.stride[axis]
    return geometry.boundary == "circular" and around == geometry.image_shape[axis]


def _correlation_axis(geometry: ConvGeometry, axis: int) -> _Axis:
    sources = geometry.sources(axis)
    live = geometry.live_taps[axis]
    d = geometry.dilation[axis]
    return _Axis(
        taps=len(live),
        dilation=d,
        places=geometry.output_shape[axis],
        result=geometry.output_shape[axis],
        given=geometry.image_shape[axis],
        step=geometry.stride[axis],
        sources=sources,
        slots=(tuple((t, t * d) for t, reads in enumerate(live) if reads),),
    )


def _adjoint_axis(geometry: ConvGeometry, axis: int, folded: bool) -> _Axis:
    outputs, taps = geometry.output_shape[axis], geometry.kernel_size[axis]
    s, d = geometry.stride[axis], geometry.dilation[axis]
    size = (geometry.padded_shape if folded else geometry.image_shape)[axis]
    low = 0 if folded else geometry.padding[axis][0]
    wraps = not folded and not _is_cut(geometry, axis)
    phases = min(s, size)
    count = -(-size // phases)
    deltas = [[(t, (f + low - t * d) // s) for t in range(taps) if (f + low - t * d) % s == 0] for f in range(phases)]
    if wraps:
        sources = np.arange(2 * outputs) % outputs
        slots = [[(t, delta % outputs) for t, delta in phase] for phase in deltas]
    else:
        reached = [[(t, delta) for t, delta in phase if -count < delta < outputs] for phase in deltas]
        shifts = [delta for phase in reached for _, delta in phase]
        margin = max(0, -min(shifts, default=0))
        sources = np.full(margin + max(outputs, count + max(shifts, default=0)), -1)
        sources[margin : margin + outputs] = np.arange(outputs)
        slots = [[(t, delta + margin) for t, delta in phase] for phase in reached]
    return _Axis(
        taps=taps,
        dilation=d,
        places=count,
        result=size,
        given=outputs,
        phases=phases,
        sources=sources,
        slots=tuple(map(tuple, slots)),
    )


def _table(geometry: ConvGeometry, outs: int, ins: int, axes: list[_Axis]) -> MapTable:
    """Return the table: what stands in `Map`, and behind it for each axis its sources and its slots."""
    axes = [_Axis()] * (3 - len(axes)) + axes
    head = [geometry.groups, outs, ins]
    for name in ("taps", "dilation", "places", "result", "given", "phases", "step"):
        head += [getattr(axis, name) for axis in axes]
    lines: list[IndexArray] = []
    places: list[list[int]] = [[], []]
    at = len(head) + 6
    for axis in axes:
        slots = np.zeros((axis.phases, 1 + 2 * axis.taps), np.int64)
        for phase, taps in enumerate(axis.slots):
            slots[phase, 0] = len(taps)
            slots[phase, 1 : 1 + 2 * len(taps)] = np.reshape(taps, -1)
        for place, line in zip(places, (axis.sources, slots.reshape(-1)), strict=True):
            place.append(at)
            lines.append(line)
            at += line.size
    table = np.concatenate([head, *places, *lines])
    channels = (math.prod(axis.result for axis in axes), math.prod(axis.given for axis in axes))
    return MapTable(
        table=table,
        groups=geometry.groups,
        outs=outs,
        ins=ins,
        places=math.prod(axis.places for axis in axes),
        repeats=geometry.groups * math.prod(axis.phases for axis in axes),
        kernel_taps=math.prod(geometry.kernel_size),
        taps=math.prod(max(map(len, axis.slots)) for axis in axes),
        largest=max(table.size, int(table.max()), *channels),
    )


def folding_table(geometry: ConvGeometry) -> IndexArray:
    """Return the table of folding: for each axis the places of the extended image that hold a pixel, one after another.

    See `Folding` in convolution.cu.
    """
    lead = 3 - geometry.ndim
    head = [*(1,) * lead, *geometry.image_shape, *(1,) * lead, *geometry.padded_shape]
    lists: list[IndexArray] = [np.array([0, 1, 0])] * lead
    for axis, size in enumerate(geometry.image_shape):
        sources = geometry.sources(axis)
        places = np.flatnonzero(sources >= 0)
        first = np.concatenate([[0], np.cumsum(np.bincount(sources[places], minlength=size))])
        lists.append(np.concatenate([first, places[np.argsort(sources[places], kind="stable")]]))
    starts = len(head) + 3 + np.cumsum([0, *(line.size for line in lists[:-1])])
    return np.concatenate([head, starts, *lists])
