"""The descent on pairs of kernels: both engines bit for bit, and against PyTorch's autograd and optimisers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest

import convla
from convla.errors import EngineError, ShapeError
from convla.experiments.descents.pairs import LOSSES, MOMENTUM, OPTIMIZERS, SIMILARITIES, descend_pairs
from tests.designs import in_turn

Floats = np.ndarray[Any, np.dtype[np.float64]]


def _draw(repetitions: int, n: int, padding: Any, seed: int = 0) -> tuple[Floats, Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (repetitions, 64))
    k1, k2 = rng.uniform(-1, 1, (2, repetitions, n))
    return x, k1, k2, convla.feature_map_gram(x[:, None, :], (n,), padding=padding)


@pytest.mark.parametrize(
    ("loss", "similarity", "optimizer", "n"), in_turn(LOSSES, SIMILARITIES, OPTIMIZERS, last=(1, 3, 16))
)
def test_engines_agree_to_the_last_bit(loss: str, similarity: str, optimizer: str, n: int) -> None:
    # 70 repetitions: one whole block of lanes and a part of one; the learning rate lets some of them diverge.
    for padding, normalized, both in itertools.product(("full", "valid"), (False, True), (False, True)):
        _, k1, k2, gram = _draw(70, n, padding)
        runs = [
            descend_pairs(
                k1,
                k2,
                gram,
                loss=loss,
                normalized=normalized,
                toeplitz=padding == "full",
                similarity=similarity,
                optimizer=optimizer,
                learning_rate=0.3,
                iterations=20,
                both=both,
                engine=engine,
            )
            for engine in ("reference", "numba")
        ]
        for name, ours, theirs in zip(runs[0]._fields, *runs, strict=True):
            assert np.array_equal(ours, theirs, equal_nan=True), (name, padding, normalized, both)


def _torch_loss(torch: Any, loss: str, normalized: bool) -> Callable[[Any, Any], Any]:
    def value(k1: Any, k2: Any) -> Any:
        n = k1.shape[-1]
        if loss == "kernel":
            raw = (k1 * k2).sum() ** 2
        elif loss == "convolutional":
            raw = (torch.nn.functional.conv1d(k2[None, None], k1[None, None], padding=n - 1) ** 2).sum()
        else:
            raw = (k1**2).sum() + (k2**2).sum()
        return raw / ((k1**2).sum() * (k2**2).sum()) if normalized else raw

    return value


def _torch_optimizer(torch: Any, name: str, kernels: list[Any], rate: float) -> Any:
    if name in ("momentum", "Nesterov"):
        return torch.optim.SGD(kernels, lr=rate, momentum=MOMENTUM, nesterov=name == "Nesterov")
    return getattr(torch.optim, {"AdaGrad": "Adagrad"}.get(name, name))(kernels, lr=rate)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("loss", "normalized", "optimizer", "padding"),
    in_turn(LOSSES, (False, True), OPTIMIZERS, last=("full", "valid")),
)
def test_the_descent_is_pytorchs(loss: str, normalized: bool, optimizer: str, padding: str) -> None:
    torch = pytest.importorskip("torch")
    n, iterations, rate = 5, 30, 0.02
    x, k1, k2, gram = _draw(3, n, padding)
    run = descend_pairs(
        k1,
        k2,
        gram,
        loss=loss,
        normalized=normalized,
        toeplitz=padding == "full",
        optimizer=optimizer,
        learning_rate=rate,
        iterations=iterations,
    )
    value = _torch_loss(torch, loss, normalized)
    for repetition in range(3):
        kernels = [torch.tensor(k[repetition], requires_grad=True) for k in (k1, k2)]
        image = torch.tensor(x[repetition])[None, None]
        stepper = _torch_optimizer(torch, optimizer, kernels, rate)
        trace = []
        for _ in range(iterations + 1):
            stepper.zero_grad()
            objective = value(*kernels)
            maps = [
                torch.nn.functional.conv1d(image, k[None, None], padding=n - 1 if padding == "full" else 0)
                for k in kernels
            ]
            trace.append((objective.item(), (maps[0] * maps[1]).sum().item() ** 2))
            ends = [k.detach().clone().numpy() for k in kernels]
            objective.backward()
            stepper.step()
        losses, similarities = np.array(trace).T
        # Rounding differs at every step and is not amplified at this small rate: a few ulps for each of the steps.
        close = 64 * iterations * np.finfo(np.float64).eps
        # Both are squares, of products that some descents bring down to the rounding of their terms.
        for found, wanted, terms in ((run.loss, losses, 1), (run.similarity, similarities, 64)):
            roots = np.sqrt(found[repetition]), np.sqrt(wanted[[0, -1]])
            np.testing.assert_allclose(*roots, rtol=close * terms, atol=close * terms)
        np.testing.assert_allclose(run.k1[repetition], ends[0], rtol=0, atol=close)
        np.testing.assert_allclose(run.k2[repetition], ends[1], rtol=0, atol=close)
        expected = np.corrcoef(losses, similarities)[0, 1]
        assert run.correlation[repetition] == pytest.approx(expected, abs=close * 64)


def test_the_watched_similarity_is_that_of_the_feature_maps() -> None:
    for padding in ("full", "valid"):
        x, k1, k2, gram = _draw(4, 6, padding)
        run = descend_pairs(
            k1, k2, gram, loss="kernel", toeplitz=padding == "full", similarity="signed", optimizer="SGD",
            learning_rate=0.05, iterations=3,
        )  # fmt: skip
        for repetition in range(4):
            for column, kernels in enumerate(((k1, k2), (run.k1, run.k2))):
                pair = (kernels[0][repetition], kernels[1][repetition])
                expected = float(convla.feature_map_similarity(*pair, x[repetition], padding=padding))
                size = np.abs(pair[0]) @ np.abs(gram[repetition]) @ np.abs(pair[1])
                bound = 4 * gram.shape[-1] ** 2 * np.finfo(np.float64).eps * size
                assert abs(run.similarity[repetition, column] - expected) <= bound


def test_a_repetition_does_not_depend_on_its_neighbours() -> None:
    _, k1, k2, gram = _draw(130, 4, "full")
    options = {"loss": "convolutional", "toeplitz": True, "optimizer": "Adam", "learning_rate": 0.1, "iterations": 25}
    together = descend_pairs(k1, k2, gram, **options)
    alone = descend_pairs(k1[77:78], k2[77:78], gram[77:78], **options)
    assert all(np.array_equal(a[77:78], b) for a, b in zip(together, alone, strict=True))


def test_the_inputs_are_left_as_they_were() -> None:
    _, k1, k2, gram = _draw(5, 3, "full")
    copies = [array.copy() for array in (k1, k2, gram)]
    for array in (k1, k2, gram):
        array.setflags(write=False)
    for engine in ("reference", "numba"):
        descend_pairs(
            k1, k2, gram, loss="kernel", toeplitz=True, optimizer="SGD", learning_rate=0.1, iterations=3, engine=engine
        )
    assert all(np.array_equal(a, b) for a, b in zip((k1, k2, gram), copies, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k1": np.zeros((2, 3))}, ShapeError, r"k1 and k2 must have the same shape, got \(2, 3\) and \(1, 3\)"),
        ({"gram": np.zeros((1, 2, 2))}, ShapeError, r"gram must have shape \(1, 3, 3\)"),
        ({"k1": np.full((1, 3), np.nan)}, ValueError, "k1 must be finite"),
        ({"loss": "cosine"}, ValueError, "loss must be one of"),
        ({"similarity": "cubed"}, ValueError, "similarity must be one of"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of 'SGD', .*'Adam', got 'sgd'"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive, got 0.0"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"iterations": 2.0}, TypeError, "iterations must be an integer, got 2.0"),
        ({"engine": "cuda"}, EngineError, "engine 'cuda' (needs CuPy|takes CuPy arrays)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "k1": np.ones((1, 3)),
        "k2": np.ones((1, 3)),
        "gram": np.eye(3)[None],
        "loss": "kernel",
        "toeplitz": True,
        "optimizer": "SGD",
        "learning_rate": 0.1,
        "iterations": 2,
    } | change
    with pytest.raises(error, match=message):
        descend_pairs(arguments.pop("k1"), arguments.pop("k2"), arguments.pop("gram"), **arguments)


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
def test_the_reference_needs_no_more_than_the_array_standard(device: str) -> None:
    place = array_api_strict.Device(device)
    _, *host = _draw(3, 4, "full")
    arrays = [array_api_strict.asarray(array, device=place) for array in host]
    for loss, optimizer in itertools.product(LOSSES, OPTIMIZERS):
        options = {"loss": loss, "toeplitz": True, "optimizer": optimizer, "learning_rate": 0.05, "iterations": 5}
        ours = descend_pairs(*arrays, **options)
        assert {array.device for array in ours} == {place}
        expected = descend_pairs(*host, engine="reference", **options)
        for a, b in zip(ours, expected, strict=True):
            assert np.array_equal(np.asarray(a.to_device(array_api_strict.Device("CPU_DEVICE"))), b)


def test_single_precision_is_computed_in_double() -> None:
    _, *arrays = _draw(3, 4, "full")
    single = [array.astype(np.float32) for array in arrays]
    options = {"loss": "kernel", "toeplitz": True, "optimizer": "SGD", "learning_rate": 0.05, "iterations": 5}
    runs = [descend_pairs(*single, engine=engine, **options) for engine in ("reference", "numba")]
    assert {array.dtype for run in runs for array in run} == {np.dtype(np.float64)}
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
