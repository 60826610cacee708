"""Transformed gradients in any optimizer: channel-directed, smoothed, orthonormalised, normalised.

The gradients of CPU tensors are transformed through a NumPy view of the same memory, so that the compiled kernels
serve them; those on other devices by the array-API reference, on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from convla._validate import check_choice
from convla.gradients import laplacian_smoothing, normalized_gradient, reweighted_gradient, sobolev_gradient
from convla.orthonormal import orthonormalize

__all__ = ["TRANSFORMS", "GradientTransform"]

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


def _on_tensor(transform: Transform, gradient: Tensor) -> Tensor:
    half = gradient.dtype in (torch.float16, torch.bfloat16)
    wide = gradient.float() if half else gradient
    on_cpu = wide.device.type == "cpu"
    result = torch.from_numpy(transform(wide.numpy())) if on_cpu else transform(wide)
    return result.to(gradient.dtype)
