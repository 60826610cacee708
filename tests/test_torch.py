"""The PyTorch adapter's losses and initialisers: gradcheck on each device, groups, autocasting, bad input."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

import convla
from convla.errors import ShapeError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402

pytestmark = pytest.mark.torch

LOSSES = {
    "similarity": adapter.convolutional_similarity_loss,
    "ordered similarity": lambda k: adapter.convolutional_similarity_loss(k, pairs="ordered"),
    "scale-invariant similarity": lambda k: adapter.convolutional_similarity_loss(k, normalized=True),
    "orthogonality": adapter.kernel_orthogonality_loss,
    "orthogonality, two groups": lambda k: adapter.kernel_orthogonality_loss(k, groups=2),
    "ocnn": adapter.ocnn_loss,
    "ocnn, stride 2": lambda k: adapter.ocnn_loss(k, stride=2),
    "ocnn, two groups": lambda k: adapter.ocnn_loss(k, groups=2),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(4, 2, 3), (2, 2, 2, 3), (2, 1, 2, 1, 2), (4, 1, 1, 1)])
def test_the_losses_pass_gradcheck(name: str, shape: tuple[int, ...], torch_device: Any) -> None:
    kernels = np.random.default_rng(0).standard_normal(shape)
    assert torch.autograd.gradcheck(LOSSES[name], (torch.tensor(kernels, device=torch_device, requires_grad=True),))


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_keep_dtype_and_weight(name: str, torch_device: Any) -> None:
    kernels = torch.tensor(np.random.default_rng(0).standard_normal((4, 2, 3, 3)), dtype=torch.float32)
    kernels = kernels.to(torch_device).requires_grad_()
    loss = LOSSES[name](kernels)
    assert loss.dtype == torch.float32
    assert loss.device == kernels.device
    (5 * loss).backward()
    (plain,) = torch.autograd.grad(LOSSES[name](kernels), kernels)
    torch.testing.assert_close(kernels.grad, 5 * plain)
    wide = kernels.detach().double().requires_grad_()
    torch.testing.assert_close(loss.double(), LOSSES[name](wide), rtol=1e-5, atol=0.0)
    (expected,) = torch.autograd.grad(LOSSES[name](wide), wide)
    torch.testing.assert_close(plain.double(), expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", LOSSES)
def test_nobody_asks_for_a_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = torch.randn(4, 2, 3, 3, requires_grad=True)
    expected = LOSSES[name](kernels).item()
    for module in (convla.similarity.orthogonality, convla.similarity.layer):
        for gradient in [key for key in vars(module) if key.endswith("_gradient")]:
            monkeypatch.setattr(module, gradient, None)
    with torch.no_grad():
        assert not LOSSES[name](kernels).requires_grad
    assert LOSSES[name](kernels.detach()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_autocasting_leaves_the_losses_alone(name: str) -> None:
    torch.manual_seed(0)
    kernels = torch.randn(4, 2, 3, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(LOSSES[name](kernels), kernels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad(LOSSES[name](kernels), kernels)
        assert LOSSES[name](kernels).item() == LOSSES[name](kernels.detach()).item()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_of_a_device_becomes_a_numpy_array(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core is given tensors that are not in host memory as they are, and leaves them so."""

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was handed to NumPy")

    kernels = torch.randn(4, 2, 3, 3, requires_grad=True)
    monkeypatch.setattr("convla.frameworks.torch._closed_form.host_array", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "numpy", refuse)
    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
    LOSSES[name](kernels).backward()
    assert kernels.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives(name: str) -> None:
    for shape in ((4, 2, 3), (2, 2, 3, 2)):
        kernels = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(LOSSES[name], (kernels,))
        loss = LOSSES[name](kernels)
        (gradient,) = torch.autograd.grad(loss, kernels, create_graph=True)
        (plain,) = torch.autograd.grad(loss, kernels)
        assert torch.allclose(gradient, plain, rtol=1e-12)


@pytest.mark.command
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_compiled_without_a_break_of_the_graph(name: str) -> None:
    kernels = torch.randn(4, 2, 3, requires_grad=True)
    compiled = torch.compile(lambda weight: 2 * LOSSES[name](weight), fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(kernels), kernels)
    (expected,) = torch.autograd.grad(2 * LOSSES[name](kernels), kernels)
    assert torch.equal(got, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the inductor's own making
@pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor needs a C++ compiler")
def test_a_loss_is_compiled_by_the_inductor() -> None:
    kernels = torch.randn(4, 2, 3, requires_grad=True)
    compiled = torch.compile(lambda weight: 2 * adapter.ocnn_loss(weight.tanh()), fullgraph=True)
    (got,) = torch.autograd.grad(compiled(kernels), kernels)
    (expected,) = torch.autograd.grad(2 * adapter.ocnn_loss(kernels.tanh()), kernels)
    torch.testing.assert_close(got, expected)


def _dense(weight: Any, groups: int) -> Any:
    """Return the kernel of one group that does what a grouped layer does: zeros where a filter does not read."""
    count, width = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], width * groups, *weight.shape[2:])
    for g in range(groups):
        dense[g * count : (g + 1) * count, g * width : (g + 1) * width] = weight[g * count : (g + 1) * count]
    return dense


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, (2, 1)])
def test_a_grouped_layer_has_the_losses_of_its_dense_kernel(groups: int, stride: Any) -> None:
    weight = torch.tensor(np.random.default_rng(1).standard_normal((6, 2, 3, 2)), requires_grad=True)
    for name, grouped, dense in (
        ("similarity", adapter.convolutional_similarity_loss, adapter.convolutional_similarity_loss),
        (
            "orthogonality",
            lambda k: adapter.kernel_orthogonality_loss(k, groups=groups),
            adapter.kernel_orthogonality_loss,
        ),
        (
            "ocnn",
            lambda k: adapter.ocnn_loss(k, groups=groups, stride=stride),
            lambda k: adapter.ocnn_loss(k, stride=stride),
        ),
    ):
        values = grouped(weight), dense(_dense(weight, groups))
        torch.testing.assert_close(*values, msg=name)
        torch.testing.assert_close(*(torch.autograd.grad(value, weight)[0] for value in values), msg=name)


