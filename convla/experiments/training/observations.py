"""What is seen of a network's layers as it trains: how alike maps are, which weights rest, how filters correlate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convla.frameworks.torch import convolutions

__all__ = [
    "DISTANCES",
    "activations",
    "channel_correlation",
    "channel_cosines",
    "channel_moments",
    "map_cosines",
    "resting_shares",
]

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU)

OBSERVED = 256
"""Images whose maps are looked at: the first of them, always the same."""

DISTANCES = 16
"""Distances of channels, from 1 on, at which their correlation is kept."""


def activations(network: Any) -> dict[str, Any]:
    """Return a network's activations by name: what they put out is what a layer hands on to the next."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, ACTIVATIONS)}


def map_cosines(network: Any, images: Any) -> list[float]:
    """Return how alike the maps of each layer are: the mean modulus of the cosine over all pairs of different maps.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode. Its layers are its `activations` that put out maps, in the order of their names.
    images : tensor of shape (images, channels, height, width)
        The first 256 of them are looked at.

    Returns
    -------
    list of float
        One for each layer, NaN for one that puts out no maps or only one. A map that is 0 throughout is at right
        angles to all.

    References
    ----------
    OGN, Section 4.2 and Figure 8.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Conv2d(1, 2, 1, bias=False)
    >>> with torch.no_grad():
    ...     weights = layer.weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
    >>> network = torch.nn.Sequential(layer, torch.nn.ReLU())
    >>> [round(cosine, 6) for cosine in map_cosines(network, torch.ones(1, 1, 3, 3))]
    [1.0]
    """
    found: dict[str, float] = {}

    def look(name: str, maps: Any) -> None:
        if maps.ndim != 4 or maps.shape[1] < 2:
            return
        rows = nn.functional.normalize(maps.detach().flatten(2), dim=2)
        pairs = torch.triu_indices(maps.shape[1], maps.shape[1], 1, device=maps.device)
        found[name] = float((rows @ rows.mT)[:, pairs[0], pairs[1]].abs().mean(dtype=torch.float64))

    names = activations(network)
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, maps, name=name: look(name, maps))
        for name, layer in names.items()
    ]
    try:
        with torch.no_grad():
            network(images[:OBSERVED])
    finally:
        for hook in hooks:
            hook.remove()
    return [found.get(name, float("nan")) for name in names]


def resting_shares(network: Any) -> Any:
    """Return the share of each convolution's weights whose gradient is 0: those that this batch does not change.

    Parameters
    ----------
    network : torch.nn.Module
        After a backward pass.

    Returns
    -------
    tensor of float64, of shape (convolutions,)
        On the network's device, so that nothing waits for it.

    References
    ----------
    OGN, Section 4.3 and Figure 9: "temporarily disabled parameters".
    """
    return torch.stack(
        [
            (layer.weight.grad == 0).mean(dtype=torch.float64)
            if layer.weight.grad is not None
            else torch.ones((), dtype=torch.float64, device=layer.weight.device)
            for layer in convolutions(network).values()
        ]
    )


def channel_cosines(kernel: Any, axis: int) -> Any:
    """Return the cosines of all slices of a kernel along an axis of channels with each other.

    Parameters
    ----------
    kernel : tensor of shape (c_out, c_in, *kernel)
    axis : {0, 1}
        The output channels, whose slices are the filters, or the input channels.

    Returns
    -------
    tensor of float64, of shape (channels, channels)
        Symmetric. A slice that is 0 throughout is at right angles to all.

    Notes
    -----
    Scaling a slice changes nothing. Scaling the channels of the other axis does: that of the filters' cosines is the
    input channels', which a normalisation before the layer scales.

    References
    ----------
    CDG, Figures 1 and 13.

    Examples
    --------
    >>> import torch
    >>> kernel = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).reshape(2, 2, 1)
    >>> stretched = torch.tensor([[2.0, 1.0], [2.0, -1.0]]).reshape(2, 2, 1)
    >>> [round(float(channel_cosines(k, 0)[0, 1]), 6) for k in (kernel, stretched)]
    [0.0, 0.6]
    """
    rows = nn.functional.normalize(kernel.detach().to(torch.float64).movedim(axis, 0).flatten(1), dim=1)
    return rows @ rows.mT


def channel_moments(kernel: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation over the output channels, at each place of a filter.

    Parameters
    ----------
    kernel : tensor of shape (c_out, c_in, *kernel)

    Returns
    -------
    mean, deviation : tensors of float64, of shape (c_in, *kernel)

    References
    ----------
    CDG, Figure 14.

    Examples
    --------
    >>> import torch
    >>> mean, deviation = channel_moments(torch.tensor([[1.0, 2.0], [3.0, 2.0]]).reshape(2, 2, 1))
    >>> mean.flatten().tolist(), deviation.flatten().tolist()
    ([2.0, 2.0], [1.0, 0.0])
    """
    values = kernel.detach().to(torch.float64)
    return values.mean(dim=0), values.std(dim=0, correction=0)


def channel_correlation(kernel: Any, axis: int) -> list[float]:
    """Return how weights go together along an axis of channels: the mean cosine of two slices, by their distance.

    Every slice is divided by its norm, so that scaling a channel changes nothing.

    Parameters
    ----------
    kernel : tensor of shape (c_out, c_in, *kernel)
    axis : {0, 1}
        The output or the input channels.

    Returns
    -------
    list of float
        First the mean over all pairs, then at the distances 1 to `DISTANCES`; NaN where there is no pair.

    References
    ----------
    CDG, Figures 1 and 11.

    Examples
    --------
    >>> import torch
    >>> kernel = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]).reshape(3, 2, 1)
    >>> [round(value, 6) for value in channel_correlation(kernel, 0)[:4]]
    [0.333333, 0.5, 0.0, nan]
    """
    cosines = channel_cosines(kernel, axis)
    count = len(cosines)
    pairs = torch.triu_indices(count, count, 1, device=cosines.device)
    bands = [cosines.diagonal(distance).mean() for distance in range(1, min(count, DISTANCES + 1))]
    known: list[float] = torch.stack([cosines[pairs[0], pairs[1]].mean(), *bands]).tolist()
    return known + [float("nan")] * (DISTANCES + 1 - len(known))
