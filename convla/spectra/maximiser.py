"""Where the symbol is largest, found cheaply, and the start vectors that this gives an iteration.

The leading singular vectors of a zero-padded convolution are, to leading order in the image size, plane waves at a
maximiser of ``norm(f(theta))`` under one arch of a sine along every axis: the ground state of a particle in a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla.spectra.grids import BLOCK_ENTRIES, TorusGrid
from convla.spectra.leading import leading_pairs
from convla.spectra.symbol import FloatArray, Symbol, plane_wave, random_complex
from convla.typing import Array

__all__ = ["SymbolPeak", "climbed_norms", "start_vectors", "symbol_peaks"]


_RANKING_STEPS = 8  # of Lanczos, from a random vector at each point of the coarse grid
_CLIMBING_STEPS = 3
_NEWTON_STEPS = 2  # from one vector to the next
_SHORTER_STEPS = 4
_ROUNDS_FOR_ALL = 3  # of refinement
_PROMISING = 0.03  # of the highest value: what is lower after those rounds does not become the highest
_RISEN = 1e-6  # of a value, by which it has to rise in a round to go on
_POINTS_PER_MAXIMUM = 4  # of the coarse grid, that may rank before the best point of the next maximum


@dataclass(frozen=True)
class SymbolPeak:
    """A local maximum of the symbol's norm on the torus.

    Attributes
    ----------
    value : float
        ``norm(f(theta) v)``: a lower bound of the supremum of the symbol's norm.
    frequency : numpy.ndarray of shape (ndim,)
        theta.
    vector : complex array of shape (columns of f,)
        v, of norm 1.
    group : int
    """

    value: float
    frequency: FloatArray
    vector: Array
    group: int

    def is_of(self, symbol: Symbol) -> bool:
        """Tell whether it can be a maximum of a symbol, by the sizes and the precision of what it is made of."""
        precision = symbol.xp.complex64 if symbol.like.dtype == symbol.xp.float32 else symbol.xp.complex128
        shapes = tuple(self.vector.shape), self.frequency.shape
        sizes = (symbol.columns,), (len(symbol.degrees),)
        return shapes == sizes and self.group < symbol.groups and self.vector.dtype == precision


def symbol_peaks(
    symbol: Symbol, *, rng: np.random.Generator, candidates: int = 8, refinements: int = 6
) -> list[SymbolPeak]:
    """Find the largest of the symbol's maxima that a coarse grid shows, the best first.

    A few Lanczos steps rank the frequencies of a grid of four points for each degree of ``f* f``; the best are refined.
    No decomposition of a matrix is taken: the cost is that of a few matrix-vector products for each point.

    Parameters
    ----------
    symbol : Symbol
    rng : numpy.random.Generator
    candidates : int
        How many points of the grid are refined.
    refinements : int
        Rounds of refinement for each, at most: fewer where the value has stopped rising.

    Returns
    -------
    list of SymbolPeak
        Of candidates that climbed to one maximum only the best is kept.

    Notes
    -----
    The refinement alternates between v and theta, each step increasing ``norm(f(theta) v)``: for fixed v it is the norm
    of ``sum_t exp(i theta.lag_t) W_t v``, whose derivatives are as cheap, for Newton's method; for fixed theta Lanczos
    steps improve v.
    """
    sizes = tuple(4 * degree if degree else 1 for degree in symbol.degrees)
    grid = TorusGrid(sizes, (0,) * len(sizes), half=sizes.index(max(sizes)))
    best: list[SymbolPeak] = []
    for q, matrices in symbol.on_grid(grid):
        frequencies = grid.frequencies(q)
        starts = random_complex((*matrices.shape[:2], symbol.columns), symbol.like, rng)
        values, vectors = _leading(matrices, starts, _RANKING_STEPS)
        order = np.argsort(values, axis=None)[::-1][: _POINTS_PER_MAXIMUM * candidates]
        for index, group in zip(*np.unravel_index(order, values.shape), strict=True):
            place, part = int(index), int(group)
            best.append(SymbolPeak(float(values[place, part]), frequencies[place], vectors[place, part, :], part))
        best = _distinct(best, symbol)[:candidates]
    return _distinct(_refined(symbol, best, refinements), symbol)


def _distinct(peaks: Sequence[SymbolPeak], symbol: Symbol) -> list[SymbolPeak]:
    """Return the highest of the peaks that are near each other, the best first."""
    kept: list[SymbolPeak] = []
    for peak in sorted(peaks, key=lambda peak: -peak.value):
        if not any(_same_maximum(peak, other, symbol) for other in kept):
            kept.append(peak)
    return kept


def _same_maximum(a: SymbolPeak, b: SymbolPeak, symbol: Symbol) -> bool:
    """Tell whether two frequencies, up to conjugation, are no farther apart than a quarter of a period of f* f."""
    reach = 0.51 * np.pi / np.maximum(symbol.degrees, 1)
    if a.group != b.group:
        return False
    distances = (a.frequency - np.array([[1], [-1]]) * b.frequency + np.pi) % (2 * np.pi) - np.pi
    return bool((np.abs(distances) < reach).all(axis=1).any())


def climbed_norms(symbol: Symbol, peaks: Sequence[SymbolPeak], frequencies: FloatArray, *, steps: int) -> FloatArray:
    """Estimate the symbol's norms near its maxima, from below, by Lanczos steps from their vectors.

    Parameters
    ----------
    symbol : Symbol
    peaks : sequence of P SymbolPeak
    frequencies : numpy.ndarray of shape (P, F, ndim)
        F near each of the peaks.
    steps : int

    Returns
    -------
    numpy.ndarray of shape (P, F)
        Of the block of the peak's group.
    """
    xp, (count, points, dims) = symbol.xp, frequencies.shape
    norms = np.zeros((count, points))
    together = max(1, BLOCK_ENTRIES // max(1, points * symbol.groups * symbol.rows * symbol.columns))
    for first in range(0, count, together):
        some = slice(first, min(first + together, count))
        blocks = symbol.at(frequencies[some].reshape(-1, dims))
        blocks = xp.reshape(blocks, (symbol.groups, -1, points, symbol.rows, symbol.columns))
        matrices = xp.stack([blocks[peak.group, place, ...] for place, peak in enumerate(peaks[some])])
        vectors = xp.stack([peak.vector for peak in peaks[some]])[:, None, :]
        starts = xp.broadcast_to(vectors, (*matrices.shape[:2], symbol.columns))
        norms[some], _ = _leading(matrices, starts, steps)
    return norms


def _leading(matrices: Array, vectors: Array, steps: int) -> tuple[FloatArray, Array]:
    """Estimate the norms of a stack of matrices f from below, with the right singular vectors."""
    xp = namespace(matrices)
    adjoints = xp.conj(xp.matrix_transpose(matrices))
    squares, vectors = leading_pairs(lambda v: xp.matmul(adjoints, xp.matmul(matrices, v)), vectors, steps=steps)
    return np.sqrt(np.maximum(squares, 0.0)), vectors


def start_vectors(symbol: Symbol, peak: SymbolPeak, image_shape: Sequence[int], *, windowed: bool) -> Array:
    """Return the real and imaginary part of the peak's plane wave on an image, under a sine window where `windowed`.

    The vector is turned to be as real as it can be, and of the frequency what it differs by from one that is its own
    conjugate has its phase in the middle of the image. So near such a frequency the first vector alone is the good one.

    Parameters
    ----------
    symbol : Symbol
    peak : SymbolPeak
    image_shape : sequence of int
    windowed : bool
        True for images with an edge, False for periodic ones.

    Returns
    -------
    array of shape (2, c_in, *image)
        Of the kernel's precision. The second is zero where theta is its own conjugate and v is real.

    References
    ----------
    S. V. Parter, On the extreme eigenvalues of truncated Toeplitz matrices, Bull. Amer. Math. Soc. 67 (1961) 191-197.
    """
    xp = symbol.xp
    splits = [np.divmod(np.arange(size), stride) for size, stride in zip(image_shape, symbol.stride, strict=True)]
    middles = np.array([(quotient[-1] - quotient[0]) / 2 for quotient, _ in splits])
    steps = [quotient - middle for (quotient, _), middle in zip(splits, middles.tolist(), strict=True)]
    # The part of the frequency that is its own conjugate has its phase at the positions, which may miss the middle.
    phase = float(math.pi * np.round(peak.frequency / math.pi) @ middles)
    turn = phase - 0.5 * float(np.angle(complex(xp.sum(peak.vector * peak.vector))))
    vectors = xp.reshape(peak.vector * complex(np.exp(1j * turn)), (symbol.inner, len(symbol.phases)))
    windows = [
        np.sin(np.pi * np.arange(1, size + 1) / (size + 1)) if windowed else np.ones(size) for size in image_shape
    ]
    masks = [
        [window * (remainder == r) for window, (_, remainder), r in zip(windows, splits, chosen, strict=True)]
        for chosen in symbol.phases
    ]
    wave = plane_wave(vectors, peak.frequency, steps, masks)
    pair = xp.stack((xp.real(wave), xp.imag(wave)))
    blocks = [pair if group == peak.group else xp.zeros_like(pair) for group in range(symbol.groups)]
    return pair if symbol.groups == 1 else xp.concat(blocks, axis=1)


def _refined(symbol: Symbol, peaks: Sequence[SymbolPeak], rounds: int) -> list[SymbolPeak]:
    """Climb from all peaks at once; after the first rounds, from those that still rise near the highest."""
    found, climbing = list(peaks), list(range(len(peaks)))
    taps = {
        group: symbol.xp.astype(symbol.tap_matrices(group), peaks[0].vector.dtype)
        for group in {peak.group for peak in peaks}
    }
    for done in range(1, rounds + 1):
        rises = set()
        for group, matrices in taps.items():
            places = [place for place in climbing if found[place].group == group]
            if places:
                for place, peak in zip(
                    places, _climbed(symbol, matrices, [found[place] for place in places]), strict=True
                ):
                    if peak.value - found[place].value > _RISEN * peak.value:
                        rises.add(place)
                    found[place] = peak
        least = (1 - _PROMISING) * max(peak.value for peak in found)
        climbing = [p for p in climbing if p in rises and (done < _ROUNDS_FOR_ALL or found[p].value >= least)]
        if not climbing:
            break
    return found


def _climbed(symbol: Symbol, taps: Array, peaks: Sequence[SymbolPeak]) -> list[SymbolPeak]:
    """Take some steps of Newton's method for the frequencies of a group, and of Lanczos for the vectors."""
    xp, lags = symbol.xp, symbol.lags.astype(np.float64)
    vectors = xp.stack([peak.vector for peak in peaks], axis=-1)
    thetas = np.stack([peak.frequency for peak in peaks])
    images = xp.reshape(xp.matmul(xp.reshape(taps, (-1, symbol.columns)), vectors), (len(lags), symbol.rows, -1))
    waves = np.ascontiguousarray(np.moveaxis(np.asarray(to_numpy(images), complex), 2, 0))
    for _ in range(_NEWTON_STEPS):
        thetas = _newton_steps(thetas, lags, waves)
    phases = on_device_of(np.exp(1j * thetas @ lags.T), vectors, xp, dtype=vectors.dtype)
    matrices = xp.matmul(phases, xp.reshape(taps, (len(lags), -1)))
    matrices = xp.reshape(matrices, (-1, symbol.rows, symbol.columns))
    norms, vectors = _leading(matrices, xp.matrix_transpose(vectors), _CLIMBING_STEPS)
    return [
        SymbolPeak(float(norm), theta, vectors[index, :], peak.group)
        for index, (norm, theta, peak) in enumerate(zip(norms, thetas, peaks, strict=True))
    ]


