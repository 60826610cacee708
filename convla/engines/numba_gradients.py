"""Sweeps along one axis of a gradient, compiled for the CPU.

The middle axis of (outer, n, inner) is swept. Columns are taken in tiles that stay in the cache from the first pass to
the last, so the data come from memory once and go back once; the inner loops run over a tile's columns and become
vector instructions. Sums and recursions are kept in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from convla.typing import Array

__all__ = ["laplacian_smoothing", "reweighted_gradient", "sobolev_gradient"]

# Of one tile: within the second-level cache of current processors, with room for the result beside it.
TILE_BYTES = 1 << 18
# Below this, rows of a tile are shorter than the memory's prefetch pays for.
LEAST_WIDTH = 32


def reweighted_gradient(blocks: Array, lam: float) -> Array:
    """Run the operation; see `convla.gradients`."""
    out = np.empty_like(blocks, order="C")
    _reweight(np.ascontiguousarray(blocks), 1.0 / lam, _width(blocks), out)
    return out


def sobolev_gradient(blocks: Array, lam: float, blend: float) -> Array:
    """Run the operation; see `convla.gradients`."""
    out = np.empty_like(blocks, order="C")
    _sobolev(np.ascontiguousarray(blocks), 1.0 / lam, blend, _width(blocks), out)
    return out


def laplacian_smoothing(blocks: Array, sigma: float) -> Array:
    """Run the operation; see `convla.gradients`."""
    n = blocks.shape[1]
    root = 2.0 * math.sqrt(0.25 + sigma)
    decay, complement = (root - 1.0) / (root + 1.0), 2.0 / (root + 1.0)
    closing = -math.expm1(n * math.log1p(-complement)) if decay > 0 else 1.0
    out = np.empty_like(blocks, order="C")
    _smooth(np.ascontiguousarray(blocks), decay, 1.0 / closing, complement * complement, _width(blocks), out)
    return out


def _width(blocks: Array) -> int:
    _, n, inner = blocks.shape
    return int(min(inner, max(LEAST_WIDTH, TILE_BYTES // (n * blocks.itemsize))))


def _compiled(**options: bool) -> Any:
    # error_model="numpy": no test for division by zero in the loops.
    return numba.njit(cache=True, error_model="numpy", **options)


@_compiled(parallel=True)
def _reweight(blocks: Array, share: float, width: int, out: Array) -> None:
    outer, n, inner = blocks.shape
    tiles = -(-inner // width)
    for tile in numba.prange(outer * tiles):
        first = tile % tiles * width
        f, g = blocks[tile // tiles, :, first : first + width], out[tile // tiles, :, first : first + width]
        columns = f.shape[1]
        mean = np.zeros(columns)
        for j in range(n):
            for i in range(columns):
                mean[i] += f[j, i]
        mean /= n
        for j in range(n):
            for i in range(columns):
                g[j, i] = mean[i] + share * (f[j, i] - mean[i])


@_compiled(parallel=True)
def _sobolev(blocks: Array, share: float, blend: float, width: int, out: Array) -> None:
    outer, n, inner = blocks.shape
    tiles = -(-inner // width)
    scale = share / n / n
    for tile in numba.prange(outer * tiles):
        first = tile % tiles * width
        f, g = blocks[tile // tiles, :, first : first + width], out[tile // tiles, :, first : first + width]
        columns = f.shape[1]
        mean, slope, value = np.zeros(columns), np.zeros(columns), np.zeros(columns)
        # The mean, the first slope and the first value are three weighted sums of one pass: with the weights of the
        # discrete Green's function, all below 1, nothing large is subtracted.
        for j in range(n):
            linear = (j - 0.5 * (n - 1)) / n
            green = 0.5 * j / n * (j / n - 1.0) + (1.0 - 1.0 / n / n) / 12.0
            for i in range(columns):
                x = f[j, i]
                mean[i] += x
                slope[i] += linear * x
                value[i] += green * x
        for i in range(columns):
            mean[i] /= n
            slope[i] *= -scale
            value[i] = mean[i] + share / n * value[i]
        for j in range(n):
            for i in range(columns):
                x = f[j, i]
                g[j, i] = value[i] + blend * x
                slope[i] -= scale * (x - mean[i])
                value[i] += slope[i]


@_compiled(parallel=True)
def _smooth(blocks: Array, decay: float, closing: float, gain: float, width: int, out: Array) -> None:
    outer, n, inner = blocks.shape
    tiles = -(-inner // width)
    for tile in numba.prange(outer * tiles):
        first = tile % tiles * width
        f, g = blocks[tile // tiles, :, first : first + width], out[tile // tiles, :, first : first + width]
        columns = f.shape[1]
        half = np.empty((n, columns))
        state, back = np.zeros(columns), np.zeros(columns)
        for j in range(n):
            for i in range(columns):
                state[i] = f[j, i] + decay * state[i]
        # The state that the sweep leaves at its end is the one it must have begun with.
        state *= closing
        power = 1.0
        for j in range(n):
            for i in range(columns):
                state[i] = f[j, i] + decay * state[i]
                half[j, i] = state[i]
                back[i] += power * state[i]
            power *= decay
        # Likewise from the other side: back is the value at j = n, which is that at j = 0.
        back *= closing
        for j in range(n - 1, -1, -1):
            for i in range(columns):
                back[i] = half[j, i] + decay * back[i]
                g[j, i] = gain * back[i]
