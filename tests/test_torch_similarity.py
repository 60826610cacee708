"""CSM's Algorithms 1 and 2 on PyTorch networks, against the definition, autograd and PyTorch's own Adam."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import convla
from convla.errors import ShapeError
from convla.similarity import Initialization

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402

pytestmark = pytest.mark.torch


def _network(dtype: Any = torch.float64) -> Any:
    """A network with a grouped layer and one that is used twice; its frozen layer and its linear one are left out."""
    torch.manual_seed(0)
    shared = torch.nn.Conv2d(4, 4, 3, padding=1)
    frozen = torch.nn.Conv2d(4, 2, 1)
    frozen.weight.requires_grad_(False)
    return torch.nn.Sequential(
        *(torch.nn.Conv2d(2, 4, 3), shared, torch.nn.ReLU(), shared, torch.nn.Conv2d(4, 4, 3, groups=2), frozen),
        *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 3)),
    ).to(dtype)


def _by_definition(weight: Any) -> Any:
    """CSM Eq. (19) by PyTorch's own full cross-correlation of every pair of filters and of channels."""
    total = torch.zeros((), dtype=weight.dtype)
    pad = weight.shape[-1] - 1
    for i in range(weight.shape[0]):
        for j in range(i):
            images, kernels = weight[i][:, None], weight[j][:, None]
            total = total + torch.nn.functional.conv2d(images, kernels, padding=pad).square().sum()
    return total


def test_the_loss_and_its_parts() -> None:
    network = _network()
    parts = adapter.similarity_losses(network)
    assert list(parts) == ["0", "1", "4", "5"]
    for name, part in parts.items():
        torch.testing.assert_close(part, _by_definition(network.get_submodule(name).weight))
        assert part.requires_grad == (name != "5")
    torch.testing.assert_close(adapter.network_similarity_loss(network), sum(parts.values()))
    ordered = adapter.network_similarity_loss(network, pairs="ordered")
    torch.testing.assert_close(ordered, 2.0 * sum(parts.values()))


@pytest.mark.parametrize("normalized", [False, True])
def test_the_sum_is_differentiated_twice(normalized: bool, torch_device: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 2), torch.nn.Conv2d(2, 2, (1, 2))).double().to(torch_device)

    def total(*weights: Any) -> Any:
        for layer, weight in zip(network, weights, strict=True):
            del layer.weight
            layer.weight = weight
        return adapter.network_similarity_loss(network, normalized=normalized)

    weights = [layer.weight.detach().clone().requires_grad_() for layer in network]
    for layer in network:
        del layer._parameters["weight"]
        layer.weight = None
    assert torch.autograd.gradcheck(total, weights)
    assert torch.autograd.gradgradcheck(total, weights)


def test_a_frozen_layer_is_no_part_of_a_second_derivative() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3))
    network[1].weight.requires_grad_(False)
    weight = network[0].weight
    (slope,) = torch.autograd.grad(adapter.network_similarity_loss(network), [weight], create_graph=True)
    (alone,) = torch.autograd.grad(adapter.convolutional_similarity_loss(weight), [weight], create_graph=True)
    for got, wanted in ((slope, alone), (slope.square().sum(), alone.square().sum())):
        torch.testing.assert_close(got, wanted)
    second = [torch.autograd.grad(value.square().sum(), [weight])[0] for value in (slope, alone)]
    torch.testing.assert_close(*second)


def test_layers_that_share_a_weight_count_once() -> None:
    first, second = torch.nn.Conv1d(3, 3, 3), torch.nn.Conv1d(3, 3, 3)
    network = torch.nn.Sequential(first, second)
    apart = adapter.network_similarity_loss(network).item()
    second.weight = first.weight
    assert list(adapter.convolutions(network)) == ["0"]
    assert adapter.network_similarity_loss(network).item() < apart
    # Computed weights are objects of the moment, which may well have the place in memory of one that is gone.
    for layer in (first, second):
        layer.weight = torch.nn.Parameter(torch.randn(3, 3, 3))
        torch.nn.utils.parametrizations.weight_norm(layer)
    assert list(adapter.convolutions(network)) == ["0", "1"]


def test_algorithm_2_adds_the_gradients() -> None:
    network, images, labels = _network(), torch.randn(5, 2, 8, 8).double(), torch.arange(5) % 3
    task = torch.nn.functional.cross_entropy(network(images), labels)
    (task + 0.01 * adapter.network_similarity_loss(network)).backward()
    got = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    for name in ("0.weight", "1.weight", "4.weight"):
        weight = network.get_parameter(name)
        weight.grad += 0.01 * torch.autograd.grad(_by_definition(weight), weight)[0]
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, network.get_parameter(name).grad)


