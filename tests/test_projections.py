"""Nearest kernels against closed forms, SciPy's optimiser and dense decompositions; limits against their proofs."""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any

import array_api_strict
import numpy as np
import pytest
import scipy.optimize

import convla
from convla import ConvGeometry, ConvOperator, clip_singular_values, nearest_orthogonal
from convla.errors import ConvergenceWarning
from convla.projections import block_convolution_kernel, clipping
from convla.projections.blocks import MatrixBlocks, TorusBlocks
from convla.projections.nearest import dykstra
from convla.projections.scaling import scaled_below

SETTINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "same": ((3, 2, 3), (7,), {}),
    "full": ((2, 3, 2), (5,), {"padding": "full"}),
    "valid, stride, groups": ((4, 2, 3, 2), (6, 5), {"padding": "valid", "stride": (2, 1), "groups": 2}),
    "dilated": ((2, 2, 3), (9,), {"dilation": 2}),
    "circular": ((2, 2, 3, 3), (4, 5), {"boundary": "circular"}),
    "circular, stride": ((3, 2, 3), (8,), {"boundary": "circular", "stride": 2}),
    "circular, wrapped": ((2, 1, 5), (3,), {"boundary": "circular", "padding": 2}),
    "reflect": ((2, 2, 3), (6,), {"boundary": "reflect"}),
    "replicate": ((2, 1, 3, 3), (4, 4), {"boundary": "replicate"}),
    "symmetric": ((2, 2, 3), (6,), {"boundary": "symmetric"}),
    "three axes": ((2, 1, 2, 2, 2), (3, 3, 3), {}),
}


def _kernel(name: str, dtype: Any = np.float64) -> Any:
    return np.random.default_rng(1).standard_normal(SETTINGS[name][0]).astype(dtype)


def _values(kernel: Any, image_shape: tuple[int, ...], settings: dict[str, Any]) -> Any:
    return np.linalg.svd(ConvOperator(kernel, image_shape, **settings).to_dense(), compute_uv=False)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", [MatrixBlocks, TorusBlocks])
