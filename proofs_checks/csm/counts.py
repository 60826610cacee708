"""CSM Section 6: parameter counts, their ratios, steps, and how the printed layers have to be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from convla.errors import ShapeError
from proofs_checks import networks
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence

__all__ = ["STATEMENTS"]


def _parameters(maps: int) -> int:
    """Count CNN1's parameters for this many feature maps: four blocks and a dense layer of 9 inputs for each map."""
    widths = [3, maps, maps, maps, maps]
    blocks = sum(
        networks.conv_parameters(a, b, 3) + networks.batch_norm_parameters(b) for a, b in itertools.pairwise(widths)
    )
    return blocks + networks.linear_parameters(9 * maps, 10)


@evidence(Kind.PROOF, "the printed layers of CNN1, CNN2 and CNN2 with 512 maps")
def parameter_counts(_: int) -> str:
    counts = [_parameters(maps) for maps in (64, 128, 512)]
    assert counts == [118_858, 458_890, 7_143_946], counts
    ratios = [round(counts[1] / counts[0], 2), round(counts[2] / counts[0], 2)]
    assert ratios == [3.86, 60.10], ratios
    return f"{counts}, ratios {ratios}"


@evidence(Kind.PROOF, "the modules that `convla.experiments.training.networks.csm_cnn` builds, 64, 128 and 512 maps")
def built_networks_have_the_printed_parameters(_: int) -> str:
    build = _builder()
    counts = [sum(parameter.numel() for parameter in build(maps=maps).parameters()) for maps in (64, 128, 512)]
    assert counts == [118_858, 458_890, 7_143_946], counts
    return f"{counts}"


@evidence(Kind.PROOF, "the feature maps of a 32x32 image in the network that is built: layer after layer")
def built_layers_are_padded_by_two(_: int) -> str:
    build = _builder()
    import torch

    torch.manual_seed(0)
    value = torch.rand(1, 3, 32, 32)
    network = build().eval()
    shapes = []
    for layer in network:
        value = layer(value)
        shapes.append(tuple(value.shape[1:]))
    convolutions = [layer for layer in network if hasattr(layer, "kernel_size") and hasattr(layer, "weight")]
    assert [tuple(layer.weight.shape) for layer in convolutions] == [(64, 3, 3, 3), *((64, 64, 3, 3),) * 3]
    kinds = [type(layer).__name__ for layer in network]
    assert kinds[:16] == ["Conv2d", "BatchNorm2d", "LeakyReLU", "MaxPool2d"] * 4, kinds
    sides = [shape[1:] for layer, shape in zip(network, shapes, strict=True) if layer in convolutions]
    assert sides == [(34, 34), (19, 19), (11, 11), (7, 7)], sides
    assert shapes[15] == (64, 3, 3), shapes
    assert shapes[-1] == (10,), shapes
    slopes = {layer.negative_slope for layer in network if type(layer).__name__ == "LeakyReLU"}
    assert slopes == {0.2}, slopes
    return "convolutions give 34, 19, 11, 7 a side, each 2 more than it gets; pooling leaves 3x3"


def _builder() -> Callable[..., Any]:
    try:
        from convla.experiments.training.networks import csm_cnn
    except ImportError:
        raise UnavailableError("the networks need PyTorch: pip install 'convla[torch]'") from None
    return csm_cnn


@evidence(Kind.PROOF, "50,000 images in batches of 512, 100 epochs")
def regularisation_steps(_: int) -> str:
    epoch = math.ceil(50_000 / 512)
    assert (epoch, 100 * epoch) == (98, 9800)
    return f"{epoch} steps an epoch, {100 * epoch} in all"


@evidence(Kind.PROOF, "a 32x32 image through the four printed blocks, the fourth number read in both ways")
def printed_layers_are_padded_by_two(_: int) -> str:
    def last_side(**convolution: int) -> int | None:
        side = 32
        try:
            for _block in range(4):
                side = networks.side_after(side, 3, **convolution)
                side = networks.side_after(side, 2, stride=2)
        except ShapeError:
            return None
        return side

    padded, strided = last_side(padding=2), last_side(stride=2)
    assert padded == 3, f"padding 2 leaves {padded}"
    assert strided is None, f"stride 2 leaves {strided}"
    return "padding 2 leaves 3x3 maps, 576 inputs for 64 maps; stride 2 runs out of image before the last block"


STATEMENTS = (
    Statement(
        id="CSM-params",
        number="Sections 6.2, 6.3",
        title="parameter counts and steps",
        claim="CNN1, CNN2 and CNN2 with 512 maps have 118,858, 458,890 and 7,143,946 parameters, ratios 3.86 and 60.10; "
        "regularisation takes 98 steps an epoch, 9,800 in all.",
        verdict=Verdict.HOLDS,
        evidence=(parameter_counts, built_networks_have_the_printed_parameters, regularisation_steps),
        functions=("convla.experiments.training.networks.csm_cnn",),
    ),
    Statement(
        id="CSM-conv2d",
        number="Table 7",
        title="the networks use full cross-correlation",
        claim="The last number of Conv2d(3, 64, 3, 2) is a padding, as the caption says: four such layers with a pooling "
        "each leave 3x3 maps of a 32x32 image, the inputs of Linear(576, 10).",
        verdict=Verdict.HOLDS,
        evidence=(printed_layers_are_padded_by_two, built_layers_are_padded_by_two),
        functions=("convla.experiments.training.networks.csm_cnn",),
        note="PyTorch would read it as a stride, and the image would run out before the last block. As a padding it is "
        "P = N - 1 = 2: the convolutions of CNN1 and CNN2 are full cross-correlations, to which the theory applies exactly, "
        "before their biases are added; for these see CSM-bias.",
    ),
)
