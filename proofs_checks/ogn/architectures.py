"""OGN Tables 3 to 5: the networks that it takes from torchvision, counted and laid out from their papers' tables."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from proofs_checks import networks
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence

__all__ = ["STATEMENTS"]

BUILT = {
    "resnet18": (11_689_512, "resnet18-imagenet"),
    "resnet34": (21_797_672, "resnet34-imagenet"),
    "resnet50": (25_557_032, "resnet50-imagenet"),
    "resnext50_32x4d": (25_028_904, "resnext50-imagenet"),
    "wide_resnet50_2": (68_883_240, "wide-resnet50-imagenet"),
    "densenet121": (7_978_856, "densenet121-imagenet"),
    "densenet161": (28_681_000, "densenet161-imagenet"),
}
"""The networks of footnote 3: the parameters that torchvision publishes, for 1000 classes, and our names."""


def _convolution(c_in: int, c_out: int, side: int, groups: int = 1) -> int:
    """Count the weights of a convolution without biases and of the normalisation of its maps."""
    return c_in // groups * c_out * side**2 + networks.batch_norm_parameters(c_out)


def _residual(blocks: tuple[int, ...], classes: int, *, inner: int = 0, groups: int = 1) -> int:
    """Count the parameters of a residual network; with `inner` maps in the first blocks' middle, of bottlenecks."""
    total, before = _convolution(3, 64, 7), 64
    for stage, count in enumerate(blocks):
        maps, middle = 64 * 2**stage, inner * 2**stage
        after = 4 * maps if inner else maps
        for place in range(count):
            if inner:
                total += _convolution(before, middle, 1) + _convolution(middle, middle, 3, groups)
                total += _convolution(middle, after, 1)
            else:
                total += _convolution(before, maps, 3) + _convolution(maps, maps, 3)
            total += _convolution(before, after, 1) if place == 0 and before != after else 0
            before = after
    return total + networks.linear_parameters(before, classes)


def _dense(blocks: tuple[int, ...], classes: int, *, growth: int, first: int) -> int:
    """Count the parameters of a DenseNet, whose normalisations come before its convolutions."""
    total, maps = _convolution(3, first, 7), first
    for stage, count in enumerate(blocks):
        if stage:  # a transition
            total += networks.batch_norm_parameters(maps) + maps * (maps // 2)
            maps //= 2
        for _layer in range(count):
            total += networks.batch_norm_parameters(maps) + _convolution(maps, 4 * growth, 1) + 9 * 4 * growth * growth
            maps += growth
    return total + networks.batch_norm_parameters(maps) + networks.linear_parameters(maps, classes)


def _counted(name: str, classes: int) -> int:
    if name.startswith("densenet"):
        larger = name == "densenet161"
        growth, first = (48, 96) if larger else (32, 64)
        return _dense((6, 12, 36 if larger else 24, 24 if larger else 16), classes, growth=growth, first=first)
    blocks = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3)
    inner = {"resnet50": 64, "resnext50_32x4d": 128, "wide_resnet50_2": 128}.get(name, 0)
    return _residual(blocks, classes, inner=inner, groups=32 if name.startswith("resnext") else 1)


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import torch

        from convla.experiments.training import networks as built
    except ImportError:
        raise UnavailableError("the networks need PyTorch: pip install 'convla[torch]'") from None
    return torch, built


@evidence(Kind.PROOF, "seven networks, 1000 classes and 10: counted from the papers' tables, and built")
def networks_have_the_published_parameters(_: int) -> str:
    torch, built = _library()
    for name, (published, ours) in BUILT.items():
        assert _counted(name, 1000) == published, name
        for classes in (1000, 10):
            with torch.device("meta"):
                network = built.NETWORKS[ours](classes=classes)
            assert sum(p.numel() for p in network.parameters()) == _counted(name, classes), (name, classes)
    return ", ".join(f"{name} {_counted(name, 10):,}" for name in BUILT) + " with 10 classes"


@evidence(
    Kind.PROOF, "images of 224 and of 32 a side: the sizes of maps that the papers print, and those that CIFAR leaves"
)
def networks_halve_where_the_papers_do(_: int) -> str:
    torch, built = _library()
    for _published, ours in BUILT.values():
        for side, sizes in ((224, [112, 56, 28, 14, 7, 1]), (32, [16, 8, 4, 2, 1])):
            with torch.device("meta"):
                network = built.NETWORKS[ours](image_size=side).eval()
                value, found, last = torch.empty(1, 3, side, side), [], 0
            for layer in network:
                value = layer(value)
                if value.ndim == 4 and value.shape[-1] != last:
                    last = value.shape[-1]
                    found.append(last)
            assert found == sizes, (ours, side, found)
            assert value.shape == (1, 10), ours
    with torch.device("meta"):
        kept = built.resnet(stem="cifar")[:3](torch.empty(1, 3, 32, 32))
    assert kept.shape == (1, 64, 32, 32), kept.shape
    return "112, 56, 28, 14, 7 of images of 224; 16, 8, 4, 2, 1 of CIFAR's"


@evidence(
    Kind.PROPERTY,
    "each convolution of resnet18 and densenet121: the variance of its kernels, as torchvision draws them",
)
def kernels_are_drawn_as_published(_: int) -> str:
    torch, built = _library()
    farthest = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = {name: built.NETWORKS[f"{name}-imagenet"]() for name in ("resnet18", "densenet121")}
    for name, network in drawn.items():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                farthest = max(farthest, _deviations(layer, outputs=name == "resnet18"))
    # 139 samples: a sample of n normal numbers has a variance with a relative error of sqrt(2 / n).
    assert farthest < 5.0, farthest
    assert not drawn["densenet121"][-1].bias.any()
    return f"within {farthest:.1f} standard errors of 2 / (maps times taps)"


def _deviations(layer: Any, *, outputs: bool) -> float:
    """Return how many standard errors the variance of a layer's kernels is from that of He et al.'s draw."""
    weight = layer.weight.detach()
    fan = (weight.shape[0] if outputs else weight.shape[1]) * weight.shape[2] * weight.shape[3]
    relative = float(weight.double().square().mean()) * fan / 2 - 1
    return float(abs(relative) / math.sqrt(2 / weight.numel()))


STATEMENTS = (
    Statement(
        id="OGN-networks",
        number="Tables 3 to 5, footnote 3",
        title="the networks taken from torchvision",
        claim="resnet18, 34 and 50, ResNeXt50 32x4d, wide ResNet50, DenseNet121 and DenseNet161 are trained on CIFAR-10 as they are "
        "for ImageNet.",
        verdict=Verdict.HOLDS,
        evidence=(
            networks_have_the_published_parameters,
            networks_halve_where_the_papers_do,
            kernels_are_drawn_as_published,
        ),
        functions=("convla.experiments.training.networks.resnet", "convla.experiments.training.networks.densenet"),
        note="The source prints no numbers of parameters of these; torchvision's and those of the networks' own papers are "
        "counted. On images of 32 a side the stem leaves 8, and the last blocks see one position.",
    ),
)
