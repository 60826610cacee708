"""What the CUDA convolutions launch: kernels, grids, tables, made once for a geometry, a dtype and so many images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from convla._cuda import C_TYPES, WORKSPACE, blocks_for, compiled, kept, table_on_device
from convla.engines._cuda_maps import MapTable, adjoint_table, correlation_table, folding_table, is_folded
from convla.engines._cuda_tiles import KERNEL_ADJOINTS, MAPS, share
from convla.geometry import ConvGeometry
from convla.typing import Array, IndexArray

__all__ = [
    "LARGEST",
    "KernelPlan",
    "Launch",
    "Layout",
    "Plan",
    "builds",
    "folding",
    "kernel_plan",
    "map_plan",
    "splits",
]

SUMS, PRODUCTS = "convla.engines:convolution", "convla.engines:products"

LARGEST = 2**31 - 2**14
"""How many things 32 bits count: the last block counts some more than there are."""

FEW_CHANNELS = 8
"""Channels of a group of the result up to which a map sums directly."""

_LARGEST_TABLE = 2**21
_FEW_READ = 4  # channels of what is given, of which a tile would sum many zeros
_FEW_TERMS = 256
_FULL = 2**18  # the threads that a device holds at a time
_FEW_ENTRIES = 2
_THREADS = 128
_BLOCKS = 2048
_LEAST_TERMS = 4096

R = TypeVar("R")


class Layout(NamedTuple):
    """How weights lie for a map: (groups, taps, depth, width), `transposed` for the image adjoint."""

    depth: int
    width: int
    transposed: bool


class Launch(NamedTuple):
    """A kernel, its grid, and the numbers that it takes after its arrays."""

    kernel: Any
    blocks: tuple[int]
    threads: tuple[int]
    numbers: tuple[Any, ...]

    def __call__(self, *arrays: Array) -> None:
        self.kernel(self.blocks, self.threads, (*arrays, *self.numbers))


class Plan(NamedTuple):
    """What a map does with so many images.

    Attributes
    ----------
    table : array
    layout : Layout
        That of the weights, which `lay_out` makes, `laid` entries.
    run, add, fold : Launch or None
        Of the map; of what adds the `partial` sums of several splits, and of what folds the `extended` entries of the
        image, where there are any.
    """

    table: Array
    layout: Layout
    laid: int
    lay_out: Launch
    run: Launch
    partial: int = 0
    add: Launch | None = None
    extended: int = 0
    fold: Launch | None = None


class KernelPlan(NamedTuple):
    """What the kernel adjoint does with so many images: `partial` sums, which `add` makes a kernel of, if any."""

    table: Array
    run: Launch
    partial: int = 0
    add: Launch | None = None


def map_plan(geometry: ConvGeometry, images: int, char: str, adjoint: bool) -> Plan:
    """Return the plan of cross-correlation, or of its image adjoint, for images of a dtype."""
    return _kept_or_made(_map_plan, geometry, images, char, adjoint)


def kernel_plan(geometry: ConvGeometry, images: int, char: str) -> KernelPlan:
    """Return the plan of the kernel adjoint."""
    return _kept_or_made(_kernel_plan, geometry, images, char)


def folding(geometry: ConvGeometry) -> Array:
    """Return the table of folding, on the device."""
    return _kept_or_made(_folding, geometry)


def _kept_or_made(make: Callable[..., R], geometry: ConvGeometry, *arguments: Any) -> R:
    """Return what is made of a geometry; it is kept, unless its table is long."""
    if sum(geometry.padded_shape) + 2 * sum(geometry.image_shape) > _LARGEST_TABLE:
        make = make.__wrapped__  # type: ignore[attr-defined]
    return make(geometry, *arguments)


def builds(dtype: str) -> dict[str, list[dict[str, Any]]]:
    """Return the macros of the builds of each source for a dtype."""
    char = np.dtype(dtype).char
    every = {"REAL": C_TYPES[dtype], "COUNT": "int"}
    direct = [_direct_macros(char, outs, threads) for outs in (1, 4, 8, 16) for threads in (1, _FULL)]
    products = [tile.macros for tile in (*MAPS.get(char, ()), *KERNEL_ADJOINTS.get(char, ()))]
    return {
        source: [every | macros for place, macros in enumerate(found) if macros not in found[:place]]
        for source, found in ((SUMS, direct), (PRODUCTS, products))
    }


# Maps.


@kept
def _map_plan(geometry: ConvGeometry, images: int, char: str, adjoint: bool) -> Plan:
    found = adjoint_table(geometry) if adjoint else correlation_table(geometry)
    table = _kept_or_made(_table, geometry, adjoint, _count(images, found)["COUNT"])
    make = _direct_plan if _sums_directly(found, images, char) else _product_plan
    plan = make(found, table, images, char, adjoint)
    if not (adjoint and is_folded(geometry)):
        return plan
    channels = images * geometry.in_channels
    fold = _rows("fold", channels, math.prod(geometry.image_shape), char, _plain_macros(char, images, found))
    return plan._replace(extended=channels * math.prod(geometry.padded_shape), fold=fold)


def _sums_directly(found: MapTable, images: int, char: str) -> bool:
    """Tell whether each thread sums alone: integers and few channels, unless few threads would have long sums."""
    if char not in MAPS:
        return True
    few = found.outs <= FEW_CHANNELS or found.ins <= _FEW_READ
    return few and (found.taps * found.ins <= _FEW_TERMS or images * found.places * found.repeats >= _FULL // 16)


def _direct_plan(found: MapTable, table: Array, images: int, char: str, adjoint: bool) -> Plan:
    places = images * found.places
    macros = {**_count(images, found), **_direct_macros(char, found.outs, places * found.repeats)}
    parts = blocks_for(found.outs, macros["CHANNELS"])
    layout = Layout(found.ins, parts * macros["CHANNELS"], adjoint)
    blocks = blocks_for(places, _THREADS * macros["POSITIONS"]) * parts * found.repeats
    run = _launch("sum_directly", blocks, char, macros, *_int32(images, layout.width))
    return _with_weights(found, table, char, macros, layout, run)


def _direct_macros(char: str, outs: int, threads: int) -> dict[str, Any]:
    """Return what the build of direct sums defines: the channels of a thread, and its places where there are many."""
    exact = char not in MAPS
    channels = 4 if exact else next((count for count in (1, 4, 8) if count >= outs), 16)
    positions = 1 if exact or threads < _FULL else 4 if char == "f" and channels < 16 else 2
    return {"CHANNELS": channels, "POSITIONS": positions, "THREADS": _THREADS}


def _product_plan(found: MapTable, table: Array, images: int, char: str, adjoint: bool) -> Plan:
    places, size = images * found.places, np.dtype(char).itemsize
    tile, parts = share(found.outs, places, found.taps, found.ins, found.repeats, size, MAPS[char])
    macros = {**_count(images, found), **tile.macros}
    layout = Layout(_rounded(found.ins, tile.depth), _rounded(found.outs, tile.rows), adjoint)
    blocks = blocks_for(places, tile.columns) * blocks_for(found.outs, tile.rows) * found.repeats * parts
    run = _launch("multiply", blocks, char, macros, *_int32(images, layout.depth, layout.width, parts))
    plan = _with_weights(found, table, char, _plain_macros(char, images, found), layout, run)
    if parts == 1:
        return plan
    rows = found.repeats * found.outs
    add = _rows("add_splits", rows, places, char, macros, *_int32(images, parts))
    return plan._replace(partial=parts * rows * _rounded(places, 16 // size), add=add)


def _with_weights(
    found: MapTable, table: Array, char: str, macros: dict[str, Any], layout: Layout, run: Launch
) -> Plan:
    pairs = found.groups * layout.depth * layout.width
    numbers = _int32(found.outs, found.ins, found.kernel_taps, layout.depth, layout.width, int(layout.transposed))
    lay_out = _each("lay_out", pairs, char, macros, *numbers, np.int64(pairs))
    return Plan(table, layout, pairs * found.kernel_taps, lay_out, run)


# The kernel adjoint.


@kept
def _kernel_plan(geometry: ConvGeometry, images: int, char: str) -> KernelPlan:
    found = correlation_table(geometry)
    table = _kept_or_made(_table, geometry, False, _count(images, found)["COUNT"])
    direct = char not in KERNEL_ADJOINTS or found.outs * found.ins <= _FEW_ENTRIES
    return (_direct_kernel_plan if direct else _product_kernel_plan)(found, table, images, char)


def _direct_kernel_plan(found: MapTable, table: Array, images: int, char: str) -> KernelPlan:
    terms, entries = images * found.places, found.groups * found.outs * found.ins * found.kernel_taps
    macros = _plain_macros(char, images, found)
    count, each = splits(terms, entries)
    run = _launch(
        "sum_kernel_adjoint", count * entries, char, macros, *_counted(np.array([terms, each]), macros["COUNT"])
    )
    add = None if count == 1 else _each("add_up", entries, char, macros, np.int64(count))
    return KernelPlan(table, run, count * entries, add)


def splits(terms: int, entries: int) -> tuple[int, int]:
    """Return into how many splits the direct sums of a kernel adjoint fall, and how long each is.

    By the sizes alone, so that the numbers are the same on any device: enough blocks for a large one, unless a split
    would be shorter than what its threads start up for, or the partial sums would not fit in the workspace.
    """
    count = min(blocks_for(_BLOCKS, entries), blocks_for(terms, _LEAST_TERMS), max(1, WORKSPACE // (8 * entries)))
    each = blocks_for(terms, max(count, 1))
    return max(1, blocks_for(terms, max(each, 1))), each


def _product_kernel_plan(found: MapTable, table: Array, images: int, char: str) -> KernelPlan:
    terms, size = images * found.places, np.dtype(char).itemsize
    columns = found.kernel_taps * _rounded(found.ins, 16 // size)
    tile, parts = share(found.outs, columns, 1, terms, found.groups, size, KERNEL_ADJOINTS[char])
    macros = {**_count(images, found), **tile.macros}
    blocks = blocks_for(found.outs, tile.rows) * blocks_for(columns, tile.columns) * found.groups * parts
    run = _launch("multiply_kernel_adjoint", blocks, char, macros, *_int32(images, parts))
    entries = found.groups * found.outs * found.ins * found.kernel_taps
    add = _each("add_kernels", entries, char, macros, *_int32(parts))
    return KernelPlan(table, run, parts * found.groups * found.outs * columns, add)


# Launches.


def _launch(name: str, blocks: int, char: str, macros: dict[str, Any], *numbers: Any) -> Launch:
    source = PRODUCTS if "ROWS" in macros else SUMS
    kernel = compiled(source, name, REAL=C_TYPES[np.dtype(char).name], **macros)
    return Launch(kernel, (blocks,), (macros["THREADS"],), numbers)


def _each(name: str, count: int, char: str, macros: dict[str, Any], *numbers: Any) -> Launch:
    """Return the launch of a kernel whose threads have one thing each."""
    return _launch(name, blocks_for(count, macros["THREADS"]), char, macros, *numbers)


def _plain_macros(char: str, images: int, found: MapTable) -> dict[str, Any]:
    """Return what the build defines that has the kernels beside the sums themselves."""
    return {**_count(images, found), **_direct_macros(char, 1, 1)}


def _rows(name: str, rows: int, count: int, char: str, macros: dict[str, Any], *numbers: Any) -> Launch:
    """Return the launch of a kernel whose threads have one thing each, with blocks of their own for each row."""
    return _launch(name, rows * blocks_for(count, macros["THREADS"]), char, macros, *numbers)


def _count(images: int, found: MapTable) -> dict[str, Any]:
    """Return the macro of the type that counts places, which is as short as they allow."""
    return {"COUNT": "int" if max(images * found.places, found.largest) <= LARGEST else "long long"}


@kept
def _table(geometry: ConvGeometry, adjoint: bool, count: str) -> Array:
    found = adjoint_table(geometry) if adjoint else correlation_table(geometry)
    return cast(Array, table_on_device(_counted(found.table, count)))


@kept
def _folding(geometry: ConvGeometry) -> Array:
    table = folding_table(geometry)
    return cast(Array, table_on_device(_counted(table, _count(1, adjoint_table(geometry))["COUNT"])))


def _counted(table: IndexArray, count: str) -> Any:
    return table.astype(np.int32 if count == "int" else np.int64)


def _int32(*numbers: int) -> tuple[Any, ...]:
    return tuple(map(np.int32, numbers))


def _rounded(count: int, size: int) -> int:
    return blocks_for(count, size) * size
