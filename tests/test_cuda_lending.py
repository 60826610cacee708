"""Tensors of PyTorch and arrays of JAX reach CUDA kernels without a copy; here the CPU's arrays pose as a device's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, _array, _dispatch, _lending, _windows, cross_correlate, reweighted_gradient
from convla.errors import EngineError
from convla.geometry import ConvGeometry
from tests.cuda.stand_in import COUNTS, Stream
from tests.geometries import integers

THEIRS = 77
"""The stream that PyTorch is on."""

GEOMETRY = ConvGeometry((3, 2, 3, 2), (6, 7), padding="same", stride=(1, 2))


@pytest.fixture
def on_a_gpu(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Take PyTorch's and JAX's arrays for those of a device."""
    del cupy

    def is_on_gpu(array: Any) -> bool:
        return type(array).__module__.partition(".")[0] in ("cupy", "torch", "jaxlib")

    for module in (_array, _lending):
        monkeypatch.setattr(module, "is_on_gpu", is_on_gpu)
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=THEIRS))
    return torch


def arrays(make: Callable[[Any], Any]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"image": (2, *GEOMETRY.domain_shape), "features": (2, *GEOMETRY.range_shape)}
    shapes["kernel"] = GEOMETRY.kernel_shape
    return {name: make(integers(rng, shape, np.float32)) for name, shape in shapes.items()}


MAPS = (
    (_windows.correlate, ("image", "kernel")),
    (_windows.correlate_image_adjoint, ("features", "kernel")),
    (_windows.correlate_kernel_adjoint, ("features", "image")),
)


def test_tensors_run_on_pytorchs_stream_and_come_back_as_tensors(on_a_gpu: ModuleType) -> None:
    torch = on_a_gpu
    given, host = arrays(torch.from_numpy), arrays(np.asarray)
    for operation, names in MAPS:
        for engine in ("auto", "cuda"):
            got = operation(*(given[name] for name in names), GEOMETRY, engine=engine)
            wanted = operation.reference(*(host[name] for name in names), GEOMETRY)
            assert type(got) is torch.Tensor
            assert got.dtype == torch.float32
            np.testing.assert_array_equal(got.numpy(), wanted)
    assert Stream.launched == [THEIRS] * COUNTS["launches"]
    assert COUNTS["sum_directly"] == 4
    assert Stream.current == 0
    # The host waited for nothing but the two tables, when they were made: the kernel adjoint has that of the first map.
    assert (COUNTS["waits"], COUNTS["streams waited for"]) == (0, 2)


