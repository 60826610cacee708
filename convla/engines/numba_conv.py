"""Compiled cross-correlation and its image adjoint, for NumPy arrays of float32 and float64.

A plan turns a geometry into the numbers and tables that the compiled blocks read. The image adjoint is itself a
cross-correlation: of the features, extended by zeros, with the flipped kernel; with a stride, one for each phase of the
image, with the taps that reach it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from convla._array import namespace
from convla._boundary import fold
from convla._dispatch import prepares
from convla.engines._layout import lay_out, tap_positions, three, three_pairs, three_sources
from convla.engines._numba_blocks import PACK, SIZES, SLACK_VECTORS, correlate_jobs, pack_jobs
from convla.engines._parallel import run_jobs
from convla.engines._tile import VECTOR_BYTES, WIDTHS
from convla.geometry import ConvGeometry

__all__ = ["PhasePlan", "Plan", "PreparedKernel", "correlate", "correlate_image_adjoint"]

FloatArray = np.ndarray[Any, Any]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

# Measured on two cores, idle and taken: products times the bytes of an entry, some 0.2 ms on one thread, below which a
# second thread costs more than it brings.
SHARED_FROM = 20_000_000
PACKED_FROM = 500_000  # weights, likewise
# The source of a block should stay in the second-level cache beside the weights, its sums in the first.
SOURCE_BYTES = 256 * 1024
SHORTEST_BLOCK_BYTES = 1024
LONGEST_BLOCK_BYTES = 16 * 1024
# Shared work is cut into about this many jobs, by its sizes alone: whoever is late leaves its jobs to the others. A job
# lays out its source anew, which these many products for each of its entries make up for.
JOBS = 8
PART_PRODUCTS = 128
MOST_IMAGES = 64


class Plan(NamedTuple):
    """One cross-correlation, as the compiled code reads it, and the shape of its result for one image."""

    sizes: np.ndarray[Any, Any]
    tables: IntArray
    products: int  # for one image
    packing: tuple[Any, ...]  # what the order of the packed weights depends on
    out_shape: tuple[int, ...]


class PhasePlan(NamedTuple):
    """The part of an image adjoint that fills every s-th entry of the image, s the stride."""

    place: tuple[Any, ...]  # of slices
    plan: Plan | None


class PreparedKernel:
    """A kernel that does not change, with its weights as each plan reads them, laid out when first used."""

    def __init__(self, kernel: FloatArray, _geometry: ConvGeometry) -> None:
        self.kernel = kernel
        self._packed: dict[tuple[Any, ...], FloatArray] = {}

    def packed(self, plan: Plan) -> FloatArray:
        """Return the weights in the order of a plan's tiles."""
        weights = self._packed.get(plan.packing)
        if weights is None:
            weights = self._packed[plan.packing] = _pack(self.kernel, plan)
        return weights


@prepares(PreparedKernel)
def correlate(image: FloatArray, kernel: FloatArray | PreparedKernel, geometry: ConvGeometry) -> FloatArray:
    """Cross-correlate; see the reference of the same name."""
    batch = image.shape[: -geometry.ndim - 1]
    return _run(_forward_plan(geometry, image.dtype.itemsize, _images(batch)), image, kernel, batch)


@prepares(PreparedKernel)
def correlate_image_adjoint(
    features: FloatArray, kernel: FloatArray | PreparedKernel, geometry: ConvGeometry
) -> FloatArray:
    """Apply the transpose of ``image -> correlate(image, kernel)``; see the reference of the same name."""
    batch = features.shape[: -geometry.ndim - 1]
    shape, phases = _adjoint_plans(geometry, features.dtype.itemsize, _images(batch))
    if len(phases) == 1 and phases[0].plan is not None:
        image = _run(phases[0].plan, features, kernel, batch)
    else:
        image = np.zeros((*batch, *shape), features.dtype)
        for place, plan in phases:
            if plan is not None:
                image[(..., *place)] = _run(plan, features, kernel, batch)
    return image if geometry.boundary == "zero" else np.asarray(fold(image, geometry, namespace(image)))


def _images(batch: tuple[int, ...]) -> int:
    # Beyond these many, plans differ in nothing: they need not be made for each batch anew.
    return max(1, min(math.prod(batch), MOST_IMAGES))


