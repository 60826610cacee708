"""The locally optimal block iteration for an end of the spectrum of ``B^T B``, on all uncoupled parts of B at once.

Vectors are rows, in stacks of shape (groups, rows, entries): one stack for each kind of positions; see
`convla.spectra.summands`. Every projection is made part by part, every application of the map for all parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla._array import device_of, namespace, on_device_of
from convla.spectra.summands import Summands
from convla.typing import Array, Namespace

__all__ = ["Block", "iterate", "orthonormal", "outermost"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

_LEAST_SHARE = 0.01
"""A part is done with when its vector holds less than this share of what a random vector holds of one eigenvector."""


@dataclass(frozen=True)
class Block:
    """Orthonormal vectors of each part of one kind, with what the map makes of them.

    Attributes
    ----------
    vectors, products : array of shape (groups, rows, domain size)
        v and ``B^T B v``.
    images : array of shape (groups, rows, range size)
        ``B v``.
    """

    vectors: Array
    images: Array
    products: Array

    @property
    def rows(self) -> int:
        """The number of vectors of each part."""
        return int(self.vectors.shape[1])

    def combined(self, coefficients: Array, xp: Namespace) -> Block:
        """Return the combinations of the vectors by the columns of (groups, rows, number)."""
        rows = xp.matrix_transpose(coefficients)
        return Block(rows @ self.vectors, rows @ self.images, rows @ self.products)

    def and_(self, other: Block, xp: Namespace) -> Block:
        """Return both sets of vectors as one."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("vectors", "images", "products"))
        return Block(*(xp.concat(pair, axis=1) for pair in pairs))


def iterate(
    summands: Summands,
    bases: Sequence[Array],
    *,
    count: int,
    settled: int,
    end: str,
    rtol: float,
    steps: int,
    probes: int,
    probe_steps: int,
) -> tuple[list[Block], bool]:
    """Take steps of the block iteration from orthonormal bases of each kind of parts.

    Parameters
    ----------
    summands : Summands
    bases : sequence of array of shape (groups, rows, domain size)
        For each kind; more rows than `count` are a larger first search space.
    count : int
        How many vectors to keep in each part; as many as it has columns if fewer.
    settled : int
        The iteration ends when this many outermost vectors have residuals below ``rtol * sigma_max^2``, over all parts.
    end : {"largest", "smallest"}
    rtol : float
    steps : int
        Of the iteration, at most.
    probes, probe_steps : int
        So many steps, if not `steps` are fewer, are made in any case for so many of the last vectors.

    Returns
    -------
    blocks : list of Block
        For each kind, the outermost vector of each part first.
    converged : bool
    """
    if not bases:
        return [], True
    linear_map, xp = summands.linear_map, namespace(summands.linear_map.like)
    # Rounding errors of sums of that many terms add up like its root.
    rtol = max(rtol, 10.0 * linear_map.shape[1] ** 0.5 * float(xp.finfo(linear_map.dtype).eps))
    blocks = _applied(summands, bases)
    changes: list[Block | None] = [None] * len(blocks)
    for step in range(steps + 1):
        projected = [
            _rayleigh_ritz(block if change is None else block.and_(change, xp), min(count, size), end, xp)
            for block, change, size in zip(blocks, changes, summands.domain_sizes, strict=True)
        ]
        blocks = [block for block, _, _ in projected]
        scale = max(largest for _, _, largest in projected)
        open_, converged = _open_rows(blocks, settled, end, rtol * scale, xp)
        if converged:  # what is left is for the random vectors, which come last, to show what they point at
            open_ = [rows[-probes:] if step < probe_steps else [] for rows in open_]
        if step == steps or not any(map(len, open_)):
            break
        kept = [block.and_(change, xp) for block, change, _ in projected]
        added = [_expansion(block, basis, rows, xp) for block, basis, rows in zip(blocks, kept, open_, strict=True)]
        changes = [
            change.and_(new, xp) for (_, change, _), new in zip(projected, _applied(summands, added), strict=True)
        ]
    return blocks, converged


def _applied(summands: Summands, vectors: Sequence[Array]) -> list[Block]:
    images = summands.apply(vectors)
    products = summands.adjoint(images)
    return [Block(*arrays) for arrays in zip(vectors, images, products, strict=True)]


def _rayleigh_ritz(basis: Block, count: int, end: str, xp: Namespace) -> tuple[Block, Block, float]:
    """Return the outermost Ritz vectors of ``B^T B`` in the span of each part's basis.

    With them come orthonormal vectors for their change, the part that the first `count` vectors of the basis do not
    span, and the largest Ritz value. All are combinations of the basis with orthonormal coefficients, so that their
    images stay theirs to rounding, however many steps are taken.
    """
    values, ritz = xp.linalg.eigh(basis.images @ xp.matrix_transpose(basis.images))
    chosen = xp.flip(ritz[..., -count:], axis=-1) if end == "largest" else ritz[..., :count]
    extra = min(count, basis.rows - count)
    outside = xp.concat([xp.zeros_like(chosen[:, :count, :extra]), chosen[:, count:, :extra]], axis=1)
    both = xp.linalg.qr(xp.concat([chosen, outside], axis=-1))[0]
    return basis.combined(chosen, xp), basis.combined(both[..., count:], xp), float(xp.max(values))


def _residual_norms(block: Block, xp: Namespace) -> tuple[Array, Array, Array]:
    """Return the squared singular values, ``B^T B v - sigma^2 v`` and its norms, each for every vector of a block."""
    squares = xp.sum(block.images * block.images, axis=-1)
    remainder = block.products - squares[..., None] * block.vectors
    return squares, remainder, xp.linalg.vector_norm(remainder, axis=-1)


