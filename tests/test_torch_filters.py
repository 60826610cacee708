"""What a weight's layout means to a transformed gradient: groups, transposed layers, memory formats, devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convla

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402
from tests.transform_options import OPTIONS  # noqa: E402

pytestmark = pytest.mark.torch


def _filters(shape: tuple[int, ...]) -> Any:
    return torch.tensor(np.random.default_rng(4).standard_normal(shape))


def _stepped(layer: Any, gradient: Any, transform: Any, **options: Any) -> Any:
    """Return what a step of plain descent with unit rate takes off the layer's weight."""
    optimizer = torch.optim.SGD([layer.weight], lr=1.0)
    layer.weight.grad = gradient.clone()
    before = layer.weight.detach().clone()
    adapter.GradientTransform(optimizer, transform, network=layer, **options)
    optimizer.step()
    return before - layer.weight.detach()


@pytest.mark.parametrize("transform", OPTIONS)
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_layers_are_transformed_group_by_group(transform: str, groups: int, transposed: bool) -> None:
    options = OPTIONS[transform]
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    layer = kind(8, 16, 3, groups=groups).double()
    gradient = _filters(tuple(layer.weight.shape))
    got = _stepped(layer, gradient, transform, **options)
    function = adapter.TRANSFORMS[transform]
    for g in range(groups):
        # Channels of the first axis that belong to the group; a transposed layer holds its inputs there.
        rows = slice(g * gradient.shape[0] // groups, (g + 1) * gradient.shape[0] // groups)
        block = gradient[rows].transpose(0, 1) if transposed else gradient[rows]
        expected = torch.from_numpy(function(np.ascontiguousarray(block.numpy()), **options))
        torch.testing.assert_close(got[rows].transpose(0, 1) if transposed else got[rows], expected)


def test_an_orthonormalised_group_is_that_of_the_dense_kernel() -> None:
    layer = torch.nn.Conv2d(6, 9, 3, groups=3).double()
    gradient = _filters((9, 2, 3, 3))
    dense = torch.zeros(9, 6, 3, 3, dtype=torch.float64)
    for g in range(3):
        dense[3 * g : 3 * g + 3, 2 * g : 2 * g + 2] = gradient[3 * g : 3 * g + 3]
    factor = convla.orthonormalize(dense.numpy())
    got = _stepped(layer, gradient, "orthonormal")
    for g in range(3):
        block = torch.from_numpy(factor[3 * g : 3 * g + 3, 2 * g : 2 * g + 2])
        torch.testing.assert_close(got[3 * g : 3 * g + 3], block)


def test_a_depthwise_layer_has_filters_without_neighbours() -> None:
    gradient = _filters((5, 1, 3, 3))
    norms = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    for transform, expected in (("reweighted", gradient), ("sobolev", gradient), ("orthonormal", gradient / norms)):
        options = {"lam": 2.0} if transform != "orthonormal" else {}
        layer = torch.nn.Conv2d(5, 5, 3, groups=5).double()
        torch.testing.assert_close(_stepped(layer, gradient, transform, **options), expected)


@pytest.mark.parametrize("options", [{}, {"per_filter": True}])
@pytest.mark.parametrize("transposed", [False, True])
def test_normalisation_knows_no_groups(options: dict[str, Any], transposed: bool) -> None:
    kind = torch.nn.ConvTranspose1d if transposed else torch.nn.Conv1d
    layer = kind(4, 4, 3, groups=2).double()
    gradient = _filters((4, 2, 3))
    got = _stepped(layer, gradient, "normalized", **options)
    if not options:
        torch.testing.assert_close(got, gradient / gradient.norm())
        return
    # Filter j of group g: taps [2 g + i, j] over inputs i if transposed, else [2 g + j, i].
    axis = (1, 2) if not transposed else (0, 2)
    for g in range(2):
        block = gradient[2 * g : 2 * g + 2]
        torch.testing.assert_close(got[2 * g : 2 * g + 2], block / block.norm(dim=axis, keepdim=True))


def test_a_rasterised_weight_has_no_groups() -> None:
    gradient = _filters((4, 2, 3))
    got = _stepped(torch.nn.Conv1d(4, 4, 3, groups=2).double(), gradient, "laplacian", sigma=2.0)
    torch.testing.assert_close(got, torch.from_numpy(convla.laplacian_smoothing(gradient.numpy(), 2.0)))


def test_autocasting_and_memory_formats_do_not_matter() -> None:
    gradient = torch.randn(8, 4, 3, 3)
    steps = []
    for channels_last, autocast in ((False, False), (True, False), (False, True)):
        layer = torch.nn.Conv2d(4, 8, 3)
        torch.nn.init.zeros_(layer.weight)
        given = gradient
        if channels_last:
            layer = layer.to(memory_format=torch.channels_last)
            given = gradient.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            steps.append(_stepped(layer, given, "orthonormal"))
    for other in steps[1:]:
        torch.testing.assert_close(other, steps[0])


def test_on_another_device_the_reference_runs(torch_device: Any) -> None:
    gradient = torch.randn(8, 4, 3, 3)
    for transform, options in OPTIONS.items():
        layer = torch.nn.Conv2d(4, 8, 3).to(torch_device)
        got = _stepped(layer, gradient.to(torch_device), transform, **options)
        assert got.device == layer.weight.device
        expected = torch.from_numpy(adapter.TRANSFORMS[transform](gradient.numpy(), **options))
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", OPTIONS)
def test_a_transformed_gradient_lies_in_memory_as_the_plain_one(transform: str) -> None:
    layers = {
        "transposed": torch.nn.ConvTranspose2d(4, 6, 3, groups=2),
        "channels last": torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    }
    for name, layer in layers.items():
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        adapter.GradientTransform(optimizer, transform, network=layer, **OPTIONS[transform])
        layer.weight.grad = torch.randn_like(layer.weight)
        strides = {}
        optimizer.register_step_pre_hook(lambda *_, layer=layer, s=strides: s.update(seen=layer.weight.grad.stride()))
        optimizer.step()
        assert strides["seen"] == layer.weight.stride(), name


def test_lbfgs_steps_along_the_gradients_of_a_transposed_layer() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.ConvTranspose2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.01)
    adapter.GradientTransform(optimizer, "sobolev", network=layer, lam=1.0, blend=1.0)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    assert float(closure().detach()) < first
