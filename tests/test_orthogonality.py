"""Kernel orthogonality, the OCNN residual, SRIP and mutual coherence against their definitions and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest

from convla.errors import ShapeError
from convla.similarity import orthogonality, residuals
from convla.similarity.orthogonality import (
    kernel_orthogonality,
    kernel_orthogonality_gradient,
    mutual_coherence,
    mutual_coherence_gradient,
    ocnn_residual,
    ocnn_residual_gradient,
    spectral_isometry,
    spectral_isometry_gradient,
)
from tests.similarity_oracles import exactly

SHAPES = [(4, 3, 3, 3), (5, 2, 4), (3, 2, 2, 3), (6, 1, 1, 1), (7, 1, 2, 2), (2, 2, 2, 1, 3), (3, 2, 4, 7), (4, 1, 21)]
MEASURES = ["kernel_orthogonality", "ocnn_residual", "spectral_isometry", "mutual_coherence"]


def gaussian(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def measure(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return getattr(orthogonality, name), getattr(orthogonality, f"{name}_gradient")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MEASURES)
def test_gradient_by_central_differences(name: str, shape: tuple[int, ...]) -> None:
    value, gradient = measure(name)
    kernels, direction = gaussian(shape), gaussian(shape, seed=1)
    step = 1e-4
    f = [float(value(kernels + t * step * direction)) for t in (-2, -1, 1, 2)]
    difference = (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * step)
    # Rounding of the four values over the step, and the fourth power of the step.
    tolerance = 1e-15 * max(map(abs, f)) / step * 100 + 1e4 * step**4 * max(map(abs, f))
    assert abs(float(np.sum(gradient(kernels) * direction)) - difference) <= tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["kernel_orthogonality", "ocnn_residual"])
def test_value_and_gradient_together_are_those_alone(name: str, shape: tuple[int, ...]) -> None:
    kernels = gaussian(shape)
    together = getattr(orthogonality, f"{name}_and_gradient")(kernels)
    for found, function in zip(together, measure(name), strict=True):
        np.testing.assert_array_equal(found, function(kernels))


@pytest.mark.parametrize("shape", SHAPES)
class TestDefinitions:
    def test_kernel_orthogonality(self, shape: tuple[int, ...]) -> None:
        kernels = gaussian(shape)
        expected = sum(
            (np.sum(kernels[i] * kernels[j]) - (i == j)) ** 2 for i in range(shape[0]) for j in range(shape[0])
        )
        assert float(kernel_orthogonality(kernels)) == pytest.approx(expected, rel=1e-13)

    def test_spectral_isometry(self, shape: tuple[int, ...]) -> None:
        kernels = gaussian(shape)
        values = np.zeros(shape[0])
        singular = np.linalg.svd(kernels.reshape(shape[0], -1), compute_uv=False)
        values[: singular.size] = singular
        assert float(spectral_isometry(kernels)) == pytest.approx(abs(values**2 - 1).max(), rel=1e-13)

    def test_mutual_coherence(self, shape: tuple[int, ...]) -> None:
        kernels = gaussian(shape)
        rows = kernels.reshape(shape[0], -1)
        cosines = [
            abs(rows[i] @ rows[j]) / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])
            for i in range(shape[0])
            for j in range(i)
        ]
        assert float(mutual_coherence(kernels)) == pytest.approx(max(cosines), rel=1e-13)
        gradient = mutual_coherence_gradient(kernels)
        touched = np.any(gradient.reshape(shape[0], -1) != 0, axis=1).sum()
        # One number per kernel: all cosines are +-1, and constant.
        assert touched == (0 if rows.shape[1] == 1 else 2) or np.abs(gradient).max() < 1e-12

    @pytest.mark.parametrize("stride", [1, 2, 3])
    def test_ocnn_residual_by_its_sum(self, shape: tuple[int, ...], stride: int) -> None:
        kernels = gaussian(shape)
        lags: dict[tuple[int, ...], Any] = {(0,) * (len(shape) - 2): -np.eye(shape[0])}
        for p in np.ndindex(*shape[2:]):
            for q in np.ndindex(*shape[2:]):
                lag = tuple(b - a for a, b in zip(p, q, strict=True))
                if all(t % stride == 0 for t in lag):
                    lags[lag] = lags.get(lag, 0) + kernels[(..., *p)] @ kernels[(..., *q)].T
        expected = sum((matrix**2).sum() for matrix in lags.values())
        assert float(ocnn_residual(kernels, stride=stride)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 2, 5, 4), (6, 1, 3, 3, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lags_and_frequencies_agree(
    shape: tuple[int, ...], stride: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = gaussian(shape).astype(dtype)
    found = []
    for spectral in (True, False):
        monkeypatch.setattr(residuals, "_spectral_is_cheaper", lambda *_, spectral=spectral: spectral)
        found.append(orthogonality.ocnn_residual_and_gradient(kernels, stride=stride))
    eps = float(np.finfo(dtype).eps)
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=100 * eps * float(np.abs(other).max()))


def _orthonormal_columns(shape: tuple[int, ...], error: float) -> tuple[Any, Any]:
    """Kernels whose columns (or rows) are orthonormal but for `error`, and they in exact arithmetic."""
    rows = np.linalg.qr(gaussian((max(shape[0], int(np.prod(shape[1:]))),) * 2))[0]
    kernels = rows[: shape[0], : int(np.prod(shape[1:]))].reshape(shape) + error * gaussian(shape, seed=1)
    return kernels, exactly(kernels).reshape(shape[0], -1)


@pytest.mark.parametrize("shape", [(9, 2, 2), (4, 3, 3), (6, 2, 3), (12, 1, 1)])
@pytest.mark.parametrize("error", [0.0, 1e-9, 1e-3])
def test_kernel_orthogonality_near_its_least_value_in_exact_arithmetic(shape: tuple[int, ...], error: float) -> None:
    kernels, rows = _orthonormal_columns(shape, error)
    residual = rows @ rows.T - np.eye(shape[0], dtype=int)
    expected, slope = (residual * residual).sum(), 4 * (residual @ rows).astype(float).reshape(shape)
    least = max(0, shape[0] - int(np.prod(shape[1:])))
    # Each entry of the residual is off by a few roundings of 1.
    bound = 8 * 2.0**-52
    excess = float(expected - least)
    assert abs(float(kernel_orthogonality(kernels)) - float(expected)) <= least * bound + 30 * bound * (
        excess**0.5 + bound
    )
    assert np.abs(kernel_orthogonality_gradient(kernels) - slope).max() <= 30 * bound


@pytest.mark.parametrize("shape", [(9, 2, 2), (6, 2, 3)])
@pytest.mark.parametrize("error", [1e-5, 1e-3, 0.3])
def test_float32_kernels_near_orthonormal_ones_keep_their_digits(shape: tuple[int, ...], error: float) -> None:
    kernels = _orthonormal_columns(shape, error)[0].astype(np.float32)
    rows = exactly(kernels.astype(np.float64)).reshape(shape[0], -1)
    residual = rows @ rows.T - np.eye(shape[0], dtype=int)
    expected, slope = float((residual * residual).sum()), 4 * (residual @ rows).astype(float).reshape(shape)
    eps = float(np.finfo(np.float32).eps)
    value, gradient = orthogonality.kernel_orthogonality_and_gradient(kernels)
    assert float(value) == pytest.approx(expected, rel=20 * eps)
    assert np.abs(gradient - slope).max() <= 50 * eps * np.abs(slope).max()


@pytest.mark.parametrize("name", ["kernel_orthogonality", "ocnn_residual", "spectral_isometry"])
@pytest.mark.parametrize("shape", [(7, 1, 2, 2), (4, 3, 3, 3), (3, 2, 5, 4)])
@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e170), ("float64", 1e75), ("float32", 1e11)])
def test_large_kernels_give_infinity_and_no_nan(name: str, shape: tuple[int, ...], dtype: str, scale: float) -> None:
    kernels = gaussian(shape).astype(dtype)
    value, gradient = measure(name)
    degree = 2 if name == "spectral_isometry" else 4
    large = kernels.astype(np.float64) * 1e3  # the identity counts for a millionth
    powers = [degree, degree - 1]
    with np.errstate(over="ignore"):
        for function, power in zip((value, gradient), powers, strict=True):
            expected = (function(large).astype(np.longdouble) * (np.longdouble(scale) / 1000) ** power).astype(dtype)
            found = function(kernels * np.dtype(dtype).type(scale))
            np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.torch
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (5, 2, 1, 1), (5, 2, 5, 5), (3, 4, 5, 5)])
def test_ocnn_residual_by_pytorch(shape: tuple[int, ...], stride: int) -> None:
    import torch

    kernels = torch.tensor(gaussian(shape), requires_grad=True)
    # OCNN's padding: the largest multiple of the stride below the kernel's size.
    padding = (shape[-1] - 1) // stride * stride
    correlation = torch.nn.functional.conv2d(kernels, kernels, padding=padding, stride=stride)
    target = torch.zeros_like(correlation)
    middle = correlation.shape[-1] // 2
    target[:, :, middle, middle] = torch.eye(shape[0])
    total = ((correlation - target) ** 2).sum()
    total.backward()
    assert float(ocnn_residual(kernels.detach(), stride=stride)) == pytest.approx(float(total.detach()), rel=1e-13)
    gradient = np.asarray(ocnn_residual_gradient(kernels.detach(), stride=stride))
    expected = np.asarray(kernels.grad)
    assert gradient == pytest.approx(expected, abs=1e-13 * abs(expected).max())


@pytest.mark.parametrize("name", MEASURES)
class TestEveryMeasure:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_dtype_is_kept(self, name: str, dtype: str) -> None:
        value, gradient = measure(name)
        kernels = gaussian((4, 3, 3, 3))
        narrow = kernels.astype(dtype)
        assert value(narrow).dtype == gradient(narrow).dtype == dtype
        eps = float(np.finfo(dtype).eps)
        assert float(value(narrow)) == pytest.approx(float(value(kernels)), rel=100 * eps)
        expected = gradient(kernels)
        assert gradient(narrow) == pytest.approx(expected, abs=100 * eps * abs(expected).max())

    @pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
    def test_array_api_strict(self, name: str, device: str) -> None:
        kernels = gaussian((4, 2, 3, 2))
        strict = array_api_strict.asarray(kernels, device=array_api_strict.Device(device))
        for function in measure(name):
            result = function(strict)
            assert result.device == strict.device
            host = np.asarray(result.to_device(array_api_strict.Device("CPU_DEVICE")))
            assert host == pytest.approx(function(kernels), rel=1e-12, abs=1e-12)

    def test_zero_at_orthonormal_kernels(self, name: str) -> None:
        # One tap each, at no distance: orthonormal under every shift as well.
        kernels = np.zeros((2, 2, 3))
        kernels[0, 0, 1] = kernels[1, 1, 1] = 1.0
        value, gradient = measure(name)
        assert float(value(kernels)) == 0
        assert np.all(gradient(kernels) == 0)

    @pytest.mark.parametrize(
        ("kernels", "error", "message"),
        [
            (np.ones((2, 3)), ShapeError, "kernels must have at least 3 axes"),
            (np.ones((2,) * 6), ShapeError, "kernels must have 1 to 3 axes after its channels"),
            (np.ones((2, 0, 3)), ShapeError, "kernels must have no empty axis"),
            (np.full((2, 1, 3), np.nan), ValueError, "kernels must be finite"),
            (np.ones((2, 1, 3), dtype=complex), TypeError, "kernels must hold real numbers"),
            (np.ones((2, 1, 3), dtype=np.float16), TypeError, "kernels must be float32, float64 or integers"),
            ("abc", TypeError, "kernels must"),
        ],
    )
    def test_bad_kernels(self, name: str, kernels: Any, error: type[Exception], message: str) -> None:
        for function in measure(name):
            with pytest.raises(error, match=message):
                function(kernels)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_groups_of_a_layer_add_up(groups: int) -> None:
    kernels = gaussian((6, 2, 3, 2))
    blocks = np.split(kernels, groups)
    for value, gradient, options in (
        (kernel_orthogonality, kernel_orthogonality_gradient, {}),
        (ocnn_residual, ocnn_residual_gradient, {"stride": (1, 2)}),
    ):
        expected = sum(float(value(block, **options)) for block in blocks)
        assert float(value(kernels, groups=groups, **options)) == pytest.approx(expected, rel=1e-13)
        slopes = np.concatenate([gradient(block, **options) for block in blocks])
        np.testing.assert_allclose(gradient(kernels, groups=groups, **options), slopes, rtol=1e-12, atol=1e-12)
        for function in (value, gradient):
            with pytest.raises(ShapeError, match="groups must divide the number of kernels 6, got 4"):
                function(kernels, groups=4)


def test_bad_stride() -> None:
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        ocnn_residual(gaussian((2, 1, 3)), stride=0)
    with pytest.raises(TypeError, match=r"stride must be an integer, got 1\.5"):
        ocnn_residual_gradient(gaussian((2, 1, 3)), stride=1.5)


def test_coherence_needs_two_kernels_that_are_not_zero() -> None:
    with pytest.raises(ShapeError, match="needs at least two kernels"):
        mutual_coherence(gaussian((1, 2, 3)))
    with pytest.raises(ValueError, match=r"got kernels\[1\] = 0"):
        mutual_coherence(np.stack([gaussian((2, 3)), np.zeros((2, 3))]))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_coherence_at_extreme_scales(scale: float) -> None:
    kernels = gaussian((3, 2, 3))
    expected = float(mutual_coherence(kernels))
    kernels[1] *= scale
    assert float(mutual_coherence(kernels)) == pytest.approx(expected, rel=1e-14)


def test_integers_are_taken_as_float64() -> None:
    kernels = np.random.default_rng(0).integers(-3, 4, (3, 2, 3))
    for value, gradient in map(measure, MEASURES):
        assert float(value(kernels)) == float(value(kernels.astype(float)))
        assert np.array_equal(gradient(kernels), gradient(kernels.astype(float)))


def test_kernel_orthogonality_gradient_by_hand() -> None:
    # W = (2), W W^T - I = 3, and 4 * 3 * 2 = 24.
    assert kernel_orthogonality_gradient(np.array([[[2.0]]])).item() == 24.0
    assert spectral_isometry_gradient(np.array([[[0.5]]])).item() == -1.0
