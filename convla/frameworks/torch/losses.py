"""Losses on a layer's weight with closed-form backward: convolutional similarity, kernel orthogonality, OCNN.

They run on the tensors themselves, on any device: the core's functions are written against the array API.
"""

from __future__ import annotations

import functools
from typing import Any

from convla.frameworks.torch._closed_form import closed_form
from convla.similarity.layer import convolutional_similarity_and_gradient
from convla.similarity.orthogonality import (
    kernel_orthogonality,
    kernel_orthogonality_gradient,
    ocnn_residual,
    ocnn_residual_gradient,
)

__all__ = ["convolutional_similarity_loss", "kernel_orthogonality_loss", "ocnn_loss"]

Tensor = Any


def convolutional_similarity_loss(kernels: Tensor, *, normalized: bool = False) -> Tensor:
    """Return the convolutional similarity of a layer's weight, differentiable once.

    Parameters
    ----------
    kernels : tensor of shape (c_out, c_in, *kernel)
        float32 or float64, on any device.
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
    return closed_form(kernels, functools.partial(convolutional_similarity_and_gradient, normalized=normalized))


def kernel_orthogonality_loss(kernels: Tensor) -> Tensor:
    """Return the squared Frobenius norm of W W^T - I, W the kernels as rows, differentiable once.

    Parameters
    ----------
    kernels : tensor of shape (c_out, c_in, *kernel)
        float32 or float64, on any device.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.orthogonality.kernel_orthogonality`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import kernel_orthogonality_loss
    >>> weight = torch.tensor([[[1.0, 1.0]]], requires_grad=True)
    >>> kernel_orthogonality_loss(weight).backward()
    >>> weight.grad.flatten().tolist()
    [4.0, 4.0]
    """
    return closed_form(kernels, lambda k: (kernel_orthogonality(k), kernel_orthogonality_gradient(k)))


def ocnn_loss(kernels: Tensor, *, stride: int = 1) -> Tensor:
    """Return the OCNN residual of a layer's weight, differentiable once.

    Parameters
    ----------
    kernels : tensor of shape (c_out, c_in, *kernel)
        float32 or float64, on any device.
    stride : int, default 1
        The layer's.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.orthogonality.ocnn_residual`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import ocnn_loss
    >>> weight = torch.tensor([[[1.0, 1.0]]], requires_grad=True)
    >>> ocnn_loss(weight).backward()
    >>> weight.grad.flatten().tolist()
    [8.0, 8.0]
    """
    return closed_form(kernels, lambda k: (ocnn_residual(k, stride=stride), ocnn_residual_gradient(k, stride=stride)))
