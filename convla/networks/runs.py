"""Linear maps that stand together in a network, as one map: normalisations folded into layers, products of layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from convla.linear_map import LinearMap
from convla.networks.gains import matrix_gain, outward
from convla.networks.layers import Layer
from convla.spectra.certificate import U64, gamma

__all__ = ["dense_bound", "folded", "product_of"]

_SIDE = 768
_ENTRIES = 2**23
"""The largest matrix, by its shorter side and by its entries, that is written out to bound a product."""


def folded(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers with each normalisation folded into a layer beside it, the one before if there is one.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.layers import dense_layer, normalization_layer
    >>> from convla.networks.runs import folded
    >>> halves = normalization_layer(np.array([4.0, 4.0]), None, 0.0)
    >>> folded([dense_layer(np.ones((2, 2))), halves])[0].kernel[:, :, 0]
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    parts: list[Layer] = []
    for layer in layers:
        if parts and layer.kind == "normalization" and (behind := parts[-1].with_normalization(layer)):
            parts[-1] = behind
        elif (
            parts and parts[-1].kind == "normalization" and (before := layer.with_normalization(parts[-1], before=True))
        ):
            parts[-1] = before
        else:
            parts.append(layer)
    return tuple(parts)


def product_of(layers: Sequence[Layer]) -> LinearMap:
    """Return the map of layers of which each takes what the one before gives.

    Raises
    ------
    ShapeError
        If what one gives is not of the shape that the next takes.
    """
    if len({layer.kernel.dtype for layer in layers}) > 1:
        layers = [layer.in_double for layer in layers]
    return functools.reduce(lambda before, behind: behind @ before, (layer.map for layer in layers))


def dense_bound(layers: Sequence[Layer]) -> float:
    """Return a proved upper bound of the norm of such a product from its matrix; infinity where that is large.

    Notes
    -----
    The matrix is made by direct sums in float64. With g the largest ``gamma`` of a layer's sums, each of its p factors
    A_k adds a relative error of g to products of moduli, so that the matrix is off by at most ``((1 + g)^p - 1)`` times
    the product of the norms of ``abs(A_k)``; what the factors themselves lack of those that are meant is added.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.layers import dense_layer
    >>> from convla.networks.runs import dense_bound
    >>> bound = dense_bound([dense_layer(np.array([[3.0, 0.0], [4.0, 0.0]])), dense_layer(np.array([[4.0, -3.0]]))])
    >>> 0.0 <= bound < 1e-6  # where the product of the two norms is 25
    True
    """
    rows, columns = layers[-1].shape[0], layers[0].shape[1]
    if min(rows, columns) > _SIDE or rows * columns > _ENTRIES:
        return math.inf
    exact = [layer.in_double for layer in layers]
    matrix = np.asarray(product_of(exact).to_dense())
    moduli = [layer.moduli_bound for layer in exact]
    terms = sum(max(layer.geometry.largest_row_count, layer.geometry.largest_column_count) + 4 for layer in exact)
    product = math.prod(moduli)
    lacking = math.prod(norm + layer.rounding for norm, layer in zip(moduli, layers, strict=True)) - product
    return outward(matrix_gain(matrix) + 2 * gamma(terms, U64) * product + max(lacking, 0.0) + 16 * U64 * product, 4)
