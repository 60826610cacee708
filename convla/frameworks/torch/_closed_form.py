"""The one autograd function of the package: a scalar whose gradient is computed beside its value."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from convla._array import describe

__all__ = ["check_weight", "closed_form", "full_precision"]

Tensor = Any


def closed_form(
    kernels: Tensor, value: Callable[[Tensor], Tensor], value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the value of a scalar function, differentiable once by the gradient that comes beside it.

    The gradient is not computed where nobody can ask for it.
    """
    check_weight("kernels", kernels)
    if kernels.requires_grad and torch.is_grad_enabled():
        return _ClosedForm.apply(kernels, value_and_gradient)
    with full_precision(kernels):
        return value(kernels.detach())


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocasting leaves computations with `tensor` in its own dtype."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    switched_off: contextlib.AbstractContextManager[Any] = torch.autocast(kind, enabled=False)
    return switched_off


def check_weight(name: str, value: object) -> None:
    """Raise `TypeError` unless `value` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, such as layer.weight, got {describe(value)}")


class _ClosedForm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, kernels: Tensor, value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        with full_precision(kernels):
            value, gradient = value_and_gradient(kernels.detach())
        ctx.save_for_backward(kernels, gradient)
        return value

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        kernels, gradient = ctx.saved_tensors
        # Asked for a graph (create_graph=True), the gradient must not pass for a constant.
        return outer * (_Gradient.apply(kernels, gradient) if torch.is_grad_enabled() else gradient), None


class _Gradient(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, kernels: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[None, None]:  # noqa: ARG004
        raise RuntimeError("losses with closed-form backward can be differentiated once, not twice")
