"""Cross-correlation and its two adjoints by fast Fourier transforms: for filters with many taps.

The extended image is taken for one period of a signal on a torus at least as large: none of the outputs that are kept
reaches around it, so that its circular correlation is the one that is sought. A dilated kernel has zeros between its
taps, features at a stride have zeros between them, and outputs between those at the stride are dropped.

Transforms and products are kept in complex128 for either dtype. Their error is small next to the norm of the result,
about ``log2(N) 2^-53`` times the norms of kernel and image, not next to each single entry, as that of direct sums is:
an entry much smaller than the others may have few correct digits. Where a proof needs a bound for each entry, it asks
for `engine="direct"`.
"""

from __future__ import annotations

import functools
from typing import Any

import array_api_extra as xpx
import scipy

from convla._array import device_of, is_numpy, namespace
from convla._boundary import extend, fold
from convla._dispatch import prepares
from convla.geometry import ConvGeometry
from convla.typing import Array, Namespace

__all__ = ["Spectrum", "correlate", "correlate_image_adjoint", "correlate_kernel_adjoint", "torus"]


class Spectrum:
    """The transform of a kernel that does not change, taken when first used: (groups, rows, channels, frequencies)."""

    def __init__(self, kernel: Array, geometry: ConvGeometry) -> None:
        self._kernel = kernel
        self._geometry = geometry

    @functools.cached_property
    def values(self) -> Array:
        """The spectrum of the dilated kernel."""
        geometry, xp = self._geometry, namespace(self._kernel)
        groups, (out, inner) = geometry.groups, geometry.kernel_shape[:2]
        extents = [(k - 1) * d + 1 for k, d in zip(geometry.kernel_size, geometry.dilation, strict=True)]
        spread = _spread(self._kernel, extents, geometry.dilation, geometry.ndim, xp)
        return xp.reshape(_transform(spread, geometry, xp), (groups, out // groups, inner, -1))


@prepares(Spectrum)
def correlate(image: Array, kernel: Array | Spectrum, geometry: ConvGeometry) -> Array:
    """Cross-correlate; see the reference of the same name."""
    xp = namespace(image)
    batch = tuple(image.shape[: -geometry.ndim - 1])
    waves = _grouped(_transform(extend(image, geometry, xp), geometry, xp), batch, geometry, xp)
    sums = _channel_sums(xp.conj(_spectrum(kernel, geometry)), waves[..., None, :, :], -2, xp)
    steps = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(geometry.output_shape, geometry.stride, strict=True))
    features = _back(sums, (*batch, geometry.out_channels), geometry, xp)[(..., *steps)]
    return xp.astype(features, image.dtype)


@prepares(Spectrum)
def correlate_image_adjoint(features: Array, kernel: Array | Spectrum, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``image -> correlate(image, kernel)``; see the reference of the same name."""
    xp = namespace(features)
    batch = tuple(features.shape[: -geometry.ndim - 1])
    waves = _grouped(_transform(_spread_features(features, geometry, xp), geometry, xp), batch, geometry, xp)
    sums = _channel_sums(_spectrum(kernel, geometry), waves[..., :, None, :], -3, xp)
    extended = _back(sums, (*batch, geometry.in_channels), geometry, xp)
    extended = extended[(..., *(slice(0, size) for size in geometry.padded_shape))]
    return xp.astype(fold(extended, geometry, xp), features.dtype)


def correlate_kernel_adjoint(features: Array, image: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``kernel -> correlate(image, kernel)``; see the reference of the same name."""
    xp = namespace(features, image)
    batch = tuple(image.shape[: -geometry.ndim - 1])
    rows = _grouped(_transform(_spread_features(features, geometry, xp), geometry, xp), batch, geometry, xp)
    columns = _grouped(_transform(extend(image, geometry, xp), geometry, xp), batch, geometry, xp)
    products = xp.conj(rows)[..., :, None, :] * columns[..., None, :, :]
    if batch:
        products = xp.sum(products, axis=tuple(range(len(batch))))
    taps = tuple(slice(0, (k - 1) * d + 1, d) for k, d in zip(geometry.kernel_size, geometry.dilation, strict=True))
    kernel = _back(products, geometry.kernel_shape[:2], geometry, xp)[(..., *taps)]
    return xp.astype(kernel, image.dtype)


def _spectrum(kernel: Array | Spectrum, geometry: ConvGeometry) -> Array:
    return (kernel if isinstance(kernel, Spectrum) else Spectrum(kernel, geometry)).values


def _channel_sums(spectrum: Array, waves: Array, axis: int, xp: Namespace) -> Array:
    """Sum the products of a kernel's spectrum and the waves of the channels over the channels, an axis of the two."""
    products = spectrum * waves
    return xp.squeeze(products, axis=axis) if products.shape[axis] == 1 else xp.sum(products, axis=axis)


def _grouped(waves: Array, batch: tuple[int, ...], geometry: ConvGeometry, xp: Namespace) -> Array:
    """Return spectra (..., channels, *frequencies) as (..., groups, channels // groups, frequencies)."""
    channels = waves.shape[len(batch)]
    return xp.reshape(waves, (*batch, geometry.groups, channels // geometry.groups, -1))


def _spread_features(features: Array, geometry: ConvGeometry, xp: Namespace) -> Array:
    sizes = [(n - 1) * s + 1 for n, s in zip(geometry.output_shape, geometry.stride, strict=True)]
    return _spread(features, sizes, geometry.stride, geometry.ndim, xp)


def _spread(array: Array, sizes: list[int], steps: tuple[int, ...], ndim: int, xp: Namespace) -> Array:
    """Return the array with its last axes drawn out to `sizes`, zeros between its entries."""
    if all(step == 1 for step in steps):
        return array
    zeros = xp.zeros((*array.shape[:-ndim], *sizes), dtype=array.dtype, device=device_of(array))
    spread: Array = xpx.at(zeros)[(..., *(slice(None, None, step) for step in steps))].set(array)
    return spread


def _transform(array: Array, geometry: ConvGeometry, xp: Namespace) -> Array:
    """Transform the last axes on the torus, in float64."""
    waves: Array = _fft(array, xp).rfftn(xp.astype(array, xp.float64), s=torus(geometry), axes=_axes(geometry))
    return waves


def _back(waves: Array, channels: tuple[int, ...], geometry: ConvGeometry, xp: Namespace) -> Array:
    """Transform back the spectra of (..., *channels), whose frequencies are flattened."""
    sizes = torus(geometry)
    waves = xp.reshape(waves, (*channels, *sizes[:-1], sizes[-1] // 2 + 1))
    array: Array = _fft(waves, xp).irfftn(waves, s=sizes, axes=_axes(geometry))
    return array


def _fft(array: Array, xp: Namespace) -> Any:
    # SciPy's is quicker than NumPy's, and computes on the thread that calls.
    return scipy.fft if is_numpy(array) else xp.fft


def _axes(geometry: ConvGeometry) -> tuple[int, ...]:
    return tuple(range(-geometry.ndim, 0))


@functools.lru_cache(maxsize=256)
def torus(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return sizes that the extended image fits into and that are quick to transform."""
    return tuple(int(scipy.fft.next_fast_len(size, real=True)) for size in geometry.padded_shape)
