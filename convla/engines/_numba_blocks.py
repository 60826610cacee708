"""Cross-correlation in cache-sized blocks of the flattened extended image, compiled.

Flatten the extended image of one channel to a vector. Then the window of each tap is a contiguous piece of it, found at
a fixed offset, and the features are sums of shifted pieces, with a few unused entries where a row of the image ends. A
block of such a vector is extended into scratch memory that stays in cache, multiplied with `tile`, and copied out
without the unused entries: no matrix of windows is ever formed. All arrays are seen as three-dimensional, with leading
axes of length 1, and are passed flat; `SIZES` says how to read them. With a stride s, every s-th entry of the extended
image makes one of s phases, which act as channels of their own at unit stride.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convla.compiling import compiled
from convla.engines._parallel import take_job
from convla.engines._tile import VECTOR_BYTES, WIDTHS, clear, copy, tile

__all__ = ["PACK", "SIZES", "SLACK_VECTORS", "correlate_jobs", "extend", "pack_jobs"]

SIZES = np.dtype(
    [
        (name, np.int64)
        for name in (
            "groups",
            "channels",  # of the image, in a group
            "rows",  # output channels in a group
            "image_1",
            "image_2",
            "image",  # entries of one channel
            "padded_0",
            "padded_1",
            "padded_2",
            "output_0",
            "output_1",
            "output_2",
            "output",  # entries of one channel
            "phases",
            "step",  # the stride along the last axis
            "length",  # of a block in one image
            "blocks",  # in one image
            "pieces",  # images that lie one after the other in a block; more than one only where an image is one block
            "parts",  # of the rows, in whole packs: jobs of their own
            "total",  # flattened outputs, unused ones included
            "window",  # entries of one image in a block's source: its outputs and the reach of the kernel
            "line",  # entries of one channel in a block's source: the windows of its images, and a tile's slack
            "kernel_group",  # strides of the kernel: from group to group,
            "kernel_row",  # from output channel to output channel,
            "kernel_channel",  # from image channel to image channel
            "taps",
            "source",  # entries of one phase's table of sources
        )
    ]
)
"""The numbers of one cross-correlation. An image, here and below, is what the taps slide over.

The tables that go with them are one array: the place of each tap in a kernel plane; for each channel and tap the offset
of its piece of the block's source; and for each phase its run and its sources, as `extend` reads them.
"""

SLACK_VECTORS = max(WIDTHS.values())
"""How many vectors a tile may reach beyond the end of a block."""

PACK = 8
"""Rows whose weights are packed by one job; parts of the rows begin at whole packs."""

# numba takes module constants as literals; 0 where registers are too few for eight rows.
_WIDTH_8 = WIDTHS.get(8, 0)
_WIDTH_4 = WIDTHS[4]
_WIDTH_3 = WIDTHS[3]
_WIDTH_2 = WIDTHS[2]
_WIDTH_1 = WIDTHS[1]


@compiled(nogil=True)
def _next_rows(left: int) -> int:
    """Return how many of the `left` remaining output channels the next tile takes."""
    if _WIDTH_8 and left >= 8:
        return 8
    return min(left, 4)


@compiled(nogil=True)
def _multiply(
    target: Any, stride: int, length: int, source: Any, offsets: Any, weights: Any, start: int, rows: int
) -> None:
    """Fill `rows` x `length` sums, tile by tile."""
    lanes = VECTOR_BYTES // target.itemsize
    if rows == 8:
        for x in range(0, length, _WIDTH_8 * lanes):
            tile(8, _WIDTH_8, target, x, stride, source, x, offsets, weights, start)
    elif rows == 4:
        for x in range(0, length, _WIDTH_4 * lanes):
            tile(4, _WIDTH_4, target, x, stride, source, x, offsets, weights, start)
    elif rows == 3:
        for x in range(0, length, _WIDTH_3 * lanes):
            tile(3, _WIDTH_3, target, x, stride, source, x, offsets, weights, start)
    elif rows == 2:
        for x in range(0, length, _WIDTH_2 * lanes):
            tile(2, _WIDTH_2, target, x, stride, source, x, offsets, weights, start)
    else:
        for x in range(0, length, _WIDTH_1 * lanes):
            tile(1, _WIDTH_1, target, x, stride, source, x, offsets, weights, start)


@compiled(nogil=True)
def extend(
    scratch: Any, at: int, first: int, window: int, image: Any, start: int, shape: Any, step: int, table: Any
) -> None:
    """Write `window` entries of one phase of one channel's flattened extended image, from `first` on, to `scratch`.

    `shape` is (padded_0, padded_1, padded_2, image_1, image_2): no record, as two modules with records of their own
    call this. A record has a number in the names of compiled code that is another one in each process, so that code for
    the record of one module, out of the cache, could be taken for that of the other.

    `table` begins with (begin, end, source) of the positions of the last axis whose sources grow in steps of the
    stride; then it names the image index behind each extended position, axis after axis, -1 for a zero.
    """
    run_begin, run_end, run_source = table[0], table[1], table[2]
    sources = table[3:]
    padded_0, padded_1, padded_2, image_1, image_2 = shape
    row = first // padded_2
    column = first - row * padded_2
    stop = at + window
    last = padded_0 + padded_1
    while at < stop:
        count = min(padded_2 - column, stop - at)
        origin = -1
        if row < padded_0 * padded_1:
            plane = row // padded_1
            a, b = sources[plane], sources[padded_0 + row - plane * padded_1]
            if a >= 0 and b >= 0:
                origin = start + (a * image_1 + b) * image_2
        if origin < 0:
            clear(scratch, at, count)
        else:
            begin = min(max(run_begin, column), column + count)
            end = max(min(run_end, column + count), begin)
            for q in range(column, begin):
                index = sources[last + q]
                scratch[at + q - column] = image[origin + index] if index >= 0 else 0
            if step == 1:
                copy(scratch, at + begin - column, image, origin + run_source + begin - run_begin, end - begin)
            else:
                for q in range(begin, end):
                    scratch[at + q - column] = image[origin + run_source + (q - run_begin) * step]
            for q in range(end, column + count):
                index = sources[last + q]
                scratch[at + q - column] = image[origin + index] if index >= 0 else 0
        at += count
        row += 1
        column = 0


@compiled(nogil=True)
def _crop(sums: Any, at: int, first: int, count: int, out: Any, start: int, s: Any) -> None:
    """Copy a stretch of one channel's flattened sums to the features, leaving out the unused entries."""
    row = first // s.padded_2
    column = first - row * s.padded_2
    stop = at + count
    while at < stop:
        here = min(s.padded_2 - column, stop - at)
        plane = row // s.padded_1
        line = row - plane * s.padded_1
        if plane < s.output_0 and line < s.output_1:
            origin = start + (plane * s.output_1 + line) * s.output_2
            copy(out, origin + column, sums, at, max(min(here, s.output_2 - column), 0))
        at += here
        row += 1
        column = 0


