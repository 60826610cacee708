from typing import get_args

import numpy as np
import pytest
from hypothesis import given

from convla import ConvGeometry
from convla.errors import ShapeError
from convla.geometry import BOUNDARIES, PADDINGS
from convla.typing import Boundary, Padding
from tests.geometries import conv_geometries, keywords_of
from tests.naive import dense_matrix, read


def test_the_names_of_the_tables_are_those_of_the_types_and_of_the_documentation():
    assert get_args(Boundary) == BOUNDARIES
    assert get_args(get_args(Padding)[0]) == PADDINGS
    for parameter, names in {"padding": PADDINGS, "boundary": BOUNDARIES}.items():
        listed = ", ".join(f'"{name}"' for name in names)
        assert f"    {parameter} : {{{listed}}}" in ConvGeometry.__doc__


@given(conv_geometries())
def test_sources_follow_the_definition_of_the_boundary(geometry):
    for axis, (n, (low, high)) in enumerate(zip(geometry.image_shape, geometry.padding, strict=True)):
        expected = [read(p, n, geometry.boundary) for p in range(-low, n + high)]
        assert geometry.sources(axis).tolist() == [-1 if p is None else p for p in expected]


@pytest.mark.parametrize(
    "mode", [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap"), ("symmetric", "symmetric")]
)
def test_boundaries_agree_with_numpy_pad(mode):
    boundary, numpy_mode = mode
    for size, low, high in [(5, 2, 3), (3, 7, 8), (1, 2, 2), (2, 5, 0)]:
        geometry = ConvGeometry((1, 1, 1), (size,), padding=[(low, high)], boundary=boundary)
        assert geometry.sources(0).tolist() == np.pad(np.arange(size), (low, high), numpy_mode).tolist()


@given(conv_geometries())
def test_equal_geometries_are_equal_and_hash_alike(geometry):
    twin = ConvGeometry(geometry.kernel_shape, geometry.image_shape, **keywords_of(geometry))
    assert twin == geometry
    assert hash(twin) == hash(geometry)


@pytest.mark.parametrize(("k", "low", "high"), [(1, 0, 0), (2, 0, 1), (3, 1, 1), (4, 1, 2), (5, 2, 2)])
def test_same_padding_is_that_of_guo_and_ye(k, low, high):
    # Eq. (1.1) reads x[r - m + p], p = 1..k, with m = ceil(k / 2): from r + 1 - m to r + k - m.
    m = -(-k // 2)
    assert (m - 1, k - m) == (low, high)
    assert ConvGeometry((1, 1, k), (9,), padding="same").padding == ((low, high),)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("groups", [1, 2])
def test_omega_sets_are_where_each_kernel_entry_stands(order, groups):
    geometry = ConvGeometry((4, 3, 2, 3), (4, 5), padding="same", stride=(1, 2), groups=groups)
    kernel = np.arange(1, 1 + np.prod(geometry.kernel_shape)).reshape(geometry.kernel_shape)
    matrix = dense_matrix(kernel, geometry, order)
    for entry in np.ndindex(*geometry.kernel_shape):
        rows, columns = geometry.omega(entry, order)
        got = sorted(zip(rows.tolist(), columns.tolist(), strict=True))
        assert got == [tuple(place) for place in np.argwhere(matrix == kernel[entry]).tolist()]


@given(conv_geometries())
def test_counts_of_products_are_those_of_the_matrix(geometry):
    ones = dense_matrix(np.ones(geometry.kernel_shape, int), geometry)
    assert geometry.largest_column_count == ones.sum(axis=0).max(initial=0)
    assert geometry.largest_row_count >= ones.sum(axis=1).max(initial=0)


def test_counts_of_long_filters_need_no_table_of_outputs_by_taps():
    # Such a table would have 2**41 entries.
    long = ConvGeometry((6, 1, 2**20), (2**20,), padding="full", groups=2)
    assert long.largest_column_count == 3 * 2**20
    assert long.largest_entry_count == 1
    rows, columns = long.omega((5, 0, 2**19))
    assert rows.size == columns.size == 2**20


GOOD = {"kernel_shape": (4, 2, 3, 3), "image_shape": (6, 6), "padding": "same"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kernel_shape": 3}, TypeError, ["kernel_shape", "3"]),
        ({"kernel_shape": (4, 2)}, ShapeError, ["kernel_shape", "(4, 2)"]),
        ({"kernel_shape": (4, 2, 3, 3, 3, 3)}, ShapeError, ["kernel_shape"]),
        ({"kernel_shape": (4, 0, 3, 3)}, ValueError, ["kernel_shape[1]", "0", "at least 1"]),
        ({"kernel_shape": (4, 2.0, 3, 3)}, TypeError, ["kernel_shape[1]", "2.0", "integer"]),
        ({"image_shape": (6,)}, ShapeError, ["image_shape", "2 axes", "(6,)"]),
        ({"image_shape": (6, -1)}, ValueError, ["image_shape[1]", "-1"]),
        ({"image_shape": 6}, TypeError, ["image_shape", "6"]),
        ({"padding": "some"}, ValueError, ["padding", "'some'", "'full'"]),
        ({"padding": -1}, ValueError, ["padding", "-1"]),
        ({"padding": 1.5}, TypeError, ["padding", "1.5"]),
        ({"padding": None}, TypeError, ["padding", "None"]),
        ({"padding": (1, 2)}, ShapeError, ["padding", "(1, 2)", "pair", "each axis is ((1, 1), (2, 2))"]),
        ({"padding": ((1, 1),)}, ShapeError, ["padding", "2 axes"]),
        ({"padding": ((1, 1), (1, -0.5))}, TypeError, ["padding[1]", "-0.5"]),
        ({"padding": ((-2, -2), (0, 0))}, ShapeError, ["with padding ((-2, -2), (0, 0))", "image (6,"]),
        ({"stride": 0}, ValueError, ["stride", "0"]),
        ({"stride": 1.0}, TypeError, ["stride", "1.0"]),
        ({"stride": True}, TypeError, ["stride", "True"]),
        ({"stride": (1, 1, 1)}, ShapeError, ["stride", "(1, 1, 1)"]),
        ({"dilation": (1, 0)}, ValueError, ["dilation[1]", "0"]),
        ({"dilation": "2"}, ShapeError, ["dilation", "'2'"]),
        ({"dilation": 9, "padding": 1}, ShapeError, ["kernel", "dilation (9, 9)", "(6, 6)"]),
        ({"groups": 3}, ShapeError, ["groups", "4", "3"]),
        ({"groups": 0}, ValueError, ["groups", "0"]),
        ({"groups": None}, TypeError, ["groups", "None"]),
        ({"boundary": "periodic"}, ValueError, ["boundary", "'periodic'", "'circular'"]),
        ({"boundary": "zeros"}, ValueError, ["boundary", "got 'zeros': did you mean 'zero'?"]),
        ({"kernel_shape": (4, 2, 9, 3), "padding": 1}, ShapeError, ["kernel (9, 3)", "(6, 6)"]),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {**GOOD, **change}
    with pytest.raises(error) as caught:
        ConvGeometry(arguments.pop("kernel_shape"), arguments.pop("image_shape"), **arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "error"), [((0, 0, 0), ShapeError), ((0, 0, 0, 3), ValueError), ((0, 0, 0, 1.0), TypeError)]
)
def test_bad_entries_of_omega_are_named(entry, error):
    with pytest.raises(error, match="entry"):
        ConvGeometry(GOOD["kernel_shape"], GOOD["image_shape"], padding="same").omega(entry)


@pytest.mark.parametrize("order", ["c", None, 0])
def test_bad_orders_are_named(order):
    geometry = ConvGeometry(GOOD["kernel_shape"], GOOD["image_shape"], padding="same")
    with pytest.raises(ValueError, match="order must be one of 'C', 'F'"):
        geometry.position_map(order)
