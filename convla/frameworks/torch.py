"""convla in a PyTorch training script: losses with closed-form backward, transformed gradients, initialisers.

Needs the extra ``torch``. Nothing is copied between PyTorch and NumPy: losses run on the tensors themselves, and the
gradients of CPU tensors are transformed through a NumPy view of the same memory, so that the compiled kernels serve
them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from convla._validate import check_choice
from convla.gradients import laplacian_smoothing, normalized_gradient, reweighted_gradient, sobolev_gradient
from convla.initializers import delta_orthogonal_kernel, orthogonal_kernel
from convla.orthonormal import orthonormalize
from convla.similarity import convolutional_similarity_and_gradient
from convla.similarity.orthogonality import (
    kernel_orthogonality,
    kernel_orthogonality_gradient,
    ocnn_residual,
    ocnn_residual_gradient,
)
from convla.typing import Seed

__all__ = [
    "GradientTransform",
    "convolutional_similarity_loss",
    "delta_orthogonal_",
    "kernel_orthogonality_loss",
    "ocnn_loss",
    "orthogonal_",
]

Tensor = Any
Transform = Callable[..., Any]

TRANSFORMS: dict[str, Transform] = {
    "reweighted": reweighted_gradient,
    "sobolev": sobolev_gradient,
    "laplacian": laplacian_smoothing,
    "orthonormal": orthonormalize,
    "normalized": normalized_gradient,
}
"""What `GradientTransform` knows by name."""


class _ClosedForm(torch.autograd.Function):  # type: ignore[misc]
    """A scalar function whose gradient is computed beside its value."""

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
    return _ClosedForm.apply(kernels, functools.partial(convolutional_similarity_and_gradient, normalized=normalized))


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
    return _ClosedForm.apply(kernels, lambda k: (kernel_orthogonality(k), kernel_orthogonality_gradient(k)))


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
    return _ClosedForm.apply(
        kernels, lambda k: (ocnn_residual(k, stride=stride), ocnn_residual_gradient(k, stride=stride))
    )


class GradientTransform:
    """Make an optimizer step along transformed gradients of its convolutional weights.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; it stays the one to call, to schedule and to save.
    transform : {"reweighted", "sobolev", "laplacian", "orthonormal", "normalized"} or callable
        One of convla's transforms by name, or a function of a gradient that returns one of its shape.
    linear : bool, default False
        Transform weights with two axes, of linear layers, as well. Those with fewer never are.
    **options
        Given to the transform: ``lam=2.0``, ``method="newton-schulz"``, ...

    Raises
    ------
    TypeError, ValueError
        If the optimizer is none, or the transform has no such name. At a step: as the transform does, naming the
        parameter's place, when a gradient holds NaN or infinity; the step is then not made.

    Notes
    -----
    It hooks into ``optimizer.step()``: each gradient is replaced for the time of the step, or of each evaluation of a
    closure, and put back after it, so that gradients can be accumulated, clipped and logged as usual. Parameters
    without a gradient are passed over; a weight that several layers share is transformed once. A parameter group with
    the entry ``"transform": False`` is left alone, and that entry is saved and loaded with the optimizer. The transform
    itself is not in the ``state_dict``: make it again after loading.

    Weights of transposed convolutions hold their input channels first; put them into a group of their own, or transform
    with ``axis=1``. Half-precision gradients are transformed in float32 and cast back.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import GradientTransform
    >>> layer = torch.nn.Conv2d(3, 8, 3)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> handle = GradientTransform(optimizer, "sobolev", lam=1.0, blend=0.5)
    >>> layer(torch.ones(1, 3, 5, 5)).sum().backward()
    >>> optimizer.step()
    >>> handle.remove()
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        transform: str | Callable[[Tensor], Tensor],
        *,
        linear: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if callable(transform):
            self._transform: Transform = functools.partial(transform, **options)
        else:
            chosen = TRANSFORMS[check_choice("transform", transform, tuple(TRANSFORMS))]
            self._transform = functools.partial(_on_tensor, functools.partial(chosen, **options))
        self._least_axes = 2 if linear else 3
        self._plain: list[tuple[Tensor, Tensor, Tensor]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The optimizer itself is the first of the arguments.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._replace(optimizer)
            return None

        @functools.wraps(closure)
        def transformed() -> Any:
            self._restore()
            loss = closure()
            self._replace(optimizer)
            return loss

        return (optimizer, transformed), {}

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        self._restore()

    def _replace(self, optimizer: Any) -> None:
        replaced = []
        for number, group in enumerate(optimizer.param_groups):
            if not group.get("transform", True):
                continue
            for place, parameter in enumerate(group["params"]):
                plain = parameter.grad
                if plain is None or parameter.ndim < self._least_axes:
                    continue
                try:
                    with torch.no_grad():
                        replaced.append((parameter, plain, self._transform(plain.detach())))
                except (TypeError, ValueError) as error:
                    where = f"parameter {place} of group {number}, of shape {tuple(parameter.shape)}"
                    raise type(error)(f"{error} (the gradient of {where})") from error
        # Only when all are right is any of them replaced.
        for parameter, _, gradient in replaced:
            parameter.grad = gradient
        self._plain = replaced

    def _restore(self) -> None:
        for parameter, plain, gradient in self._plain:
            # Unless a closure has set another since.
            if parameter.grad is gradient:
                parameter.grad = plain
        self._plain = []


def orthogonal_(tensor: Tensor, *, gain: float = 1.0, method: str = "haar", rng: Seed = None) -> Tensor:
    """Fill a weight with `convla.orthogonal_kernel`, in place.

    Parameters
    ----------
    tensor : tensor of shape (c_out, c_in, *kernel)
    gain : float, default 1
    method : {"haar", "svd"}
    rng : numpy.random.Generator or seed
        By default a seed is drawn from PyTorch's generator, so that ``torch.manual_seed`` decides.

    Returns
    -------
    tensor
        The one passed in.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.orthogonal_kernel`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import orthogonal_
    >>> rows = orthogonal_(torch.empty(4, 2, 3, 3)).flatten(1)
    >>> torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    True
    """
    return _fill(tensor, functools.partial(orthogonal_kernel, method=method), gain, rng)


def delta_orthogonal_(tensor: Tensor, *, gain: float = 1.0, rng: Seed = None) -> Tensor:
    """Fill a weight with `convla.delta_orthogonal_kernel`, in place.

    Parameters
    ----------
    tensor : tensor of shape (c_out, c_in, *kernel)
    gain : float, default 1
    rng : numpy.random.Generator or seed
        By default a seed is drawn from PyTorch's generator.

    Returns
    -------
    tensor
        The one passed in.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.delta_orthogonal_kernel`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import delta_orthogonal_
    >>> int(torch.count_nonzero(delta_orthogonal_(torch.empty(4, 2, 3, 3))))
    8
    """
    return _fill(tensor, delta_orthogonal_kernel, gain, rng)


def _fill(tensor: Tensor, make: Callable[..., Any], gain: float, rng: Seed) -> Tensor:
    if rng is None:
        rng = int(torch.randint(2**62, ()))
    with torch.no_grad():
        return tensor.copy_(torch.from_numpy(make(tuple(tensor.shape), gain=gain, rng=rng)))


def _on_tensor(transform: Transform, gradient: Tensor) -> Tensor:
    half = gradient.dtype in (torch.float16, torch.bfloat16)
    wide = gradient.float() if half else gradient
    on_cpu = wide.device.type == "cpu"
    result = torch.from_numpy(transform(wide.numpy())) if on_cpu else transform(wide)
    return result.to(gradient.dtype)
