"""The networks that an experiment may name: those of `convla.frameworks.torch`, and the few that only they need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from convla._validate import check_choice
from convla.frameworks.torch import NETWORKS as LIBRARY
from convla.frameworks.torch import csm_cnn

__all__ = ["NETWORKS", "build_network", "vgg16"]

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(*, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> Any:
    """Build VGG-16 for small images: its thirteen convolutions, normalised, and one linear layer.

    Parameters
    ----------
    in_channels : int, default 3
    image_size : int, default 32
        At least 32: it is halved five times.
    classes : int, default 10

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    ValueError
        If the images are too small.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in vgg16().parameters())
    14728266
    """
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 for vgg16, got {image_size}")
    layers: list[Any] = []
    channels, size = in_channels, image_size
    for stage in VGG16:
        for maps in stage:
            layers += [nn.Conv2d(channels, maps, 3, padding=1), nn.BatchNorm2d(maps), nn.ReLU()]
            channels = maps
        layers.append(nn.MaxPool2d(2))
        size //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, classes))


NETWORKS: dict[str, Callable[..., Any]] = {
    **LIBRARY,
    "cnn1-16": functools.partial(csm_cnn, maps=16),
    "cnn2-32": functools.partial(csm_cnn, maps=32),
    "vgg16": vgg16,
}
"""What builds each network; those whose name ends in a number of maps are CSM's, narrower or wider."""


def build_network(name: str, *, in_channels: int, image_size: int, classes: int) -> Any:
    """Return a network by its name, its weights drawn from PyTorch's own generator.

    Raises
    ------
    ValueError
        If there is none of that name, or the images are too small for it.
    """
    build = NETWORKS[check_choice("network", name, tuple(NETWORKS))]
    return build(in_channels=in_channels, image_size=image_size, classes=classes)
