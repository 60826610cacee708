"""Networks as mappings, and CSM Algorithm 1: against PyTorch's Adam, resumed, and with norms kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

from convla import (
    Initialization,
    _dispatch,
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    initialize_network,
    network_similarity,
)
from convla.descent import Adam
from convla.errors import ShapeError
from convla.networks.weights import read_weights, write_weights
from convla.similarity.layer import layer_similarities


def network(dtype: str = "float64") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"stem": (4, 1, 3, 3), "a": (3, 4, 3, 3), "b": (3, 4, 3, 3), "line": (2, 3, 5), "point": (5, 3, 1, 1)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("normalized", [False, True])
def test_layers_and_total(normalized: bool) -> None:
    result = network_similarity(network(), normalized=normalized)
    for name, kernels in network().items():
        value, gradient = convolutional_similarity_and_gradient(kernels, normalized=normalized)
        assert result.layers[name] == float(value)
        assert np.array_equal(result.gradients[name], gradient)
    assert result.total == pytest.approx(sum(result.layers.values()), rel=1e-15)
    assert list(result.layers) == list(result.gradients) == list(network())


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("pairs", ["unordered", "ordered"])
@pytest.mark.parametrize("scale", [1.0, 1e-150])
def test_layers_on_another_device(normalized: bool, pairs: Any, scale: float) -> None:
    device = array_api_strict.Device("device1")
    kernels = {name: scale * kernel for name, kernel in network().items()}
    strict = {name: array_api_strict.asarray(kernel, device=device) for name, kernel in kernels.items()}
    result = network_similarity(strict, normalized=normalized, pairs=pairs)
    expected = network_similarity(kernels, normalized=normalized, pairs=pairs)
    for name in kernels:
        assert result.layers[name] == pytest.approx(expected.layers[name], rel=1e-13)
        assert result.gradients[name].device == device
        host = np.asarray(result.gradients[name].to_device(array_api_strict.Device("CPU_DEVICE")))
        size = abs(expected.gradients[name]).max()
        assert host == pytest.approx(expected.gradients[name], rel=1e-11, abs=1e-13 * size)


@pytest.mark.torch
def test_initialize_is_pytorchs_adam_on_the_definition() -> None:
    import torch

    result = initialize_network(network(), iterations=25)
    parameters = {name: torch.tensor(kernel, requires_grad=True) for name, kernel in network().items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.001, betas=(0.5, 0.999))
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for kernels in parameters.values():
            rank = kernels.ndim - 2
            conv = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[rank]
            for i in range(len(kernels)):
                for j in range(i):
                    pad = [size - 1 for size in kernels.shape[2:]]
                    total = total + (conv(kernels[i][:, None], kernels[j][:, None], padding=pad) ** 2).sum()
        losses.append(float(total.detach()))
        total.backward()
        optimizer.step()
    assert result.losses == pytest.approx(losses, rel=1e-12)
    for name, parameter in parameters.items():
        # A step moves an entry by at most 0.001 / (1 - 0.5); its sign is well determined but for gradients near 0.
        assert result.kernels[name] == pytest.approx(parameter.detach().numpy(), abs=1e-9)


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_going_on_from_a_saved_state_gives_the_same_bits(keep_norms: bool, dtype: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep_norms": keep_norms, "learning_rate": 0.01}
    whole = initialize_network(network(dtype), iterations=12, **options)
    for first in (0, 5):
        path = tmp_path / f"{first}.npz"
        write_weights(path, initialize_network(network(dtype), iterations=first, **options).to_arrays())
        state = Initialization.from_arrays(read_weights(path))
        resumed = initialize_network(network(dtype), iterations=12, start=state, **options)
        assert resumed.losses == whole.losses
        for name, kernel in whole.kernels.items():
            assert kernel.dtype == resumed.kernels[name].dtype == dtype
            assert np.array_equal(resumed.kernels[name], kernel)


def test_norms_fall_unless_they_are_kept() -> None:
    start = network()

    def norms(kernels: dict[str, Any]) -> Any:
        return np.concatenate([np.sqrt((k**2).sum(axis=tuple(range(1, k.ndim)))) for k in kernels.values()])

    free = initialize_network(start, iterations=200, learning_rate=0.01)
    kept = initialize_network(start, iterations=200, learning_rate=0.01, keep_norms=True)
    assert np.mean(norms(free.kernels) / norms(start)) < 0.9
    assert norms(kept.kernels) == pytest.approx(norms(start), rel=1e-14)
    for name, kernels in start.items():
        before = float(convolutional_similarity(kernels, normalized=True))
        after = float(convolutional_similarity(kept.kernels[name], normalized=True))
        # All kernels of one tap have the same normalised similarity, 1 for each pair.
        assert after == pytest.approx(10.0, rel=1e-14) if name == "point" else after < before
    assert np.array_equal(start["a"], network()["a"])


def test_progress_sees_every_step() -> None:
    seen: list[int] = []
    initialize_network(network(), iterations=4, progress=lambda state: seen.append(state.iteration))
    assert seen == [1, 2, 3, 4]


def shouted_layers(*layers: Any, **keywords: Any) -> Any:
    SHOUTED.append(len(layers))
    return layer_similarities.reference(*layers, **keywords)


SHOUTED: list[int] = []


def test_a_new_engine_takes_the_layers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _dispatch.EngineEntry(lambda array: isinstance(array, np.ndarray), "NumPy arrays")
    monkeypatch.setitem(_dispatch.ENGINES, "loud", entry)
    monkeypatch.setitem(_dispatch.KERNELS, ("layer_similarities", "loud"), f"{__name__}:shouted_layers")
    SHOUTED.clear()
    result = network_similarity(network(), engine="loud")  # type: ignore[arg-type]
    assert [len(network())] == SHOUTED
    assert result.layers == pytest.approx(network_similarity(network()).layers, rel=1e-13)


class TestBadInput:
    def test_layers(self) -> None:
        with pytest.raises(ShapeError, match="layer bad: kernels must have at least 3 axes"):
            network_similarity({"good": np.ones((2, 1, 1)), "bad": np.ones((2, 2))})
        with pytest.raises(ValueError, match="layer bad: kernels must be finite"):
            network_similarity({"bad": np.full((2, 1, 1), np.nan)})
        with pytest.raises(ValueError, match=r"layer bad: normalized similarity needs .* got kernels\[1\] = 0"):
            network_similarity({"bad": np.array([[[1.0]], [[0.0]]])}, normalized=True)
        with pytest.raises(OverflowError, match="layer bad: sums can reach"):
            network_similarity({"bad": np.full((2, 1, 1), 2**40)})
        with pytest.raises(TypeError, match="layer bad: kernels must be float32 or float64, got dtype int64"):
            initialize_network({"bad": np.ones((2, 1, 1), dtype=int)})

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"iterations": -1}, ValueError, "iterations must be at least 0"),
            ({"iterations": 1.5}, TypeError, "iterations must be an integer"),
            ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive"),
            ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be between"),
            ({"engine": "gpu"}, ValueError, "engine must be one of"),
        ],
    )
    def test_options(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            initialize_network(network(), **options)

    def test_kernels_whose_gradient_overflows(self) -> None:
        huge = {name: kernel * 1e200 for name, kernel in network().items()}
        with pytest.raises(OverflowError, match="gradient of the similarity overflows"):
            initialize_network(huge, iterations=1)
        result = initialize_network(huge, iterations=2, keep_norms=True)
        for name, kernel in network().items():
            kept, own = (k.reshape(len(k), -1) for k in (result.kernels[name] / 1e200, kernel))
            np.testing.assert_allclose(np.linalg.norm(kept, axis=1), np.linalg.norm(own, axis=1), rtol=1e-13)

    def test_a_state_of_something_else(self) -> None:
        state = initialize_network(network(), iterations=1)
        with pytest.raises(ValueError, match="start belongs to layers"):
            initialize_network({"other": np.ones((2, 1, 1))}, start=state)
        with pytest.raises(ValueError, match=r"settings .*0\.5"):
            initialize_network(network(), start=state, learning_rate=0.5)

    @pytest.mark.parametrize("missing", ["iteration", "losses", "first:a", "setting:betas", "kernel:a"])
    def test_arrays_that_are_no_state(self, missing: str) -> None:
        arrays = initialize_network({"a": network()["a"]}, iterations=1).to_arrays()
        del arrays[missing]
        with pytest.raises(ValueError, match="not the state of an initialization"):
            Initialization.from_arrays(arrays)


@pytest.mark.parametrize("function", [network_similarity, initialize_network])
@pytest.mark.parametrize("kernels", [[np.ones((2, 1, 3))], np.ones((2, 1, 3)), None])
def test_layers_come_by_name(function: Any, kernels: Any) -> None:
    with pytest.raises(TypeError, match="kernels must be a mapping of layers by name"):
        function(kernels)


def test_what_cannot_be_minimised_is_refused_before_any_step() -> None:
    with pytest.raises(ValueError, match="layer a: kernels must be finite"):
        initialize_network({"a": np.full((2, 1, 3), np.nan)}, iterations=0)
    for betas in (0.5, (0.5,)):
        with pytest.raises(TypeError, match="betas must be two numbers, got"):
            initialize_network(network(), betas=betas)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("call", range(5))
def test_an_interrupt_amid_a_step_leaves_the_last_whole_one(
    keep_norms: bool, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = initialize_network(network(), iterations=4, keep_norms=keep_norms)
    state = initialize_network(network(), iterations=2, keep_norms=keep_norms)
    step, calls = Adam.step, iter(range(len(state.kernels)))

    def interrupted(self: Adam, *arrays: Any) -> Any:
        moved = step(self, *arrays)
        if next(calls) == call:
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Adam, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            initialize_network(network(), iterations=4, keep_norms=keep_norms, start=state)
    assert (state.iteration, len(state.losses)) == (2, 2)
    initialize_network(network(), iterations=4, keep_norms=keep_norms, start=state)
    assert state.losses == whole.losses
    for name, kernel in whole.kernels.items():
        assert np.array_equal(state.kernels[name], kernel)


@pytest.mark.torch
def test_tensors_that_autograd_follows_are_refused_and_detached_ones_measured() -> None:
    torch = pytest.importorskip("torch")
    kernels = network()["a"]
    tensor = torch.tensor(kernels, requires_grad=True)
    with pytest.raises(TypeError, match=r"kernels\['a'\] requires a gradient"):
        network_similarity({"a": tensor})
    result = network_similarity({"a": tensor.detach()})
    assert result.layers["a"] == pytest.approx(float(convolutional_similarity(kernels)), rel=1e-13)
