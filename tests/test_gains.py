"""Lipschitz constants of maps without weights: the norm of a matrix of any size, compared exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from convla.networks.gains import matrix_gain, normalization_gain

LEAST = Fraction(math.ulp(0.0))


@pytest.mark.parametrize("exponent", [-1074, -1070, -1000, -600, -530, -100, 0, 100, 500, 530, 1000, 1020])
def test_the_norm_of_a_matrix_of_any_size(exponent: int) -> None:
    unit = Fraction(2) ** exponent
    three, four = (math.ldexp(number, exponent) for number in (3.0, 4.0))
    for matrix in ([[three], [four]], [[three, four]], [[three, 0.0], [four, 0.0]], [[three, -four], [four, three]]):
        gain = Fraction(matrix_gain(np.array(matrix)))
        assert 5 * unit <= gain <= 5 * unit * (1 + Fraction(1, 10**12)) + LEAST


def test_a_norm_beyond_the_largest_number_is_bounded_by_infinity() -> None:
    assert matrix_gain(np.full((2, 2), 1.7e308)) == math.inf


@pytest.mark.parametrize("entry", [math.inf, -math.inf, math.nan])
def test_a_matrix_that_is_not_finite_has_no_finite_bound(entry: float) -> None:
    assert matrix_gain(np.array([[1.0, entry]])) == math.inf


def test_a_matrix_of_zeros_and_one_without_entries() -> None:
    assert matrix_gain(np.zeros((3, 2))) == matrix_gain(np.zeros((0, 4))) == 0.0


def test_entries_of_very_different_sizes() -> None:
    # The norm lies between the largest entry and that entry times sqrt(1 + 1e-40).
    matrix = np.array([[1e300, 1e280], [0.0, 1e-300]])
    assert 1e300 <= matrix_gain(matrix) <= 1e300 * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (40, 40)])
def test_the_norm_of_a_drawn_matrix(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    norm = float(np.linalg.norm(matrix, 2))
    assert norm * (1 - 1e-14) <= matrix_gain(matrix) <= norm * (1 + 1e-11)


def test_a_normalisation_that_shrinks_below_the_least_number_has_not_the_gain_zero() -> None:
    exact = Fraction(5e-324) / 10**10
    assert Fraction(normalization_gain(np.array([5e-324]), 1e20)) >= exact
    assert normalization_gain(np.zeros(3), 1e20) == 0.0
