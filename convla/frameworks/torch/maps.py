"""The linear maps of PyTorch's layers as operators: of one layer, or of every layer of a network as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from convla._array import describe
from convla._validate import check_sizes
from convla.frameworks.torch.layers import CONVOLUTIONS, TRANSPOSED
from convla.frameworks.torch.recording import read_module
from convla.linear_map import LinearMap

__all__ = ["operator", "operators"]

Module = Any


def operator(layer: Module, image_shape: Sequence[int] = ()) -> LinearMap:
    """Return the linear part of one layer, as it is evaluated.

    Parameters
    ----------
    layer : torch.nn.Conv1d, Conv2d, Conv3d, their transposed forms, Linear, or BatchNorm
        With stride, padding, padding mode, dilation and groups as they are; its bias is left out.
    image_shape : sequence of int
        The sizes of what it is given, without the channels; none for a linear layer.

    Returns
    -------
    LinearMap
        Over NumPy arrays, with a copy of the weight: of float32 or float64, half-precision weights as float32.

    Raises
    ------
    TypeError
        If `layer` is none of these.
    ShapeError, ValueError
        If the image does not fit the layer.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import operator
    >>> operator(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), (32, 32)).shape
    (2048, 3072)
    """
    kinds = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not isinstance(layer, kinds):
        raise TypeError(f"layer must be a convolution, a linear layer or a batch normalization, got {describe(layer)}")
    sizes = check_sizes("image_shape", image_shape) if len(image_shape) else ()
    channels = next(
        getattr(layer, name) for name in ("in_channels", "in_features", "num_features") if hasattr(layer, name)
    )
    dtype = next((one.dtype for one in (*layer.parameters(), *layer.buffers()) if one.is_floating_point()), None)
    found = operators(layer, torch.zeros((1, channels, *sizes), dtype=dtype))
    if len(found) != 1:
        raise ValueError(f"layer must act as one linear map on images of sizes {tuple(sizes)}")
    return next(iter(found.values()))


def operators(network: Module, example: Any) -> dict[str, LinearMap]:
    """Return the linear parts of a network's layers, as they really run on an example.

    Parameters
    ----------
    network : torch.nn.Module
    example : tensor, or tuple, list or mapping of tensors
        What ``network(...)`` takes; a batch of one will do.

    Returns
    -------
    dict of str to LinearMap
        By the names of the layers; a layer that runs twice is there twice. Functional convolutions are among them.

    Raises
    ------
    TypeError, ValueError
        As `convla.frameworks.torch.recording.read_module`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import operators
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU())
    >>> {name: found.shape for name, found in operators(network, torch.zeros(1, 3, 32, 32)).items()}
    {'0': (2048, 3072)}
    """
    return {name: layer.map for name, layer in read_module(network, example).layers.items()}