def _open_rows(
    blocks: Sequence[Block], settled: int, end: str, tolerance: float, xp: Namespace
) -> tuple[list[list[int]], bool]:
    """Return which rows of each kind have vectors that still move, and whether the outermost ones of all have settled.

    A vector of Ritz value theta and residual r has a distribution of squared singular values of mean theta and standard
    deviation r. By Chebyshev's inequality at most ``(r / d)^2`` of it lies beyond a value at distance d: where
    this is much less than a random vector has there, nothing outermost is to come from its part.
    """
    found = [_residual_norms(block, xp) for block in blocks]
    sign = 1.0 if end == "largest" else -1.0
    outermost_first = xp.sort(
        sign * xp.concat([xp.reshape(squares, (-1,)) for squares, _, _ in found]), descending=True
    )
    bar = outermost_first[min(settled, outermost_first.shape[0]) - 1]
    rows, converged = [], True
    for block, (squares, _, norms) in zip(blocks, found, strict=True):
        inside = bar - sign * squares
        inside = xp.where(inside < 0, xp.zeros_like(inside), inside)
        share = (_LEAST_SHARE / block.vectors.shape[2]) ** 0.5
        moving = (norms > tolerance) & (norms > share * inside)
        rows.append([row for row, any_ in enumerate(xp.any(moving, axis=0)) if any_])
        converged = converged and not bool(xp.any(moving[:, :settled]))
    return rows, converged


def _expansion(block: Block, basis: Block, rows: list[int], xp: Namespace) -> Array:
    """Return orthonormal vectors for the residuals of some rows, as many as a part's basis has room for."""
    _, remainder, _ = _residual_norms(block, xp)
    room = block.vectors.shape[2] - basis.rows
    chosen = on_device_of(np.array(rows[:room], dtype=np.int64), remainder, xp)
    return orthonormal(xp.take(remainder, chosen, axis=1), xp, against=basis.vectors)


def orthonormal(rows: Array, xp: Namespace, *, against: Array | None = None) -> Array:
    """Return orthonormal rows that span `rows`, orthogonal to the orthonormal rows of `against`; both may be stacks.

    Rows that depend on others become arbitrary directions.
    """
    if not rows.shape[-2]:
        return rows
    # Once more, as the first pass leaves the rounding errors of what it removed; and a third time where the second one
    # still removed much, from the arbitrary directions (Kahan: twice is enough where half is left).
    for again in (True, False, False):
        norms = xp.linalg.vector_norm(rows, axis=-1, keepdims=True)
        rows = rows / xp.where(norms == 0, xp.ones_like(norms), norms)
        if against is not None:
            rows = rows - (rows @ xp.matrix_transpose(against)) @ against
        left = float(xp.min(xp.linalg.vector_norm(rows, axis=-1)))
        rows = xp.matrix_transpose(xp.linalg.qr(xp.matrix_transpose(rows))[0])
        if not again and left > 0.5:
            break
    return rows


def outermost(summands: Summands, blocks: Sequence[Block], count: int, end: str) -> tuple[Array, Array, Array, Array]:
    """Return the outermost triplets of the whole map from those of its distinct parts.

    Returns
    -------
    squares, residuals : array of shape (count,)
        Squared singular values, the outermost first, and ``|B^T B v - sigma^2 v|``.
    vectors, images : array of shape (count, *domain_shape) and (count, *range_shape)
        Parts with equal matrices have a vector each.
    """
    linear_map, xp = summands.linear_map, namespace(summands.linear_map.like)
    measured = [_residual_norms(block, xp) for block in blocks]
    if summands.single:
        (block,), ((squares, _, residuals),) = blocks, measured
        vectors = xp.reshape(block.vectors[0, :count, :], (-1, *linear_map.domain_shape))
        images = xp.reshape(block.images[0, :count, :], (-1, *linear_map.range_shape))
        return squares[0, :count], residuals[0, :count], vectors, images
    sign = -1.0 if end == "largest" else 1.0
    flat = [xp.reshape(sign * squares, (-1,)) for squares, _, _ in measured]
    where = [(kind, *place) for kind, (squares, _, _) in enumerate(measured) for place in np.ndindex(*squares.shape)]
    ranked = [where[int(place)] for place in xp.argsort(xp.concat(flat))[:count]] if flat else []
    places = [(*place, copy) for place in ranked for copy in range(min(count, summands.copies[place[0]]))]
    # Entries that the map does not read are its null vectors: the first of the smallest, the last of the largest.
    unread = summands.unread[:count]
    nulls = unread.size if end == "smallest" else max(0, count - len(places))
    found = []
    for kind, group, row, copy in places[: count - nulls]:
        block, (squares, _, residuals) = blocks[kind], measured[kind]
        vector, image = summands.place(block.vectors[group, row, :], block.images[group, row, :], kind, group, copy)
        found.append((squares[group, row], residuals[group, row], vector, image))
    zeros = [
        xp.zeros(shape, dtype=linear_map.dtype, device=device_of(linear_map.like))
        for shape in ((), (), linear_map.range_shape)
    ]
    for place in unread[:nulls]:
        unit = np.zeros(linear_map.shape[1])
        unit[place] = 1.0
        vector = on_device_of(unit.reshape(linear_map.domain_shape), linear_map.like, xp, dtype=linear_map.dtype)
        found.insert(0 if end == "smallest" else len(found), (*zeros[:2], vector, zeros[2]))
    squares, residuals, vectors, images = (xp.stack(column) for column in zip(*found, strict=True))
    return squares, residuals, vectors, images
