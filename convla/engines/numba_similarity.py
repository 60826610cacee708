"""The maps of convolutional similarity, compiled for the CPU: parallel over filters, in blocks of registers.

Each filter is copied, as it lies in memory, into a float64 matrix X of channels times taps, which fits the cache. The
first map sums the upper half of X^T X along its lags, the second is the product of X and a Toeplitz matrix of the lags.
Filters of 3x3 taps are not copied: `convla.engines._patches` reads them where they lie. A filter's sums are taken in
one order by one thread, so the bits do not depend on the number of threads. One filter and its result are all the
memory taken besides the result; of whole networks, the lags of all filters twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from convla.autocorrelation import lag_offsets
from convla.compiling import compiled
from convla.engines._parallel import run_jobs, take_job
from convla.engines._patches import LAGS, TAPS, add_lags, correlate_patches
from convla.engines._product import LANES, MOST_ROWS, MOST_VECTORS, product
from convla.typing import Array

__all__ = ["correlate_lags", "layer_similarities", "summed_autocorrelations"]

# Fewer products than this take less than some tenths of a millisecond, which waiting for threads can cost over again.
_PARALLEL_PRODUCTS = 2**21

# Columns of the widest block of registers: how far one may reach beyond the end of a matrix.
_WIDTH = MOST_VECTORS * LANES


def summed_autocorrelations(kernels: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.summed_autocorrelations`."""
    rows, offsets = _prepare(kernels)
    lags = np.empty((rows.shape[0], math.prod(2 * k - 1 for k in kernels.shape[2:])))
    run_jobs(_autocorrelate_filters, rows, offsets, lags, shared=_is_large(rows))
    return lags


