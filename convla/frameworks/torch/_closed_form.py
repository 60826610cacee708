"""Functions of a weight whose gradients are computed beside their values, as autograd and torch.compile see them.

`closed_form` takes any function, which may read the values of its tensors; `Loss` is an operator of PyTorch's library,
which torch.compile takes as a whole, and can be differentiated again and again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convla._array import describe

__all__ = [
    "Known",
    "Loss",
    "check_weight",
    "closed_form",
    "full_precision",
    "host_array",
    "own_tensor",
    "with_gradients",
]

TYPES = {bool: "bool", int: "int", float: "float", str: "str", tuple: "int[]"}
"""What a schema calls the types of options."""


class Loss:
    """A scalar function of a weight as an operator of PyTorch's library.

    Parameters
    ----------
    name : str
        Within the namespace ``convla``.
    options : mapping
        The names of the arguments after the weight, with their defaults, whose types are those of the arguments.
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
        options: Mapping[str, Any],
        value: Callable[..., Tensor],
        value_and_gradient: Callable[..., tuple[Tensor, Tensor]],
    ) -> None:
        names = list(options)
        arguments = "".join(f"{TYPES[type(default)]} {option}, " for option, default in options.items())

        def compute(kernels: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
            *given, gradient = arguments
            keywords = dict(zip(names, given, strict=True))
            with full_precision(kernels):
                if not gradient:
                    return own_tensor(value(host_array(kernels), **keywords), kernels), kernels.new_empty(0)
                found, slope = value_and_gradient(host_array(kernels), **keywords)
                return own_tensor(found, kernels), own_tensor(slope, kernels).contiguous()

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
            schema=f"(Tensor kernels, {arguments}bool gradient) -> (Tensor, Tensor)",
        )
        self._operator.register_fake(shapes)
        self._operator.register_autograd(backward, setup_context=remember)

    def __call__(self, kernels: Tensor, *arguments: Any) -> Tensor:
        check_weight("kernels", kernels)
        wanted = kernels.requires_grad and torch.is_grad_enabled()
        return self._operator(kernels, *arguments, wanted)[0]


def host_array(tensor: Tensor) -> Any:
    """Return a tensor as what the core computes with: in host memory a NumPy array over it, for its compiled kernels.

    The BLAS takes half a product for a matrix times its own transpose there.
    """
    host = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)
    return tensor.detach().numpy() if host else tensor


def own_tensor(array: Any, like: Tensor) -> Tensor:
    """Return what was computed as a tensor that shares no memory with an argument."""
    found = torch.as_tensor(array)
    return found.clone() if found.untyped_storage().data_ptr() == like.untyped_storage().data_ptr() else found


class Known(NamedTuple):
    """A function's value at some tensors, and what is known of its derivatives there.

    Attributes
    ----------
    value : tensor of shape () or (k,)
    gradients : tuple of tensor
        One for each of the tensors, of its shape; of k values those of each, stacked.
    change : callable, optional
        A function of changes of the tensors' gradients, of the same shapes, that gives the products of the Hessian with
        them (summed over the k values), one for each of the tensors. Without it a second derivative is refused.
    """

    value: Tensor
    gradients: tuple[Tensor, ...]
    change: Callable[..., tuple[Tensor, ...]] | None = None


def closed_form(
    tensors: Sequence[Tensor], value: Callable[..., Tensor], value_and_gradients: Callable[..., Known]
) -> Tensor:
    """Return the value of a function of tensors, differentiable by the gradients that come beside it.

    Both functions are given the tensors, detached. Gradients are not computed where nobody can ask for them.
    """
    detached = [tensor.detach() for tensor in tensors]
    with full_precision(tensors[0]):
        if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return value(*detached)
        known = value_and_gradients(*detached)
    return with_gradients(tensors, known)


def with_gradients(tensors: Sequence[Tensor], known: Known) -> Tensor:
    """Return a value that was computed apart as a function of tensors, which autograd differentiates as it is told."""
    return _Known.apply(known.value, known.change, *tensors, *known.gradients)


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


def _weighed(outer: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient times the number `outer`, or the sum of k, stacked, times k numbers.

    Without a product of matrices, the first of which in a thread of autograd finds no context of the device and warns.
    """
    if outer.ndim == 0:
        return outer * gradient
    return (outer.reshape(-1, *(1,) * (gradient.ndim - 1)) * gradient).sum(0)


class _Known(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, value: Tensor, change: Any, *tensors_and_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors_and_gradients)
        ctx.change = change
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        count = len(ctx.saved_tensors) // 2
        gradients = ctx.saved_tensors[count:]
        if torch.is_grad_enabled():  # a graph is asked for (create_graph=True), in which they are no constants
            gradients = _Gradients.apply(ctx.change, *ctx.saved_tensors)
        slopes = [_weighed(outer, gradient) for gradient in gradients]
        return None, None, *slopes, *(None,) * count


class _Gradients(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, change: Any, *tensors_and_gradients: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors_and_gradients) // 2
        ctx.save_for_backward(*tensors_and_gradients[:count])
        ctx.change = change
        return tuple(gradient.clone() for gradient in tensors_and_gradients[count:])

    @staticmethod
    def backward(ctx: Any, *changes: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        if ctx.change is None:
            raise RuntimeError(
                "what is made of singular vectors can be differentiated once, not twice: their change is not followed"
            )
        with torch.no_grad():
            products = ctx.change(*changes)
        if torch.is_grad_enabled():
            products = _Last.apply(len(tensors), *tensors, *changes, *products)
        return None, *products, *(None,) * len(tensors)


class _Last(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        return tuple(product.clone() for product in tensors[-count:])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, ...]:  # noqa: ARG004
        raise RuntimeError("singular values can be differentiated twice, not three times")
