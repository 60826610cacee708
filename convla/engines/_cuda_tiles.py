"""How the sums of a CUDA convolution are shared among blocks: the tile of a block, and into how many splits sums fall.

By the sizes alone, so that the numbers are the same on any device: the counts of an H100 are meant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from convla._cuda import WORKSPACE, blocks_for

__all__ = ["KERNEL_ADJOINTS", "MAPS", "Split", "Tile", "share"]

_PROCESSORS = 132
_MULTIPLICATIONS = 128  # of float32, of one processor in one cycle
_BYTES = 1500  # that all of them read or write in one, as the sums of splits come and go
_LAUNCH = 6000  # cycles
_START = 32  # terms that could be summed while a block begins and ends
_MOST_SPLITS = 352
_ROOM = WORKSPACE // 2  # for partial sums; the other half may hold extended images


class Tile(NamedTuple):
    """What a block sums: `rows` channels and `columns` places, `depth` terms at a time; a thread `tall` by `wide`.

    Attributes
    ----------
    resident : int
        The blocks that a processor has room for.
    together, alone : float
        What part of the multiplications of float32 that a processor could do is done, with so many blocks on it, and
        with one; measured on an H200.
    """

    rows: int
    columns: int
    depth: int
    tall: int
    wide: int
    resident: int
    together: float
    alone: float

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.rows // self.tall * (self.columns // self.wide)

    @property
    def macros(self) -> dict[str, Any]:
        """What the build for this tile defines."""
        names = {"ROWS": self.rows, "COLUMNS": self.columns, "DEPTH": self.depth, "TALL": self.tall, "WIDE": self.wide}
        return {**names, "BLOCKS": self.resident, "THREADS": self.threads}


MAPS = {
    "f": (
        Tile(64, 128, 16, 8, 8, 2, 0.70, 0.57),
        Tile(128, 64, 16, 8, 8, 2, 0.76, 0.55),
        Tile(64, 64, 16, 8, 4, 3, 0.63, 0.58),
        Tile(64, 32, 16, 4, 4, 6, 0.56, 0.38),
        Tile(32, 128, 8, 8, 4, 4, 0.60, 0.39),
        Tile(16, 128, 16, 4, 4, 6, 0.52, 0.34),
    ),
    "d": (
        Tile(64, 64, 8, 8, 4, 2, 0.32, 0.22),
        Tile(64, 32, 16, 4, 4, 3, 0.26, 0.17),
        Tile(16, 64, 8, 4, 4, 6, 0.23, 0.10),
    ),
}
"""The tiles of cross-correlation and of its image adjoint, by the character of a dtype."""

KERNEL_ADJOINTS = {
    "f": (
        Tile(64, 64, 32, 8, 4, 3, 0.59, 0.38),
        Tile(128, 64, 16, 8, 8, 2, 0.63, 0.42),
        Tile(64, 64, 16, 8, 4, 3, 0.57, 0.42),
        Tile(32, 64, 16, 4, 4, 6, 0.51, 0.30),
        Tile(16, 64, 16, 4, 4, 8, 0.38, 0.15),
    ),
    "d": (
        Tile(64, 64, 8, 8, 4, 2, 0.28, 0.19),
        Tile(64, 32, 16, 4, 4, 3, 0.25, 0.16),
        Tile(16, 64, 16, 4, 4, 6, 0.19, 0.09),
    ),
}
"""The tiles of the kernel adjoint."""


class Split(NamedTuple):
    """A tile, and into how many splits the terms of its sums fall."""

    tile: Tile
    splits: int


def share(
    rows: int, columns: int, lines: int, terms: int, repeats: int, itemsize: int, tiles: tuple[Tile, ...]
) -> Split:
    """Return the tile and the splits that take the least time.

    Parameters
    ----------
    rows, columns, repeats : int
        Of the products, and how many there are.
    lines, terms : int
        The sums have so many lines, each of which is filled up to whole depths of a tile, of so many terms.
    itemsize : int
        Of an entry.
    tiles : tuple of Tile
        Those to choose among.
    """
    product = rows * columns * repeats
    found = [
        (_cycles(rows, columns, repeats, steps, product * itemsize, tile, splits), tile, splits)
        for tile in tiles
        for steps in [lines * blocks_for(terms, tile.depth)]
        for splits in _choices(product * itemsize, steps)
    ]
    _, tile, splits = min(found)
    return Split(tile, splits)


def _choices(partial: int, steps: int) -> list[int]:
    """Return numbers of splits: such that each has some steps, and their partial sums fit in the workspace."""
    most = max(1, min(_MOST_SPLITS, steps // 4, _ROOM // max(partial, 1)))
    return [splits for splits in (*range(1, 17), *range(18, _MOST_SPLITS + 1, 2)) if splits <= most]


def _cycles(rows: int, columns: int, repeats: int, steps: int, product: int, tile: Tile, splits: int) -> float:
    blocks = blocks_for(rows, tile.rows) * blocks_for(columns, tile.columns) * repeats * splits
    terms = blocks_for(steps, splits) * tile.depth + _START
    # The processor with most blocks has all the room taken some times, and less at the end.
    full, last = divmod(blocks_for(blocks, _PROCESSORS), tile.resident)
    cycles = full * tile.resident / tile.together
    if last:
        alike = (last - 1) / (tile.resident - 1)
        cycles += last / (tile.alone + (tile.together - tile.alone) * alike)
    cycles *= terms * tile.rows * tile.columns / _MULTIPLICATIONS
    return cycles if splits == 1 else cycles + _LAUNCH + 2 * splits * product / _BYTES
