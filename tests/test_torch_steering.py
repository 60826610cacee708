"""Singular values with gradients, layers of bounded norm and projections in PyTorch, against dense matrices."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convla
from convla import ConvOperator
from convla.cli import run
from convla.errors import ShapeError
from convla.networks.parametrizations import assemble

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402
from convla.frameworks.torch.layer_maps import layer_map  # noqa: E402

pytestmark = pytest.mark.torch

SETTINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "tall": ((3, 2, 3), (4,), {}),
    "wide, stride, groups": ((2, 2, 2, 2), (4, 3), {"padding": "valid", "stride": (2, 1), "groups": 2}),
    "circular": ((2, 1, 3), (5,), {"boundary": "circular"}),
    "reflect": ((1, 2, 3), (4,), {"boundary": "reflect"}),
}

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "largest": adapter.largest_singular_value,
    "smallest": adapter.smallest_singular_value,
    "condition": adapter.condition_number,
    "three": lambda operator: adapter.singular_values(operator, 3),
    "penalty": lambda operator: adapter.penalty(operator, 1.0),
    "of the transpose": lambda operator: adapter.largest_singular_value(operator.T),
}

# Layers and the sizes of their images.
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "plain": (lambda: torch.nn.Conv2d(2, 3, 3, padding=1), (4, 5)),
    "stride and groups": (lambda: torch.nn.Conv1d(4, 6, 3, stride=2, groups=2, padding=1), (8,)),
    "depthwise, circular": (lambda: torch.nn.Conv2d(3, 3, 3, groups=3, padding=1, padding_mode="circular"), (4, 4)),
    "reflect": (lambda: torch.nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), (5,)),
    "transposed": (lambda: torch.nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), (3, 4)),
    "transposed, groups": (
        lambda: torch.nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (4,),
    ),
    "linear": (lambda: torch.nn.Linear(5, 3), ()),
}


def _layer(name: str, scale: float = 3.0) -> tuple[Any, tuple[int, ...]]:
    make, image_shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer, image_shape


def _norm(name: str, weight: Any) -> float:
    """Return the norm of a layer's matrix, from PyTorch's own images of every unit image, in float64."""
    layer, image_shape = _layer(name)
    channels = getattr(layer, "in_channels", None) or layer.in_features
    size = channels * math.prod(image_shape)
    images = torch.eye(size, dtype=torch.float64).reshape(size, channels, *image_shape)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
        return float(torch.linalg.matrix_norm(layer.double()(images).reshape(size, -1), 2))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_pass_gradcheck(name: str, setting: str) -> None:
    shape, image_shape, settings = SETTINGS[setting]
    torch.manual_seed(1)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def function(kernel: Any) -> Any:
        return FUNCTIONS[name](ConvOperator(kernel, image_shape, **settings))

    if name == "three":
        values = convla.singular_values(ConvOperator(weight.detach(), image_shape, **settings), 4).values
        if float((values[:-1] - values[1:]).min()) < 1e-6:
            pytest.skip("equal singular values have no gradients one by one")
    assert torch.autograd.gradcheck(function, (weight,), atol=1e-5)
    with torch.no_grad():
        assert not function(weight).requires_grad
        assert torch.allclose(function(weight), function(weight.detach()), rtol=1e-9)


@pytest.mark.parametrize("setting", ["tall", "reflect"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_simple_values_pass_gradgradcheck(name: str, setting: str) -> None:
    shape, image_shape, settings = SETTINGS[setting]
    torch.manual_seed(1)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def function(kernel: Any) -> Any:
        return FUNCTIONS[name](ConvOperator(kernel, image_shape, **settings))

    if name != "penalty":
        assert torch.autograd.gradgradcheck(function, (weight,), atol=1e-4, fast_mode=True)
        return
    (gradient,) = torch.autograd.grad(function(weight), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once, not twice"):
        gradient.sum().backward()


@pytest.mark.command
def test_a_map_of_several_convolutions_has_a_gradient_in_each_tensor() -> None:
    torch.manual_seed(0)
    kernels = [torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def block(*given: Any) -> Any:
        first, second = (ConvOperator(kernel, (4,)) for kernel in given)
        return convla.identity(first.domain_shape) + second.T @ first

    for function in (adapter.largest_singular_value, adapter.condition_number):
        assert torch.autograd.gradcheck(lambda *given, f=function: f(block(*given)), kernels, atol=1e-5)
    slope = torch.autograd.grad(adapter.largest_singular_value(block(*kernels)), kernels[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="are those of one convolution"):
        slope.sum().backward()


def test_second_derivatives_that_do_not_exist_are_refused() -> None:
    equal = torch.eye(2, dtype=torch.float64)[:, :, None].requires_grad_()
    (slope,) = torch.autograd.grad(adapter.largest_singular_value(ConvOperator(equal, (4,))), equal, create_graph=True)
    with pytest.raises(RuntimeError, match="got a cluster of 8"):
        slope.sum().backward()
    simple = torch.tensor([[[3.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(
        adapter.largest_singular_value(ConvOperator(simple, (3,))), simple, create_graph=True
    )
    (second,) = torch.autograd.grad(slope.square().sum(), simple, create_graph=True)
    with pytest.raises(RuntimeError, match="twice, not three times"):
        second.sum().backward()


def test_functions_of_the_core_refuse_what_they_would_detach() -> None:
    operator = ConvOperator(torch.ones(1, 1, 3, requires_grad=True), (5,))
    functions: tuple[Callable[[Any], Any], ...] = (
        convla.largest_singular_value,
        convla.smallest_singular_value,
        convla.condition_number,
        convla.singular_values,
        convla.singular_value_bounds,
        convla.largest_singular_value_and_gradient,
        convla.smallest_singular_value_and_gradient,
    )
    for function in functions:
        with pytest.raises(TypeError, match="requires a gradient"):
            function(operator)
        with pytest.raises(TypeError, match="requires a gradient"):
            function(operator @ operator + operator)
    with pytest.raises(TypeError, match=r"kernels\['first'\] requires a gradient"):
        convla.network_similarity({"first": operator.kernel})


def test_what_computes_with_tensors_is_followed() -> None:
    """Everything else of the core that takes a kernel is written in differentiable operations, all the way through."""
    torch.manual_seed(0)
    kernel = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    image = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    functions: dict[str, Callable[..., Any]] = {
        "apply": lambda k, x: ConvOperator(k, (5,), boundary="reflect").apply(x),
        "adjoint": lambda k, x: ConvOperator(k, (5,), groups=1).adjoint(x),
        "long filters": lambda k, x: ConvOperator(k, (5,), engine="fft").apply(x),
        "algebra": lambda k, x: (ConvOperator(k, (5,)).T @ ConvOperator(k, (5,)) - convla.identity((2, 5))).apply(x),
        "matrix": lambda k, _: ConvOperator(k, (5,)).to_dense(),
        "gradients": lambda k, x: (ConvOperator(k, (5,)) ** 2).kernel_gradients(x, x)[0],
        "orthonormalize": lambda k, _: convla.orthonormalize(k),
        "of the operator": lambda k, _: convla.orthonormalize_operator(k, (5,)),
        "similarity": lambda k, _: convla.convolutional_similarity_gradient(k, normalized=True),
    }
    for name, function in functions.items():
        assert torch.autograd.gradcheck(function, (kernel, image), fast_mode=True), name


@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_of_a_layer_is_proved_in_evaluation(name: str) -> None:
    layer, image_shape = _layer(name)
    where = layer_map(layer, image_shape)
    adapter.spectral_norm(layer, image_shape, maximum=0.7)
    layer.eval()
    bounds = convla.singular_value_bounds(where.operator(layer.weight))
    assert bounds.upper <= 0.7
    assert 0.69 < _norm(name, layer.weight) <= 0.7
    layer.train()
    for _ in range(3):
        _ = layer.weight
    assert math.isclose(_norm(name, layer.weight), 0.7, rel_tol=2e-3)


def test_a_weight_below_the_maximum_is_left_alone() -> None:
    layer, image_shape = _layer("plain", 0.1)
    before = layer.weight.detach().clone()
    adapter.spectral_norm(layer, image_shape)
    for mode in (True, False):
        assert torch.equal(layer.train(mode).weight, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["plain", "transposed, groups"])
def test_the_gradient_goes_through_the_norm(name: str, training: bool) -> None:
    layer, image_shape = _layer(name)
    where = layer_map(layer, image_shape)
    layer = adapter.spectral_norm(layer.double(), image_shape, maximum=0.7).train(training)
    original = layer.parametrizations.weight.original
    direction, change = torch.randn(2, *original.shape, dtype=torch.float64)
    layer.parametrizations.weight[0].updates.zero_()  # the first vector is found exactly
    (gradient,) = torch.autograd.grad((layer.weight * direction).sum(), original)

    def normalized(weight: Any) -> Any:
        norm = np.linalg.svd(where.operator(weight).to_dense().numpy(), compute_uv=False)[0]
        return float((weight * 0.7 / norm * direction).sum())

    weight = original.detach()
    expected = (normalized(weight + 1e-6 * change) - normalized(weight - 1e-6 * change)) / 2e-6
    assert math.isclose(float((gradient * change).sum()), expected, rel_tol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "scale"), [("float32", 2.0**80), ("float32", 2.0**-80), ("float16", 2.0**17)])
def test_the_gradient_of_a_weight_does_not_depend_on_its_size(dtype: str, scale: float, training: bool) -> None:
    """Neither where squares are out of the dtype's range, nor where the norm itself is."""
    found = []
    for factor in (1.0, scale):
        layer, image_shape = _layer("plain", 1.0)
        layer = layer.to(getattr(torch, dtype))
        with torch.no_grad():
            layer.weight.mul_(factor)
        layer = adapter.spectral_norm(layer, image_shape, maximum=0.25 * factor).train(training)
        original = layer.parametrizations.weight.original
        torch.manual_seed(1)
        (layer.weight.double() * torch.randn(original.shape).double()).sum().backward()
        found.append((layer.weight.detach().double() / factor, original.grad.double()))
    eps = float(torch.finfo(getattr(torch, dtype)).eps)
    for one, other in zip(*found, strict=True):
        assert torch.linalg.vector_norm(one - other) <= 64 * eps * torch.linalg.vector_norm(one)


