"""Sweeps along one axis of a gradient, compiled for the CPU.

The middle axis of (outer, n, inner) is swept. Columns are taken in tiles that stay in the cache from the first pass to
the last, so the data come from memory once and go back once; the inner loops run over a tile's columns and become
vector instructions. Several rows are taken at a time, so that what is kept of a column is read and written less often.
Sums and recursions are kept in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla.compiling import compiled
from convla.engines._parallel import run_jobs, take_job
from convla.typing import NumPyArray

__all__ = ["laplacian_smoothing", "reweighted_gradient", "sobolev_gradient"]

# Of one tile: a core's share of the third-level cache. Smaller tiles would fit the second level, but their rows are
# short pieces far apart, which memory delivers at half its speed.
TILE_BYTES = 1 << 23
# `_smooth` goes over its tile four times, in float64, and gains more from the second level.
SMOOTHED_TILE_BYTES = 1 << 19
# Rows of a tile: below the one they are shorter than the memory's prefetch pays for, above the other the sums of their
# columns no longer fit the second-level cache.
LEAST_WIDTH, LARGEST_WIDTH = 32, 1 << 13
# Entries from which threads share the work, and how many tiles they then find at least.
SHARED_FROM, SHARES = 200_000, 8
LINES = 64  # taken in one job where lines are short and contiguous


def reweighted_gradient(blocks: NumPyArray, lam: float) -> NumPyArray:
    """Run the operation; see `convla.gradients`."""
    out = np.empty_like(blocks, order="C")
    _run(_reweight, np.ascontiguousarray(blocks), 1.0 / lam, _width(blocks, TILE_BYTES), out)
    return out


def sobolev_gradient(blocks: NumPyArray, lam: float, blend: float) -> NumPyArray:
    """Run the operation; see `convla.gradients`."""
    out = np.empty_like(blocks, order="C")
    _run(_sobolev, np.ascontiguousarray(blocks), 1.0 / lam, blend, _width(blocks, TILE_BYTES), out)
    return out


def laplacian_smoothing(blocks: NumPyArray, sigma: float) -> NumPyArray:
    """Run the operation; see `convla.gradients`."""
    n = blocks.shape[1]
    root = 2.0 * math.sqrt(0.25 + sigma)
    decay, complement = (root - 1.0) / (root + 1.0), 2.0 / (root + 1.0)
    closing = -math.expm1(n * math.log1p(-complement)) if decay > 0 else 1.0
    out = np.empty_like(blocks, order="C")
    blocks, gain = np.ascontiguousarray(blocks), complement * complement
    if blocks.shape[2] == 1:
        _run(_smooth_lines, blocks[:, :, 0], decay, 1.0 / closing, gain, out[:, :, 0])
    else:
        _run(_smooth, blocks, decay, 1.0 / closing, gain, _width(blocks, SMOOTHED_TILE_BYTES), out)
    return out


def _run(compiled: Any, blocks: NumPyArray, *arguments: Any) -> None:
    run_jobs(compiled, blocks, *arguments, shared=blocks.size >= SHARED_FROM)


def _width(blocks: NumPyArray, tile_bytes: int) -> int:
    """Return the number of columns of a tile: as many as `tile_bytes` hold, but enough tiles to share large arrays."""
    outer, n, inner = blocks.shape
    widest = min(tile_bytes // (n * blocks.itemsize), LARGEST_WIDTH)
    shares = SHARES if blocks.size >= SHARED_FROM else 1
    tiles = max(-(-inner // max(LEAST_WIDTH, widest)), -(-shares // outer))
    return int(min(inner, max(LEAST_WIDTH, -(-inner // tiles))))


# error_model="numpy": no test for division by zero in the loops.
@compiled(nogil=True, error_model="numpy")
def _reweight(counter: NumPyArray, blocks: NumPyArray, share: float, width: int, out: NumPyArray) -> None:
    outer, n, inner = blocks.shape
    tiles = -(-inner // width)
    tile = take_job(counter)
    while tile < outer * tiles:
        block, first = tile // tiles, tile % tiles * width
        last = min(inner, first + width)
        f, g = blocks[block], out[block]
        mean, base = np.zeros(last - first), np.empty(last - first, blocks.dtype)
        for j in range(0, n - 3, 4):
            _add_four(f[j, first:last], f[j + 1, first:last], f[j + 2, first:last], f[j + 3, first:last], mean)
        for j in range(n - n % 4, n):
            _add(f[j, first:last], mean)
        for i in range(base.size):
            base[i] = (1.0 - share) / n * mean[i]
        for j in range(n):
            _draw_in(f[j, first:last], base, blocks.dtype.type(share), g[j, first:last])
        tile = take_job(counter)


@compiled(error_model="numpy")
def _add(f: NumPyArray, total: NumPyArray) -> None:
    for i in range(f.size):
        total[i] += f[i]


@compiled(error_model="numpy")
def _add_four(f0: NumPyArray, f1: NumPyArray, f2: NumPyArray, f3: NumPyArray, total: NumPyArray) -> None:
    for i in range(f0.size):
        total[i] += (np.float64(f0[i]) + np.float64(f1[i])) + (np.float64(f2[i]) + np.float64(f3[i]))


@compiled(error_model="numpy")
def _draw_in(f: NumPyArray, base: NumPyArray, share: float, g: NumPyArray) -> None:
    for i in range(f.size):
        g[i] = base[i] + share * f[i]


@compiled(nogil=True, error_model="numpy")
def _sobolev(counter: NumPyArray, blocks: NumPyArray, share: float, blend: float, width: int, out: NumPyArray) -> None:
    outer, n, inner = blocks.shape
    tiles = -(-inner // width)
    scale = share / n / n
    tile = take_job(counter)
    while tile < outer * tiles:
        block, first = tile // tiles, tile % tiles * width
        last = min(inner, first + width)
        f, g = blocks[block], out[block]
        mean, slope, value = np.zeros(last - first), np.zeros(last - first), np.zeros(last - first)
        # The mean, the first slope and the first value are three weighted sums of one pass: with the weights of the
        # discrete Green's function, all below 1, nothing large is subtracted.
        for j in range(0, n - 7, 8):
            rows = (
                f[j, first:last],
                f[j + 1, first:last],
                f[j + 2, first:last],
                f[j + 3, first:last],
                f[j + 4, first:last],
                f[j + 5, first:last],
                f[j + 6, first:last],
                f[j + 7, first:last],
            )
            _add_eight_moments(rows, j, n, mean, slope, value)
        for j in range(n - n % 8, n):
            _add_moments(f[j, first:last], j, n, mean, slope, value)
        mean /= n
        slope *= -scale
        value *= share / n
        value += mean
        for j in range(0, n - 3, 4):
            _walk_four(
                f[j, first:last],
                f[j + 1, first:last],
                f[j + 2, first:last],
                f[j + 3, first:last],
                mean,
                scale,
                blend,
                slope,
                value,
                g[j, first:last],
                g[j + 1, first:last],
                g[j + 2, first:last],
                g[j + 3, first:last],
            )
        for j in range(n - n % 4, n):
            _walk(f[j, first:last], mean, scale, blend, slope, value, g[j, first:last])
        tile = take_job(counter)


@compiled(error_model="numpy")
def _linear(j: int, n: int) -> float:
    return (j - 0.5 * (n - 1)) / n


@compiled(error_model="numpy")
def _green(j: int, n: int) -> float:
    return 0.5 * j / n * (j / n - 1.0) + (1.0 - 1.0 / n / n) / 12.0


@compiled(error_model="numpy")
def _add_moments(f: NumPyArray, j: int, n: int, mean: NumPyArray, slope: NumPyArray, value: NumPyArray) -> None:
    linear, green = _linear(j, n), _green(j, n)
    for i in range(f.size):
        x = np.float64(f[i])
        mean[i] += x
        slope[i] += linear * x
        value[i] += green * x


@compiled(error_model="numpy")
def _add_eight_moments(
    rows: tuple[NumPyArray, ...], j: int, n: int, mean: NumPyArray, slope: NumPyArray, value: NumPyArray
) -> None:
    f0, f1, f2, f3, f4, f5, f6, f7 = rows
    a0, a1, a2, a3 = _linear(j, n), _linear(j + 1, n), _linear(j + 2, n), _linear(j + 3, n)
    a4, a5, a6, a7 = _linear(j + 4, n), _linear(j + 5, n), _linear(j + 6, n), _linear(j + 7, n)
    b0, b1, b2, b3 = _green(j, n), _green(j + 1, n), _green(j + 2, n), _green(j + 3, n)
    b4, b5, b6, b7 = _green(j + 4, n), _green(j + 5, n), _green(j + 6, n), _green(j + 7, n)
    for i in range(f0.size):
        x0, x1, x2, x3 = np.float64(f0[i]), np.float64(f1[i]), np.float64(f2[i]), np.float64(f3[i])
        x4, x5, x6, x7 = np.float64(f4[i]), np.float64(f5[i]), np.float64(f6[i]), np.float64(f7[i])
        mean[i] += ((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7))
        slope[i] += ((a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)) + ((a4 * x4 + a5 * x5) + (a6 * x6 + a7 * x7))
        value[i] += ((b0 * x0 + b1 * x1) + (b2 * x2 + b3 * x3)) + ((b4 * x4 + b5 * x5) + (b6 * x6 + b7 * x7))


@compiled(error_model="numpy")
def _walk(
    f: NumPyArray, mean: NumPyArray, scale: float, blend: float, slope: NumPyArray, value: NumPyArray, g: NumPyArray
) -> None:
    for i in range(f.size):
        x = np.float64(f[i])
        g[i] = value[i] + blend * x
        slope[i] -= scale * (x - mean[i])
        value[i] += slope[i]


@compiled(error_model="numpy")
def _walk_four(
    f0: NumPyArray,
    f1: NumPyArray,
    f2: NumPyArray,
    f3: NumPyArray,
    mean: NumPyArray,
    scale: float,
    blend: float,
    slope: NumPyArray,
    value: NumPyArray,
    g0: NumPyArray,
    g1: NumPyArray,
    g2: NumPyArray,
    g3: NumPyArray,
) -> None:
    # As `_walk` on four rows, with the state in registers between them.
    for i in range(f0.size):
        x0, x1, x2, x3 = np.float64(f0[i]), np.float64(f1[i]), np.float64(f2[i]), np.float64(f3[i])
        v, d, c = value[i], slope[i], mean[i]
        g0[i] = v + blend * x0
        d -= scale * (x0 - c)
        v += d
        g1[i] = v + blend * x1
        d -= scale * (x1 - c)
        v += d
        g2[i] = v + blend * x2
        d -= scale * (x2 - c)
        v += d
        g3[i] = v + blend * x3
        d -= scale * (x3 - c)
        slope[i] = d
        value[i] = v + d


@compiled(nogil=True, error_model="numpy")
def _smooth(
    counter: NumPyArray, blocks: NumPyArray, decay: float, closing: float, gain: float, width: int, out: NumPyArray
) -> None:
    outer, n, inner = blocks.shape
    tiles = -(-inner // width)
    tile = take_job(counter)
    while tile < outer * tiles:
        block, first = tile // tiles, tile % tiles * width
        last = min(inner, first + width)
        half = np.empty((n, last - first))
        state, back = np.zeros(last - first), np.zeros(last - first)
        for j in range(n):
            _recur(blocks[block, j, first:last], decay, state)
        # The state that the sweep leaves at its end is the one it must have begun with.
        state *= closing
        power = 1.0
        for j in range(n):
            _recur(blocks[block, j, first:last], decay, state)
            _keep(state, power, half[j], back)
            power *= decay
        # Likewise from the other side: back is the value at j = n, which is that at j = 0.
        back *= closing
        for j in range(n - 1, -1, -1):
            _recur(half[j], decay, back)
            _scale(back, gain, out[block, j, first:last])
        tile = take_job(counter)


@compiled(nogil=True, error_model="numpy")
def _smooth_lines(
    counter: NumPyArray, lines: NumPyArray, decay: float, closing: float, gain: float, out: NumPyArray
) -> None:
    # As `_smooth`, for lines that lie one after the other: there is nothing to take in vectors.
    outer, n = lines.shape
    half = np.empty(n)
    job = take_job(counter)
    while job * LINES < outer:
        for line in range(job * LINES, min(outer, (job + 1) * LINES)):
            state, back, power = 0.0, 0.0, 1.0
            for j in range(n):
                state = lines[line, j] + decay * state
            state *= closing
            for j in range(n):
                state = lines[line, j] + decay * state
                half[j] = state
                back += power * state
                power *= decay
            back *= closing
            for j in range(n - 1, -1, -1):
                back = half[j] + decay * back
                out[line, j] = gain * back
        job = take_job(counter)


@compiled(error_model="numpy")
def _recur(f: NumPyArray, decay: float, state: NumPyArray) -> None:
    for i in range(f.size):
        state[i] = f[i] + decay * state[i]


@compiled(error_model="numpy")
def _keep(state: NumPyArray, power: float, half: NumPyArray, back: NumPyArray) -> None:
    for i in range(state.size):
        half[i] = state[i]
        back[i] += power * state[i]


@compiled(error_model="numpy")
def _scale(back: NumPyArray, gain: float, g: NumPyArray) -> None:
    for i in range(back.size):
        g[i] = gain * back[i]
