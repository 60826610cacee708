"""Singular values against the dense matrix, NumPy's FFT and closed forms."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convla import (
    ConvOperator,
    condition_number,
    largest_singular_value,
    singular_values,
    smallest_singular_value,
)
from convla.geometry import BOUNDARIES
from convla.spectra.torus import circular_lattice
from tests.fuzz.oracles import jacobi
from tests.spectra_oracles import EPS, dense_values, operators, rounding, triplet_defects


@given(operators())
def test_all_values_are_those_of_the_dense_matrix(operator: ConvOperator) -> None:
    result = singular_values(operator)
    np.testing.assert_allclose(result.values, dense_values(operator), rtol=0, atol=rounding(operator))


@pytest.mark.parametrize("inner", [2, 60, 600, 900])
@pytest.mark.parametrize("constant", [0.1, 1.0, math.pi])
@pytest.mark.parametrize("kind", [largest_singular_value, smallest_singular_value, singular_values])
def test_what_is_exact_is_within_its_error_where_roundings_are_alike(inner: int, constant: float, kind: Any) -> None:
    """One row of equal entries: the square of its only singular value is a rational number."""
    operator = ConvOperator(np.full((1, inner, 2), constant), (2,), padding="valid")
    result = kind(operator)
    square = 2 * inner * Fraction(constant) ** 2
    value, error = Fraction(float(result.values[0])), Fraction(float(result.errors[0]))
    assert result.status == "exact"
    assert (value - error) ** 2 <= square <= (value + error) ** 2
    assert square <= Fraction(result.upper) ** 2 if math.isfinite(result.upper) else kind is smallest_singular_value


@pytest.mark.parametrize("side", [4, 18])
@pytest.mark.parametrize("apart", [1e-16, 1e-14, 1e-12])
@pytest.mark.parametrize("k", [None, 1, 2])
def test_exact_values_that_are_nearly_equal_are_within_their_errors(side: int, apart: float, k: int | None) -> None:
    """LAPACK takes an entry between two equal values for nothing where it is below 100 units beside them."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = np.repeat(rng.uniform(0.5, 1.0, side // 2), 2) * (1 + apart * rng.standard_normal(side))
        matrix = _with_values(values, rng)
        result = singular_values(ConvOperator(matrix[:, :, None], (1,)), k)
        assert result.status == "exact"
        off = np.abs(result.values - jacobi(matrix.astype(np.longdouble))[:k])
        assert np.all(off <= result.errors + EPS[np.float64] * result.values)


