"""Orthonormalised momentum: the norms of its steps against dense matrices, its averages and its fallback."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from convla import orthonormalize

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks.torch import OrthonormalSGD  # noqa: E402
from convla.frameworks.torch.layer_maps import layer_map  # noqa: E402

pytestmark = pytest.mark.torch

# Layers, the sizes of their images, and of an entry of the image the most outputs that read it.
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...], int]] = {
    "plain": (lambda: torch.nn.Conv2d(2, 5, 3, padding=1), (6, 6), 9),
    "groups": (lambda: torch.nn.Conv2d(4, 6, 3, padding=1, groups=2), (6, 6), 9),
    "depthwise": (lambda: torch.nn.Conv1d(4, 4, 5, padding=2, groups=4), (9,), 5),
    "stride": (lambda: torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), (8, 8), 4),
    "patches": (lambda: torch.nn.Conv2d(3, 4, 2, stride=2), (6, 6), 1),
    "stride and dilation": (lambda: torch.nn.Conv1d(2, 3, 3, stride=2, dilation=2, padding=2), (12,), 3),
    "transposed": (lambda: torch.nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1), (6,), 2),
    "linear": (lambda: torch.nn.Linear(6, 4), (), 1),
}


def _stepped(layer: Any, gradient: Any, **options: Any) -> Any:
    """Return what a first step adds to the weight."""
    optimizer = OrthonormalSGD(layer, method="exact", **options)
    before = layer.weight.detach().clone()
    layer.weight.grad = gradient
    optimizer.step()
    return layer.weight.detach() - before


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_changes_a_layer_by_no_more_than_the_learning_rate(name: str) -> None:
    make, image_shape, readers = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    where = layer_map(layer, image_shape)
    norms = []
    for gradient in (torch.randn_like(layer.weight), torch.ones_like(layer.weight)):
        change = _stepped(layer, gradient, lr=0.3, norm="spectral")
        norms.append(float(np.linalg.svd(where.operator(change).to_dense().numpy(), compute_uv=False)[0]))
    assert max(norms) <= 0.3 * (1 + 1e-12)
    assert max(norms) >= 0.3 / math.sqrt(readers) * (1 - 1e-12)
    # With all taps alike the interior of the image comes close to the bound, where the stride divides the kernel.
    assert norms[1] >= 0.3 * 0.7
    rows, columns = where.operator(change).shape[:: -1 if where.transposed else 1]
    change = _stepped(layer, torch.randn_like(layer.weight), lr=0.3, norm="rms")
    largest = float(np.linalg.svd(where.operator(change).to_dense().numpy(), compute_uv=False)[0])
    assert 0.3 / math.sqrt(readers) * (1 - 1e-12) <= largest * math.sqrt(columns / rows) <= 0.3 * (1 + 1e-12)


def test_momentum_is_nesterovs_average() -> None:
    layer = torch.nn.Conv1d(2, 3, 2).double()
    optimizer = OrthonormalSGD(layer, lr=0.1, momentum=0.8, weight_decay=0.5, method="exact", norm="spectral")
    weight = layer.weight.detach().numpy().copy()
    average = np.zeros(weight.shape)
    for seed in range(3):
        gradient = np.random.default_rng(seed).standard_normal(weight.shape)
        layer.weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        average = 0.8 * average + 0.2 * gradient
        direction = orthonormalize(0.8 * average + 0.2 * gradient)
        weight = weight * (1 - 0.1 * 0.5) - 0.1 / math.sqrt(2) * direction
        assert np.allclose(layer.weight.detach().numpy(), weight, atol=1e-12)


def _network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 4, 3, padding=1, groups=2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 2),
    )


def _train(network: Any, optimizer: Any, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        network(torch.randn(5, 1, 4, 4)).square().sum().backward()
        optimizer.step()


def test_other_parameters_follow_adamw() -> None:
    network, other = _network(), _network()
    optimizer = OrthonormalSGD(network, except_for=["4"], weight_decay=0.1, other_lr=0.01)
    kept = {"0.weight", "2.weight"}
    reference = torch.optim.AdamW(
        [p for name, p in other.named_parameters() if name not in kept], lr=0.01, weight_decay=0.1
    )
    for seed in range(3):
        torch.manual_seed(seed)
        for each in (network, other):
            for parameter in each.parameters():
                parameter.grad = None
        network(torch.randn(5, 1, 4, 4)).square().sum().backward()
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            theirs.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for (name, mine), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        if name not in kept:
            torch.testing.assert_close(mine, theirs)
        else:
            assert not torch.equal(mine, theirs)


def test_a_resumed_training_makes_the_same_steps() -> None:
    network = _network()
    optimizer = OrthonormalSGD(network)
    _train(network, optimizer, range(2))
    other = copy.deepcopy(network)
    resumed = OrthonormalSGD(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _train(network, optimizer, range(2, 4))
    _train(other, resumed, range(2, 4))
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_errors_leave_the_parameters_alone() -> None:
    network = _network()
    with pytest.raises(ValueError, match="norm must be one of 'rms', 'spectral', got 'frobenius'"):
        OrthonormalSGD(network, norm="frobenius")
    with pytest.raises(ValueError, match=r"except_for must hold names of layers, .*got \['5'\]"):
        OrthonormalSGD(network, except_for=["5"])
    with pytest.raises(ValueError, match="to orthonormalise, got none"):
        OrthonormalSGD(torch.nn.BatchNorm1d(3))
    optimizer = OrthonormalSGD(network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    with pytest.raises(ValueError, match="NaN"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
