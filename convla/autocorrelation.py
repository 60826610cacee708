"""Autocorrelations of kernels summed over their channels, and the maps a descent on them needs.

Two maps of checked arrays, linear in the number of kernels, carry all that convolutional similarity computes:
`summed_autocorrelations` takes kernels K_i to A_i[t], the sum over channels c and taps p of K_i[c][p] K_i[c][p + t],
and `correlate_lags` is half the adjoint of its derivative. The lags t of a kernel of sizes k run from 1 - k to k - 1
along each axis and are flattened in row-major order; lag 0 is the middle one.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from convla._array import accumulation_dtype, namespace, on_device_of
from convla._dispatch import accelerated
from convla.typing import Array, Namespace

__all__ = [
    "correlate_lags",
    "filter_batches",
    "lag_index",
    "lag_offsets",
    "summed_autocorrelations",
    "summed_cross_correlations",
]

# Filters are taken in batches of about this many numbers, so that what is widened to float64, and the Gram matrices of
# taps, stay in the cache and the extra memory does not grow with the layer.
BATCH_NUMBERS = 2**20


@accelerated("summed_autocorrelations")
def summed_autocorrelations(kernels: Array) -> Array:
    """Return the A_i of kernels (c_out, c_in, *kernel): shape (c_out, lags), float64 for floating-point kernels."""
    return summed_cross_correlations(kernels, kernels)


def summed_cross_correlations(first: Array, second: Array) -> Array:
    """Return for each i the sum over channels c of the full cross-correlation of first[i, c] with second[i, c].

    Entry t is the sum over c and taps p of ``first[i, c][p] * second[i, c][p + t]``; shape (c_out, lags).
    """
    xp = namespace(first, second)
    size = tuple(first.shape[2:])
    parts = []
    for batch in filter_batches(tuple(first.shape)):
        rows = [_rows(array[batch, ...], xp) for array in (first, second)]
        parts.append(_sum_lags(xp.matrix_transpose(rows[0]) @ rows[1], size, xp))
    return xp.concat(parts, axis=0) if len(parts) > 1 else parts[0]


@accelerated("correlate_lags")
def correlate_lags(kernels: Array, lags: Array) -> Array:
    """Correlate each kernel with its own even function of the lag.

    ``out[i, c][q]`` is the sum over lags t of ``lags[i][t] * kernels[i, c][q + t]``, kernels zero off their support.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in, *kernel)
    lags : array of shape (c_out, lags), even: lags[i][-t] == lags[i][t]

    Returns
    -------
    array of the shape and dtype of `kernels`
    """
    xp = namespace(kernels, lags)
    shape = tuple(kernels.shape)
    index = on_device_of(lag_index(shape[2:]), kernels, xp)
    taps = index.shape[0]
    parts = []
    for batch in filter_batches(shape):
        toeplitz = xp.reshape(xp.take(lags[batch, :], xp.reshape(index, (-1,)), axis=1), (-1, taps, taps))
        product = _rows(kernels[batch, ...], xp) @ toeplitz
        parts.append(xp.reshape(xp.astype(product, kernels.dtype), (-1, *shape[1:])))
    return xp.concat(parts, axis=0) if len(parts) > 1 else parts[0]


@functools.lru_cache(maxsize=64)
def lag_offsets(size: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each tap (taps,) a number such that the flat index of lag q - p is ``lags // 2 + [q] - [p]``."""
    taps = np.array(list(np.ndindex(*size))).reshape(-1, len(size))
    return np.asarray(np.ravel_multi_index(tuple(taps.T), tuple(2 * k - 1 for k in size)), dtype=np.int64)


@functools.lru_cache(maxsize=64)
def lag_index(size: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the table (taps, taps) of the flat index of the lag q - p between two taps p and q of a kernel."""
    offsets = lag_offsets(size)
    return math.prod(2 * k - 1 for k in size) // 2 + offsets[None, :] - offsets[:, None]


def _sum_lags(gram: Array, size: tuple[int, ...], xp: Namespace) -> Array:
    """Sum Gram matrices of taps (n, taps, taps) over the entries of equal lag: (n, lags)."""
    ndim = len(size)
    pairs = [axis + 1 for pair in range(ndim) for axis in (pair, pair + ndim)]
    total = xp.permute_dims(xp.reshape(gram, (-1, *size, *size)), (0, *pairs))
    # The last two axes are one axis of the two taps: they become one of the lag, which then stands behind the batch.
    for _ in size:
        total = xp.moveaxis(_sum_diagonals(total, xp), -1, 1)
    return xp.reshape(total, (total.shape[0], -1))


def _sum_diagonals(matrices: Array, xp: Namespace) -> Array:
    """Sum (..., k, k) along each diagonal, from column - row = 1 - k to k - 1: (..., 2 k - 1)."""
    *lead, k, _ = matrices.shape
    # With k zeros after each row but for the last, a row of 2 k - 1 numbers starts one column further left each time.
    padded = xp.concat((xp.flip(matrices, axis=-2), xp.zeros_like(matrices)), axis=-1)
    skewed = xp.reshape(xp.reshape(padded, (*lead, 2 * k * k))[..., :-k], (*lead, k, 2 * k - 1))
    return xp.sum(skewed, axis=-2, dtype=matrices.dtype)


def _rows(kernels: Array, xp: Namespace) -> Array:
    """Return (n, c_in, *kernel) as matrices (n, c_in, taps), in the precision that sums are kept in."""
    shape = tuple(kernels.shape)
    return xp.astype(xp.reshape(kernels, (*shape[:2], -1)), accumulation_dtype(kernels, xp), copy=False)


def filter_batches(shape: tuple[int, ...]) -> list[slice]:
    """Return the slices of filters that a kernel array of this shape is handled in."""
    size = max(1, BATCH_NUMBERS // (math.prod(shape[2:]) * max(shape[1], math.prod(shape[2:]))))
    return [slice(start, min(start + size, shape[0])) for start in range(0, shape[0], size)]
