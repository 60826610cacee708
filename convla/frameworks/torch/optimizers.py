"""Transformed gradients in any optimizer: channel-directed, smoothed, orthonormalised, normalised.

The gradients of CPU tensors are transformed through a NumPy view of the same memory, so that the compiled kernels
serve them; those on other devices by the array-API reference, on the device.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convla._array import describe
from convla._validate import check_choice
from convla.frameworks.torch._closed_form import full_precision
from convla.frameworks.torch.layers import Layout, version, weight_layouts
from convla.transforms import TRANSFORMS

__all__ = ["GradientTransform"]

Transform = Callable[..., Any]


class GradientTransform:
    """Make an optimizer step along transformed gradients of its convolutional weights.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; it stays the one to call, to schedule and to save.
    transform : {"reweighted", "sobolev", "laplacian", "orthonormal", "normalized"} or callable
        One of convla's transforms by name, or a function of a gradient, as the parameter has it, that returns one of
        its shape.
    linear : bool, default False
        Transform the weights of linear layers as well.
    network : torch.nn.Module, optional
        Whose layers say which parameters are their weights, and how these hold the filters. Without it every parameter
        with three axes or more (`linear`: two) is taken for the weight of a convolution of one group. A weight that is
        computed from one parameter of its shape (``spectral_norm``, ``orthogonal``) is transformed by way of that one.
    **options
        Given to the transform: ``lam=2.0``, ``method="newton-schulz"``, ...

    Raises
    ------
    TypeError, ValueError
        If the optimizer is none or has a `GradientTransform` already, the transform has no such name or options, or the
        network is no module; if nothing would be transformed, or the network computes a weight from parameters of
        another shape (by a ``weight_norm``). At a step: as the transform does, naming the parameter's place, when a
        gradient holds NaN or infinity; if a function returns no tensor of the gradient's shape. The step is then not
        made.
    RuntimeError
        At a step, if a gradient scaler has left it to a fused optimizer to unscale the gradients.

    Notes
    -----
    It hooks into ``optimizer.step()``: each gradient is replaced for the time of the step, or of each evaluation of a
    closure, and put back after it, so that gradients can be accumulated, clipped and logged as usual. Weight decay and
    momentum are the optimizer's, and come after the transform. Parameters without a gradient are passed over; a weight
    that several layers share is transformed once. A parameter group with the entry ``"transform": False`` is left
    alone, and that entry is saved and loaded with the optimizer. The transform itself is not in the ``state_dict``, nor
    in a copy of the optimizer: make it again after loading.

    With `network`, the filters of a grouped convolution are transformed group by group, as they read different
    channels: a mean or a difference along an axis, or an orthonormalisation, stays within a group. Two exceptions:
    "normalized" divides by one norm of the whole layer (or by each filter's), and ``axis=None`` rasterises the whole
    weight. In a depthwise layer each group is one filter, so that "reweighted", "sobolev" and "laplacian" along the
    output channels do nothing and "orthonormal" normalises each filter. In a transposed convolution, whose weight holds
    its input channels first, axis 0 is nevertheless that of the output channels.

    "orthonormal" and "normalized" make a gradient's length the same at every step: the optimizer's rate alone says how
    far it goes, and the rate of the plain gradient is most often much too large. 0.01 is one to begin with.

    Half-precision gradients are transformed in float32 and cast back. Do not hand gradients that are still scaled by a
    gradient scaler to a fused optimizer: call ``scaler.unscale_(optimizer)`` first; other optimizers need no care.

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
        network: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if optimizer in _TRANSFORMED:
            # Each would put back what it found, in the order in which they came.
            raise ValueError(
                "optimizer has a GradientTransform already: remove() that one, or pass a function that does both"
            )
        if not callable(transform):
            function = TRANSFORMS[check_choice("transform", transform, tuple(TRANSFORMS))]
            try:
                inspect.signature(function).bind(None, **options)
            except TypeError as error:
                raise TypeError(f"options of the transform {transform!r}: {error}") from None
        self._transform = transform
        self._options = options
        self._least_axes = 2 if linear else 3
        self._layouts = None if network is None else weight_layouts(network, linear=linear)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(self._layout(parameter) for parameter in parameters):
            kinds = "convolutional or linear" if linear else "convolutional"
            owner = "network" if network is not None else "optimizer"
            raise ValueError(
                f"none of the optimizer's {len(parameters)} parameters is the weight of a {kinds} layer of the "
                f"{owner}: nothing would be transformed"
            )
        self._plain: list[tuple[Tensor, Tensor, Tensor, int]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._optimizer = weakref.ref(optimizer)
        _TRANSFORMED.add(optimizer)

    def __repr__(self) -> str:
        name = (
            self._transform if isinstance(self._transform, str) else getattr(self._transform, "__name__", "a function")
        )
        options = "".join(f", {key}={value!r}" for key, value in self._options.items())
        optimizer = self._optimizer()
        on = "an optimizer that is gone" if optimizer is None else type(optimizer).__name__
        return f"<GradientTransform {name}{options}: {f'of {on}' if self._hooks else 'removed'}>"

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _TRANSFORMED.discard(self._optimizer())

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # What a step that raised has left. Gradients that were zeroed in place since, and computed anew, are no longer
        # those that it stepped along.
        self._restore(as_replaced=True)
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

        if "closure" in kwargs:
            return args, {**kwargs, "closure": transformed}
        return (args[0], transformed, *args[2:]), kwargs

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        self._restore()

    def _replace(self, optimizer: Any) -> None:
        if _will_be_skipped(optimizer):
            return
        replaced = []
        for number, group in enumerate(optimizer.param_groups):
            if not group.get("transform", True):
                continue
            for place, parameter in enumerate(group["params"]):
                plain = parameter.grad
                layout = self._layout(parameter)
                if plain is None or layout is None:
                    continue
                try:
                    with torch.no_grad(), full_precision(plain):
                        gradient = self._transformed(plain.detach(), layout)
                        replaced.append((parameter, plain, gradient, version(gradient)))
                except (TypeError, ValueError) as error:
                    where = f"parameter {place} of group {number}, of shape {tuple(parameter.shape)}"
                    raise type(error)(f"{error} (the gradient of {where})") from error
        # Only when all are right is any of them replaced, and not before all are known: Ctrl-C may fall in between.
        self._plain = replaced
        for parameter, _, gradient, _ in replaced:
            parameter.grad = gradient

    def _restore(self, *, as_replaced: bool = False) -> None:
        for parameter, plain, gradient, then in self._plain:
            # Unless a closure has set another since.
            if parameter.grad is gradient and not (as_replaced and version(gradient) != then):
                parameter.grad = plain
        self._plain = []

    def _layout(self, parameter: Tensor) -> Layout | None:
        """Return how a parameter holds filters; None if it is not to be transformed."""
        if self._layouts is not None:
            return self._layouts.get(parameter)
        return Layout() if parameter.ndim >= self._least_axes else None

    def _transformed(self, gradient: Tensor, layout: Layout) -> Tensor:
        if callable(self._transform):
            result = self._transform(gradient, **self._options)
            if not isinstance(result, torch.Tensor) or result.shape != gradient.shape:
                got = tuple(result.shape) if isinstance(result, torch.Tensor) else describe(result)
                raise TypeError(f"transform must return a tensor of the gradient's shape, got {got}")
            return result
        half = gradient.dtype in (torch.float16, torch.bfloat16)
        wide = gradient.float() if half else gradient
        on_cpu = wide.device.type == "cpu"
        result = _transform_filters(self._transform, self._options, wide.numpy() if on_cpu else wide, layout)
        transformed = (torch.from_numpy(result) if on_cpu else result).to(gradient.dtype)
        if transformed.stride() == gradient.stride():
            return transformed
        # As the gradient lies in memory: LBFGS for one takes no other view of it.
        return torch.empty_like(gradient).copy_(transformed)


_TRANSFORMED: weakref.WeakSet[Any] = weakref.WeakSet()
"""The optimizers that have a `GradientTransform`."""


def _transform_filters(name: str, options: dict[str, Any], weight: Tensor, layout: Layout) -> Tensor:
    """Apply a transform to the filters that a weight holds: group by group where it acts across filters."""
    transform = TRANSFORMS[name]
    if layout == Layout():
        return transform(weight, **options)
    filters = layout.filters(weight)
    by_group = _options_by_group(name, options)
    if by_group is not None:
        return layout.weight(transform(filters, **by_group), tuple(weight.shape))
    whole = filters.reshape(-1, *filters.shape[2:])
    return layout.weight(transform(whole, **options).reshape(filters.shape), tuple(weight.shape))


def _options_by_group(name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the options that transform (groups, filters, ...) group by group; None for a transform of the whole."""
    parameters = inspect.signature(TRANSFORMS[name]).parameters
    if "batch_axes" in parameters:
        return {**options, "batch_axes": 1 + options.get("batch_axes", 0)}
    axis = options.get("axis", parameters["axis"].default) if "axis" in parameters else None
    if axis is None:
        return None
    return {**options, "axis": axis + 1 if axis >= 0 else axis}


def _will_be_skipped(optimizer: Any) -> bool:
    """Tell whether a gradient scaler has told a fused optimizer to leave this step out; refuse scaled gradients."""
    if getattr(optimizer, "grad_scale", None) is not None:
        raise RuntimeError(
            "the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
        )
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