@pytest.mark.parametrize("keep_norms", [False, True])
def test_algorithm_1_is_adam_on_the_sum(keep_norms: bool, torch_device: Any) -> None:
    got, expected = _network().to(torch_device), _network()
    before = {name: value.clone() for name, value in expected.state_dict().items()}
    result = adapter.minimize_similarity_(got, iterations=8, learning_rate=0.01, keep_norms=keep_norms)
    weights = [expected[0].weight, expected[1].weight, expected[4].weight]
    norms = [w.detach().flatten(1).norm(dim=1)[:, None, None, None] for w in weights]
    adam = torch.optim.Adam(weights, lr=0.01, betas=(0.5, 0.999))
    losses = []
    for _ in range(8):
        adam.zero_grad()
        units = [w / w.flatten(1).norm(dim=1)[:, None, None, None] for w in weights] if keep_norms else weights
        loss = sum(_by_definition(w) for w in units)
        loss.backward()
        adam.step()
        losses.append(loss.item())
        if keep_norms:
            for w, norm in zip(weights, norms, strict=True):
                w.data *= norm / w.detach().flatten(1).norm(dim=1)[:, None, None, None]
    assert result.losses == pytest.approx(losses, rel=1e-9)
    for name, value in got.state_dict().items():
        torch.testing.assert_close(value.cpu(), expected.state_dict()[name], rtol=1e-7, atol=1e-9)
        changed = name in ("0.weight", "1.weight", "3.weight", "4.weight")
        assert torch.equal(value.cpu(), before[name]) != changed


def test_it_is_the_core_on_the_same_kernels() -> None:
    network = _network(torch.float32)
    kernels = {name: network.get_submodule(name).weight.detach().numpy().copy() for name in ("0", "1", "4")}
    adapter.minimize_similarity_(network, iterations=5)
    expected = convla.initialize_network(kernels, iterations=5)
    for name, kernel in expected.kernels.items():
        np.testing.assert_array_equal(network.get_submodule(name).weight.detach().numpy(), kernel)


def test_stopping_and_going_on() -> None:
    straight, stopped = _network(torch.float32), _network(torch.float32)
    whole = adapter.minimize_similarity_(straight, iterations=9)
    part = adapter.minimize_similarity_(stopped, iterations=4)
    saved = Initialization.from_arrays(copy.deepcopy(part.to_arrays()))
    # What is trained in between is no part of the state.
    with torch.no_grad():
        stopped[0].weight.zero_()
    resumed = adapter.minimize_similarity_(stopped, iterations=9, start=saved)
    assert resumed.losses == whole.losses
    for a, b in zip(straight.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_keeps_its_own_memory() -> None:
    network = _network(torch.float32)
    state = adapter.minimize_similarity_(network, iterations=0)
    kernel = torch.as_tensor(state.kernels["0"]).clone()
    with torch.no_grad():
        network[0].weight.zero_()
    assert torch.equal(torch.as_tensor(state.kernels["0"]), kernel)


def test_weights_in_other_memory_formats() -> None:
    plain, last = _network(torch.float32), _network(torch.float32).to(memory_format=torch.channels_last)
    for network in (plain, last):
        adapter.minimize_similarity_(network, iterations=3)
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_interrupted_minimisation_changes_nothing() -> None:
    network = _network(torch.float32)
    before = copy.deepcopy(network.state_dict())
    seen: list[int] = []

    def progress(state: Initialization) -> None:
        seen.append(state.iteration)
        if state.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter.minimize_similarity_(network, iterations=9, progress=progress)
    assert seen == [1, 2, 3]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_bad_networks_are_named() -> None:
    with pytest.raises(ValueError, match="network must have a convolutional layer"):
        adapter.minimize_similarity_(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, got list"):
        adapter.network_similarity_loss([torch.nn.Conv1d(2, 2, 3)])
    with pytest.raises(ValueError, match="layer 0 has no weight yet"):
        adapter.convolutions(torch.nn.Sequential(torch.nn.LazyConv2d(2, 3)))
    frozen = torch.nn.Conv1d(2, 2, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="a convolutional layer whose weight is not frozen, got none"):
        adapter.minimize_similarity_(frozen)
    computed = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(2, 2, 3)))
    with pytest.raises(ValueError, match="layer 0: its weight is computed by a parametrization"):
        adapter.minimize_similarity_(computed)
    adapter.network_similarity_loss(computed).backward()
    assert computed[0].parametrizations.weight.original1.grad.abs().max() > 0
    for dtype in (torch.float16, torch.bfloat16):
        half = torch.nn.Sequential(torch.nn.Conv1d(2, 2, 3)).to(dtype)
        with pytest.raises(TypeError, match=f"layer 0: kernels must be .*got dtype {dtype}"):
            adapter.minimize_similarity_(half)
        with pytest.raises(TypeError, match=f"layer 0: kernels must be .*got dtype {dtype}"):
            adapter.network_similarity_loss(half)
    network = _network(torch.float32)
    with torch.no_grad():
        network[1].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer 1: kernels must be finite"):
        adapter.minimize_similarity_(network)


def test_a_state_of_other_layers_or_settings_is_refused() -> None:
    network = _network(torch.float32)
    state = adapter.minimize_similarity_(network, iterations=2)
    with pytest.raises(ValueError, match="start belongs to layers"):
        adapter.minimize_similarity_(network, iterations=4, learning_rate=0.1, start=state)
    other = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(3, 4, 3))
    state = adapter.minimize_similarity_(other, iterations=2)
    before = other[1].weight.detach().clone()
    wider = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(3, 8, 3))
    with pytest.raises(ShapeError, match="layer 1 of kernels and start must have the same shape"):
        adapter.minimize_similarity_(wider, iterations=2, start=state)
    assert torch.equal(before, other[1].weight)
