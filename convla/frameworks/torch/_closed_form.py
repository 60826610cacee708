"""The one autograd function of the package: a scalar whose gradient is computed beside its value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["closed_form"]

Tensor = Any


def closed_form(kernels: Tensor, value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Return the value of a scalar function, differentiable once by the gradient that it returns beside it."""
    return _ClosedForm.apply(kernels, value_and_gradient)


class _ClosedForm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, kernels: Tensor, value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, gradient = value_and_gradient(kernels.detach())
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None
