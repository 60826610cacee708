"""The convolution behind a layer: how it is applied, and on what images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convla._array import describe
from convla._validate import check_sizes
from convla.errors import ShapeError
from convla.frameworks.torch.layers import CONVOLUTIONS, TRANSPOSED, convolution_settings
from convla.operators import ConvOperator

__all__ = ["LayerMap", "layer_map"]

Layer = Any


@dataclass(frozen=True)
class LayerMap:
    """How a layer maps images, but for its weight.

    Attributes
    ----------
    image_shape : tuple of int
        Of the convolution, whose transpose is the layer where `transposed`: there the layer's output.
    settings : dict
        Of `ConvOperator`.
    transposed : bool
        Whether the layer is the transpose of the convolution. Their singular values are the same.
    """

    image_shape: tuple[int, ...]
    settings: dict[str, Any]
    transposed: bool

    def operator(self, weight: Tensor) -> ConvOperator:
        """Return the convolution of a weight, in float32 where the weight is of half precision."""
        return ConvOperator(self.kernel(weight), self.image_shape, **self.settings)

    def host_operator(self, weight: Tensor) -> ConvOperator:
        """Return the same as an operator of NumPy, in host memory: there are compiled kernels."""
        return ConvOperator(self.kernel(weight).cpu().numpy(), self.image_shape, **self.settings)

    @staticmethod
    def kernel(weight: Tensor) -> Tensor:
        """Return the kernel of a weight, detached and over the same numbers; in float32 if they are shorter."""
        wide = weight.detach()
        wide = wide if wide.dtype in (torch.float32, torch.float64) else wide.float()
        return wide[:, :, None] if wide.ndim == 2 else wide  # a linear layer works on images of one position


def layer_map(layer: Layer, image_shape: Sequence[int]) -> LayerMap:
    """Return how a layer maps images of a size.

    Parameters
    ----------
    layer : torch.nn.Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d or Linear
    image_shape : sequence of int
        The sizes of the layer's images, without batch and channels; () for a linear layer.

    Returns
    -------
    LayerMap

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the layer is none of these or has no weight yet, or the sizes are none that it takes.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch.layer_maps import layer_map
    >>> layer = torch.nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1)
    >>> found = layer_map(layer, (5,))
    >>> found.image_shape, found.operator(layer.weight).range_shape
    ((10,), (3, 5))
    """
    if isinstance(getattr(layer, "weight", None), nn.parameter.UninitializedParameter):
        raise ValueError("layer has no weight yet: pass an input through it first")
    size = check_sizes("image_shape", image_shape)
    if isinstance(layer, nn.Linear):
        if size:
            raise ShapeError(f"image_shape must be () for a linear layer, got {size}")
        return LayerMap((1,), {}, False)
    if isinstance(layer, CONVOLUTIONS):
        found = LayerMap(size, convolution_settings(layer), False)
    elif isinstance(layer, TRANSPOSED):
        found = LayerMap(_output_of_transposed(layer, size), convolution_settings(layer), True)
    else:
        raise TypeError(
            f"layer must be a convolution of torch.nn, transposed or not, or a torch.nn.Linear, got {describe(layer)}"
        )
    operator = found.operator(torch.zeros_like(layer.weight))
    if found.transposed and operator.geometry.output_shape != size:
        raise ValueError(
            f"output_padding must be below the stride along every axis, got {layer.output_padding} and {layer.stride}: "
            "the layer is then no transpose of a convolution on its output"
        )
    return found


def _output_of_transposed(layer: Layer, size: tuple[int, ...]) -> tuple[int, ...]:
    if len(size) != len(layer.kernel_size):
        raise ShapeError(f"image_shape must have {len(layer.kernel_size)} axes, got {size}")
    settings = layer.stride, layer.padding, layer.dilation, layer.kernel_size, layer.output_padding
    return tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, s, p, d, k, extra in zip(size, *settings, strict=True)
    )
