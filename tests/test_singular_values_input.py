"""Singular values of kernels of any scale and library, and what bad input raises."""

from __future__ import annotations

import math
import warnings
from typing import Any

import array_api_strict
import numpy as np
import pytest

from convla import (
    ConvOperator,
    condition_number,
    largest_singular_value,
    singular_value_bounds,
    singular_values,
    smallest_singular_value,
    vstack,
)
from convla.errors import ShapeError
from convla.spectra import Lanczos
from tests.spectra_oracles import dense_values


@pytest.mark.parametrize(("dtype", "scales"), [(np.float64, (1e-150, 1e150, 5e-324)), (np.float32, (1e-30, 1e30))])
def test_huge_and_tiny_kernels(dtype: Any, scales: tuple[float, ...]) -> None:
    kernel = np.array([[[3.0, -1.0, 2.0]]], dtype)
    for scale in scales:
        operator = ConvOperator(np.rint(kernel) * dtype(scale), (5,))
        unit = dense_values(ConvOperator(kernel, (5,)))
        for found, exact in (
            (float(singular_values(operator).values[0]), unit[0]),
            (largest_singular_value(operator, method="lanczos").value, unit[0]),
            (smallest_singular_value(operator).value, unit[-1]),
        ):
            assert abs(found / scale - exact) <= max(1e-5 if dtype is np.float32 else 1e-9, 2 * (scale < 1e-300))
        lower, upper, *_ = singular_value_bounds(operator)
        assert lower / scale <= unit[0] * (1 + 1e-6)
        assert unit[0] * (1 - 1e-6) <= upper / scale or scale < 1e-300


def test_a_value_beyond_the_dtype_is_an_error() -> None:
    with pytest.raises(OverflowError, match="scale the kernel"):
        largest_singular_value(ConvOperator(np.full((1, 1, 3), 1.7e308), (5,)))


def test_a_smallest_value_too_small_for_squares_of_the_inverse() -> None:
    # Its inverse has entries of 2^j, j < 1200: their squares are beyond float64.
    result = smallest_singular_value(ConvOperator(np.array([[[1.0, 0.5, 0.0]]]), (1200,)), method="inverse")
    assert result.status == "rank deficient"
    assert result.value <= 2.0**-300


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect"])
def test_the_zero_kernel(boundary: Any) -> None:
    operator = ConvOperator(np.zeros((2, 2, 3, 3)), (18, 18), boundary=boundary)
    assert largest_singular_value(operator).value == 0
    assert (singular_values(operator, 2, method="lanczos").values == 0).all()
    assert smallest_singular_value(operator).status == "rank deficient"
    assert singular_value_bounds(operator)[:2] == (0, 0)
    assert condition_number(operator).value == math.inf


