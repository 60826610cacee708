"""Linear maps that stand together in a network, as one map: normalisations folded into layers, products of layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from convla.linear_map import LinearMap
from convla.networks.layers import Layer

__all__ = ["folded", "product_of"]


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
