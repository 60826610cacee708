"""Convolutional similarity on CuPy arrays: a block for each filter, of one layer or of all layers of a network.

A launch costs the same for any number of filters, so all layers of a network share theirs: their entries are copied
into one row, and a table tells where each begins. Filters that do not fit in a block's shared memory are taken by
batched matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convla._array import accumulation_dtype, namespace
from convla._cuda import C_TYPES, WORKSPACE, blocks_for, c_type, contiguous, launch_kernel, on_its_device, on_the_device
from convla.autocorrelation import correlate_lags as _correlate_lags
from convla.autocorrelation import lag_offsets
from convla.autocorrelation import summed_autocorrelations as _summed_autocorrelations
from convla.typing import Array

__all__ = ["LAGS", "TILE", "correlate_lags", "layer_similarities", "macros", "summed_autocorrelations"]

_THREADS = 256

TILE = 1024
"""The most taps of a channel."""

LAGS = (256, 4096)
"""The lags that there is room for: the less room, the more blocks share a processor. Most kernels have below 200 lags,
and 4096 take, with the tile and the sums, 42 of the 48 KiB that every device has."""

Shape = tuple[int, ...]


@on_its_device
def summed_autocorrelations(kernels: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.summed_autocorrelations`."""
    xp = namespace(kernels)
    shape = tuple(kernels.shape)
    if math.prod(shape[2:]) > TILE:
        return _summed_autocorrelations.reference(kernels)
    lags = xp.empty((shape[0], _lags(shape)), dtype=accumulation_dtype(kernels, xp))
    arguments = (contiguous(kernels), *_places([shape]), lags)
    _launch("summed_autocorrelations", shape[0], arguments, macros(kernels))
    return lags