def test_the_dense_kernel_is_that_of_the_grouped_layer() -> None:
    weight, images = torch.randn(6, 2, 3, 3), torch.randn(1, 6, 5, 5)
    grouped = torch.nn.functional.conv2d(images, weight, groups=3)
    torch.testing.assert_close(torch.nn.functional.conv2d(images, _dense(weight, 3)), grouped)


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


@pytest.mark.parametrize("groups", [2, 4])
def test_the_initialisers_fill_each_group(groups: int) -> None:
    weight = adapter.orthogonal_(torch.empty(8, 3, 3, 3, dtype=torch.float64), groups=groups, gain=2.0, rng=0)
    for block in weight.reshape(groups, 8 // groups, -1):
        torch.testing.assert_close(block @ block.T, 4.0 * torch.eye(8 // groups, dtype=torch.float64))
    weight = adapter.delta_orthogonal_(torch.empty(8, 8 // groups, 3, 3, dtype=torch.float64), groups=groups, rng=0)
    assert int(torch.count_nonzero(weight)) == 8 * 8 // groups
    layer = convla.ConvOperator(weight, (4, 4), groups=groups)
    torch.testing.assert_close(torch.linalg.svdvals(layer.to_dense()), torch.ones(8 * 16, dtype=torch.float64))


def test_the_initialisers_fill_views_and_other_dtypes() -> None:
    layer = torch.nn.ConvTranspose2d(4, 6, 3)
    adapter.orthogonal_(layer.weight.transpose(0, 1))
    rows = layer.weight.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(6))
    half = adapter.orthogonal_(torch.empty(4, 3, 3, dtype=torch.bfloat16), rng=0)
    assert torch.equal(half, adapter.orthogonal_(torch.empty(4, 3, 3), rng=0).bfloat16())


@pytest.mark.parametrize("fill", [adapter.orthogonal_, adapter.delta_orthogonal_])
def test_the_initialisers_name_bad_input(fill: Any) -> None:
    with pytest.raises(TypeError, match=r"tensor must be a torch\.Tensor, .* got numpy\.ndarray"):
        fill(np.ones((2, 2, 3)))
    with pytest.raises(ShapeError, match=r"groups must divide the number of filters, got 3 for shape \(4, 2, 3\)"):
        fill(torch.empty(4, 2, 3), groups=3)
    with pytest.raises(ShapeError, match=r"shape must be \(c_out"):
        fill(torch.empty(4))
    with pytest.raises(ValueError, match="gain must be positive, got 0"):
        fill(torch.empty(4, 2, 3), gain=0.0)


@pytest.mark.parametrize(
    ("loss", "kernels", "error", "message"),
    [
        ("ocnn", torch.ones(2, 2, 3).half(), TypeError, r"kernels must be float32, .*got dtype torch\.float16"),
        ("similarity", torch.ones(2, 2, 3).bfloat16(), TypeError, r"kernels must be .*got dtype torch\.bfloat16"),
        ("similarity", np.ones((2, 2, 3)), TypeError, r"kernels must be a torch\.Tensor, .* got numpy\.ndarray"),
        ("orthogonality", torch.nn.Conv1d(1, 2, 3), TypeError, r"such as layer\.weight, got torch\.Conv1d"),
        ("orthogonality", torch.ones(2, 2), ShapeError, r"kernels must have at least 3 axes"),
        (
            "orthogonality, two groups",
            torch.ones(3, 2, 3),
            ShapeError,
            "groups must divide the number of kernels 3, got 2",
        ),
        ("ocnn", torch.full((2, 1, 3), float("nan")), ValueError, "kernels must be finite"),
        ("similarity", torch.full((2, 1, 3), float("inf")), ValueError, "kernels must be finite"),
        ("scale-invariant similarity", torch.zeros(2, 1, 3), ValueError, r"kernels\[0\]"),
    ],
)
def test_bad_input_is_named(loss: str, kernels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LOSSES[loss](kernels)