def test_blocks_are_a_map_with_its_adjoint_and_gram_matrix(name: str, kind: Any) -> None:
    shape, image_shape, settings = SETTINGS[name]
    blocks = kind(ConvGeometry(shape, image_shape, **{"padding": "same", **settings}))
    rng = np.random.default_rng(0)
    kernel, other = rng.standard_normal((2, *blocks.shape))
    image = blocks.of(other)
    stack = rng.standard_normal(image.shape) + (1j * rng.standard_normal(image.shape) if np.iscomplexobj(image) else 0)

    def inner(a: Any, b: Any) -> float:
        return blocks.total(np.sum((a.conj() * b).real, axis=(-2, -1)))

    assert math.isclose(inner(stack, blocks.of(kernel)), np.sum(blocks.adjoint(stack) * kernel), rel_tol=1e-12)
    assert np.allclose(blocks.adjoint(image), other @ blocks.gram, rtol=0, atol=1e-12 * blocks.bound)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_blocks_of_the_matrix_hold_its_singular_values(name: str) -> None:
    shape, image_shape, settings = SETTINGS[name]
    kernel = _kernel(name)
    blocks = MatrixBlocks(ConvGeometry(shape, image_shape, **{"padding": "same", **settings}))
    values = np.linalg.svd(blocks.of(kernel.reshape(blocks.shape)), compute_uv=False)
    assert np.allclose(np.sort(values.ravel()), np.sort(_values(kernel, image_shape, settings)), atol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_clipped_layer_is_proved_to_obey_its_maximum(name: str, dtype: Any) -> None:
    _, image_shape, settings = SETTINGS[name]
    kernel = _kernel(name, dtype)
    maximum = 0.6 * float(_values(kernel, image_shape, settings)[0])
    clipped = clip_singular_values(kernel, image_shape, maximum=maximum, **settings)
    bounds = convla.singular_value_bounds(ConvOperator(clipped.kernel, image_shape, **settings))
    assert bounds.upper == clipped.upper <= maximum
    assert clipped.kernel.dtype == dtype
    moved = float(np.linalg.norm(clipped.kernel.astype(float) - kernel.astype(float)))
    assert math.isclose(moved, clipped.distance, rel_tol=1e-12)
    assert clipped.least_distance <= moved <= 1.02 * clipped.least_distance
    assert clipped.status == "confirmed"
    # Shrinking the kernel obeys the maximum too, and moves it farther.
    assert moved < 0.4 * np.linalg.norm(kernel)


@pytest.mark.command
@pytest.mark.parametrize("name", ["circular, stride", "reflect", "valid, stride, groups"])
def test_no_optimiser_finds_a_closer_kernel(name: str) -> None:
    shape, image_shape, settings = SETTINGS[name]
    kernel = _kernel(name)
    maximum = 0.6 * float(_values(kernel, image_shape, settings)[0])
    clipped = clip_singular_values(kernel, image_shape, maximum=maximum, rtol=1e-4, **settings)
    found = scipy.optimize.minimize(
        lambda k: np.sum((k - kernel.ravel()) ** 2) / 2,
        np.zeros(kernel.size),
        jac=lambda k: k - kernel.ravel(),
        constraints={
            "type": "ineq",
            "fun": lambda k: maximum - _values(k.reshape(shape), image_shape, settings)[:6],
        },
        method="SLSQP",
        options={"maxiter": 200, "ftol": 1e-9},
    )
    best = found.x * min(1.0, maximum / _values(found.x.reshape(shape), image_shape, settings)[0])
    distance = float(np.linalg.norm(best - kernel.ravel()))
    assert distance >= clipped.least_distance * (1 - 1e-9)
    assert clipped.distance <= 1.001 * distance


def test_a_pointwise_layer_is_clipped_as_its_channel_matrix() -> None:
    matrix = np.random.default_rng(0).standard_normal((4, 3))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    clipped = clip_singular_values(matrix[:, :, None], (5,), maximum=1.0, rtol=1e-6)
    assert np.allclose(clipped.kernel[:, :, 0], left @ np.diag(np.minimum(values, 1)) @ right, atol=1e-5)
    both = clip_singular_values(matrix[:, :, None], (5,), maximum=1.5, minimum=1.0, rtol=1e-6)
    assert np.allclose(both.kernel[:, :, 0], left @ np.diag(np.clip(values, 1, 1.5)) @ right, atol=1e-5)
    assert both.smallest is not None
    assert both.smallest >= 1 - 2e-6


def test_a_kernel_as_large_as_a_circular_image_is_clipped_frequency_by_frequency() -> None:
    kernel = np.random.default_rng(0).standard_normal((2, 2, 6))
    symbol = np.moveaxis(np.fft.fft(kernel), -1, 0)
    left, values, right = np.linalg.svd(symbol)
    clipped = left @ (np.minimum(values, 2.0)[:, :, None] * right)
    expected = np.fft.ifft(np.moveaxis(clipped, 0, -1)).real
    found = clip_singular_values(kernel, (6,), maximum=2.0, boundary="circular", rtol=1e-6)
    assert np.allclose(found.kernel, expected, atol=1e-5)


@pytest.mark.command
def test_clip_and_crop_leaves_the_norm_too_large() -> None:
    """What conv-sv and its heirs do: clip the circular layer, and crop the kernels to the size they had."""
    kernel, n = np.random.default_rng(0).standard_normal((4, 4, 3, 3)), 12
    maximum = float(convla.largest_singular_value(ConvOperator(kernel, (n, n)))) / 2
    transform = np.moveaxis(np.fft.fft2(kernel, (n, n)), (0, 1), (-2, -1))
    left, values, right = np.linalg.svd(transform)
    back = np.fft.ifft2(np.moveaxis(left @ (np.minimum(values, maximum)[..., None] * right), (-2, -1), (0, 1)))
    cropped = np.ascontiguousarray(back.real[:, :, :3, :3])
    excess = convla.singular_value_bounds(ConvOperator(cropped, (n, n))).lower / maximum
    assert 1.1 < excess < 1.5
    ours = clip_singular_values(kernel, (n, n), maximum=maximum)
    assert ours.upper <= maximum


def test_what_obeys_the_limits_is_returned_as_it_is() -> None:
    kernel = np.array([[[0.25, 0.5, 0.25]]])
    clipped = clip_singular_values(kernel, (9,), maximum=1.0)
    assert np.array_equal(clipped.kernel, kernel)
    assert (clipped.distance, clipped.status, clipped.iterations) == (0.0, "exact", 0)


@pytest.mark.command
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"boundary": "replicate"}])
def test_a_large_layer_is_clipped_on_a_torus(settings: dict[str, Any]) -> None:
    kernel, image_shape = np.random.default_rng(0).standard_normal((4, 4, 3, 3)), (10, 10)
    operator = ConvOperator(kernel, image_shape, **settings)
    maximum = 0.6 * float(convla.largest_singular_value(operator))
    clipped = clip_singular_values(kernel, image_shape, maximum=maximum, method="torus", **settings)
    assert clipped.upper == convla.singular_value_bounds(operator.with_kernel(clipped.kernel)).upper <= maximum
    assert clipped.least_distance == 0.0
    assert clipped.status == "estimated"
    scaled = scaled_below(operator, maximum)
    assert clipped.distance <= float(np.linalg.norm(scaled.operator.kernel - kernel)) * (1 + 1e-9)
    if settings.get("boundary") != "replicate":
        exact = dykstra(
            MatrixBlocks(operator.geometry), kernel.reshape(1, 4, 4, 9), maximum, rtol=5e-2, max_iterations=30
        )
        assert exact.least_distance <= clipped.distance <= 1.08 * exact.least_distance


