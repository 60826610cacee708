"""Residual networks and DenseNets for ImageNet, which OGN takes from torchvision 0.9 and trains on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convla.experiments.training.network_parts import BasicBlock, Network, checked, conv3, projection
from convla.extending import check_choice, check_integer

__all__ = ["densenet", "resnet"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of each width, by the depth; from 50 on they are bottlenecks."""


def resnet(
    *,
    depth: int = 18,
    stem: str = "imagenet",
    groups: int = 1,
    width: int = 64,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    classes: int = 10,
) -> Network:
    """Build a residual network of 64, 128, 256 and 512 maps: ResNet18, 34 and 50, ResNeXt50, wide ResNet50.

    Parameters
    ----------
    depth : {18, 34, 50}
        The last has bottlenecks, whose outputs are four times as wide.
    stem : {"imagenet", "cifar"}
        The published one of 7 by 7 with stride 2 and a pooling by 2 after it, which OGN uses on CIFAR as it is; or a
        convolution of 3 by 3 with stride 1, as is usual on CIFAR.
    groups, width : int
        Of the inner convolution of a bottleneck: groups, and the maps of each per 64 maps of the block. 32 and 4 make
        ResNeXt50, 1 and 128 the wide ResNet50.
    in_channels : int, default 3
    image_size : int or pair of int, default 32
        Only checked: a mean over all positions ends the network, so that it takes any size.
    classes : int, default 10

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    TypeError, ValueError, ShapeError
        If an argument is no positive integer, `image_size` neither one nor two of them, the depth or the stem unknown,
        or a network without bottlenecks is to have other groups or widths.

    Notes
    -----
    Shortcuts that change the shape are convolutions of 1 by 1 with normalisation, and the stride of a bottleneck is in
    its inner convolution. For 1000 classes there are the numbers of parameters that torchvision publishes: 11,689,512,
    21,797,672 and 25,557,032 of depths 18, 34 and 50, 25,028,904 of ResNeXt50 and 68,883,240 of the wide ResNet50. With
    the stem "imagenet" the kernels are drawn as torchvision does, normal with variance 2 / (maps times taps). CSM names
    ResNet18 and CIFAR-10 and prints neither a stem nor a number of parameters: "cifar" is our reading.

    References
    ----------
    K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016, Table 1. S. Xie et al., Aggregated Residual
    Transformations for Deep Neural Networks, CVPR 2017. S. Zagoruyko and N. Komodakis, Wide Residual Networks, BMVC
    2016. CSM, Section 6.4. OGN, Table 3.

    Examples
    --------
    >>> from convla.experiments.training.networks import resnet
    >>> sum(p.numel() for p in resnet(classes=1000).parameters())
    11689512
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth!r}")
    check_choice("stem", stem, ("imagenet", "cifar"))
    groups, width = check_integer("groups", groups, minimum=1), check_integer("width", width, minimum=1)
    bottlenecks = depth >= 50
    if not bottlenecks and (groups, width) != (1, 64):
        raise ValueError(f"groups and width are of bottlenecks: a network of depth {depth} has groups 1 and width 64")
    channels, _, classes = checked(in_channels, image_size, classes)
    layers = _stem(channels, 64) if stem == "imagenet" else [conv3(channels, 64), nn.BatchNorm2d(64), nn.ReLU()]
    last = 64
    for maps, count, stride in zip((64, 128, 256, 512), BLOCKS[depth], (1, 2, 2, 2), strict=True):
        out = 4 * maps if bottlenecks else maps
        for step in (stride, *[1] * (count - 1)):
            shortcut = nn.Identity() if step == 1 and last == out else projection(last, out, step)
            if bottlenecks:
                layers.append(_Bottleneck(last, maps * width // 64 * groups, out, step, groups, shortcut))
            else:
                layers.append(BasicBlock(last, maps, step, shortcut))
            last = out
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))
    if stem == "imagenet":
        _draw_kernels(network, "fan_out")
    return network


def densenet(
    *,
    growth: int = 32,
    first: int = 64,
    blocks: Sequence[int] = (6, 12, 24, 16),
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    classes: int = 10,
) -> Network:
    """Build a DenseNet: DenseNet121, or, with other widths and blocks, DenseNet161 and others.

    Parameters
    ----------
    growth : int, default 32
        Maps that every layer adds to those before it; 48 for DenseNet161.
    first : int, default 64
        Maps of the stem; 96 for DenseNet161.
    blocks : sequence of int, default (6, 12, 24, 16)
        Layers of each dense block; (6, 12, 36, 24) for DenseNet161.
    in_channels : int, default 3
    image_size : int or pair of int, default 32
        One side of a square, or (height, width). Each is halved twice by the stem and once between any two blocks, so
        that four blocks need 29.
    classes : int, default 10

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    TypeError, ValueError, ShapeError
        If an argument is no positive integer, or `image_size` neither one nor two of them or too small.

    Notes
    -----
    For 1000 classes there are the numbers of parameters that torchvision publishes: 7,978,856 of DenseNet121 and
    28,681,000 of DenseNet161. Kernels are drawn as torchvision does, normal with variance 2 / (channels times taps),
    and the biases of the last layer are 0.

    References
    ----------
    G. Huang et al., Densely Connected Convolutional Networks, CVPR 2017, Table 1. OGN, Table 3.

    Examples
    --------
    >>> from convla.experiments.training.networks import densenet
    >>> sum(p.numel() for p in densenet(classes=1000).parameters())
    7978856
    """
    growth, maps = check_integer("growth", growth, minimum=1), check_integer("first", first, minimum=1)
    counts = [check_integer(f"blocks[{i}]", count, minimum=1) for i, count in enumerate(blocks)]
    channels, _, classes = checked(in_channels, image_size, classes, least=4 * 2 ** (len(counts) - 1) - 3)
    layers = _stem(channels, maps)
    for number, count in enumerate(counts):
        if number:
            layers += [nn.BatchNorm2d(maps), nn.ReLU(), _conv1(maps, maps // 2), nn.AvgPool2d(2)]
            maps //= 2
        for _ in range(count):
            layers.append(_DenseLayer(maps, growth))
            maps += growth
    layers += [nn.BatchNorm2d(maps), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, classes)]
    network = nn.Sequential(*layers)
    _draw_kernels(network, "fan_in")
    nn.init.zeros_(network[-1].bias)
    return network


class _Bottleneck(nn.Module):  # type: ignore[misc]
    """Convolutions of 1 by 1, 3 by 3 and 1 by 1, and a shortcut, normalised before the sum, with ReLU after it."""

    def __init__(self, channels: int, inner: int, maps: int, stride: int, groups: int, shortcut: Network) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(_conv1(channels, inner), nn.BatchNorm2d(inner), nn.ReLU()),
            *(conv3(inner, inner, stride, groups), nn.BatchNorm2d(inner), nn.ReLU()),
            *(_conv1(inner, maps), nn.BatchNorm2d(maps)),
        )
        self.shortcut = shortcut
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.activation(self.branch(images) + self.shortcut(images))


class _DenseLayer(nn.Module):  # type: ignore[misc]
    """Maps of a 1 by 1 and a 3 by 3 convolution, each of a normalised and rectified input, beside those they are of."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.BatchNorm2d(channels), nn.ReLU(), _conv1(channels, 4 * growth)),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU(), conv3(4 * growth, growth)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, self.branch(images)], dim=1)


def _stem(channels: int, maps: int) -> list[Network]:
    first = nn.Conv2d(channels, maps, 7, stride=2, padding=3, bias=False)
    return [first, nn.BatchNorm2d(maps), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]


def _conv1(channels: int, maps: int) -> Network:
    return nn.Conv2d(channels, maps, 1, bias=False)


def _draw_kernels(network: Network, fan: str) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="relu")
