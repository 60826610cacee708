"""What is seen of layers as they train, against loops; and tests of equivalence in the report of an experiment."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from convla.experiments.statistics import paired_difference
from convla.experiments.training.curves import BY_LAYER, OF_NETWORK, Curves
from convla.experiments.training.execution import Request, train_experiments
from convla.experiments.training.schema import ExperimentError, read_experiment
from convla.experiments.training.settings import MEASURES

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.experiments.training.observations import (  # noqa: E402
    DISTANCES,
    channel_correlation,
    map_cosines,
    resting_shares,
)

pytestmark = pytest.mark.torch

SMALL = """
title = "Small"
source = "this test"
measures = ["final-map-cosine", "final-resting-share", "final-output-correlation", "final-test-accuracy"]
margins = { final-map-cosine = 0.9, final-test-accuracy = 1e-6 }
seeds = 2

[settings]
dataset = "digits"
network = "basic-cnn"
learning_rate = 0.01
batch_size = 512
epochs = 1

[[arms]]
name = "plain"

[[arms]]
name = "orthonormalised"
transform = { kind = "orthonormal" }
"""


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a.ravel() @ b.ravel()) / norms if norms else 0.0


def test_map_cosines_are_means_over_pairs_and_images() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(0.2)),
        *(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.ReLU()),
    )
    with torch.no_grad():
        network[0].bias[1], network[0].weight[1] = -1.0, 0.0  # a map that is 0 throughout
    images = torch.rand(7, 1, 6, 6)
    wanted = []
    for end in (2, 4):
        maps = network[:end](images).detach().numpy().astype(np.float64)
        pairs = itertools.combinations(range(maps.shape[1]), 2)
        wanted.append(np.mean([abs(_cosine(image[i], image[j])) for i, j in pairs for image in maps]))
    found = map_cosines(network, images)
    assert found[:2] == pytest.approx(wanted, abs=1e-6)
    assert math.isnan(found[2])
    assert not network[1]._forward_hooks


def test_resting_weights_are_those_of_silent_filters() -> None:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[0].bias[:] = torch.tensor([-99.0, 1.0, 1.0, 1.0])
    network(torch.rand(2, 1, 5, 5)).sum().backward()
    # The silent filter's own nine weights, and those of the next layer that read its map.
    assert resting_shares(network).tolist() == [0.25, 0.25]


def test_channel_correlation_is_a_mean_of_cosines() -> None:
    kernel = np.random.default_rng(0).standard_normal((20, 3, 2, 2))
    scaled = kernel * np.geomspace(1e-3, 1e3, 20)[:, None, None, None]
    for axis in (0, 1):
        slices = list(np.moveaxis(scaled, axis, 0))
        found = channel_correlation(torch.from_numpy(scaled), axis)
        pairs = list(itertools.combinations(range(len(slices)), 2))
        cosines = {pair: _cosine(slices[pair[0]], slices[pair[1]]) for pair in pairs}
        wanted = [np.mean(list(cosines.values()))]
        wanted += [
            np.mean([c for (i, j), c in cosines.items() if j - i == distance]) if distance < len(slices) else math.nan
            for distance in range(1, DISTANCES + 1)
        ]
        assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    outputs = channel_correlation(torch.from_numpy(kernel), 0)
    assert channel_correlation(torch.from_numpy(scaled), 0) == pytest.approx(outputs, abs=1e-12)


def test_an_experiment_says_what_is_equivalent(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    experiment = read_experiment(str(tmp_path / "small.toml"))
    trained = train_experiments(Request((experiment,), output=tmp_path / "out"))
    rows = {row.measure: row for row in trained.report.rows if row.against}
    assert rows["final-map-cosine"].verdict == "equivalent"
    assert rows["final-map-cosine"].margin == 0.9
    assert math.isnan(rows["final-resting-share"].margin)
    assert rows["final-resting-share"].verdict in ("no difference seen", "higher", "lower")
    assert rows["final-test-accuracy"].verdict != "equivalent"
    with (tmp_path / "out" / "layers.csv").open(newline="") as file:
        layers = list(csv.DictReader(file))
    curves = [curves for _, curves in trained.report.results[1].runs]
    for name in BY_LAYER:
        own = [row for row in layers if (row["arm"], row["curve"]) == ("orthonormalised", name)]
        # Before training there is no batch of which weights could rest; the first layer has one input channel.
        places = (2, 3) if name == "input_correlation" else (1, 2, 3)
        epochs = (1,) if name == "resting" else (0, 1)
        assert {(int(row["layer"]), int(row["epoch"])) for row in own} == set(itertools.product(places, epochs))
        for row in own:
            values = [getattr(c, name)[int(row["epoch"]), int(row["layer"]) - 1] for c in curves]
            wanted = np.mean([v if v.ndim == 0 else v[0] for v in values])
            assert float(row["mean"]) == pytest.approx(float(wanted), abs=1e-15)
    with (tmp_path / "out" / "correlations.csv").open(newline="") as file:
        first = next(row for row in csv.DictReader(file) if row["channels"] == "input" and row["arm"] == "plain")
    ends = [
        c.input_correlation[-1, int(first["layer"]) - 1, int(first["distance"])]
        for _, c in trained.report.results[0].runs
    ]
    assert float(first["mean"]) == pytest.approx(np.mean(ends), abs=1e-15)


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ("{ final-train-loss = 1.0 }", "unknown key 'final-train-loss'"),
        ("{ final-map-cosine = 0.0 }", "final-map-cosine must be positive"),
        ("{ final-map-cosine = true }", "final-map-cosine must be a number"),
    ],
)
def test_wrong_margins_are_named(tmp_path: Path, margins: str, message: str) -> None:
    lines = [f"margins = {margins}" if line.startswith("margins") else line for line in SMALL.splitlines()]
    (tmp_path / "small.toml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ExperimentError, match=message):
        read_experiment(str(tmp_path / "small.toml"))


def test_the_page_is_what_its_numbers_say() -> None:
    path = Path(__file__).parents[1] / "docs" / "experiments_page.py"
    spec = importlib.util.spec_from_file_location("experiments_page", path)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.main(["--check"]) == 0


def test_equivalence_is_two_one_sided_tests() -> None:
    gap = paired_difference([1.0, 1.2, 0.8, 1.1], [1.0, 1.1, 0.9, 1.0])
    assert gap.within(max(-gap.low, gap.high) + 1e-9)
    assert not gap.within(max(-gap.low, gap.high) - 1e-9)
    assert not gap.within(math.nan)
    assert not paired_difference([1.0], [1.0]).within(1e9)


def test_every_measure_is_a_number_of_the_curves() -> None:
    curves = Curves.empty(2, 2, 3, DISTANCES)
    for number, name in enumerate((*OF_NETWORK, *BY_LAYER), 1):
        getattr(curves, name)[:] = 0.01 * number
    found = {name: curves.measure(name) for name in MEASURES}
    assert all(map(math.isfinite, found.values()))
    assert (found["final-map-cosine"], found["final-resting-share"]) == (pytest.approx(0.06), pytest.approx(7.0))
