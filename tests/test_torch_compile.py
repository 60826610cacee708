"""Spectral penalties within graphs of torch.compile, against the same steps without it."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402

pytestmark = pytest.mark.torch


def _network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(3, 4, 3, stride=2, padding_mode="circular", padding=1),
    )


def _steps(network: Any, penalty: Any, *, compiled: bool, **options: Any) -> list[Any]:
    """Return all losses, gradients and buffers of three steps of descent."""
    images = torch.linspace(-1, 1, 144).reshape(2, 2, 6, 6)

    def loss(images: Any) -> Any:
        return network(images).square().mean() + penalty(network)

    step = torch.compile(loss, fullgraph=True, **options) if compiled else loss
    optimizer, found = torch.optim.SGD(network.parameters(), lr=0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        value = step(images)
        value.backward()
        found += [value.detach(), *(parameter.grad.clone() for parameter in network.parameters())]
        optimizer.step()
    return found + [buffer.clone() for buffer in penalty.buffers()]


@pytest.mark.command
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own making
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_network_and_its_penalty_are_one_graph(backend: str) -> None:
    """The buffers too are what they are without the compiler: each step goes on from the last."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("the inductor needs a C++ compiler")
    network = _network()
    penalty = adapter.NetworkSpectralPenalty(network, torch.zeros(1, 2, 6, 6))
    plain = _steps(copy.deepcopy(network), copy.deepcopy(penalty), compiled=False)
    got = _steps(network, penalty, compiled=True, backend=backend)
    for one, other in zip(got, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_pickled_penalty_goes_on_in_a_process_that_has_not_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Conv1d(1, 2, 3)
    penalty = adapter.SpectralPenalty(layer, (5,))
    text = pickle.dumps(penalty)
    expected = penalty(layer.weight)
    monkeypatch.setattr("convla.frameworks.torch.spectral._FOLLOWED", {})
    assert torch.equal(pickle.loads(text)(layer.weight), expected)


@pytest.mark.parametrize("name", ["spectral_penalties", "ocnn_residual", "network_similarity"])
def test_the_operators_are_what_the_compiler_takes_them_for(name: str) -> None:
    """PyTorch's own check of schema, fake results and dispatch."""
    weight = torch.randn(3, 2, 3, requires_grad=name != "spectral_penalties")
    layer = torch.nn.Conv1d(2, 3, 3)
    penalty = adapter.SpectralPenalty(layer, (5,))
    arguments = {
        "spectral_penalties": ([weight], list(penalty.buffers()), [penalty._key], ["0"], True),
        "ocnn_residual": (weight, [1], 1, True),
        "network_similarity": ([weight, weight.detach().double()], ["0", "1"], "unordered", False),
    }
    torch.library.opcheck(getattr(torch.ops.convla, name).default, arguments[name])
