"""The two maps of convolutional similarity on CuPy arrays: one launch each, a block for each filter.

A launch costs the same for any number of filters, so layers of one kernel size and one number of channels cost as much
time as one layer when they are stacked. Filters that do not fit in a block's shared memory are taken by batched matrix
products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla._array import accumulation_dtype, namespace
from convla._cuda import C_TYPES, c_type, launch_kernel, on_its_device, on_the_device
from convla.autocorrelation import correlate_lags as _correlate_lags
from convla.autocorrelation import lag_offsets
from convla.autocorrelation import summed_autocorrelations as _summed_autocorrelations
from convla.typing import Array

__all__ = ["LAGS", "TILE", "correlate_lags", "macros", "summed_autocorrelations"]

_THREADS = 256

TILE = 1024
"""The most taps of a channel."""

LAGS = (256, 4096)
"""The lags that there is room for: the less room, the more blocks share a processor. Most kernels have below 200 lags,
and 4096 take 32 of the 48 KiB that every device has."""


@on_its_device
def summed_autocorrelations(kernels: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.summed_autocorrelations`."""
    xp = namespace(kernels)
    size = tuple(kernels.shape[2:])
    taps, middle = math.prod(size), math.prod(2 * k - 1 for k in size) // 2
    if taps > TILE:
        return _summed_autocorrelations.reference(kernels)
    lags = xp.empty((kernels.shape[0], 2 * middle + 1), dtype=accumulation_dtype(kernels, xp))
    arguments = (xp.ascontiguousarray(kernels), on_the_device(_pairs, *size), lags, kernels.shape[1], taps, middle)
    launch_kernel(
        "convla.engines:filters",
        "summed_autocorrelations",
        kernels.shape[0],
        (_THREADS,),
        arguments,
        **macros(kernels),
    )
    return lags


@on_its_device
def correlate_lags(kernels: Array, lags: Array) -> Array:
    """Run the operation; see `convla.autocorrelation.correlate_lags`."""
    xp = namespace(kernels, lags)
    size = tuple(kernels.shape[2:])
    taps, middle = math.prod(size), math.prod(2 * k - 1 for k in size) // 2
    if taps > TILE or 2 * middle + 1 > LAGS[-1]:
        return _correlate_lags.reference(kernels, lags)
    out = xp.empty(tuple(kernels.shape), dtype=kernels.dtype)
    given = xp.ascontiguousarray(xp.astype(lags, accumulation_dtype(kernels, xp), copy=False))
    arrays = (xp.ascontiguousarray(kernels), given, on_the_device(_offsets, *size), out)
    launch_kernel(
        "convla.engines:filters",
        "correlate_lags",
        kernels.shape[0],
        (_THREADS,),
        (*arrays, kernels.shape[1], taps, middle),
        **macros(kernels),
    )
    return out


def macros(kernels: Array) -> dict[str, Any]:
    """Return what the build for these kernels defines."""
    lags = math.prod(2 * k - 1 for k in kernels.shape[2:])
    room = next((room for room in LAGS if lags <= room), LAGS[-1])
    sums = C_TYPES[np.dtype(accumulation_dtype(kernels, namespace(kernels))).name]
    return {"REAL": c_type(kernels), "SUM": sums, "THREADS": _THREADS, "TILE": TILE, "LAGS": room}


def _offsets(*size: int) -> Any:
    return lag_offsets(size).astype(np.int32)


def _pairs(*size: int) -> Any:
    """Return where the pairs of each lag, from the middle one on, begin, and then the pairs of taps (p, q)."""
    offsets = lag_offsets(size)
    p, q = np.triu_indices(offsets.size)  # a later tap of row-major order is at a lag in the second half
    lags = offsets[q] - offsets[p]
    order = np.argsort(lags, kind="stable")
    counts = np.bincount(lags, minlength=math.prod(2 * k - 1 for k in size) // 2 + 1)
    first = np.concatenate([[0], np.cumsum(counts)])
    return np.concatenate([first, np.stack([p[order], q[order]], axis=1).reshape(-1)]).astype(np.int32)
