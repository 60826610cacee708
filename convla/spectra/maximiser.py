"""Where the symbol is largest, found cheaply, and the start vectors that this gives an iteration.

The leading singular vectors of a zero-padded convolution are, to leading order in the image size, plane waves at a
maximiser of ``norm(f(theta))`` under one arch of a sine along every axis: the ground state of a particle in a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla.spectra.symbol import FloatArray, Symbol, plane_wave, random_complex, torus_frequencies
from convla.typing import Array

__all__ = ["SymbolPeak", "power_steps", "start_vectors", "symbol_peaks"]


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


def symbol_peaks(
    symbol: Symbol, *, rng: np.random.Generator, candidates: int = 6, refinements: int = 4
) -> list[SymbolPeak]:
    """Find the largest of the symbol's maxima that a coarse grid shows, the best first.

    Power steps from random vectors rank the frequencies of a grid of four points for each degree of ``f* f``; the best
    are refined. No decomposition of a matrix is taken: the cost is that of a few matrix-vector products for each point.

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
    The refinement alternates between v and theta, each step increasing ``norm(f(theta) v)``: for fixed v its square is
    ``e* H e`` with ``e_t = exp(i theta.lag_t)`` and H the Gram matrix of the vectors ``W_t v``, small enough for
    Newton's method; for fixed theta a power step improves v.
    """
    frequencies, _ = torus_frequencies([4 * degree if degree else 1 for degree in symbol.degrees])
    matrices = symbol.at(frequencies)
    vectors = random_complex((*matrices.shape[:2], symbol.columns), symbol.kernel, rng)
    values, vectors = power_steps(matrices, vectors, steps=8)
    order = np.argsort(values, axis=None)[::-1][:candidates]
    peaks = []
    for group, index in zip(*np.unravel_index(order, values.shape), strict=True):
        start = SymbolPeak(
            float(values[group, index]), frequencies[index], vectors[int(group), int(index), :], int(group)
        )
        peaks.append(_refined(symbol, start, refinements))
    peaks.sort(key=lambda peak: -peak.value)
    distinct: list[SymbolPeak] = []
    for peak in peaks:
        if not any(_same_maximum(peak, other, symbol) for other in distinct):
            distinct.append(peak)
    return distinct


def _same_maximum(a: SymbolPeak, b: SymbolPeak, symbol: Symbol) -> bool:
    """Tell whether two frequencies, up to conjugation, are closer than a quarter of a period of f* f."""
    reach = 0.5 * np.pi / np.maximum(symbol.degrees, 1)
    distances = [np.abs((a.frequency - sign * b.frequency + np.pi) % (2 * np.pi) - np.pi) for sign in (1, -1)]
    return a.group == b.group and any(bool((distance < reach).all()) for distance in distances)


def power_steps(matrices: Array, vectors: Array, *, steps: int) -> tuple[FloatArray, Array]:
    """Take power steps on ``f* f`` for a stack of matrices f.

    Parameters
    ----------
    matrices : complex array of shape (..., r, c)
    vectors : complex array of shape (..., c)
        Not zero.
    steps : int

    Returns
    -------
    values : numpy.ndarray of float64, shape (...)
        ``norm(f v)`` for the vectors before the last half step, each a lower bound of its matrix's norm.
    vectors : complex array of shape (..., c)
        Of norm 1; unchanged where f v vanishes.
    """
    xp = namespace(matrices)
    adjoint = xp.conj(xp.matrix_transpose(matrices))
    columns = _normalised(vectors[..., None])
    values = None
    for _ in range(steps):
        images = xp.matmul(matrices, columns)
        values = xp.linalg.vector_norm(images, axis=(-2, -1))
        columns = _normalised(xp.matmul(adjoint, images), columns)
    return np.asarray(to_numpy(values), np.float64), columns[..., 0]


def start_vectors(symbol: Symbol, peak: SymbolPeak, image_shape: Sequence[int], *, windowed: bool) -> Array:
    """Return the real and imaginary part of the peak's plane wave on an image, under a sine window where `windowed`.

    The wave's phase is 0 in the middle of the image and the vector is turned to be as real as it can be. So near a
    frequency that is its own conjugate the first vector alone is the good one.

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
    turn = 0.5 * float(np.angle(complex(xp.sum(peak.vector * peak.vector))))
    vectors = xp.reshape(peak.vector * complex(np.exp(-1j * turn)), (symbol.inner, len(symbol.phases)))
    splits = [np.divmod(np.arange(size), stride) for size, stride in zip(image_shape, symbol.stride, strict=True)]
    steps = [quotient - (quotient[-1] - quotient[0]) / 2 for quotient, _ in splits]
    windows = [
        np.sin(np.pi * np.arange(1, size + 1) / (size + 1)) if windowed else np.ones(size) for size in image_shape
    ]
    masks = [
        [window * (remainder == r) for window, (_, remainder), r in zip(windows, splits, phase, strict=True)]
        for phase in symbol.phases
    ]
    wave = plane_wave(vectors, peak.frequency, steps, masks)
    pair = xp.stack((xp.real(wave), xp.imag(wave)))
    blocks = [pair if group == peak.group else xp.zeros_like(pair) for group in range(symbol.groups)]
    return pair if symbol.groups == 1 else xp.concat(blocks, axis=1)


