"""How the sums of a CUDA convolution are shared among blocks: the tile of a block, and into how many splits sums fall.

By the sizes alone, so that the numbers are the same on any device: the counts of an H100 are meant.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from convla._cuda import WORKSPACE, blocks_for

__all__ = ["KERNEL_ADJOINTS", "MAPS", "Split", "Tile", "share"]

_PROCESSORS = 132
_MULTIPLICATIONS = 128  # of float32, of one processor in one cycle
_BYTES = 1500  # that all of them read or write in one
_LAUNCH = 4000  # cycles
_MOST_SPLITS = 256


class Tile(NamedTuple):
    """What a block sums: `rows` channels and `columns` places, `depth` terms at a time; a thread `tall` by `wide`.

    Attributes
    ----------
    resident : int
        The blocks that a processor should have room for.
    speed : float
        What part of a processor's multiplications it reaches, with several blocks on it.
    """

    rows: int
    columns: int
    depth: int
    tall: int
    wide: int
    resident: int
    speed: float

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
    "f": (Tile(64, 128, 8, 8, 8, 3, 0.6), Tile(64, 64, 16, 8, 4, 4, 0.5), Tile(32, 128, 8, 8, 4, 4, 0.45)),
    "d": (Tile(64, 64, 8, 4, 8, 3, 0.3), Tile(64, 32, 8, 4, 4, 4, 0.25)),
}
"""The tiles of cross-correlation and of its image adjoint, by the character of a dtype."""

KERNEL_ADJOINTS = {
    "f": (Tile(64, 64, 16, 8, 4, 4, 0.5), Tile(64, 128, 8, 8, 8, 3, 0.55), Tile(16, 64, 16, 4, 4, 8, 0.35)),
    "d": (Tile(64, 32, 8, 4, 4, 4, 0.25), Tile(16, 32, 8, 2, 4, 8, 0.2)),
}
"""The tiles of the kernel adjoint."""


class Split(NamedTuple):
    """A tile, and into how many splits the terms of its sums fall."""

    tile: Tile
    splits: int


def share(rows: int, columns: int, terms: int, repeats: int, itemsize: int, tiles: tuple[Tile, ...]) -> Split:
    """Return the tile and the splits that take the least time for `repeats` products (rows, terms) (terms, columns)."""
    found = [(_cycles(rows, columns, terms, repeats, itemsize, tile, splits), tile, splits)
             for tile in tiles
             for splits in _choices(rows * columns * repeats * itemsize, terms, tile)]
    _, tile, splits = min(found)
    return Split(tile, splits)


def _choices(partial: int, terms: int, tile: Tile) -> list[int]:
    """Return numbers of splits: such that each has some steps, and their partial sums fit in the workspace."""
    most = max(1, min(_MOST_SPLITS, blocks_for(terms, 4 * tile.depth), WORKSPACE // max(partial, 1)))
    few = [splits for splits in range(1, 17) if splits <= most]
    return few + [splits for splits in range(20, most + 1, 4)]


def _cycles(rows: int, columns: int, terms: int, repeats: int, itemsize: int, tile: Tile, splits: int) -> float:
    blocks = blocks_for(rows, tile.rows) * blocks_for(columns, tile.columns) * repeats * splits
    steps = blocks_for(blocks_for(terms, tile.depth), splits) + 4
    together = min(tile.resident, math.ceil(blocks / _PROCESSORS))
    # A block alone waits for memory and for its barriers much of the time.
    speed = tile.speed * min(1.0, 0.4 + 0.3 * together * tile.threads / 128)
    work = math.ceil(blocks / _PROCESSORS) * steps * tile.depth * tile.rows * tile.columns / (_MULTIPLICATIONS * speed)
    if splits == 1:
        return work
    return work + _LAUNCH + 2 * splits * rows * columns * repeats * itemsize / _BYTES
