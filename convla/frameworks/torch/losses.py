"""Losses on a layer's weight with closed-form backward: convolutional similarity, kernel orthogonality, OCNN.

They run on the tensors themselves, on any device: the core's functions are written against the array API.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from convla.frameworks.torch._closed_form import closed_form
from convla.similarity.layer import Pairs, convolutional_similarity, convolutional_similarity_and_gradient
from convla.similarity.orthogonality import (
    kernel_orthogonality,
    kernel_orthogonality_and_gradient,
    ocnn_residual,
    ocnn_residual_and_gradient,
)

__all__ = ["convolutional_similarity_loss", "kernel_orthogonality_loss", "ocnn_loss"]

Tensor = Any


def convolutional_similarity_loss(kernels: Tensor, *, pairs: Pairs = "unordered", normalized: bool = False) -> Tensor:
    """Return the convolutional similarity of a layer's weight, differentiable once.

    Parameters
    ----------
    kernels : tensor of shape (c_out, c_in // groups, *kernel)
        float32 or float64, on any device. A grouped layer needs no more than its weight: the sum runs over all pairs of
        channels, and the channels that a filter does not read would add zeros.
    pairs : {"unordered", "ordered"}
        As in `convla.convolutional_similarity`.
    normalized : bool, default False
        The scale-invariant form, which does not reward shrinking the weights.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.convolutional_similarity`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import convolutional_similarity_loss
    >>> weight = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]], requires_grad=True)
    >>> convolutional_similarity_loss(weight).backward()
    >>> weight.grad.flatten().tolist()
    [8.0, 34.0, 26.0, 2.0]
    """
    value, both = (
        functools.partial(function, pairs=pairs, normalized=normalized)
        for function in (convolutional_similarity, convolutional_similarity_and_gradient)
    )
    return closed_form(kernels, value, both)


def kernel_orthogonality_loss(kernels: Tensor, *, groups: int = 1) -> Tensor:
    """Return the squared Frobenius norm of W W^T - I, W the kernels as rows, differentiable once.

    Parameters
    ----------
    kernels : tensor of shape (c_out, c_in // groups, *kernel)
        float32 or float64, on any device.
    groups : int, default 1
        The layer's: filters of different groups read different channels, and the groups' values add up.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.similarity.orthogonality.kernel_orthogonality`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import kernel_orthogonality_loss
    >>> weight = torch.tensor([[[1.0, 1.0]]], requires_grad=True)
    >>> kernel_orthogonality_loss(weight).backward()
    >>> weight.grad.flatten().tolist()
    [4.0, 4.0]
    """
    value, both = (
        functools.partial(function, groups=groups)
        for function in (kernel_orthogonality, kernel_orthogonality_and_gradient)
    )
    return closed_form(kernels, value, both)


def ocnn_loss(kernels: Tensor, *, stride: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """Return the OCNN residual of a layer's weight, differentiable once.

    Parameters
    ----------
    kernels : tensor of shape (c_out, c_in // groups, *kernel)
        float32 or float64, on any device.
    stride : int or sequence of int, default 1
        The layer's. Along an axis with dilation d, its kernels meet at the lags that both divide: pass
        ``stride // gcd(stride, d)``.
    groups : int, default 1
        The layer's: filters of different groups read different channels, and the groups' values add up.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.similarity.orthogonality.ocnn_residual`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import ocnn_loss
    >>> weight = torch.tensor([[[1.0, 1.0]]], requires_grad=True)
    >>> ocnn_loss(weight).backward()
    >>> weight.grad.flatten().tolist()
    [8.0, 8.0]
    """
    value, both = (
        functools.partial(function, stride=stride, groups=groups)
        for function in (ocnn_residual, ocnn_residual_and_gradient)
    )
    return closed_form(kernels, value, both)