def _run(plan: Plan, image: FloatArray, kernel: FloatArray | PreparedKernel, batch: tuple[int, ...]) -> FloatArray:
    out = np.empty((*batch, *plan.out_shape), image.dtype)
    packed = kernel.packed(plan) if isinstance(kernel, PreparedKernel) else _pack(kernel, plan)
    shared = plan.products * image.itemsize * math.prod(batch) >= SHARED_FROM
    run_jobs(correlate_jobs, image.ravel(), packed, plan.tables, plan.sizes, out.ravel(), shared=shared)
    return out


def _pack(kernel: FloatArray, plan: Plan) -> FloatArray:
    s = plan.sizes[0]
    packed = np.empty(int(s["groups"] * s["rows"] * s["channels"] * s["taps"]), kernel.dtype)
    run_jobs(pack_jobs, kernel.ravel(), plan.tables, plan.sizes, packed, shared=packed.size >= PACKED_FROM)
    return packed


@functools.lru_cache(maxsize=256)
def _forward_plan(geometry: ConvGeometry, itemsize: int, images: int) -> Plan:
    out, inner = geometry.kernel_shape[:2]
    rows = out // geometry.groups
    taps = math.prod(geometry.kernel_size)
    return _plan(
        itemsize,
        images,
        groups=geometry.groups,
        channels=inner,
        rows=rows,
        image=three(geometry.image_shape),
        output=three(geometry.output_shape),
        sources=three_sources(geometry),
        stride=three(geometry.stride),
        reach=tap_positions(geometry),
        taps=np.arange(taps),
        kernel_strides=(rows * inner * taps, inner * taps, taps),
        out_shape=geometry.range_shape,
    )


