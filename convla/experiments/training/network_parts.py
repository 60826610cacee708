"""What the networks of the sources are made of, and the check of the arguments that all builders take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from convla.errors import ShapeError
from convla.extending import check_integer, check_sizes

__all__ = ["BasicBlock", "checked", "conv3", "projection"]

Network = Any


class BasicBlock(nn.Module):  # type: ignore[misc]
    """Two convolutions and a shortcut, normalised before the sum, with ReLU after it."""

    def __init__(self, channels: int, maps: int, stride: int, shortcut: Network) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(conv3(channels, maps, stride), nn.BatchNorm2d(maps), nn.ReLU()),
            *(conv3(maps, maps), nn.BatchNorm2d(maps)),
        )
        self.shortcut = shortcut
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of branch and shortcut, activated."""
        return self.activation(self.branch(images) + self.shortcut(images))


def conv3(channels: int, maps: int, stride: int = 1, groups: int = 1) -> Network:
    """Return a convolution of 3 by 3 that keeps the size, or divides it by the stride; a normalisation follows it."""
    return nn.Conv2d(channels, maps, 3, stride=stride, padding=1, bias=False, groups=groups)


def projection(channels: int, maps: int, stride: int) -> Network:
    """Return a shortcut that changes the shape: a convolution of 1 by 1 with normalisation."""
    return nn.Sequential(nn.Conv2d(channels, maps, 1, stride=stride, bias=False), nn.BatchNorm2d(maps))


def checked(
    in_channels: int, image_size: int | Sequence[int], classes: int, *, least: int = 1
) -> tuple[int, tuple[int, ...], int]:
    """Return the arguments that all builders take, the image's size as a pair; raise if they are wrong."""
    sizes: Sequence[int] = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sizes) != 2:
        raise ShapeError(f"image_size must be an integer or a pair (height, width), got {image_size!r}")
    size = check_sizes("image_size", sizes)
    if min(size) < least:
        raise ShapeError(f"image_size must be at least {least} along both axes for this network, got {image_size!r}")
    return check_integer("in_channels", in_channels, minimum=1), size, check_integer("classes", classes, minimum=1)
