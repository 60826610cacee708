"""Losses on a layer's weight with closed-form backward: convolutional similarity, kernel orthogonality, OCNN.

They run on the tensors themselves, on any device: the core's functions are written against the array API. Each is an
operator of PyTorch's library, so that torch.compile takes it as it is, and can be differentiated again. There is one
for each of `convla.similarity.objectives.OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor

from convla._validate import check_choice, check_integer, check_per_axis
from convla.frameworks.torch._closed_form import Loss, check_weight
from convla.frameworks.torch.layers import convolutions, current_weight
from convla.similarity.layer import Pairs
from convla.similarity.objectives import OBJECTIVES

__all__ = ["convolutional_similarity_loss", "kernel_orthogonality_loss", "layer_losses", "ocnn_loss"]


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
    return LOSSES["convolutional-similarity"](kernels, check_choice("pairs", pairs, get_args(Pairs)), bool(normalized))


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
    return LOSSES["kernel-orthogonality"](kernels, check_integer("groups", groups, minimum=1))


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
    return LOSSES["ocnn"](kernels, list(strides), check_integer("groups", groups, minimum=1))


def layer_losses(network: Any, objective: str, **options: Any) -> dict[str, Tensor]:
    """Return an objective of each convolutional layer of a network, by the layers' own strides, dilations and groups.

    Parameters
    ----------
    network : torch.nn.Module
        Its layers are those of `convolutions`: a shared weight counts once, transposed convolutions do not.
    objective : {"convolutional-similarity", "kernel-orthogonality", "ocnn"}
        A name of `convla.similarity.objectives.OBJECTIVES`.
    **options
        Of the objective, where the layer does not decide them: ``pairs`` and ``normalized`` of the first.

    Returns
    -------
    dict of str to tensor of shape ()
        By the layers' names. To weigh layers differently, add these up.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the objective has no such name or option, or does not take a weight: the message then begins with the layer's
        name.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import layer_losses
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv2d(8, 8, 3, groups=2))
    >>> losses = layer_losses(network, "ocnn")
    >>> list(losses)
    ['0', '1']
    >>> sum(losses.values()).backward()
    """
    known = OBJECTIVES[check_choice("objective", objective, tuple(OBJECTIVES))]
    free = [name for name in known.options if name not in known.decided]
    for name in options:
        if name not in free:
            raise TypeError(
                f"{name} is not an option of the objective {objective!r}: it has {', '.join(free) or 'none'}"
            )
    losses = {}
    for name, layer in convolutions(network).items():
        arguments = {**known.options, **known.at(layer), **options}
        try:
            losses[name] = LOSSES[objective](current_weight(layer), *arguments.values())
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name}: {error}") from error
    return losses


LOSSES = {
    name: Loss(objective.value.__name__, objective.options, objective.value, objective.value_and_gradient)
    for name, objective in OBJECTIVES.items()
}
"""The operator of PyTorch's library for each objective."""
