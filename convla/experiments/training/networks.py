"""The networks of the sources' experiments, for images of any size that they can hold.

Each builder takes ``in_channels``, ``image_size`` and ``classes``, by default those of CIFAR-10, on which the sources
trained; `NETWORKS` has them by name. Weights are those of PyTorch's own initialisers, which no source replaces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from convla.experiments.training.imagenet_networks import densenet, resnet
from convla.experiments.training.network_parts import BasicBlock, Network, checked, conv3
from convla.extending import check_choice, check_integer

__all__ = [
    "NETWORKS",
    "basic_cnn",
    "build_network",
    "cdg_cnn",
    "cifar_resnet",
    "csm_cnn",
    "densenet",
    "resnet",
    "vgg16",
]

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def csm_cnn(
    *, maps: int = 64, in_channels: int = 3, image_size: int | Sequence[int] = 32, classes: int = 10
) -> Network:
    """Build CNN1 of the convolutional similarity paper, or with more `maps` its wider relatives.

    Parameters
    ----------
    maps : int, default 64
        Feature maps of every layer: 64 is CNN1, 128 CNN2, and 512 the CNN2 of Section 6.3.
    in_channels : int, default 3
    image_size : int or pair of int, default 32
        One side of a square, or (height, width); any.
    classes : int, default 10

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    TypeError, ValueError, ShapeError
        If an argument is no positive integer, or `image_size` neither one nor two of them.

    Notes
    -----
    Table 7 prints kernel size, padding 2, pooling and channels, and neither stride nor bias. Stride 1 follows from the
    576 inputs of CNN1's linear layer, 64 maps of 3 by 3, and biases from the printed numbers of parameters: 118,858,
    458,890 and 7,143,946. Other image sizes change the linear layer only.

    References
    ----------
    CSM, Table 7 and Section 6.3.

    Examples
    --------
    >>> from convla.experiments.training.networks import csm_cnn
    >>> sum(p.numel() for p in csm_cnn().parameters())
    118858
    """
    maps = check_integer("maps", maps, minimum=1)
    channels, size, classes = checked(in_channels, image_size, classes)
    layers: list[Network] = []
    for _ in range(4):
        layers += [nn.Conv2d(channels, maps, 3, padding=2), nn.BatchNorm2d(maps), nn.LeakyReLU(0.2), nn.MaxPool2d(2, 2)]
        channels = maps
        # A kernel of 3 with padding 2 adds two positions, so that the pooling has three at least.
        size = tuple((n + 2) // 2 for n in size)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(maps * size[0] * size[1], classes))


def basic_cnn(*, in_channels: int = 3, image_size: int | Sequence[int] = 32, classes: int = 10) -> Network:
    """Build the BasicCNN of the orthonormalised-gradients paper: three strided convolutions of 32 filters.

    Parameters
    ----------
    in_channels : int, default 3
    image_size : int or pair of int, default 32
        One side of a square, or (height, width); any.
    classes : int, default 10

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    TypeError, ValueError, ShapeError
        If an argument is no positive integer, or `image_size` neither one nor two of them.

    Notes
    -----
    Appendix A.1 prints each module's output shape and number of parameters, 24,714 in all. That decides the 3 x 3
    kernels with bias (896 and 9,248 parameters) and, as each convolution itself halves the image, stride 2 with padding
    1. The activation has no parameters and is no module of the printed summary: ReLU after each normalisation is our
    reading.

    References
    ----------
    OGN, Appendix A.1.

    Examples
    --------
    >>> from convla.experiments.training.networks import basic_cnn
    >>> sum(p.numel() for p in basic_cnn().parameters())
    24714
    """
    channels, size, classes = checked(in_channels, image_size, classes)
    layers: list[Network] = []
    for _ in range(3):
        layers += [nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
        channels = 32
        size = tuple((n + 1) // 2 for n in size)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * size[0] * size[1], classes))


def cdg_cnn(*, in_channels: int = 1, image_size: int | Sequence[int] = 28, classes: int = 10) -> Network:
    """Build the two-layer network of the channel-directed gradients' MNIST experiments.

    Parameters
    ----------
    in_channels : int, default 1
    image_size : int or pair of int, default 28
        One side of a square, or (height, width); each at least 4.
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
    The paper gives the two convolutions, of 50 and 100 filters of 5 by 5, and nothing else. Same padding, ReLU, a
    pooling by 2 after each and one linear layer are ours; no printed number decides between these and others.

    References
    ----------
    CDG, Section 4, "Effect of Smoothing Parameter".

    Examples
    --------
    >>> import torch
    >>> from convla.experiments.training.networks import cdg_cnn
    >>> cdg_cnn()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    channels, size, classes = checked(in_channels, image_size, classes, least=4)
    return nn.Sequential(
        *(nn.Conv2d(channels, 50, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(50, 100, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(100 * (size[0] // 4) * (size[1] // 4), classes)),
    )


def cifar_resnet(
    *,
    depth: int = 20,
    preactivation: bool = True,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    classes: int = 10,
) -> Network:
    """Build a thin residual network of 16, 32 and 64 maps whose shortcuts have no parameters: resnet20 and deeper ones.

    Parameters
    ----------
    depth : int, default 20
        6 n + 2 for n blocks of each width: 20, 32, 44, 56, 110.
    preactivation : bool, default True
        Normalisation and ReLU before each convolution of a block, as in OGN; or after it, as first published and cited
        for CDG's ResNet-56.
    in_channels : int, default 3
    image_size : int or pair of int, default 32
        Only checked: a mean over all positions ends the network, so that it takes any size.
    classes : int, default 10

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError, ValueError, ShapeError
        If an argument is no positive integer, `image_size` neither one nor two of them, or the depth is not 6 n + 2.

    Notes
    -----
    OGN takes "the full pre-activation version of residual networks and the original identity mappings" for shortcuts.
    Where the number of maps doubles, an identity without parameters is the first paper's option A: every second
    position, and zeros for the new maps. As the second paper's appendix says, the first block's two paths start from
    the activated stem, and the last sum is activated. Both orders have 269,722 parameters at depth 20 ("0.27M" in the
    first paper).

    References
    ----------
    K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016, Section 4.2; K. He et al., Identity Mappings
    in Deep Residual Networks, ECCV 2016, Figure 4(e) and Appendix. OGN, Section 3.1.1.

    Examples
    --------
    >>> from convla.experiments.training.networks import cifar_resnet
    >>> sum(p.numel() for p in cifar_resnet(depth=20).parameters())
    269722
    """
    depth = check_integer("depth", depth, minimum=8)
    if depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2 for n blocks of each width, got {depth}")
    channels, _, classes = checked(in_channels, image_size, classes)
    layers = [conv3(channels, 16), nn.BatchNorm2d(16), nn.ReLU()]
    last = 16
    for maps in (16, 32, 64):
        for place in range((depth - 2) // 6):
            stride = 2 if maps != 16 and place == 0 else 1
            shortcut = nn.Identity() if last == maps else _PaddedIdentity(maps - last, stride)
            if preactivation:
                # The first block takes what the stem has activated; both its paths do.
                layers.append(_PreactivatedBlock(last, maps, stride, shortcut, activate=len(layers) > 3))
            else:
                layers.append(BasicBlock(last, maps, stride, shortcut))
            last = maps
    if preactivation:
        layers += [nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def vgg16(*, in_channels: int = 3, image_size: int | Sequence[int] = 32, classes: int = 10) -> Network:
    """Build VGG-16 for small images: its thirteen convolutions, normalised, and one linear layer.

    Parameters
    ----------
    in_channels : int, default 3
    image_size : int or pair of int, default 32
        One side of a square, or (height, width); each at least 32, as it is halved five times.
    classes : int, default 10

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    TypeError, ValueError, ShapeError
        If an argument is no positive integer, or `image_size` neither one nor two of them or too small.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in vgg16().parameters())
    14728266
    """
    channels, size, classes = checked(in_channels, image_size, classes, least=32)
    layers: list[Network] = []
    for stage in VGG16:
        for maps in stage:
            layers += [nn.Conv2d(channels, maps, 3, padding=1), nn.BatchNorm2d(maps), nn.ReLU()]
            channels = maps
        layers.append(nn.MaxPool2d(2))
        size = tuple(n // 2 for n in size)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes))


NETWORKS: dict[str, Callable[..., Network]] = {
    "cnn1": csm_cnn,
    "cnn2": functools.partial(csm_cnn, maps=128),
    "cnn2-512": functools.partial(csm_cnn, maps=512),
    "resnet18": functools.partial(resnet, stem="cifar"),
    "resnet18-imagenet": resnet,
    "resnet34-imagenet": functools.partial(resnet, depth=34),
    "resnet50-imagenet": functools.partial(resnet, depth=50),
    "resnext50-imagenet": functools.partial(resnet, depth=50, groups=32, width=4),
    "wide-resnet50-imagenet": functools.partial(resnet, depth=50, width=128),
    "densenet121-imagenet": densenet,
    "densenet161-imagenet": functools.partial(densenet, growth=48, first=96, blocks=(6, 12, 36, 24)),
    "basic-cnn": basic_cnn,
    "resnet20": cifar_resnet,
    "resnet44": functools.partial(cifar_resnet, depth=44),
    "resnet56": functools.partial(cifar_resnet, depth=56, preactivation=False),
    "cdg-cnn": cdg_cnn,
    "cnn1-16": functools.partial(csm_cnn, maps=16),
    "cnn2-32": functools.partial(csm_cnn, maps=32),
    "vgg16": vgg16,
}
"""The sources' networks by name, each called as ``build(in_channels=..., image_size=..., classes=10)``. CSM's whose
name ends in a number of maps are narrower or wider; those that end in "imagenet" have the stem for such images."""


def build_network(name: str, *, in_channels: int, image_size: int, classes: int) -> Network:
    """Return a network by its name, its weights drawn from PyTorch's own generator.

    Raises
    ------
    ValueError
        If there is none of that name, or the images are too small for it.
    """
    build = NETWORKS[check_choice("network", name, tuple(NETWORKS))]
    return build(in_channels=in_channels, image_size=image_size, classes=classes)


class _PreactivatedBlock(nn.Module):  # type: ignore[misc]
    """Two convolutions, each of a normalised and rectified input, and a shortcut that nothing follows."""

    def __init__(self, channels: int, maps: int, stride: int, shortcut: Network, *, activate: bool) -> None:
        super().__init__()
        first = [nn.BatchNorm2d(channels), nn.ReLU()] if activate else []
        self.branch = nn.Sequential(
            *(*first, conv3(channels, maps, stride)),
            *(nn.BatchNorm2d(maps), nn.ReLU(), conv3(maps, maps)),
        )
        self.shortcut = shortcut

    def forward(self, images: Tensor) -> Tensor:
        return self.branch(images) + self.shortcut(images)


class _PaddedIdentity(nn.Module):  # type: ignore[misc]
    """Every stride-th position, and zeros for the maps that the image lacks."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.missing, self.stride = missing, stride

    def forward(self, images: Tensor) -> Tensor:
        kept = images[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.missing))
