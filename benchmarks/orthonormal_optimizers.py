"""Optimizers along orthonormalised momentum: convla's, PyTorch's and timm's, on a step's time and on the digits.

timm is optional: ``pip install --no-deps timm`` next to PyTorch; its models, and torchvision, are not needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from convla.experiments.training.datasets import load_dataset
from convla.experiments.training.networks import build_network
from convla.frameworks.torch import OrthonormalSGD

Network = Any
Optimizer = Any
Make = Callable[[Network, float], Optimizer]

OTHER_RATE = 1e-3
"""Of AdamW on what is no matrix, in all of them."""

SEEDS = 8
EPOCHS = 6
BATCH = 128


class MatrixMuon:
    """PyTorch's Muon on a network's kernels, each as the matrix of its filters, and AdamW on the other parameters."""

    def __init__(self, network: Network, rate: float) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
        self.kernels = [layer.weight for layer in layers]
        self.matrices = [torch.nn.Parameter(kernel.detach().flatten(1)) for kernel in self.kernels]
        own = {id(kernel) for kernel in self.kernels}
        others = [parameter for parameter in network.parameters() if id(parameter) not in own]
        muon = torch.optim.Muon(self.matrices, lr=rate, weight_decay=0.0)
        self.parts = [muon, torch.optim.AdamW(others, lr=OTHER_RATE, weight_decay=0.0)]
        self.network = network

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.network.zero_grad()

    def step(self) -> None:
        """Make a step; matrices and kernels share their memory."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = kernel.grad.flatten(1)
        for part in self.parts:
            part.step()


def timm_muon() -> Make | None:
    """Return how timm's Muon is made, which takes AdamW for vectors by itself; None where it is not installed."""
    if "timm" not in sys.modules:
        found = importlib.util.find_spec("timm")
        if found is None:
            return None
        # Its package imports all of its models, and these torchvision: the optimizers need neither.
        root = Path(next(iter(found.submodule_search_locations or ())))
        for name, place in (("timm", root), ("timm.optim", root / "optim")):
            package = types.ModuleType(name)
            package.__path__ = [str(place)]
            sys.modules[name] = package
    muon = importlib.import_module("timm.optim.muon").Muon
    return lambda network, rate: muon(network.parameters(), lr=rate, fallback_lr_scale=OTHER_RATE / rate)


def makers() -> dict[str, Make]:
    """Return how each optimizer is made, by its name."""
    found: dict[str, Make] = {
        "`OrthonormalSGD`": lambda network, rate: OrthonormalSGD(network, lr=rate, other_lr=OTHER_RATE),
        "torch's `Muon`, kernels as matrices, and `AdamW`": MatrixMuon,
    }
    timm = timm_muon()
    if timm is not None:
        found["timm's `Muon`"] = timm
    return found


def digits_table(seeds: int = SEEDS) -> str:
    """Return what each optimizer reaches on the digits, and how far it is from `OrthonormalSGD` with the same seeds.

    A rate is chosen by seeds of its own, on images that are held out of the training set.
    """
    others: dict[str, Make] = {
        "SGD, momentum 0.9": lambda network, rate: torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9),
        "AdamW": lambda network, rate: torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0),
    }
    rates = dict.fromkeys(makers(), (0.003, 0.01, 0.03, 0.1))
    rates |= {"SGD, momentum 0.9": (1e-2, 3e-2, 1e-1, 3e-1), "AdamW": (1e-3, 3e-3, 1e-2, 3e-2)}
    accuracies: dict[str, list[float]] = {}
    chosen: dict[str, float] = {}
    for name, make in {**makers(), **others}.items():
        chosen[name] = max(
            rates[name], key=lambda rate: statistics.mean(_accuracy(make, rate, 1000 + seed, True) for seed in range(2))
        )
        accuracies[name] = [_accuracy(make, chosen[name], seed, False) for seed in range(seeds)]
    own = np.array(next(iter(accuracies.values())))
    lines = [
        f"## The digits: basic-cnn, {EPOCHS} epochs, batches of {BATCH}, {seeds} paired seeds",
        "| optimizer | rate | test accuracy, % | less that of `OrthonormalSGD`, 95 % |\n|---|---|---|---|",
    ]
    for name, values in accuracies.items():
        difference = 100 * (np.array(values) - own)
        half = stats.t.ppf(0.975, seeds - 1) * difference.std(ddof=1) / seeds**0.5
        beside = "" if values is next(iter(accuracies.values())) else f"{difference.mean():+.2f} ± {half:.2f}"
        lines[-1] += f"\n| {name} | {chosen[name]:g} | {100 * statistics.mean(values):.2f} | {beside} |"
    return "\n\n".join(lines)


def _accuracy(make: Make, rate: float, seed: int, held_out: bool) -> float:
    """Train a network, whose weights and batches depend on the seed alone, and return its accuracy."""
    digits = load_dataset("digits", Path())
    images, labels = (torch.from_numpy(array) for array in (digits.train / np.float32(16), digits.train_labels))
    test, answers = (torch.from_numpy(array) for array in (digits.test / np.float32(16), digits.test_labels))
    if held_out:
        images, test, labels, answers = images[::2], images[1::2], labels[::2], labels[1::2]
    torch.manual_seed(seed)
    network = build_network("basic-cnn", in_channels=1, image_size=8, classes=10)
    optimizer, generator = make(network, rate), torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for places in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[places]), labels[places].long()).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        return float((network(test).argmax(dim=1) == answers.long()).double().mean())
