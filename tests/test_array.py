"""The array layer: namespaces, exactness, and the cheap test for finite values."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

from convla import _array


def test_namespace_of_plain_numbers_is_numpys() -> None:
    assert _array.namespace([1, 2], 3.0) is _array.namespace(np.zeros(1))


def test_mixed_libraries_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"array_api_strict.*numpy\.ndarray"):
        _array.namespace(np.zeros(1), array_api_strict.zeros(1))


@pytest.mark.parametrize(
    ("array", "exact"),
    [
        (np.array([1, 2]), True),
        (np.array([1, 2], dtype=object), True),
        (np.array([1.0]), False),
        (array_api_strict.asarray([1]), True),
        (array_api_strict.asarray([1.0]), False),
    ],
)
def test_exactness(array: object, exact: bool) -> None:
    assert _array.is_exact(array) is exact


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "place"), [(1000, 617), (8193, 8192), (16384, 16383), (30_000, 5), (30_000, 29_000)])
def test_a_single_non_finite_value_is_found(bad: float, dtype: type, size: int, place: int) -> None:
    array = np.zeros(size, dtype)
    assert _array.all_finite(array)
    array[place] = bad
    assert not _array.all_finite(array)


@pytest.mark.parametrize("size", [4, 30_000])
def test_a_sum_that_overflows_is_not_taken_for_infinity(size: int) -> None:
    array = np.full(size, np.finfo(np.float64).max)
    assert _array.all_finite(array)


def test_infinities_that_cancel_are_found() -> None:
    array = np.array([np.inf, -np.inf])
    assert not _array.all_finite(array)


def test_conversion_to_float_keeps_float32_and_promotes_integers() -> None:
    xp = _array.namespace(np.zeros(1))
    assert _array.as_float_array(np.zeros(1, np.float32), xp).dtype == np.float32
    assert _array.as_float_array([1, 2], xp).dtype == np.float64


@pytest.mark.parametrize(("value", "name"), [("x", "str"), (np.zeros(1), "numpy.ndarray"), (None, "NoneType")])
def test_descriptions_name_the_library(value: object, name: str) -> None:
    assert _array.describe(value) == name


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 30_000])
def test_dot_products_of_rows_are_exact_on_integers(size: int) -> None:
    a, b = np.random.default_rng(size).integers(-3, 4, (2, 2, size)).astype(np.float64)
    np.testing.assert_array_equal(_array.row_dots(a, b, np), (a * b).sum(axis=1))
    strict = array_api_strict.asarray(a)
    assert float(_array.row_dots(strict, strict, array_api_strict)[0]) == (a[0] * a[0]).sum()
