"""Functions of a weight whose gradients are computed beside their values, as autograd and torch.compile see them.

`closed_form` takes any function, which may read the values of the weight; `Loss` is an operator of PyTorch's library,
which torch.compile takes as a whole, and can be differentiated again and again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from convla._array import describe

__all__ = ["Loss", "check_weight", "closed_form", "full_precision"]

Tensor = Any


class Loss:
    """A scalar function of a weight as an operator of PyTorch's library.

    Parameters
    ----------
    name : str
        Within the namespace ``convla``.
    options : str
        The arguments after the weight, as a schema has them: ``"int[] stride, int groups"``.
    value, value_and_gradient : callable
        Functions of the weight and these arguments, by their names. The first is differentiable by autograd itself,
        which is used for second and higher derivatives.

    Notes
    -----
    ``loss(weight, *options)`` returns the value. The gradient is computed beside it, where it can be asked for.
    """

    def __init__(
        self,
        name: str,
        options: str,
        value: Callable[..., Tensor],
        value_and_gradient: Callable[..., tuple[Tensor, Tensor]],
    ) -> None:
        names = [option.split()[1] for option in options.split(", ")]

        def compute(kernels: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
            *given, gradient = arguments
            keywords = dict(zip(names, given, strict=True))
            with full_precision(kernels):
                if not gradient:
                    return value(kernels, **keywords), kernels.new_empty(0)
                found, slope = value_and_gradient(kernels, **keywords)
                return found, slope.contiguous()

        def shapes(kernels: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
            slope = torch.empty_like(kernels, memory_format=torch.contiguous_format)
            return kernels.new_empty(()), slope if arguments[-1] else kernels.new_empty(0)

        def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            ctx.save_for_backward(inputs[0], output[1])
            ctx.keywords = dict(zip(names, inputs[1:-1], strict=True))

        def backward(ctx: Any, outer: Tensor, _: Any) -> tuple[Any, ...]:
            kernels, gradient = ctx.saved_tensors
            if torch.is_grad_enabled():  # a graph is asked for (create_graph=True)
                with full_precision(kernels):
                    (gradient,) = torch.autograd.grad(value(kernels, **ctx.keywords), kernels, create_graph=True)
            return outer * gradient, *(None,) * (len(names) + 1)

        self._operator = torch.library.custom_op(
            f"convla::{name}",
            compute,
            mutates_args=(),
            schema=f"(Tensor kernels, {options}, bool gradient) -> (Tensor, Tensor)",
        )
        self._operator.register_fake(shapes)
        self._operator.register_autograd(backward, setup_context=remember)

    def __call__(self, kernels: Tensor, *arguments: Any) -> Tensor:
        check_weight("kernels", kernels)
        wanted = kernels.requires_grad and torch.is_grad_enabled()
        return self._operator(kernels, *arguments, wanted)[0]


def closed_form(
    kernels: Tensor, value: Callable[[Tensor], Tensor], value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the value of a function, differentiable once by the gradient that comes beside it.

    The value is a scalar, or a vector whose entries' gradients are stacked. The gradient is not computed where nobody
    can ask for it.
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
        known = _Gradient.apply(kernels, gradient) if torch.is_grad_enabled() else gradient
        return torch.tensordot(outer, known, dims=outer.ndim), None


class _Gradient(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, kernels: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[None, None]:  # noqa: ARG004
        raise RuntimeError(
            "what is made of singular vectors can be differentiated once, not twice: their change is not followed"
        )