def test_a_stream_that_tells_its_number_by_the_protocol(on_a_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("S", (), {"__cuda_stream__": lambda _: (0, THEIRS + 1), "cuda_stream": THEIRS})()
    monkeypatch.setattr(on_a_gpu.cuda, "current_stream", lambda _: stream)
    given = arrays(on_a_gpu.from_numpy)
    _windows.correlate(given["image"], given["kernel"], GEOMETRY)
    monkeypatch.delattr(Stream, "from_external")  # CuPy 13
    _windows.correlate(given["image"], given["kernel"], GEOMETRY)
    assert Stream.launched == [THEIRS + 1] * 2 + [THEIRS] * 2  # of the weights and of the map


def test_the_kernel_sees_the_tensors_own_memory(on_a_gpu: ModuleType) -> None:
    torch, seen = on_a_gpu, []

    def kernel(array: Any, other: Any) -> Any:
        seen.append((array.values.__array_interface__["data"][0], Stream.current))
        return array, [other[1:, ...]]

    first, second = torch.ones((2, 3)), torch.ones((2, 3), requires_grad=True)
    with torch.no_grad():
        whole, (part,) = _lending.lent(kernel, pytest.fail, [first, second])(first, second)
    assert seen == [(first.data_ptr(), THEIRS)]
    assert whole.data_ptr() == first.data_ptr()
    assert part.data_ptr() == second.data_ptr() + 12
    assert tuple(part.stride()) == (3, 1)


def test_what_a_framework_follows_is_left_to_the_reference(on_a_gpu: ModuleType) -> None:
    torch = on_a_gpu
    given = arrays(torch.from_numpy)
    operator = ConvOperator(given["kernel"], GEOMETRY)
    image = given["image"].requires_grad_()
    image_gradient = torch.autograd.grad(operator._apply(image).square().sum() / 2, image)[0]
    assert COUNTS["launches"] == 0
    with torch.no_grad():
        features = operator._apply(image)
    assert COUNTS["sum_directly"] == 1
    np.testing.assert_array_equal(image_gradient, operator._adjoint(features.detach()))
    launches = COUNTS["launches"]
    assert torch.equal(torch.func.vmap(operator._apply)(image.detach()), features)
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(operator._apply(image.detach()), features)
    assert COUNTS["launches"] == launches
    with pytest.raises(EngineError, match=r"that no derivative is asked of, got torch\.Tensor of dtype torch\.float32"):
        cross_correlate(image, given["kernel"], padding="same", engine="cuda")


@pytest.mark.command
def test_an_operator_of_tensors(on_a_gpu: ModuleType) -> None:
    torch = on_a_gpu
    kernel, image = torch.ones((4, 2, 3)), torch.arange(10.0).reshape(2, 5)
    operator = ConvOperator(kernel, (5,))
    assert torch.equal(operator.apply(image), ConvOperator(kernel, (5,), engine="reference").apply(image))
    assert torch.equal(operator.adjoint(operator.apply(image)), operator.T.apply(operator.apply(image)))
    np.testing.assert_allclose(reweighted_gradient(kernel, 2.0), reweighted_gradient(kernel.numpy(), 2.0))
    assert {"sum_directly", "reweighted_gradient"} <= set(COUNTS)


@pytest.fixture
def jax() -> Iterator[Any]:
    library = pytest.importorskip("jax")
    before = library.config.jax_enable_x64
    library.config.update("jax_enable_x64", True)
    yield library
    library.config.update("jax_enable_x64", before)


@pytest.mark.usefixtures("on_a_gpu")
def test_jax_arrays_and_their_streams(jax: Any) -> None:
    given, host = arrays(jax.numpy.asarray), arrays(np.asarray)
    for place, (operation, names) in enumerate(MAPS, start=1):
        got = operation(*(given[name] for name in names), GEOMETRY)
        assert isinstance(got, jax.Array)
        np.testing.assert_array_equal(got, operation.reference(*(host[name] for name in names), GEOMETRY))
        assert COUNTS["launches"] >= 2 * place  # of weights or partial sums, and of the map
        # JAX may reuse what is let go: the end is waited for. The tables are two, made once.
        assert COUNTS["streams waited for"] == place + min(place, 2)
    traced = jax.make_jaxpr(lambda image: _windows.correlate(image, given["kernel"], GEOMETRY))(given["image"])
    assert "dot_general" in str(traced)  # the reference, which JAX can follow


def test_without_cupy_tensors_take_the_reference(on_a_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = on_a_gpu
    for module in (_dispatch, _lending):
        monkeypatch.setattr(module, "cuda_is_available", lambda: False, raising=False)
    monkeypatch.setattr(_array, "cuda_is_available", lambda: False)
    monkeypatch.setattr("convla._cuda.importlib.util.find_spec", lambda _: None)
    given = arrays(torch.from_numpy)
    assert _windows.correlate.choose(given["image"], given["kernel"], GEOMETRY) == "reference"
    with pytest.raises(EngineError, match=r"CuPy is not installed: .*install.*cuda12"):
        _windows.correlate(given["image"], given["kernel"], GEOMETRY, engine="cuda")


@pytest.mark.usefixtures("cupy")
def test_arrays_of_the_cpu_are_not_lent() -> None:
    torch = pytest.importorskip("torch")
    assert not _lending.takes(torch.ones(2))
    assert not _array.is_on_gpu(np.ones(2))
    with pytest.raises(EngineError, match="engine 'cuda' takes CuPy arrays"):
        _windows.correlate(torch.ones((1, 3)), torch.ones((1, 1, 3)), GEOMETRY, engine="cuda")


def test_which_arrays_are_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def jax_array(*platforms: str) -> Any:
        return SimpleNamespace(devices=lambda: [SimpleNamespace(platform=platform) for platform in platforms])

    monkeypatch.setattr(_array.array_api_compat, "is_jax_array", lambda value: hasattr(value, "devices"))
    assert _array.is_on_gpu(jax_array("gpu"))
    assert not _array.is_on_gpu(jax_array("cpu"))
    assert not _array.is_on_gpu(jax_array("gpu", "gpu"))  # in parts on several
    tensor = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    monkeypatch.setattr(_array.array_api_compat, "is_torch_array", lambda value: value is tensor)
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    assert _array.is_on_gpu(tensor)
    monkeypatch.setattr(torch.version, "cuda", None)  # another maker's device
    assert not _array.is_on_gpu(tensor)


@pytest.mark.gpu
@pytest.mark.torch
def test_tensors_of_a_real_device_on_a_stream_of_their_own() -> None:
    import torch

    host = arrays(np.asarray)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        given = arrays(lambda array: torch.from_numpy(array).cuda(non_blocking=True))
        for operation, names in MAPS:
            assert operation.choose(*(given[name] for name in names), GEOMETRY) == "cuda"
            got = operation(*(given[name] for name in names), GEOMETRY)
            assert got.is_cuda
            wanted = operation.reference(*(host[name] for name in names), GEOMETRY)
            np.testing.assert_array_equal(got.cpu().numpy(), wanted)