def _newton_steps(thetas: FloatArray, lags: FloatArray, images: np.ndarray[Any, Any]) -> FloatArray:
    """Improve ``norm(sum_t exp(i theta.lag_t) images_t)^2`` by Newton's method where concave, else by the gradient.

    Parameters
    ----------
    thetas : numpy.ndarray of shape (P, d)
        A frequency for each of P functions.
    lags : numpy.ndarray of shape (taps, d)
    images : complex numpy.ndarray of shape (P, taps, rows)
    """
    wave = np.exp(1j * thetas @ lags.T)[:, :, None] * images
    dims = lags.shape[1]
    total = wave.sum(axis=1)[:, :, None]
    slopes = 1j * lags.T @ wave
    pairs = (lags[:, :, None] * lags[:, None, :]).reshape(len(lags), -1)
    bends = (-pairs.T @ wave).reshape(len(thetas), dims, dims, -1)
    gradient = 2 * np.real(slopes @ total.conj())
    curvature = 2 * np.real(slopes.conj() @ slopes.swapaxes(1, 2) + (bends @ total.conj()[:, None])[..., 0])
    eigenvalues, axes = np.linalg.eigh(curvature)
    # Along directions that are not concave a step of the same size up the gradient; no step where the symbol is flat.
    sizes = np.abs(eigenvalues)
    floor = 1e-3 * sizes.max(axis=1, keepdims=True, initial=0.0)
    safe = np.where(sizes > floor, sizes, np.where(floor == 0.0, np.inf, floor))
    steps = (axes @ (axes.swapaxes(1, 2) @ gradient / safe[:, :, None]))[..., 0]
    reach = 0.5 / np.maximum(np.ptp(lags, axis=0), 1.0)
    steps = np.clip(steps, -reach, reach)
    before, found = np.linalg.norm(total, axis=(1, 2)), thetas.copy()
    left = np.arange(len(thetas))
    for _ in range(_SHORTER_STEPS):
        tried = thetas[left] + steps[left]
        phases = np.exp(1j * tried @ lags.T)[:, None, :]
        higher = np.linalg.norm(phases @ images[left], axis=(1, 2)) >= before[left]
        found[left[higher]] = tried[higher]
        left = left[~higher]
        if not left.size:
            break
        steps /= 4
    return found