def test_a_minimum_out_of_reach_is_said_so() -> None:
    with pytest.warns(convla.errors.ConvergenceWarning, match="the smallest singular value is"):
        clipped = clip_singular_values(
            np.array([[[1.0, 1.0, 0.0]]]), (12,), minimum=0.9, maximum=1.0, max_iterations=20
        )
    assert clipped.status == "not converged"
    assert clipped.upper <= 1.0


def test_block_convolutions_are_orthogonal_with_all_taps() -> None:
    for shape, image_shape in (((4, 4, 3), (5,)), ((2, 5, 2, 3), (4, 3)), ((3, 2, 2, 2, 2), (2, 3, 2))):
        kernel = block_convolution_kernel(shape, rng=0)
        assert np.all(np.any(kernel != 0, axis=(0, 1)))
        assert np.allclose(_values(kernel, image_shape, {"boundary": "circular"}), 1.0, atol=1e-13)


def test_the_nearest_orthogonal_kernel_of_a_pointwise_layer_is_the_polar_factor() -> None:
    matrix = np.random.default_rng(0).standard_normal((4, 3))
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    found = nearest_orthogonal(matrix[:, :, None], (5,))
    assert np.allclose(found.kernel[:, :, 0], left @ right, atol=1e-12)
    assert math.isclose(found.distance, float(np.linalg.norm(left @ right - matrix)), rel_tol=1e-12)


@pytest.mark.parametrize("name", ["circular", "valid, stride, groups", "same", "full", "circular, stride"])
def test_delta_is_that_of_the_dense_matrix(name: str) -> None:
    _, image_shape, settings = SETTINGS[name]
    found = nearest_orthogonal(_kernel(name), image_shape, max_iterations=50, **settings)
    values = _values(found.kernel, image_shape, settings)
    assert math.isclose(found.delta, float(np.max(np.abs(values - 1))), abs_tol=1e-9)
    assert found.delta <= 1e-6 or found.delta == min(entry.delta for entry in found.candidates)


def test_singular_values_of_phases_that_no_tap_reads_count() -> None:
    """Of four outputs of a third of the positions, two thirds of the inputs are lost."""
    found = nearest_orthogonal(
        np.ones((4, 1, 1)), (9,), stride=3, boundary="circular", max_iterations=3, method="torus"
    )
    assert math.isclose(found.delta, 1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"maximum": 0.0}, ValueError, "maximum must be positive, got 0.0"),
        ({"minimum": 2.0}, ValueError, "minimum must be between 0.0 and 1.0, got 2.0"),
        ({"method": "fft"}, ValueError, "method must be one of 'auto', 'matrix', 'torus', got 'fft'"),
        ({"rtol": 0}, ValueError, "rtol must be positive"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be at least 1, got 0"),
        ({"kernel": np.array([[[1, 2, 1]]], dtype=object)}, TypeError, "got dtype object"),
    ],
)
def test_errors_come_before_work(change: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"kernel": np.array([[[1.0, 2.0, 1.0]]]), "image_shape": (6,), "maximum": 1.0, **change}
    with pytest.raises(error, match=message):
        clip_singular_values(arguments.pop("kernel"), arguments.pop("image_shape"), **arguments)


