"""Maps made of maps: each against the matrix made of matrices, exactly, in every library and dtype."""

from __future__ import annotations

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, LinearMap, block_diagonal, diagonal, hstack, identity, vstack, zero
from convla.algebra import Composite, Identity, Product, Scaled, Sum, Zero
from convla.errors import ShapeError
from convla.testing import assert_adjoint
from tests.compositions import Draw, Pair, Scaling
from tests.test_backends import LIBRARIES

SEEDS = range(36)


def conv(*kernel: float, channels: int = 1, size: int = 4, dtype: Any = float, **options: Any) -> ConvOperator:
    taps = np.array(kernel, dtype).reshape(1, 1, -1)
    return ConvOperator(np.tile(taps, (channels, channels, 1)), (size,), **options)


def rows_of(rng: np.random.Generator, count: int, size: int, dtype: Any) -> np.ndarray:
    return rng.integers(-3, 4, (count, size)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, object])
@pytest.mark.parametrize("seed", SEEDS)
def test_maps_are_their_matrices(seed: int, dtype: Any) -> None:
    found, M = Draw(seed, lambda array: array.astype(dtype)).any()
    assert found.shape == M.shape
    rng = np.random.default_rng(seed)
    for one, matrix in [(found, M), (found.T, M.T), (found.T.T, M)]:
        if all(not isinstance(leaf, Identity | Zero) for leaf in one._leaves()):
            assert one.dtype == dtype
        x = rows_of(rng, 2, matrix.shape[1], one.dtype)
        np.testing.assert_array_equal(one.apply(x.reshape(2, *one.domain_shape)).reshape(2, -1), x @ matrix.T)
        np.testing.assert_array_equal(one @ x[0], matrix @ x[0])
        np.testing.assert_array_equal(one.to_dense(), matrix)
    modulus = abs(found).to_dense()
    assert (modulus >= np.abs(M)).all()
    assert_adjoint(found, batch=(2,), rng=seed)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.to_dense(), M)


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_matrices_and_linear_operators(seed: int) -> None:
    found, M = Draw(seed, own=False).any()
    for format_ in ("csr", "csc", "coo"):
        sparse = found.to_sparse(format_)
        assert sparse.format == format_
        np.testing.assert_array_equal(sparse.toarray(), M)
    operator = found.as_linear_operator()
    x = np.random.default_rng(seed).integers(-3, 4, (M.shape[1], 2)).astype(float)
    np.testing.assert_array_equal(operator @ x, M @ x)
    np.testing.assert_array_equal(operator.T @ (M @ x), M.T @ (M @ x))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("seed", range(0, 36, 6))
def test_maps_in_every_library(library: Any, seed: int) -> None:
    if type(library).__name__ == "Jax" and seed > 0:
        pytest.skip("compiling every operation takes minutes")
    found, M = Draw(seed, lambda array: library.asarray(array.astype(float)), own=False).any()
    if all(isinstance(leaf, Identity | Zero) for leaf in found._leaves()):
        pytest.skip("of no library")
    np.testing.assert_array_equal(library.asnumpy(found.to_dense()), M)
    x = np.random.default_rng(seed).integers(-3, 4, (2, *found.domain_shape)).astype(float)
    image = library.asnumpy(found.apply(library.asarray(x)))
    np.testing.assert_array_equal(image.reshape(2, -1), x.reshape(2, -1) @ M.T)


@pytest.mark.parametrize("seed", SEEDS)
def test_kernel_gradients_are_derivatives(seed: int) -> None:
    found, _ = Draw(seed, lambda array: array.astype(object)).any()
    kernels = found.kernels
    assert len({id(kernel) for kernel in kernels}) == len(kernels)
    rng = np.random.default_rng(seed)
    u, v = (rng.integers(-3, 4, (2, *s)).astype(object) for s in (found.range_shape, found.domain_shape))
    directions = [rng.integers(-2, 3, kernel.shape).astype(object) for kernel in kernels]
    found = found.astype(object)

    def value(t: int) -> int:
        moved = found.with_kernels([k + t * d for k, d in zip(found.kernels, directions, strict=True)])
        return int(np.sum(u * moved.apply(v)))

    # The value is a polynomial of degree at most 8 along a line; 9 points give its derivative at 0 exactly.
    weights = [Fraction(4, 5), Fraction(-1, 5), Fraction(4, 105), Fraction(-1, 280)]
    derivative = sum(w * (value(t) - value(-t)) for t, w in enumerate(weights, 1))
    gradients = found.kernel_gradients(u, v)
    assert [g.shape for g in gradients] == [k.shape for k in kernels]
    assert derivative == sum(int(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True))


