"""Transformed gradients in any optimizer: steps, groups, saving and loading, closures, schedulers, bad gradients."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import convla

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402
from tests.transform_options import OPTIONS  # noqa: E402

pytestmark = pytest.mark.torch

THREADS = """
import torch
from convla.frameworks.torch import GradientTransform

torch.set_num_threads(5)
layer = torch.nn.Conv2d(64, 256, 3)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
GradientTransform(optimizer, "reweighted", lam=2.0)
for _ in range(2):
    layer(torch.ones(1, 64, 5, 5)).sum().backward()
    optimizer.step()
    print(torch.get_num_threads())
"""


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You et al., 2017, Algorithm 1), a user's own optimizer."""

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay, "trust": 0.02})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient, state = parameter.grad, self.state[parameter]
                length = gradient.norm() + group["decay"] * parameter.norm()
                rate = group["trust"] * parameter.norm() / length if length > 0 else 1.0
                velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(group["lr"] * rate * (gradient + group["decay"] * parameter))
                parameter.sub_(velocity)
        return loss


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "LARS": lambda p: LARS(p, lr=0.1),
}


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


@pytest.mark.parametrize("transform", OPTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("linear", [False, True])
def test_a_step_is_the_optimizers_step_along_the_transformed_gradient(
    transform: str, optimizer: str, linear: bool
) -> None:
    options = OPTIONS[transform]
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


def test_a_transform_tells_what_it_does_and_to_what() -> None:
    optimizer = torch.optim.SGD(torch.nn.Conv2d(3, 8, 3).parameters(), lr=0.1)
    handle = adapter.GradientTransform(optimizer, "sobolev", lam=2.0)
    assert repr(handle) == "<GradientTransform sobolev, lam=2.0: of SGD>"
    handle.remove()
    assert repr(handle) == "<GradientTransform sobolev, lam=2.0: removed>"


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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("transform", ["sobolev", "orthonormal"])
def test_saving_loading_and_scheduling_are_the_optimizers_own(optimizer: str, transform: str) -> None:
    def train(network: Any, optimizer: Any, scheduler: Any, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad()
            _backward(network, seed)
            optimizer.step()
            scheduler.step()

    def make() -> tuple[Any, Any, Any]:
        network = _network()
        steps = OPTIMIZERS[optimizer](network.parameters())
        adapter.GradientTransform(steps, transform, **OPTIONS[transform])
        return network, steps, torch.optim.lr_scheduler.StepLR(steps, 2, 0.5)

    straight = make()
    rate = straight[1].param_groups[0]["lr"]
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
    assert resumed[1].param_groups[0]["lr"] == pytest.approx(rate / 8)


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


@pytest.mark.parametrize("linear", [False, True])
def test_the_network_says_which_parameters_are_weights(linear: bool) -> None:
    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = torch.nn.Parameter(torch.zeros(1, 2, 5))
            self.conv = torch.nn.Conv1d(2, 3, 5)
            self.head = torch.nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.conv(x + self.position)[:, :, 0])

    torch.manual_seed(0)
    network = Tokens()
    for restricted in (False, True):
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        seen: list[tuple[int, ...]] = []
        adapter.GradientTransform(
            optimizer,
            lambda g, seen=seen: seen.append(tuple(g.shape)) or g,
            linear=linear,
            network=network if restricted else None,
        )
        network(torch.randn(2, 2, 5)).sum().backward()
        optimizer.step()
        assert seen == [*([] if restricted else [(1, 2, 5)]), (3, 2, 5), *([(2, 3)] if linear else [])]


def test_a_weight_with_two_layouts_is_refused() -> None:
    conv, transposed = torch.nn.Conv1d(3, 3, 3), torch.nn.ConvTranspose1d(3, 3, 3)
    transposed.weight = conv.weight
    optimizer = torch.optim.SGD(conv.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="layers that share a weight must hold their filters alike"):
        adapter.GradientTransform(optimizer, "sobolev", network=torch.nn.Sequential(conv, transposed), lam=1.0)
    adapter.GradientTransform(optimizer, "sobolev", lam=1.0)  # the optimizer is as it was


def test_a_group_may_be_empty_or_without_gradients() -> None:
    layer, idle = torch.nn.Conv1d(2, 3, 3), torch.nn.Conv1d(2, 3, 3)
    optimizer = torch.optim.SGD([{"params": []}, {"params": idle.parameters()}, {"params": layer.parameters()}], lr=1.0)
    adapter.GradientTransform(optimizer, "normalized")
    layer(torch.ones(1, 2, 3)).sum().backward()
    before, rest = layer.weight.detach().clone(), idle.weight.detach().clone()
    optimizer.step()
    assert float((before - layer.weight).detach().norm()) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(rest, idle.weight)


def test_one_transform_for_each_optimizer() -> None:
    optimizer = torch.optim.SGD(torch.nn.Conv1d(2, 3, 3).parameters(), lr=1.0)
    handle = adapter.GradientTransform(optimizer, "normalized")
    with pytest.raises(ValueError, match="optimizer has a GradientTransform already"):
        adapter.GradientTransform(optimizer, "sobolev", lam=1.0)
    handle.remove()
    adapter.GradientTransform(optimizer, "sobolev", lam=1.0)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_may_be_passed_either_way_and_may_raise(by_name: bool) -> None:
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    adapter.GradientTransform(optimizer, "normalized")
    failing = [True]

    def closure() -> Any:
        optimizer.zero_grad()
        loss = _backward(network)
        if failing[0]:
            raise ArithmeticError("of the user's own")
        return loss

    def step() -> Any:
        return optimizer.step(closure=closure) if by_name else optimizer.step(closure)

    with pytest.raises(ArithmeticError):
        step()
    plain = network[0].weight.grad.clone()
    failing[0] = False
    before = network[0].weight.detach().clone()
    loss = step()
    assert isinstance(loss.item(), float)
    assert torch.equal(network[0].weight.grad, plain)
    assert torch.allclose(before - network[0].weight, 0.1 * plain / plain.norm(), atol=1e-6)


def test_a_step_that_raises_leaves_no_transformed_gradient_behind() -> None:
    class Failing(torch.optim.SGD):
        broken = True

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise ArithmeticError("of the optimizer's own")
            return super().step(closure)

    layer = torch.nn.Conv1d(2, 3, 3)
    optimizer = Failing(layer.parameters(), lr=1.0)
    adapter.GradientTransform(optimizer, lambda g: 2.0 * g)
    layer(torch.ones(1, 2, 3)).sum().backward()
    plain, before = layer.weight.grad.clone(), layer.weight.detach().clone()
    with pytest.raises(ArithmeticError):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    assert torch.equal(layer.weight.grad, plain)
    assert torch.allclose(before - layer.weight, 2.0 * plain)


@pytest.mark.parametrize("linear", [True, False], ids=["sobolev", "orthonormal"])
def test_gradient_scaling(linear: bool) -> None:
    """A scaler unscales before the step, and leaves steps with NaN out: the transform sees neither."""
    options = {"transform": "sobolev", "lam": 1.0} if linear else {"transform": "orthonormal"}
    scaled, plain = _network(), _network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for network, use in ((scaled, True), (plain, False)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        adapter.GradientTransform(optimizer, **options)
        for seed in range(3):
            optimizer.zero_grad()
            x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
            loss = network(x).square().mean()
            (scaler.scale(loss) if use else loss).backward()
            if seed == 1:
                before = [p.detach().clone() for p in network.parameters()]
                network[0].weight.grad[0, 0, 0, 0] = float("nan")
            if use:
                scaler.step(optimizer)
                scaler.update()
            elif seed != 1:
                optimizer.step()
            if seed == 1:
                assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_scaled_gradients_in_a_fused_optimizer() -> None:
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    adapter.GradientTransform(optimizer, "orthonormal")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def backward() -> None:
        optimizer.zero_grad()
        scaler.scale(network(torch.ones(2, 2, 5, 5)).square().mean()).backward()

    backward()
    with pytest.raises(RuntimeError, match=r"call scaler\.unscale_\(optimizer\) before scaler\.step\(optimizer\)"):
        scaler.step(optimizer)
    # That step is over: the scaler begins another.
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    adapter.GradientTransform(optimizer, "orthonormal")
    for bad in (False, True):
        backward()
        if bad:
            network[0].weight.grad[0, 0, 0, 0] = float("inf")
        before = network[0].weight.detach().clone()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, network[0].weight) == bad


def test_a_weight_that_is_computed_from_parameters_of_other_shapes_is_refused() -> None:
    """Neither of weight_norm's parameters has the gradient of the filters: nothing would be transformed, unsaid."""
    for norm in (torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's older function
            network = torch.nn.Sequential(norm(torch.nn.Conv1d(2, 3, 3)))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=r"layer 0: its weight, of shape \(3, 2, 3\), is computed from parameters"):
            adapter.GradientTransform(optimizer, "normalized", network=network)
        # Without the network the number of axes decides, and both are transformed.
        calls: list[Any] = []
        adapter.GradientTransform(optimizer, lambda g, calls=calls: calls.append(g) or g)
        network(torch.ones(1, 2, 3)).sum().backward()
        optimizer.step()
        assert len(calls) == 2


@pytest.mark.parametrize("kind", ["parametrization", "orthogonal", "hook"])
def test_the_one_parameter_that_a_weight_is_computed_from_is_transformed(kind: str) -> None:
    utils = torch.nn.utils
    norm = {
        "parametrization": utils.parametrizations.spectral_norm,
        "orthogonal": utils.parametrizations.orthogonal,
        "hook": utils.spectral_norm,
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = torch.nn.Sequential(norm(torch.nn.Conv2d(2, 4, 3, groups=2)))
    (original,) = (p for p in network.parameters() if p.ndim == 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    adapter.GradientTransform(optimizer, "reweighted", network=network, lam=3.0)
    network(torch.randn(2, 2, 5, 5)).square().sum().backward()
    before, gradient = original.detach().clone(), original.grad.numpy()
    optimizer.step()
    by_group = [adapter.TRANSFORMS["reweighted"](half, lam=3.0) for half in (gradient[:2], gradient[2:])]
    expected = before - torch.from_numpy(np.concatenate(by_group))
    torch.testing.assert_close(original.detach(), expected)


def test_an_optimizer_without_a_weight_to_transform_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    for optimizer, options in (
        (torch.optim.SGD(network[2].parameters(), lr=1.0), {}),
        (torch.optim.SGD(network[2].parameters(), lr=1.0), {"network": network}),
        (torch.optim.SGD(copy.deepcopy(network).parameters(), lr=1.0), {"network": network, "linear": True}),
    ):
        with pytest.raises(ValueError, match=r"none of the optimizer's \d parameters is the weight of"):
            adapter.GradientTransform(optimizer, "normalized", **options)
    adapter.GradientTransform(torch.optim.SGD(network[2].parameters(), lr=1.0), "normalized", linear=True)


def test_bad_input_is_named() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2, 3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        adapter.GradientTransform([weight], "normalized")
    with pytest.raises(ValueError, match=r"transform must be one of 'reweighted', .*got 'sobelov'"):
        adapter.GradientTransform(optimizer, "sobelov")
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, got torch\.Parameter"):
        adapter.GradientTransform(optimizer, "normalized", network=weight)
    with pytest.raises(ValueError, match="layer 0 has no weight yet"):
        adapter.GradientTransform(optimizer, "normalized", network=torch.nn.Sequential(torch.nn.LazyConv1d(2, 3)))
    with pytest.raises(TypeError, match=r"options of the transform 'sobolev': missing a required .*argument: 'lam'"):
        adapter.GradientTransform(optimizer, "sobolev")
    with pytest.raises(TypeError, match=r"options of the transform 'normalized': got an unexpected .*argument 'lam'"):
        adapter.GradientTransform(optimizer, "normalized", lam=1.0)
    weight.grad = torch.ones_like(weight)
    for transform, got in ((lambda g: None, "NoneType"), (lambda g: g.flatten(), r"\(12,\)")):  # noqa: ARG005
        handle = adapter.GradientTransform(optimizer, transform)
        with pytest.raises(TypeError, match=f"transform must return a tensor of the gradient's shape, got {got}"):
            optimizer.step()
        handle.remove()
    assert torch.equal(weight, torch.ones_like(weight))


@pytest.mark.command
def test_the_compiled_kernels_leave_pytorch_its_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "5"]
