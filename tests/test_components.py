"""The parts of a convolution against the connected components of the graph of its sparse matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from scipy.sparse import bmat
from scipy.sparse.csgraph import connected_components

from convla import ConvGeometry, ConvOperator
from convla.spectra.components import component_labels, position_kinds
from tests.geometries import conv_geometries, keywords_of, name_of, product


def matrix_of(geometry: ConvGeometry, kernel: np.ndarray) -> np.ndarray:
    return ConvOperator(kernel, geometry.image_shape, **keywords_of(geometry)).to_dense()


def first_of_each(labels: np.ndarray) -> np.ndarray:
    """Name every entry's part by the part's first entry: equal partitions have equal names."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse]


def assert_labels_are_components(geometry: ConvGeometry) -> None:
    # Positive taps: nothing cancels where a boundary lets several meet in one entry.
    matrix = matrix_of(geometry, np.ones(geometry.kernel_shape))
    rows = matrix.shape[0]
    coupled = np.concatenate([matrix.any(axis=1), matrix.any(axis=0)])
    _, expected = connected_components(bmat([[None, matrix], [matrix.T, None]]), directed=False)
    domain, values = component_labels(geometry)
    assert (domain.shape, values.shape) == (geometry.domain_shape, geometry.range_shape)
    labels = np.concatenate([values.ravel(), domain.ravel()])
    np.testing.assert_array_equal(labels >= 0, coupled)
    np.testing.assert_array_equal(first_of_each(labels[coupled]), first_of_each(expected[coupled]))
    assert rows == values.size


@pytest.mark.parametrize("geometry", product(seed=3, every=7), ids=name_of)
def test_labels_are_the_connected_components_of_the_matrix(geometry: ConvGeometry) -> None:
    assert_labels_are_components(geometry)


@given(conv_geometries())
def test_labels_of_any_geometry(geometry: ConvGeometry) -> None:
    assert_labels_are_components(geometry)


@given(conv_geometries())
def test_parts_of_one_kind_are_equal_and_all_parts_are_there_once(geometry: ConvGeometry) -> None:
    kernel = np.random.default_rng(0).standard_normal(geometry.kernel_shape)
    shape = (*geometry.range_shape[:1], -1, geometry.domain_shape[0], np.prod(geometry.image_shape))
    matrix = matrix_of(geometry, kernel).reshape(shape)
    seen = np.zeros(shape[-1], int)
    total = 0.0
    for kind in position_kinds(geometry):
        parts = [matrix[:, part.outputs][..., part.inputs] for part in kind]
        for part in parts:
            np.testing.assert_array_equal(part, parts[0])
        for part in kind:
            seen[part.inputs] += 1
        total += len(kind) * float(np.sum(parts[0] ** 2))
    assert seen.max(initial=0) <= 1
    # Nothing of the matrix stands outside.
    np.testing.assert_allclose(total, np.sum(matrix**2), rtol=1e-12)
