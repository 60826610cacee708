"""Orthonormalised gradients against the SVD, SciPy's polar decomposition and Muon's loop, on good and bad matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import convla
from convla.errors import ShapeError
from convla.orthonormal import polar_express_coefficients

Array = np.ndarray[Any, Any]
EPS = float(np.finfo(np.float64).eps)
SHAPES = [(8, 4, 3, 3), (16, 16, 1, 1), (20, 1, 3, 3), (1, 3, 3), (3, 1, 1), (5, 7), (9, 2, 2, 1, 2)]
METHODS = ["exact", "svd", "newton-schulz", "polar-express"]
# What Muon's five steps can make of a rounding near the singular value 0: the product of their slopes there.
MUON_SLOPE = 3.4445**5


def _with_condition(shape: tuple[int, int], condition: float, seed: int = 0, dtype: Any = np.float64) -> Array:
    """A matrix with singular values spaced evenly in their logarithm from 1 down to 1/condition."""
    rng = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return ((u * np.logspace(0, -np.log10(condition), min(shape))) @ vt).astype(dtype)


def _polar(gradient: Array) -> Array:
    """The polar factor by SciPy, in float64."""
    rows = np.asarray(gradient, np.float64).reshape(gradient.shape[0], -1)
    tall = rows.shape[0] > rows.shape[1]
    factor = scipy.linalg.polar(rows if tall else rows.T, side="right")[0]
    return (factor if tall else factor.T).reshape(gradient.shape)


def _distance(got: Array, expected: Array) -> float:
    return float(np.linalg.norm(np.asarray(got, np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["exact", "svd", "polar-express"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_polar_factor(shape: tuple[int, ...], method: str, dtype: Any) -> None:
    gradient = np.random.default_rng(4).standard_normal(shape).astype(dtype)
    got = convla.orthonormalize(gradient, method=method)
    assert (got.shape, got.dtype) == (shape, dtype)
    condition = np.linalg.cond(gradient.reshape(shape[0], -1).astype(np.float64))
    bound = 4 * np.finfo(dtype).eps + 50 * EPS * condition**2
    if method == "polar-express":
        bound = 1e-6 if dtype == np.float32 else 1e-7
    assert _distance(got, _polar(gradient)) <= bound


@pytest.mark.parametrize("condition", [1e1, 1.5e1, 1e3, 9e4, 3e5, 1e6])
@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_exact_keeps_its_documented_distance_in_float32(condition: float, shape: tuple[int, int]) -> None:
    gradient = _with_condition(shape, condition, dtype=np.float32)
    got = convla.orthonormalize(gradient)
    assert _distance(got, _polar(gradient)) <= 1e-6
    rows = got.astype(np.float64) if shape[0] <= shape[1] else got.T.astype(np.float64)
    assert np.linalg.norm(rows @ rows.T - np.eye(len(rows))) / np.sqrt(len(rows)) <= 1e-6


@pytest.mark.parametrize("condition", [2.0, 8.9, 9.1])
def test_exact_keeps_square_rows_orthonormal_in_float32(condition: float) -> None:
    # Of all shapes the one whose product in float32, taken up to condition 9, loses most.
    got = convla.orthonormalize(_with_condition((512, 512), condition, dtype=np.float32)).astype(np.float64)
    assert np.linalg.norm(got @ got.T - np.eye(512)) / np.sqrt(512) <= 1e-6


@pytest.mark.parametrize("condition", [1e7, 1e8])
@pytest.mark.parametrize("method", ["exact", "svd"])
def test_float32_keeps_what_its_rounding_leaves(condition: float, method: str) -> None:
    gradient = _with_condition((64, 200), condition, dtype=np.float32)
    u, values, vt = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
    kept = values > 4 * np.finfo(np.float32).eps * values[0]
    assert 0 < np.count_nonzero(kept) < 64
    assert _distance(convla.orthonormalize(gradient, method=method), u[:, kept] @ vt[kept]) <= 1e-6


def _polar_in_long_double(matrix: Array) -> Array:
    """The polar factor by Newton and Schulz' iteration, whose products in long double square nothing."""
    x = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix).astype(np.longdouble)
    x = x / np.sqrt(np.sum(x * x))
    step = x
    while np.abs(step).max() > 1e-18:
        step = (x - (x @ x.T) @ x) / 2
        x = x + step
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _spectra(count: int, condition: float) -> dict[str, Array]:
    """Singular values of one condition number; small ones that differ lose most in a Gram matrix."""
    small = np.linspace(1, min(3, condition), count) / condition
    return {
        "even": np.logspace(0, -np.log10(condition), count),
        "one large": np.concatenate([[1.0], small[: count - 1]]),
        "half small": np.concatenate([np.ones(count // 2), small[: count - count // 2]]),
    }


CONDITIONS = [1.0, 10.0, 99.0, 101.0, 916.0, 3e4, 4e4, 1e6, 1e9, 1e12, 1e14]


# Beyond that, float32's rounding of the entries decides about the small singular values.
@pytest.mark.parametrize(
    ("condition", "dtype"), [(c, np.float64) for c in CONDITIONS] + [(c, np.float32) for c in CONDITIONS if c <= 1e6]
)
@pytest.mark.parametrize("shape", [(2, 7), (6, 9), (9, 6), (12, 12)])
@pytest.mark.parametrize("spectrum", ["even", "one large", "half small"])
def test_exact_and_svd_keep_their_stated_distances(
    condition: float, dtype: Any, shape: tuple[int, int], spectrum: str
) -> None:
    values = _spectra(min(shape), condition)[spectrum]
    u, _, vt = np.linalg.svd(np.random.default_rng(int(condition)).standard_normal(shape), full_matrices=False)
    gradient = ((u * values) @ vt).astype(dtype)
    expected = _polar_in_long_double(gradient)
    if dtype == np.float32:
        stated = {"exact": 1e-6, "svd": 1e-6}
    else:
        gram = 10 * EPS + condition**2 * EPS
        assert condition >= 100 or gram < 1e-11
        stated = {"exact": gram if condition < 100 else 10 * EPS * condition, "svd": 10 * EPS * condition}
    for method, bound in stated.items():
        assert _distance(convla.orthonormalize(gradient, method=method, rtol=0.0), expected) <= bound


@pytest.mark.parametrize("method", ["exact", "svd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rank_deficient_gradient_gives_the_partial_isometry(method: str, dtype: Any) -> None:
    # The gradient of a softmax layer: its rows sum to 0, to within their rounding.
    gradient = np.random.default_rng(0).standard_normal((10, 40))
    gradient = (gradient - gradient.mean(axis=0)).astype(dtype)
    got = convla.orthonormalize(gradient, method=method).astype(np.float64)
    values = np.linalg.svd(got, compute_uv=False)
    assert np.abs(values[:9] - 1).max() <= 20 * np.finfo(dtype).eps
    assert values[9] <= 1e-6
    # The partial isometry's rows sum to 0 as the gradient's do; the completion's cannot.
    assert np.linalg.norm(got.sum(axis=0)) <= 100 * np.finfo(dtype).eps
    complete = convla.orthonormalize(gradient, method=method, rank_deficient="complete").astype(np.float64)
    assert np.abs(complete @ complete.T - np.eye(10)).max() <= 20 * np.finfo(dtype).eps
    assert np.linalg.norm(complete.sum(axis=0)) == pytest.approx(np.sqrt(10), rel=1e-5)
    assert np.allclose(complete - got, np.outer(np.ones(10), (complete - got)[0]), atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dead_filters_stay_dead(method: str, dtype: Any) -> None:
    gradient = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(dtype)
    gradient[[1, 4]] = 0
    got = convla.orthonormalize(gradient, method=method)
    assert np.abs(got[[1, 4]]).max() <= 4 * np.finfo(dtype).eps
    if method != "newton-schulz":
        rest = np.delete(got, [1, 4], axis=0)
        assert _distance(rest, _polar(np.delete(gradient, [1, 4], axis=0))) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank_deficient", ["partial", "complete"])
@pytest.mark.parametrize("shape", [(4, 3, 2), (6, 1, 2)])
def test_zero_in_zero_out(method: str, rank_deficient: str, shape: tuple[int, ...]) -> None:
    if rank_deficient == "complete" and method not in ("exact", "svd"):
        with pytest.raises(ValueError, match="rank_deficient must be 'partial' for method"):
            convla.orthonormalize(np.zeros(shape), method=method, rank_deficient=rank_deficient)
        return
    for dtype in (np.float32, np.float64):
        got = convla.orthonormalize(np.zeros(shape, dtype), method=method, rank_deficient=rank_deficient)
        assert np.array_equal(got, np.zeros(shape, dtype))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scale", "dtype"), [(1e-150, np.float64), (1e150, np.float64), (1e-30, np.float32)])
def test_the_scale_does_not_matter(method: str, scale: float, dtype: Any) -> None:
    gradient = np.random.default_rng(1).standard_normal((5, 3, 3)).astype(dtype)
    plain = convla.orthonormalize(gradient, method=method)
    scaled = convla.orthonormalize(gradient * dtype(scale), method=method)
    bound = 1e-9 if (method, dtype) == ("polar-express", np.float64) else MUON_SLOPE * np.finfo(dtype).eps
    assert np.abs(plain.astype(np.float64) - scaled).max() <= bound


@pytest.mark.parametrize("method", ["exact", "svd", "polar-express"])
@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-38, 1e37])
def test_the_whole_range_of_float32_is_taken(method: str, scale: float) -> None:
    # Subnormal numbers too, whose inverses float32 does not hold.
    gradient = (np.random.default_rng(0).standard_normal((6, 12)) * scale).astype(np.float32)
    assert _distance(convla.orthonormalize(gradient, method=method), _polar(gradient / np.float64(scale))) <= 1e-6


@given(exponent=st.integers(-140, 140), seed=st.integers(0, 2**32 - 1))
def test_powers_of_2_change_nothing_but_rounding(exponent: int, seed: int) -> None:
    gradient = np.random.default_rng(seed).standard_normal((4, 9))
    expected = convla.orthonormalize(gradient, method="svd")
    assert np.array_equal(convla.orthonormalize(gradient * 2.0**exponent, method="svd"), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [(3,), (2, 2)])
def test_a_batch_is_each_layer_by_itself(method: str, batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    layers = rng.standard_normal((*batch, 6, 2, 3))
    layers.reshape(-1, 6, 2, 3)[1] = 0
    layers.reshape(-1, 6, 2, 3)[2, 5] = layers.reshape(-1, 6, 2, 3)[2, 4]
    got = convla.orthonormalize(layers, method=method, batch_axes=len(batch))
    for index in np.ndindex(batch):
        alone = convla.orthonormalize(layers[index], method=method)
        assert np.abs(got[index] - alone).max() <= 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "groups"), [((6, 2, 3), 3), ((6, 2, 3), 1), ((12, 1, 2, 2), 4)])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_each_group_is_a_layer_by_itself(
    method: str, shape: tuple[int, ...], groups: int, batch: tuple[int, ...]
) -> None:
    layers = np.random.default_rng(6).standard_normal((*batch, *shape))
    got = convla.orthonormalize(layers, method=method, batch_axes=len(batch), groups=groups)
    rows = shape[0] // groups
    for index in np.ndindex(batch):
        for first in range(0, shape[0], rows):
            alone = convla.orthonormalize(layers[index][first : first + rows], method=method)
            assert np.abs(got[index][first : first + rows] - alone).max() <= 1e-9


def test_the_filters_of_a_depthwise_layer_are_normalized() -> None:
    gradient = np.random.default_rng(6).standard_normal((20, 1, 3, 3))
    got = convla.orthonormalize(gradient, groups=20)
    assert np.abs(got - convla.normalized_gradient(gradient, per_filter=True)).max() <= 8 * EPS


def _muon(gradient: Array) -> Array:
    """Muon's iteration as it is published, on the full matrix, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.reshape(gradient.shape[0], -1).astype(np.float64)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).reshape(gradient.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 2e-3), (np.float64, 1e-9)])
@pytest.mark.parametrize("condition", [None, 1e4])
def test_newton_schulz_is_muon(shape: tuple[int, ...], dtype: Any, bound: float, condition: float | None) -> None:
    rows = (shape[0], int(np.prod(shape[1:])))
    gradient = (
        np.random.default_rng(0).standard_normal(shape) if condition is None else _with_condition(rows, condition)
    )
    gradient = gradient.reshape(shape).astype(dtype)
    assert np.abs(convla.orthonormalize(gradient, method="newton-schulz") - _muon(gradient)).max() <= bound


@pytest.mark.parametrize("lower_bound", [0.999, 0.5, 1e-2, 1e-5, 1e-9, 1e-12])
def test_the_polynomials_bring_the_interval_to_1(lower_bound: float) -> None:
    steps = polar_express_coefficients(lower_bound, 1e-13)
    x = np.concatenate([np.geomspace(lower_bound, 1, 4001), np.linspace(lower_bound, 1, 4001)])
    for a, b, c in steps:
        x = a * x + b * x**3 + c * x**5
    assert np.abs(x - 1).max() <= 1e-12


@pytest.mark.parametrize("lower_bound", [0.9, 0.3, 1e-3])
def test_each_polynomial_is_the_minimax_one(lower_bound: float) -> None:
    # Chebyshev: an odd quintic whose error takes its largest modulus four times, with alternating signs, is the best.
    a, b, c = polar_express_coefficients(lower_bound, 0.9)[0]
    x = np.linspace(lower_bound, 1, 200001)
    error = 1 - (a * x + b * x**3 + c * x**5)
    peak = np.abs(error).max()
    signs = np.sign(error[np.abs(error) >= peak * (1 - 1e-6)])
    assert np.count_nonzero(np.diff(signs)) == 3


@pytest.mark.parametrize(("lower_bound", "bound"), [(1e-5, 1e-7), (1e-2, None)])
def test_polar_express_reaches_down_to_its_lower_bound(lower_bound: float, bound: float | None) -> None:
    gradient = _with_condition((24, 60), 1e4)
    distance = _distance(
        convla.orthonormalize(gradient, method="polar-express", lower_bound=lower_bound), _polar(gradient)
    )
    assert distance <= bound if bound else 0.1 < distance < 1


def test_rtol_decides_what_counts_as_zero() -> None:
    gradient = _with_condition((8, 20), 1e4)
    for method in ("exact", "svd"):
        values = np.linalg.svd(convla.orthonormalize(gradient, method=method, rtol=1e-2), compute_uv=False)
        # Spaced evenly from 1 to 1e-4: half of them lie above 1e-2.
        assert np.allclose(np.sort(values), [0] * 4 + [1] * 4, atol=1e-9)


def _operator_by_dense_svd(gradient: Array, image: tuple[int, ...]) -> Array:
    """The polar factor of the dense circular matrix, read off as a kernel: its column of one input position."""
    c_out, c_in, *size = gradient.shape
    layer = convla.ConvOperator(gradient, image, boundary="circular").to_dense()
    u, _, vt = np.linalg.svd(layer)
    polar = (u[:, : vt.shape[0]] @ vt[: u.shape[1]]).reshape(c_out, *image, c_in, *image)
    kernel = np.empty(gradient.shape)
    for tap in np.ndindex(*size):
        # Output position 0 sees input position tap - (k - 1) // 2 through this tap.
        source = tuple((t - (k - 1) // 2) % n for t, k, n in zip(tap, size, image, strict=True))
        kernel[(..., *tap)] = polar[(slice(None), *(0,) * len(image), slice(None), *source)]
    return kernel


@pytest.mark.parametrize(
    ("shape", "image"), [((3, 3, 3), (7,)), ((4, 2, 2), (6,)), ((2, 3, 3, 2), (4, 5)), ((2, 2, 1, 2, 1), (2, 3, 2))]
)
def test_the_operators_polar_factor_is_that_of_the_dense_matrix(shape: tuple[int, ...], image: tuple[int, ...]) -> None:
    gradient = np.random.default_rng(5).standard_normal(shape)
    got = convla.orthonormalize_operator(gradient, image)
    assert np.abs(got - _operator_by_dense_svd(gradient, image)).max() <= 1e-11
    assert np.abs(convla.orthonormalize_operator(gradient * 1e150, image) - got).max() <= 1e-11


def test_the_groups_of_the_operator_are_layers_by_themselves() -> None:
    gradient = np.random.default_rng(5).standard_normal((6, 2, 3, 2))
    # The scale of a group does not matter, for none is small beside another.
    gradient[3:] *= 1e-20
    got = convla.orthonormalize_operator(gradient, (4, 5), groups=2)
    for part in (slice(0, 3), slice(3, 6)):
        assert (
            np.abs(got[part] - _operator_by_dense_svd(gradient[part] / np.abs(gradient[part]).max(), (4, 5))).max()
            <= 1e-11
        )


def test_the_operator_of_zero_is_zero() -> None:
    assert not convla.orthonormalize_operator(np.zeros((2, 2, 3), np.float32), (5,)).any()


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
def test_the_array_standard_is_enough(device: str) -> None:
    place = array_api_strict.Device(device)
    host = np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
    deficient = host.copy()
    deficient[4] = deficient[3]
    calls: list[Callable[[Any], Any]] = [
        lambda x, m=m: convla.orthonormalize(x, method=m)
        for m in METHODS  # type: ignore[misc]
    ]
    calls.append(lambda x: convla.orthonormalize_operator(x, (4,)))
    for gradient in (host, deficient):
        for call in calls:
            got = call(array_api_strict.asarray(gradient, device=place))
            assert (got.device, got.dtype) == (place, array_api_strict.float32)
            on_host = np.asarray(array_api_strict.asarray(got, device=array_api_strict.Device("CPU_DEVICE")))
            assert np.abs(on_host - call(gradient)).max() <= 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("method", METHODS)
def test_torch_tensors_come_back_as_they_went_in(method: str) -> None:
    torch = pytest.importorskip("torch")
    host = np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
    got = convla.orthonormalize(torch.tensor(host), method=method)
    assert got.dtype == torch.float32
    bound = MUON_SLOPE * np.finfo(np.float32).eps
    assert np.abs(got.numpy() - convla.orthonormalize(host, method=method)).max() <= bound


def test_read_only_and_integer_inputs_are_taken() -> None:
    gradient = np.arange(12).reshape(3, 4) ** 2
    gradient.setflags(write=False)
    assert np.array_equal(convla.orthonormalize(gradient), convla.orthonormalize(gradient.astype(np.float64)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gradient": np.ones(3)}, ShapeError, r"gradient must have at least 2 axes, of shape .* got shape \(3,\)"),
        ({"batch_axes": 2}, ShapeError, "gradient must have at least 4 axes"),
        ({"batch_axes": -1}, ValueError, "batch_axes must be at least 0, got -1"),
        ({"gradient": np.full((2, 3), np.nan)}, ValueError, "gradient must be finite"),
        ({"gradient": np.ones((2, 3), np.float16)}, TypeError, "gradient must hold float32, .* got dtype float16"),
        ({"gradient": np.ones((2, 0))}, ShapeError, "gradient must have no empty axis"),
        ({"method": "qr"}, ValueError, "method must be one of 'exact', 'svd', 'newton-schulz', .*got 'qr'"),
        ({"rank_deficient": "drop"}, ValueError, "rank_deficient must be one of 'partial', 'complete', got 'drop'"),
        ({"rtol": -1.0}, ValueError, "rtol must be between 0.0 and 1.0, got -1.0"),
        ({"groups": 3}, ShapeError, "groups must divide the 2 filters of gradient, got 3"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"lower_bound": 0.0}, ValueError, "lower_bound must be between 1e-12 and 1.0, got 0.0"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convla.orthonormalize(**({"gradient": np.ones((2, 3, 3))} | arguments))


@pytest.mark.parametrize(
    ("gradient", "image", "error", "message"),
    [
        (np.ones((2, 3)), (4,), ShapeError, "gradient must have at least 3 axes"),
        (np.ones((2, 3, 3)), (2,), ShapeError, r"image_shape must have one entry, .* got \(2,\) for shape"),
        (np.ones((2, 3, 3)), (4, 4), ShapeError, "image_shape must have one entry"),
        (np.ones((2, 3, 3)), (4.5,), TypeError, "every entry of image_shape must be an integer, got 4.5"),
        (np.full((2, 3, 3), np.inf), (4,), ValueError, "gradient must be finite"),
    ],
)
def test_bad_input_of_the_operator_is_named(gradient: Array, image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convla.orthonormalize_operator(gradient, image)
