"""The PyTorch adapter: gradcheck, any optimizer, saving and loading, closures, schedulers, bad gradients."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import convla

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402

pytestmark = pytest.mark.torch

LOSSES = {
    "similarity": adapter.convolutional_similarity_loss,
    "scale-invariant similarity": lambda k: adapter.convolutional_similarity_loss(k, normalized=True),
    "orthogonality": adapter.kernel_orthogonality_loss,
    "ocnn": adapter.ocnn_loss,
    "ocnn, stride 2": lambda k: adapter.ocnn_loss(k, stride=2),
}
TRANSFORMS = {
    "reweighted": {"lam": 3.0},
    "sobolev": {"lam": 0.5, "blend": 0.25},
    "laplacian": {"sigma": 2.0, "axis": 0},
    "orthonormal": {},
    "normalized": {"per_filter": True},
}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(3, 2, 3), (2, 2, 2, 3), (2, 1, 2, 1, 2), (4, 1, 1, 1)])
def test_the_losses_pass_gradcheck(name: str, shape: tuple[int, ...]) -> None:
    kernels = torch.tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name], (kernels,))


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_keep_dtype_and_weight(name: str) -> None:
    kernels = torch.randn(3, 2, 3, 3, requires_grad=True)
    loss = LOSSES[name](kernels)
    assert loss.dtype == torch.float32
    (5 * loss).backward()
    (plain,) = torch.autograd.grad(LOSSES[name](kernels), kernels)
    assert torch.allclose(kernels.grad, 5 * plain)


def _network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Flatten(), torch.nn.Linear(54, 4)
    )


def _backward(network: Any, seed: int = 1) -> Any:
    x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    loss = network(x).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("linear", [False, True])
def test_a_step_is_the_optimizers_step_along_the_transformed_gradient(
    transform: str, optimizer: str, linear: bool
) -> None:
    options = TRANSFORMS[transform]
    wrapped, by_hand = _network(), _network()
    first, second = OPTIMIZERS[optimizer](wrapped.parameters()), OPTIMIZERS[optimizer](by_hand.parameters())
    adapter.GradientTransform(first, transform, linear=linear, **options)
    for seed in range(3):
        for network, steps in ((wrapped, first), (by_hand, second)):
            steps.zero_grad()
            _backward(network, seed)
        plain = [p.grad.clone() for p in wrapped.parameters()]
        first.step()
        for before, p in zip(plain, wrapped.parameters(), strict=True):
            assert torch.equal(p.grad, before)  # put back after the step
        for p in by_hand.parameters():
            if p.ndim >= (2 if linear else 3):
                p.grad = torch.from_numpy(adapter.TRANSFORMS[transform](p.grad.numpy(), **options))
        second.step()
        for a, b in zip(wrapped.parameters(), by_hand.parameters(), strict=True):
            assert torch.equal(a, b)


def test_closures_return_their_value_and_are_transformed_each_time() -> None:
    network = _network()
    optimizer = torch.optim.LBFGS([network[0].weight], lr=0.1, max_iter=3)
    seen = []

    def transform(gradient: Any) -> Any:
        seen.append(gradient.clone())
        return 0 * gradient

    handle = adapter.GradientTransform(optimizer, transform)

    def closure() -> Any:
        optimizer.zero_grad()
        return _backward(network)

    before = network[0].weight.clone()
    loss = optimizer.step(closure)
    assert loss.item() == closure().item()
    assert seen
    assert torch.equal(network[0].weight, before)
    handle.remove()
    optimizer.step(closure)
    assert not torch.equal(network[0].weight, before)


def test_saving_loading_and_scheduling_are_the_optimizers_own() -> None:
    def train(network: Any, optimizer: Any, scheduler: Any, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad()
            _backward(network, seed)
            optimizer.step()
            scheduler.step()

    def make() -> tuple[Any, Any, Any]:
        network = _network()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        adapter.GradientTransform(optimizer, "reweighted", lam=4.0)
        return network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    straight = make()
    train(*straight, range(6))
    stopped = make()
    train(*stopped, range(3))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in stopped], file)
    file.seek(0)
    resumed = make()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*resumed, range(3, 6))
    for a, b in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed[1].param_groups[0]["lr"] == pytest.approx(0.0125)


def test_groups_frozen_and_shared_weights() -> None:
    shared = torch.nn.Conv2d(2, 2, 3, padding=1)
    frozen, left_alone = torch.nn.Conv2d(2, 2, 1), torch.nn.Conv2d(2, 2, 1)
    frozen.weight.requires_grad_(False)
    network = torch.nn.Sequential(shared, frozen, left_alone, shared)
    optimizer = torch.optim.SGD([{"params": shared.parameters()}, {"params": frozen.parameters()}], lr=1.0)
    optimizer.add_param_group({"params": left_alone.parameters(), "transform": False})
    calls = []

    def transform(gradient: Any) -> Any:
        calls.append(gradient)
        return 2 * gradient

    adapter.GradientTransform(optimizer, transform)
    network(torch.ones(1, 2, 4, 4)).sum().backward()
    before = {p: p.detach().clone() for p in network.parameters()}
    optimizer.step()
    assert len(calls) == 1
    for p, factor in ((shared.weight, 2), (shared.bias, 1), (frozen.weight, 0), (left_alone.weight, 1)):
        step = torch.zeros_like(p) if p.grad is None else p.grad
        assert torch.allclose(before[p] - p, factor * step)
    assert optimizer.state_dict()["param_groups"][2]["transform"] is False


def test_gradients_accumulate_before_a_step() -> None:
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    adapter.GradientTransform(optimizer, "normalized")
    _backward(network, 0)
    _backward(network, 1)
    total, before = network[0].weight.grad.clone(), network[0].weight.detach().clone()
    optimizer.step()
    assert torch.allclose(before - network[0].weight, total / total.norm(), atol=1e-6)


def test_a_bad_gradient_is_named_and_no_step_is_made() -> None:
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.Conv1d(2, 2, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    adapter.GradientTransform(optimizer, "sobolev", lam=1.0)
    network(torch.ones(1, 1, 9)).sum().backward()
    network[1].weight.grad[0, 0, 0] = float("nan")
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(ValueError, match=r"gradient must be finite.* \(the gradient of parameter 2 of group 0"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_half_precision_goes_through_float32() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 2, 3).bfloat16())
    weight.grad = torch.randn(4, 2, 3).bfloat16()
    plain = weight.grad.float()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    before = weight.detach().clone()
    adapter.GradientTransform(optimizer, "reweighted", lam=2.0)
    optimizer.step()
    expected = torch.from_numpy(convla.reweighted_gradient(plain.numpy(), 2.0)).bfloat16()
    assert torch.equal(weight, before - expected)


def test_the_initialisers_follow_torchs_seed() -> None:
    for fill in (adapter.orthogonal_, adapter.delta_orthogonal_):
        torch.manual_seed(3)
        a = fill(torch.nn.Parameter(torch.empty(4, 2, 3, 3)), gain=2.0)
        torch.manual_seed(3)
        b = fill(torch.nn.Parameter(torch.empty(4, 2, 3, 3)), gain=2.0)
        assert torch.equal(a, b)
        values = torch.linalg.svdvals(a.detach().flatten(1))
        assert torch.allclose(values[:2], torch.tensor(2.0), atol=1e-6)
    assert torch.equal(
        adapter.orthogonal_(torch.empty(4, 2, 3, dtype=torch.float64), rng=7),
        torch.from_numpy(convla.orthogonal_kernel((4, 2, 3), rng=7)),
    )


def test_bad_input_is_named() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2, 3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        adapter.GradientTransform([weight], "sobolev")
    with pytest.raises(ValueError, match=r"transform must be one of 'reweighted', .*got 'sobelov'"):
        adapter.GradientTransform(optimizer, "sobelov")
    with pytest.raises(TypeError, match=r"kernels must be float32, .*got dtype torch.float16"):
        adapter.ocnn_loss(weight.half())