@pytest.mark.parametrize("side", [4, 6, 18])
@pytest.mark.parametrize("low", [1.01e-3, 1e-2])
@pytest.mark.parametrize("apart", [1e-12, 1e-10, 1e-9, 1e-8])
def test_the_smallest_value_is_within_its_error_beside_one_nearly_equal(side: int, low: float, apart: float) -> None:
    """The squares of such a pair are parted by no more than rounding does to the Gram matrix of a norm of 1."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        values = np.concatenate(([1.0], rng.uniform(2 * low, 1.0, side - 3), [low * (1 + apart), low]))
        matrix = _with_values(values, rng)
        result = smallest_singular_value(ConvOperator(matrix[:, :, None], (1,)))
        assert result.status == "exact"
        assert abs(result.value - jacobi(matrix.astype(np.longdouble))[-1]) <= result.errors[0]


@pytest.mark.parametrize("small", [1.2345678e-36, 3e-41])
def test_what_scaling_takes_from_a_group_that_is_tiny_beside_another_is_in_its_error(small: float) -> None:
    operator = ConvOperator(np.array([3e3, small], np.float32)[:, None, None], (1,), groups=2)
    result = smallest_singular_value(operator)
    assert abs(result.value - float(operator.kernel[1, 0, 0])) <= result.errors[0] <= 1e-41


def _with_values(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    left, right = (np.linalg.qr(rng.standard_normal((len(values),) * 2))[0] for _ in range(2))
    return (left * values) @ right


@given(operators(), st.integers(1, 4), st.booleans())
def test_lanczos_finds_the_largest_triplets_copies_included(operator: ConvOperator, k: int, transpose: bool) -> None:
    k = min(k, *operator.shape)
    target = operator.T if transpose else operator
    result = singular_values(target, k, method="lanczos")
    exact = dense_values(operator)
    tolerance = 2e-10 * exact[0] + rounding(operator)
    np.testing.assert_allclose(result.values, exact[:k], rtol=0, atol=tolerance)
    assert result.status in ("exact", "estimated")
    if not transpose:
        forward, backward, orthonormal = triplet_defects(operator, result)
        assert forward <= tolerance
        assert backward <= math.sqrt(k) * tolerance
        assert orthonormal <= 1e-12


@given(operators())
def test_the_largest_value_is_within_its_tolerance(operator: ConvOperator) -> None:
    result = largest_singular_value(operator, method="lanczos", rtol=1e-8)
    exact = dense_values(operator)[0]
    assert abs(float(result) - exact) <= 1e-8 * exact + rounding(operator)


@given(operators(), st.sampled_from(["auto", "dense", "inverse"]), st.booleans())
def test_the_smallest_value_and_its_vectors(operator: ConvOperator, method: Any, transpose: bool) -> None:
    target = operator.T if transpose else operator
    result = smallest_singular_value(target, method=method)
    exact = dense_values(operator)
    tolerance = 1e-10 * exact[-1] + rounding(operator)
    assert abs(result.value - exact[-1]) <= tolerance
    rows, columns = target.shape
    assert result.nullity == max(0, columns - rows) + (result.status == "rank deficient")
    if exact[-1] > 100 * tolerance:
        assert result.status in ("exact", "confirmed", "estimated")
        image = target.apply(result.right) - result.value * result.left
        assert np.linalg.norm(image) <= 1e-9 * exact[0] + tolerance
        assert float(condition_number(target)) == pytest.approx(exact[0] / exact[-1], rel=1e-6)
    elif exact[-1] <= EPS[np.float64] * exact[0]:
        assert result.status == "rank deficient"
        assert condition_number(target).status == "rank deficient"
        assert condition_number(target).value == math.inf


@given(operators(dtype=np.float32), st.integers(1, 3))
def test_float32_in_float32_out(operator: ConvOperator, k: int) -> None:
    k = min(k, *operator.shape)
    exact = dense_values(operator)
    for method in ("dense", "lanczos"):
        result = singular_values(operator, k, method=method)
        assert result.left.dtype == result.right.dtype == np.float32
        assert result.values.dtype == np.float64  # sums are
        atol = (1.1e-5 if method == "lanczos" else 0) * exact[0] + rounding(operator, np.float32)
        np.testing.assert_allclose(result.values, exact[:k], rtol=0, atol=atol)
    smallest = smallest_singular_value(operator)
    assert smallest.values.dtype == np.float64
    assert abs(smallest.value - exact[-1]) <= 1e-6 * exact[-1] + rounding(operator)


# Circular boundaries.


def test_circular_values_are_those_of_numpy_fft_and_svd() -> None:
    kernel = np.random.default_rng(1).standard_normal((5, 3, 3, 3))
    transform = np.fft.fft2(kernel, (8, 7))
    oracle = np.sort(np.linalg.svd(transform.transpose(2, 3, 0, 1), compute_uv=False).ravel())[::-1]
    result = singular_values(ConvOperator(kernel, (8, 7), boundary="circular"))
    assert result.method == "fourier"
    np.testing.assert_allclose(result.values, oracle, rtol=1e-12)


@given(operators(boundary="circular"), st.integers(1, 5))
def test_circular_triplets(operator: ConvOperator, k: int) -> None:
    lattice = circular_lattice(operator.geometry)
    if not lattice.exact:
        with pytest.raises(ValueError, match="circular boundary"):
            singular_values(operator, method="fourier")
        return
    exact = dense_values(operator)
    np.testing.assert_allclose(
        singular_values(operator, method="fourier").values, exact, rtol=0, atol=rounding(operator)
    )
    try:
        result = singular_values(operator, min(k, *operator.shape), method="fourier")
    except ValueError as error:
        assert "come from the symbol" in str(error)  # noqa: PT017
        return
    np.testing.assert_allclose(result.values, exact[: len(result.values)], rtol=0, atol=rounding(operator))
    forward, backward, orthonormal = triplet_defects(operator, result)
    assert max(forward, backward) <= 4 * rounding(operator)
    assert orthonormal <= 1e-12


# The smallest value.


def test_the_symbol_says_nothing_of_the_smallest_value() -> None:
    kernel = np.array([[[1.0, 0.5, 0.0]]])
    assert smallest_singular_value(ConvOperator(kernel, (16,))).value == pytest.approx(1.1e-5, rel=0.1)
    circular = smallest_singular_value(ConvOperator(kernel, (16,), boundary="circular"))
    assert circular.value == pytest.approx(0.5, rel=1e-12)
    assert smallest_singular_value(ConvOperator(kernel, (64,))).status == "rank deficient"


def test_large_operators_are_factorised() -> None:
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3))
    operator = ConvOperator(kernel, (16, 16))
    result = smallest_singular_value(operator)
    assert result.method == "inverse"
    assert result.value == pytest.approx(dense_values(operator)[-1], rel=1e-8)


@pytest.mark.parametrize("boundary", BOUNDARIES[1:])
@pytest.mark.parametrize(
    "kernel", [[1e16, 1.0, -1e16], [0.1, 0.2, -0.3], [0.1, 0.7, 0.2, -0.8, -0.2], [1e200, 3.0, -1e200]]
)
def test_errors_hold_where_the_taps_that_meet_cancel(boundary: Any, kernel: list[float]) -> None:
    operator = ConvOperator(np.array([[kernel]]), (1,), boundary=boundary)  # its matrix is the sum of the taps
    exact = abs(math.fsum(kernel))
    for result in (largest_singular_value(operator), singular_values(operator), singular_values(operator, 1)):
        assert abs(result.value - exact) <= result.errors[0] * (1 + 2**-52)
        assert exact <= result.upper * (1 + 2**-52)
    assert smallest_singular_value(operator).status == "rank deficient"


def test_all_taps_that_meet_are_summed_on_longer_images_too() -> None:
    kernel = np.array([[[0.1, 0.2, 0.3, -0.1, -0.2, -0.3]]])  # on three positions of a circle the halves cancel
    result = largest_singular_value(ConvOperator(kernel, (3,), padding=[(2, 3)], boundary="circular"))
    assert 0.0 <= result.value <= result.errors[0]


def test_a_long_kernel_on_a_small_image_is_written_out_from_the_taps_that_meet_it() -> None:
    kernel = np.random.default_rng(0).standard_normal((2, 1, 41, 41))
    operator = ConvOperator(kernel, (3, 4))
    middle = ConvOperator(kernel[:, :, 18:23, 17:24], (3, 4))
    np.testing.assert_array_equal(operator.to_dense(), middle.to_dense())


def test_errors_of_values_that_are_rounding_alone() -> None:
    """Two vectors may stand for one tiny value, and values of uncoupled parts change places."""
    e = 1e-16
    alone = np.array([[[-10.6716622 * e, 1.0, -9.04181971 * e], [-8.54677505 * e, 3.57338813 * e, 32.8288681 * e]]])
    parts = np.random.default_rng(3).standard_normal((3, 2, 3, 2)) * e
    parts[0, 0, 1, 1] = parts[1, 1, 1, 1] = 1.0
    cases = [(ConvOperator(alone, (2,), padding="full"), 4), (ConvOperator(parts, (2, 2), padding="full", stride=2), 7)]
    for operator, k in cases:
        found = singular_values(operator, k)
        off = np.abs(found.values - jacobi(operator.to_dense().astype(np.longdouble))[:k])
        assert np.all(off <= found.errors)
