"""What the adapter knows of a network's layers: which they are, how a weight is laid out, on what images they work."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convla._array import describe
from convla.typing import Boundary

__all__ = [
    "Layout",
    "check_network",
    "convolution_settings",
    "convolutions",
    "current_weight",
    "evaluating",
    "image_shapes",
    "linear_maps",
    "observed_shapes",
    "version",
    "weight_hook",
    "weight_layouts",
]

Layer = Any
Network = Any

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

BOUNDARIES: dict[str, Boundary] = {
    "zeros": "zero",
    "circular": "circular",
    "reflect": "reflect",
    "replicate": "replicate",
}
"""What a layer's `padding_mode` is called here."""


@dataclass(frozen=True)
class Layout:
    """How a layer's weight holds its filters.

    Attributes
    ----------
    groups : int
    transposed : bool
        Whether it is of shape (c_in, c_out // groups, *kernel), as in a transposed convolution.
    """

    groups: int = 1
    transposed: bool = False

    def filters(self, weight: Tensor) -> Tensor:
        """Return a view of a weight as (groups, c_out // groups, c_in // groups, *kernel)."""
        shape = tuple(weight.shape)
        blocks = weight.reshape(self.groups, shape[0] // self.groups, *shape[1:])
        return blocks.swapaxes(1, 2) if self.transposed else blocks

    def weight(self, filters: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return what `filters` gave as an array of the weight's shape."""
        return (filters.swapaxes(1, 2) if self.transposed else filters).reshape(shape)


def convolutions(network: Network) -> dict[str, Layer]:
    """Return a network's convolutional layers by name, each weight once.

    Parameters
    ----------
    network : torch.nn.Module

    Returns
    -------
    dict of str to torch.nn.Conv1d, Conv2d or Conv3d
        In the order of ``network.named_modules()``; of layers that share one weight the first. Transposed convolutions
        are not among them.

    Raises
    ------
    TypeError
        If `network` is no module.
    ValueError
        If it has no such layer, or one whose weight has no shape yet (a lazy layer before its first input).

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import convolutions
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> list(convolutions(network))
    ['0', '2']
    """
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, layer in _named_layers(network, CONVOLUTIONS):
        weight = layer.weight
        # A computed weight (of a parametrization) is made anew at each access, and cannot be shared.
        if isinstance(weight, nn.Parameter):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
        found[name] = layer
    if not found:
        raise ValueError(f"network must have a convolutional layer, got a {describe(network)} without one")
    return found


def image_shapes(network: Network, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the sizes of the images that each convolutional layer works on.

    Parameters
    ----------
    network : torch.nn.Module
        Run once on the example, in evaluation mode and without gradients; each module's mode is then set back.
    example : tensor
        An input of the network; a batch of one will do.

    Returns
    -------
    dict of str to tuple of int
        By the names of `convolutions`, without the channels. A layer that the example does not reach is missing; of
        several images of a layer the largest counts, on which its largest singular value is largest.

    Raises
    ------
    TypeError, ValueError
        As `convolutions`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import image_shapes
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> image_shapes(network, torch.zeros(1, 3, 32, 32))
    {'0': (32, 32), '2': (30, 30)}
    """
    return observed_shapes(network, convolutions(network), example)


def observed_shapes(network: Network, layers: dict[str, Layer], example: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the sizes of the images of those layers that the example reaches; see `image_shapes`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str, layer: Layer) -> Any:
        axes = layer.weight.ndim - 2

        def record(_: Layer, inputs: tuple[Tensor, ...]) -> None:
            shape = tuple(inputs[0].shape[inputs[0].ndim - axes :])
            if math.prod(shape) > math.prod(shapes.get(name, (0,))):
                shapes[name] = shape

        return layer.register_forward_pre_hook(record)

    hooks: list[Any] = []
    with evaluating(network):
        try:
            for name, layer in layers.items():
                hooks.append(watch(name, layer))
            with torch.no_grad():
                network(example)
        finally:
            for hook in hooks:
                hook.remove()
    return {name: shapes[name] for name in layers if name in shapes}


@contextlib.contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into its own, however the block is left."""
    modes = [(module, module.training) for module in network.modules()]

    def put_back() -> None:
        for module, mode in modes:
            module.training = mode

    try:
        with contextlib.suppress(NotImplementedError):  # an exported program has no modes
            network.eval()
        yield
    finally:
        try:
            put_back()
        except BaseException:  # interrupted
            put_back()
            raise


def version(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place, as far as PyTorch counts."""
    return 0 if tensor.is_inference() else int(tensor._version)


def current_weight(layer: Layer) -> Tensor:
    """Return a layer's weight as its next forward pass will use it, followed by autograd.

    The hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm`` compute it in each forward pass only: before the
    first it has no gradient, and after a step of the optimizer it is the old one. (The parametrizations of the same
    names, in ``torch.nn.utils.parametrizations``, compute it at each access.)
    """
    hook = weight_hook(layer)
    if hook is None:
        return layer.weight
    if not hasattr(layer, "weight_u"):
        return hook.compute_weight(layer)
    # spectral_norm's power iteration is made here as the forward pass will make it, and left to that to keep.
    buffers = [layer.weight_u, layer.weight_v]
    before = [buffer.clone() for buffer in buffers]
    weight = hook.compute_weight(layer, do_power_iteration=layer.training)
    with torch.no_grad():
        for buffer, kept in zip(buffers, before, strict=True):
            buffer.copy_(kept)
    return weight


def weight_hook(layer: Layer) -> Any:
    """Return the hook that computes a layer's weight before each forward pass; None without one."""
    for hook in layer._forward_pre_hooks.values():
        if getattr(hook, "name", None) == "weight" and hasattr(hook, "compute_weight"):
            return hook
    return None


def weight_layouts(network: Network, *, linear: bool) -> dict[Tensor, Layout]:
    """Return the layout of the weight of each convolution, transposed or not, and if `linear` of each linear layer.

    Where a weight is computed from one parameter of its own shape (by ``spectral_norm`` or ``orthogonal``, say), it is
    that parameter's, on which the optimizer steps.

    Raises
    ------
    TypeError
        If `network` is no module.
    ValueError
        If layers of different layout share a weight, a weight has no shape yet, or one is computed from parameters of
        which none can be taken for it.
    """
    layouts: dict[Tensor, Layout] = {}
    for name, layer in _named_layers(network, (*CONVOLUTIONS, *TRANSPOSED, *((nn.Linear,) if linear else ()))):
        layout = Layout(getattr(layer, "groups", 1), isinstance(layer, TRANSPOSED))
        parameter = _parameter_of(name, layer)
        if layouts.setdefault(parameter, layout) != layout:
            raise ValueError(
                f"layers that share a weight must hold their filters alike, got {layouts[parameter]} and, in layer "
                f"{name}, {layout}"
            )
    return layouts


def linear_maps(network: Network) -> dict[str, Layer]:
    """Return a network's convolutions, transposed or not, and linear layers by name, each weight once.

    Raises
    ------
    TypeError
        If `network` is no module.
    ValueError
        If a weight has no shape yet, or is computed from others.
    """
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, layer in _named_layers(network, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
        if nn.utils.parametrize.is_parametrized(layer, "weight") or not isinstance(layer.weight, nn.Parameter):
            raise ValueError(f"layer {name}: its weight is computed from others, and cannot be written into")
        if id(layer.weight) not in seen:
            found[name] = layer
        seen.add(id(layer.weight))
    return found


def _parameter_of(name: str, layer: Layer) -> Tensor:
    """Return the parameter that is a layer's weight, or the only one that it is computed from, of its shape."""
    weight = layer.weight
    if isinstance(weight, nn.Parameter):
        return weight
    if nn.utils.parametrize.is_parametrized(layer, "weight"):
        sources = list(layer.parametrizations.weight.parameters())
    else:
        sources = [p for key, p in layer.named_parameters(recurse=False) if key.startswith("weight")]
    if len(sources) == 1 and sources[0].shape == weight.shape:
        return sources[0]
    raise ValueError(
        f"layer {name}: its weight, of shape {tuple(weight.shape)}, is computed from parameters of shapes "
        f"{[tuple(p.shape) for p in sources]}, of which none has the gradient of the filters: remove the normalization "
        "or parametrization of the weight"
    )


def check_network(network: object) -> None:
    """Raise `TypeError` unless `network` is a module."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {describe(network)}")


def _named_layers(network: Network, kinds: tuple[Any, ...]) -> Iterator[tuple[str, Layer]]:
    check_network(network)
    for name, layer in network.named_modules():
        if not isinstance(layer, kinds):
            continue
        if isinstance(layer.weight, nn.parameter.UninitializedParameter):
            raise ValueError(f"layer {name} has no weight yet: pass an input through the network first")
        yield name, layer


def convolution_settings(layer: Layer) -> dict[str, Any]:
    """Return a convolution's padding, stride, dilation, groups and boundary, as keywords of `convla.ConvOperator`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch.layers import convolution_settings
    >>> convolution_settings(torch.nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular", groups=2))
    {'padding': 'same', 'stride': (1,), 'dilation': (1,), 'groups': 2, 'boundary': 'circular'}
    """
    return {
        # The names mean the same there as here.
        "padding": layer.padding if isinstance(layer.padding, str) else tuple((p, p) for p in layer.padding),
        "stride": tuple(layer.stride),
        "dilation": tuple(layer.dilation),
        "groups": layer.groups,
        "boundary": BOUNDARIES[layer.padding_mode],
    }
