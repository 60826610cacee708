"""Cross-correlation and its two adjoints on CuPy arrays.

With few channels, and for integers, kernels of our own sum directly (`convolution.cu`). Else the windows of all taps
are gathered in one strided copy, and cuBLAS multiplies it with the weights in one product, instead of one for each tap:
on a GPU many small products are bound by launches. The copy is as many times larger than the image as the kernel has
taps, so it is made for as many images, or rows of one, as fit in `WORKSPACE` bytes.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from convla._array import is_exact, namespace
from convla._boundary import extend, fold
from convla._cuda import WORKSPACE, blocks_for, c_type, chunks, contiguous, launch_kernel, on_its_device, on_the_device
from convla.geometry import ConvGeometry
from convla.typing import Array, IndexArray

__all__ = [
    "FEW_CHANNELS",
    "LARGEST_GRID",
    "correlate",
    "correlate_image_adjoint",
    "correlate_kernel_adjoint",
    "macros",
    "readers",
    "reads",
    "splits",
]

FEW_CHANNELS = 16
"""Channels of a group, in and out, up to which sums are direct; from the size of cuBLAS's tiles, not measured."""

_THREADS = 128
_CHANNELS = 4
LARGEST_GRID = 2**31 - 1
_LARGEST_INDEX = 2**31 - 1 - _THREADS  # the last block counts beyond what there is
_LARGEST_TABLE = 2**21
_BLOCKS = 2048
_LEAST_TERMS = 4096


