"""Enclosures and the second-order estimate of the largest singular value."""

from __future__ import annotations

import itertools
import math
import sys
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convla import (
    ConvGeometry,
    ConvOperator,
    asymptotic_largest_singular_value,
    largest_singular_value,
    singular_value_bounds,
    singular_values,
)
from convla.errors import ShapeError
from convla.spectra.certificate import U64, Combinations, certified_norm_bound, hermitian, proved_below
from convla.spectra.enclosure import neighbour_share
from convla.spectra.gram import GramMatrices
from convla.spectra.grids import TorusGrid
from convla.spectra.scaling import scaled_to_unit
from convla.spectra.symbol import Symbol, torus_frequencies
from convla.spectra.torus import embedding_sizes
from tests.fuzz.draw import any_layer_that
from tests.fuzz.oracles import matrix_shape, precise_singular_values
from tests.spectra_oracles import dense_values, operators, rounding


@pytest.mark.parametrize("method", ["auto", "dense", "symbol"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_the_enclosure_holds(data: st.DataObject, dtype: Any, method: Any) -> None:
    operator = data.draw(operators(dtype=dtype))
    exact = dense_values(operator)[0]
    bounds = singular_value_bounds(operator, method=method)
    # The oracle itself is rounded.
    assert bounds.lower - rounding(operator) <= exact <= bounds.upper + rounding(operator)
    assert bounds.lower <= bounds.upper
    if method == "dense":
        # Taps that cancel in one entry leave the rounding of their sum.
        cancelled = 1e-14 * float(np.abs(operator.kernel).sum())
        assert bounds.upper - bounds.lower <= 1e-9 * exact + rounding(operator) + cancelled


@pytest.mark.parametrize("seed", range(6))
def test_no_drawn_layer_escapes_its_enclosure(seed: int) -> None:
    """Both methods, both orientations, against long double; ``python -m tests.fuzz --only bounds`` draws more."""
    rng, drawn = np.random.default_rng(seed), any_layer_that(lambda layer: min(matrix_shape(layer)) <= 24)
    for _ in range(10):
        layer = drawn(rng, "tiny", library=False)
        values, exponent = precise_singular_values(layer)
        slack = (max(matrix_shape(layer)) + 8) * np.finfo(np.longdouble).eps * values[0]
        for oriented, method in itertools.product((layer.operator, layer.operator.T), ("auto", "symbol")):
            bounds = singular_value_bounds(oriented, method=method)
            lower, upper = (np.ldexp(np.longdouble(end), -exponent) for end in (bounds.lower, bounds.upper))
            assert lower - slack <= values[0] <= upper + slack, layer.source


@pytest.mark.parametrize("boundary", ["reflect", "symmetric", "replicate"])
@pytest.mark.parametrize("shape", [(2, 2, 3, 3), (3, 2, 3, 3)])
def test_an_extended_image_has_a_tight_enclosure_where_the_matrix_is_small(boundary: str, shape: Any) -> None:
    operator = ConvOperator(np.random.default_rng(0).standard_normal(shape), (13, 12), boundary=boundary)
    assert min(operator.shape) > 256
    exact = np.linalg.norm(operator.to_dense(), 2)
    lower, upper, *_ = singular_value_bounds(operator)
    assert exact * (1 - 1e-3) <= lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= upper <= exact * (1 + 1e-3)


@pytest.mark.parametrize(("dtype", "far", "near"), [(np.float32, 1e30, 1e-30), (np.float64, 1e200, 1e-200)])
@pytest.mark.parametrize("method", ["auto", "dense", "symbol"])
def test_taps_that_never_meet_the_image_do_not_count(dtype: Any, far: float, near: float, method: Any) -> None:
    for shape, image in (((1, 1, 3), (1,)), ((1, 1, 5, 3), (2, 1)), ((1, 1, 3, 3, 3), (1, 1, 1))):
        kernel = np.full(shape, far, dtype)
        middle = tuple((k - 1) // 2 for k in shape[2:])
        operator = ConvOperator(kernel, image)
        kernel[(..., *np.ix_(*(np.flatnonzero(live) for live in operator.geometry.live_taps)))] = 0
        kernel[(0, 0, *middle)] = near
        exact = float(dtype(near))  # the matrix is this multiple of the identity
        lower, upper, *_ = singular_value_bounds(operator.with_kernel(kernel), method=method)
        assert exact * (1 - 1e-9) <= lower <= exact <= upper <= exact * (1 + 1e-4)


@pytest.mark.parametrize("method", ["dense", "symbol"])
@pytest.mark.parametrize("unit", [5e-324, 2e-323, 3e-310])
def test_subnormal_values_are_rounded_outward(method: Any, unit: float) -> None:
    for copies in (2, 3, 5, 7):
        operator = ConvOperator(np.full((copies, 1, 1), unit), (3,))
        bounds = singular_value_bounds(operator, method=method)
        # sqrt(copies) unit, compared exactly.
        lower, upper, exact = (Fraction(x) for x in (bounds.lower, bounds.upper, unit))
        assert lower**2 <= copies * exact**2 <= upper**2
        assert bounds.upper - bounds.lower <= 1e-4 * bounds.upper + 2 * 5e-324


def test_values_beyond_the_largest_number_are_enclosed() -> None:
    operator = ConvOperator(np.full((1, 1, 3), 1.7e308), (5,))
    assert singular_value_bounds(operator)[:2] == (sys.float_info.max, math.inf)


@pytest.mark.parametrize("kernel", [(1, 1, 51, 51), (1, 1, 101, 101), (2, 1, 31, 33)])
def test_kernels_as_large_as_the_image_take_little_memory(kernel: tuple[int, ...]) -> None:
    operator = ConvOperator(np.random.default_rng(0).standard_normal(kernel).astype(np.float32), (64, 64))
    tracemalloc.start()
    bounds = singular_value_bounds(operator)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 1 << 28
    assert bounds.lower <= largest_singular_value(operator, rtol=1e-4).value * (1 + 1e-3) <= bounds.upper * (1 + 2e-3)


def test_values_on_grids_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    for shape, sizes, twist, half, options in (
        ((4, 3, 3, 3), (20, 22), (0, 1), 1, {}),
        ((6, 2, 3, 5), (9, 12), (1, 1), 1, {"stride": 2, "groups": 2}),
        ((2, 3, 3, 4, 2), (17, 10, 30), (1, 0, 1), 0, {"dilation": (1, 2, 3)}),
        ((3, 4, 9, 3), (12, 12), (1, 0), 0, {}),  # one axis is interpolated, the other is not
        ((1, 1, 1500), (4000,), (0,), 0, {}),  # in several blocks
    ):
        kernel = rng.standard_normal(shape)
        symbol = Symbol(kernel, ConvGeometry(shape, (40,) * (len(shape) - 2), padding="full", **options))
        grams = GramMatrices(symbol, TorusGrid(sizes, twist, half))
        seen = set()
        for lines, block in grams:
            q = lines.reshape(-1, lines.shape[-1])
            f = symbol.at(TorusGrid(sizes, twist, half).frequencies(q)).swapaxes(0, 1)
            adjoint = f.conj().swapaxes(-1, -2)
            expected = adjoint @ f if f.shape[-1] <= f.shape[-2] else f @ adjoint
            found = block.at(np.arange(math.prod(block.shape)).reshape(block.shape).swapaxes(1, 2).ravel())
            found = found.reshape(expected.shape)
            # The oracle's angles are rounded: by units of the largest one for each tap.
            oracle = 1e-15 * float(np.abs(symbol.lags).max()) * 2 * math.pi * symbol.largest_frobenius() ** 2
            off = hermitian(found) - expected
            assert np.linalg.norm(off, axis=(-2, -1)).max() <= grams.error + oracle
            assert np.abs(np.trace(off, axis1=-2, axis2=-1)).max() <= grams.error + oracle * math.sqrt(off.shape[-1])
            seen |= set(map(tuple, q.tolist()))
        assert seen >= set(np.ndindex(*TorusGrid(sizes, twist, half).counts))


def test_conjugate_frequencies_have_each_others_number() -> None:
    for sizes, twist, half in (((4, 6), (0, 1), 1), ((5, 5), (0, 0), 0), ((6, 3, 4), (1, 0, 0), 0)):
        grid = TorusGrid(sizes, twist, half)
        q = np.indices(grid.counts).reshape(len(sizes), -1).T
        own, conjugate = grid.numbers(q)
        assert len(set(own)) == len(own)
        # Of each pair the first one is there, and is told from the other.
        assert len(set(np.minimum(own, conjugate))) == np.count_nonzero(own <= conjugate)
        assert 2 * np.count_nonzero(own < conjugate) + np.count_nonzero(own == conjugate) == math.prod(sizes)
        twice = grid.frequencies(q[own == conjugate]) / math.pi
        np.testing.assert_allclose(twice, np.round(twice), atol=1e-12)


def test_frequencies_next_to_low_ones_are_low() -> None:
    """The lemma behind the frequencies that are spared, on polynomials that come near its bound and on random ones."""
    rng = np.random.default_rng(2)
    closest = 0.0
    for size, degree in itertools.product((12, 20, 33, 64), (1, 2, 3)):
        share = neighbour_share(degree, size)
        theta = 2 * np.pi * np.arange(size) / size
        for trial in range(60):
            coefficients = rng.standard_normal(degree + 1) + 1j * rng.standard_normal(degree + 1)
            if trial == 0:  # (1 + cos(m (theta - half a step))) / 2, the extremal one
                coefficients = np.zeros(degree + 1, complex)
                coefficients[0], coefficients[-1] = 0.5, 0.5 * np.exp(-1j * degree * np.pi / size)
            moduli = np.abs(np.exp(1j * np.outer(theta, np.arange(degree + 1))) @ coefficients)
            peak = int(np.argmax(moduli))
            ratio = min(moduli[peak - 1], moduli[(peak + 1) % size]) / moduli[peak]
            assert ratio >= share
            closest = max(closest, share / ratio if share > 0 else 0.0)
    assert closest > 0.99  # it is sharp


@pytest.mark.parametrize("orientation", ["plain", "transposed"])
def test_a_start_must_fit(orientation: str) -> None:
    operator: Any = ConvOperator(np.array([[[1.0, 2.0, 3.0]], [[0.0, 1.0, 0.0]]]), (5,))
    operator = operator if orientation == "plain" else operator.T
    with pytest.raises(ShapeError, match="start must have shape"):
        singular_value_bounds(operator, start=np.ones((1, 7)))
    with pytest.raises(ValueError, match="start must not be zero"):
        singular_value_bounds(operator, start=np.zeros(operator.domain_shape))
    with pytest.raises(ValueError, match="singular vectors"):
        singular_value_bounds(operator, start=singular_values(operator))
    vector = np.random.default_rng(0).standard_normal(operator.domain_shape)
    exact = np.linalg.norm(operator.to_dense() @ vector.ravel()) / np.linalg.norm(vector)
    for scale in (1e-300, 1.0, 1e300):
        bounds = singular_value_bounds(operator, start=scale * vector)
        assert exact * (1 - 1e-12) <= bounds.lower <= exact * (1 + 1e-15)
        assert dense_values(operator)[0] <= bounds.upper * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 3.0, 1e200])
@pytest.mark.parametrize("method", ["dense", "symbol"])
@pytest.mark.parametrize("kernel", [np.ones((1, 1, 1)), np.random.default_rng(3).standard_normal((2, 3, 3))])
def test_a_result_at_hand_gives_the_same_enclosure(kernel: Any, method: Any, scale: float) -> None:
    operator = ConvOperator(kernel * scale, (9,))
    own = singular_value_bounds(operator, method=method)
    reused = singular_value_bounds(operator, method=method, start=largest_singular_value(operator, rtol=1e-10))
    assert reused.lower == pytest.approx(own.lower, rel=1e-3)
    assert reused.upper == pytest.approx(own.upper, rel=1e-9)


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect"])
def test_the_maxima_that_a_result_knows_are_not_looked_for_again(
    boundary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = np.random.default_rng(1).standard_normal((2, 2, 3, 3))
    operator = ConvOperator(kernel, (18, 17), boundary=boundary)
    exact = dense_values(operator)[0]
    own = singular_value_bounds(operator, method="symbol")
    found = largest_singular_value(operator, method="lanczos")
    others = [
        largest_singular_value(other, method="lanczos")
        for other in (operator.astype(np.float32), ConvOperator(kernel[:, :, :2], (18, 17), boundary=boundary))
    ]
    assert all(result.peaks for result in (found, *others))
    # Those of another map, or in another precision, may cost tightness, and nothing else.
    for result in others:
        assert singular_value_bounds(operator, method="symbol", start=result).upper >= exact * (1 - 1e-12)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("looked for again")

    monkeypatch.setattr("convla.spectra.enclosure.symbol_peaks", refuse)
    bounds = singular_value_bounds(operator, method="symbol", start=found)
    assert exact * (1 - 1e-9) <= bounds.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= bounds.upper <= own.upper * (1 + 1e-6)


@pytest.mark.parametrize("n", [6, 10, 14, 22])
def test_the_circular_norm_is_no_bound_but_the_enclosure_is(n: int) -> None:
    kernel = np.array([[[1.0, 0.0, -1.0]]])
    zero, circular = ConvOperator(kernel, (n,)), ConvOperator(kernel, (n,), boundary="circular")
    exact = 2 * math.cos(math.pi / (n + 1))
    assert largest_singular_value(circular).value < exact - 1e-3
    bounds = singular_value_bounds(zero, method="symbol")
    assert bounds.lower <= exact * (1 + 1e-15)
    assert exact <= bounds.upper <= 2 * (1 + 1e-6)


def test_the_median_gap_of_layers_is_within_two_per_mille() -> None:
    gaps = []
    for seed in range(9):
        kernel = np.random.default_rng(seed).standard_normal((8, 8, 3, 3)).astype(np.float32)
        bounds = singular_value_bounds(ConvOperator(kernel, (32, 32)))
        gaps.append(bounds.upper / bounds.lower - 1)
    assert np.median(gaps) <= 2e-3


def test_long_axes_are_bounded_over_all_frequencies() -> None:
    kernel = np.array([[[1.0, -2.0, 1.0]]])  # norm 4 cos(pi / (2 n + 2))^2, supremum 4
    bounds = singular_value_bounds(ConvOperator(kernel, (500,)))
    assert 4 * math.cos(math.pi / 1002) ** 2 <= bounds.upper <= 4 * math.cos(math.pi / 32) ** -0.5
    assert "all frequencies" in bounds.upper_certificate


def test_the_extension_factor_is_attained_by_a_shift() -> None:
    shift = ConvOperator(np.array([[[1.0, 0.0, 0.0]]]), (300,), boundary="replicate")
    bounds = singular_value_bounds(shift, method="symbol")
    assert bounds.upper == pytest.approx(math.sqrt(2), rel=1e-3)
    assert largest_singular_value(shift).value == pytest.approx(math.sqrt(2), rel=1e-9)


@given(operators(boundary="zero"))
def test_the_zero_padded_matrix_is_a_submatrix_of_the_torus(operator: ConvOperator) -> None:
    """SPEC-embed, entry by entry: every nonzero row is a row of the larger circulant at the image's columns."""
    geometry = operator.geometry
    sizes = tuple(n * s for n, s in zip(embedding_sizes(geometry), geometry.stride, strict=True))
    # Taps that never meet the image are no part of the matrix, and scaling leaves them out.
    operator, _ = scaled_to_unit(operator)
    torus = ConvOperator(
        operator.kernel,
        sizes,
        padding=geometry.padding,
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=geometry.groups,
        boundary="circular",
    )
    plain = operator.with_kernel(operator.kernel)
    inside = np.zeros(torus.domain_shape, bool)
    inside[(slice(None), *map(slice, geometry.image_shape))] = True
    columns = torus.to_dense()[:, inside.ravel()]
    matrix = ConvOperator.to_dense(
        ConvOperator(
            plain.kernel,
            geometry.image_shape,
            padding=geometry.padding,
            stride=geometry.stride,
            dilation=geometry.dilation,
            groups=geometry.groups,
        )
    )
    rows = {row.tobytes() for row in columns + 0.0}
    assert all(row.tobytes() in rows for row in matrix + 0.0 if row.any())


def test_the_chain_valid_same_full_supremum() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 3))
    previous = 0.0
    for n in (4, 7, 12):
        valid, same, full = (
            largest_singular_value(ConvOperator(kernel, (n, n), padding=p)).value for p in ("valid", "same", "full")
        )
        grid, _ = torus_frequencies((200, 200))
        symbol = Symbol(kernel, ConvGeometry(kernel.shape, (n, n), padding="same"))
        supremum = np.linalg.norm(symbol.at(grid)[0], 2, axis=(-2, -1)).max()
        assert previous <= same * (1 + 1e-12)
        assert valid <= same * (1 + 1e-12) <= full * (1 + 2e-12)
        assert full <= supremum * math.cos(2 * math.pi / 200) ** -1
        previous = same


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 4, 7), (3, 1, 1), (40, 70, 30), (2, 3, 20)])
@pytest.mark.parametrize("error", [0.0, 1e-3])
@pytest.mark.parametrize("complex_entries", [True, False])
def test_certified_norms_exceed_the_exact_ones_by_little(
    shape: tuple[int, ...], error: float, complex_entries: bool
) -> None:
    rng = np.random.default_rng(3)
    matrices = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if complex_entries else 0)
    grams = matrices.conj().swapaxes(-1, -2) @ matrices
    grams = (grams + grams.conj().swapaxes(-1, -2)) / 2
    packed = grams.real + grams.imag
    # A sum is rounded once, and so are its halves' sum and difference.
    np.testing.assert_allclose(hermitian(packed), grams, rtol=0, atol=4 * U64 * np.abs(grams).max())
    norms = np.linalg.norm(matrices, 2, axis=(-2, -1))
    stack = Combinations.of(packed)
    for numbers in (None, np.arange(0, len(norms), 2)):
        exact = norms[numbers].max()
        for guess in (0.0, 1e-3, exact * (1 - 1e-9)):
            bound = certified_norm_bound(stack, error, guess, numbers=numbers)
            assert math.sqrt(exact**2 + error) <= bound <= math.sqrt(exact**2 + error) * (1 + 1e-3)
        held = exact * (1 + 1e-9) + error
        assert certified_norm_bound(stack, error, held, numbers=numbers) == held


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("kernel_size", [(2, 3), (3, 2), (3, 3)])
def test_two_long_axes_are_bounded_too(
    monkeypatch: pytest.MonkeyPatch, kernel_size: tuple[int, int], boundary: Any
) -> None:
    """With long kernels the last axis is not halved, and its frequencies come in strides, which go around the torus."""
    monkeypatch.setattr("convla.spectra.grids._LONGEST_BLOCK", 4)
    monkeypatch.setattr("convla.spectra.gram._HIGHEST_DEGREE", 0)
    for width in range(5, 12):
        kernel = np.random.default_rng(width).standard_normal((2, 1, *kernel_size))
        operator = ConvOperator(kernel, (13, width), boundary=boundary)
        exact = dense_values(operator)[0]
        lower, upper, *_ = singular_value_bounds(operator, method="symbol")
        assert lower - rounding(operator) <= exact <= upper + rounding(operator)


