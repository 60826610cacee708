"""Trainings on the digits that statements rest on: too long for every check, so recorded, and partly run again each time.

``python -m proofs_checks.training RESULTS`` writes the record anew, RESULTS being the folder that ``convla train ogn-figure8
cdg-figure11 --weights --output RESULTS`` leaves; what is not in that folder it runs itself, in some ten
minutes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import convla
from convla.experiments.training.curves import Curves
from convla.experiments.training.execution import Request, train_experiments
from convla.experiments.training.schema import read_experiment
from convla.experiments.training.settings import Run, Training
from convla.typing import Array
from proofs_checks.statement import UnavailableError

__all__ = ["AVERAGED", "MANY", "SEEDS", "averaging_gains", "digits_training", "main", "recorded", "run"]

RECORD = Path(__file__).parent / "training.json"
SEEDS = 16
MANY = 32
"""Seeds of the runs whose accuracies are compared in their spread."""
MEASURED = {"cdg-figure11": MANY}
"""The experiments of which all measures are recorded, and the number of seeds where it is not the experiment's own."""
AVERAGED = 3.0
"""Lambda of CDG Eq. (8) in its experiments; that of its code is 2."""
BATCH = 16
"""Images of a batch whose gradient is taken as signal and noise."""


@functools.cache
def recorded() -> dict[str, Any]:
    """Return the record.

    By experiment and arm a list over the seeds, and "gains", likewise; "measured", by experiment, measure and arm.
    """
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def digits_training(experiment: str, arm: str) -> Training:
    """Return what an arm of an experiment does on the digits."""
    found = read_experiment(experiment)
    return found.training(found.digits, next(a for a in found.arms if a.name == arm), {})


def run(training: Training, seed: int, epochs: int) -> Curves:
    """Return the first epochs of a run."""
    try:
        from convla.experiments.training.trainer import train
    except ImportError:
        raise UnavailableError("training needs PyTorch: pip install 'convla[train]'") from None
    from convla.experiments.training.datasets import load_dataset

    # The epochs are cut, not the milestones moved: what is run is the beginning of the longer run.
    cut = Training(**{**vars(training), "epochs": epochs})
    return train(Run(cut, seed), load_dataset("digits", Path()))


def averaging_gains(seed: int, epochs: int) -> list[list[float]]:
    """Return by how much re-weighting raises the signal over the noise, before training and after some epochs.

    The signal is the mean of the batches' gradients; its energy is the product of the means over two halves of them,
    which the noise does not enter. The noise is how a batch's gradient differs from the mean.

    Returns
    -------
    list of list of float
        For both times one number for each convolution of BasicCNN: the quotient of the energies after re-weighting over
        that before.
    """
    try:
        import torch
        from torch.nn.functional import cross_entropy

        from convla.experiments.training.networks import build_network
    except ImportError:
        raise UnavailableError("training needs PyTorch: pip install 'convla[train]'") from None
    from convla.experiments.training.datasets import load_dataset
    from convla.extending import at_most

    data = load_dataset("digits", Path())
    images = torch.from_numpy(data.train.astype(np.float32) / data.white)
    labels = torch.from_numpy(data.train_labels.astype(np.int64))
    with torch.random.fork_rng(devices=[]), at_most(1):
        torch.manual_seed(seed)
        network: Any = build_network("basic-cnn", in_channels=1, image_size=8, classes=10)
    layers = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    rng = np.random.default_rng(seed)

    def gradients(order: Array, step: float) -> list[list[Array]]:
        seen = []
        for start in range(0, len(order) - BATCH + 1, BATCH):
            places = torch.from_numpy(order[start : start + BATCH])
            network.zero_grad()
            cross_entropy(network(images[places]), labels[places]).backward()
            seen.append([layer.weight.grad.numpy().astype(np.float64) for layer in layers])
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= step * parameter.grad
        return seen

    found = []
    for more in (0, epochs):
        for _ in range(more):
            gradients(rng.permutation(len(images)), 0.03)
        batches = gradients(rng.permutation(len(images)), 0.0)
        found.append([_gain(np.stack(own)) for own in zip(*batches, strict=True)])
    return found


def _gain(batches: Array) -> float:
    """Return the gain of signal over noise, from the gradients (batches, c_out, c_in, *kernel) of many batches."""
    ratios = []
    for lam in (1.0, AVERAGED):
        seen = np.asarray(convla.reweighted_gradient(batches, lam, axis=1))
        halves = seen[::2].mean(axis=0), seen[1::2].mean(axis=0)
        noise = ((seen - seen.mean(axis=0)) ** 2).sum(axis=tuple(range(1, seen.ndim))).mean()
        ratios.append(float((halves[0] * halves[1]).sum() / noise))
    return ratios[1] / ratios[0]


def _measured(folder: Path) -> dict[str, Any]:
    """Return all measures of experiments, run in a results folder as far as they are not there."""
    measured: dict[str, Any] = {}
    for name, seeds in MEASURED.items():
        experiment = read_experiment(name)
        request = Request((experiment,), seeds=seeds, output=folder, resume=True, weights=True)
        results = train_experiments(request).report.results
        measured[name] = {
            measure: {result.cell.arm.name: result.values(measure) for result in results}
            for measure in experiment.measures
        }
    return measured


def main(arguments: list[str] | None = None) -> int:
    """Write the record."""
    parser = argparse.ArgumentParser(prog="python -m proofs_checks.training", description=__doc__)
    parser.add_argument("results", type=Path, help="the folder of the runs")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {}
    experiments = tuple(read_experiment(name) for name in ("ogn-figure8", "cdg-figure11"))
    for experiment, result in itertools.product(
        experiments,
        train_experiments(Request(experiments, output=options.results, resume=True, weights=True)).report.results,
    ):
        if result.cell.experiment.name == experiment.name:
            record.setdefault(experiment.name, {})[result.cell.arm.name] = [
                {
                    "map_cosine": [curves.map_cosine[epoch].tolist() for epoch in (0, 1, -1)],
                    "correlation": [
                        [float(v) if v == v else None for v in curve[-1, :, 0]]
                        for curve in (curves.output_correlation, curves.input_correlation)
                    ],
                    "resting": curves.resting[-1].tolist(),
                    "accuracy": 100 * float(curves.test_accuracy[-1]),
                }
                for _, curves in result.runs
            ]
    record["measured"] = _measured(options.results)
    record["gains"] = [averaging_gains(seed, 3) for seed in range(SEEDS)]
    rounded = json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.6g}"))
    RECORD.write_text(
        json.dumps(rounded, ensure_ascii=False, separators=(",", ":")).replace("},", "},\n") + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
