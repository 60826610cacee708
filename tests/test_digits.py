"""A bound that is written with a few digits is one too."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from convla.networks.certificate import Certificate
from convla.networks.digits import digits_of


@pytest.mark.parametrize("digits", [1, 4, 15])
def test_what_is_written_is_on_the_side_of_a_bound_and_next_to_the_value(digits: int) -> None:
    rng = np.random.default_rng(digits)
    values = np.concatenate([10.0 ** rng.uniform(-300, 300, 200), rng.integers(0, 10**6, 50), [0.0, 2.3e-308, 8e307]])
    for value in map(float, values):
        exact = Fraction(value)
        above, below = (Fraction(digits_of(value, digits, side)) for side in ("above", "below"))
        assert below <= exact <= above
        assert above - below <= Fraction(10) ** (1 - digits) * max(exact, below)
        assert digits_of(value, digits) == f"{value:.{digits}g}"


def test_what_is_no_number_is_written_as_it_is() -> None:
    assert [digits_of(value, 4, "above") for value in (float("inf"), float("nan"))] == ["inf", "nan"]


def test_the_bound_of_a_network_is_not_rounded_to_less() -> None:
    assert Certificate(4.925713, (), lower=4.925719).short == "Lipschitz constant <= 4.92572, >= 4.92571"
