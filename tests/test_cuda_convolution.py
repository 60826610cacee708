"""The CUDA convolutions run on the CPU: by products of matrices and by direct sums, their tables, tiles and splits."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, _windows
from convla._cuda import WORKSPACE
from convla.engines import _cuda_maps, _cuda_plans, _cuda_tiles, cupy_convolution
from convla.engines._cuda_tiles import Split, Tile
from convla.errors import EngineError
from convla.geometry import ConvGeometry
from tests.cuda.agreement import assert_agrees
from tests.cuda.stand_in import COUNTS, Stream
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


SMALL = {"f": Tile(8, 16, 4, 4, 4, 2, 0.5, 0.5), "d": Tile(8, 8, 4, 4, 2, 2, 0.5, 0.5)}
"""Tiles with few threads, which one processor runs quickly."""


def use_products(monkeypatch: pytest.MonkeyPatch, splits: int, tiles: dict[str, Tile] = SMALL) -> None:
    """Have products of matrices, however few the channels, by one tile and in so many splits."""
    for name in ("FEW_CHANNELS", "_FEW_READ", "_FEW_ENTRIES"):
        monkeypatch.setattr(_cuda_plans, name, 0)
    for name in ("MAPS", "KERNEL_ADJOINTS"):
        monkeypatch.setattr(_cuda_plans, name, {char: (tile,) for char, tile in tiles.items()})
    monkeypatch.setattr(_cuda_plans, "share", lambda *sizes: Split(sizes[-1][0], splits))


def check(geometry: ConvGeometry, cupy: ModuleType, dtype: Any = np.float64, images: tuple[int, ...] = (3,)) -> None:
    """Compare the three maps with their references: of integers, exactly."""
    arrays = of_map(geometry, dtype, images)
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        got = operation(*(cupy.asarray(array) for array in given), geometry, engine="cuda")
        assert_agrees(got, operation.reference(*given, geometry), 0)


# Products of matrices.


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("geometry", product(seed=5, every=43), ids=name_of)
def test_products(geometry: ConvGeometry, splits: int, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use_products(monkeypatch, splits)
    check(geometry, cupy)
    assert {"multiply", "multiply_kernel_adjoint"} <= set(COUNTS)
    assert "sum_directly" not in COUNTS
    assert COUNTS["add_splits"] == (2 if splits > 1 else 0)


@pytest.mark.parametrize("images", [(), (1,), (2, 3)])
def test_any_number_of_images(images: tuple[int, ...], cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use_products(monkeypatch, 2)
    check(ConvGeometry((10, 9, 3, 2), (4, 5), padding="same", boundary="reflect"), cupy, np.float32, images)


def test_no_images(cupy: ModuleType) -> None:
    geometry = ConvGeometry((3, 2, 3), (5,), padding="same")
    arrays = of_map(geometry, np.float32, images=(2, 0))
    for (operation, names), shape in zip(MAPS, ((2, 0, 3, 5), (2, 0, 2, 5), (3, 2, 3)), strict=True):
        got = operation(*(cupy.asarray(arrays[name]) for name in names), geometry)
        assert_agrees(got, np.zeros(shape, np.float32), 0)
    assert COUNTS["launches"] == 0


@pytest.mark.command
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tiles_of_a_device(dtype: Any, cupy: ModuleType) -> None:
    # As they are chosen: channels that fill no tile, places that end within a vector, two groups.
    check(ConvGeometry((2 * 37, 21, 3, 3), (7, 9), padding="same", groups=2), cupy, dtype)
    assert COUNTS["multiply"] == 2
    assert COUNTS["multiply_kernel_adjoint"] == 1


TILES = [
    (char, tile) for char in "fd" for tile in sorted({*_cuda_tiles.MAPS[char], *_cuda_tiles.KERNEL_ADJOINTS[char]})
]
"""All tiles, each with the dtype of its entries."""


@pytest.mark.slow
@pytest.mark.parametrize(("char", "tile"), TILES)
def test_every_tile(char: str, tile: Tile, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for splits in (1, 2):
        use_products(monkeypatch, splits, {char: tile})
        size = 8 + splits  # plans are kept by the sizes alone
        check(ConvGeometry((70, 35, 3, 2), (size, 9), padding="same", stride=(1, 2)), cupy, np.dtype(char))


def test_a_few_images_at_a_time(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use_products(monkeypatch, 1)
    geometry = ConvGeometry((3, 2, 5), (10,), padding="same", boundary="reflect")
    monkeypatch.setattr(cupy_convolution, "WORKSPACE", 2 * 4 * 8 * 2 * 14)  # four extended images
    cupy_convolution._most_images.cache_clear()
    check(geometry, cupy, images=(3, 3))
    assert COUNTS["fold"] == 3
    monkeypatch.setattr(cupy_convolution, "LARGEST", 61)  # two results of correlation, three of its adjoint
    cupy_convolution._most_images.cache_clear()
    check(geometry, cupy, images=(3, 3))
    assert COUNTS["multiply"] == (1 + 3) + (5 + 3)
    cupy_convolution._most_images.cache_clear()


@pytest.mark.command
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_counting_beyond_32_bits(dtype: Any, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_plans, "LARGEST", 0)
    if dtype == np.float64:
        use_products(monkeypatch, 2)
    geometry = ConvGeometry((2, 3, 3, 2), (5, 6), padding="same", stride=(2, 1), boundary="symmetric")
    check(geometry, cupy, dtype)
    counted = {"multiply", "add_splits"} if dtype == np.float64 else {"sum_directly", "sum_kernel_adjoint"}
    assert counted | {"lay_out", "fold"} <= set(COUNTS)


@pytest.mark.parametrize("size", [2**31 - 2**14, 2**31 - 1])
def test_places_that_the_last_block_would_count_beyond_32_bits(size: int) -> None:
    found = _cuda_maps.correlation_table(ConvGeometry((1, 1, 1), (5,), padding="valid"))
    assert _cuda_plans._count(1, found) == {"COUNT": "int"}
    assert _cuda_plans._count(size // 5 + 1, found) == {"COUNT": "long long"}
    assert _cuda_plans._count(1, found._replace(largest=size + 1)) == {"COUNT": "long long"}


def test_arguments_that_are_not_contiguous(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use_products(monkeypatch, 1)
    geometry = ConvGeometry((4, 3, 3), (8,), padding="same")
    arrays = of_map(geometry, np.float64)
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        turned = [cupy.asarray(np.asfortranarray(array)) for array in given]
        for array, host in zip(turned, given, strict=True):
            array.values = np.asfortranarray(host)
        assert_agrees(operation(*turned, geometry), operation.reference(*given, geometry), 0)


# What is kept.


def test_an_operator_lays_its_weights_out_once_for_a_stream(cupy: ModuleType) -> None:
    kernel, image = np.arange(6.0).reshape(1, 2, 3), np.arange(20.0).reshape(2, 2, 5)
    operator = ConvOperator(cupy.asarray(kernel), (5,))
    wanted = ConvOperator(kernel, (5,)).apply(image)
    for _ in range(3):
        assert_agrees(operator.apply(cupy.asarray(image)), wanted, 0)
    assert COUNTS["lay_out"] == 1
    with Stream(5):
        operator.apply(cupy.asarray(image))
        operator.apply(cupy.asarray(image))
    assert COUNTS["lay_out"] == 2
    assert_agrees(operator.with_kernel(cupy.asarray(2 * kernel)).apply(cupy.asarray(image)), 2 * wanted, 0)
    assert COUNTS["sum_directly"] == 6


def test_an_image_on_another_device_than_the_operator(cupy: ModuleType) -> None:
    operator = ConvOperator(cupy.asarray(np.ones((1, 1, 3))), (5,))
    with cupy.cuda.Device(1):
        image = cupy.asarray(np.ones((1, 5)))
    with pytest.raises(EngineError, match="must be on one device, got devices 0, 1"):
        operator._apply(image)


def test_long_tables_are_not_kept(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = ConvGeometry((2, 1, 3), (20,), padding="same")
    arrays = of_map(geometry, np.float64)
    given = [cupy.asarray(arrays[name]) for name in ("image", "kernel")]
    for limit, waits in ((2**21, [1, 1]), (50, [2, 3])):
        monkeypatch.setattr(_cuda_plans, "_LARGEST_TABLE", limit)
        for count in waits:
            _windows.correlate(*given, geometry)
            assert COUNTS["streams waited for"] == count  # for a table that was copied


# Tiles and splits.


@pytest.mark.parametrize("rows", [1, 16, 100, 2048])
@pytest.mark.parametrize("columns", [1, 49, 10**6])
@pytest.mark.parametrize("terms", [1, 27, 10**5])
def test_splits_fit_the_workspace_and_have_steps(rows: int, columns: int, terms: int) -> None:
    for char, size in (("f", 4), ("d", 8)):
        for tiles in (_cuda_tiles.MAPS[char], _cuda_tiles.KERNEL_ADJOINTS[char]):
            tile, splits = _cuda_tiles.share(rows, columns, 9, terms, 2, size, tiles)
            assert tile in tiles
            assert splits == 1 or 2 * splits * rows * columns * size <= WORKSPACE // 2
            assert splits == 1 or 9 * -(-terms // tile.depth) >= 4 * splits


def test_a_device_is_filled_by_one_vector() -> None:
    # Of Lanczos: a layer of 512 channels; with one split a tenth of the processors of a large device had work.
    for places in (16, 49, 784):
        tile, splits = _cuda_tiles.share(512, places, 9, 512, 1, 4, _cuda_tiles.MAPS["f"])
        blocks = -(-512 // tile.rows) * -(-places // tile.columns) * splits
        assert blocks >= 100


@pytest.mark.parametrize(("char", "tile"), TILES)
def test_threads_come_out_even(char: str, tile: Tile) -> None:
    assert tile.threads % 32 == 0
    assert tile.threads % tile.depth == 0
    assert tile.resident * tile.threads <= 2048
    assert (
        (tile.tall * np.dtype(char).itemsize) % 16 == (tile.wide * np.dtype(char).itemsize) % 16 == 0
    )  # whole vectors


# Direct sums.


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
    assert COUNTS["sum_directly"] == 2
    assert COUNTS["waits"] == 3  # for what this test reads


@pytest.mark.command
def test_integers_of_many_channels_are_summed_directly(cupy: ModuleType) -> None:
    geometry = ConvGeometry((40, 40, 1), (3,), padding="valid")
    arrays = of_map(geometry, np.int64)
    got = _windows.correlate(cupy.asarray(arrays["image"] * 2**40), cupy.asarray(arrays["kernel"]), geometry)
    assert_agrees(got, _windows.correlate.reference(arrays["image"] * 2**40, arrays["kernel"], geometry), 0)


def test_a_sum_in_several_splits(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_plans, "_LEAST_TERMS", 100)
    geometry = ConvGeometry((2, 1, 2, 2), (9, 10), padding="full")
    arrays = of_map(geometry, np.float64, images=(7,))
    given = (arrays["features"], arrays["image"])
    got = _windows.correlate_kernel_adjoint(*map(cupy.asarray, given), geometry)
    assert_agrees(got, _windows.correlate_kernel_adjoint.reference(*given, geometry), 0)


@pytest.mark.parametrize("terms", [1, 4095, 4097, 10**5, 10**9])
@pytest.mark.parametrize("entries", [1, 9, 2304, 10**7])
def test_splits_cover_all_terms_and_none_is_empty(terms: int, entries: int) -> None:
    count, each = _cuda_plans.splits(terms, entries)
    assert (count - 1) * each < terms <= count * each
    assert count == 1 or (8 * count * entries <= WORKSPACE and each >= 2048)


# Tables.


def readings(table: Any) -> list[set[tuple[int, int, int]]]:
    """Return for each of three axes the triples (entry of the result, tap, entry of what is given) of a map's table."""
    names = ("taps", "dilations", "counts", "results", "given", "phases", "steps", "sources", "slots")
    head = dict(zip(names, table[3:30].reshape(9, 3), strict=True))
    found = []
    for axis in range(3):
        count, phases, taps = (int(head[name][axis]) for name in ("counts", "phases", "taps"))
        assert count * phases >= head["results"][axis] > (count - 1) * phases
        triples = []
        for phase in range(phases):
            start = head["slots"][axis] + phase * (1 + 2 * taps)
            slots = table[start + 1 : start + 1 + 2 * table[start]].reshape(-1, 2)
            for place in range(count):
                for tap, shift in slots:
                    source = table[head["sources"][axis] + place * head["steps"][axis] + shift]
                    assert -1 <= source < head["given"][axis]
                    entry = phase + place * phases
                    if source >= 0 and entry < head["results"][axis]:
                        triples.append((entry, int(tap), int(source)))
        assert len(set(triples)) == len(triples)
        found.append(set(triples))
    return found


