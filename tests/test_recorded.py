"""Records that the ledger's evidence rests on: written from files as they are, and read back as they were written."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from convla.experiments.training.settings import Run
from convla.networks.weights import write_weights
from proofs_checks import weights
from proofs_checks.training import digits_training
from proofs_checks.weights import Correlations, correlations

pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.torch

ARMS = ("SGD", "re-weighted", "Sobolev")


def test_correlations_of_weights_are_recorded_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    network = {
        "stem.weight": rng.normal(size=(4, 3, 3, 3)),
        "depthwise.weight": rng.normal(size=(4, 1, 3, 3)),  # one input channel: left out
        "norm.weight": rng.normal(size=4),
        "head.weight": rng.normal(size=(5, 4, 1, 1)),
    }
    write_weights(tmp_path / "network.npz", network)
    monkeypatch.setattr(weights, "NETWORKS", {"N": ("package==1", "network.npz")})
    monkeypatch.setattr(weights, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(weights, "SEEDS", 2)
    (tmp_path / "weights").mkdir()
    ends = {key: {"0.weight": rng.normal(size=(3, 1, 3, 3))} for key in itertools.product(ARMS, range(2))}
    for (arm, seed), arrays in ends.items():
        run = Run(digits_training("cdg-figure11", arm), seed)
        write_weights(tmp_path / "weights" / f"{run.name}.npz", arrays)
    weights._recorded.cache_clear()
    try:
        assert weights.main([str(tmp_path), str(tmp_path)]) == 0
        packages, digits = weights.of_packages(), weights.of_digits()
    finally:
        weights._recorded.cache_clear()
    assert {name: list(layers) for name, layers in packages.items()} == {"N": ["stem.weight", "head.weight"]}
    for layer, found in packages["N"].items():
        _compare(found, correlations(network[layer]))
    assert list(digits) == list(ARMS)
    for (arm, seed), arrays in ends.items():
        (found,) = digits[arm][seed]
        _compare(found, correlations(arrays["0.weight"]))
        assert np.isnan(found.inputs)


def _compare(found: Correlations, wanted: Correlations) -> None:
    # Five digits are recorded.
    assert found == pytest.approx(wanted, rel=1e-4, nan_ok=True)
