"""ResNet-50 and MobileNetV3-small as they are published, for what regularisation costs beside a small batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Network = Any


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *_normed(channels, width, 1), nn.ReLU(),
            *_normed(width, width, 3, stride), nn.ReLU(),
            *_normed(width, out, 1),
        )  # fmt: skip
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(channels, out, 1, stride))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


def resnet50(classes: int = 1000) -> Network:
    """Return the network of K. He et al., Deep Residual Learning, CVPR 2016, with the stride in the 3x3 layers."""
    layers = [*_normed(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(_Bottleneck(channels, width, stride if number == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class _Squeeze(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1), nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.gate(images) * images


class _Inverted(nn.Module):
    def __init__(self, setting: tuple[int, ...], activation: type[nn.Module]) -> None:
        super().__init__()
        channels, size, wide, out, squeezed, stride = setting
        layers: list[nn.Module] = []
        if wide != channels:
            layers += [*_normed(channels, wide, 1), activation()]
        layers += [*_normed(wide, wide, size, stride, wide), activation()]
        if squeezed:
            layers.append(_Squeeze(wide, squeezed))
        self.body = nn.Sequential(*layers, *_normed(wide, out, 1))
        self.residual = stride == 1 and channels == out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.body(images) if self.residual else self.body(images)


# Channels in, kernel, expanded, channels out, squeezed (0: not), stride; whether by hard swish.
_MOBILE = (
    ((16, 3, 16, 16, 8, 2), False), ((16, 3, 72, 24, 0, 2), False), ((24, 3, 88, 24, 0, 1), False),
    ((24, 5, 96, 40, 24, 2), True), ((40, 5, 240, 40, 64, 1), True), ((40, 5, 240, 40, 64, 1), True),
    ((40, 5, 120, 48, 32, 1), True), ((48, 5, 144, 48, 40, 1), True), ((48, 5, 288, 96, 72, 2), True),
    ((96, 5, 576, 96, 144, 1), True), ((96, 5, 576, 96, 144, 1), True),
)  # fmt: skip


def mobilenet_v3_small(classes: int = 1000) -> Network:
    """Return the network of A. Howard et al., Searching for MobileNetV3, ICCV 2019, Table 2."""
    layers = [*_normed(3, 16, 3, 2), nn.Hardswish()]
    layers += [_Inverted(setting, nn.Hardswish if swish else nn.ReLU) for setting, swish in _MOBILE]
    layers += [*_normed(96, 576, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, classes))


def _normed(channels: int, maps: int, size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    layer = nn.Conv2d(channels, maps, size, stride, size // 2, groups=groups, bias=False)
    return layer, nn.BatchNorm2d(maps)