def test_a_kernel_in_two_places_is_one() -> None:
    a, b = conv(1.0, 2.0, 3.0), conv(0.0, 1.0, 1.0)
    whole = (a @ b + a.T @ a).astype(np.float32)
    assert len(whole.kernels) == 2
    moved = whole.with_kernels([np.ones((1, 1, 3), np.float32), np.zeros((1, 1, 3), np.float32)])
    assert len(moved.kernels) == 2
    ones = conv(1.0, 1.0, 1.0).to_dense()
    np.testing.assert_array_equal(moved.to_dense(), ones.T @ ones)
    assert (2 * a).kernels[0] is a.kernel  # gradients are those of the kernel that was given
    with pytest.raises(ValueError, match="kernels must hold 2 arrays, one for each of the map's, got 1"):
        whole.with_kernels([a.kernel])


def test_what_simplifies() -> None:
    a, b = conv(1.0, 2.0, 3.0), conv(0.0, 1.0, 1.0)
    unit, nothing = identity((1, 4)), zero((1, 4), (1, 4))
    for same in (a @ unit, unit @ a, a + nothing, a.T.T, a**1, 1 * a, (-1) * (-a), (a / 3) * 3, vstack([a])):
        assert same is a
    for found, kind in [(a**0, Identity), (0 * a, Zero), (nothing @ a, Zero), ((a + b).T, Sum), ((a @ b).T, Product)]:
        assert isinstance(found, kind)
    for found, parts in [
        (sum([a, b]), (a, b)),
        (a + b + a, (a, b, a)),
        (a @ b @ a, (a, b, a)),
        (unit + unit, (unit,) * 2),
    ]:
        assert isinstance(found, Composite)
        assert found.parts == parts
    nested = 2 * (3 * a)
    assert isinstance(nested, Scaled)
    assert (nested.factor, nested.unscaled) == (6, a)


@pytest.mark.parametrize("factor", [0.1, 1e-200, 3e250, 2.0**1000, Fraction(1, 3)])
def test_factors_neither_overflow_nor_round_twice(factor: Any) -> None:
    a = conv(1.0, 2.0, 3.0)
    there_and_back = (factor * a) / factor
    assert there_and_back is a
    half = Fraction(2) ** 900 * (Fraction(2) ** -899 * conv(0.0, 1.0, 0.0))
    assert half.to_dense()[0, 0] == 2.0
    assert ((np.int64(2**62) * a) * np.int64(2**62)).factor == 2**124
    np.testing.assert_allclose((factor * a).to_dense(), float(factor) * a.to_dense(), rtol=2**-52)
    np.testing.assert_array_equal((2.0**1000 * conv(0.0, 2.0**-1060, 0.0)).to_dense(), 2.0**-60 * np.eye(4))
    unit = identity((1, 4))  # whose multiples are numbers, wherever they stand in a product
    tiny = conv(0.0, 2.0**-1000, 0.0)
    large = Fraction(2) ** 1030 * unit
    for product in (large @ tiny, tiny @ large, large @ tiny @ unit):
        assert isinstance(product, Scaled)
        assert product.unscaled is tiny
        np.testing.assert_array_equal(product.adjoint(np.ones((1, 4))), 2.0**30 * np.ones((1, 4)))
    assert ((2 * unit) @ (3 * unit)).factor == 6


def test_exact_maps_stay_exact_and_do_not_wrap() -> None:
    a = conv(1, 2, 3, dtype=np.int64)
    assert (2 * a - identity((1, 4))).to_dense().dtype == np.int64
    shifted = 2 * identity((1, 4)) + a
    assert (shifted.dtype, shifted.to_dense()[0].tolist()) == (np.int64, [4, 3, 0, 0])
    large = conv(0, 2**40, 0, dtype=np.int64)
    for call in (
        lambda: (large @ large).apply(np.ones((1, 4), np.int64)),
        lambda: (large @ large).to_dense(),
        lambda: (large @ large).to_sparse(),
        lambda: sum([2**22 * large] * 3).apply(np.ones((1, 4), np.int64)),
        lambda: hstack([2**22 * large] * 3).apply(np.ones((3, 4), np.int64)),
        lambda: 2**40 * large @ np.ones(4, np.int64),
        lambda: diagonal(np.array([2**40]), (1, 4)).apply(np.full((1, 4), 2**40)),
    ):
        with pytest.raises(OverflowError, match="beyond the largest"):
            call()
    thirds = conv(1, 2, 3, dtype=object) / 3
    assert (thirds @ np.array([1, 1, 1, 1], object)).tolist() == [Fraction(5, 3), 2, 2, 1]
    with pytest.raises(TypeError, match="a map of int64 is not divided"):
        a / 2
    with pytest.raises(TypeError, match=r"the factor of a map must be an integer, got 0\.5"):
        0.5 * a


