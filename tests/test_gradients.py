"""Channel-directed and smoothed gradients against their metrics, dense matrices and exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convla
from convla import gradients
from convla.errors import EngineError, ShapeError
from convla.testing import gamma
from tests.designs import in_turn

Array = np.ndarray[Any, Any]

SHAPES = [(1, 1, 1, 1), (7, 3, 2, 2), (2, 5, 3), (64, 1, 3, 3), (1, 4, 3), (5,), (300, 11, 3)]


def _fractions(length: int, seed: int) -> Array:
    draws = np.random.default_rng(seed).integers(-9, 10, (2, length))
    return np.array([Fraction(int(a), int(abs(b)) + 1) for a, b in draws.T], dtype=object)


def _draw(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _mean_and_difference(n: int) -> tuple[Array, Array]:
    """The matrices of the mean along an axis of length n and of the periodic difference, exactly."""
    mean = np.full((n, n), Fraction(1, n), dtype=object)
    difference = np.array([[(i == j - 1) - (i == j) for j in range(n)] for i in range(n)], dtype=object)
    difference[n - 1, 0] += 1
    return mean, difference


def _metric_h0(n: int, lam: Fraction) -> Array:
    """CDG Eq. (4) as a matrix, its factor 1/O as printed."""
    mean, _ = _mean_and_difference(n)
    deviation = np.array([[Fraction(int(i == j)) for j in range(n)] for i in range(n)], dtype=object) - mean
    return mean.T @ mean / n + lam / n * deviation.T @ deviation


def _metric_sobolev(n: int, lam: Fraction) -> Array:
    """CDG Eq. (6) as a matrix at spacing 1, its factor O as printed."""
    mean, difference = _mean_and_difference(n)
    return mean.T @ mean / n + lam * n * difference.T @ difference


@given(n=st.integers(1, 9), lam=st.fractions(Fraction(1, 50), 50), seed=st.integers(0, 2**32 - 1))
def test_the_metric_of_eq_4_gives_eq_8_times_the_number_of_channels(n: int, lam: Fraction, seed: int) -> None:
    f = _fractions(n, seed)
    g = convla.reweighted_gradient(f, lam)
    # <g, k> = f . k for every k, in the metric: the definition of the gradient, Eq. (1).
    assert (_metric_h0(n, lam) @ (n * g) == f).all()


@given(n=st.integers(1, 9), mu=st.fractions(0, 50), seed=st.integers(0, 2**32 - 1))
def test_figure_3_is_eq_8_with_lambda_plus_1_up_to_scale(n: int, mu: Fraction, seed: int) -> None:
    f = _fractions(n, seed)
    figure_3 = f + mu * (np.sum(f) / n)
    assert (figure_3 == (1 + mu) * convla.reweighted_gradient(f, 1 + mu)).all()


@given(n=st.integers(1, 9), lam=st.fractions(Fraction(1, 50), 50), seed=st.integers(0, 2**32 - 1))
def test_the_metric_of_eq_6_gives_the_sobolev_gradient(n: int, lam: Fraction, seed: int) -> None:
    f = _fractions(n, seed)
    g = convla.sobolev_gradient(f, lam)
    assert (_metric_sobolev(n, lam) @ (n * g) == f).all()


@given(n=st.integers(1, 12), lam=st.fractions(Fraction(1, 50), 50), seed=st.integers(0, 2**32 - 1))
def test_the_riemann_sum_is_off_by_a_constant(n: int, lam: Fraction, seed: int) -> None:
    f = _fractions(n, seed)
    exact, riemann = (convla.sobolev_gradient(f, lam, discretization=d) for d in ("circulant", "riemann"))
    assert (riemann - exact == np.sum(f) / n / (12 * lam * n * n)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_riemann_sum_is_the_sum_of_eq_9(n: int) -> None:
    lam, f = Fraction(3, 7), _fractions(n, 1)

    def kernel(o: Fraction) -> Fraction:
        return 1 + (o * o - o + Fraction(1, 6)) / (2 * lam)

    expected = [sum(kernel(Fraction((j - i) % n, n)) * f[i] for i in range(n)) / n for j in range(n)]
    assert list(convla.sobolev_gradient(f, lam, discretization="riemann")) == expected


def test_the_discrete_gradient_tends_to_the_integral_at_second_order() -> None:
    # f = 1 + cos(2 pi o) in the continuum: g = 1 + cos(2 pi o) / (lam (2 pi)^2).
    errors = []
    for n in (16, 32, 64):
        wave = np.cos(2 * np.pi * np.arange(n) / n)
        errors.append(np.abs(convla.sobolev_gradient(1 + wave, 0.5) - 1 - wave / (2 * np.pi**2)).max())
    assert np.allclose(np.array(errors[:-1]) / errors[1:], 4, rtol=0.02)


@given(
    n=st.integers(1, 9),
    lam=st.fractions(Fraction(1, 50), 50),
    blend=st.fractions(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_blend_adds_the_plain_gradient(n: int, lam: Fraction, blend: Fraction, seed: int) -> None:
    f = _fractions(n, seed)
    assert (convla.sobolev_gradient(f, lam, blend=blend) == convla.sobolev_gradient(f, lam) + blend * f).all()


@given(n=st.integers(1, 9), lam=st.fractions(Fraction(1, 50), 50), seed=st.integers(0, 2**32 - 1))
def test_each_gradient_descends(n: int, lam: Fraction, seed: int) -> None:
    f = _fractions(n, seed)
    for g, metric in (
        (convla.reweighted_gradient(f, lam), _metric_h0(n, lam)),
        (convla.sobolev_gradient(f, lam), _metric_sobolev(n, lam)),
    ):
        # f . g is the squared norm of the gradient in its metric (times n as above): positive unless f = 0.
        assert f @ g == n * (g @ metric @ g)
        assert (f @ g > 0) == bool(np.any(f != 0))


@given(permutation=st.permutations(range(6)), seed=st.integers(0, 2**32 - 1))
def test_the_reweighted_gradient_commutes_with_permutations(permutation: list[int], seed: int) -> None:
    f = _fractions(6, seed)
    g = convla.reweighted_gradient(f, Fraction(5, 2))
    assert (convla.reweighted_gradient(f[permutation], Fraction(5, 2)) == g[permutation]).all()


def test_the_sobolev_gradient_does_not_commute_with_permutations() -> None:
    f, swap = np.array([Fraction(x) for x in (1, 0, 0, 0)]), [0, 2, 1, 3]
    g = convla.sobolev_gradient(f, 1)
    assert not (convla.sobolev_gradient(f[swap], 1) == g[swap]).all()
    # It does with rotations, being periodic.
    assert (convla.sobolev_gradient(np.roll(f, 1), 1) == np.roll(g, 1)).all()


def _dense(operation: str, f: Array, axis: int | None, weight: float, blend: float = 0.0) -> Array:
    """The same gradient by solving with the dense metric, in float64."""
    wide = np.asarray(f, np.float64)
    rows = wide.reshape(1, -1) if axis is None else np.moveaxis(wide, axis, -1)
    n = rows.shape[-1]
    mean, difference = (np.array(m, float) for m in _mean_and_difference(n))
    metric = {
        "reweighted": mean + weight * (np.eye(n) - mean),
        "sobolev": mean + weight * n * n * difference.T @ difference,
        "laplacian": np.eye(n) + weight * difference.T @ difference,
    }[operation]
    g = np.linalg.solve(metric, rows.reshape(-1, n).T).T.reshape(rows.shape) + blend * rows
    return g.reshape(f.shape) if axis is None else np.moveaxis(g, -1, axis)


def _tolerance(f: Array, weight: float, axis: int | None, smoothing: bool) -> float:
    """A bound on the error of sweeps and of the dense solve.

    Each is at most a modest number of sums of n terms, every term bounded by the largest entry times the largest
    eigenvalue of the inverse metric (1 or 1/lambda); the result is rounded once to the array's dtype.
    """
    n = f.size if axis is None else f.shape[axis]
    amplification = 1.0 if smoothing else 1.0 + 1.0 / weight
    condition = 1 + 4 * weight if smoothing else max(weight, 1 / weight, 4 * weight * n * n)
    terms = gamma(20 * n, np.float64) * condition + 2 * float(np.finfo(f.dtype).eps)
    return terms * amplification * float(np.abs(f).max())


@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "engine", "weight"),
    in_turn(SHAPES, (0, -1, None), (np.float32, np.float64), ("reference", "numba"), last=(0.05, 1.0, 40.0)),
)
def test_the_sweeps_solve_the_dense_systems(
    shape: tuple[int, ...], axis: int | None, dtype: Any, engine: Any, weight: float
) -> None:
    f = _draw(shape, dtype)
    if axis is None and f.size > 600:
        f = f[:3]
    for name, got in (
        ("reweighted", convla.reweighted_gradient(f, weight, axis=axis, engine=engine)),
        ("sobolev", convla.sobolev_gradient(f, weight, axis=axis, engine=engine)),
        ("laplacian", convla.laplacian_smoothing(f, weight, axis=axis, method="sweeps", engine=engine)),
    ):
        assert got.dtype == dtype
        bound = _tolerance(f, weight, axis, name == "laplacian")
        assert np.abs(got - _dense(name, f, axis, weight)).max() <= bound, name


@pytest.mark.parametrize(("shape", "axis"), [((21, 9000), 0), ((3, 19, 300), 1), ((12, 1000, 70), 1), ((2, 3001), 1)])
def test_tiles_cover_every_column(shape: tuple[int, ...], axis: int) -> None:
    # Sizes that no number of rows or columns taken together divides, and more columns than one tile holds.
    f = _draw(shape, np.float32)
    for name, call in (
        ("reweighted", lambda engine: convla.reweighted_gradient(f, 2.0, axis=axis, engine=engine)),
        ("sobolev", lambda engine: convla.sobolev_gradient(f, 2.0, axis=axis, blend=0.5, engine=engine)),
        (
            "laplacian",
            lambda engine: convla.laplacian_smoothing(f, 2.0, axis=axis, method="sweeps", engine=engine),
        ),
    ):
        bound = 2 * _tolerance(f, 2.0, axis, name == "laplacian")
        assert np.abs(call("numba") - call("reference")).max() <= bound, name


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_the_blend_is_in_every_engine(engine: Any) -> None:
    f = _draw((6, 2, 3))
    got = convla.sobolev_gradient(f, 2.0, blend=0.75, engine=engine)
    assert np.abs(got - _dense("sobolev", f, 0, 2.0, 0.75)).max() <= _tolerance(f, 2.0, 0, False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_fft_smooths_as_the_sweeps_do(shape: tuple[int, ...], axis: int | None, dtype: Any) -> None:
    f = _draw(shape, dtype)
    swept, transformed = (convla.laplacian_smoothing(f, 3.0, axis=axis, method=m) for m in ("sweeps", "fft"))
    assert swept.dtype == transformed.dtype == dtype
    # The transform's error grows with the logarithm of its length, relative to the norm of a column.
    n = f.size if axis is None else f.shape[axis]
    bound = float(np.finfo(dtype).eps) * (4 + 4 * math.log2(n)) * np.sqrt(n) * np.abs(f).max()
    assert np.abs(swept - transformed).max() <= bound


@pytest.mark.parametrize("sigma", [0.0, 1e-300, 1e-8, 1e8, 1e30, 1e300])
@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_any_sigma_smooths(sigma: float, engine: Any) -> None:
    f = _draw((9, 2, 3))
    got = convla.laplacian_smoothing(f, sigma, axis=0, method="sweeps", engine=engine)
    # The eigenvalues of the smoothing, 1 / (1 + 4 sigma sin^2), with no linear system to be ill-conditioned.
    frequencies = np.fft.rfft(f, axis=0) / (1 + 4 * sigma * np.sin(np.pi * np.arange(5) / 9) ** 2)[:, None, None]
    assert np.abs(got - np.fft.irfft(frequencies, n=9, axis=0)).max() <= gamma(200, np.float64) * np.abs(f).max()


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_scale_passes_through(scale: float) -> None:
    f = _draw((8, 3))
    for call in (
        lambda x: convla.reweighted_gradient(x, 2.0),
        lambda x: convla.sobolev_gradient(x, 2.0),
        lambda x: convla.laplacian_smoothing(x, 2.0),
        lambda x: convla.laplacian_smoothing(x, 2.0, method="fft"),
    ):
        assert np.allclose(call(f * scale) / scale, call(f), rtol=0, atol=gamma(100, np.float64) * np.abs(f).max())


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalized_gradients_have_length_1(scale: float, dtype: Any) -> None:
    f = (_draw((6, 4, 3)) * (scale if dtype == np.float64 else scale**0.25)).astype(dtype)
    f[2] = 0
    layer, filters = convla.normalized_gradient(f), convla.normalized_gradient(f, per_filter=True)
    eps = float(np.finfo(dtype).eps)
    assert abs(np.linalg.norm(layer.astype(np.float64)) - 1) <= 4 * eps
    lengths = np.linalg.norm(filters.reshape(6, -1).astype(np.float64), axis=1)
    assert np.abs(lengths - [1, 1, 0, 1, 1, 1]).max() <= 4 * eps
    # The direction stays: every entry is the gradient's times one positive number.
    unit = f.astype(np.float64) / np.abs(f).max()
    assert np.allclose(layer, unit / np.linalg.norm(unit), rtol=4 * eps, atol=0)


def test_zero_stays_zero() -> None:
    zero = np.zeros((4, 3, 2))
    assert not convla.normalized_gradient(zero).any()
    assert not convla.sobolev_gradient(zero, 1.0).any()


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
def test_the_array_standard_is_enough(device: str) -> None:
    place = array_api_strict.Device(device)
    host = _draw((5, 3, 2), np.float32)
    f = array_api_strict.asarray(host, device=place)
    for call in (
        lambda x: convla.reweighted_gradient(x, 2.0),
        lambda x: convla.sobolev_gradient(x, 2.0, axis=1, blend=0.5),
        lambda x: convla.sobolev_gradient(x, 2.0, discretization="riemann"),
        lambda x: convla.laplacian_smoothing(x, 2.0, method="sweeps"),
        lambda x: convla.laplacian_smoothing(x, 2.0, method="fft"),
        lambda x: convla.normalized_gradient(x, per_filter=True),
    ):
        got = call(f)
        assert got.device == place
        assert got.dtype == array_api_strict.float32
        on_host = np.asarray(array_api_strict.asarray(got, device=array_api_strict.Device("CPU_DEVICE")))
        assert np.allclose(on_host, call(host), rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(host).max())


@pytest.mark.torch
def test_torch_tensors_come_back_as_they_went_in() -> None:
    torch = pytest.importorskip("torch")
    host = _draw((5, 3, 2), np.float32)
    f = torch.tensor(host)
    for call in (
        lambda x: convla.reweighted_gradient(x, 2.0),
        lambda x: convla.sobolev_gradient(x, 2.0),
        lambda x: convla.laplacian_smoothing(x, 2.0, axis=0),
        lambda x: convla.normalized_gradient(x),
    ):
        got = call(f)
        assert got.dtype == torch.float32
        assert np.allclose(got.numpy(), call(host), rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(host).max())


def test_read_only_and_strided_inputs_are_taken() -> None:
    f = _draw((6, 8, 2))
    strided, plain = f[::2, ::-1], np.ascontiguousarray(f[::2, ::-1])
    strided.setflags(write=False)
    for call in (
        lambda x: convla.reweighted_gradient(x, 2.0),
        lambda x: convla.sobolev_gradient(x, 2.0),
        lambda x: convla.laplacian_smoothing(x, 2.0),
    ):
        assert np.array_equal(call(strided), call(plain))


def test_integers_are_taken_as_float64() -> None:
    f = np.arange(12).reshape(4, 3)
    assert np.array_equal(convla.sobolev_gradient(f, 1.0), convla.sobolev_gradient(f.astype(np.float64), 1.0))


def test_auto_smooths_by_fft_where_nothing_is_compiled() -> None:
    f = array_api_strict.asarray(_draw((5, 3)))
    expected = gradients.laplacian_smoothing(f, 2.0, method="fft")
    assert bool(array_api_strict.all(gradients.laplacian_smoothing(f, 2.0) == expected))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_bad_entry_anywhere_is_found(bad: float, engine: Any, dtype: Any) -> None:
    for index in np.ndindex(6, 3):
        f = _draw((6, 3), dtype)
        f[index] = bad
        for call in (
            lambda x: convla.reweighted_gradient(x, 2.0, engine=engine),
            lambda x: convla.reweighted_gradient(x, 1.0, axis=1, engine=engine),
            lambda x: convla.sobolev_gradient(x, 2.0, axis=None, engine=engine),
            lambda x: convla.sobolev_gradient(x, 2.0, discretization="riemann"),
            lambda x: convla.laplacian_smoothing(x, 0.0, method="sweeps", engine=engine),
        ):
            with pytest.raises(ValueError, match="gradient must be finite"):
                call(f)


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_a_sum_that_overflows_is_an_error(engine: Any) -> None:
    f = np.full((4, 3), 1.7e308)
    for call in (
        lambda: convla.reweighted_gradient(f, 2.0, engine=engine),
        lambda: convla.sobolev_gradient(f, 2.0, engine=engine),
        lambda: convla.sobolev_gradient(f, 2.0, discretization="riemann"),
        lambda: convla.laplacian_smoothing(f, 2.0, method="sweeps", engine=engine),
        lambda: convla.laplacian_smoothing(f, 2.0, method="fft"),
    ):
        with pytest.raises(OverflowError, match="gradient is finite, and its transform beyond float64"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: convla.reweighted_gradient(f, 0.0), ValueError, "lam must be positive, got 0.0"),
        (lambda f: convla.reweighted_gradient(f, "1"), TypeError, "lam must be a real number, got '1'"),
        (lambda f: convla.reweighted_gradient(f, np.nan), ValueError, "lam must be finite"),
        (
            lambda f: convla.reweighted_gradient(f.astype(int).astype(object), Fraction(-1)),
            ValueError,
            "lam must be positive",
        ),
        (lambda f: convla.reweighted_gradient(f, 1.0, axis=2), ShapeError, r"axis must be between -2 and 1 .* got 2"),
        (lambda f: convla.reweighted_gradient(f, 1.0, axis=0.5), TypeError, "axis must be an integer, got 0.5"),
        (lambda f: convla.reweighted_gradient(f * np.nan, 1.0), ValueError, "gradient must be finite"),
        (lambda f: convla.reweighted_gradient(f * np.inf, 1.0), ValueError, "gradient must be finite"),
        (lambda f: convla.reweighted_gradient(f[:0], 1.0), ShapeError, "gradient must have no empty axis"),
        (lambda f: convla.reweighted_gradient(f[0, 0], 1.0), ShapeError, "gradient must have at least 1 axes"),
        (lambda f: convla.reweighted_gradient(f * 1j, 1.0), TypeError, "gradient must hold real numbers"),
        (
            lambda f: convla.reweighted_gradient(f.astype(np.float16), 1.0),
            TypeError,
            "gradient must hold float32, float64 or integers, got dtype float16",
        ),
        (lambda f: convla.reweighted_gradient(f, 1.0, engine="gpu"), ValueError, "engine must be one of"),
        (
            lambda f: convla.reweighted_gradient(f, 1.0, engine="cuda"),
            EngineError,
            "engine 'cuda' (needs CuPy|takes CuPy arrays)",
        ),
        (lambda f: convla.sobolev_gradient(f, -1.0), ValueError, "lam must be positive, got -1.0"),
        (lambda f: convla.sobolev_gradient(f, 1.0, blend=-0.5), ValueError, "blend must be at least 0, got -0.5"),
        (
            lambda f: convla.sobolev_gradient(f, 1.0, discretization="fem"),
            ValueError,
            "discretization must be one of 'circulant', 'riemann', got 'fem'",
        ),
        (
            lambda f: convla.sobolev_gradient(f, 1.0, discretization="riemann", engine="numba"),
            ValueError,
            "engine must be 'auto' or 'reference' for discretization 'riemann', got 'numba'",
        ),
        (lambda f: convla.laplacian_smoothing(f, -1.0), ValueError, "sigma must be at least 0.0, got -1.0"),
        (lambda f: convla.laplacian_smoothing(f, 1.0, method="dct"), ValueError, "method must be one of"),
        (lambda f: convla.laplacian_smoothing(f.astype(int).astype(object), 1.0), TypeError, "gradient must hold"),
        (lambda f: convla.normalized_gradient(f.astype(np.float16)), TypeError, "gradient must hold float32"),
        (lambda f: convla.normalized_gradient(f[0, 0]), ShapeError, "gradient must have at least 1 axes"),
    ],
)
def test_bad_input_is_named(call: Callable[[Array], object], error: type[Exception], message: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        call(np.ones((3, 2)))
