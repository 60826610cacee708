"""The largest singular value of long signals, confirmed by a factorisation, against the dense matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import array_api_strict
import numpy as np
import pytest

from convla import ConvOperator, largest_singular_value
from convla.errors import ConvergenceWarning
from convla.spectra.inertia import BandedGram, confirm_largest, factorisation_is_cheap
from convla.spectra.triplets import dense_triplets
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


def make(name: str, dtype: type = np.float64) -> ConvOperator:
    shape, image, options = CASES[name]
    return ConvOperator(np.random.default_rng(5).standard_normal(shape).astype(dtype), image, **options)


@pytest.mark.parametrize("name", CASES)
def test_the_factorisation_completes_above_the_norm_alone(name: str) -> None:
    operator = make(name)
    assert factorisation_is_cheap(operator.geometry)
    gram = BandedGram(operator)
    norm = dense_values(operator)[0]
    assert gram.rounding < 1e-12
    assert gram.solver_above(norm * (1 - 1e-12)) is None
    solve = gram.solver_above(norm * 1.5)
    assert solve is not None
    vector = np.random.default_rng(0).standard_normal(gram.tall.shape[1])
    shifted = (1.5 * norm) ** 2 * vector - gram.tall.T @ (gram.tall @ vector)
    np.testing.assert_allclose(solve(shifted), vector, rtol=0, atol=1e-12 * np.linalg.norm(vector))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_a_lesser_singular_triplet_is_replaced_by_the_largest(name: str, dtype: type) -> None:
    operator = make(name, dtype)
    every = dense_triplets(operator, 3)
    assert every.left is not None
    assert every.right is not None
    lesser = replace(
        every, values=every.values[2:], left=every.left[2:], right=every.right[2:], errors=every.errors[2:]
    )
    exact = dense_values(operator)[0]
    assert lesser.value < exact * (1 - 1e-4)  # else the case shows nothing
    rtol = 1e-6
    found = confirm_largest(operator, lesser, rtol, max_matvecs=1000, rng=np.random.default_rng(0))
    assert found.status == "converged"
    assert found.values.dtype == dtype
    assert abs(found.value - exact) <= rtol * exact
    assert found.right is not None
    assert found.left is not None
    assert found.right.shape == (1, *operator.domain_shape)
    image = np.asarray(operator.apply(found.right), np.float64)
    # Of a value that is right to rtol, a vector is so to its root times what the gaps of these matrices are.
    assert np.linalg.norm(image - found.value * found.left) <= 1e-3 * exact
    right = confirm_largest(operator, found, rtol, max_matvecs=1000, rng=np.random.default_rng(0))
    assert right is found


def test_no_more_solves_than_allowed() -> None:
    operator = make("square")
    every = dense_triplets(operator, 3)
    lesser = replace(every, values=every.values[2:])
    found = confirm_largest(operator, lesser, 1e-10, max_matvecs=2, rng=np.random.default_rng(0))
    assert found.status == "not converged"
    assert found.errors[0] >= dense_values(operator)[0] - found.value


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
    assert result.status == "converged"
    assert abs(result.value - exact) <= 1e-6 * exact


def test_what_is_not_confirmed_within_the_limit_warns() -> None:
    kernel = np.random.default_rng(94).standard_normal((3, 2, 4))
    operator = ConvOperator(kernel, (300,))
    enough = largest_singular_value(operator, rtol=1e-6, method="lanczos").matvecs
    with pytest.warns(ConvergenceWarning):
        result = largest_singular_value(operator, rtol=1e-6, method="lanczos", max_matvecs=enough // 2)
    assert result.status == "not converged"


def test_other_array_libraries_stay_themselves() -> None:
    kernel = np.random.default_rng(94).standard_normal((3, 2, 4))
    operator = ConvOperator(array_api_strict.asarray(kernel), (300,))
    result = largest_singular_value(operator, rtol=1e-6, method="lanczos")
    assert isinstance(result.values, type(operator.kernel))
    exact = dense_values(ConvOperator(kernel, (300,)))[0]
    assert math.isclose(result.value, exact, rel_tol=1e-6)


def test_where_a_factorisation_would_cost_much_there_is_none() -> None:
    kernel = np.ones((64, 64, 3, 3))
    assert not factorisation_is_cheap(ConvOperator(kernel, (32, 32)).geometry)
    assert not factorisation_is_cheap(ConvOperator(np.ones((1, 1, 3)), (50,), boundary="circular").geometry)