@pytest.mark.torch
def test_a_tensor_comes_back_as_one_and_is_not_detached_in_silence() -> None:
    torch = pytest.importorskip("torch")
    kernel = torch.tensor([[[1.0, 2.0, 1.0]]])
    clipped = clip_singular_values(kernel, (9,), maximum=1.0)
    assert isinstance(clipped.kernel, torch.Tensor)
    assert clipped.kernel.dtype == torch.float32
    with pytest.raises(TypeError, match="requires a gradient"):
        clip_singular_values(kernel.requires_grad_(), (9,), maximum=1.0)


def test_a_torus_with_rows_that_the_layer_lacks_says_no_least_distance() -> None:
    settings: dict[str, Any] = {"boundary": "circular", "padding": "valid"}
    kernel = np.random.default_rng(0).standard_normal((2, 2, 4))
    largest = float(_values(kernel, (5,), settings)[0])
    found = clip_singular_values(kernel, (5,), maximum=0.99 * largest, method="torus", **settings)
    assert (found.status, found.least_distance) == ("estimated", 0.0)
    assert found.distance <= 0.0101 * float(np.linalg.norm(kernel))  # a hundredth off every entry is enough


@pytest.mark.parametrize("minimum", [0.0, 0.5])
@pytest.mark.parametrize("method", ["matrix", "torus"])
@pytest.mark.parametrize("exponent", [-700, 700])
def test_kernels_whose_squares_are_out_of_range_are_clipped_alike(exponent: int, method: Any, minimum: float) -> None:
    kernel, settings = np.random.default_rng(0).standard_normal((2, 2, 3)), {"boundary": "circular", "method": method}
    limits = np.array([1.5, minimum])
    one, other = (
        clip_singular_values(np.ldexp(kernel, e), (6,), maximum=high, minimum=low, **settings)
        for e in (0, exponent)
        for high, low in [np.ldexp(limits, e).tolist()]
    )
    assert np.allclose(np.ldexp(other.kernel, -exponent), one.kernel, rtol=1e-12)
    assert other.status == one.status
    for name in ("distance", "least_distance"):
        assert math.isclose(np.ldexp(getattr(other, name), -exponent), getattr(one, name), rel_tol=1e-9), name
    nearest = convla.nearest_orthogonal(np.ldexp(kernel, exponent), (6,), boundary="circular", max_iterations=3)
    assert math.isclose(nearest.distance, max(2.0**exponent * float(np.linalg.norm(kernel)), math.sqrt(2)), rel_tol=0.2)


def test_a_kernel_of_another_library_in_host_memory_is_clipped() -> None:
    kernel = _kernel("same")
    found = clip_singular_values(array_api_strict.asarray(kernel), (7,), maximum=1.0)
    assert type(found.kernel) is type(array_api_strict.asarray(kernel))
    np.testing.assert_array_equal(np.asarray(found.kernel), clip_singular_values(kernel, (7,), maximum=1.0).kernel)


def test_two_threads_leave_the_filters_of_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks for smallest values whose status says what the warning would; the first one leaves first."""
    found, gates = clipping.smallest_singular_value, {name: threading.Event() for name in ("first in", "second in")}

    def first_in(operator: ConvOperator) -> Any:
        gates["first in"].set()
        gates["second in"].wait(60)
        return found(operator)

    def second_in(operator: ConvOperator) -> Any:
        gates["second in"].set()
        first.join(60)
        return found(operator)

    def smallest(operator: ConvOperator) -> Any:
        return (first_in if threading.current_thread() is first else second_in)(operator)

    operator, before = ConvOperator(np.ones((1, 1, 2)), (4,)), list(warnings.filters)
    monkeypatch.setattr(clipping, "smallest_singular_value", smallest)
    first = threading.Thread(target=clipping._smallest, args=(operator,))
    first.start()
    gates["first in"].wait(60)
    clipping._smallest(operator)
    assert list(warnings.filters) == before
    with pytest.warns(ConvergenceWarning):
        convla.smallest_singular_value(
            ConvOperator(np.random.default_rng(0).standard_normal((4, 4, 9)), (99,)), method="lanczos", max_matvecs=2
        )
