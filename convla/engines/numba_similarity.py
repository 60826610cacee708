"""The maps of convolutional similarity, compiled for the CPU: parallel over filters, in blocks of registers.

Each filter is copied, as it lies in memory, into a float64 matrix X of channels times taps, which fits the cache. The
first map sums the upper half of X^T X along its lags, the second is the product of X and a Toeplitz matrix of the lags.
A filter's sums are taken in one order by one thread, so the bits do not depend on the number of threads. One filter and
its result are all the memory taken besides the result; of whole networks, the lags of all filters twice.
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
from convla.engines._product import LANES, MOST_ROWS, MOST_VECTORS, product
from convla.typing import NumPyArray

__all__ = ["correlate_lags", "layer_similarities", "summed_autocorrelations"]

# Fewer products than this take less than some tenths of a millisecond, which waiting for threads can cost over again.
_PARALLEL_PRODUCTS = 2**21

# Columns of the widest block of registers: how far one may reach beyond the end of a matrix.
_WIDTH = MOST_VECTORS * LANES


def summed_autocorrelations(kernels: NumPyArray) -> NumPyArray:
    """Run the operation; see `convla.autocorrelation.summed_autocorrelations`."""
    rows, offsets = _prepare(kernels)
    lags = np.empty((rows.shape[0], math.prod(2 * k - 1 for k in kernels.shape[2:])))
    run_jobs(_autocorrelate_filters, rows, offsets, lags, shared=_is_large(rows))
    return lags


def correlate_lags(kernels: NumPyArray, lags: NumPyArray) -> NumPyArray:
    """Run the operation; see `convla.autocorrelation.correlate_lags`."""
    rows, offsets = _prepare(kernels)
    out = np.empty_like(rows)
    run_jobs(_correlate_filters, rows, offsets, np.ascontiguousarray(lags), out, shared=_is_large(rows))
    return out.reshape(kernels.shape)


def layer_similarities(
    *layers: NumPyArray, pairs: str, normalized: bool, safe: tuple[float, float]
) -> tuple[NumPyArray, ...]:
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
    jobs = np.concatenate(
        [
            np.stack([np.full(len(firsts), number), firsts], axis=1)
            for number, row in enumerate(rows)
            for firsts in [np.arange(0, len(row), _some_filters(row))]
        ]
    )
    shared = len(jobs) > 1 and sum(map(_products, rows)) >= _PARALLEL_PRODUCTS
    tables = (rows[0][:0], shapes, places, offsets)
    run_jobs(_autocorrelate_layers, jobs, _addresses(rows), *tables, signatures, shared=shared)
    weights = np.empty_like(signatures)
    for number, (start, end) in enumerate(itertools.pairwise(places[1])):
        shape = (shapes[number, 0], lags[number])
        values[number], others = _paired(signatures[start:end].reshape(shape), normalized, safe)
        weights[start:end] = (2 * others).reshape(-1)
    factor = 2 if pairs == "ordered" else 1
    values, weights = factor * values, factor * weights
    run_jobs(_correlate_layers, jobs, _addresses(rows), *tables, weights, _addresses(out), shared=shared)
    return values, *(found.reshape(layer.shape) for found, layer in zip(out, layers, strict=True))


def _paired(lags: NumPyArray, normalized: bool, safe: tuple[float, float]) -> tuple[float, NumPyArray]:
    """Return a layer's value and the weights of its gradient, in the reference's order of sums; NaN if not safe."""
    energies = lags[:, lags.shape[1] // 2, None].copy()
    if not ((energies >= safe[0]) & (energies <= safe[1])).all():
        return math.nan, lags
    if normalized:
        lags = lags / energies
    before, after = np.zeros_like(lags), np.zeros_like(lags)
    np.cumsum(lags[:-1], axis=0, out=before[1:])
    np.cumsum(lags[:0:-1], axis=0, out=after[-2::-1])
    others = before + after
    value = float(np.sum(lags * before))
    if normalized:
        # The derivative of 1 / energy takes off the component along the filter itself.
        others[:, lags.shape[1] // 2] -= np.sum(others * lags, axis=-1)
        others /= energies
    return value, others


def _ends(sizes: NumPyArray) -> NumPyArray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _addresses(arrays: Sequence[NumPyArray]) -> NumPyArray:
    return np.array([array.ctypes.data for array in arrays])


def _prepare(kernels: NumPyArray) -> tuple[NumPyArray, NumPyArray]:
    rows = np.ascontiguousarray(kernels).reshape(*kernels.shape[:2], -1)
    return rows, lag_offsets(kernels.shape[2:]).astype(np.uint64)  # numba wraps what can be negative


def _products(rows: NumPyArray) -> int:
    return int(rows.size * rows.shape[2])


def _is_large(rows: NumPyArray) -> bool:
    return _products(rows) >= _PARALLEL_PRODUCTS


# Sums may be reassociated into vector lanes, once, by the compiler; NaN and infinity keep their meaning.
_REORDERED = {"reassoc", "contract", "nsz"}


@compiled(fastmath=_REORDERED)
def _energy(numbers: NumPyArray) -> float:
    total = 0.0
    for i in range(numbers.size):
        wide = np.float64(numbers[i])
        total += wide * wide
    return total


@compiled()
def _widen(numbers: NumPyArray, wide: NumPyArray) -> None:
    for i in range(numbers.size):
        wide[i] = numbers[i]


@compiled()
def _autocorrelate_filter(
    kernel: NumPyArray, offsets: NumPyArray, wide: NumPyArray, block: NumPyArray, lags: NumPyArray
) -> None:
    channels = kernel.shape[0]
    _widen(kernel.reshape(-1), wide)
    lags[:] = 0.0
    if channels == 1:
        _add_products(wide, offsets, lags)
    else:
        _add_gram(channels, wide, offsets, block, lags)
    # A later tap of row-major order is at a lag in the second half, the middle one included: mirror them.
    for t in range(lags.size // 2):
        lags[t] = lags[lags.size - 1 - t]


@compiled()
def _add_products(numbers: NumPyArray, offsets: NumPyArray, lags: NumPyArray) -> None:
    for p in range(offsets.size):
        zero = np.uint64(lags.size // 2) - offsets[p]
        for q in range(p, offsets.size):
            lags[zero + offsets[q]] += numbers[p] * numbers[q]


@compiled()
def _add_gram(channels: int, wide: NumPyArray, offsets: NumPyArray, block: NumPyArray, lags: NumPyArray) -> None:
    taps = offsets.size
    p = 0
    while p < taps:
        # Five rows at the end of a 3x3 kernel take the registers that four and one would leave idle.
        rows = 5 if taps - p == 5 else min(4, taps - p)
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
    kernel: NumPyArray,
    offsets: NumPyArray,
    lags: NumPyArray,
    wide: NumPyArray,
    result: NumPyArray,
    toeplitz: NumPyArray,
    out: NumPyArray,
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
            for c in range(0, count, 4):
                # Where the taps are fewer than the columns, the next row overwrites what is beyond the end of a row.
                place = c * taps
                product(
                    min(4, count - c),
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
def _dot(a: NumPyArray, b: NumPyArray) -> float:
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@compiled()
def _correlate_along_taps(
    kernel: NumPyArray, offsets: NumPyArray, lags: NumPyArray, wide: NumPyArray, weights: NumPyArray, out: NumPyArray
) -> None:
    channels, taps = kernel.shape
    _widen(kernel.reshape(-1), wide)
    for q in range(taps):
        zero = np.uint64(lags.size // 2) - offsets[q]
        for p in range(taps):
            weights[p] = lags[zero + offsets[p]]
        for channel in range(channels):
            out[channel, q] = _dot(weights, wide[channel * taps : (channel + 1) * taps])


@compiled()
def _fill_toeplitz(lags: NumPyArray, offsets: NumPyArray, q: int, columns: int, toeplitz: NumPyArray) -> None:
    taps = offsets.size
    for p in range(taps):
        zero = np.uint64(lags.size // 2) - offsets[p]
        for x in range(min(columns, taps - q)):
            toeplitz[p * columns + x] = lags[zero + offsets[q + x]]


@compiled()
def _narrow(numbers: NumPyArray, narrow: NumPyArray) -> None:
    for i in range(narrow.size):
        narrow[i] = numbers[i]


@compiled()
def _some_channels(taps: int) -> int:
    """Return how many channels are taken at a time: they fit the cache, and pay for what they share."""
    return 4 * max(16, 512 // taps)


@compiled()
def _some_filters(kernels: NumPyArray) -> int:
    """Return how many filters share their scratch memory."""
    return max(1, 4096 // int(kernels.shape[1] * kernels.shape[2]))


@compiled()
def _autocorrelate_some(kernels: NumPyArray, offsets: NumPyArray, lags: NumPyArray) -> None:
    filters, channels, taps = kernels.shape
    if taps == 1:
        for i in range(filters):
            lags[i, 0] = _energy(kernels[i].reshape(-1))
        return
    wide = np.zeros(channels * taps + _WIDTH)
    block = np.empty(MOST_ROWS * _WIDTH)
    for i in range(filters):
        _autocorrelate_filter(kernels[i], offsets, wide, block, lags[i])


@compiled()
def _correlate_some(kernels: NumPyArray, offsets: NumPyArray, lags: NumPyArray, out: NumPyArray) -> None:
    filters, channels, taps = kernels.shape
    if taps == 1:
        for i in range(filters):
            for channel in range(channels):
                out[i, channel, 0] = lags[i, 0] * kernels[i, channel, 0]
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
def _autocorrelate_filters(counter: NumPyArray, kernels: NumPyArray, offsets: NumPyArray, lags: NumPyArray) -> None:
    step = _some_filters(kernels)
    first = step * take_job(counter)
    while first < kernels.shape[0]:
        some = slice(first, first + step)
        _autocorrelate_some(kernels[some], offsets, lags[some])
        first = step * take_job(counter)


@compiled(nogil=True)
def _correlate_filters(
    counter: NumPyArray, kernels: NumPyArray, offsets: NumPyArray, lags: NumPyArray, out: NumPyArray
) -> None:
    step = _some_filters(kernels)
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
def _layer(addresses: NumPyArray, layer: int, like: NumPyArray, shapes: NumPyArray) -> NumPyArray:
    """Return the array of a layer that stands at its address, (filters, channels, taps)."""
    shape = (shapes[layer, 0], shapes[layer, 1], shapes[layer, 2])
    array: NumPyArray = numba.carray(_pointer(addresses[layer], like), shape)
    return array


@compiled(nogil=True)
def _autocorrelate_layers(
    counter: NumPyArray,
    jobs: NumPyArray,
    addresses: NumPyArray,
    like: NumPyArray,
    shapes: NumPyArray,
    places: NumPyArray,
    offsets: NumPyArray,
    signatures: NumPyArray,
) -> None:
    job = take_job(counter)
    while job < jobs.shape[0]:
        layer, first = jobs[job]
        kernels = _layer(addresses, layer, like, shapes)
        lags = signatures[places[1, layer] : places[1, layer + 1]].reshape(kernels.shape[0], -1)
        some = slice(first, first + _some_filters(kernels))
        _autocorrelate_some(kernels[some], offsets[places[0, layer] : places[0, layer + 1]], lags[some])
        job = take_job(counter)


@compiled(nogil=True)
def _correlate_layers(
    counter: NumPyArray,
    jobs: NumPyArray,
    addresses: NumPyArray,
    like: NumPyArray,
    shapes: NumPyArray,
    places: NumPyArray,
    offsets: NumPyArray,
    weights: NumPyArray,
    targets: NumPyArray,
) -> None:
    job = take_job(counter)
    while job < jobs.shape[0]:
        layer, first = jobs[job]
        kernels = _layer(addresses, layer, like, shapes)
        out = _layer(targets, layer, like, shapes)
        lags = weights[places[1, layer] : places[1, layer + 1]].reshape(kernels.shape[0], -1)
        some = slice(first, first + _some_filters(kernels))
        _correlate_some(kernels[some], offsets[places[0, layer] : places[0, layer + 1]], lags[some], out[some])
        job = take_job(counter)
