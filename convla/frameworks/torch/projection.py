"""Weights projected onto layers of bounded norm, every few steps of an optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convla._array import to_numpy
from convla._convergence import unheard
from convla._threads import in_order
from convla._validate import check_integer, check_real
from convla.frameworks.torch.layer_maps import LayerMap, layer_map
from convla.frameworks.torch.layers import linear_maps, observed_shapes
from convla.projections.clipping import clip_singular_values
from convla.projections.following import FollowedKernel

__all__ = ["SpectralProjection"]


class SpectralProjection:
    """Project the weights of a network onto layers of bounded norm, every few steps of an optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; it stays the one to call.
    network : torch.nn.Module
        Whose convolutions, transposed or not, and linear layers are projected. Of layers that share a weight the first
        counts.
    example : tensor
        An input of the network, which shows on what images its layers work. A layer that it does not reach is left
        alone.
    maximum : float, default 1
        Of every layer's largest singular value.
    every : int, default 10
        Steps of the optimizer between two projections.
    nearest : bool, default False
        True for the nearest kernels at each projection, which takes minutes for large networks. By default near ones
        are found in a few steps, see `convla.clip_singular_values`, that start from the singular vectors of the last
        projection.
    **options
        Of `convla.clip_singular_values`: ``method``, ``max_iterations``; for nearest kernels ``rtol`` too, and
        ``minimum``, beside which kernels are found as with `nearest`.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is wrong in type or value, a layer's weight is computed from others (by a parametrization), or
        is of half precision.

    Notes
    -----
    After each projection the maximum is proved for every layer as its weight stands. In between, steps may leave it:
    call `project` before a checkpoint. What the optimizer remembers of its steps is left as it is. The projections work
    in host memory, several layers at once: weights on another device are copied there and back, at each one.

    What is proved of a near kernel is the maximum itself, on the smallest torus that the layer's image and padding fit
    into. `convla.singular_value_bounds` of the weight chooses its torus by other means, and may say some 1e-4 more.

    A layer that has never exceeded the maximum costs its proof, and one that has changed since its last proof by less
    than that left below the maximum a product of its taps. No layer is moved farther than to scale it down by its
    proved norm would move it, but for rounding. The first projection of a layer that exceeds the maximum decomposes
    matrices of the order of its channels; later ones do so where more than a quarter of the singular values are above
    it.

    Attributes
    ----------
    upper : dict of str to float
        By the layers' names, the proved bounds of the last projection; if that was interrupted, of what it has written.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import SpectralProjection
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> projection = SpectralProjection(optimizer, network, torch.zeros(1, 1, 6, 6), maximum=0.5, every=1)
    >>> network(torch.ones(1, 1, 6, 6)).sum().backward()
    >>> optimizer.step()
    >>> max(projection.upper.values()) <= 0.5
    True
    >>> projection.remove()
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        network: Any,
        example: Tensor,
        *,
        maximum: float = 1.0,
        every: int = 10,
        nearest: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.maximum = check_real("maximum", maximum, positive=True)
        self.every = check_integer("every", every, minimum=1)
        unknown = set(options) - {"minimum", "method", "rtol", "max_iterations"}
        if unknown:
            raise TypeError(f"options must be of clip_singular_values, got {sorted(unknown)}")
        self._options, self._nearest = options, nearest or bool(options.get("minimum"))
        if "rtol" in options and not self._nearest:
            raise TypeError(f"rtol must be given with nearest=True or a minimum, got {options['rtol']} alone")
        layers = linear_maps(network)
        self._layers: dict[str, tuple[Any, LayerMap]] = {}
        for name, shape in observed_shapes(network, layers, example).items():
            try:
                weight = layers[name].weight
                if weight.dtype not in (torch.float32, torch.float64):
                    raise TypeError(f"weight must be of float32 or float64, got {weight.dtype}")
                self._layers[name] = layers[name], layer_map(layers[name], shape)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {name}: {error}") from error
        followed = {name: options[name] for name in ("method", "max_iterations") if options.get(name) is not None}
        self._followed = {name: FollowedKernel(self.maximum, **followed) for name in self._layers}
        self.steps = 0
        self.upper: dict[str, float] = {}
        self._hook = optimizer.register_step_post_hook(self._after)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._hook.remove()

    def project(self) -> None:
        """Project all weights now."""
        # The largest first: then no thread is left alone with one at the end.
        names = sorted(self._layers, key=lambda name: -self._layers[name][0].weight.numel())
        self.upper = {}  # of weights that were changed since; where this is interrupted, nothing is said of the others
        with torch.no_grad():
            found = dict(zip(names, in_order(self._projected, names), strict=True))
            for name, (layer, _) in self._layers.items():
                kernel, upper = found[name]
                if kernel is not None:
                    layer.weight.copy_(torch.as_tensor(kernel).reshape(layer.weight.shape))
                self.upper[name] = upper

    def _projected(self, name: str) -> tuple[Any, float]:
        try:
            with unheard():  # the maximum is kept all the same
                return self._kept(name)
        except ValueError as error:  # of what a step has left of the weight: NaN, infinity
            if not name:
                raise
            raise type(error)(f"layer {name}: {error}") from error

    def _kept(self, name: str) -> tuple[Any, float]:
        """Return a layer's kernel, or None where it stays as it is, and the bound that is proved of it."""
        layer, where = self._layers[name]
        if self._nearest:
            kernel = where.kernel(layer.weight).cpu()
            clipped = clip_singular_values(
                kernel, where.image_shape, maximum=self.maximum, **where.settings, **self._options
            )
            return clipped.kernel if clipped.distance else None, clipped.upper
        operator = where.host_operator(layer.weight)
        kept = self._followed[name].kept(operator)
        return None if kept.operator is operator else to_numpy(kept.operator.kernel).copy(), kept.upper

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        self.steps += 1
        if self.steps % self.every == 0:
            self.project()
