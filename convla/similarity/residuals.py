"""How far matrices are from orthonormal, and kernels from orthonormal under every shift.

M M^H - I and M^H M - I have the same non-zero eigenvalues but for -1, of which the larger has as many more as it has
rows more. So the smaller one is formed, and what the other adds to a sum of squares is a count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import array_api_extra as xpx

from convla._array import accumulation_dtype, device_of, on_device_of
from convla.similarity.power_spectrum import spectrum_weights, transform_length
from convla.typing import Array, Namespace

__all__ = ["correlation_residual", "gram_residual", "residual_times"]

SPECTRAL_TAPS = 20
"""From this many taps on, transforms cost less than a matrix product for each lag."""


def gram_residual(matrices: Array, unit: float, xp: Namespace) -> tuple[Array, int]:
    """Return M M^H - unit I of matrices (..., r, c), or M^H M - unit I where that is smaller, and max(0, r - c)."""
    rows, columns = matrices.shape[-2:]
    adjoint = xp.matrix_transpose(matrices)
    if xp.isdtype(matrices.dtype, "complex floating"):
        adjoint = xp.conj(adjoint)
    gram = matrices @ adjoint if rows <= columns else adjoint @ matrices
    identity = xp.eye(min(rows, columns), dtype=gram.dtype, device=device_of(gram))
    return gram - unit * identity, max(0, rows - columns)


def residual_times(residual: Array, matrices: Array) -> Array:
    """Return (M M^H - unit I) M, which is M (M^H M - unit I), with the residual of `gram_residual`."""
    rows, columns = matrices.shape[-2:]
    return residual @ matrices if rows <= columns else matrices @ residual


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
    if math.prod(size) >= SPECTRAL_TAPS:
        return _by_frequency(blocks, strides, unit, xp, gradient)
    if max(strides) > 1 or n <= c:
        return _by_lag(blocks, strides, unit, xp, gradient)
    exchange = (0, 2, 1, *range(3, blocks.ndim))
    value, slope = _by_lag(xp.permute_dims(blocks, exchange), strides, unit, xp, gradient)
    return value + groups * (n - c) * unit**2, xp.permute_dims(slope, exchange)


def _by_lag(blocks: Array, strides: tuple[int, ...], unit: float, xp: Namespace, gradient: bool) -> tuple[Array, Array]:
    shape = tuple(blocks.shape)
    total = xp.zeros((), dtype=xp.float64, device=device_of(blocks))
    slope = xp.zeros_like(blocks) if gradient else blocks
    identity = unit * xp.eye(shape[1], dtype=blocks.dtype, device=device_of(blocks))
    for weight, (high, low) in _half_lags(shape[3:], strides):
        there, here = (xp.reshape(blocks[taps], (*shape[:2], -1)) for taps in (high, low))
        residual = here @ xp.matrix_transpose(there)
        if high == low:
            residual = residual - identity
        total = total + weight * xp.sum(residual * residual, dtype=xp.float64)
        if gradient:
            terms = [(low, residual @ there)]
            if high == low:  # the other term is the same
                weight = 2
            else:
                terms.append((high, xp.matrix_transpose(residual) @ here))
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
    phases = _phases(xp.astype(blocks, accumulation_dtype(blocks, xp), copy=False), strides, xp)
    size = tuple(phases.shape[3:])
    length, axes = transform_length(size), tuple(range(3, phases.ndim))
    spectrum = xp.fft.rfftn(phases, s=length, axes=axes)
    matrices = xp.permute_dims(spectrum, (*axes, 0, 1, 2))
    residual, missing = gram_residual(matrices, unit, xp)
    squares = xp.sum(xp.real(residual) ** 2 + xp.imag(residual) ** 2, axis=(-3, -2, -1))
    # A frequency of the half spectrum counts once or twice.
    shares = on_device_of(spectrum_weights(size) ** 2, blocks, xp)
    total = xp.sum(xp.reshape(squares, (-1,)) * shares) + blocks.shape[0] * missing * unit**2
    if not gradient:
        return total, blocks
    back = (*(len(axes) + axis for axis in range(3)), *range(len(axes)))
    slope = 4.0 * xp.permute_dims(residual_times(residual, matrices), back)
    samples = xp.fft.irfftn(slope, s=length, axes=axes)[(..., *(slice(0, k) for k in size))]
    return total, xp.astype(_unphased(samples, strides, tuple(blocks.shape), xp), blocks.dtype, copy=False)


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
