"""The largest singular value of long signals, confirmed by a factorisation, against the dense matrix."""

from __future__ import annotations

import math
from typing import Any

import array_api_strict
import numpy as np
import pytest

from convla import ConvOperator, largest_singular_value
from convla.errors import ConvergenceWarning
from convla.geometry import BOUNDARIES
from convla.spectra.dense import group_operators
from convla.spectra.inertia import (
    BandedGram,
    confirm_largest,
    factorisation_is_cheap,
    shown_of_smallest,
    vector_of,
)
from tests.spectra_oracles import dense_values

# Wide and tall, strided, dilated, grouped, long along either axis, column-stacked.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "square": ((2, 2, 3), (60,), {}),
    "wide": ((1, 3, 3), (60,), {}),
    "tall": ((3, 1, 4), (60,), {"padding": "full"}),
    "strided": ((3, 2, 5), (61,), {"stride": 2, "padding": "valid"}),
    "dilated": ((2, 2, 3), (50,), {"dilation": 3}),
    "grouped": ((4, 2, 3), (40,), {"groups": 2}),
    "high": ((2, 1, 3, 3), (30, 4), {}),
    "broad": ((1, 2, 3, 3), (4, 30), {"stride": (2, 1)}),
    "column-stacked": ((2, 2, 3, 2), (4, 20), {"order": "F"}),
    "3-D": ((1, 1, 2, 3, 2), (3, 12, 4), {}),
}


def make(name: str, dtype: type = np.float64, boundary: Any = "zero") -> ConvOperator:
    shape, image, options = CASES[name]
    kernel = np.random.default_rng(5).standard_normal(shape).astype(dtype)
    return ConvOperator(kernel, image, boundary=boundary, **options)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", CASES)
def test_the_factorisation_completes_above_the_norm_alone(name: str, boundary: Any) -> None:
    operator = make(name, boundary=boundary)
    assert factorisation_is_cheap(operator)
    for group in group_operators(operator):
        gram = BandedGram(group)
        exact = dense_values(group)
        assert gram.rounding < 1e-11
        assert gram.solver_above(exact[0] * (1 - 1e-12)) is None
        solve = gram.solver_above(exact[0] * 1.5)
        assert solve is not None
        vector = np.random.default_rng(0).standard_normal(gram.tall.shape[1])
        shifted = (1.5 * exact[0]) ** 2 * vector - gram.tall.T @ (gram.tall @ vector)
        np.testing.assert_allclose(solve(shifted), vector, rtol=0, atol=1e-12 * np.linalg.norm(vector))
        # The square of the smallest is known to the rounding of that of the largest.
        blur = gram.rounding * exact[0] ** 2
        assert gram.all_above(math.sqrt(max(exact[-1] ** 2 - blur, 0.0))) or exact[-1] ** 2 < 2 * blur
        assert not gram.all_above(math.sqrt(exact[-1] ** 2 + blur))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_a_lesser_singular_value_is_replaced_by_the_largest(name: str, dtype: type, boundary: Any) -> None:
    operator = make(name, dtype, boundary=boundary)
    exact = dense_values(operator)
    lesser = exact[-1] + 0.9 * (exact[0] - exact[-1])
    rtol = 1e-6
    found = confirm_largest(operator, lesser, rtol, max_matvecs=1000, rng=np.random.default_rng(0))
    assert found.proved
    assert abs(found.value - exact[0]) <= rtol * exact[0]
    assert exact[0] * (1 - 1e-13) <= found.upper <= found.value * (1 + rtol)
    vector = vector_of(found, operator)
    image = operator.T if found.wide else operator
    attained = np.linalg.norm(np.asarray(image.astype(np.float64).apply(vector)))
    assert attained == pytest.approx(found.value, rel=1e-9)
    right = confirm_largest(operator, found.value, rtol, max_matvecs=1000, rng=np.random.default_rng(0))
    assert right.proved
    assert right.vector is None


