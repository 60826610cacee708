"""Power spectra of kernels summed over their channels: what `convla.autocorrelation` has, in the frequency domain.

A discrete Fourier transform with 2 k - 1 samples or more along each axis holds all lags of a kernel of sizes k without
wrapping. The power spectra are scaled so that the plain inner product of two of them is that of the two summed
autocorrelations. They are non-negative, so nothing cancels in it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from convla._array import accumulation_dtype, namespace, on_device_of
from convla.autocorrelation import filter_batches
from convla.typing import Array, Namespace

__all__ = ["filter_by_spectrum", "spectrum_weights", "summed_cross_spectra", "summed_power_spectra", "transform_length"]


def summed_power_spectra(kernels: Array) -> Array:
    """Return the scaled power spectra of floating-point kernels (c_out, c_in, *kernel): (c_out, frequencies)."""
    return summed_cross_spectra(kernels, kernels)


def summed_cross_spectra(first: Array, second: Array) -> Array:
    """Return the real parts of the scaled cross spectra of first[i, c] and second[i, c], summed over c."""
    xp = namespace(first, second)
    size = tuple(first.shape[2:])
    weights = on_device_of(spectrum_weights(size), first, xp)

    def cross_spectra(batch: slice) -> Array:
        a = _transform(first[batch, ...], xp)
        b = a if second is first else _transform(second[batch, ...], xp)
        return xp.sum(xp.real(a) * xp.real(b) + xp.imag(a) * xp.imag(b), axis=1)

    spectra = _over_batches(cross_spectra, first, xp)
    return xp.reshape(spectra, (spectra.shape[0], -1)) * weights


def filter_by_spectrum(kernels: Array, spectra: Array) -> Array:
    """Filter each kernel by its own even function, given as scaled spectra (c_out, frequencies), on its support.

    With the scaled spectrum of an even function of the lag it is `convla.autocorrelation.correlate_lags`.
    """
    xp = namespace(kernels, spectra)
    size = tuple(kernels.shape[2:])
    response = spectra / on_device_of(spectrum_weights(size), kernels, xp)
    length = transform_length(size)
    response = xp.reshape(response, (-1, 1, *length[:-1], length[-1] // 2 + 1))
    support = (..., *(slice(0, k) for k in size))

    def filtered(batch: slice) -> Array:
        transform = _transform(kernels[batch, ...], xp) * response[batch, ...]
        samples = xp.fft.irfftn(transform, s=length, axes=tuple(range(2, 2 + len(size))))
        return xp.astype(samples[support], kernels.dtype)

    return _over_batches(filtered, kernels, xp)


@functools.lru_cache(maxsize=64)
def spectrum_weights(size: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the factors (frequencies,) that scale power spectra; their inner product with one is the energy |K_i|^2.

    A frequency of the half spectrum that stands for two has the factor sqrt(2 / n), with n samples in all.
    """
    return np.sqrt(_multiplicity(size) / math.prod(transform_length(size)))


def _multiplicity(size: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return how many frequencies of the whole spectrum each of the half spectrum stands for, 1 or 2."""
    *lead, last = transform_length(size)
    counts = np.full((*lead, last // 2 + 1), 2.0)
    # The last length is odd, so only frequency 0 is its own mirror image.
    counts[..., 0] = 1.0
    return counts.reshape(-1)


def transform_length(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the samples per axis of a transform that holds all lags of kernels of this size."""
    return tuple(2 * k - 1 for k in size)


def _transform(kernels: Array, xp: Namespace) -> Array:
    axes = tuple(range(2, kernels.ndim))
    values = xp.astype(kernels, accumulation_dtype(kernels, xp), copy=False)
    return xp.fft.rfftn(values, s=transform_length(tuple(kernels.shape[2:])), axes=axes)


def _over_batches(function: Callable[[slice], Array], kernels: Array, xp: Namespace) -> Array:
    parts = [function(batch) for batch in filter_batches(tuple(kernels.shape))]
    return xp.concat(parts, axis=0) if len(parts) > 1 else parts[0]
