"""How the sums of a CUDA convolution are shared among blocks: the tile of a block, and into how many splits sums fall.

By the sizes alone, so that the numbers are the same on any device: the counts of an H100 are meant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from convla._cuda import WORKSPACE, blocks_for

__all__ = ["KERNEL_ADJOINTS", "MAPS", "Split", "Tile", "share"]

_PROCESSORS = 132
_MULTIPLICATIONS = 128  # of float32, of one processor in one cycle
_BYTES = 1500  # that all of them read or write in one
_LAUNCH = 4000  # cycles
_START = 64  # terms that could be summed while a block begins and ends
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
    "f": (
        Tile(64, 128, 16, 8, 8, 2, 0.72),
        Tile(64, 64, 16, 8, 4, 3, 0.63),
        Tile(32, 128, 8, 8, 4, 4, 0.58),
        Tile(16, 128, 8, 4, 4, 6, 0.45),
        Tile(128, 128, 16, 8, 8, 1, 0.72),
    ),
    "d": (Tile(64, 64, 8, 4, 8, 2, 0.36), Tile(64, 32, 8, 4, 4, 4, 0.3), Tile(16, 64, 8, 4, 4, 6, 0.25)),
}
"""The tiles of cross-correlation and of its image adjoint, by the character of a dtype."""

KERNEL_ADJOINTS = {
    "f": (
        Tile(64, 64, 16, 8, 4, 4, 0.45),
        Tile(128, 64, 16, 8, 8, 2, 0.5),
        Tile(32, 64, 16, 4, 4, 6, 0.35),
        Tile(16, 64, 16, 4, 4, 8, 0.25),
    ),
    "d": (Tile(64, 64, 8, 4, 8, 2, 0.3), Tile(64, 32, 8, 4, 4, 4, 0.25), Tile(16, 64, 8, 4, 4, 6, 0.2)),
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
    each = blocks_for(blocks_for(terms, tile.depth), splits) * tile.depth + _START
    rounds = blocks_for(blocks, _PROCESSORS)
    # A processor with few threads waits for memory and for their barriers.
    speed = tile.speed * min(1.0, 0.5 + min(rounds, tile.resident) * tile.threads / 512)
    work = rounds * each * tile.rows * tile.columns / (_MULTIPLICATIONS * speed)
    if splits == 1:
        return work
    return work + _LAUNCH + 2 * splits * rows * columns * repeats * itemsize / _BYTES
