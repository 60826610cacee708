"""The CUDA convolutions run on the CPU: by products of matrices, by direct sums, in pieces that fit the workspace."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convla import _windows
from convla._cuda import WORKSPACE
from convla.engines import cupy_convolution
from convla.geometry import ConvGeometry
from tests.cuda.agreement import assert_agrees
from tests.cuda.stand_in import COUNTS
from tests.geometries import integers, name_of, product


def of_map(geometry: ConvGeometry, dtype: Any, images: tuple[int, ...] = (2,)) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    shapes = {"image": geometry.domain_shape, "features": geometry.range_shape}
    arrays = {name: integers(rng, (*images, *shape), dtype) for name, shape in shapes.items()}
    return {**arrays, "kernel": integers(rng, geometry.kernel_shape, dtype)}


MAPS = (
    (_windows.correlate, ("image", "kernel")),
    (_windows.correlate_image_adjoint, ("features", "kernel")),
    (_windows.correlate_kernel_adjoint, ("features", "image")),
)


@pytest.mark.parametrize("geometry", product(seed=5, every=41), ids=name_of)
def test_products_of_matrices(geometry: ConvGeometry, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "FEW_CHANNELS", 0)
    arrays = of_map(geometry, np.float64)
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        for room in (2**28, 3000, 1):
            monkeypatch.setattr(cupy_convolution, "WORKSPACE", room)
            got = operation(*(cupy.asarray(array) for array in given), geometry, engine="cuda")
            assert_agrees(got, operation.reference(*given, geometry), 0)
    assert COUNTS["launches"] == 0


@pytest.mark.parametrize("more", [0, 500])
@pytest.mark.parametrize("room", [2**28, 40000, 9000, 1])
def test_pieces_cover_all_and_fit_in_the_workspace(room: int, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "WORKSPACE", room)
    geometry = ConvGeometry((4, 3, 3, 2), (9, 8), padding="full", stride=(2, 1))
    covered = np.zeros((7, geometry.output_shape[0]), int)
    for some, parts in cupy_convolution._pieces(np.empty((7, 1), np.float32), geometry, more):
        for rows in parts:
            covered[some, rows] += 1
            count, height = some.stop - some.start, rows.stop - rows.start
            windows = 18 * height * geometry.output_shape[1]  # of 3 channels and 3x2 taps
            taken = 4 * count * (2 * 3 * 13 * 10 + windows + 4 * height * geometry.output_shape[1] + more)
            assert taken <= room or (count, height) == (1, 1)
    assert np.all(covered == 1)


@pytest.mark.command
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_direct_sums_with_the_threads_of_a_device(dtype: Any, cupy: ModuleType) -> None:
    geometry = ConvGeometry((6, 2, 3, 2), (13, 14), padding="same", groups=2, stride=(1, 2), boundary="reflect")
    arrays = of_map(geometry, dtype, images=(2, 3))
    if dtype == np.int8:
        arrays = {name: array // 9 for name, array in arrays.items()}  # sums that fit
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        got = operation(*(cupy.asarray(array) for array in given), geometry)  # "auto" takes it
        assert_agrees(got, operation.reference(*given, geometry), 0)
        assert COUNTS[operation.operation] == 1
    assert COUNTS["waits"] == 3  # for what this test reads


@pytest.mark.command
def test_images_beyond_one_grid(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "_THREADS", 32)
    monkeypatch.setattr(cupy_convolution, "LARGEST_GRID", 70)
    geometry = ConvGeometry((10, 1, 3), (100,), padding="same", groups=1)
    arrays = of_map(geometry, np.float64, images=(5, 2))
    operation, names = MAPS[0]
    given = [arrays[name] for name in names]
    got = operation(*(cupy.asarray(array) for array in given), geometry)
    assert_agrees(got, operation.reference(*given, geometry), 0)
    assert COUNTS["correlate"] == 2  # 12 blocks an image, 5 images at a time


def test_long_tables_are_left_to_products(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "_LARGEST_TABLE", 50)
    geometry = ConvGeometry((2, 1, 3), (20,), padding="same")
    arrays = of_map(geometry, np.float64)
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        got = operation(*(cupy.asarray(array) for array in given), geometry)
        assert_agrees(got, operation.reference(*given, geometry), 0)
    assert COUNTS["launches"] == 0


@pytest.mark.parametrize("size", [2**31 - 2**7, 2**31 - 1])
def test_positions_that_the_last_block_would_count_beyond_32_bits(size: int) -> None:
    small = np.empty(0, np.float32)
    assert not cupy_convolution._sums_directly(small, ConvGeometry((1, 1, 1), (size,), padding="valid", stride=2**30))
    assert not cupy_convolution._sums_directly(small, ConvGeometry((size, 1, 1), (1,), padding="valid", groups=size))


@pytest.mark.parametrize("stride", [1, 3000])
def test_tables_that_are_kept_are_no_longer_than_said(stride: int) -> None:
    # A long signal has as many first entries as pixels, however few of them are read.
    geometry = ConvGeometry((1, 1, 3), (10**5,), padding="valid", stride=stride)
    tables = [make(geometry).size for make in (cupy_convolution.reads, cupy_convolution.readers)]
    counted = 10**5 + 2 * 3 * geometry.output_shape[0]
    assert counted < max(tables) <= counted + 100
    assert cupy_convolution._sums_directly(np.empty(0, np.float32), geometry)
    far = ConvGeometry((1, 1, 3), (2**21,), padding="valid", stride=stride)
    assert not cupy_convolution._sums_directly(np.empty(0, np.float32), far)


def test_the_image_adjoint_extends_a_few_images_at_a_time(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "FEW_CHANNELS", 0)
    monkeypatch.setattr(cupy_convolution, "WORKSPACE", 4 * 8 * (2 * 2 * 14 + (2 * 5 + 3) * 10))  # four images
    seen: list[int] = []
    run = cupy_convolution.fold
    monkeypatch.setattr(cupy_convolution, "fold", lambda array, *rest: seen.append(array.shape[0]) or run(array, *rest))
    geometry = ConvGeometry((3, 2, 5), (10,), padding="same", boundary="circular")
    arrays = of_map(geometry, np.float64, images=(3, 3))
    operation, names = MAPS[1]
    given = [arrays[name] for name in names]
    got = operation(*(cupy.asarray(array) for array in given), geometry)
    assert_agrees(got, operation.reference(*given, geometry), 0)
    assert seen == [4, 4, 1]


@pytest.mark.command
def test_integers_of_many_channels_are_summed_directly(cupy: ModuleType) -> None:
    geometry = ConvGeometry((40, 40, 1), (3,), padding="valid")
    arrays = of_map(geometry, np.int64)
    got = _windows.correlate(cupy.asarray(arrays["image"] * 2**40), cupy.asarray(arrays["kernel"]), geometry)
    assert_agrees(got, _windows.correlate.reference(arrays["image"] * 2**40, arrays["kernel"], geometry), 0)


def test_a_sum_in_several_splits(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "_LEAST_TERMS", 100)
    monkeypatch.setattr(cupy_convolution, "_THREADS", 32)
    geometry = ConvGeometry((2, 1, 2, 2), (9, 10), padding="full")
    arrays = of_map(geometry, np.float64, images=(7,))
    given = (arrays["features"], arrays["image"])
    got = _windows.correlate_kernel_adjoint(*map(cupy.asarray, given), geometry)
    assert_agrees(got, _windows.correlate_kernel_adjoint.reference(*given, geometry), 0)


@pytest.mark.parametrize("terms", [1, 4095, 4097, 10**5, 10**9])
@pytest.mark.parametrize("entries", [1, 9, 2304, 10**7])
def test_splits_cover_all_terms_and_none_is_empty(terms: int, entries: int) -> None:
    count, each = cupy_convolution.splits(terms, entries)
    assert (count - 1) * each < terms <= count * each
    assert count == 1 or (8 * count * entries <= WORKSPACE and each >= 2048)


@pytest.mark.parametrize("geometry", product(seed=9, every=67), ids=name_of)
def test_the_tables_hold_every_reading_once(geometry: ConvGeometry) -> None:
    # Both say the same: who reads what, once from the output's side and once from the pixel's.
    lead, head = 3 - geometry.ndim, 12
    table, other = cupy_convolution.reads(geometry), cupy_convolution.readers(geometry)
    np.testing.assert_array_equal(table[:head], other[:head])
    outputs, taps, pixels = table[3:6], table[6:9], table[9:12]
    at, there = head, head
    for axis in range(3):
        sources = table[at : at + outputs[axis] * taps[axis]].reshape(outputs[axis], taps[axis])
        at += sources.size
        first = other[there : there + pixels[axis] + 1]
        there += first.size
        pairs = other[there : there + 2 * first[-1]].reshape(-1, 2)
        there += pairs.size
        if axis >= lead:
            np.testing.assert_array_equal(sources, geometry.axis_map(axis - lead))
        listed = [(p, t, q) for q in range(pixels[axis]) for p, t in pairs[first[q] : first[q + 1]]]
        wanted = [(p, t, q) for (p, t), q in np.ndenumerate(sources) if q >= 0]
        assert sorted(listed) == sorted(wanted)
    assert (at, there) == (table.size, other.size)
