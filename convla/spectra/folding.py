"""Maps that are one convolution: sums of convolutions, factors for channels before and after, and skip connections."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from convla.algebra import Diagonal, Identity, Product, Scaled, Sum
from convla.geometry import ConvGeometry
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.certificate import U64, gamma
from convla.spectra.ritz import FloatArray
from convla.spectra.roundoff import schur_bound

__all__ = ["Folded", "folded"]

_UNSEEN = 2.0**-900  # of an entry of order 1, more than what has become subnormal or vanished


class Folded(NamedTuple):
    """A map as one convolution, in float64.

    Attributes
    ----------
    operator : ConvOperator
    error : float
        A bound of the norm of the difference.
    """

    operator: ConvOperator
    error: float


class _Kernel(NamedTuple):
    """A kernel of sums and products, the same sums of their moduli, and how many roundings an entry has met."""

    values: FloatArray
    moduli: FloatArray
    geometry: ConvGeometry
    roundings: int


def folded(linear_map: LinearMap) -> Folded | None:
    """Return a map as one convolution where it is one: batch normalisation and skip connections are folded in.

    Parameters
    ----------
    linear_map : LinearMap
        Of NumPy arrays, with parts of order 1.

    Returns
    -------
    Folded or None
        None where it is a convolution itself, or not seen to be one.

    Notes
    -----
    With one geometry the kernels of a sum add up. A factor for each channel after or before a convolution multiplies
    the kernel; an identity, or a factor for each channel, beside one that keeps the positions is a kernel with one tap,
    the one by which each output reads its own position.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, diagonal, identity
    >>> from convla.spectra.folding import folded
    >>> convolution = ConvOperator(np.array([[[1.0, 2.0, 3.0]]]), (8,))
    >>> block = identity((1, 8)) + diagonal(np.array([0.5]), (1, 8)) @ convolution
    >>> folded(block).operator.kernel
    array([[[0.5, 2. , 1.5]]])
    """
    if isinstance(linear_map, ConvOperator):
        return None
    kernel = _kernel_of(linear_map)
    if kernel is None:
        return None
    operator = ConvOperator(kernel.values, kernel.geometry, order=linear_map.order)
    moduli = operator.with_kernel(kernel.moduli)
    return Folded(operator, gamma(kernel.roundings, U64) * schur_bound(moduli) + _UNSEEN * max(operator.shape))


def _kernel_of(linear_map: LinearMap) -> _Kernel | None:
    if isinstance(linear_map, ConvOperator):
        values = np.asarray(linear_map.kernel, np.float64)
        return _Kernel(values, np.abs(values), linear_map.geometry, 0)
    if isinstance(linear_map, Scaled):
        inner = _kernel_of(linear_map.unscaled)
        factor = float(linear_map.factor)  # of order 1 or less
        return None if inner is None else _multiplied(inner, np.array(factor), 2)
    if isinstance(linear_map, Product):
        return _of_product(linear_map)
    return _of_sum(linear_map) if isinstance(linear_map, Sum) else None


def _multiplied(kernel: _Kernel, factors: FloatArray, roundings: int) -> _Kernel:
    return _Kernel(
        kernel.values * factors, kernel.moduli * np.abs(factors), kernel.geometry, kernel.roundings + roundings
    )


def _of_product(product: Product) -> _Kernel | None:
    """Return the kernel of one convolution among factors for channels."""
    channels = [_channel_factors(part) for part in product.parts]
    places = [place for place, factors in enumerate(channels) if factors is None]
    kernel = _kernel_of(product.parts[places[0]]) if len(places) == 1 else None
    if kernel is None:
        return None
    geometry = kernel.geometry
    group = np.arange(geometry.out_channels) // (geometry.out_channels // geometry.groups)
    read = group[:, None] * geometry.kernel_shape[1] + np.arange(geometry.kernel_shape[1])
    ones = (1,) * geometry.ndim
    for place, factors in enumerate(channels):
        if factors is not None:
            spread = factors[:, None] if place < places[0] else factors[read]
            kernel = _multiplied(kernel, spread.reshape(*spread.shape, *ones), 3)
    return kernel


def _of_sum(total: Sum) -> _Kernel | None:
    """Return the kernel of a sum of convolutions of one geometry, and of factors for channels."""
    channels = [_channel_factors(part) for part in total.parts]
    kernels = [_kernel_of(part) for part, factors in zip(total.parts, channels, strict=True) if factors is None]
    first = kernels[0] if kernels else None
    if first is None:
        return None
    found: list[_Kernel] = []
    for kernel in kernels:
        if kernel is None or kernel.geometry != first.geometry:
            return None
        found.append(kernel)
    for factors in channels:
        if factors is not None:
            delta = _delta(factors, first.geometry)
            if delta is None:
                return None
            found.append(_Kernel(delta, np.abs(delta), first.geometry, 2))
    values = np.sum([kernel.values for kernel in found], axis=0)
    moduli = np.sum([kernel.moduli for kernel in found], axis=0)
    return _Kernel(values, moduli, first.geometry, max(kernel.roundings for kernel in found) + len(found))


def _delta(factors: FloatArray, geometry: ConvGeometry) -> FloatArray | None:
    """Return the kernel of one tap that multiplies each channel by its factor; None where no tap reads in place."""
    if geometry.range_shape != geometry.domain_shape or set(geometry.stride) != {1}:
        return None
    taps = []
    for (low, _), d, k in zip(geometry.padding, geometry.dilation, geometry.kernel_size, strict=True):
        tap, rest = divmod(low, d)
        if rest or tap >= k:
            return None
        taps.append(tap)
    kernel = np.zeros(geometry.kernel_shape)
    channel = np.arange(geometry.out_channels)
    here = tuple(np.full(channel.shape, tap) for tap in taps)
    kernel[(channel, channel % geometry.kernel_shape[1], *here)] = factors
    return kernel


def _channel_factors(linear_map: LinearMap) -> FloatArray | None:
    """Return the factor of each channel, where a map does no more than multiply by them."""
    if isinstance(linear_map, Identity):
        return np.ones(linear_map.domain_shape[0])
    if isinstance(linear_map, Diagonal) and math.prod(linear_map.values.shape) == linear_map.domain_shape[0]:
        return np.asarray(linear_map.values, np.float64).reshape(-1)
    if isinstance(linear_map, Scaled):
        inner = _channel_factors(linear_map.unscaled)
        return None if inner is None else inner * float(linear_map.factor)
    return None
