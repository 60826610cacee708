"""The three bilinear maps of a convolution on checked arrays: the references of the accelerated operations.

With ``x~`` the extended image and ``W_t`` the matrix (c_out, c_in) of tap t, the features are
``y = sum_t W_t x~[window t]``. The map is linear in the image and linear in the kernel; transposing it in the one and
in the other gives the two adjoints, and all three are sums over the taps of one matrix product each.
"""

from __future__ import annotations

from typing import Any

import array_api_extra as xpx

from convla._array import device_of, is_numpy, namespace
from convla._boundary import extend, fold
from convla._dispatch import accelerated
from convla.geometry import ConvGeometry
from convla.typing import Array, Namespace

__all__ = ["correlate", "correlate_image_adjoint", "correlate_kernel_adjoint", "prepared_kernel"]


def _fastest(array: Array, *_others: Array | ConvGeometry) -> str:
    """Return the engine for "auto": the compiled kernels, which were faster where docs/performance.md measures."""
    if is_numpy(array):
        return "numba"
    return "cuda"


@accelerated("prepared_kernel", prefer=_fastest)
def prepared_kernel(kernel: Array, geometry: ConvGeometry) -> Any:  # noqa: ARG001
    """Return what the next two operations take in the kernel's place where it stays the same for many calls.

    An engine may keep the kernel's entries there in the order that it reads them in. The reference reads the kernel.
    """
    return kernel


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
