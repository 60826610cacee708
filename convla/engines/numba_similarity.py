"""The two maps of convolutional similarity, compiled for the CPU: parallel over filters, vectorised over channels.

Each filter is copied once, tap by tap, into float64 rows of its channels, which fit the first-level cache; every sum
then runs over contiguous rows. A filter's sums are taken in one order by one thread, so the bits do not depend on the
number of threads. The rows are all the memory taken besides the result.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from convla.autocorrelation import lag_index
from convla.errors import EngineError
from convla.typing import Array

__all__ = ["correlate_lags", "summed_autocorrelations"]

# Rows are a little longer than the channels: at a power of two, all rows of a tap would meet in one cache set.
_GAP = 8


def summed_autocorrelations(kernels: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.summed_autocorrelations`."""
    rows, index = _prepare(kernels)
    lags = np.empty((rows.shape[0], math.prod(2 * k - 1 for k in kernels.shape[2:])))
    _autocorrelate(rows, index, lags)
    return lags


def correlate_lags(kernels: Array, lags: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.correlate_lags`."""
    rows, index = _prepare(kernels)
    out = np.empty_like(rows)
    _correlate(rows, index, np.ascontiguousarray(lags), out)
    return out.reshape(kernels.shape)


def _prepare(kernels: Array) -> tuple[Array, Array]:
    if kernels.dtype not in (np.float32, np.float64):
        raise EngineError(f"engine 'numba' takes float32 and float64 kernels here, got dtype {kernels.dtype}")
    rows = np.ascontiguousarray(kernels).reshape(*kernels.shape[:2], -1)
    return rows, lag_index(kernels.shape[2:])


def _compiled(**options: bool) -> Any:
    # Sums may be reassociated into vector lanes, once, by the compiler; NaN and infinity keep their meaning.
    return numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"}, **options)


@_compiled()
def _tap_rows(kernel: Array, rows: Array) -> None:
    channels, taps = kernel.shape
    for channel in range(channels):
        for tap in range(taps):
            rows[tap, channel] = kernel[channel, tap]


@_compiled()
def _dot(a: Array, b: Array) -> float:
    total = 0.0
    for channel in range(a.size):
        total += a[channel] * b[channel]
    return total


@_compiled(parallel=True)
def _autocorrelate(kernels: Array, index: Array, lags: Array) -> None:
    filters, channels, taps = kernels.shape
    last = lags.shape[1] - 1
    for i in numba.prange(filters):
        rows = np.empty((taps, channels + _GAP))
        _tap_rows(kernels[i], rows)
        lags[i] = 0.0
        for p in range(taps):
            for q in range(p, taps):
                lags[i, index[p, q]] += _dot(rows[p, :channels], rows[q, :channels])
        # Row-major order of taps visits the lags from 0 on; the others mirror them.
        for t in range(last // 2):
            lags[i, t] = lags[i, last - t]


@_compiled(parallel=True)
def _correlate(kernels: Array, index: Array, lags: Array, out: Array) -> None:
    filters, channels, taps = kernels.shape
    for i in numba.prange(filters):
        rows = np.empty((taps, channels + _GAP))
        row = np.empty(channels)
        _tap_rows(kernels[i], rows)
        for q in range(taps):
            row[:] = 0.0
            # Three taps at a time: fewer passes over the row that is summed up.
            for p in range(0, taps - taps % 3, 3):
                a, b, c = lags[i, index[q, p]], lags[i, index[q, p + 1]], lags[i, index[q, p + 2]]
                for channel in range(channels):
                    row[channel] += a * rows[p, channel] + b * rows[p + 1, channel] + c * rows[p + 2, channel]
            for p in range(taps - taps % 3, taps):
                a = lags[i, index[q, p]]
                for channel in range(channels):
                    row[channel] += a * rows[p, channel]
            for channel in range(channels):
                out[i, channel, q] = row[channel]
