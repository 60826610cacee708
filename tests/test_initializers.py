"""Orthogonal initialisation: the matrices, their distribution, and the singular values of the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import convla
from convla.errors import ShapeError
from convla.geometry import BOUNDARIES

SHAPES = [
    (4, 3, 3, 3),
    (8, 1, 3),
    (16, 1, 3, 3),
    (5, 5, 1, 1),
    (1, 2, 3),
    (3, 1, 1, 2, 2),
    (6, 6),
    (9, 2),
    (1, 1),
    (40, 9, 3, 3),
]


def _defect(kernel: Any, gain: float = 1.0) -> float:
    """How far the short side of the kernel's matrix is from orthonormal."""
    rows = np.asarray(kernel, np.float64).reshape(kernel.shape[0], -1) / gain
    short = rows if rows.shape[0] <= rows.shape[1] else rows.T
    return float(np.abs(short @ short.T - np.eye(short.shape[0])).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["haar", "svd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_short_side_is_orthonormal(shape: tuple[int, ...], method: str, dtype: Any) -> None:
    kernel = convla.orthogonal_kernel(shape, gain=2.5, method=method, rng=1, dtype=dtype)
    assert kernel.shape == shape
    assert kernel.dtype == dtype
    # Rounding to the dtype, and Cholesky's loss of the Gaussian's squared condition number, at most 6^2 but rarely.
    assert _defect(kernel, 2.5) <= 8 * np.finfo(dtype).eps + 1000 * np.finfo(np.float64).eps


@pytest.mark.parametrize("shape", [(8, 32), (32, 80), (80, 32), (20, 20), (40, 77), (1, 3)])
def test_haar_is_the_unique_factor_of_the_gaussian(shape: tuple[int, int]) -> None:
    gaussian = np.random.default_rng(3).standard_normal((min(shape), max(shape)))
    triangle, rows = scipy.linalg.rq(gaussian[::-1], mode="economic")
    # RQ of the rows in reverse order is LQ of the rows; its signs are LAPACK's, ours make the diagonal positive.
    rows = (rows * np.sign(np.diagonal(triangle))[:, None])[::-1]
    got = convla.orthogonal_kernel(shape, rng=3)
    got = got if shape[0] <= shape[1] else got.T
    assert np.abs(got - rows).max() <= 1e5 * np.finfo(np.float64).eps


@pytest.mark.parametrize("shape", [(3, 2), (3, 7)])
def test_haar_has_the_distribution_of_a_uniform_direction(shape: tuple[int, int]) -> None:
    # One coordinate squared of a uniform unit vector in R^n is Beta(1/2, (n - 1)/2), in every row and column.
    n = max(shape)
    draws = np.stack([convla.orthogonal_kernel(shape, rng=seed) for seed in range(1500)])
    for entry in draws.reshape(1500, -1).T:
        assert scipy.stats.kstest(entry**2, scipy.stats.beta(0.5, (n - 1) / 2).cdf).pvalue > 1e-4
        assert scipy.stats.binomtest(int((entry > 0).sum()), 1500).pvalue > 1e-4


def test_the_seed_decides() -> None:
    a, b, c = (convla.orthogonal_kernel((4, 2, 3), rng=seed) for seed in (5, 5, 6))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    generator = np.random.default_rng(5)
    assert np.array_equal(convla.orthogonal_kernel((4, 2, 3), rng=generator), a)
    assert not np.array_equal(convla.orthogonal_kernel((4, 2, 3), rng=generator), a)


@pytest.mark.parametrize(("kernel", "image"), [((3,), (12,)), ((3, 3), (5, 6)), ((2, 3), (6, 5)), ((5, 5), (7, 7))])
@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("channels", [(4, 4), (6, 3), (2, 5)])
def test_orthonormal_filters_bound_the_layer_by_the_root_of_the_taps(
    kernel: tuple[int, ...], image: tuple[int, ...], boundary: Any, channels: tuple[int, int]
) -> None:
    taps = int(np.prod(kernel))
    for seed in range(5):
        weights = convla.orthogonal_kernel((*channels, *kernel), gain=1.5, rng=seed)
        layer = convla.ConvOperator(weights, image, boundary=boundary).to_dense()
        assert np.linalg.norm(layer, 2) <= 1.5 * np.sqrt(taps) * (1 + 1e-12)


def test_the_bound_is_attained() -> None:
    # One filter of equal taps, a unit vector, sums a constant image to the root of their number.
    layer = convla.ConvOperator(np.full((1, 1, 3, 3), 1 / 3), (6, 6), boundary="circular").to_dense()
    assert np.linalg.norm(layer, 2) == pytest.approx(3, rel=1e-14)


def test_orthonormal_filters_do_not_preserve_the_norm() -> None:
    weights = convla.orthogonal_kernel((8, 8, 3, 3), rng=0)
    values = np.linalg.svd(convla.ConvOperator(weights, (8, 8)).to_dense(), compute_uv=False)
    assert values[0] > 1.5
    assert values[-1] < 0.1


@pytest.mark.parametrize("kernel", [(3,), (2,), (3, 3), (2, 5), (1, 1), (3, 2, 3)])
@pytest.mark.parametrize("channels", [(3, 3), (5, 2), (2, 4)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_delta_orthogonal_layers_are_isometries(
    kernel: tuple[int, ...], channels: tuple[int, int], boundary: Any
) -> None:
    weights = convla.delta_orthogonal_kernel((*channels, *kernel), gain=0.5, rng=2)
    layer = convla.ConvOperator(weights, (5,) * len(kernel), boundary=boundary).to_dense()
    values = np.linalg.svd(layer, compute_uv=False)
    positions = 5 ** len(kernel)
    assert np.abs(values[: min(channels) * positions] - 0.5).max() <= 1e-13
    assert values.size == min(channels) * positions


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
def test_like_gives_its_library_and_device(device: str) -> None:
    place = array_api_strict.Device(device)
    like = array_api_strict.zeros(1, device=place)
    for make in (convla.orthogonal_kernel, convla.delta_orthogonal_kernel):
        kernel = make((4, 2, 3), rng=0, dtype=np.float32, like=like)
        assert kernel.device == place
        assert kernel.dtype == array_api_strict.float32
        host = array_api_strict.asarray(kernel, device=array_api_strict.Device("CPU_DEVICE"))
        assert np.array_equal(np.asarray(host), make((4, 2, 3), rng=0, dtype=np.float32))


@pytest.mark.parametrize("make", [convla.orthogonal_kernel, convla.delta_orthogonal_kernel])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": (4,)}, ShapeError, r"shape must be \(c_out, c_in, \*kernel\), .* got \(4,\)"),
        ({"shape": (4, 0, 3)}, ShapeError, r"positive integers, got \(4, 0, 3\)"),
        ({"shape": (4, 2.5, 3)}, TypeError, r"shape must be a sequence of integers .* got \(4, 2.5, 3\)"),
        ({"shape": 4}, TypeError, "shape must be a sequence of integers .* got 4"),
        ({"gain": 0.0}, ValueError, "gain must be positive, got 0.0"),
        ({"gain": "relu"}, TypeError, "gain must be a real number, got 'relu'"),
        ({"dtype": np.float16}, TypeError, "dtype must be float32 or float64, got float16"),
        ({"dtype": "float33"}, TypeError, "dtype must be float32 or float64, got 'float33'"),
        ({"like": "torch"}, TypeError, "like must be an array, got str"),
    ],
)
def test_bad_input_is_named(
    make: Callable[..., object], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**({"shape": (4, 2, 3), "rng": 0} | arguments))


def test_bad_input_of_one_of_them_is_named() -> None:
    with pytest.raises(ValueError, match="method must be one of 'haar', 'svd', got 'qr'"):
        convla.orthogonal_kernel((4, 2), method="qr")
    with pytest.raises(ShapeError, match="shape must have 1 to 3 axes after its channels"):
        convla.delta_orthogonal_kernel((2, 2, 1, 1, 1, 1))
