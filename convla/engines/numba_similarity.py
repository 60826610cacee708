"""The two maps of convolutional similarity, compiled for the CPU: parallel over filters, vectorised over channels.

Each filter is copied, tap by tap, into float64 rows of its channels, which fit the cache; every sum then runs over
contiguous rows (in the second map over taps, where there are more of them than channels). A filter's sums are taken in
one order by one thread, so the bits do not depend on the number of threads. The rows are all the memory taken besides
the result.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from convla.autocorrelation import lag_index
from convla.engines._parallel import run_jobs, take_job
from convla.typing import Array

__all__ = ["correlate_lags", "summed_autocorrelations"]

# Rows are a little longer than the channels: at a power of two, all rows of a tap would meet in one cache set.
_GAP = 8

# Fewer products than this take less than some tenths of a millisecond, which waiting for threads can cost over again.
_PARALLEL_PRODUCTS = 2**21


def summed_autocorrelations(kernels: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.summed_autocorrelations`."""
    rows, index = _prepare(kernels)
    lags = np.empty((rows.shape[0], math.prod(2 * k - 1 for k in kernels.shape[2:])))
    run_jobs(_autocorrelate_filters, rows, index, lags, shared=_is_large(rows))
    return lags


def correlate_lags(kernels: Array, lags: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.correlate_lags`."""
    rows, index = _prepare(kernels)
    out = np.empty_like(rows)
    run_jobs(_correlate_filters, rows, index, np.ascontiguousarray(lags), out, shared=_is_large(rows))
    return out.reshape(kernels.shape)


def _prepare(kernels: Array) -> tuple[Array, Array]:
    rows = np.ascontiguousarray(kernels).reshape(*kernels.shape[:2], -1)
    return rows, lag_index(kernels.shape[2:])


def _is_large(rows: Array) -> bool:
    filters, channels, taps = rows.shape
    return bool(filters * channels * taps**2 >= _PARALLEL_PRODUCTS)


# Sums may be reassociated into vector lanes, once, by the compiler; NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}


def _compiled() -> Any:
    return numba.njit(cache=True, fastmath=_FASTMATH)


@_compiled()
def _tap_rows(kernel: Array, rows: Array) -> None:
    channels, taps = kernel.shape
    for tap in range(taps):
        for channel in range(channels):
            rows[tap, channel] = kernel[channel, tap]


@_compiled()
def _dot(channels: int, a: Array, b: Array) -> float:
    total = 0.0
    for channel in range(channels):
        total += a[channel] * b[channel]
    return total


@_compiled()
def _three_dots(channels: int, a: Array, b: Array) -> tuple[float, float, float]:
    # One load of a serves three rows of b: the loop is bound by its loads.
    x, y, z = 0.0, 0.0, 0.0
    for channel in range(channels):
        x += a[channel] * b[0, channel]
        y += a[channel] * b[1, channel]
        z += a[channel] * b[2, channel]
    return x, y, z


@_compiled()
def _add_nine(w: Array, rows: Array, row: Array) -> None:
    # A 3x3 kernel in one go: the row that is summed up is read and written once for nine products.
    for c in range(row.size):
        left = w[0] * rows[0, c] + w[1] * rows[1, c] + w[2] * rows[2, c]
        middle = w[3] * rows[3, c] + w[4] * rows[4, c] + w[5] * rows[5, c]
        row[c] += left + middle + (w[6] * rows[6, c] + w[7] * rows[7, c] + w[8] * rows[8, c])


@_compiled()
def _add_one(w: float, row_in: Array, row: Array) -> None:
    for c in range(row.size):
        row[c] += w * row_in[c]


@_compiled()
def _autocorrelate_filter(kernel: Array, index: Array, lags: Array) -> None:
    channels, taps = kernel.shape
    rows = np.empty((taps, channels + _GAP))
    _tap_rows(kernel, rows)
    lags[:] = 0.0
    for p in range(taps):
        blocks = (taps - p) // 3
        for block in range(blocks):
            q = p + 3 * block
            x, y, z = _three_dots(channels, rows[p], rows[q : q + 3])
            lags[index[p, q]] += x
            lags[index[p, q + 1]] += y
            lags[index[p, q + 2]] += z
        for q in range(p + 3 * blocks, taps):
            lags[index[p, q]] += _dot(channels, rows[p], rows[q])
    # A later tap of row-major order is at a lag in the second half, the middle one included: mirror them.
    for t in range(lags.size // 2):
        lags[t] = lags[lags.size - 1 - t]


@_compiled()
def _correlate_filter(kernel: Array, index: Array, lags: Array, out: Array) -> None:
    if kernel.shape[0] < kernel.shape[1]:
        _correlate_along_taps(kernel, index, lags, out)
    else:
        _correlate_along_channels(kernel, index, lags, out)


@_compiled()
def _correlate_along_taps(kernel: Array, index: Array, lags: Array, out: Array) -> None:
    channels, taps = kernel.shape
    rows, weights = np.empty((channels, taps)), np.empty(taps)
    for channel in range(channels):
        for p in range(taps):
            rows[channel, p] = kernel[channel, p]
    for q in range(taps):
        for p in range(taps):
            weights[p] = lags[index[q, p]]
        for channel in range(channels):
            out[channel, q] = _dot(taps, weights, rows[channel])


@_compiled()
def _correlate_along_channels(kernel: Array, index: Array, lags: Array, out: Array) -> None:
    channels, taps = kernel.shape
    rows, row, weights = np.empty((taps, channels + _GAP)), np.empty(channels), np.empty(taps)
    _tap_rows(kernel, rows)
    nines = taps - taps % 9
    for q in range(taps):
        for p in range(taps):
            weights[p] = lags[index[q, p]]
        row[:] = 0.0
        for p in range(0, nines, 9):
            _add_nine(weights[p : p + 9], rows[p : p + 9], row)
        for p in range(nines, taps):
            _add_one(weights[p], rows[p], row)
        for channel in range(channels):
            out[channel, q] = row[channel]


@numba.njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _autocorrelate_filters(counter: Array, kernels: Array, index: Array, lags: Array) -> None:
    i = take_job(counter)
    while i < kernels.shape[0]:
        _autocorrelate_filter(kernels[i], index, lags[i])
        i = take_job(counter)


@numba.njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _correlate_filters(counter: Array, kernels: Array, index: Array, lags: Array, out: Array) -> None:
    i = take_job(counter)
    while i < kernels.shape[0]:
        _correlate_filter(kernels[i], index, lags[i], out[i])
        i = take_job(counter)