def test_no_more_solves_than_allowed() -> None:
    operator = make("square")
    exact = dense_values(operator)[0]
    found = confirm_largest(operator, 0.9 * exact, 1e-10, max_matvecs=1, rng=np.random.default_rng(0))
    assert not found.proved
    assert found.upper >= exact


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_value_is_confirmed_and_no_larger_one(name: str) -> None:
    operator = make(name)
    exact = dense_values(operator)
    if exact[-1] > 1e-3 * exact[0]:
        for above, refuted in ((0.0, False), (2e-6, True), (0.5, True)):
            least, wrong = shown_of_smallest(operator, exact[-1] * (1 + above), 1e-6)
            assert wrong == refuted
            assert least <= exact[-1] * (1 + 1e-12)
            assert (least >= exact[-1] * (1 - 1e-6)) or refuted
            assert least >= exact[-1] * (1 - above) / 8
    assert shown_of_smallest(operator, 1e-9 * exact[0], 1e-6) == (0.0, False)  # below what rounding leaves


@pytest.mark.parametrize(
    ("seed", "shape", "length", "padding"),
    [(94, (3, 2, 4), 300, "same"), (108, (3, 2, 4), 300, "same"), (35, (2, 3, 3), 211, "valid")],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_long_signals_whose_estimates_were_wrong(
    seed: int, shape: tuple[int, ...], length: int, padding: Any, dtype: type
) -> None:
    # Without the factorisation the iteration ends at 4.3e-5, 1.2e-6 and 1.1e-6 below, and calls it converged.
    kernel = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    operator = ConvOperator(kernel, (length,), padding=padding)
    result = largest_singular_value(operator, rtol=1e-6, method="lanczos")
    exact = dense_values(operator)[0]
    assert result.status == "confirmed"
    assert abs(result.value - exact) <= 1e-6 * exact
    assert result.upper >= exact * (1 - 1e-13)


def test_what_is_not_confirmed_within_the_limit_warns() -> None:
    operator = ConvOperator(np.random.default_rng(94).standard_normal((3, 2, 4)), (300,))
    with pytest.warns(ConvergenceWarning):
        result = largest_singular_value(operator, rtol=1e-6, method="lanczos", max_matvecs=6)
    assert result.status == "not converged"
    assert result.upper >= dense_values(operator)[0]


def test_other_array_libraries_stay_themselves() -> None:
    kernel = np.random.default_rng(94).standard_normal((3, 2, 4))
    operator = ConvOperator(array_api_strict.asarray(kernel), (300,))
    result = largest_singular_value(operator, rtol=1e-6, method="lanczos")
    assert isinstance(result.values, type(operator.kernel))
    exact = dense_values(ConvOperator(kernel, (300,)))[0]
    assert math.isclose(result.value, exact, rel_tol=1e-6)


def test_where_a_factorisation_would_cost_much_there_is_none() -> None:
    assert not factorisation_is_cheap(ConvOperator(np.ones((64, 64, 3, 3)), (32, 32)))
    assert not factorisation_is_cheap(ConvOperator(np.ones((512, 1, 3, 3)), (56, 56), groups=512))


def test_what_is_beyond_the_rounding_of_the_factors_is_not_confirmed() -> None:
    operator = ConvOperator(np.array([[[1.0, 2.0, 1.0]]]), (3000,))
    exact = 2 + 2 * math.cos(math.pi / 3001)
    for rtol in (1e-15, 3e-15, 1e-13, 1e-10):
        result = largest_singular_value(operator, rtol=rtol)
        confirmed = result.errors[0] <= rtol * result.value
        assert (result.status == "confirmed") == confirmed, rtol
        assert abs(result.value - exact) <= result.errors[0] + 1e-15 * exact
    assert largest_singular_value(operator, rtol=1e-15).status == "estimated"


def test_what_is_left_where_taps_cancel_is_not_confirmed() -> None:
    along, across = np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, -3.0])
    kernel = np.multiply.outer(along, across)[
        None, None
    ]  # on one column, which all three read, their sums are rounding
    kernel[..., 2] = -(kernel[..., 0] + kernel[..., 1])
    operator = ConvOperator(kernel, (600, 1), boundary="replicate")
    sums = np.array([math.fsum(row) for row in kernel[0, 0].tolist()])
    exact = dense_values(ConvOperator(sums[None, None], (600,), boundary="replicate"))[0]
    result = largest_singular_value(operator)
    assert abs(result.value - exact) <= result.errors[0]
    assert exact <= result.upper
    assert result.status == "estimated"
