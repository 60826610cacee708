"""The three bilinear maps of a convolution on checked arrays: the references of the accelerated operations.

With ``x~`` the extended image and ``W_t`` the matrix (c_out, c_in) of tap t, the features are
``y = sum_t W_t x~[window t]``. The map is linear in the image and linear in the kernel; transposing it in the one and
in the other gives the two adjoints, and all three are sums over the taps of one matrix product each.
"""

from __future__ import annotations

import functools
import math

import array_api_extra as xpx

from convla._array import device_of, namespace
from convla._boundary import extend, fold
from convla._dispatch import accelerated
from convla.geometry import ConvGeometry
from convla.typing import Array, Namespace

__all__ = ["correlate", "correlate_image_adjoint", "correlate_kernel_adjoint"]


# Measured for float64 on one thread, in seconds; what matters is where the two sums below cross.
_PRODUCT = 1.0 / 8e9  # of one term of a direct sum
_TRANSFORM = 1.5e-9  # of one entry of a real transform, for each doubling of its length
_WAVE = 4e-9  # of one term of a sum over channels, at one frequency
_LEAST_GAIN = 2.0  # direct sums are the more accurate for each entry


def _fastest(_array: Array, _other: Array, geometry: ConvGeometry) -> str:
    """Return the engine for "auto": transforms for many taps, else the compiled kernels; see docs/performance.md."""
    return "fft" if _transforms_are_quicker(geometry) else ""


@functools.lru_cache(maxsize=256)
def _transforms_are_quicker(geometry: ConvGeometry) -> bool:
    out, inner, *taps = geometry.kernel_shape
    direct = out * inner * math.prod(taps) * math.prod(geometry.output_shape) * _PRODUCT
    period = math.prod(geometry.padded_shape)
    transforms = (out + geometry.in_channels) * period * math.log2(period + 1) * _TRANSFORM
    return _LEAST_GAIN * (transforms + out * inner * period / 2 * _WAVE) < direct


@accelerated("correlate", prefer=_fastest)
def correlate(image: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Cross-correlate images (..., c_in, *image) with a kernel: (..., c_out, *output)."""
    xp = namespace(image, kernel)
    batch = tuple(image.shape[: -geometry.ndim - 1])
    extended = extend(image, geometry, xp)
    features = None
    for weight, (_, window) in zip(_tap_matrices(kernel, geometry, xp), geometry.windows(), strict=True):
        term = xp.matmul(weight, _grouped(extended[(..., *window)], batch, geometry, xp))
        features = term if features is None else features + term
    assert features is not None
    return xp.reshape(features, (*batch, *geometry.range_shape))


@accelerated("correlate_image_adjoint", prefer=_fastest)
def correlate_image_adjoint(features: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``image -> correlate(image, kernel)`` to features: (..., c_in, *image)."""
    xp = namespace(features, kernel)
    batch = tuple(features.shape[: -geometry.ndim - 1])
    columns = _grouped(features, batch, geometry, xp)
    extended = xp.zeros(
        (*batch, geometry.in_channels, *geometry.padded_shape), dtype=features.dtype, device=device_of(features)
    )
    for weight, (_, window) in zip(_tap_matrices(kernel, geometry, xp), geometry.windows(), strict=True):
        term = xp.matmul(xp.matrix_transpose(weight), columns)
        term = xp.reshape(term, (*batch, geometry.in_channels, *geometry.output_shape))
        extended = xpx.at(extended)[(..., *window)].add(term)
    return fold(extended, geometry, xp)


@accelerated("correlate_kernel_adjoint", prefer=_fastest)
def correlate_kernel_adjoint(features: Array, image: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``kernel -> correlate(image, kernel)`` to features, summed over the batch."""
    xp = namespace(features, image)
    batch = tuple(image.shape[: -geometry.ndim - 1])
    columns = _grouped(features, batch, geometry, xp)
    extended = extend(image, geometry, xp)
    gradients = []
    for _, window in geometry.windows():
        rows = xp.matrix_transpose(_grouped(extended[(..., *window)], batch, geometry, xp))
        products = xp.matmul(columns, rows)
        if batch:
            products = xp.sum(products, axis=tuple(range(len(batch))), dtype=products.dtype)
        gradients.append(xp.reshape(products, geometry.kernel_shape[:2]))
    return xp.reshape(xp.stack(gradients, axis=-1), geometry.kernel_shape)


def _tap_matrices(kernel: Array, geometry: ConvGeometry, xp: Namespace) -> list[Array]:
    """Return for every tap its matrices (groups, c_out // groups, c_in // groups), each contiguous for the BLAS."""
    out, inner, *_ = geometry.kernel_shape
    taps = xp.stack([kernel[(..., *tap)] for tap, _ in geometry.windows()])
    taps = xp.reshape(taps, (-1, geometry.groups, out // geometry.groups, inner))
    return [taps[t, ...] for t in range(taps.shape[0])]


def _grouped(array: Array, batch: tuple[int, ...], geometry: ConvGeometry, xp: Namespace) -> Array:
    """Return (..., channels, *positions) as (..., groups, channels // groups, positions)."""
    channels = array.shape[len(batch)]
    return xp.reshape(array, (*batch, geometry.groups, channels // geometry.groups, -1))
