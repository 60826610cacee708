"""The direct sum that a convolution falls into, against the dense matrix and its connected components."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from scipy.sparse.csgraph import connected_components

from convla import ConvOperator, largest_singular_value, singular_values, smallest_singular_value
from convla.geometry import BOUNDARIES
from convla.spectra.merge import values_in
from convla.spectra.parts import direct_sum
from convla.spectra.result import placed
from tests.spectra_oracles import dense_values, operators, rounding


@given(operators())
def test_the_parts_are_blocks_of_the_matrix_and_leave_nothing_out(operator: ConvOperator) -> None:
    parts = direct_sum(operator)
    values = [np.tile(dense_values(part.operator), part.copies) for part in parts]
    together = np.sort(np.concatenate([*values, np.zeros(0)]))[::-1]
    assert len(together) == values_in(parts) <= min(operator.shape)
    exact = dense_values(operator)
    filled = np.concatenate([together, np.zeros(len(exact) - len(together))])
    np.testing.assert_allclose(filled, exact, rtol=0, atol=rounding(operator))
    rng = np.random.default_rng(0)
    for part in parts:
        for copy in {0, part.copies - 1}:
            image = rng.standard_normal((1, *part.operator.domain_shape))
            whole = placed(image, slice(None), part.image(copy), operator.domain_shape)
            features = placed(part.operator.apply(image), slice(None), part.output(copy), operator.range_shape)
            np.testing.assert_allclose(operator.apply(whole), features, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "image", "options"),
    [
        ((1, 1, 3), (12,), {"dilation": 2}),
        ((1, 1, 3), (12,), {"dilation": 4, "stride": 2}),
        ((1, 1, 3), (12,), {"dilation": 3, "stride": 2, "padding": "full"}),
        ((1, 1, 3, 2), (6, 8), {"dilation": (2, 3), "stride": (1, 2)}),
        ((1, 1, 4), (12,), {"stride": 4, "padding": "valid"}),
        ((1, 1, 2), (12,), {"stride": 3, "padding": 1}),
        ((1, 1, 1, 1), (3, 4), {}),
        ((1, 1, 1), (5,), {"boundary": "reflect"}),
    ],
)
def test_no_part_falls_apart_further(shape: tuple[int, ...], image: tuple[int, ...], options: Any) -> None:
    """One channel and no zero tap: the components of the matrix, seen as a bipartite graph, are the parts."""
    operator = ConvOperator(1.0 + np.arange(np.prod(shape)).reshape(shape), image, **options)
    matrix = operator.to_dense()
    rows = matrix.shape[0]
    graph = np.zeros((sum(matrix.shape),) * 2)
    graph[:rows, rows:] = matrix
    labels = connected_components(graph, directed=False)[1]
    touched = np.concatenate([matrix.any(axis=1), matrix.any(axis=0)])
    assert sum(part.copies for part in direct_sum(operator)) == len(np.unique(labels[touched]))


def test_what_splits_is_exact_and_quick() -> None:
    rng = np.random.default_rng(0)
    for kernel, image, options in [
        (rng.standard_normal((1, 512, 1, 1)), (16, 16), {}),
        (rng.standard_normal((96, 3, 16, 16)), (224, 224), {"stride": 16, "padding": "valid"}),
        (rng.standard_normal((320, 1152, 1, 1)), (7, 7), {}),
    ]:
        operator = ConvOperator(kernel, image, **options)
        matrix = kernel.reshape(kernel.shape[0], -1).astype(float)
        exact = np.linalg.svd(matrix, compute_uv=False)
        largest, smallest = largest_singular_value(operator), smallest_singular_value(operator)
        assert largest.status.proved
        assert smallest.status.proved
        assert largest.value == pytest.approx(exact[0], rel=1e-10)
        assert smallest.value == pytest.approx(exact[-1], rel=1e-9)
        several = singular_values(operator, 3)
        np.testing.assert_allclose(several.values, exact[0], rtol=1e-9)  # one for each position


def test_one_live_tap_is_one_matrix() -> None:
    kernel = np.zeros((5, 4, 3, 3))
    kernel[:, :, 0, 2] = np.random.default_rng(1).standard_normal((5, 4))
    for boundary in BOUNDARIES:
        operator = ConvOperator(kernel, (9, 8), boundary=boundary)
        result = largest_singular_value(operator, rtol=1e-10)
        assert result.value == pytest.approx(dense_values(operator)[0], rel=1e-10)


@pytest.mark.command
@pytest.mark.parametrize("groups", [2, 8])
def test_groups_of_different_size_are_searched_each(groups: int) -> None:
    rng = np.random.default_rng(4)
    kernel = rng.standard_normal((8, 8 // groups, 3, 3)) * (1 + 1e-3 * rng.random((8, 1, 1, 1)))
    for method in ("auto", "lanczos"):
        for boundary in ("zero", "circular", "reflect"):
            operator = ConvOperator(kernel, (11, 10), groups=groups, boundary=boundary)
            result = largest_singular_value(operator, rtol=1e-10, method=method)
            exact = dense_values(operator)
            assert result.value == pytest.approx(exact[0], rel=1e-10)
            many = singular_values(operator, 7, method=method)
            np.testing.assert_allclose(many.values, exact[:7], rtol=1e-9)
