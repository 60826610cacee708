"""Ctrl-C at any moment in what lives on in a training script: gradients, buffers, states and modes are whole."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator
from convla._threads import at_most
from tests.interrupts import interrupted

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import torch.optim.sgd as plain_descent  # noqa: E402

from convla.frameworks import torch as adapter  # noqa: E402
from convla.frameworks.torch import descent, layers, optimizers, projection, spectral  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("anew", [False, True])
def test_a_step_goes_along_the_gradients_that_are_there(*, anew: bool) -> None:
    """Those that were replaced when a step was interrupted, or those that were computed in their place since."""
    first, second = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, -3.0]]])
    for moment in itertools.count(1):
        layers = torch.nn.ModuleList(torch.nn.Conv1d(1, 1, 2, bias=False) for _ in range(2))
        optimizer = torch.optim.SGD(layers.parameters(), lr=1.0)
        adapter.GradientTransform(optimizer, lambda gradient: -4 * gradient)
        for layer in layers:
            (layer.weight * first).sum().backward()
        came = interrupted(moment, optimizer.step, optimizers, plain_descent)
        if anew:
            optimizer.zero_grad(set_to_none=False)
            for layer in layers:
                (layer.weight * second).sum().backward()
        before = [layer.weight.detach().clone() for layer in layers]
        optimizer.step()
        plain = second if anew else first
        for layer, weight in zip(layers, before, strict=True):
            assert torch.equal(layer.weight.grad, plain)
            torch.testing.assert_close(layer.weight - weight, 4 * plain)
        if not came:
            break
    assert moment > 50


def test_a_penalty_knows_all_of_its_last_state_or_nothing() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False).double()
    first = layer.weight.detach().clone()
    penalty = adapter.SpectralPenalty(layer, (6, 6))
    penalty(layer.weight)
    known = copy.deepcopy(penalty.state_dict())
    for factor, moment in itertools.product((1.0, 3.0), range(1, 60)):
        # Other groups become the outermost.
        weight = (first * (1 + factor * torch.arange(8.0, dtype=torch.float64).reshape(8, 1, 1, 1))).flip(0)
        penalty.load_state_dict(known)
        came = interrupted(moment, lambda weight=weight: penalty(weight), spectral, functions=("_values",))  # type: ignore[misc]
        values = np.linalg.svd(ConvOperator(weight.numpy(), (6, 6), padding=1, groups=8).to_dense(), compute_uv=False)
        largest = float(abs(values**2 - 1).max())
        assert float(penalty(weight)) == pytest.approx(largest, rel=1e-3)
    assert not came


def test_an_interrupted_projection_says_nothing_of_what_it_has_not_written() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3, padding=1), torch.nn.Conv1d(3, 2, 3, padding=1)).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    projected = adapter.SpectralProjection(optimizer, network, torch.zeros(1, 2, 7, dtype=torch.float64), maximum=0.5)
    start = copy.deepcopy(network.state_dict())
    came, moment = True, 0
    while came:
        moment += 1
        network.load_state_dict(start)
        projected.upper = {}
        with at_most(1):
            came = interrupted(moment, projected.project, projection, functions=("project",))
        for name, upper in projected.upper.items():
            matrix = ConvOperator(network[int(name)].weight.detach().numpy(), (7,), padding=1).to_dense()
            assert np.linalg.norm(matrix, 2) <= upper <= 0.5
    assert len(projected.upper) == 2
    assert moment > 10


def test_an_optimizer_goes_on_after_an_interrupt() -> None:
    came, moment = True, 0
    while came:
        moment += 1
        network = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.BatchNorm1d(3))
        optimizer = adapter.OrthonormalSGD(network)
        network(torch.ones(2, 2, 6)).square().sum().backward()
        came = interrupted(moment, optimizer.step, descent, functions=("_adamw",))
        optimizer.step()
        assert all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())
    assert moment > 10


def test_a_network_that_is_looked_at_keeps_its_modes_and_hooks() -> None:
    network: Any = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.BatchNorm1d(3), torch.nn.Conv1d(3, 2, 3))
    network[1].eval()
    modes = [module.training for module in network.modules()]
    came, moment = True, 0
    while came:
        moment += 1
        came = interrupted(moment, lambda: adapter.image_shapes(network, torch.zeros(1, 2, 9)), layers)
        assert [module.training for module in network.modules()] == modes
        # One may be there that was just being registered; it looks at shapes alone.
        assert sum(len(module._forward_pre_hooks) for module in network) <= 1
        for module in network:
            module._forward_pre_hooks.clear()
    assert moment > 20
