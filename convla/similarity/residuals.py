"""How far matrices are from orthonormal, and kernels from orthonormal under every shift.

M M^H - I and M^H M - I have the same non-zero eigenvalues but for -1, of which the larger has as many more as it has
rows more. So the smaller one is formed, and what the other adds to a sum of squares is a count.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import array_api_extra as xpx
import numpy as np

from convla._array import accumulation_dtype, device_of, on_device_of
from convla._products import product
from convla.typing import Array, Namespace

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

__all__ = ["correlation_residual", "gram_residual", "residual_times"]

WIDE_TAPS = 20
"""From this many taps on, the sums of a transform are kept in float64."""


def gram_residual(matrices: Array, unit: float, xp: Namespace) -> tuple[Array, int]:
    """Return M M^H - unit I of matrices (..., r, c), or M^H M - unit I where that is smaller, and max(0, r - c)."""
    rows, columns = matrices.shape[-2:]
    adjoint = xp.matrix_transpose(matrices)
    if xp.isdtype(matrices.dtype, "complex floating"):
        adjoint = xp.conj(adjoint)
    gram = product(matrices, adjoint) if rows <= columns else product(adjoint, matrices)
    identity = xp.eye(min(rows, columns), dtype=gram.dtype, device=device_of(gram))
    return gram - unit * identity, max(0, rows - columns)


def residual_times(residual: Array, matrices: Array) -> Array:
    """Return (M M^H - unit I) M, which is M (M^H M - unit I), with the residual of `gram_residual`."""
    rows, columns = matrices.shape[-2:]
    return product(residual, matrices) if rows <= columns else product(matrices, residual)


def correlation_residual(
    blocks: Array, strides: tuple[int, ...], unit: float, xp: Namespace, *, gradient: bool
) -> tuple[Array, Array]:
    """Return the sum of squares of Z - unit D, in float64, and where asked for its gradient (else a dummy).

    Z[i, j] is the full cross-correlation of K_i and K_j summed over their c channels, at the lags that are multiples of
    the stride; D is the identity at lag 0, and 0 else. By Parseval the sum is the mean over frequencies of the squared
    norm of X X^H - unit I, X the kernels' transform: the kernels with filters and channels exchanged give the same but
    for a count.

    Parameters
    ----------
    blocks : array of shape (groups, n, c, *kernel)
        float32 or float64; the groups' sums add up.
    strides : tuple of int
        One for each kernel axis.
    unit : float
        The 1 of kernels of which a factor may have been split off.
    """
    groups, n, c, *size = blocks.shape
    strides = tuple(1 if k == 1 else s for k, s in zip(size, strides, strict=True))  # one tap has no other lag
    if _spectral_is_cheaper(tuple(size), strides):
        return _by_frequency(blocks, strides, unit, xp, gradient)
    if max(strides) > 1 or n <= c:
        return _by_lag(blocks, strides, unit, xp, gradient)
    exchange = (0, 2, 1, *range(3, blocks.ndim))
    value, slope = _by_lag(xp.permute_dims(blocks, exchange), strides, unit, xp, gradient)
    return value + groups * (n - c) * unit**2, xp.permute_dims(slope, exchange)


@functools.lru_cache(maxsize=256)
def _spectral_is_cheaper(size: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Compare the products of a pair of filters' channels: three for each tap of a lag, six at each frequency."""
    at_lags = sum(math.prod(part.stop - part.start for part in high[1:]) for _, (high, _) in _half_lags(size, strides))
    parts = tuple(-(-k // s) for k, s in zip(size, strides, strict=True))
    return bool(6 * len(_half_spectrum(parts)[1]) * math.prod(strides) < 3 * at_lags)


def _by_lag(blocks: Array, strides: tuple[int, ...], unit: float, xp: Namespace, gradient: bool) -> tuple[Array, Array]:
    shape = tuple(blocks.shape)
    total = xp.zeros((), dtype=xp.float64, device=device_of(blocks))
    slope = xp.zeros_like(blocks) if gradient else blocks
    identity = unit * xp.eye(shape[1], dtype=blocks.dtype, device=device_of(blocks))
    for weight, (high, low) in _half_lags(shape[3:], strides):
        there, here = (xp.reshape(blocks[taps], (*shape[:2], -1)) for taps in (high, low))
        residual = product(here, xp.matrix_transpose(there))
        if high == low:
            residual = residual - identity
        total = total + weight * xp.sum(residual * residual, dtype=xp.float64)
        if gradient:
            terms = [(low, product(residual, there))]
            if high == low:  # the other term is the same
                weight = 2
            else:
                terms.append((high, product(xp.matrix_transpose(residual), here)))
            for taps, term in terms:
                image = tuple(blocks[taps].shape)
                slope = xpx.at(slope)[taps].add(2.0 * weight * xp.reshape(term, image))
    return total, slope


def _half_lags(size: tuple[int, ...], strides: tuple[int, ...]) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """Give lag 0 and one of each two (t, -t) that the stride leaves: a weight, and the taps p + t and p it joins."""
    reach = [range(-((k - 1) // s) * s, k, s) for k, s in zip(size, strides, strict=True)]
    for lag in itertools.product(*reach):
        if lag >= (0,) * len(size):
            high = tuple(slice(max(t, 0), k + min(t, 0)) for t, k in zip(lag, size, strict=True))
            low = tuple(slice(max(-t, 0), k + min(-t, 0)) for t, k in zip(lag, size, strict=True))
            yield (2 if any(lag) else 1), ((..., *high), (..., *low))


def _by_frequency(
    blocks: Array, strides: tuple[int, ...], unit: float, xp: Namespace, gradient: bool
) -> tuple[Array, Array]:
    """Return the sum at the frequencies of a transform that is long enough for all lags, one of each two conjugates.

    With the transform A + iB of the kernels at a frequency, its Gram matrix has the real part ``[A B] [A B]^T``, of
    which the BLAS forms half, and the imaginary part ``B A^T - A B^T``: in real numbers half the work of complex ones.
    """
    dtype = accumulation_dtype(blocks, xp) if math.prod(blocks.shape[3:]) >= WIDE_TAPS else blocks.dtype
    phases = _phases(xp.astype(blocks, dtype, copy=False), strides, xp)
    groups, n, c, *size = phases.shape
    waves, weights = (on_device_of(table, blocks, xp, dtype=dtype) for table in _half_spectrum(tuple(size)))
    count = int(weights.shape[0])
    taps = xp.permute_dims(xp.reshape(phases, (groups, n, c, -1)), (3, 0, 1, 2))
    spectrum = xp.reshape(product(waves, xp.reshape(taps, (taps.shape[0], -1))), (2, count, groups, n, c))
    tall = n > c
    if tall:  # the conjugate transposes
        spectrum = xp.permute_dims(spectrum, (0, 1, 2, 4, 3))
    real, imaginary = spectrum[0, ...], (-spectrum[1, ...] if tall else spectrum[1, ...])
    beside = xp.concat([real, imaginary], axis=-1)
    residual = gram_residual(beside, unit, xp)[0]
    turned = product(imaginary, xp.matrix_transpose(real))
    turned = turned - xp.matrix_transpose(turned)
    squares = xp.sum(residual * residual + turned * turned, axis=(-3, -2, -1), dtype=xp.float64)
    total = xp.sum(squares * xp.astype(weights, xp.float64)) + groups * max(0, n - c) * unit**2
    if not gradient:
        return total, blocks
    slopes = product(residual, beside) + product(turned, xp.concat([-imaginary, real], axis=-1))
    slopes = slopes * (4.0 * xp.reshape(weights, (-1, 1, 1, 1)))
    columns = real.shape[-1]
    halves = xp.stack([slopes[..., :columns], -slopes[..., columns:] if tall else slopes[..., columns:]])
    if tall:
        halves = xp.permute_dims(halves, (0, 1, 2, 4, 3))
    samples = product(xp.matrix_transpose(waves), xp.reshape(halves, (2 * count, -1)))
    samples = xp.reshape(xp.permute_dims(xp.reshape(samples, (-1, groups, n, c)), (1, 2, 3, 0)), tuple(phases.shape))
    return total, xp.astype(_unphased(samples, strides, tuple(blocks.shape), xp), blocks.dtype, copy=False)


@functools.lru_cache(maxsize=32)
def _half_spectrum(size: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Return the real waves of a transform of 2k - 1 points along axes of k taps, and the shares of its frequencies.

    Returns
    -------
    waves : numpy.ndarray of shape (2 * frequencies, taps)
        Cosines, then sines with their signs changed; of each two conjugate frequencies one.
    weights : numpy.ndarray of shape (frequencies,)
        By Parseval's theorem, of a sum of squares over all lags.
    """
    lengths = [2 * k - 1 for k in size]
    # Of frequencies f and -f one is greater in the order of their entries, modulo the lengths.
    kept = [f for f in np.ndindex(*lengths) if f <= tuple(-place % n for place, n in zip(f, lengths, strict=True))]
    angles = np.array(kept) / np.array(lengths) @ np.indices(size).reshape(len(size), -1)
    weights = np.array([1.0 if not any(f) else 2.0 for f in kept]) / math.prod(lengths)
    waves = np.exp(-2j * np.pi * angles)
    return np.concatenate([waves.real, waves.imag]), weights


def _phases(blocks: Array, strides: tuple[int, ...], xp: Namespace) -> Array:
    """Return blocks (groups, n, c, *kernel) with every s-th tap of an axis a channel of its own, at unit stride."""
    if max(strides) == 1:
        return blocks
    lead, size = tuple(blocks.shape[:3]), tuple(blocks.shape[3:])
    parts = [-(-k // s) for k, s in zip(size, strides, strict=True)]
    pads = [(0, p * s - k) for p, s, k in zip(parts, strides, size, strict=True)]
    padded = xpx.pad(blocks, [(0, 0)] * 3 + pads)
    split = xp.reshape(padded, (*lead, *(n for pair in zip(parts, strides, strict=True) for n in pair)))
    order = (0, 1, 2, *range(4, split.ndim, 2), *range(3, split.ndim, 2))
    return xp.reshape(xp.permute_dims(split, order), (*lead[:2], lead[2] * math.prod(strides), *parts))


def _unphased(phases: Array, strides: tuple[int, ...], shape: tuple[int, ...], xp: Namespace) -> Array:
    """Return phases as the blocks of `shape` that they came from."""
    if max(strides) == 1:
        return phases
    ndim, parts = len(strides), tuple(phases.shape[3:])
    split = xp.reshape(phases, (*shape[:3], *strides, *parts))
    order = (0, 1, 2, *(3 + offset + axis for axis in range(ndim) for offset in (ndim, 0)))
    joined = xp.reshape(
        xp.permute_dims(split, order), (*shape[:3], *(p * s for p, s in zip(parts, strides, strict=True)))
    )
    return joined[(..., *(slice(0, k) for k in shape[3:]))]
