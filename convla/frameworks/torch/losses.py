"""Losses on a layer's weight with closed-form backward: convolutional similarity, kernel orthogonality, OCNN.

They run on the tensors themselves, on any device: the core's functions are written against the array API. Each is an
operator of PyTorch's library, so that torch.compile takes it as it is, and can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from convla._validate import check_choice, check_integer, check_per_axis
from convla.frameworks.torch._closed_form import Loss, check_weight
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
    """Return the convolutional similarity of a layer's weight.

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
    return _SIMILARITY(kernels, check_choice("pairs", pairs, get_args(Pairs)), bool(normalized))


def kernel_orthogonality_loss(kernels: Tensor, *, groups: int = 1) -> Tensor:
    """Return the squared Frobenius norm of W W^T - I, W the kernels as rows.

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
    return _ORTHOGONALITY(kernels, check_integer("groups", groups, minimum=1))


def ocnn_loss(kernels: Tensor, *, stride: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """Return the OCNN residual of a layer's weight.

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
    check_weight("kernels", kernels)
    strides = check_per_axis("stride", stride, kernels.ndim - 2)
    return _OCNN(kernels, list(strides), check_integer("groups", groups, minimum=1))


_SIMILARITY = Loss(
    "convolutional_similarity",
    "str pairs, bool normalized",
    convolutional_similarity,
    convolutional_similarity_and_gradient,
)
_ORTHOGONALITY = Loss("kernel_orthogonality", "int groups", kernel_orthogonality, kernel_orthogonality_and_gradient)
_OCNN = Loss("ocnn_residual", "int[] stride, int groups", ocnn_residual, ocnn_residual_and_gradient)