@compiled(nogil=True)
def _pack(packed: Any, kernel: Any, taps: Any, group: int, first: int, rows: int, s: Any) -> None:
    """Lay the weights of `rows` output channels side by side, term after term, as `tile` reads them."""
    at = (group * s.rows + first) * s.channels * taps.size
    for c in range(s.channels):
        start = group * s.kernel_group + first * s.kernel_row + c * s.kernel_channel
        for t in range(taps.size):
            for r in range(rows):
                packed[at + r] = kernel[start + taps[t] + r * s.kernel_row]
            at += rows


@compiled(nogil=True)
def pack_jobs(counter: Any, kernel: Any, tables: Any, sizes: Any, packed: Any) -> None:
    """Pack the weights of all rows, `PACK` rows of a group in one job."""
    s = sizes[0]
    packs = (s.rows + PACK - 1) // PACK
    job = take_job(counter)
    while job < s.groups * packs:
        group = job // packs
        first = (job - group * packs) * PACK
        stop = min(first + PACK, s.rows)
        while first < stop:
            rows = _next_rows(stop - first)
            _pack(packed, kernel, tables[: s.taps], group, first, rows, s)
            first += rows
        job = take_job(counter)


@compiled(nogil=True)
def _correlate_block(job: int, images: int, image: Any, packed: Any, tables: Any, s: Any, out: Any) -> None:
    """Compute one part of the rows of one group, in one block of an image or in several small images."""
    terms = s.channels * s.taps
    offsets = tables[s.taps : s.taps + terms]
    item = job // s.parts
    part = job - item * s.parts
    unit = item // s.blocks
    group = unit % s.groups
    first = (item - unit * s.blocks) * s.length
    first_image = unit // s.groups * s.pieces
    pieces = min(s.pieces, images - first_image)
    count = min(s.length, s.total - first)
    length = (pieces - 1) * s.window + count
    stride = s.line
    shape = s.padded_0, s.padded_1, s.padded_2, s.image_1, s.image_2
    source = np.empty(s.channels * s.phases * s.line, image.dtype)
    target = np.empty(min(s.rows, PACK) * stride, image.dtype)
    for c in range(s.channels):
        for phase in range(s.phases):
            at = (c * s.phases + phase) * s.line
            table = tables[s.taps + terms + phase * s.source : s.taps + terms + (phase + 1) * s.source]
            for i in range(pieces):
                start = (((first_image + i) * s.groups + group) * s.channels + c) * s.image
                extend(source, at + i * s.window, first, s.window, image, start, shape, s.step, table)
            clear(source, at + pieces * s.window, s.line - pieces * s.window)
    packs = (s.rows + PACK - 1) // PACK
    done = part * packs // s.parts * PACK
    stop = min((part + 1) * packs // s.parts * PACK, s.rows)
    while done < stop:
        rows = _next_rows(stop - done)
        _multiply(target, stride, length, source, offsets, packed, (group * s.rows + done) * terms, rows)
        for r in range(rows):
            for i in range(pieces):
                start = (((first_image + i) * s.groups + group) * s.rows + done + r) * s.output
                _crop(target, r * stride + i * s.window, first, count, out, start, s)
        done += rows


@compiled(nogil=True)
def correlate_jobs(counter: Any, image: Any, packed: Any, tables: Any, sizes: Any, out: Any) -> None:
    """Cross-correlate a batch of images with packed weights."""
    s = sizes[0]
    images = image.size // (s.groups * s.channels * s.image)
    jobs = (images + s.pieces - 1) // s.pieces * s.groups * s.blocks * s.parts
    job = take_job(counter)
    while job < jobs:
        _correlate_block(job, images, image, packed, tables, s, out)
        job = take_job(counter)