@on_its_device
def correlate_lags(kernels: Array, lags: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.correlate_lags`."""
    xp = namespace(kernels, lags)
    shape = tuple(kernels.shape)
    if not _fits(shape):
        return _correlate_lags.reference(kernels, lags)
    out = xp.empty(shape, dtype=kernels.dtype)
    given = contiguous(xp.astype(lags, accumulation_dtype(kernels, xp), copy=False))
    arguments = (contiguous(kernels), given, given, *_places([shape]), out, 1, 0)
    _launch("correlate_lags", shape[0], arguments, macros(kernels))
    return out


@on_its_device
def layer_similarities(*layers: Array, pairs: str, normalized: bool, safe: tuple[float, float]) -> tuple[Array, ...]:
    """Run the operation; see `convla.similarity.layer.layer_similarities`: a copy and four launches for all layers."""
    xp = namespace(*layers)
    factor = 2 if pairs == "ordered" else 1
    totals: list[Array] = []
    gradients: list[Array] = []
    for some in _batches([tuple(layer.shape) for layer in layers], layers[0].dtype.itemsize):
        total, found = _similarities(layers[some], factor, normalized, safe)
        totals.append(total)
        gradients += found
    return xp.concat(totals), *gradients


def _similarities(
    layers: Sequence[Array], factor: int, normalized: bool, safe: tuple[float, float]
) -> tuple[Array, list[Array]]:
    xp = namespace(*layers)
    shapes = [tuple(layer.shape) for layer in layers]
    if not _fits(shapes[0]):
        return xp.full(1, math.nan, dtype=xp.float64), [layers[0]]
    build = macros(*layers)
    rows = [xp.reshape(layer, (-1,)) for layer in layers]
    entries = xp.concat(rows) if len(rows) > 1 else contiguous(rows[0])
    filters, blocks = sum(shape[0] for shape in shapes), sum(_lags(shape) // 2 + 1 for shape in shapes)
    lags = xp.empty(sum(shape[0] * _lags(shape) for shape in shapes), dtype=xp.float64)
    weights, values = xp.empty_like(lags), xp.empty(blocks, dtype=xp.float64)
    totals, out = xp.empty(len(shapes), dtype=xp.float64), xp.empty_like(entries)
    places = _places(shapes)
    _launch("summed_autocorrelations", filters, (entries, *places, lags), build)
    pairs = (lags, *places[:2], weights, values, *map(float, safe), int(normalized))
    _launch("pair_filters", blocks, pairs, build)
    _launch("add_up", blocks_for(len(shapes), _THREADS), (values, *places[:2], totals, factor), build)
    gradient = (entries, weights, lags, *places, out, 2 * factor, int(normalized))
    _launch("correlate_lags", filters, gradient, build)
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    parts = zip([0, *ends], ends, shapes, strict=False)
    return totals, [xp.reshape(out[start:end], shape) for start, end, shape in parts]


def _batches(shapes: Sequence[Shape], itemsize: int) -> Iterator[slice]:
    """Yield slices that cover the layers, as many at a time as fit in the workspace, or one; one that fits no block."""
    start, taken = 0, 0
    for place, shape in enumerate(shapes):
        each = math.prod(shape) * itemsize + 16 * shape[0] * _lags(shape)  # the copy; signatures and weights
        alone = not _fits(shape) or not _fits(shapes[start])
        if place > start and (alone or taken + each > WORKSPACE):
            yield slice(start, place)
            start, taken = place, 0
        taken += each
    yield slice(start, len(shapes))


def _fits(shape: Shape) -> bool:
    """Tell whether a channel and the lags fit in a block's shared memory."""
    return math.prod(shape[2:]) <= TILE and _lags(shape) <= LAGS[-1]


def _lags(shape: Shape) -> int:
    return math.prod(2 * k - 1 for k in shape[2:])


def _launch(name: str, blocks: int, arguments: Sequence[Any], build: dict[str, Any]) -> None:
    launch_kernel("convla.engines:filters", name, blocks, (_THREADS,), arguments, **build)


def macros(*layers: Array) -> dict[str, Any]:
    """Return what the build for these layers defines."""
    lags = max(_lags(tuple(layer.shape)) for layer in layers)
    room = next((room for room in LAGS if lags <= room), LAGS[-1])
    sums = C_TYPES[np.dtype(accumulation_dtype(layers[0], namespace(layers[0]))).name]
    return {"REAL": c_type(layers[0]), "SUM": sums, "THREADS": _THREADS, "TILE": TILE, "LAGS": room}


def _places(shapes: Sequence[Shape]) -> tuple[Array, int, Array]:
    """Return on the device where layers begin, how many they are, and the tables of their kernel sizes."""
    sizes = tuple(dict.fromkeys(shape[2:] for shape in shapes))
    return on_the_device(_layers, tuple(shapes), sizes), len(shapes), on_the_device(_tables, sizes)


def _layers(shapes: Sequence[Shape], sizes: Sequence[Shape]) -> Any:
    """Return the records of layers, `Layer` in the source, whose kernel sizes are among `sizes`."""
    parts = [(_pairs(size).size, lag_offsets(size).size) for size in sizes]
    starts = np.cumsum([0, *(sum(part) for part in parts)]).tolist()
    tables = {size: (start, start + part[0]) for size, start, part in zip(sizes, starts, parts, strict=False)}
    records, begins = [], np.zeros(4, np.int64)  # of filters, entries, lags, blocks
    for shape in shapes:
        filters, channels, taps, lags = shape[0], shape[1], math.prod(shape[2:]), _lags(shape)
        first, entries, row, pairs = begins.tolist()
        records += [first, filters, channels, taps, lags // 2, entries, row, pairs, *tables[shape[2:]]]
        begins += (filters, math.prod(shape), filters * lags, lags // 2 + 1)
    return np.array(records, np.int64)


def _tables(sizes: Sequence[Shape]) -> Any:
    """Return for each kernel size its pairs of taps by lag, and then the offsets of its taps."""
    return np.concatenate([part for size in sizes for part in (_pairs(size), lag_offsets(size))]).astype(np.int32)


def _pairs(size: Shape) -> Any:
    """Return where the pairs of each lag, from the middle one on, begin, and then the pairs of taps (p, q)."""
    offsets = lag_offsets(size)
    p, q = np.triu_indices(offsets.size)  # a later tap of row-major order is at a lag in the second half
    lags = offsets[q] - offsets[p]
    order = np.argsort(lags, kind="stable")
    counts = np.bincount(lags, minlength=math.prod(2 * k - 1 for k in size) // 2 + 1)
    first = np.concatenate([[0], np.cumsum(counts)])
    return np.concatenate([first, np.stack([p[order], q[order]], axis=1).reshape(-1)])
