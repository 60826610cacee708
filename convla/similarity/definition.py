"""Convolutional similarity by its definition: every pair of filters, every pair of channels. The others' reference."""

from __future__ import annotations

import math

from convla._array import accumulation_dtype
from convla._validate import check_array
from convla.conv import convolve, cross_correlate
from convla.similarity.scaling import times_powers
from convla.similarity.signatures import scale_filters, zero_kernel_error
from convla.typing import Array, Namespace

__all__ = ["similarity_by_definition"]

# About this many products are handled at a time: 32 MiB in float64.
PAIRWISE_NUMBERS = 2**22


def similarity_by_definition(kernels: Array, normalized: bool, gradient: bool, xp: Namespace) -> tuple[Array, Array]:
    """Evaluate the definition, or that of the kernels scaled to norm 1, and its gradient by the chain rule."""
    kernels = check_array("kernels", kernels, xp)
    dtype = kernels.dtype
    kernels = xp.astype(kernels, accumulation_dtype(kernels, xp), copy=False)
    if not normalized:
        value, slope = _defined_value(kernels, xp), _defined_gradient(kernels, xp) if gradient else kernels
        return value, xp.astype(slope, dtype, copy=False)
    kernels, exponents = scale_filters(kernels, xp)
    axes = tuple(range(1, kernels.ndim))
    norms = xp.sqrt(xp.sum(kernels * kernels, axis=axes, keepdims=True))
    if bool(xp.any(norms == 0)):
        raise zero_kernel_error(norms, xp)
    units = kernels / norms
    value, slope = _defined_value(units, xp), kernels
    if gradient:
        slope = _defined_gradient(units, xp)
        slope = (slope - xp.sum(slope * units, axis=axes, keepdims=True) * units) / norms
        slope = times_powers(slope, xp.reshape(-exponents, tuple(norms.shape)), xp)
    return value, xp.astype(slope, dtype, copy=False)


def _defined_value(kernels: Array, xp: Namespace) -> Array:
    value = xp.sum(kernels[:0, ...])
    for i, batch in _filter_channels(kernels):
        if i + 1 < kernels.shape[0]:
            products = _all_products(batch, kernels[i + 1 :, ...], xp)
            value = value + xp.sum(products * products)
    return value


def _defined_gradient(kernels: Array, xp: Namespace) -> Array:
    shape = tuple(kernels.shape)
    if shape[0] == 1:
        return 0 * kernels
    slopes = []
    for i, batch in _filter_channels(kernels):
        others = xp.concat((kernels[:i, ...], kernels[i + 1 :, ...]), axis=0)
        # The adjoint of correlating with a kernel is convolving with it; only the kernel's own support is asked for.
        products = _all_products(batch, others, xp)
        slopes.append(2 * convolve(products, xp.reshape(others, (1, -1, *shape[2:])), padding="valid"))
    return xp.reshape(xp.concat(slopes, axis=0), shape)


def _filter_channels(kernels: Array) -> list[tuple[int, Array]]:
    """Return batches of each filter's channels, few enough that their products with all others fit the memory."""
    filters, channels, *size = kernels.shape
    step = max(1, PAIRWISE_NUMBERS // (filters * channels * math.prod(2 * k - 1 for k in size)))
    starts = range(0, channels, step)
    return [(i, kernels[i, c : min(c + step, channels), ...]) for i in range(filters) for c in starts]


def _all_products(channels: Array, kernels: Array, xp: Namespace) -> Array:
    """Return the full cross-correlations of channels (n, *kernel) with all of kernels: (n, kernels, *lags)."""
    products: Array = cross_correlate(
        channels[:, None, ...], xp.reshape(kernels, (-1, 1, *tuple(kernels.shape)[2:])), padding="full"
    )
    return products
