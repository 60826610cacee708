"""Convolutional similarity against its definition in exact arithmetic, PyTorch, and inputs chosen to break it."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convla import (
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    convolutional_similarity_gradient,
    convolutional_similarity_hessian_product,
)
from convla.errors import EngineError, ShapeError
from tests.similarity_oracles import exactly, normalized_similarity, quadratic_gradient, similarity

SHAPES = [(4, 3, 5), (5, 2, 3), (3, 2, 1), (4, 3, 3, 3), (3, 2, 2, 4), (3, 2, 1, 1), (1, 2, 3, 3), (3, 2, 2, 3, 2)]
METHODS = ["autocorrelation", "spectral", "pairwise"]
U = 2.0**-53


def integers(shape: tuple[int, ...], seed: int = 0, high: int = 9) -> Any:
    return np.random.default_rng(seed).integers(-high, high + 1, shape)


def gaussian(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def steps(kernels: Any) -> int:
    """Return the m of the documented bounds: additions in a row, and the few roundings before and after them."""
    return 4 * (kernels.shape[0] + int(np.prod(kernels.shape[1:])) + 10)


def binomial_pair(degree: int) -> Any:
    """Return the coefficients of (1 + x)^degree and (1 - x)^degree: spectra that hardly meet."""
    kernel = np.array([1.0])
    for _ in range(degree):
        kernel = np.convolve(kernel, [1.0, 1.0])
    return np.stack([kernel, kernel * (-1.0) ** np.arange(degree + 1)])[:, None, :]


@functools.cache
def whole(shape: tuple[int, ...]) -> tuple[Any, int, Any]:
    """Return kernels of integers, and the value and the gradient by the definition."""
    kernels = integers(shape)
    exact = kernels.astype(object)
    return kernels, similarity(exact), quadratic_gradient(similarity, exact)


@pytest.mark.parametrize("shape", SHAPES)
class TestExactly:
    """Integers, where every method must agree with the definition to the last digit."""

    @pytest.mark.parametrize("method", ["auto", "autocorrelation", "pairwise"])
    @pytest.mark.parametrize("dtype", ["int64", "int8", object])
    def test_value(self, shape: tuple[int, ...], method: Any, dtype: Any) -> None:
        kernels, expected, _ = whole(shape)
        value = convolutional_similarity(kernels.astype(dtype), method=method)
        assert int(value) == expected
        assert int(convolutional_similarity(kernels.astype(dtype), method=method, pairs="ordered")) == 2 * int(value)

    @pytest.mark.parametrize("method", ["auto", "pairwise"])
    @pytest.mark.parametrize("dtype", ["int64", object])
    def test_gradient(self, shape: tuple[int, ...], method: Any, dtype: Any) -> None:
        kernels, right, expected = whole(shape)
        value, gradient = convolutional_similarity_and_gradient(kernels.astype(dtype), method=method)
        assert int(value) == right
        assert gradient.shape == kernels.shape
        assert np.all(gradient == expected)
        ordered = convolutional_similarity_gradient(kernels.astype(dtype), method=method, pairs="ordered")
        assert np.all(ordered == 2 * expected)

    def test_hessian_product(self, shape: tuple[int, ...]) -> None:
        kernels, direction = integers(shape).astype(object), integers(shape, seed=1).astype(object)

        def slope(step: int) -> Any:
            return convolutional_similarity_gradient(kernels + step * direction)

        # The gradient is cubic along a line, where this difference is exact.
        expected = (8 * (slope(1) - slope(-1)) - (slope(2) - slope(-2))) // 12
        for dtype in (object, "int64", "float64"):
            product = convolutional_similarity_hessian_product(kernels.astype(dtype), direction.astype(dtype))
            assert np.all(product == expected)  # integers below 2^53: floating-point sums of them are exact
            twice = convolutional_similarity_hessian_product(
                kernels.astype(dtype), direction.astype(dtype), pairs="ordered"
            )
            assert np.all(twice == 2 * expected)


class Exact(NamedTuple):
    """Kernels of multiples of 2^-20, exact in float32, and what belongs to them and to their moduli, rounded once."""

    kernels: Any
    value: float
    gradient: Any
    normalized: float
    absolute_value: float
    absolute_gradient: Any
    absolute_normalized: float


@functools.cache
def exact(shape: tuple[int, ...]) -> Exact:
    whole = np.rint(2**20 * gaussian(shape)).astype(int).astype(object)
    results = [
        (
            float(Fraction(similarity(w), 2**80)),
            (quadratic_gradient(similarity, w) / 2**60).astype(float),
            float(normalized_similarity(w)),
        )
        for w in (whole, abs(whole))
    ]
    return Exact((whole / 2**20).astype(float), *results[0], *results[1])


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
class TestFloatingPoint:
    """Every method and engine within its documented bound of the exact value."""

    def test_value_and_gradient(self, shape: tuple[int, ...], method: Any, engine: Any, dtype: str) -> None:
        case = exact(shape)
        value, gradient = convolutional_similarity_and_gradient(
            case.kernels.astype(dtype), method=method, engine=engine
        )
        assert value.dtype == gradient.dtype == dtype
        rounding = float(np.finfo(dtype).eps)
        relative = steps(case.kernels) * U
        assert abs(float(value) - case.value) <= relative * case.absolute_value + rounding * case.value
        bound = relative * case.absolute_gradient
        if method == "spectral":  # the transform mixes entries: a bound of the largest for all
            bound = np.full(shape, 4 * bound.max())
        assert np.all(abs(gradient - case.gradient) <= bound + rounding * abs(case.gradient))

    def test_normalized(self, shape: tuple[int, ...], method: Any, engine: Any, dtype: str) -> None:
        case = exact(shape)
        kernels = case.kernels.astype(dtype)
        value, gradient = convolutional_similarity_and_gradient(kernels, method=method, engine=engine, normalized=True)
        assert value.dtype == gradient.dtype == dtype
        rounding = float(np.finfo(dtype).eps)
        bound = steps(kernels) * U * case.absolute_normalized
        assert abs(float(value) - case.normalized) <= bound + rounding * case.normalized
        # Invariant along each filter, so no slope there; its terms are of the value's size, in the kernels' precision.
        size = max(case.normalized, 1.0)
        along = np.sum((kernels * gradient).reshape(shape[0], -1), axis=1, dtype=np.float64)
        assert np.all(abs(along) <= steps(kernels) * rounding * size)
        direction = gaussian(shape, seed=2)
        direction /= np.linalg.norm(direction)
        step = 1e-3
        f = [
            float(convolutional_similarity(case.kernels + t * step * direction, normalized=True, method="pairwise"))
            for t in (-2, -1, 1, 2)
        ]
        difference = (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * step)
        # The fourth-order difference is itself good to 1e-7 of a function that varies on a scale of 1.
        error = abs(float(np.sum(gradient * direction)) - difference)
        assert error <= (1e-7 + steps(kernels) * rounding) * size


def test_normalized_of_a_pair_is_its_similarity_over_both_energies() -> None:
    pair = gaussian((2, 3, 3, 3))
    energies = np.sum(pair**2, axis=(1, 2, 3))
    expected = float(convolutional_similarity(pair)) / energies.prod()
    assert float(convolutional_similarity(pair, normalized=True)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e-80, 1e80, 1e150, 1e300])
def test_normalized_is_invariant_at_extreme_scales(scale: float, method: Any) -> None:
    kernels = gaussian((4, 3, 3, 3))
    value, gradient = convolutional_similarity_and_gradient(kernels, normalized=True, method=method)
    kernels[1] *= scale
    other, scaled = convolutional_similarity_and_gradient(kernels, normalized=True, method=method)
    assert float(other) == pytest.approx(float(value), rel=1e-13)
    expected = gradient.copy()
    # Two steps, so that the quotient by a small scale stays in range until the last.
    expected[1] = expected[1] / np.sqrt(scale) / np.sqrt(scale)
    assert scaled == pytest.approx(expected, rel=1e-12)


@functools.cache
def scaled(exponents: tuple[int, ...]) -> tuple[Any, Fraction, Any]:
    """Return kernels of these sizes, and the exact value and gradient."""
    kernels = integers((3, 2, 3, 2)).astype(float) * np.array([2.0**e for e in exponents]).reshape(3, 1, 1, 1)
    exact = exactly(kernels)
    return kernels, similarity(exact), quadratic_gradient(similarity, exact)


class TestExtremeScales:
    """Kernels whose squares leave float64, where the result does not."""

    @pytest.mark.parametrize("method", ["autocorrelation", "spectral"])
    @pytest.mark.parametrize("exponents", [(-250, 250, 0), (-500, 500, -500), (500, -501, -400), (-1000, 990, -1010)])
    def test_value_and_gradient(self, method: Any, exponents: tuple[int, ...]) -> None:
        kernels, expected, slope = scaled(exponents)
        value, gradient = convolutional_similarity_and_gradient(kernels, method=method)
        assert abs(Fraction(float(value)) - expected) <= Fraction(1, 10**12) * expected
        for got, want in zip(gradient.reshape(3, -1), slope.reshape(3, -1), strict=True):
            largest = max(abs(x) for x in want)
            if largest < 2**1000:
                smallest = Fraction(2) ** -1074
                tolerance = Fraction(1, 10**12) * largest + smallest
                assert all(abs(Fraction(float(g)) - w) <= tolerance for g, w in zip(got, want, strict=True))
            else:
                assert np.isinf(got).any()

    @pytest.mark.parametrize("scale", [1e-150, 1e150])
    def test_value_out_of_range_is_what_ieee_says(self, scale: float) -> None:
        value, gradient = convolutional_similarity_and_gradient(scale * gaussian((4, 3, 3, 3)))
        assert float(value) == (0.0 if scale < 1 else np.inf)
        assert np.all(gradient == 0) if scale < 1 else np.all(np.isinf(gradient))

    def test_zero_filters(self) -> None:
        kernels = gaussian((4, 3, 3, 3))
        kernels[[0, 2]] = 0
        value, gradient = convolutional_similarity_and_gradient(kernels)
        assert float(value) == pytest.approx(float(similarity(kernels)), rel=1e-14)
        assert np.all(gradient[[0, 2]] == 0)
        assert float(convolutional_similarity(np.zeros((3, 2, 3)))) == 0
        with pytest.raises(ValueError, match=r"got kernels\[0\] = 0"):
            convolutional_similarity(kernels, normalized=True)

    def test_one_large_filter_does_not_swallow_the_others(self) -> None:
        kernels = gaussian((3, 2, 3))
        kernels[1] *= 2.0**40
        slope = quadratic_gradient(similarity, exactly(kernels)).astype(float)
        # T - A_1 by subtraction would leave a relative error of 2^(80 - 53).
        assert convolutional_similarity_gradient(kernels)[1] == pytest.approx(slope[1], rel=1e-12)

    def test_float32_of_any_scale(self) -> None:
        kernels = (1e-30 * gaussian((4, 3, 3, 3))).astype(np.float32)
        value, gradient = convolutional_similarity_and_gradient(kernels)
        assert float(value) == 0.0
        assert np.all(gradient == 0)
        kernels[0] *= np.float32(1e30)
        kernels[1] *= np.float32(1e40 / 1e10)
        expected = float(similarity(exactly(kernels)))
        assert float(convolutional_similarity(kernels)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("degree", [8, 16, 24])
def test_nearly_disjoint_spectra(degree: int) -> None:
    kernels = binomial_pair(degree)
    exact = exactly(kernels)
    expected = float(similarity(exact))
    absolute = float(similarity(exactly(abs(kernels))))
    energies = float(np.prod([sum(k * k) for k in exact[:, 0]]))
    frequencies = 2 * degree + 1
    m = steps(kernels)
    error = {method: abs(float(convolutional_similarity(kernels, method=method)) - expected) for method in METHODS}
    assert error["autocorrelation"] <= m * U * absolute
    assert error["pairwise"] <= m * U * np.sqrt(expected * absolute) + m**2 * U**2 * absolute
    spread = np.sqrt(energies * frequencies * expected)
    assert error["spectral"] <= m * U * spread + m**2 * U**2 * frequencies * energies
    if degree == 24:  # the first loses every digit here, the other two keep some
        assert error["spectral"] < 1e-3 * expected
        assert error["pairwise"] < 1e-3 * expected


def test_float32_of_a_large_layer() -> None:
    # Multiples of 2^-9 with 8 bits: exact in float32, and their squares' sums are exact in int64.
    whole = np.random.default_rng(5).integers(-128, 129, (512, 512, 3, 3))
    kernels = (whole / 512).astype(np.float32)
    lags = np.zeros((512, 5, 5), dtype=np.int64)
    for p in np.ndindex(3, 3):
        for q in np.ndindex(3, 3):
            product = whole[:, :, p[0], p[1]] * whole[:, :, q[0], q[1]]
            lags[:, q[0] - p[0] + 2, q[1] - p[1] + 2] += product.sum(axis=1)
    rows = lags.reshape(512, -1).astype(object)
    total = rows.sum(axis=0)
    expected = Fraction(int((total * total).sum() - (rows * rows).sum()), 2) / 512**4
    for engine in ("numba", "reference"):
        value, gradient = convolutional_similarity_and_gradient(kernels, engine=engine)
        assert abs(Fraction(float(value)) - expected) <= Fraction(1, 2**24) * expected  # half a unit of float32
        weights = (total - rows)[7].reshape(5, 5)
        slope = sum(
            2 * int(weights[r + 2, s + 2]) * int(whole[7, 11, 1 + r, 1 + s]) for r in (-1, 0, 1) for s in (-1, 0, 1)
        )
        assert float(gradient[7, 11, 1, 1]) == pytest.approx(slope / 512**3, rel=2.0**-23)


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    import numba

    kernels = gaussian((130, 101, 3, 3)).astype(np.float32)  # large enough to run in parallel
    expected = convolutional_similarity_and_gradient(kernels, engine="numba")
    before = numba.get_num_threads()
    if threads > before:
        pytest.skip(f"this process has {before} thread")
    numba.set_num_threads(threads)
    try:
        value, gradient = convolutional_similarity_and_gradient(kernels, engine="numba")
    finally:
        numba.set_num_threads(before)
    assert float(value) == float(expected[0])
    assert np.array_equal(gradient, expected[1])


@pytest.mark.command
@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_memory_layout_does_not_matter(engine: Any) -> None:
    kernels = gaussian((4, 3, 3, 3))
    expected = convolutional_similarity_and_gradient(kernels, engine=engine)
    strided = np.zeros((4, 6, 3, 6))[:, ::2, :, ::2]
    strided[...] = kernels
    frozen = kernels.copy()
    frozen.flags.writeable = False
    reversed_view = kernels[::-1, :, ::-1].copy()[::-1, :, ::-1]
    for other in (strided, np.asfortranarray(kernels), frozen, reversed_view):
        value, gradient = convolutional_similarity_and_gradient(other, engine=engine)
        if engine == "numba":
            assert float(value) == float(expected[0])
            assert np.array_equal(gradient, expected[1])
        else:  # a matrix product may sum in another order for other strides
            bounds = convolutional_similarity_and_gradient(abs(kernels))
            assert abs(float(value) - float(expected[0])) <= 2 * steps(kernels) * U * float(bounds[0])
            assert np.all(abs(gradient - expected[1]) <= 2 * steps(kernels) * U * bounds[1])


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 2**32 - 1),
)
def test_methods_agree_on_any_shape(shape: tuple[int, ...], seed: int) -> None:
    kernels = integers(shape, seed)
    expected = int(convolutional_similarity(kernels, method="pairwise"))
    assert int(convolutional_similarity(kernels)) == expected
    assert float(convolutional_similarity(kernels.astype(float), engine="numba")) == expected
    spectral = float(convolutional_similarity(kernels.astype(float), method="spectral"))
    assert abs(spectral - expected) <= steps(kernels) * U * float(similarity(abs(kernels).astype(object)))


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 1e-150])
def test_array_api_strict(device: str, method: Any, scale: float) -> None:
    kernels = scale * gaussian((4, 3, 3, 2))
    strict = array_api_strict.asarray(kernels, device=array_api_strict.Device(device))
    for normalized in (False, True):
        value, gradient = convolutional_similarity_and_gradient(strict, method=method, normalized=normalized)
        expected = convolutional_similarity_and_gradient(
            kernels, method=method, normalized=normalized, engine="reference"
        )
        assert value.device == gradient.device == strict.device
        assert float(value) == pytest.approx(float(expected[0]), rel=1e-13)
        host = np.asarray(gradient.to_device(array_api_strict.Device("CPU_DEVICE")))
        assert host == pytest.approx(expected[1], rel=1e-11, abs=1e-13 * abs(expected[1]).max())


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorch_convolutions_and_autograd(dtype: str) -> None:
    import torch

    kernels = torch.tensor(gaussian((6, 4, 3, 3)), dtype=getattr(torch, dtype))
    leaf = kernels.double().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        for j in range(i):
            image = leaf[i][:, None]
            total = total + (torch.nn.functional.conv2d(image, leaf[j][:, None], padding=2) ** 2).sum()
    total.backward()
    value, gradient = convolutional_similarity_and_gradient(kernels)
    assert value.dtype == gradient.dtype == kernels.dtype
    rounding = float(np.finfo(dtype).eps)
    assert float(value) == pytest.approx(float(total.detach()), rel=10 * rounding)
    scale = float(leaf.grad.abs().max())
    assert np.asarray(gradient) == pytest.approx(
        np.asarray(leaf.grad), rel=4 * rounding, abs=steps(kernels) * U * scale
    )


class TestBadInput:
    @pytest.mark.parametrize(
        ("kernels", "error", "message"),
        [
            ("abc", TypeError, "kernels must be an array of real numbers|kernels must hold real numbers"),
            (np.ones((2, 3)), ShapeError, r"kernels must have at least 3 axes"),
            (np.ones((2,) * 6), ShapeError, r"kernels must have 1 to 3 axes after its channels"),
            (np.ones((2, 0, 3)), ShapeError, r"kernels must have no empty axis"),
            (np.full((2, 1, 3), np.nan), ValueError, "kernels must be finite"),
            (np.full((2, 1, 3), np.inf, dtype=np.float32), ValueError, "kernels must be finite"),
            (np.ones((2, 1, 3), dtype=complex), TypeError, "kernels must hold real numbers"),
            (np.ones((2, 1, 3), dtype=np.float16), TypeError, "kernels must be float32, float64 or exact"),
            (np.full((2, 1, 3), 2**40), OverflowError, "beyond the largest int64"),
            (np.full((2, 1, 3), 2**16), OverflowError, "beyond the largest int64"),
            (np.full((2, 1, 1), -(2**63)), OverflowError, "beyond the largest int64"),
            (np.full((2, 1, 1), 2**63, dtype=np.uint64), OverflowError, "beyond the largest int64"),
        ],
    )
    @pytest.mark.parametrize("function", [convolutional_similarity, convolutional_similarity_gradient])
    def test_kernels(self, function: Any, kernels: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            function(kernels)

    @pytest.mark.parametrize("method", METHODS)
    def test_not_finite_by_any_method(self, method: Any) -> None:
        kernels = gaussian((2, 2, 3))
        kernels[1, 1, 1] = np.nan
        with pytest.raises(ValueError, match="kernels must be finite"):
            convolutional_similarity(kernels, method=method)

    def test_options(self) -> None:
        kernels = gaussian((2, 2, 3))
        with pytest.raises(ValueError, match="method must be one of 'auto', 'autocorrelation', 'spectral', 'pairwise'"):
            convolutional_similarity(kernels, method="fft")
        with pytest.raises(ValueError, match="pairs must be one of 'unordered', 'ordered', got 'all'"):
            convolutional_similarity(kernels, pairs="all")
        with pytest.raises(ValueError, match="engine must be one of"):
            convolutional_similarity(kernels, engine="gpu")
        with pytest.raises(TypeError, match="'spectral' needs floating-point kernels"):
            convolutional_similarity(integers((2, 2, 3)), method="spectral")
        with pytest.raises(TypeError, match="normalized similarity needs floating-point kernels"):
            convolutional_similarity(integers((2, 2, 3)).astype(object), normalized=True)
        with pytest.raises(EngineError, match=r"takes NumPy arrays of float32 or float64, got .* of dtype int64"):
            convolutional_similarity(integers((2, 2, 3)), engine="numba")

    def test_hessian_product(self) -> None:
        kernels = gaussian((2, 2, 3))
        with pytest.raises(ShapeError, match="kernels and direction must have the same shape"):
            convolutional_similarity_hessian_product(kernels, kernels[:1])
        with pytest.raises(TypeError, match="kernels and direction must have one dtype"):
            convolutional_similarity_hessian_product(kernels, kernels.astype(np.float32))
        with pytest.raises(ValueError, match="direction must be finite"):
            convolutional_similarity_hessian_product(kernels, np.full((2, 2, 3), np.inf))
        with pytest.raises(OverflowError, match="Hessian product leaves the range of float64"):
            convolutional_similarity_hessian_product(1e120 * kernels, 1e120 * kernels)
        with pytest.raises(OverflowError, match="beyond the largest int64"):
            convolutional_similarity_hessian_product(np.full((2, 2, 3), 2**20), np.full((2, 2, 3), 2**22))

    def test_integers_that_just_fit(self) -> None:
        kernels = np.full((2, 1, 1), 2**15)
        assert int(convolutional_similarity(kernels)) == 2**60
        kernels[0] = -(2**15) * 2
        assert int(convolutional_similarity(kernels)) == 2**62
        assert convolutional_similarity_gradient(kernels).tolist() == [[[-(2**47)]], [[2**48]]]
        big = np.full((2, 1, 1), 2**40, dtype=object)
        assert int(convolutional_similarity(big)) == 2**160