def test_a_checkpoint_saved_amid_training_is_proved() -> None:
    layer, image_shape = _layer("plain")
    where = layer_map(layer, image_shape)
    adapter.spectral_norm(layer, image_shape, maximum=0.7)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(2, 2, *image_shape)).square().sum().neg().backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file)
    arrays = {name: tensor.numpy() for name, tensor in saved.items()}
    weight = assemble({f"layer.{name}": array for name, array in arrays.items()})["layer.weight"].array
    operator = where.operator(torch.from_numpy(weight))
    assert convla.singular_value_bounds(operator).upper <= 0.7
    other = adapter.spectral_norm(_layer("plain")[0], image_shape, maximum=0.7).eval()
    other.load_state_dict(saved)
    assert torch.equal(other.weight, torch.from_numpy(weight))
    # A file that says otherwise is not believed.
    saved["parametrizations.weight.0.scale"].fill_(1.0)
    other.load_state_dict(saved)
    assert convla.singular_value_bounds(where.operator(other.weight)).upper <= 0.7


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_no_image_meets_is_left_as_it_is(training: bool, dtype: Any) -> None:
    layer = torch.nn.Conv1d(2, 2, 3, padding=1, dtype=dtype)
    with torch.no_grad():
        layer.weight[..., 1] = 0.0
    before = layer.weight.detach().clone()
    assert torch.equal(adapter.spectral_norm(layer, (1,)).train(training).weight, before)