@on_its_device
def correlate(image: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Cross-correlate; see the reference of the same name."""
    if _sums_directly(kernel, geometry):
        return _launch_map("correlate", image, kernel, reads, geometry.range_shape, geometry)
    xp = namespace(image, kernel)
    batch = image.shape[: -geometry.ndim - 1]
    weights = _weights(kernel, geometry)
    images = xp.reshape(image, (-1, *geometry.domain_shape))
    features = xp.empty((images.shape[0], *geometry.range_shape), dtype=image.dtype)
    for some, parts in _pieces(images, geometry):
        extended = contiguous(extend(images[some], geometry, xp))
        for rows in parts:
            product = weights @ _columns(extended, rows, geometry)
            features[some, :, rows] = xp.reshape(product, (-1, geometry.out_channels, *_rows_shape(rows, geometry)))
    return xp.reshape(features, (*batch, *geometry.range_shape))


@on_its_device
def correlate_image_adjoint(features: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``image -> correlate(image, kernel)``; see the reference of the same name."""
    if _sums_directly(kernel, geometry):
        return _launch_map("correlate_image_adjoint", features, kernel, readers, geometry.domain_shape, geometry)
    xp = namespace(features, kernel)
    batch = features.shape[: -geometry.ndim - 1]
    weights = xp.matrix_transpose(_weights(kernel, geometry))
    given = xp.reshape(features, (-1, *geometry.range_shape))
    images = xp.empty((given.shape[0], *geometry.domain_shape), dtype=features.dtype)
    everything = (slice(None),) * geometry.ndim
    for some, parts in _pieces(given, geometry):
        extended = xp.zeros((some.stop - some.start, geometry.in_channels, *geometry.padded_shape), dtype=images.dtype)
        for rows in parts:
            columns = weights @ _grouped(given[some, :, rows], geometry)
            shape = (-1, geometry.in_channels, *geometry.kernel_size, *_rows_shape(rows, geometry))
            columns = xp.reshape(columns, shape)
            for tap, (window, *others) in geometry.windows():
                stride = geometry.stride[0]
                here = slice(window.start + rows.start * stride, window.start + (rows.stop - 1) * stride + 1, stride)
                there = extended[(..., here, *others)]
                there += columns[(slice(None), slice(None), *tap, *everything)]
        images[some] = fold(extended, geometry, xp)
    return xp.reshape(images, (*batch, *geometry.domain_shape))


@on_its_device
def correlate_kernel_adjoint(features: Array, image: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``kernel -> correlate(image, kernel)``; see the reference of the same name."""
    xp = namespace(features, image)
    if _sums_directly(image, geometry):
        return _kernel_adjoint_directly(features, image, geometry)
    images, given = xp.reshape(image, (-1, *geometry.domain_shape)), xp.reshape(features, (-1, *geometry.range_shape))
    total = xp.zeros((geometry.groups, geometry.out_channels // geometry.groups, _terms(geometry)), dtype=image.dtype)
    for some, parts in _pieces(images, geometry, math.prod(geometry.kernel_shape)):
        extended = contiguous(extend(images[some], geometry, xp))
        for rows in parts:
            columns = xp.matrix_transpose(_columns(extended, rows, geometry))
            products = _grouped(given[some, :, rows], geometry) @ columns
            total += xp.sum(products, axis=0)
    return xp.reshape(total, geometry.kernel_shape)


def _sums_directly(array: Array, geometry: ConvGeometry) -> bool:
    """Tell whether the kernels of our own run: they count positions with 32 bits, and their tables are kept."""
    out, inner = geometry.out_channels // geometry.groups, geometry.kernel_shape[1]
    shapes = (geometry.image_shape, geometry.output_shape, geometry.kernel_shape)
    largest = max(math.prod(shape) for shape in shapes)
    axes = zip(geometry.image_shape, geometry.output_shape, geometry.kernel_size, strict=True)
    table = sum(size + 2 * n * k for size, n, k in axes)  # of `readers`, which is the longer one
    few = is_exact(array) or max(out, inner) <= FEW_CHANNELS
    return few and largest <= _LARGEST_INDEX and table <= _LARGEST_TABLE


def _terms(geometry: ConvGeometry) -> int:
    return math.prod(geometry.kernel_shape[1:])


# Direct sums.


def _launch_map(
    name: str, given: Array, kernel: Array, table: Callable[..., Any], shape: tuple[int, ...], geometry: ConvGeometry
) -> Array:
    """Return what a map makes of (..., channels, *places): a thread for each place of `shape` and some channels."""
    xp = namespace(given, kernel)
    batch = given.shape[: -geometry.ndim - 1]
    out = xp.empty((math.prod(batch), *shape), dtype=given.dtype)
    arrays = contiguous(xp.reshape(given, (out.shape[0], *given.shape[-geometry.ndim - 1 :])))
    weights = contiguous(kernel)
    parts = geometry.groups * blocks_for(shape[0] // geometry.groups, _CHANNELS)
    each = blocks_for(math.prod(shape[1:]), _THREADS) * parts
    for some in chunks(out.shape[0], each, LARGEST_GRID):
        arguments = (arrays[some], weights, on_the_device(table, geometry), out[some])
        blocks = each * (some.stop - some.start)
        launch_kernel("convla.engines:convolution", name, blocks, (_THREADS,), arguments, **macros(out))
    return xp.reshape(out, (*batch, *shape))


def _kernel_adjoint_directly(features: Array, image: Array, geometry: ConvGeometry) -> Array:
    xp = namespace(features, image)
    entries = math.prod(geometry.kernel_shape)
    terms = math.prod(image.shape[: -geometry.ndim - 1]) * math.prod(geometry.output_shape)
    count, each = splits(terms, entries)
    partial = xp.empty((count, *geometry.kernel_shape), dtype=image.dtype)
    first, second = (contiguous(array) for array in (features, image))
    arguments = (first, second, on_the_device(reads, geometry), partial, terms, each)
    launch_kernel(
        "convla.engines:convolution",
        "correlate_kernel_adjoint",
        count * entries,
        (_THREADS,),
        arguments,
        **macros(image),
    )
    return partial[0, ...] if count == 1 else xp.sum(partial, axis=0, dtype=partial.dtype)


def splits(terms: int, entries: int) -> tuple[int, int]:
    """Return into how many splits the sums of a kernel adjoint fall, and how long each is.

    By the sizes alone, so that the numbers are the same on any device: enough blocks for a large one, unless a split
    would be shorter than what its threads start up for, or the partial sums would not fit in the workspace.
    """
    count = min(blocks_for(_BLOCKS, entries), blocks_for(terms, _LEAST_TERMS), max(1, WORKSPACE // (8 * entries)))
    each = blocks_for(terms, max(count, 1))
    return max(1, blocks_for(terms, max(each, 1))), each


def macros(array: Array) -> dict[str, Any]:
    """Return what the build for these arrays defines."""
    return {"REAL": c_type(array), "THREADS": _THREADS, "CHANNELS": _CHANNELS}


def _sizes(geometry: ConvGeometry) -> list[int]:
    """Return the head of a table: groups, their channels, and the sizes along three axes."""
    lead = (1,) * (3 - geometry.ndim)
    sizes = (lead + axes for axes in (geometry.output_shape, geometry.kernel_size, geometry.image_shape))
    channels = (geometry.groups, geometry.out_channels // geometry.groups, geometry.kernel_shape[1])
    return [*channels, *(size for axes in sizes for size in axes)]


def _maps(geometry: ConvGeometry) -> list[IndexArray]:
    """Return for three axes which pixel an output reads through a tap: (outputs, taps), -1 for a zero."""
    lone = np.zeros((1, 1), np.int64)
    return [lone] * (3 - geometry.ndim) + [geometry.axis_map(axis) for axis in range(geometry.ndim)]


def reads(geometry: ConvGeometry) -> IndexArray:
    """Return the table of `correlate` and of `correlate_kernel_adjoint`."""
    return np.concatenate([_sizes(geometry), *(sources.reshape(-1) for sources in _maps(geometry))]).astype(np.int32)


def readers(geometry: ConvGeometry) -> IndexArray:
    """Return the table of `correlate_image_adjoint`."""
    parts = [np.array(_sizes(geometry))]
    lead = 3 - geometry.ndim
    for sources, size in zip(_maps(geometry), (1,) * lead + geometry.image_shape, strict=True):
        outputs, taps = np.nonzero(sources >= 0)
        pixels = sources[outputs, taps]
        order = np.argsort(pixels, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(pixels, minlength=size))])
        parts += [first, np.stack([outputs[order], taps[order]], axis=1).reshape(-1)]
    return np.concatenate(parts).astype(np.int32)


# Products of matrices.


def _pieces(images: Array, geometry: ConvGeometry, more: int = 0) -> Iterator[tuple[slice, list[slice]]]:
    """Yield images, and the output's rows along its first axis in parts, that fit in the workspace, or one row of one.

    An image takes its extension, once more while that is made or folded, and `more` entries; a row its windows and
    their products with the weights.
    """
    size = images.dtype.itemsize
    whole = (2 * geometry.in_channels * math.prod(geometry.padded_shape) + more) * size
    row = (geometry.groups * _terms(geometry) + geometry.out_channels) * math.prod(geometry.output_shape[1:]) * size
    rows = geometry.output_shape[0]
    for some in chunks(images.shape[0], whole + rows * row, WORKSPACE):
        count = some.stop - some.start
        yield some, list(chunks(rows, count * row, WORKSPACE - count * whole))


def _rows_shape(rows: slice, geometry: ConvGeometry) -> tuple[int, ...]:
    return (rows.stop - rows.start, *geometry.output_shape[1:])


def _columns(extended: Any, rows: slice, geometry: ConvGeometry) -> Array:
    """Return the windows of all taps at some rows of the output: (images, groups, c_in // groups * taps, positions)."""
    xp = namespace(extended)
    n = geometry.ndim
    extended = extended[:, :, rows.start * geometry.stride[0] :]
    steps = extended.strides[-n:]
    windows = importlib.import_module("cupy").lib.stride_tricks.as_strided(
        extended,
        (*extended.shape[:-n], *geometry.kernel_size, *_rows_shape(rows, geometry)),
        (
            *extended.strides[:-n],
            *(step * d for step, d in zip(steps, geometry.dilation, strict=True)),
            *(step * s for step, s in zip(steps, geometry.stride, strict=True)),
        ),
    )
    positions = math.prod(_rows_shape(rows, geometry))
    return xp.reshape(windows, (extended.shape[0], geometry.groups, _terms(geometry), positions))


def _grouped(features: Array, geometry: ConvGeometry) -> Array:
    """Return features (images, c_out, *positions) as (images, groups, c_out // groups, positions)."""
    xp = namespace(features)
    return xp.reshape(features, (features.shape[0], geometry.groups, geometry.out_channels // geometry.groups, -1))


def _weights(kernel: Array, geometry: ConvGeometry) -> Array:
    return namespace(kernel).reshape(kernel, (geometry.groups, geometry.out_channels // geometry.groups, -1))
