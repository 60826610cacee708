"""Singular values and enclosures of maps made of maps, against LAPACK on the matrices made of matrices."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import array_api_strict
import numpy as np
import pytest

from convla import (
    ConvOperator,
    LinearMap,
    Status,
    block_diagonal,
    condition_number,
    diagonal,
    identity,
    largest_singular_value,
    singular_value_bounds,
    singular_values,
    smallest_singular_value,
    vstack,
    zero,
)
from convla._array import to_numpy
from convla.spectra.folding import folded
from tests.compositions import Draw, Scaling
from tests.test_backends import LIBRARIES

EPS = float(np.finfo(float).eps)


def spectrum(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """The singular values by LAPACK, and what they may be off."""
    values = np.linalg.svd(matrix.astype(float), compute_uv=False)
    return values, 4 * EPS * math.sqrt(max(matrix.shape)) * float(values[0])


def check_all(found: LinearMap, matrix: np.ndarray, factor: Any = 1) -> None:
    """Compare everything that is said of a map, which is `factor` times what `matrix` says, with LAPACK."""
    exact, off = spectrum(matrix)
    size, least = abs(float(factor)), min(matrix.shape)
    every = singular_values(found)
    values = to_numpy(every.values) / size
    allowed = every.errors / size + off
    assert every.status == Status.EXACT
    assert (np.abs(values - exact) <= allowed).all()
    assert allowed.max() <= 1e-11 * max(exact[0], 1.0)
    for k in {1, min(3, least)}:
        some = singular_values(found, k)
        assert (np.abs(to_numpy(some.values) / size - exact[:k]) <= some.errors / size + off).all()
        left, right = (to_numpy(v).reshape(k, -1).astype(float) for v in (some.left, some.right))
        kept = 64 * np.finfo(to_numpy(some.left).dtype).eps * math.sqrt(max(matrix.shape)) * max(exact[0], 1.0)
        sign = math.copysign(1, factor)
        np.testing.assert_allclose(sign * right @ matrix.T, left * exact[:k, None], rtol=0, atol=kept + allowed.max())
        np.testing.assert_allclose(sign * left @ matrix, right * exact[:k, None], rtol=0, atol=kept + allowed.max())
    largest = largest_singular_value(found)
    assert abs(largest.value / size - exact[0]) <= largest.errors[0] / size + off
    assert largest.upper / size >= exact[0] - off
    smallest = smallest_singular_value(found)
    if smallest.status == Status.RANK_DEFICIENT:
        assert exact[-1] <= max(matrix.shape) * 1e-13 * max(exact[0], 1.0)
    else:
        assert abs(smallest.value / size - exact[-1]) <= smallest.errors[0] / size + off
    for method in ("auto", "symbol", "dense"):
        bounds = singular_value_bounds(found, method=method)
        assert bounds.lower / size <= exact[0] + off
        assert bounds.upper / size >= exact[0] - off
        if method != "symbol":
            assert bounds.upper / size <= exact[0] * (1 + 1e-5) + 1e-11
            assert bounds.lower / size >= exact[0] * (1 - 1e-5) - 1e-11


@pytest.mark.parametrize("seed", range(48))
def test_drawn_maps(seed: int) -> None:
    dtype = np.float32 if seed % 4 == 3 else np.float64
    # A map of one's own in float32 multiplies so, and the errors say it: it has a test of its own.
    found, matrix = Draw(seed, lambda array: array.astype(dtype), own=dtype == np.float64).any(depth=2 + seed % 2)
    factor: Any = [1, -1, 0.1, Fraction(1, 3), 2.0**600, -(2.0**-700)][seed % 6] if dtype == np.float64 else 1
    check_all(factor * found, matrix, factor)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("seed", [2, 5, 11])
def test_drawn_maps_in_every_library(library: Any, seed: int) -> None:
    if getattr(library, "device", None) == array_api_strict.Device("device1"):
        pytest.skip("NumPy takes nothing from there")
    if type(library).__name__ == "Jax" and seed > 2:
        pytest.skip("compiling every operation takes minutes")
    found, matrix = Draw(seed, lambda array: library.asarray(array.astype(float)), own=False).any()
    exact, off = spectrum(matrix)
    result = largest_singular_value(found)
    assert abs(float(result.values[0]) - exact[0]) <= result.errors[0] + off
    assert type(result.values) is type(found.like)
    bounds = singular_value_bounds(found)
    assert bounds.lower - off <= exact[0] <= bounds.upper + off


def conv(rng: np.random.Generator, *shape: int, size: int = 12, **options: Any) -> ConvOperator:
    return ConvOperator(rng.standard_normal(shape), (size,), **options)


def test_a_residual_block_is_one_convolution() -> None:
    rng = np.random.default_rng(0)
    scale, n = rng.uniform(0.5, 2.0, 6), 80
    for groups, boundary in [(1, "zero"), (2, "circular"), (3, "replicate")]:
        layer = conv(rng, 6, 6 // groups, 3, size=n, groups=groups, boundary=boundary)
        block = identity((6, n)) + diagonal(scale, (6, n)) @ (0.3 * layer) @ diagonal(scale[::-1], (6, n))
        before, after = (np.repeat(factors, n) for factors in (scale[::-1], scale))
        whole = np.eye(6 * n) + after[:, None] * 0.3 * layer.to_dense() * before
        exact = np.linalg.svd(whole, compute_uv=False)
        fold = folded(block)
        assert fold is not None
        np.testing.assert_allclose(fold.operator.to_dense(), whole, rtol=0, atol=1e-14)
        assert np.linalg.norm(fold.operator.to_dense() - whole, 2) <= fold.error + 1e-14
        for one in (block, block.T):
            found = largest_singular_value(one, method="lanczos" if boundary == "zero" else "auto")
            assert found.value == pytest.approx(exact[0], rel=1e-9)
            assert found.status.proved
            bounds = singular_value_bounds(one, method="symbol")
            assert bounds.lower <= exact[0] * (1 + 1e-12)
            assert exact[0] * (1 - 1e-12) <= bounds.upper <= exact[0] * 1.3


def test_what_folds_and_what_does_not() -> None:
    rng = np.random.default_rng(5)
    layer = conv(rng, 2, 2, 3)
    unit, factors = identity((2, 12)), diagonal(rng.standard_normal(2), (2, 12))
    entries = diagonal(rng.standard_normal((2, 12)))
    strided, off_centre = conv(rng, 2, 2, 3, stride=2), conv(rng, 2, 2, 2, padding=((1, 0),), dilation=1)
    far = ConvOperator(rng.standard_normal((2, 2, 3)), (12,), padding=((1, 3),), dilation=2)
    for one in (
        layer + 2 * layer,
        unit - layer,
        factors @ layer + unit,
        layer @ factors @ factors,
        3 * (factors @ layer),
    ):
        fold = folded(one)
        assert fold is not None
        assert np.linalg.norm(fold.operator.to_dense() - one.to_dense(), 2) <= fold.error + 1e-14
    assert folded(off_centre + unit) is not None  # its first tap reads before, its second in place
    for one in (layer @ layer, layer + entries, entries @ layer, layer.T + layer, far + unit, unit + factors, layer):
        assert folded(one) is None
    assert folded(strided + strided.with_kernel(strided.kernel + 1.0)) is not None
    assert folded((strided @ factors).T) is None
    assert folded((strided @ factors).T.T) is not None


def test_what_cancels_is_known_to_what_is_left_of_it() -> None:
    rng = np.random.default_rng(1)
    first = conv(rng, 2, 2, 3)
    second = first.with_kernel(first.kernel * (1 + 1e-12 * rng.standard_normal(first.kernel.shape)))
    exact = np.linalg.svd(
        np.array(
            [
                [float(Fraction(a) - Fraction(b)) for a, b in zip(*rows, strict=True)]
                for rows in zip(first.to_dense().tolist(), second.to_dense().tolist(), strict=True)
            ]
        ),
        compute_uv=False,
    )
    for difference in (first - second, vstack([first, first]) - vstack([second, second])):
        wanted = exact[0] * math.sqrt(difference.shape[0] / first.shape[0])
        found = largest_singular_value(difference)
        assert abs(found.value - wanted) <= found.errors[0] + 1e-14 * wanted
        bounds = singular_value_bounds(difference)
        assert bounds.lower <= wanted <= bounds.upper
    zero = vstack([first, first]) - vstack([first, first])
    nothing = singular_value_bounds(zero)
    assert nothing.lower == 0.0
    assert nothing.upper <= 1e-12
    beside = largest_singular_value(block_diagonal([first, zero]), method="lanczos", rtol=1e-3)
    assert beside.status == "estimated"  # only a smallest value is one of a rank
    assert beside.value == pytest.approx(np.linalg.svd(first.to_dense(), compute_uv=False)[0], rel=1e-3)


def test_blocks_are_searched_one_by_one() -> None:
    rng = np.random.default_rng(2)
    # Lanczos on the whole would have to tell four copies of each value apart, and blocks of very different sizes.
    layer = conv(rng, 2, 2, 3, size=9)
    scales = [1e200, 1.0, 1.0, 1e-200]
    whole = block_diagonal([scale * layer for scale in scales])
    exact = np.linalg.svd(layer.to_dense(), compute_uv=False)
    every = singular_values(whole).values
    wanted = np.sort(np.concatenate([scale * exact for scale in scales]))[::-1]
    np.testing.assert_allclose(every, wanted, rtol=1e-13)
    three = singular_values(block_diagonal([layer, layer.T, layer]), 3)
    np.testing.assert_allclose(three.values, exact[0], rtol=1e-13)
    gram = np.tensordot(three.right, three.right, ((1, 2), (1, 2)))
    np.testing.assert_allclose(gram, np.eye(3), atol=1e-12)
    assert smallest_singular_value(whole).value == pytest.approx(1e-200 * exact[-1], rel=1e-10)
    again = singular_value_bounds(whole, start=singular_values(whole, 1))
    assert again.lower == pytest.approx(1e200 * exact[0], rel=1e-10)


def test_blocks_that_are_wide_and_tall_leave_zeros() -> None:
    rng = np.random.default_rng(3)
    wide = ConvOperator(rng.standard_normal((1, 3, 1)), (4,))
    whole = block_diagonal([wide, wide.T])  # of rank 8, and order 16
    exact = np.linalg.svd(whole.to_dense(), compute_uv=False)
    np.testing.assert_allclose(singular_values(whole).values, exact, rtol=0, atol=1e-13)
    np.testing.assert_allclose(singular_values(whole, 10).values, exact[:10], rtol=0, atol=1e-7)
    found = smallest_singular_value(whole)
    assert (found.value, found.status, found.nullity) == (0.0, Status.RANK_DEFICIENT, 1)
    assert condition_number(whole).value == math.inf


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_diagonal_maps_are_exact(dtype: Any) -> None:
    tiny, huge = float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    values = np.array([[tiny, -3.0, huge, 2.0]], dtype)
    found = singular_values(diagonal(values))
    assert found.values.tolist() == [huge, 3.0, 2.0, tiny]
    assert singular_value_bounds(diagonal(values))[:2] == (huge, huge)
    assert smallest_singular_value(diagonal(values)).value == tiny
    one = singular_values(-2 * diagonal(values[:, 1:2]), 1)
    assert (one.value, float(one.left[0, 0, 0] * one.right[0, 0, 0])) == (6.0, 1.0)
    assert singular_value_bounds(identity((2, 3)))[:2] == (1.0, 1.0)
    assert singular_value_bounds(zero((2, 3), (1, 3)))[:2] == (0.0, 0.0)
    assert smallest_singular_value(diagonal(np.array([[1.0, 0.0]]))).status == Status.RANK_DEFICIENT


def test_products_beyond_the_range_of_their_factors() -> None:
    small, large = (ConvOperator(np.full((1, 1, 1), size), (3,)) for size in (1e-250, 1e250))
    for found, wanted in [(small @ large, 1.0), (small @ small @ large @ large, 1.0), (large @ small @ large, 1e250)]:
        assert largest_singular_value(found).value == pytest.approx(wanted, rel=1e-12)
        assert singular_value_bounds(found).upper == pytest.approx(wanted, rel=1e-12)
        assert condition_number(found).value == pytest.approx(1.0, rel=1e-12)
    assert singular_value_bounds(large @ large).upper == math.inf
    with pytest.raises(OverflowError, match="beyond float64"):
        largest_singular_value(large @ large)
    single = ConvOperator(np.full((1, 1, 1), 1e30, np.float32), (3,))
    assert largest_singular_value(single @ single).value == pytest.approx(1e60, rel=1e-6)


def test_large_maps_are_bounded_from_their_parts() -> None:
    rng = np.random.default_rng(4)
    layers = [ConvOperator(rng.standard_normal((8, 8, 3, 3)) / 8, (24, 24)) for _ in range(2)]
    whole = layers[0] @ layers[1] + identity(layers[0].domain_shape)
    bounds = singular_value_bounds(whole)
    found = largest_singular_value(whole)
    assert bounds.lower <= found.value * (1 + 1e-9)
    assert found.status == Status.ESTIMATED
    norms = [singular_value_bounds(layer).upper for layer in layers]
    assert found.value <= bounds.upper <= (norms[0] * norms[1] + 1) * (1 + 1e-3)
    assert bounds.upper_certificate == "sum of bounds of the terms"
    stacked = singular_value_bounds(vstack([whole, whole]))
    assert stacked.upper == pytest.approx(math.sqrt(2) * bounds.upper, rel=1e-3)


@pytest.mark.command
def test_a_large_map_of_its_own_is_bounded_by_its_modulus_or_not_at_all() -> None:
    class Bare(Scaling):
        __abs__ = LinearMap.__abs__

    factors = np.array([2.0, -3.0])
    known, unknown = (kind(factors, (2, 3000)) for kind in (Scaling, Bare))
    assert singular_value_bounds(known)[:2] == pytest.approx((3.0, 3.0), rel=1e-10)
    bounds = singular_value_bounds(unknown)
    assert bounds.upper == math.inf
    assert bounds.upper_certificate.startswith("nothing")
    assert bounds.lower <= 3.0


def test_a_map_of_its_own_in_single_precision_says_what_its_products_leave_open() -> None:
    factors = np.array([1.0, -2.0], np.float32)
    layer = ConvOperator(np.float32(0.1) * np.arange(12, dtype=np.float32).reshape(2, 2, 3), (9,))
    found = Scaling(factors, (2, 9)) @ layer
    exact = np.linalg.svd(np.repeat(factors, 9)[:, None] * layer.to_dense().astype(float), compute_uv=False)
    for result in (largest_singular_value(found), singular_values(found)):
        assert abs(result.values[0] - exact[0]) <= result.errors[0] <= 1e-4 * exact[0]
        assert result.errors[0] > 1e-7 * exact[0]


def test_errors() -> None:
    exact = ConvOperator(np.array([[[1, 2, 3]]], object), (4,))
    layer = ConvOperator(np.array([[[1.0, 2.0, 3.0]]]), (4,))
    own = Scaling(np.array([1, 2]), (2, 3))
    broken = Scaling(np.array([1.0, np.nan]), (2, 3))
    for call, error, message in [
        (lambda: largest_singular_value(exact @ exact), TypeError, "dtype object"),
        (lambda: singular_value_bounds(exact + exact), TypeError, "dtype object"),
        (lambda: largest_singular_value(own + own), TypeError, "Scaling works in int64, and must define astype"),
        (lambda: largest_singular_value(broken @ broken), ValueError, "must map finite arrays to finite ones"),
        (lambda: singular_value_bounds(broken), ValueError, "must map finite arrays to finite ones"),
        (lambda: singular_values(layer @ layer, method="fourier"), ValueError, "needs a convolution"),
        (lambda: singular_values(identity((1, 4)), 1, method="fourier"), ValueError, "needs a convolution"),
        (lambda: singular_values(layer @ layer, 5), ValueError, "k must be between 1 and 4"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert largest_singular_value(2 * ConvOperator(np.array([[[1, 2, 3]]]), (4,)) @ layer.astype(int)).value > 0
