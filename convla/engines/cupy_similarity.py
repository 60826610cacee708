"""The two maps of convolutional similarity as CuPy array calls: batched matrix products over all filters at once.

A few launches for any number of filters, so layers of one kernel size and one number of channels cost as much time as
one layer when they are stacked. Nothing is batched for a cache, and the lags are summed by one matrix product.
"""

from __future__ import annotations

import math

from convla._array import namespace
from convla.autocorrelation import lag_index
from convla.typing import Array

__all__ = ["correlate_lags", "summed_autocorrelations"]


def summed_autocorrelations(kernels: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.summed_autocorrelations`."""
    xp = namespace(kernels)
    rows = kernels.reshape(*kernels.shape[:2], -1).astype(xp.float64, copy=False)
    gram = xp.matmul(rows.transpose(0, 2, 1), rows)
    return gram.reshape(kernels.shape[0], -1) @ _lag_sums(kernels)


def correlate_lags(kernels: Array, lags: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.correlate_lags`."""
    xp = namespace(kernels, lags)
    # The matrices are rounded to the kernels' precision first: the product, which is all the work, is then done in it.
    toeplitz = lags[:, xp.asarray(lag_index(tuple(kernels.shape[2:])))].astype(kernels.dtype, copy=False)
    rows = kernels.reshape(*kernels.shape[:2], -1)
    return xp.matmul(rows, toeplitz).reshape(kernels.shape)


def _lag_sums(kernels: Array) -> Array:
    """Return the 0/1 matrix (taps^2, lags) that sums Gram matrices over entries of equal lag."""
    xp = namespace(kernels)
    index = xp.asarray(lag_index(tuple(kernels.shape[2:]))).reshape(-1, 1)
    lags = xp.arange(math.prod(2 * k - 1 for k in kernels.shape[2:]))
    return (index == lags).astype(xp.float64)
