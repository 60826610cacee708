"""Enclosures and the second-order estimate of the largest singular value."""

from __future__ import annotations

import math
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
)
from convla.spectra.certificate import certified_norm_bound
from convla.spectra.scaling import scaled_to_unit
from convla.spectra.symbol import Symbol, torus_frequencies
from convla.spectra.torus import embedding_sizes
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


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 3.0, 1e200])
@pytest.mark.parametrize("method", ["dense", "symbol"])
@pytest.mark.parametrize("kernel", [np.ones((1, 1, 1)), np.random.default_rng(3).standard_normal((2, 3, 3))])
def test_a_result_at_hand_gives_the_same_enclosure(kernel: Any, method: Any, scale: float) -> None:
    operator = ConvOperator(kernel * scale, (9,))
    own = singular_value_bounds(operator, method=method)
    reused = singular_value_bounds(operator, method=method, start=largest_singular_value(operator, rtol=1e-10))
    assert reused.lower == pytest.approx(own.lower, rel=1e-3)
    assert reused.upper == pytest.approx(own.upper, rel=1e-9)


@pytest.mark.parametrize("n", [6, 10, 14, 22])
def test_the_circular_norm_is_no_bound_but_the_enclosure_is(n: int) -> None:
    kernel = np.array([[[1.0, 0.0, -1.0]]])
    zero, circular = ConvOperator(kernel, (n,)), ConvOperator(kernel, (n,), boundary="circular")
    exact = 2 * math.cos(math.pi / (n + 1))
    assert largest_singular_value(circular).value < exact - 1e-3
    bounds = singular_value_bounds(zero, method="symbol")
    assert bounds.lower <= exact * (1 + 1e-15)
    assert exact <= bounds.upper <= 2 * (1 + 1e-6)


def test_the_median_gap_of_layers_is_within_three_per_mille() -> None:
    gaps = []
    for seed in range(9):
        kernel = np.random.default_rng(seed).standard_normal((8, 8, 3, 3)).astype(np.float32)
        bounds = singular_value_bounds(ConvOperator(kernel, (32, 32)))
        gaps.append(bounds.upper / bounds.lower - 1)
    assert np.median(gaps) <= 3e-3


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
    exact = np.linalg.norm(matrices, 2, axis=(-2, -1)).max()
    for guess in (0.0, 1e-3, exact * (1 - 1e-9)):
        bound = certified_norm_bound(grams, error, guess)
        assert math.sqrt(exact**2 + error) <= bound <= math.sqrt(exact**2 + error) * (1 + 1e-3)
    held = exact * (1 + 1e-9) + error
    assert certified_norm_bound(grams, error, held) == held


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