def test_integer_kernels_give_float64() -> None:
    operator = ConvOperator(np.array([[[1, 0, -1]]]), (6,))
    result = singular_values(operator)
    assert result.values.dtype == np.float64
    assert result.value == pytest.approx(2 * math.cos(math.pi / 7), rel=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda o: singular_values(o, 0), ValueError, "k must be between 1 and 5, got 0"),
        (lambda o: singular_values(o, 6), ValueError, "k must be between 1 and 5, got 6"),
        (lambda o: singular_values(o, 1.5), TypeError, "k must be an integer"),
        (lambda o: singular_values(o, method="lanczos"), ValueError, "needs the number k"),
        (lambda o: singular_values(o, method="guess"), ValueError, "method must be one of"),
        (lambda o: singular_values(o, 1, method="fourier"), ValueError, "needs a circular boundary"),
        (lambda o: singular_values(o, 1, max_matvecs=1), ValueError, "max_matvecs must be at least 2"),
        (lambda o: largest_singular_value(o, rtol=0.0), ValueError, "rtol must be positive"),
        (lambda o: largest_singular_value(o, rtol=1e-17), ValueError, "rtol must be at least"),
        (lambda o: largest_singular_value(o, rtol=math.nan), ValueError, "rtol must be finite"),
        (lambda o: largest_singular_value(o, method="lanczos", start=np.zeros((1, 5))), ValueError, "start must not"),
        (lambda o: largest_singular_value(o, start=singular_values(o)), ValueError, "start must hold singular vectors"),
        (lambda o: largest_singular_value(o, rng="a"), TypeError, "rng must be .*, got 'a'"),
        (lambda o: smallest_singular_value(o, rng=-1), ValueError, "rng must be .*, got -1"),
        (lambda o: vstack(o), TypeError, "vstack takes a sequence of LinearMaps"),
        (lambda o: (o @ o.T).with_kernels(None), TypeError, "kernels must be a sequence"),
        (lambda o: largest_singular_value(o, method="lanczos", start=np.ones((1, 4))), ShapeError, "start must have"),
        (lambda o: smallest_singular_value(o, method="svds"), ValueError, "method must be one of"),
        (lambda o: singular_values(o, 1, method=7), TypeError, "method must be one of"),
        (lambda o: singular_values(o, 1, method="inverse"), ValueError, "'inverse' is for the smallest"),
        (lambda _: Lanczos(block=0), ValueError, "block must be"),
        (lambda _: Lanczos(basis_size=0), ValueError, "basis_size must be"),
        (lambda o: singular_value_bounds(o, method="guess"), ValueError, "method must be one of"),
        (lambda o: singular_value_bounds(o.to_dense()), TypeError, "operator must be a LinearMap"),
        (lambda o: largest_singular_value(o.to_dense()), TypeError, "operator must be a LinearMap"),
        (
            lambda o: largest_singular_value(o.with_kernel(np.full(o.kernel.shape, 1, object))),
            TypeError,
            "dtype object",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(ConvOperator(np.array([[[1.0, 2.0, 3.0]]]), (5,)))


# Other libraries.


@pytest.mark.command
def test_array_api_strict() -> None:
    kernel = np.random.default_rng(9).standard_normal((3, 2, 3, 3))
    strict = array_api_strict.asarray(kernel)
    for boundary in ("zero", "circular"):
        plain = ConvOperator(kernel, (17, 18), boundary=boundary)
        operator = ConvOperator(strict, (17, 18), boundary=boundary)
        for method in ("lanczos", "auto"):
            result = singular_values(operator, 2, method=method)
            assert type(result.values) is type(result.left) is type(strict)
            np.testing.assert_allclose(
                np.asarray(result.values), singular_values(plain, 2, method=method).values, rtol=1e-9
            )
        ours, theirs = singular_value_bounds(operator, method="symbol"), singular_value_bounds(plain, method="symbol")
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-9)
    small = ConvOperator(strict, (6, 6))
    expected = smallest_singular_value(ConvOperator(kernel, (6, 6))).value
    assert smallest_singular_value(small).value == pytest.approx(expected, rel=1e-9)
    with pytest.raises(TypeError, match="NumPy or CuPy"):
        smallest_singular_value(small, method="inverse")


@pytest.mark.torch
def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    kernel = np.random.default_rng(10).standard_normal((3, 3, 3, 3)).astype(np.float32)
    operator, plain = ConvOperator(torch.from_numpy(kernel), (17, 17)), ConvOperator(kernel, (17, 17))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = largest_singular_value(operator)
    assert isinstance(result.right, torch.Tensor)
    assert result.value == pytest.approx(largest_singular_value(plain).value, rel=2e-6)
    assert singular_value_bounds(operator).upper == pytest.approx(singular_value_bounds(plain).upper, rel=1e-3)


@pytest.mark.torch
def test_a_start_of_another_library_is_refused() -> None:
    torch = pytest.importorskip("torch")
    operator = ConvOperator(np.ones((1, 1, 3)), (5,))
    for function in (largest_singular_value, singular_value_bounds):
        with pytest.raises(TypeError, match="must come from one library"):
            function(operator, start=torch.ones(1, 5))
