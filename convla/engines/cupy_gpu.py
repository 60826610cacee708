"""Cross-correlation and its two adjoints on CuPy arrays: one large matrix product each, instead of one for each tap.

On a GPU many small products are bound by launches; so the windows of all taps are gathered in one strided copy, and
cuBLAS gets a single product over channels and taps. The price is memory: the copy is as many times larger than the
image as the kernel has taps.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from convla._boundary import extend, fold
from convla.geometry import ConvGeometry
from convla.typing import Array

__all__ = ["correlate", "correlate_image_adjoint", "correlate_kernel_adjoint"]


def correlate(image: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Cross-correlate; see the reference of the same name."""
    batch = image.shape[: -geometry.ndim - 1]
    features = _weights(kernel, geometry) @ _columns(image, geometry)
    return features.reshape(*batch, *geometry.range_shape)


def correlate_image_adjoint(features: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``image -> correlate(image, kernel)``; see the reference of the same name."""
    xp = _cupy()
    batch = features.shape[: -geometry.ndim - 1]
    rows = features.reshape(*batch, geometry.groups, geometry.out_channels // geometry.groups, -1)
    columns = _weights(kernel, geometry).swapaxes(-1, -2) @ rows
    columns = columns.reshape(*batch, geometry.in_channels, *geometry.kernel_size, *geometry.output_shape)
    extended = xp.zeros((*batch, geometry.in_channels, *geometry.padded_shape), features.dtype)
    everything = (slice(None),) * geometry.ndim
    for tap, window in geometry.windows():
        extended[(..., *window)] += columns[(..., *tap, *everything)]
    return fold(extended, geometry, xp)


def correlate_kernel_adjoint(features: Array, image: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``kernel -> correlate(image, kernel)``; see the reference of the same name."""
    batch = features.shape[: -geometry.ndim - 1]
    rows = features.reshape(*batch, geometry.groups, geometry.out_channels // geometry.groups, -1)
    products = rows @ _columns(image, geometry).swapaxes(-1, -2)
    return products.sum(axis=tuple(range(len(batch)))).reshape(geometry.kernel_shape)


def _columns(image: Array, geometry: ConvGeometry) -> Array:
    """Return the windows of all taps: (..., groups, c_in // groups * taps, positions)."""
    xp = _cupy()
    n = geometry.ndim
    extended = xp.ascontiguousarray(extend(image, geometry, xp))
    steps = extended.strides[-n:]
    windows = xp.lib.stride_tricks.as_strided(
        extended,
        (*extended.shape[:-n], *geometry.kernel_size, *geometry.output_shape),
        (
            *extended.strides[:-n],
            *(step * d for step, d in zip(steps, geometry.dilation, strict=True)),
            *(step * s for step, s in zip(steps, geometry.stride, strict=True)),
        ),
    )
    return windows.reshape(*image.shape[: -n - 1], geometry.groups, -1, math.prod(geometry.output_shape))


def _weights(kernel: Array, geometry: ConvGeometry) -> Array:
    return kernel.reshape(geometry.groups, geometry.out_channels // geometry.groups, -1)


def _cupy() -> Any:
    return importlib.import_module("cupy")
