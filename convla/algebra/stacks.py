"""Maps on channels of their own: on top of each other, side by side, and block diagonal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, final

from convla._array import namespace
from convla.algebra.arithmetic import in_one_setting
from convla.algebra.composite import Composite, summed
from convla.errors import ShapeError
from convla.linear_map import LinearMap
from convla.typing import Array

__all__ = [
    "BlockDiagonal",
    "Stack",
    "block_diagonal",
    "hstack",
    "split",
    "vstack",
]


def vstack(maps: Sequence[LinearMap]) -> LinearMap:
    """Return the map that gives the values of several maps, their channels one after the other: concatenated features.

    Parameters
    ----------
    maps : sequence of LinearMap
        Of one domain, and ranges with the same positions.

    Returns
    -------
    LinearMap
        Whose matrix is that of the maps stacked one on top of the other.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If one is no map, they do not fit each other, or there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, vstack
    >>> left, right = (ConvOperator(np.array(k), (2,)) for k in ([[[1.0, 0.0, 0.0]]], [[[0.0, 0.0, 1.0]]]))
    >>> vstack([left, right]).apply(np.array([[1.0, 2.0]]))
    array([[0., 1.],
           [2., 0.]])
    """
    found = in_one_setting("vstack", maps)
    domain = found[0].domain_shape
    for place, one in enumerate(found):
        if one.domain_shape != domain:
            raise ShapeError(
                f"vstack takes maps of one domain: maps[0] takes {domain}, maps[{place}] {one.domain_shape}"
            )
    _check_positions("vstack", "gives", [one.range_shape for one in found])
    return found[0] if len(found) == 1 else Stack(found, rows=True)


def hstack(maps: Sequence[LinearMap]) -> LinearMap:
    """Return the map that takes the arguments of several maps, their channels one after the other, and sums the values.

    Parameters
    ----------
    maps : sequence of LinearMap
        Of one range, and domains with the same positions.

    Returns
    -------
    LinearMap
        Whose matrix is that of the maps side by side.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `vstack`.

    Examples
    --------
    >>> from convla import hstack, identity
    >>> hstack([identity((1, 2)), 2 * identity((1, 2))]).to_dense()
    array([[1., 0., 2., 0.],
           [0., 1., 0., 2.]])
    """
    found = in_one_setting("hstack", maps)
    values = found[0].range_shape
    for place, one in enumerate(found):
        if one.range_shape != values:
            raise ShapeError(f"hstack takes maps of one range: maps[0] gives {values}, maps[{place}] {one.range_shape}")
    _check_positions("hstack", "takes", [one.domain_shape for one in found])
    return found[0] if len(found) == 1 else Stack(found, rows=False)


def block_diagonal(maps: Sequence[LinearMap]) -> LinearMap:
    """Return the direct sum: each map on channels of its own, those of arguments and of values one after the other.

    Parameters
    ----------
    maps : sequence of LinearMap
        Whose domains have the same positions, and whose ranges have.

    Returns
    -------
    LinearMap

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `vstack`.

    Examples
    --------
    >>> from convla import block_diagonal, identity, largest_singular_value
    >>> whole = block_diagonal([identity((1, 2)), 3 * identity((2, 2))])
    >>> whole.shape, float(largest_singular_value(whole))
    ((6, 6), 3.0)
    """
    found = in_one_setting("block_diagonal", maps)
    _check_positions("block_diagonal", "takes", [one.domain_shape for one in found])
    _check_positions("block_diagonal", "gives", [one.range_shape for one in found])
    return found[0] if len(found) == 1 else BlockDiagonal(found)


def _check_positions(what: str, verb: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise `ShapeError` unless arrays of these shapes differ in their channels alone."""
    for place, shape in enumerate(shapes):
        if shape[1:] != shapes[0][1:]:
            raise ShapeError(
                f"{what} joins channels, of the same positions: maps[0] {verb} {shapes[0]}, maps[{place}] {shape}"
            )


@final
class Stack(Composite):
    """Maps one on top of the other, or side by side: their values, or their arguments, one after the other.

    Attributes
    ----------
    rows : bool
        Whether it is the values.
    """

    def __init__(self, parts: tuple[LinearMap, ...], *, rows: bool) -> None:
        super().__init__(parts)
        self.rows = rows

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """That of each part, or all of their channels."""
        shapes = [part.domain_shape for part in self._parts]
        return shapes[0] if self.rows else _joined_shape(shapes)

    @property
    def range_shape(self) -> tuple[int, ...]:
        """All channels of the parts, or that of each part."""
        shapes = [part.range_shape for part in self._parts]
        return _joined_shape(shapes) if self.rows else shapes[0]

    def _transposed(self) -> Composite:
        return Stack(tuple(part.T for part in self._parts), rows=not self.rows)

    def _forward(self, array: Array, door: str) -> Array:
        if self.rows:
            return _concatenated([getattr(part, door)(array) for part in self._parts], self.range_shape)
        pieces = split(array, [part.domain_shape for part in self._parts])
        return summed([getattr(part, door)(piece) for part, piece in zip(self._parts, pieces, strict=True)], door)

    def _assembled(self, matrices: Sequence[Any], library: Any) -> Any:
        return library.vstack(matrices) if self.rows else library.hstack(matrices)

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        if self.rows:
            for part, piece in zip(self._parts, split(u, [part.range_shape for part in self._parts]), strict=True):
                yield part, piece, v
        else:
            for part, piece in zip(self._parts, split(v, [part.domain_shape for part in self._parts]), strict=True):
                yield part, u, piece

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        return vstack(parts) if self.rows else hstack(parts)


@final
class BlockDiagonal(Composite):
    """The direct sum of maps: each on channels of its own."""

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """All channels of the parts."""
        return _joined_shape([part.domain_shape for part in self._parts])

    @property
    def range_shape(self) -> tuple[int, ...]:
        """All channels of the parts."""
        return _joined_shape([part.range_shape for part in self._parts])

    def _transposed(self) -> Composite:
        return BlockDiagonal(tuple(part.T for part in self._parts))

    def _forward(self, array: Array, door: str) -> Array:
        pieces = split(array, [part.domain_shape for part in self._parts])
        images = [getattr(part, door)(piece) for part, piece in zip(self._parts, pieces, strict=True)]
        return _concatenated(images, self.range_shape)

    def _assembled(self, matrices: Sequence[Any], library: Any) -> Any:
        return library.block_diag(matrices)

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        left = split(u, [part.range_shape for part in self._parts])
        yield from zip(self._parts, left, split(v, [part.domain_shape for part in self._parts]), strict=True)

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        return block_diagonal(parts)


def _joined_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _concatenated(images: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Put the channels of arrays one after the other, for a joined shape."""
    return namespace(images[0]).concat(images, axis=-len(shape))


def split(array: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Return the channels of an array (..., c, *positions) in pieces of these shapes."""
    ends = list(itertools.accumulate(shape[0] for shape in shapes))
    rest = (slice(None),) * (len(shapes[0]) - 1)
    return [array[(..., slice(end - shape[0], end), *rest)] for shape, end in zip(shapes, ends, strict=True)]
