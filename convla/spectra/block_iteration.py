"""A block iteration for one end of the spectrum of ``B^T B``, for a batch of maps B at once.

Vectors are rows, in stacks of shape (maps, rows, entries). Every projection is made map by map, every application of
the maps for all of them together; see `convla.spectra.batch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convla._array import device_of, is_on_gpu, namespace, on_device_of, row_dots, to_numbers
from convla.spectra.batch import Batch
from convla.spectra.result import End
from convla.typing import Array, Namespace

__all__ = ["Block", "SearchSpace", "iterate", "least_share", "orthonormal", "reach"]

_LEAST_SHARE = 0.01
"""A map is done with when its vector holds less than this share of what a random vector holds of one eigenvector."""

_ROOM = 12
"""The search space grows to so many times the wanted vectors before it is cut back."""

_SPACE_BYTES = 1 << 26
"""Of the search space with its images, beyond which it is cut back earlier."""

_TOGETHER = 8
"""So many chunks of rows become one: products with a few rows are bound by memory, as a copy is."""

_INDEPENDENT = 1e-3
"""Of the squared length of a unit vector, what has to be left when its part in other vectors is removed."""


@dataclass(frozen=True)
class Block:
    """Approximate eigenvectors of ``B^T B`` for each map B of a batch, the outermost of each first.

    Attributes
    ----------
    squares, residuals : array of shape (maps, rows)
        Squared singular values ``|B v|^2``, and ``|B^T B v - |B v|^2 v|``.
    vectors, images : array of shape (maps, rows, n) and (maps, rows, m)
        Orthonormal vectors v, and ``B v``.
    products : int
        How many vectors were multiplied by ``B^T B`` to find them, one of each map together.
    """

    squares: Array
    residuals: Array
    vectors: Array
    images: Array
    products: int


def iterate(
    batch: Batch,
    basis: Array,
    *,
    count: int,
    settled: int,
    end: End,
    rtol: float,
    steps: int,
    probes: int = 0,
    probe_steps: int = 0,
    bar: float = -math.inf,
    outermost: bool = False,
    norm: float = 0.0,
    beside: float = -math.inf,
) -> tuple[Block, bool, float]:
    """Take steps of a block iteration from an orthonormal basis.

    Parameters
    ----------
    batch : Batch
    basis : array of shape (maps, rows, n)
        Of at least `count` orthonormal rows; more are a larger first search space.
    count : int
        How many vectors of each map are wanted, at most n.
    settled : int
        The iteration ends when the outermost so many vectors of each map have residuals below ``rtol * sigma_max^2``,
        or show that nothing beyond the bar is to come from their map.
    end : {"largest", "smallest"}
    rtol : float
    steps : int
        Of the iteration, at most.
    probes, probe_steps : int
        Once it has converged, so many of the last vectors are multiplied until it has taken so many steps.
    bar : float
        A squared singular value, its sign changed for the smallest end, that is known from other maps: what does not
        reach it is not wanted. That of the `settled`-th outermost value of the batch is the bar where it is higher.
    outermost : bool
        At the lower end, whether a square below ``rtol * sigma_max^2`` ends the iteration, as none is below 0.
    norm : float
        A lower bound of sigma_max^2, if the space may not show it.
    beside : float
        A squared singular value, its sign changed for the smallest end, which there may be beside those that the basis
        stands for: where the outermost of these does not come up to it, nothing more is done.

    Returns
    -------
    block : Block
        With `count` rows.
    converged : bool
    tolerance : float
        What residuals were held against.

    Notes
    -----
    The Rayleigh-Ritz method on a space that grows by the residuals of the vectors that still move: a block Krylov
    space, since residuals of Ritz vectors span what one more multiplication adds. It is cut back to the outermost Ritz
    vectors, twice as many as are wanted, where it has become too large (a thick restart). Only coefficients are
    computed in between; what they combine is multiplied once, at the end. A GPU is waited for once in a step: whether
    new rows brought anything is read together with which vectors still move.

    References
    ----------
    K. Wu and H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl.
    22 (2000) 602-616.
    """
    xp = namespace(basis)
    space = SearchSpace.spanned(batch, basis)
    rtol = max(rtol, space.rounding)
    probed = not probes
    step, limit = 0, max(3 * count, basis.shape[1] + 1, space.room(count))
    while True:
        values, ritz = space.ritz(end)
        squares, ritz = values[:, :count], ritz[:, :, :count]
        tolerance = rtol * xp.max(xp.abs(values[:, 0] if end == "largest" else space.last_of(values)))
        tolerance = xp.where(tolerance < rtol * norm, xp.full_like(tolerance, rtol * norm), tolerance)
        if outermost and end == "smallest" and bool(xp.min(squares) <= tolerance):
            converged = True
            break
        remainder = space.products(ritz) - squares[..., None] * space.vectors(ritz)
        norms = xp.sqrt(row_dots(remainder, remainder, xp))
        if step == 0 and beside > -math.inf and bool(reach(squares, norms, end) + tolerance < beside):
            converged = False
            break
        open_, grown = space.look(_moving(squares, norms, settled, end, tolerance, bar, batch.order, xp))
        converged = min(open_, default=settled) >= settled
        if step >= steps or not grown or (converged and (probed or step >= probe_steps)):
            break
        multiply = 1
        if converged:  # what is left is for the random vectors, which come last, to show what they point at
            open_, probed = list(range(max(0, count - probes), count)), True
            multiply = min(steps, probe_steps) - step
        new = xp.take(remainder, on_device_of(np.array(open_, np.int64), remainder, xp), axis=1)
        grown = False
        for _ in range(multiply):
            if space.rows + new.shape[1] > limit:
                space = space.restarted(end, min(2 * count, space.rows))
            new, alive = space.beside(new[:, : batch.order - space.alive, :])
            if not new.shape[1]:
                break
            space.add(new, alive)
            new, grown, step = space.last_products, True, step + 1
        if not grown and converged:
            continue
        if not grown:  # the whole space is searched, to rounding
            break
    return space.block(ritz), converged, float(tolerance)


def least_share(order: int) -> float:
    """Return the share of an eigenvector, in length, below which a vector of that order says there is none."""
    return float((_LEAST_SHARE / order) ** 0.5)


def reach(squares: Array, residuals: Array, end: End) -> Array:
    """Return how far out, at most, an eigenvalue is that the outermost of some Ritz values (maps, rows) stands for.

    Its sign is changed at the lower end.
    """
    signed = squares if end == "largest" else -squares
    return namespace(squares).max(signed[:, 0] + residuals[:, 0])


class SearchSpace:
    """Orthonormal rows of each map, in chunks as they were added, with their images, and the projected Gram matrix.

    Where the new rows of a map depend on the others, zeros stand in their place.
    """

    def __init__(self, batch: Batch, xp: Namespace) -> None:
        self._batch, self.xp = batch, xp
        self._chunks: list[tuple[Array, Array, Array]] = []
        self._single = 0
        """How many chunks at the end are still as they were added."""
        self._gram: Array | None = None
        self._dead: Array | None = None
        self._looked_at = 0
        self.rows = 0
        self.multiplied = 0
        """How many rows were multiplied, those that are gone included."""
        self.alive = 0
        """How many rows every map has at least, as far as a GPU has been asked."""

    @classmethod
    def spanned(cls, batch: Batch, basis: Array) -> SearchSpace:
        """Return the space of an orthonormal basis (maps, rows, n)."""
        xp = namespace(basis)
        space = cls(batch, xp)
        space.add(basis)
        return space

    def room(self, count: int) -> int:
        """Return how many rows there may be for so many wanted vectors: of a vector, its image and its product each."""
        vectors, images, _ = self._chunks[-1]
        itemsize = 4 if vectors.dtype == self.xp.float32 else 8
        row = int(itemsize * vectors.shape[0] * (2 * vectors.shape[2] + images.shape[2]))
        return min(_ROOM * count, _SPACE_BYTES // row)

    @property
    def rounding(self) -> float:
        """Below what part of sigma_max^2 residuals are rounding errors: those of sums of n terms add up like root n."""
        return float(10.0 * self.order**0.5 * float(self.xp.finfo(self.gram.dtype).eps))

    @property
    def order(self) -> int:
        """The length of a row."""
        return self._batch.order

    @property
    def gram(self) -> Array:
        """The projected Gram matrix of each map, (maps, rows, rows)."""
        assert self._gram is not None
        return self._gram

    def block(self, coefficients: Array) -> Block:
        """Return Ritz vectors from their coefficients (maps, rows, number), as they are under the maps."""
        vectors, images, products = (self._combined(coefficients, which) for which in range(3))
        squares = row_dots(images, images, self.xp)
        remainder = products - squares[..., None] * vectors
        residuals = self.xp.sqrt(row_dots(remainder, remainder, self.xp))
        return Block(squares, residuals, vectors, images, self.multiplied)

    @property
    def last_products(self) -> Array:
        """What ``B^T B`` makes of the rows that were added last."""
        return self._last[2]

    def add(self, rows: Array, alive: Array | None = None) -> None:
        """Add orthonormal rows (maps, j, n), orthogonal to those that are here; `alive` (maps, j) is 0 for a zero."""
        self.multiplied += rows.shape[1]
        images = self._batch.apply(rows)
        self._append((rows, images, self._batch.adjoint(images)), alive)

    def _append(self, chunk: tuple[Array, Array, Array], alive: Array | None) -> None:
        xp = self.xp
        self._chunks.append(chunk)
        self._last = chunk
        self._single += 1
        if self._single == _TOGETHER:
            columns = zip(*self._chunks[-_TOGETHER:], strict=True)
            vectors, values, products = (xp.concat(list(column), axis=1) for column in columns)
            self._chunks[-_TOGETHER:] = [(vectors, values, products)]
            self._single = 0
        images = chunk[1]
        dead = xp.zeros_like(chunk[0][..., 0]) if alive is None else 1 - alive
        new = xp.concat([images @ xp.matrix_transpose(others) for _, others, _ in self._chunks], axis=-1)
        if self._gram is None or self._dead is None:
            self._gram, self._dead = new, dead
        else:
            corner = xp.matrix_transpose(new[..., : self.rows])
            self._gram = xp.concat([xp.concat([self._gram, corner], axis=-1), new], axis=-2)
            self._dead = xp.concat([self._dead, dead], axis=-1)
        self.rows += images.shape[1]
        if alive is None:
            self.alive, self._looked_at = self.rows, self.rows
        elif not is_on_gpu(images):
            self.alive, self._looked_at = self.rows - int(self._most_dead()), self.rows

    def _most_dead(self) -> Array:
        """Return how many zeros the map has that has most."""
        assert self._dead is not None
        return self.xp.max(self.xp.sum(self._dead, axis=-1))

    def look(self, marks: Array) -> tuple[list[int], bool]:
        """Return which columns of (maps, rows) have a mark, and whether the rows since the last look are not all zeros.

        This is where a GPU is waited for.
        """
        xp = self.xp
        if self._looked_at == self.rows:
            return _columns_with(marks, xp), True
        assert self._dead is not None
        found = xp.astype(xp.any(marks, axis=0), self._dead.dtype)
        new = xp.stack([self._most_dead(), xp.min(self._dead[:, self._looked_at :])])
        *columns, dead, all_dead = to_numbers(xp.concat([found, new]))
        self.alive, self._looked_at = self.rows - int(dead), self.rows
        return [column for column, mark in enumerate(columns) if mark], not all_dead

    def ritz(self, end: End) -> tuple[Array, Array]:
        """Return the Ritz values (maps, rows), the outermost first, and coefficients (maps, rows, rows)."""
        xp = self.xp
        assert self._dead is not None
        gram = self.gram
        if self.alive < self.rows:  # what stands for no vector, or may do so, comes last
            trace = xp.sum(xp.linalg.diagonal(gram), axis=-1)[:, None]
            far = -1 - trace if end == "largest" else 1 + trace
            unit = xp.eye(self.rows, dtype=gram.dtype, device=device_of(gram))
            gram = gram + (self._dead * far)[..., None] * unit
        values, vectors = xp.linalg.eigh(gram)
        if end == "largest":
            values, vectors = xp.flip(values, axis=-1), xp.flip(vectors, axis=-1)
        return values, vectors

    def last_of(self, values: Array) -> Array:
        """Return of Ritz values (maps, rows) the last one that every map has: (maps, 1)."""
        place = self.xp.astype(self.rows - 1 - self._most_dead(), self.xp.int64)
        return self.xp.take(values, self.xp.reshape(place, (1,)), axis=1)

    def vectors(self, coefficients: Array) -> Array:
        """Combine the rows by the columns of (maps, rows, number)."""
        return self._combined(coefficients, 0)

    def products(self, coefficients: Array) -> Array:
        """Combine what ``B^T B`` makes of the rows."""
        return self._combined(coefficients, 2)

    def _combined(self, coefficients: Array, which: int) -> Array:
        weights, place, total = self.xp.matrix_transpose(coefficients), 0, None
        for chunk in self._chunks:
            rows = chunk[which].shape[1]
            part = weights[..., place : place + rows] @ chunk[which]
            total, place = part if total is None else total + part, place + rows
        assert total is not None
        return total

    def beside(self, rows: Array) -> tuple[Array, Array]:
        """Return orthonormal rows for what `rows` add to the space, and 1 for each of these, 0 for a zero in its place.

        Both are empty where they add nothing to any map, but on a GPU, which would have to be asked.
        """
        xp = self.xp
        rows, alive = _independent(rows, [vectors for vectors, _, _ in self._chunks], xp)
        if is_on_gpu(rows):
            return rows, alive
        some = _columns_with(alive != 0, xp)
        if len(some) < rows.shape[1]:
            chosen = on_device_of(np.array(some, np.int64), rows, xp)
            rows, alive = xp.take(rows, chosen, axis=1), xp.take(alive, chosen, axis=1)
        return rows, alive

    def restarted(self, end: End, count: int) -> SearchSpace:
        """Return the space of the outermost Ritz vectors, with nothing multiplied anew."""
        count = min(count, self.alive)
        coefficients = self.ritz(end)[1][..., :count]
        space = SearchSpace(self._batch, self.xp)
        vectors, images, products = (self._combined(coefficients, which) for which in range(3))
        space.multiplied = self.multiplied
        space._append((vectors, images, products), None)
        if self._looked_at < self.rows:
            space._looked_at = 0  # what was added here is still to be told of
        return space


def _moving(
    squares: Array, norms: Array, settled: int, end: End, tolerance: Array, bar: float, order: int, xp: Namespace
) -> Array:
    """Return which vectors (maps, rows) still move, and may matter.

    A vector of Ritz value theta and residual r has a distribution of squared singular values of mean theta and standard
    deviation r. By Chebyshev's inequality at most ``(r / d)^2`` of it lies beyond a value at distance d: where
    this is much less than a random vector has there, nothing outermost is to come from its map.
    """
    signed = squares if end == "largest" else -squares
    outermost = xp.sort(xp.reshape(signed, (-1,)), descending=True)
    last = outermost[min(settled, outermost.shape[0]) - 1]
    inside = xp.where(last > bar, last, xp.full_like(last, bar)) - signed
    inside = xp.where(inside < 0, xp.zeros_like(inside), inside)
    return (norms > tolerance) & (norms > least_share(order) * inside)


def _columns_with(marks: Array, xp: Namespace) -> list[int]:
    """Return which columns of (maps, rows) have a mark; a GPU is waited for once."""
    return [column for column, mark in enumerate(to_numbers(xp.astype(xp.any(marks, axis=0), xp.int8))) if mark]


def orthonormal(rows: Array, xp: Namespace) -> Array:
    """Return orthonormal rows that span those of (maps, j, n); dependent ones become arbitrary directions."""
    found, alive = _independent(rows, [], xp)
    if not bool(xp.any(alive == 0)):
        return found
    return xp.matrix_transpose(xp.linalg.qr(xp.matrix_transpose(rows))[0])


def _independent(rows: Array, against: Sequence[Array], xp: Namespace) -> tuple[Array, Array]:
    """Return orthonormal rows for what `rows` have beside the orthonormal rows of `against`, all (maps, j, n).

    With them come 1 for each, or 0 where there was nothing more, and a zero stands in its place. The Gram matrix of the
    rows is decomposed: on long vectors this is several times as fast as a QR decomposition.
    """
    lengths = xp.sqrt(row_dots(rows, rows, xp))[..., None]
    rows = rows / xp.where(lengths == 0, xp.ones_like(lengths), lengths)
    alive = rows[..., 0]
    # The second pass removes what rounding left in the first, where more than half was taken away (Daniel, Gragg,
    # Kaufman and Stewart, 1976); no direction has lost so much that it takes a third.
    for _ in range(2 if rows.shape[1] else 0):
        for others in against:
            rows = rows - (rows @ xp.matrix_transpose(others)) @ others
        squares, directions = xp.linalg.eigh(rows @ xp.matrix_transpose(rows))
        kept = squares > _INDEPENDENT
        inverse = xp.where(kept, 1 / xp.sqrt(xp.where(kept, squares, xp.ones_like(squares))), 0 * squares)
        rows = xp.matrix_transpose(directions * inverse[:, None, :]) @ rows
        alive = xp.astype(kept, rows.dtype)
        if not is_on_gpu(rows) and bool(xp.min(squares) >= 0.5):
            break
    return rows, alive