def test_errors_name_both_sides() -> None:
    a, b = conv(1.0, 2.0, 3.0), conv(1.0, 2.0, 3.0, size=5)
    single = conv(1.0, 2.0, 3.0, dtype=np.float32)
    wide = conv(1.0, 2.0, channels=2)
    column_order = conv(1.0, 2.0, 3.0, order="F")
    strange: Any = "a"
    for call, error, message in [
        (lambda: a @ b, ShapeError, r"shapes \(4, 4\) and \(5, 5\).*takes \(1, 4\), the right one gives \(1, 5\)"),
        (lambda: a + b, ShapeError, r"left one maps \(1, 4\) to \(1, 4\), the right one \(1, 5\)"),
        (lambda: a + single, TypeError, "a sum takes maps of one dtype, got float64 and float32"),
        (lambda: a @ single, TypeError, "a product takes maps of one dtype"),
        (lambda: a + column_order, ValueError, "one order of vec"),
        (lambda: a + 1, TypeError, r"add a multiple of the identity, c \* identity\(shape\)"),
        (lambda: a - np.eye(4), TypeError, "a LinearMap is added to LinearMaps only, got numpy"),
        (lambda: a * b, TypeError, "maps are multiplied by maps with @"),
        (lambda: strange * a, TypeError, "the factor of a map must be a real number"),
        (lambda: a * np.inf, ValueError, "the factor of a map must be finite"),
        (lambda: a / 0, ZeroDivisionError, "divided by zero"),
        (lambda: a**-1, ValueError, "the exponent of a map must be at least 0"),
        (lambda: a**0.5, TypeError, "the exponent of a map must be an integer"),
        (lambda: hstack([a, a]) ** 2, ShapeError, r"maps \(2, 4\) to \(1, 4\)"),
        (lambda: vstack([a, b]), ShapeError, r"one domain: maps\[0\] takes \(1, 4\), maps\[1\] \(1, 5\)"),
        (lambda: hstack([a, wide]), ShapeError, r"one range: maps\[0\] gives \(1, 4\), maps\[1\] \(2, 4\)"),
        (lambda: block_diagonal([a, b]), ShapeError, r"same positions: maps\[0\] takes \(1, 4\), maps\[1\] \(1, 5\)"),
        (lambda: vstack([]), ValueError, "at least one map"),
        (lambda: vstack([a, np.eye(4)]), TypeError, "takes LinearMaps, got numpy"),
        (lambda: (a + a).apply(np.ones((1, 5))), ShapeError, r"image must have shape \(..., 1, 4\)"),
        (lambda: (a + a).adjoint(np.full((1, 4), np.nan)), ValueError, "features must be finite"),
        (lambda: (a + a).apply(np.ones((1, 4), np.float32)), TypeError, "same dtype"),
        (lambda: (a @ a).kernel_gradients(np.ones((2, 1, 4)), np.ones((1, 4))), ShapeError, "same leading axes"),
        (lambda: diagonal(np.ones(3)), ShapeError, r"shape must be \(c, \*positions\)"),
        (lambda: diagonal(np.ones(3), (2, 4)), ShapeError, r"values must have shape \(2,\) or \(2, 4\), got \(3,\)"),
        (lambda: diagonal(np.array([np.nan]), (1, 4)), ValueError, "values must be finite"),
        (lambda: identity((4,)), ShapeError, "1 to 3 axes of positions"),
        (lambda: (Scaling(np.ones(1), (1, 4)) + a).to_sparse(), TypeError, "Scaling has no sparse form"),
        (lambda: (conv(1, dtype=object) ** 2).to_sparse(), TypeError, "sparse matrices hold no exact objects"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_maps_that_fix_nothing_take_the_setting_of_the_others() -> None:
    a = conv(1.0, 2.0, dtype=np.float32, order="F")
    whole = block_diagonal([2 * identity((1, 4)), zero((1, 4), (1, 4)), a])
    assert (whole.dtype, whole.order) == (np.float32, "F")
    values = np.arange(8.0).reshape(1, 4, 2)
    there = diagonal(values)
    pair = ConvOperator(np.ones((1, 1, 1, 1)), (4, 2), order="F")
    np.testing.assert_array_equal((there @ pair).to_dense(), np.diag(values[0].ravel(order="F")))
    np.testing.assert_array_equal((there @ pair).to_sparse().toarray(), np.diag(values[0].ravel(order="F")))


def test_a_map_of_its_own_needs_gradients_with_kernels() -> None:
    class Bare(Scaling):
        @property
        def kernels(self) -> tuple[Any, ...]:
            return (self.factors,)

    found: LinearMap = Bare(np.ones(1), (1, 4))
    with pytest.raises(TypeError, match="Bare has kernels, and must define kernel_gradients"):
        (found @ found).kernel_gradients(np.ones((1, 4)), np.ones((1, 4)))


def test_pairs_are_drawn_of_every_kind() -> None:
    kinds: set[str] = set()

    def met(one: LinearMap) -> None:
        kinds.add(type(one).__name__)
        for part in one._parts:
            met(part)

    for seed in SEEDS:
        pair: Pair = Draw(seed).any()
        met(pair.map)
    assert kinds >= {"Sum", "Product", "Scaled", "Stack", "BlockDiagonal", "Identity", "Zero", "Diagonal", "Scaling"}
    assert kinds >= {"ConvOperator", "Transpose"}
