"""The kernel adjoint in cache-sized blocks of the flattened extended image, compiled.

In the flattened extended image the window of each tap is a contiguous piece at a fixed offset, so every entry of the
result is the dot product of one channel of the features with one such piece, where the features are spread out with
zeros at the unused entries between the rows of the image. A block of both is laid out in scratch memory that stays in
cache, and multiplied with `dots`. Small images of a batch share a block, one after the other.

The work is cut into jobs by the sizes alone, and each job's sums are taken in one order: the numbers do not depend on
how many threads there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convla.compiling import compiled
from convla.engines._dots import WINDOWS, dots
from convla.engines._numba_blocks import extend
from convla.engines._parallel import take_job
from convla.engines._tile import VECTOR_BYTES, clear, copy

__all__ = ["KERNEL_SIZES", "add_up", "kernel_adjoint_jobs"]

KERNEL_SIZES = np.dtype(
    [
        (name, np.int64)
        for name in (
            "images",
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
            "taps",
            "source",  # entries of one phase's table of sources
            "total",  # flattened outputs of one image, unused ones included
            "length",  # of a block's piece of one image
            "window",  # that and the reach of the kernel
            "pieces",  # images in a block; above 1 a piece is a whole image
            "blocks",
            "chunk",  # channels that are laid out at once
            "line",  # scratch entries of one channel of a block
            "parts",  # jobs that share the channels
            "segments",  # jobs that share the blocks, each with sums of its own
        )
    ]
)
"""The numbers of one kernel adjoint.

The tables that go with them are one array: for each channel of a chunk and each tap the offset of its piece of the
block's source; and for each phase its run and its sources, as `extend` reads them.
"""

_ROWS = len(WINDOWS) - 1
_WINDOWS = np.array(WINDOWS)


@compiled(nogil=True)
def _spread(target: Any, at: int, first: int, count: int, features: Any, start: int, s: Any) -> None:
    """Write a stretch of one channel's features, spread out to flattened outputs, between what is there."""
    row = first // s.padded_2
    column = first - row * s.padded_2
    plane = row // s.padded_1
    line = row - plane * s.padded_1
    stop = at + count
    while at < stop:
        here = min(s.padded_2 - column, stop - at)
        if line < s.output_1 and column < s.output_2:
            origin = start + (plane * s.output_1 + line) * s.output_2 + column
            copy(target, at, features, origin, min(here, s.output_2 - column))
        at += here
        column = 0
        line += 1
        if line == s.padded_1:
            line = 0
            plane += 1


@compiled(nogil=True)
def _lay_out_features(
    y: Any, image: int, images: int, group: int, first: int, count: int, features: Any, s: Any
) -> None:
    """Lay out all rows of a group; the unused entries, and those beyond the outputs, are zeros."""
    clear(y, 0, s.rows * s.line)
    for r in range(s.rows):
        for i in range(images):
            start = (((image + i) * s.groups + group) * s.rows + r) * s.output
            _spread(y, r * s.line + i * s.window, first, count, features, start, s)


@compiled(nogil=True)
def _lay_out_image(
    x: Any, image: int, images: int, group: int, channel: int, channels: int, first: int, data: Any, tables: Any, s: Any
) -> None:
    shape = s.padded_0, s.padded_1, s.padded_2, s.image_1, s.image_2
    for c in range(channels):
        for phase in range(s.phases):
            at = (c * s.phases + phase) * s.line
            table = tables[s.chunk * s.taps + phase * s.source : s.chunk * s.taps + (phase + 1) * s.source]
            for i in range(images):
                start = (((image + i) * s.groups + group) * s.channels + channel + c) * s.image
                extend(x, at, first, s.window, data, start, shape, s.step, table)
                at += s.window
            # What stands here meets zeros of the features, but must be numbers.
            clear(x, at, ((c * s.phases + phase) + 1) * s.line - at)


@compiled(nogil=True)
def _multiply(y: Any, x: Any, offsets: Any, terms: int, vectors: int, out: Any, at: int, add: bool, s: Any) -> None:
    """Take the products of all rows with `terms` windows, in tiles of as equal shapes as can be."""
    row_tiles = (s.rows + _ROWS - 1) // _ROWS
    for i in range(row_tiles):
        first_row = i * s.rows // row_tiles
        rows = (i + 1) * s.rows // row_tiles - first_row
        tiles = (terms + _WINDOWS[rows] - 1) // _WINDOWS[rows]
        target = at + first_row * s.channels * s.taps
        for j in range(tiles):
            first = j * terms // tiles
            windows = (j + 1) * terms // tiles - first
            dots(
                rows,
                windows,
                out,
                target + first,
                s.channels * s.taps,
                add,
                y,
                first_row * s.line,
                s.line,
                x,
                offsets,
                first,
                vectors,
            )


@compiled(nogil=True)
def _run_job(job: int, features: Any, image: Any, tables: Any, s: Any, sums: Any) -> None:
    """Sum one segment's blocks for all rows and one part of the channels of one group."""
    part = job % s.parts
    group = job // s.parts % s.groups
    segment = job // (s.parts * s.groups)
    lanes = VECTOR_BYTES // image.itemsize
    y = np.empty(s.rows * s.line, image.dtype)
    x = np.empty(s.chunk * s.phases * s.line, image.dtype)
    pieces = (s.total + s.length - 1) // s.length
    out = segment * s.groups * s.rows * s.channels * s.taps + group * s.rows * s.channels * s.taps
    begin = segment * s.blocks // s.segments
    for block in range(begin, (segment + 1) * s.blocks // s.segments):
        if s.pieces > 1:
            first_image, first = block * s.pieces, 0
        else:
            first_image = block // pieces
            first = (block - first_image * pieces) * s.length
        images = min(s.pieces, s.images - first_image)
        count = min(s.length, s.total - first)
        vectors = ((images - 1) * s.window + count + lanes - 1) // lanes
        _lay_out_features(y, first_image, images, group, first, count, features, s)
        channel, stop = part * s.channels // s.parts, (part + 1) * s.channels // s.parts
        while channel < stop:
            channels = min(s.chunk, stop - channel)
            _lay_out_image(x, first_image, images, group, channel, channels, first, image, tables, s)
            _multiply(y, x, tables, channels * s.taps, vectors, sums, out + channel * s.taps, block > begin, s)
            channel += channels


@compiled(nogil=True)
def kernel_adjoint_jobs(counter: Any, features: Any, image: Any, tables: Any, sizes: Any, sums: Any) -> None:
    """Compute the kernel adjoint of every segment: the sums (segments, kernel entries), flat."""
    s = sizes[0]
    job = take_job(counter)
    while job < s.parts * s.groups * s.segments:
        _run_job(job, features, image, tables, s, sums)
        job = take_job(counter)


@compiled(nogil=True)
def add_up(sums: Any, out: Any) -> None:
    """Set `out` to the sum of the segments, in their order."""
    for i in range(out.size):
        out[i] = sums[i]
    for segment in range(1, sums.size // out.size):
        for i in range(out.size):
            out[i] += sums[segment * out.size + i]