@functools.lru_cache(maxsize=256)
def _adjoint_plans(geometry: ConvGeometry, itemsize: int, images: int) -> tuple[tuple[int, ...], list[PhasePlan]]:
    """Return the shape that the phases fill, the image or the extended image, and how to fill each phase."""
    # Where zeros are cut off again, only the image itself is computed; else all of the extended image, to be folded.
    zero = geometry.boundary == "zero"
    low = [pad[0] if zero else 0 for pad in three_pairs(geometry.padding)]
    size = three(geometry.image_shape if zero else geometry.padded_shape)
    stride = three(geometry.stride)
    dilation, kernel_size = three(geometry.dilation), three(geometry.kernel_size)
    phases = []
    for phase in itertools.product(*map(range, stride)):
        # Positions  stride * q + phase - low  of the image, begin <= q < end on each axis.
        shift = [p - before for p, before in zip(phase, low, strict=True)]
        begin = [-(p // s) for p, s in zip(shift, stride, strict=True)]
        end = [-((p - n) // s) for p, n, s in zip(shift, size, stride, strict=True)]
        if any(e <= b for b, e in zip(begin, end, strict=True)):
            continue
        place = tuple(slice(s * b + p, n, s) for p, b, n, s in zip(shift, begin, size, stride, strict=True))
        taps = [
            [a for a in range(k) if a * d % s == p]
            for k, d, s, p in zip(kernel_size, dilation, stride, phase, strict=True)
        ]
        plan = None
        if all(taps):
            plan = _adjoint_plan(geometry, itemsize, images, taps, begin, end)
        phases.append(PhasePlan(place[3 - geometry.ndim :], plan))
    return (geometry.in_channels, *size[3 - geometry.ndim :]), phases


def _adjoint_plan(
    geometry: ConvGeometry, itemsize: int, images: int, taps: list[list[int]], begin: list[int], end: list[int]
) -> Plan:
    """Plan ``image[q] = sum_a W_a^T features[q - a]`` for q from `begin` to `end`, a = tap * dilation // stride."""
    out, inner = geometry.kernel_shape[:2]
    rows = out // geometry.groups
    all_taps = math.prod(geometry.kernel_size)
    back = [
        np.asarray(axis_taps) * d // s
        for axis_taps, d, s in zip(taps, three(geometry.dilation), three(geometry.stride), strict=True)
    ]
    sources = []
    for shift, b, e, n in zip(back, begin, end, three(geometry.output_shape), strict=True):
        position = np.arange(b - shift.max(), e - shift.min())
        sources.append(np.where((position >= 0) & (position < n), position, -1))
    reach = [shift.max() - shift for shift in back]
    tap_index = np.ravel_multi_index(np.meshgrid(*taps, indexing="ij"), three(geometry.kernel_size)).reshape(-1)
    output = tuple(e - b for b, e in zip(begin, end, strict=True))
    return _plan(
        itemsize,
        images,
        groups=geometry.groups,
        channels=rows,
        rows=inner,
        image=three(geometry.output_shape),
        output=output,
        sources=sources,
        stride=(1, 1, 1),
        reach=np.stack(np.meshgrid(*reach, indexing="ij"), axis=-1).reshape(-1, 3),
        taps=tap_index,
        kernel_strides=(rows * inner * all_taps, all_taps, inner * all_taps),
        out_shape=(geometry.in_channels, *output[3 - geometry.ndim :]),
    )


def _plan(
    itemsize: int,
    images: int,
    *,
    groups: int,
    channels: int,
    rows: int,
    image: tuple[int, ...],
    output: tuple[int, ...],
    sources: Sequence[np.ndarray[Any, Any]],
    stride: tuple[int, ...],
    reach: np.ndarray[Any, Any],
    taps: np.ndarray[Any, Any],
    kernel_strides: tuple[int, int, int],
    out_shape: tuple[int, ...],
) -> Plan:
    """Lay out a cross-correlation of 3-D images; `reach` is the extended position that each tap adds, per axis."""
    layout = lay_out(sources, stride, output, reach)
    padded, phases, shift, total = layout.padded, math.prod(stride), layout.shift, layout.total
    lanes = VECTOR_BYTES // itemsize
    products = groups * channels * rows * len(taps) * total
    jobs = JOBS if products * itemsize * images >= SHARED_FROM else 1
    furthest, sources_of_block = int(shift.max()), channels * phases
    share = max(-(-total // -(-jobs // (images * groups))), furthest)
    length = min(_block_length(itemsize, sources_of_block, rows, furthest, share), total)
    blocks = -(-total // length)
    window = length + furthest
    # Small images share a block, whose tiles then are full.
    room = _longest(itemsize, sources_of_block, furthest) // window if blocks == 1 else 1
    pieces = max(1, min(room, images, -(-images * groups // jobs)))
    line = pieces * window + SLACK_VECTORS * lanes
    units = -(-images // pieces) * groups * blocks
    parts = max(1, min(-(-jobs // units), rows // PACK, rows * len(taps) // PART_PRODUCTS))
    sizes = np.zeros(1, SIZES)
    values = {
        "groups": groups,
        "channels": channels,
        "rows": rows,
        "image_1": image[1],
        "image_2": image[2],
        "image": math.prod(image),
        "padded_0": padded[0],
        "padded_1": padded[1],
        "padded_2": padded[2],
        "output_0": output[0],
        "output_1": output[1],
        "output_2": output[2],
        "output": math.prod(output),
        "phases": phases,
        "step": stride[2],
        "length": length,
        "blocks": blocks,
        "pieces": pieces,
        "parts": parts,
        "total": total,
        "window": window,
        "line": line,
        "kernel_group": kernel_strides[0],
        "kernel_row": kernel_strides[1],
        "kernel_channel": kernel_strides[2],
        "taps": taps.size,
        "source": 3 + sum(padded),
    }
    for name, value in values.items():
        sizes[name] = value
    offsets = (np.arange(channels)[:, None] * phases + layout.phase) * line + shift
    return Plan(
        sizes=sizes,
        tables=np.concatenate([taps, offsets.reshape(-1), layout.tables]),
        products=products,
        packing=(groups, channels, rows, kernel_strides, taps.tobytes()),
        out_shape=out_shape,
    )


def _block_length(itemsize: int, channels: int, rows: int, reach: int, share: int) -> int:
    """Return the length of a block: a whole number of tiles, within the caches, and a share for every thread.

    A block copies its source and the `reach` of the taps beyond it. Where that alone overflows the caches, blocks as
    long as the reach copy each entry twice; short ones would copy it once for each block within reach.
    """
    tile: int = WIDTHS[max(r for r in WIDTHS if r <= rows)] * VECTOR_BYTES // itemsize
    longest = max(_longest(itemsize, channels, reach), reach)
    return -(-max(min(longest, share), SHORTEST_BLOCK_BYTES // itemsize) // tile) * tile


def _longest(itemsize: int, channels: int, reach: int) -> int:
    return min(SOURCE_BYTES // (channels * itemsize) - reach, LONGEST_BLOCK_BYTES // itemsize)
