"""Vectors that stand for the filters of a layer, so that the similarity of two filters is an inner product.

The summed autocorrelation of a filter is such a signature, its scaled power spectrum another. What is here adds up
pairs of signatures without forming any, in the three forms that convolutional similarity needs: plain, divided by the
energies, and for filters of which powers of two were split off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from convla._array import accumulation_dtype, device_of, namespace, on_device_of
from convla.autocorrelation import correlate_lags, summed_autocorrelations, summed_cross_correlations
from convla.similarity.power_spectrum import (
    filter_by_spectrum,
    spectrum_weights,
    summed_cross_spectra,
    summed_power_spectra,
)
from convla.similarity.scaling import times_powers
from convla.typing import Array, Engine, Namespace

__all__ = [
    "SAFE_ENERGY",
    "Form",
    "energies_are_safe",
    "normalized_pairs",
    "scale_filters",
    "scaled_pairs",
    "signature_form",
    "sums_of_others",
    "zero_kernel_error",
]

# Signatures are squares of the kernels and are multiplied in pairs: with energies in this range nothing can leave
# float64 on the way.
SAFE_ENERGY = (2.0**-250, 2.0**250)


class Form(NamedTuple):
    """A choice of signatures S_i of the filters, with <S_i, S_j> the similarity of filters i and j."""

    signatures: Callable[[Array, Engine], Array]
    derivative: Callable[[Array, Array], Array]
    pull_back: Callable[[Array, Array, Engine], Array]
    """The gradient, with respect to the kernels, of the sum over i of <W_i, S_i>, for even W."""
    unit: Array
    """The vector e with <e, S_i> = norm(K_i)^2."""


def signature_form(method: str, kernels: Array) -> Form:
    """Return the signatures of a method, "autocorrelation" or "spectral", for kernels of this size and library."""
    xp = namespace(kernels)
    size = tuple(kernels.shape[2:])
    if method == "spectral":
        return Form(
            signatures=lambda k, _: summed_power_spectra(k),
            derivative=lambda k, v: 2.0 * summed_cross_spectra(k, v),
            pull_back=lambda k, w, _: filter_by_spectrum(k, 2.0 * w),
            unit=on_device_of(spectrum_weights(size), kernels, xp),
        )
    lags = math.prod(2 * k - 1 for k in size)
    return Form(
        signatures=lambda k, engine: summed_autocorrelations(k, engine=engine),
        derivative=_autocorrelation_derivative,
        pull_back=lambda k, w, engine: correlate_lags(k, 2 * w, engine=engine),
        unit=on_device_of(np.arange(lags) == lags // 2, kernels, xp, dtype=accumulation_dtype(kernels, xp)),
    )


def _autocorrelation_derivative(kernels: Array, direction: Array) -> Array:
    # Exchanging the two arrays of a cross-correlation reverses the lags.
    cross = summed_cross_correlations(kernels, direction)
    return cross + namespace(cross).flip(cross, axis=1)


def sums_of_others(signatures: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return for each filter of (..., c_out, m) the sum of the signatures before it, and of all others'.

    The others' are added up, not subtracted from the total: a large signature must not swallow small ones.
    """
    before = _sums_before(signatures, xp)
    axis = signatures.ndim - 2
    after = xp.flip(_sums_before(xp.flip(signatures, axis=axis), xp), axis=axis)
    return before, before + after


def _sums_before(signatures: Array, xp: Namespace) -> Array:
    sums = xp.cumulative_sum(signatures[..., :-1, :], axis=signatures.ndim - 2)
    return xp.concat((xp.zeros_like(signatures[..., :1, :]), sums), axis=signatures.ndim - 2)


def normalized_pairs(signatures: Array, energies: Array, unit: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return the similarity of the filters scaled to norm 1, and the W whose pull-back is its gradient."""
    if bool(xp.any(energies == 0)):
        raise zero_kernel_error(energies, xp)
    energies = energies[..., None]
    signatures = signatures / energies
    before, others = sums_of_others(signatures, xp)
    # The derivative of 1 / energy takes off the component along the filter itself.
    along = xp.sum(others * signatures, axis=-1, keepdims=True)
    return xp.sum(signatures * before, axis=(-2, -1)), (others - along * unit) / energies


def energies_are_safe(energies: Array, xp: Namespace) -> bool:
    """Tell whether products of filters with these squared norms stay in float64; NaN, infinity and 0 are not safe."""
    low, high = SAFE_ENERGY
    return bool(xp.all((energies >= low) & (energies <= high)))


def scale_filters(kernels: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return the kernels with each filter's largest modulus brought to [1, 2), and the exponents taken out."""
    largest = xp.max(xp.abs(xp.reshape(kernels, (kernels.shape[0], -1))), axis=1)
    largest = xp.where(largest > 0, largest, xp.max(largest))
    exponents = xp.floor(xp.log2(xp.where(largest > 0, largest, xp.ones_like(largest))))
    return times_powers(kernels, xp.reshape(-exponents, (-1, *(1,) * (kernels.ndim - 1))), xp), exponents


def scaled_pairs(signatures: Array, exponents: Array, xp: Namespace) -> tuple[Array, Array, Array]:
    """Return value, weights and the gradient's exponents for the filters 2^exponents[i] times those of the signatures.

    The largest filter stands apart, with an exponent of its own; all terms of the others with each other then have the
    one factor `ratio`, and what underflows is negligible beside the largest term of the same sum.
    """
    is_top = xp.arange(signatures.shape[0], device=device_of(signatures)) == xp.argmax(exponents)
    first = xp.max(exponents)
    second = xp.max(xp.where(is_top, xp.min(exponents) + 0 * exponents, exponents))
    top = xp.sum(xp.where(is_top[:, None], signatures, 0 * signatures), axis=0)
    shares = times_powers(signatures, 2 * (exponents - second)[:, None], xp)
    rest = xp.where(is_top[:, None], 0 * signatures, shares)
    ratio = times_powers(xp.ones_like(first), 2 * (second - first), xp)
    before, others = sums_of_others(rest, xp)
    value = xp.sum(top * xp.sum(rest, axis=0)) + ratio * xp.sum(rest * before)
    weights = xp.where(is_top[:, None], others, top + ratio * others)
    powers = exponents + 2 * xp.where(is_top, second + 0 * exponents, first + 0 * exponents)
    return times_powers(value, 2 * (first + second), xp), weights, powers


def zero_kernel_error(energies: Array, xp: Namespace) -> ValueError:
    """Return the error that names the filter whose energy is 0."""
    zero = int(xp.argmin(xp.reshape(energies, (-1,))))
    return ValueError(f"normalized similarity needs kernels that are not 0, got kernels[{zero}] = 0")