@pytest.mark.parametrize("exponent", [-60, -20, -15, 0, 3, 10, 50])
def test_the_size_of_a_weight_changes_no_digit_of_what_is_followed(exponent: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3)
    weight = weight / weight.abs().max() / 2
    found = []
    for power in (0, exponent):
        layer = torch.nn.Conv2d(5, 6, 3, padding=1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.ldexp(weight, torch.tensor(power)))
        adapter.spectral_norm(layer, (6, 6), maximum=math.ldexp(0.5, power))
        for _ in range(3):
            product = layer.weight.mul(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape)).sum()
        layer.zero_grad()
        product.backward()
        found.append(
            (torch.ldexp(layer.weight.detach(), torch.tensor(-power)), layer.parametrizations.weight.original.grad)
        )
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_copies_casts_and_shared_weights() -> None:
    layer, image_shape = _layer("plain")
    where = layer_map(layer, image_shape)
    second = torch.nn.Conv2d(2, 3, 3, padding=1)
    second.weight = layer.weight
    for each in (layer, second):
        adapter.spectral_norm(each, image_shape, maximum=0.7)
    assert layer.parametrizations.weight.original is second.parametrizations.weight.original
    network = torch.nn.Sequential(layer, second).eval()
    copied = copy.deepcopy(network)
    assert torch.equal(copied[0].weight, layer.weight)
    assert torch.equal(copied[1].weight, layer.weight)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = copied[0].to(dtype)
        assert cast.weight.dtype == dtype
        assert convla.singular_value_bounds(where.operator(cast.weight)).upper <= 0.7
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, second.weight)
        layer.train()(torch.randn(1, 2, *image_shape)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@pytest.mark.slow
def test_workers_that_share_their_gradients_keep_one_proved_weight(tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: each worker has images of its own, and all have one weight in the end."""
    arguments = (2, str(tmp_path / "meeting"), str(tmp_path))
    torch.multiprocessing.start_processes(_worker, arguments, nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    layer, image_shape = _layer("plain")
    where = layer_map(layer, image_shape)
    layer = adapter.spectral_norm(layer, image_shape, maximum=0.7).eval()
    before = layer.parametrizations.weight.original.detach().clone()
    layer.load_state_dict(first)
    assert not torch.equal(layer.parametrizations.weight.original, before)
    assert convla.singular_value_bounds(where.operator(layer.weight)).upper <= 0.7


def _worker(rank: int, count: int, meeting: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    layer, image_shape = _layer("plain")
    network = adapter.spectral_norm(layer, image_shape, maximum=0.7)
    parallel = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(2, 2, *image_shape)).square().mean().neg().backward()
        optimizer.step()
    torch.save(network.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_inspect_prints_a_proved_bound_of_a_network_that_was_trained_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the parametrization through training and a checkpoint to the command, which prints bounds that are kept."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 3, padding=1)
    )
    for layer in (network[0], network[2]):
        adapter.spectral_norm(layer, (8, 8), maximum=0.9)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 1, 8, 8)).square().mean().neg().backward()
        optimizer.step()
    torch.save(network.state_dict(), tmp_path / "trained.pt")
    report = tmp_path / "report.json"
    assert run(["inspect", str(tmp_path / "trained.pt"), "--image", "8x8", "--json", str(report)]) == 0
    assert "at most" in capsys.readouterr().out
    rows = json.loads(report.read_text())["layers"]
    assert [row["name"] for row in rows] == ["0.weight", "2.weight"]
    bounds = [row["quantities"]["at_most"] for row in rows]
    assert max(bounds) <= 0.9
    network.eval()
    for bound, layer in zip(bounds, (network[0], network[2]), strict=True):
        matrix = layer_map(layer, (8, 8)).operator(layer.weight).to_dense().double()
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= bound


def test_errors_of_the_normalisation() -> None:
    with pytest.raises(TypeError, match=r"layer must be a convolution of torch\.nn"):
        adapter.spectral_norm(torch.nn.ReLU(), ())
    with pytest.raises(ShapeError, match="must be \\(\\) for a linear layer"):
        adapter.spectral_norm(torch.nn.Linear(2, 2), (3,))
    with pytest.raises(ValueError, match="maximum must be positive"):
        adapter.spectral_norm(torch.nn.Linear(2, 2), (), maximum=0.0)
    with pytest.raises(ValueError, match="output_padding must be below the stride"):
        adapter.spectral_norm(torch.nn.ConvTranspose1d(1, 1, 2, dilation=3, output_padding=2), (4,))


def test_projections_keep_every_layer_below_the_maximum() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1),
        torch.nn.ConvTranspose2d(3, 2, 2, stride=2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 2),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    projection = adapter.SpectralProjection(optimizer, network, torch.zeros(1, 1, 4, 4), maximum=0.8, every=2)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for step in range(2):
        network(torch.randn(3, 1, 4, 4)).sum().backward()
        optimizer.step()
        assert bool(projection.upper) == (step == 1)
    assert max(projection.upper.values()) <= 0.8
    assert list(projection.upper) == ["0", "1", "3"]
    for place, image_shape in ((0, (4, 4)), (1, (4, 4)), (3, ())):
        where = layer_map(network[place], image_shape)
        assert np.linalg.svd(where.operator(network[place].weight).to_dense(), compute_uv=False)[0] <= 0.8
    assert not any(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    projection.remove()
    optimizer.step()
    assert projection.steps == 2


TRAINED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda: torch.nn.Conv2d(25, 26, 3, padding=1), (25, 4, 4)),
    "stride, groups": (lambda: torch.nn.Conv2d(4, 32, 3, stride=2, groups=2, bias=False), (4, 12, 12)),
    "depthwise": (lambda: torch.nn.Conv2d(2, 2, 3, padding=1, groups=2), (2, 17, 17)),
    "circular": (lambda: torch.nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"), (4, 9, 9)),
    "reflect": (lambda: torch.nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 100)),
    "transposed": (lambda: torch.nn.ConvTranspose2d(26, 25, 3, stride=2, padding=1), (26, 4, 4)),
    "linear": (lambda: torch.nn.Linear(7, 5), (7,)),
}


@pytest.mark.parametrize(
    ("name", "nearest"), [*((name, False) for name in TRAINED), ("circular", True), ("linear", True)]
)
def test_projections_follow_a_layer_in_training(name: str, nearest: bool) -> None:
    torch.manual_seed(0)
    make, shape = TRAINED[name]
    layer = make()
    with torch.no_grad():
        layer.weight.mul_(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    example = torch.randn(2, *shape)
    options = {"max_iterations": 20} if nearest else {}
    projection = adapter.SpectralProjection(optimizer, layer, example, maximum=0.5, every=1, nearest=nearest, **options)
    where = layer_map(layer, shape[1:])
    for _ in range(2 if nearest else 4):
        optimizer.zero_grad()
        layer(example).sigmoid().sum().backward()
        optimizer.step()
        assert projection.upper[""] <= 0.5
        dense = where.operator(layer.weight.double()).to_dense()
        largest = np.linalg.svd(dense, compute_uv=False)[0]
        assert largest <= projection.upper[""] * (1 + 500 * np.finfo(float).eps)
        assert largest >= 0.35  # it stays near the maximum, and is no smaller than the bound has it
    before = layer.weight.detach().clone()
    projection.project()
    assert torch.equal(before, layer.weight)


def test_projections_leave_what_obeys_as_it_is() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(20, 20, 3, padding=1)
    projection = adapter.SpectralProjection(
        torch.optim.SGD(layer.parameters(), lr=0.1), layer, torch.zeros(1, 20, 9, 9), maximum=2.0
    )
    for _ in range(2):
        before = layer.weight.detach().clone()
        projection.project()
        assert torch.equal(before, layer.weight)
        assert projection.upper[""] <= 2.0
        with torch.no_grad():
            layer.weight.mul_(1.01)


def test_projections_refuse_weights_that_are_no_numbers() -> None:
    network = torch.nn.Sequential(torch.nn.Conv1d(2, 2, 3), torch.nn.Conv1d(2, 2, 3))
    projection = adapter.SpectralProjection(torch.optim.SGD(network.parameters()), network, torch.zeros(1, 2, 9))
    with torch.no_grad():
        network[1].weight[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer 1: kernel must be finite"):
        projection.project()


def test_errors_of_the_projection() -> None:
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 1, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    example = torch.zeros(1, 1, 5)
    with pytest.raises(TypeError, match="optimizer must be"):
        adapter.SpectralProjection(network, network, example)
    with pytest.raises(TypeError, match=r"options must be of clip_singular_values, got \['lr'\]"):
        adapter.SpectralProjection(optimizer, network, example, lr=1)
    with pytest.raises(TypeError, match=r"rtol must be given with nearest=True or a minimum, got 0\.1 alone"):
        adapter.SpectralProjection(optimizer, network, example, rtol=0.1)
    with pytest.raises(ValueError, match="method must be one of 'auto', 'matrix', 'torus', got 'fft'"):
        adapter.SpectralProjection(optimizer, network, example, method="fft")
    with pytest.raises(ValueError, match="max_iterations must be at least 1, got 0"):
        adapter.SpectralProjection(optimizer, network, example, max_iterations=0)
    adapter.spectral_norm(network[0], (5,))
    with pytest.raises(ValueError, match="layer 0: its weight is computed from others"):
        adapter.SpectralProjection(optimizer, network, example)