@pytest.mark.parametrize("order", [1, 2, 3, 40, 130])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_proved_of_a_matrix_with_entries_that_are_not_numbers(order: int, bad: float) -> None:
    places = {(order - 1, order - 1), (order - 1, 0), (0, order - 1), (0, 0)}
    grams = np.stack([np.eye(order) / 2] * (1 + 2 * len(places)))
    for index, (i, j) in enumerate(places):
        grams[1 + 2 * index, i, j] = bad
        grams[2 + 2 * index, [i, j], [j, i]] = bad
    shown = proved_below(Combinations.of(grams), 1e-14, 1.0, np.arange(len(grams)))
    np.testing.assert_array_equal(shown, np.arange(len(grams)) == 0)


@pytest.mark.command
@pytest.mark.parametrize(("n", "error"), [(16, 3e-3), (32, 3e-4), (64, 1e-4)])
def test_the_second_order_estimate_beats_the_supremum(n: int, error: float) -> None:
    for seed in range(3):
        kernel = np.random.default_rng(seed).standard_normal((4, 4, 3, 3))
        exact = largest_singular_value(ConvOperator(kernel, (n, n)), rtol=1e-8).value
        estimate = asymptotic_largest_singular_value(ConvOperator(kernel, (n, n)))
        supremum = asymptotic_largest_singular_value(ConvOperator(kernel, (10**6, 10**6)))
        assert abs(estimate / exact - 1) <= error
        assert abs(estimate / exact - 1) <= 0.2 * (supremum / exact - 1)


def test_the_second_order_estimate_asks_for_zeros_outside() -> None:
    with pytest.raises(ValueError, match="boundary 'zero', got 'reflect'"):
        asymptotic_largest_singular_value(ConvOperator(np.ones((1, 1, 3)), (9,), boundary="reflect"))