def _refined(symbol: Symbol, peak: SymbolPeak, rounds: int) -> SymbolPeak:
    xp = symbol.xp
    taps = symbol.tap_matrices(peak.group)
    lags = symbol.lags.astype(np.float64)
    theta, vector = peak.frequency.copy(), peak.vector
    count = taps.shape[0]
    flat = xp.astype(xp.reshape(taps, (-1, symbol.columns)), vector.dtype)
    stacked = xp.reshape(xp.astype(taps, vector.dtype), (count, -1))
    value = peak.value
    for _ in range(rounds):
        images = to_numpy(xp.reshape(xp.matmul(flat, vector), (count, symbol.rows))).astype(complex)
        gram = images.conj() @ images.T
        for _ in range(2):
            theta = _newton_step(theta, lags, gram)
        phases = on_device_of(np.exp(1j * lags @ theta), vector, xp, dtype=vector.dtype)
        matrix = xp.reshape(xp.matmul(phases, stacked), (symbol.rows, symbol.columns))
        values, vector = power_steps(matrix, vector, steps=3)
        gain, value = float(values) - value, float(values)
        if gain <= 1e-6 * value:
            break
    return SymbolPeak(value, theta, vector, peak.group)


def _newton_step(theta: FloatArray, lags: FloatArray, gram: np.ndarray) -> FloatArray:
    """Improve ``g(theta) = e* gram e`` by Newton's method where it is concave, else along the gradient."""
    wave = np.exp(1j * lags @ theta)
    image = gram @ wave
    moments = lags * wave[:, None]
    gradient = -2 * np.imag(wave.conj() @ gram @ moments)
    curvature = 2 * np.real(moments.conj().T @ gram @ moments)
    curvature -= 2 * np.real(np.einsum("ta,tb,t->ab", lags, lags, wave.conj() * image))
    eigenvalues, axes = np.linalg.eigh(curvature)
    # Along directions that are not concave a step of the same size up the gradient; no step where the symbol is flat.
    sizes = np.abs(eigenvalues)
    floor = 1e-3 * float(sizes.max(initial=0.0))
    safe = np.where(sizes > floor, sizes, np.inf if floor == 0.0 else floor)
    step = axes @ ((axes.T @ gradient) / safe)
    reach = 1.0 / np.maximum(np.ptp(lags, axis=0), 1.0)
    step = np.clip(step, -0.5 * reach, 0.5 * reach)
    before = float(np.real(wave.conj() @ image))
    for _ in range(4):
        trial = np.exp(1j * lags @ (theta + step))
        if float(np.real(trial.conj() @ gram @ trial)) >= before:
            return np.asarray(theta + step)
        step = step / 4
    return theta


def _normalised(columns: Array, otherwise: Array | None = None) -> Array:
    xp = namespace(columns)
    norms = xp.linalg.vector_norm(columns, axis=(-2, -1), keepdims=True)
    safe = xp.where(norms > 0, norms, xp.ones_like(norms))
    scaled = columns / xp.astype(safe, columns.dtype)
    return scaled if otherwise is None else xp.where(norms > 0, scaled, otherwise)
