"""The compiled kernel adjoint, for NumPy arrays of float32 and float64: how its work is cut into blocks and jobs."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from convla.engines._kernel_blocks import KERNEL_SIZES, add_up, kernel_adjoint_jobs
from convla.engines._layout import lay_out, tap_positions, three, three_sources
from convla.engines._parallel import run_jobs
from convla.engines._tile import VECTOR_BYTES
from convla.geometry import ConvGeometry

__all__ = ["KernelPlan", "correlate_kernel_adjoint", "kernel_plan"]

FloatArray = np.ndarray[Any, Any]

# Products times the bytes of an entry; see `numba_conv`.
SHARED_FROM = 20_000_000
# Few rows of features of this length, and the windows of a channel, fit the first-level cache.
LINE_BYTES = 16 * 1024
# The channels that are laid out at once stay in the second-level cache.
CHUNK_BYTES = 192 * 1024
# Sums for every segment: as many as keep busy the threads of a large machine, in not too much memory.
SEGMENTS = 16
SUMS_BYTES = 16 * 1024 * 1024
JOBS = 16
PART_TERMS = 288


class KernelPlan(NamedTuple):
    """One kernel adjoint, as the compiled code reads it."""

    sizes: np.ndarray[Any, Any]
    tables: np.ndarray[Any, np.dtype[np.int64]]
    products: int


def correlate_kernel_adjoint(features: FloatArray, image: FloatArray, geometry: ConvGeometry) -> FloatArray:
    """Apply the transpose of ``kernel -> correlate(image, kernel)``; see the reference of the same name.

    A NaN or an infinity in the image makes all taps of its channel NaN, not only those whose windows it is in.
    """
    images = math.prod(image.shape[: -geometry.ndim - 1])
    if not images:
        return np.zeros(geometry.kernel_shape, image.dtype)
    plan = kernel_plan(geometry, image.dtype.itemsize, images)
    out = np.empty(geometry.kernel_shape, image.dtype)
    segments = int(plan.sizes[0]["segments"])
    sums = out.ravel() if segments == 1 else np.empty(segments * out.size, out.dtype)
    shared = plan.products * image.itemsize >= SHARED_FROM
    run_jobs(kernel_adjoint_jobs, features.ravel(), image.ravel(), plan.tables, plan.sizes, sums, shared=shared)
    if segments > 1:
        add_up(sums, out.ravel())
    return out


@functools.lru_cache(maxsize=256)
def kernel_plan(geometry: ConvGeometry, itemsize: int, images: int) -> KernelPlan:
    """Cut the kernel adjoint of a batch of so many images into blocks and jobs, by the sizes alone."""
    out, channels = geometry.kernel_shape[:2]
    image, output = three(geometry.image_shape), three(geometry.output_shape)
    stride = three(geometry.stride)
    layout = lay_out(three_sources(geometry), stride, output, tap_positions(geometry))
    phases, taps, lanes = math.prod(stride), layout.shift.size, VECTOR_BYTES // itemsize
    reach = int(layout.shift.max())

    # Blocks: pieces of an image as equal as can be, or several images.
    longest = max(LINE_BYTES // itemsize, reach)
    per_image = -(-layout.total // longest)
    length = -(-layout.total // per_image // lanes) * lanes if per_image > 1 else layout.total
    per_image = -(-layout.total // length)
    window = length + reach
    pieces = min(images, max(1, longest // window)) if per_image == 1 else 1
    blocks = images * per_image if pieces == 1 else -(-images // pieces)
    # Two vectors beyond the end: the last tile's, and one that keeps lines from meeting in one cache set.
    line = -(-pieces * window // lanes) * lanes + 2 * lanes
    chunk = max(1, min(channels, CHUNK_BYTES // (phases * line * itemsize)))

    # Jobs: segments of the blocks as long as their sums are few, then parts of the channels.
    entries = math.prod(geometry.kernel_shape)
    products = entries * layout.total * images
    segments = max(1, min(blocks, SEGMENTS, SUMS_BYTES // (entries * itemsize)))
    parts = max(1, min(channels * taps // PART_TERMS, JOBS // (segments * geometry.groups)))
    values = {
        "images": images,
        "groups": geometry.groups,
        "channels": channels,
        "rows": out // geometry.groups,
        "image_1": image[1],
        "image_2": image[2],
        "image": math.prod(image),
        "padded_0": layout.padded[0],
        "padded_1": layout.padded[1],
        "padded_2": layout.padded[2],
        "output_0": output[0],
        "output_1": output[1],
        "output_2": output[2],
        "output": math.prod(output),
        "phases": phases,
        "step": stride[2],
        "taps": taps,
        "source": 3 + sum(layout.padded),
        "total": layout.total,
        "length": length,
        "window": window,
        "pieces": pieces,
        "blocks": blocks,
        "chunk": chunk,
        "line": line,
        "parts": parts,
        "segments": segments,
    }
    sizes = np.zeros(1, KERNEL_SIZES)
    for name, value in values.items():
        sizes[name] = value
    offsets = (np.arange(chunk)[:, None] * phases + layout.phase) * line + layout.shift
    tables = np.concatenate([offsets.reshape(-1), layout.tables]).astype(np.int64)
    return KernelPlan(sizes, tables, products)