@pytest.mark.parametrize("geometry", product(seed=9, every=29), ids=name_of)
def test_the_tables_hold_every_reading_once(geometry: ConvGeometry) -> None:
    lead = 3 - geometry.ndim
    forward = readings(_cuda_maps.correlation_table(geometry).table)
    backward = readings(_cuda_maps.adjoint_table(geometry).table)
    assert forward[:lead] == backward[:lead] == [{(0, 0, 0)}] * lead
    for axis in range(geometry.ndim):
        sources = geometry.axis_map(axis)
        assert forward[lead + axis] == {(p, t, q) for (p, t), q in np.ndenumerate(sources) if q >= 0}
        if _cuda_maps.is_folded(
            geometry
        ):  # then the adjoint goes to the extended image, whose places are all different
            s, d = geometry.stride[axis], geometry.dilation[axis]
            wanted = {(p * s + t * d, t, p) for p, t in np.ndindex(sources.shape)}
        else:
            wanted = {(q, t, p) for (p, t), q in np.ndenumerate(sources) if q >= 0}
            assert len(wanted) == np.count_nonzero(sources >= 0)
        assert backward[lead + axis] == wanted


def test_periodic_images_whose_outputs_go_round_once_are_not_folded() -> None:
    around = ConvGeometry((1, 1, 5), (12,), padding="same", boundary="circular")
    assert not _cuda_maps.is_folded(around)
    assert not _cuda_maps.is_folded(around.replace(stride=3))
    assert _cuda_maps.is_folded(around.replace(padding="full"))  # an output twice
    assert _cuda_maps.is_folded(around.replace(boundary="reflect"))
    assert not _cuda_maps.is_folded(around.replace(boundary="reflect", padding=((-1, 0),)))


@pytest.mark.parametrize("geometry", product(seed=9, every=97), ids=name_of)
def test_folding_adds_every_place_to_its_pixel(geometry: ConvGeometry) -> None:
    table, lead = _cuda_maps.folding_table(geometry), 3 - geometry.ndim
    pixels, places, lists = table[:9].reshape(3, 3)
    assert (*pixels[lead:],) == geometry.image_shape
    assert (*places[lead:],) == geometry.padded_shape
    for axis in range(geometry.ndim):
        first = table[lists[lead + axis] :][: pixels[lead + axis] + 1]
        held = table[lists[lead + axis] + first.size :]
        got = {(q, int(e)) for q in range(len(first) - 1) for e in held[first[q] : first[q + 1]]}
        assert got == {(int(q), e) for e, q in enumerate(geometry.sources(axis)) if q >= 0}
