"""Convolutional similarity of a network: minimised before training, or as a term of the training loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from convla._validate import check_choice
from convla.frameworks.torch._closed_form import full_precision, host_array, own_tensor
from convla.frameworks.torch.layers import convolutions, current_weight
from convla.frameworks.torch.losses import convolutional_similarity_loss, layer_losses
from convla.similarity import Initialization, initialize_network, network_similarity
from convla.similarity.layer import Pairs

__all__ = ["minimize_similarity_", "network_similarity_loss", "similarity_losses"]

Network = Any


def similarity_losses(network: Network, *, pairs: Pairs = "unordered", normalized: bool = False) -> dict[str, Tensor]:
    """Return the convolutional similarity of each convolutional layer of a network.

    Parameters
    ----------
    network : torch.nn.Module
        Its layers are those of `convolutions`: a shared weight counts once, a grouped layer as
        `convolutional_similarity_loss` says, transposed convolutions not at all.
    pairs, normalized
        As in `convolutional_similarity_loss`.

    Returns
    -------
    dict of str to tensor of shape ()
        By the layers' names. To weigh layers differently, add these up.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convolutional_similarity_loss` and `convolutions`; the message begins with the layer's name.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import similarity_losses
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> list(similarity_losses(network))
    ['0', '2']
    """
    return layer_losses(network, "convolutional-similarity", pairs=pairs, normalized=normalized)


def network_similarity_loss(network: Network, *, pairs: Pairs = "unordered", normalized: bool = False) -> Tensor:
    """Return the sum of a network's convolutional similarities, the term that CSM's Algorithm 2 adds to the loss.

    Parameters
    ----------
    network, pairs, normalized
        As in `similarity_losses`.

    Returns
    -------
    tensor of shape ()
        In the widest dtype among the layers'. Algorithm 2 descends on the task's loss plus beta
        times this, in every training step; its experiments take beta = 0.001.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `similarity_losses`.

    References
    ----------
    CSM, Algorithm 2 and Table 8.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import network_similarity_loss
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> images = torch.randn(8, 3, 32, 32)
    >>> loss = network(images).square().mean() + 0.001 * network_similarity_loss(network)
    >>> loss.backward()
    """
    weights = {name: current_weight(layer) for name, layer in convolutions(network).items()}
    followed = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights.values())
    if followed and len({weight.device for weight in weights.values()}) == 1:
        check_choice("pairs", pairs, get_args(Pairs))
        total: Tensor = _TOGETHER(list(weights.values()), list(weights), pairs, bool(normalized))[0]
        return total
    losses = list(similarity_losses(network, pairs=pairs, normalized=normalized).values())
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss.to(total.device)
    return total


def _together(kernels: list[Tensor], names: list[str], pairs: Pairs, normalized: bool) -> tuple[Tensor, list[Tensor]]:
    """Return the sum over layers on one device, and its gradients: on a GPU a copy and four launches for all."""
    with full_precision(kernels[0]), torch.no_grad():
        arrays = dict(zip(names, map(host_array, kernels), strict=True))
        found = network_similarity(arrays, pairs=pairs, normalized=normalized)
        slopes = found.gradients.values()  # in the order of the names
        gradients = [own_tensor(slope, like).contiguous() for slope, like in zip(slopes, kernels, strict=True)]
        return torch.full((), found.total, dtype=_widest(kernels), device=kernels[0].device), gradients


def _widest(kernels: list[Tensor]) -> torch.dtype:
    dtype = kernels[0].dtype
    for kernel in kernels[1:]:
        dtype = torch.promote_types(dtype, kernel.dtype)
    return dtype


def _shapes(kernels: list[Tensor], *_: Any) -> tuple[Tensor, list[Tensor]]:
    gradients = [torch.empty_like(kernel, memory_format=torch.contiguous_format) for kernel in kernels]
    return kernels[0].new_empty((), dtype=_widest(kernels)), gradients


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    kernels, _, ctx.pairs, ctx.normalized = inputs
    ctx.save_for_backward(*kernels, *output[1])


def _value(kernel: Tensor, ctx: Any) -> Tensor:
    return convolutional_similarity_loss(kernel, pairs=ctx.pairs, normalized=ctx.normalized)


def _backward(ctx: Any, outer: Tensor, _: Any) -> tuple[Any, ...]:
    count = len(ctx.saved_tensors) // 2
    kernels, gradients = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
    if torch.is_grad_enabled():  # a graph is asked for (create_graph=True)
        gradients = [
            torch.autograd.grad(_value(kernel, ctx).to(outer.dtype), kernel, create_graph=True)[0]
            if kernel.requires_grad
            else gradient
            for kernel, gradient in zip(kernels, gradients, strict=True)
        ]
    return [outer.to(gradient.dtype) * gradient for gradient in gradients], None, None, None


_TOGETHER = torch.library.custom_op(
    "convla::network_similarity",
    _together,
    mutates_args=(),
    schema="(Tensor[] kernels, str[] names, str pairs, bool normalized) -> (Tensor, Tensor[])",
)
_TOGETHER.register_fake(_shapes)
_TOGETHER.register_autograd(_backward, setup_context=_remember)


def minimize_similarity_(
    network: Network,
    *,
    iterations: int = 200,
    learning_rate: float = 0.001,
    betas: tuple[float, float] = (0.5, 0.999),
    keep_norms: bool = False,
    start: Initialization | None = None,
    progress: Callable[[Initialization], None] | None = None,
) -> Initialization:
    """Minimise a network's convolutional similarity before training, in place (CSM Algorithm 1).

    Parameters
    ----------
    network : torch.nn.Module
        The weights of its layers, those of `convolutions`, are changed, except where they are frozen
        (``requires_grad=False``). Nothing else is.
    iterations : int, default 200
        Steps of Adam in all, those of `start` among them. CSM takes 500 for CNN1 and CNN2, 200 for ResNet18.
    learning_rate, betas
        Of Adam: the defaults are CSM's for ResNet18.
    keep_norms : bool, default False
        Minimise the normalised similarity instead, and bring every filter back to its norm at the start after each
        step. Without it the loss is the published one, which is least at weights that are 0, and the norms fall.
    start : Initialization, optional
        What an earlier call returned: go on from there, with the same settings, whatever the weights are now.
    progress : callable, optional
        Called with the state after each step. If it raises, the weights stay as they were.

    Returns
    -------
    Initialization
        The network's similarity before each step, and what is needed to go on.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.initialize_network` and `convolutions`; if no weight can be changed, or one is computed by a
        parametrization: remove that first. The message begins with the layer's name.

    Notes
    -----
    Weights on the CPU are minimised as NumPy arrays, so that the compiled kernels serve them; weights on another device
    stay there.

    References
    ----------
    CSM, Algorithm 1 and Sections 6.2, 6.4.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import minimize_similarity_
    >>> _ = torch.manual_seed(0)
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> result = minimize_similarity_(network, iterations=20)
    >>> len(result.losses), result.losses[-1] < result.losses[0]
    (20, True)
    """
    weights = {}
    for name, layer in convolutions(network).items():
        if not isinstance(layer.weight, nn.Parameter):
            raise ValueError(f"layer {name}: its weight is computed by a parametrization, which must be removed first")
        if layer.weight.requires_grad:
            weights[name] = layer.weight
    if not weights:
        raise ValueError("network must have a convolutional layer whose weight is not frozen, got none")
    result = initialize_network(
        {name: _array(weight) for name, weight in weights.items()},
        iterations=iterations,
        learning_rate=learning_rate,
        betas=betas,
        keep_norms=keep_norms,
        start=start,
        progress=progress,
    )
    kernels = {name: torch.as_tensor(kernel) for name, kernel in result.kernels.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(kernels[name])
    return result


def _array(weight: Tensor) -> Any:
    # In memory of its own: the weight changes in training, and the state does not.
    tensor = weight.detach().clone(memory_format=torch.contiguous_format)
    # NumPy has no bfloat16; the core says what it thinks of half precision.
    on_host = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)
    return tensor.numpy() if on_host else tensor