def correlate_lags(kernels: Array, lags: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.correlate_lags`."""
    rows, offsets = _prepare(kernels)
    out = np.empty_like(rows)
    run_jobs(_correlate_filters, rows, offsets, np.ascontiguousarray(lags), out, shared=_is_large(rows))
    return out.reshape(kernels.shape)


def layer_similarities(*layers: Array, pairs: str, normalized: bool, safe: tuple[float, float]) -> tuple[Array, ...]:
    """Run the operation; see `convla.similarity.layer.layer_similarities`: all filters of all layers share the threads.

    Layer by layer, what is called from Python and what waits for threads takes as long as the sums of a small layer.
    """
    prepared = [_prepare(layer) for layer in layers]
    rows, out = [row for row, _ in prepared], [np.empty_like(row) for row, _ in prepared]
    shapes = np.array([row.shape for row in rows])
    lags = [math.prod(2 * k - 1 for k in layer.shape[2:]) for layer in layers]
    places = np.array([_ends(shapes[:, 2]), _ends(shapes[:, 0] * lags)])
    offsets = np.concatenate([offset for _, offset in prepared])
    signatures, values = np.empty(places[1, -1]), np.empty(len(layers))
    jobs = _jobs(rows)
    shared = len(jobs) > 1 and sum(map(_products, rows)) >= _PARALLEL_PRODUCTS
    tables = (rows[0][:0], shapes, places, offsets)
    run_jobs(_autocorrelate_layers, jobs, _addresses(rows), *tables, signatures, shared=shared)
    weights = np.zeros_like(signatures)
    for number, (start, end) in enumerate(itertools.pairwise(places[1])):
        mine, others = (array[start:end].reshape(shapes[number, 0], lags[number]) for array in (signatures, weights))
        values[number] = _paired(mine, others, normalized, safe)
    factor = 2 if pairs == "ordered" else 1
    values *= factor
    weights *= 2 * factor
    run_jobs(_correlate_layers, jobs, _addresses(rows), *tables, weights, _addresses(out), shared=shared)
    return values, *(found.reshape(layer.shape) for found, layer in zip(out, layers, strict=True))


def _paired(lags: Array, others: Array, normalized: bool, safe: tuple[float, float]) -> float:
    """Return a layer's value, NaN if not safe, and write the W of `convla.similarity.signatures` into `others`."""
    middle = lags.shape[1] // 2
    if not _are_within(lags[:, middle], *safe):
        return math.nan
    if normalized:
        energies = lags[:, middle, None].copy()
        lags = lags / energies
    products = np.empty_like(lags)
    _sum_others(lags, products, others)
    if normalized:
        # The derivative of 1 / energy takes off the component along the filter itself.
        others[:, middle] -= np.sum(others * lags, axis=-1)
        others /= energies
    return float(np.sum(products))


@compiled()
def _are_within(numbers: Array, low: float, high: float) -> bool:
    within = True
    for i in range(numbers.size):
        within = within and low <= numbers[i] <= high  # NaN is not
    return within


@compiled()
def _sum_others(lags: Array, products: Array, others: Array) -> None:
    """Do what `convla.similarity.signatures.sums_of_others` does, in its order of sums, and multiply those before."""
    filters, count = lags.shape
    sums = np.zeros(count)
    for i in range(filters):
        for t in range(count):
            others[i, t] = sums[t]
            products[i, t] = lags[i, t] * sums[t]
            sums[t] += lags[i, t]
    sums[:] = 0.0
    for i in range(filters - 1, -1, -1):
        for t in range(count):
            others[i, t] += sums[t]
            sums[t] += lags[i, t]


def _jobs(rows: Sequence[Array]) -> Array:
    """Return the jobs of some layers: a layer's number, and the first of the filters that are taken together."""
    steps = np.array([_some_filters(row.shape[1] * row.shape[2]) for row in rows])
    counts = -(-np.array([len(row) for row in rows]) // steps)
    layers = np.repeat(np.arange(len(rows)), counts)
    return np.stack([layers, steps[layers] * (np.arange(len(layers)) - _ends(counts)[layers])], axis=1)


def _ends(sizes: Array) -> Array:
    return np.concatenate([[0], np.cumsum(sizes)])


def _addresses(arrays: Sequence[Array]) -> Array:
    return np.array([array.ctypes.data for array in arrays])


def _prepare(kernels: Array) -> tuple[Array, Array]:
    rows = np.ascontiguousarray(kernels).reshape(*kernels.shape[:2], -1)
    return rows, lag_offsets(kernels.shape[2:]).astype(np.uint64)  # numba wraps what can be negative


def _products(rows: Array) -> int:
    return int(rows.size * rows.shape[2])


def _is_large(rows: Array) -> bool:
    return _products(rows) >= _PARALLEL_PRODUCTS


# Sums may be reassociated into vector lanes, once, by the compiler; NaN and infinity keep their meaning.
_REORDERED = {"reassoc", "contract", "nsz"}


@compiled(fastmath=_REORDERED)
def _energy(numbers: Array) -> float:
    total = 0.0
    for i in range(numbers.size):
        wide = np.float64(numbers[i])
        total += wide * wide
    return total


@compiled()
def _widen(numbers: Array, wide: Array) -> None:
    for i in range(numbers.size):
        wide[i] = numbers[i]


@compiled()
def _autocorrelate_filter(kernel: Array, offsets: Array, wide: Array, block: Array, lags: Array) -> None:
    channels = kernel.shape[0]
    _widen(kernel.reshape(-1), wide)
    lags[:] = 0.0
    if channels == 1:
        _add_products(wide, offsets, lags)
    else:
        _add_gram(channels, wide, offsets, block, lags)
    _mirror(lags)


@compiled()
def _mirror(lags: Array) -> None:
    """Fill the first half: a later tap of row-major order is at a lag in the second, the middle one included."""
    for t in range(lags.size // 2):
        lags[t] = lags[lags.size - 1 - t]


@compiled()
def _autocorrelate_patches(kernels: Array, lags: Array) -> None:
    """Do what `_autocorrelate_filter` does, of some 3x3 filters; their last channels fill a block up with zeros."""
    numbers, sums = kernels.reshape(-1), lags.reshape(-1)
    size, edge = kernels.shape[1] * TAPS, np.zeros(LANES * TAPS, kernels.dtype)
    whole, rest = divmod(size, edge.size)
    sums[:] = 0.0
    for i in range(kernels.shape[0]):
        add_lags(numbers, i * size, whole, sums, i * LAGS)
        if rest:
            for j in range(rest):
                edge[j] = numbers[(i + 1) * size - rest + j]
            add_lags(edge, 0, 1, sums, i * LAGS)
        _mirror(lags[i])


@compiled()
def _correlate_patches(kernels: Array, lags: Array, out: Array) -> None:
    """Do what `_correlate_filter` does, of some 3x3 filters."""
    numbers, weights, target = kernels.reshape(-1), lags.reshape(-1), out.reshape(-1)
    size, edge = kernels.shape[1] * TAPS, np.zeros(LANES * TAPS, kernels.dtype)
    whole, rest = divmod(size, edge.size)
    for i in range(kernels.shape[0]):
        correlate_patches(numbers, i * size, whole, weights, i * LAGS, target, i * size)
        if rest:
            last = (i + 1) * size - rest
            for j in range(rest):
                edge[j] = numbers[last + j]
            correlate_patches(edge, 0, 1, weights, i * LAGS, edge, 0)
            for j in range(rest):
                target[last + j] = edge[j]


@compiled()
def _add_products(numbers: Array, offsets: Array, lags: Array) -> None:
    for p in range(offsets.size):
        zero = np.uint64(lags.size // 2) - offsets[p]
        for q in range(p, offsets.size):
            lags[zero + offsets[q]] += numbers[p] * numbers[q]


@compiled()
def _add_gram(channels: int, wide: Array, offsets: Array, block: Array, lags: Array) -> None:
    taps = offsets.size
    p = 0
    while p < taps:
        rows = min(MOST_ROWS, taps - p)
        for q in range(p, taps, _WIDTH):
            columns = min(_WIDTH, taps - q)
            product(rows, -(-columns // LANES), block, 0, _WIDTH, wide, p, taps, 1, wide, q, taps, channels)
            for r in range(rows):
                zero = np.uint64(lags.size // 2) - offsets[p + r]
                for x in range(max(0, p + r - q), columns):
                    lags[zero + offsets[q + x]] += block[r * _WIDTH + x]
        p += rows


@compiled()
def _correlate_filter(
    kernel: Array, offsets: Array, lags: Array, wide: Array, result: Array, toeplitz: Array, out: Array
) -> None:
    channels, taps = kernel.shape
    columns = toeplitz.size // taps
    some = _some_channels(taps)
    for first in range(0, channels, some):
        count = min(some, channels - first)
        _widen(kernel[first : first + count].reshape(-1), wide)
        for start in range(0, taps, columns):
            # The last columns are taken with some of those before them.
            q = max(0, min(start, taps - columns))
            if first == 0 or taps > columns:
                _fill_toeplitz(lags, offsets, q, columns, toeplitz)
            for c in range(0, count, MOST_ROWS):
                # Where the taps are fewer than the columns, the next row overwrites what is beyond the end of a row.
                place = c * taps
                product(
                    min(MOST_ROWS, count - c),
                    columns // LANES,
                    result,
                    place + q,
                    taps,
                    wide,
                    place,
                    1,
                    taps,
                    toeplitz,
                    0,
                    columns,
                    taps,
                )
        _narrow(result, out[first : first + count].reshape(-1))


@compiled(fastmath=_REORDERED)
def _dot(a: Array, b: Array) -> float:
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@compiled()
def _correlate_along_taps(kernel: Array, offsets: Array, lags: Array, wide: Array, weights: Array, out: Array) -> None:
    channels, taps = kernel.shape
    _widen(kernel.reshape(-1), wide)
    for q in range(taps):
        zero = np.uint64(lags.size // 2) - offsets[q]
        for p in range(taps):
            weights[p] = lags[zero + offsets[p]]
        for channel in range(channels):
            out[channel, q] = _dot(weights, wide[channel * taps : (channel + 1) * taps])


@compiled()
def _fill_toeplitz(lags: Array, offsets: Array, q: int, columns: int, toeplitz: Array) -> None:
    taps = offsets.size
    for p in range(taps):
        zero = np.uint64(lags.size // 2) - offsets[p]
        for x in range(min(columns, taps - q)):
            toeplitz[p * columns + x] = lags[zero + offsets[q + x]]


@compiled()
def _narrow(numbers: Array, narrow: Array) -> None:
    for i in range(narrow.size):
        narrow[i] = numbers[i]


@compiled()
def _some_channels(taps: int) -> int:
    """Return how many channels are taken at a time: they fit the cache, and pay for what they share."""
    return 4 * max(16, 512 // taps)


@compiled()
def _some_filters(numbers: int) -> int:
    """Return how many filters of so many numbers share their scratch memory."""
    return max(1, 16384 // numbers)


@compiled()
def _autocorrelate_some(kernels: Array, offsets: Array, lags: Array) -> None:
    filters, channels, taps = kernels.shape
    if taps == 1:
        for i in range(filters):
            lags[i, 0] = _energy(kernels[i].reshape(-1))
        return
    if taps == TAPS and lags.shape[1] == LAGS:
        _autocorrelate_patches(kernels, lags)
        return
    wide = np.zeros(channels * taps + _WIDTH)
    block = np.empty(MOST_ROWS * _WIDTH)
    for i in range(filters):
        _autocorrelate_filter(kernels[i], offsets, wide, block, lags[i])


@compiled()
def _correlate_some(kernels: Array, offsets: Array, lags: Array, out: Array) -> None:
    filters, channels, taps = kernels.shape
    if taps == 1:
        for i in range(filters):
            for channel in range(channels):
                out[i, channel, 0] = lags[i, 0] * kernels[i, channel, 0]
        return
    if taps == TAPS and lags.shape[1] == LAGS:
        _correlate_patches(kernels, lags, out)
        return
    if channels < taps:
        numbers, weights = np.empty(channels * taps), np.empty(taps)
        for i in range(filters):
            _correlate_along_taps(kernels[i], offsets, lags[i], numbers, weights, out[i])
        return
    wide = np.empty(min(channels, _some_channels(taps)) * taps)
    result = np.empty(wide.size + _WIDTH)
    toeplitz = np.zeros(taps * min(_WIDTH, -(-taps // LANES) * LANES))
    for i in range(filters):
        _correlate_filter(kernels[i], offsets, lags[i], wide, result, toeplitz, out[i])


@compiled(nogil=True)
def _autocorrelate_filters(counter: Array, kernels: Array, offsets: Array, lags: Array) -> None:
    step = _some_filters(kernels.shape[1] * kernels.shape[2])
    first = step * take_job(counter)
    while first < kernels.shape[0]:
        some = slice(first, first + step)
        _autocorrelate_some(kernels[some], offsets, lags[some])
        first = step * take_job(counter)


@compiled(nogil=True)
def _correlate_filters(counter: Array, kernels: Array, offsets: Array, lags: Array, out: Array) -> None:
    step = _some_filters(kernels.shape[1] * kernels.shape[2])
    first = step * take_job(counter)
    while first < kernels.shape[0]:
        some = slice(first, first + step)
        _correlate_some(kernels[some], offsets, lags[some], out[some])
        first = step * take_job(counter)


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:  # noqa: ARG001
    """Return an address as a pointer to numbers of the dtype of an array."""
    signature = types.CPointer(like.dtype)(address, like)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return signature, generate


@compiled(nogil=True)
def _layer(addresses: Array, layer: int, like: Array, shapes: Array) -> Array:
    """Return the array of a layer that stands at its address, (filters, channels, taps)."""
    return numba.carray(_pointer(addresses[layer], like), (shapes[layer, 0], shapes[layer, 1], shapes[layer, 2]))


@compiled(nogil=True)
def _autocorrelate_layers(
    counter: Array,
    jobs: Array,
    addresses: Array,
    like: Array,
    shapes: Array,
    places: Array,
    offsets: Array,
    signatures: Array,
) -> None:
    job = take_job(counter)
    while job < jobs.shape[0]:
        layer, first = jobs[job]
        kernels = _layer(addresses, layer, like, shapes)
        lags = signatures[places[1, layer] : places[1, layer + 1]].reshape(kernels.shape[0], -1)
        some = slice(first, first + _some_filters(kernels.shape[1] * kernels.shape[2]))
        _autocorrelate_some(kernels[some], offsets[places[0, layer] : places[0, layer + 1]], lags[some])
        job = take_job(counter)


@compiled(nogil=True)
def _correlate_layers(
    counter: Array,
    jobs: Array,
    addresses: Array,
    like: Array,
    shapes: Array,
    places: Array,
    offsets: Array,
    weights: Array,
    targets: Array,
) -> None:
    job = take_job(counter)
    while job < jobs.shape[0]:
        layer, first = jobs[job]
        kernels = _layer(addresses, layer, like, shapes)
        out = _layer(targets, layer, like, shapes)
        lags = weights[places[1, layer] : places[1, layer + 1]].reshape(kernels.shape[0], -1)
        some = slice(first, first + _some_filters(kernels.shape[1] * kernels.shape[2]))
        _correlate_some(kernels[some], offsets[places[0, layer] : places[0, layer + 1]], lags[some], out[some])
        job = take_job(counter)
