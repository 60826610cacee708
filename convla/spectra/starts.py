"""Where an iteration for the largest singular values starts: the symbol's plane waves, and random vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convla._array import namespace, on_device_of
from convla.operators import ConvOperator
from convla.spectra.maximiser import SymbolPeak, start_vectors, symbol_peaks
from convla.spectra.symbol import Symbol
from convla.typing import Array

__all__ = ["Start", "structured_start"]

# Of the parts of a start vector, next to the even plane wave of the symbol's best maximum.
_ODD_WEIGHT = 0.3
_LESSER_WEIGHT = 0.3
_NOISE_WEIGHT = 0.05


class Start(NamedTuple):
    """An image to start from, and what it is made of.

    Attributes
    ----------
    image : array of shape (1, c_in, *image)
    random : float
        The norm of the random part, relative to the whole: 1 where a search for waves would not pay.
    peaks : tuple of SymbolPeak
        The maxima whose waves are in it.
    """

    image: Array
    random: float
    peaks: tuple[SymbolPeak, ...]


def structured_start(
    operator: ConvOperator, rng: np.random.Generator, peaks: Sequence[SymbolPeak] | None = None
) -> Start:
    """Return a start vector of the symbol's plane waves with a random part.

    Parameters
    ----------
    operator : ConvOperator
    rng : numpy.random.Generator
    peaks : sequence of SymbolPeak, optional
        Maxima of the symbol's norm, the best first, if already known.

    Returns
    -------
    Start

    Notes
    -----
    The lesser maxima take part because the largest singular value may belong to any that is nearly as high: from the
    best one alone the iteration can settle, with a small residual, on the second singular value. The random part takes
    part because no symmetry of the kernel hides a vector from it.
    """
    geometry, kernel = operator.geometry, operator.kernel
    xp = namespace(kernel)
    noise = _unit(on_device_of(rng.standard_normal(operator.domain_shape), kernel, xp, dtype=kernel.dtype))
    symbol = Symbol(kernel, geometry)
    # On few positions the search costs more than the convolutions it saves, and the edges, which it ignores, rule.
    if math.prod(4 * degree + 1 for degree in symbol.degrees) > math.prod(geometry.output_shape) / 2:
        return Start(noise[None, ...], 1.0, ())
    if peaks is None:
        peaks = symbol_peaks(symbol, rng=rng)
    start, total = _NOISE_WEIGHT * noise, _NOISE_WEIGHT
    for rank, peak in enumerate(peaks):
        waves = start_vectors(symbol, peak, geometry.image_shape, windowed=geometry.boundary != "circular")
        weight = 1.0 if rank == 0 else _LESSER_WEIGHT
        start = start + weight * (_unit(waves[0, ...]) + _ODD_WEIGHT * _unit(waves[1, ...]))
        total += weight * (1 + _ODD_WEIGHT)
    return Start(start[None, ...], _NOISE_WEIGHT / total, tuple(peaks))


def _unit(array: Array) -> Array:
    """Return an array divided by its norm; zero stays zero."""
    xp = namespace(array)
    norm = xp.linalg.vector_norm(xp.reshape(array, (-1,)))
    return array / xp.where(norm > 0, norm, xp.ones_like(norm))
