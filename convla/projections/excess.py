"""What the singular values of a stack of matrices have above a limit, followed from one stack to the next.

Where few of them are above it, their singular vectors span a small space, which moves little from one iterate of a
projection to the next, and from one projection to the next. There one step of a subspace iteration with a
Rayleigh-Ritz procedure stands for the decomposition.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from convla.projections.blocks import BlockArray, FloatArray

__all__ = ["Excess", "Follower", "largest_of"]

_SMALL = 24  # columns: smaller matrices are decomposed
_SHARE = 1 / 4  # of the columns: where more vectors are followed, a decomposition costs no more
_SPARE, _MORE = 1.25, 4  # how many vectors are followed for each value above the limit, and beside those
_NOISE = 0.1  # of the least vector that is followed


class Excess(NamedTuple):
    """What the singular values of a stack have above a limit.

    Attributes
    ----------
    stack : array of shape (..., rows, columns)
        The matrices with the limit taken off all singular values, 0 where none is left.
    sums, squares : numpy.ndarray of shape (...)
        Their nuclear norms, and the squares of their Frobenius norms.
    largest : float
        The largest norm of the matrices themselves; a bound of it where no matrix had to be decomposed.
    """

    stack: BlockArray
    sums: FloatArray
    squares: FloatArray
    largest: float


class Follower:
    """Finds what the singular values of stacks of one shape have above limits.

    At first by decompositions; then, where few values were above the limit, in the space of their vectors. Where all
    values that are followed are above it, others may be: that matrix is decomposed again.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.projections.excess import Follower
    >>> found = Follower().excess(np.diag([3.0, 1.0])[None], 2.0)
    >>> found.stack.round(12), found.sums.round(12)
    (array([[[1., 0.],
            [0., 0.]]]), array([1.]))
    """

    def __init__(self) -> None:
        self._vectors: BlockArray | None = None
        self._rng = np.random.default_rng(0)

    def excess(self, stack: BlockArray, limit: float, *, enough: float = 0.0) -> Excess:
        """Return what a stack (..., rows, columns) has above a limit; nothing where no value is above `enough`.

        The limit is raised where it is below that by more than the largest value is above it.

        In a followed space values may be missed: then it is smaller, and what the limit is taken off are the others.
        """
        flat = stack.reshape(-1, *stack.shape[-2:])
        if self._vectors is None:
            ritz, norms = _Triplets.none(flat), np.linalg.norm(flat, axis=(-2, -1))
            chosen, others = np.flatnonzero(norms > limit), float(norms[norms <= limit].max(initial=0.0))
        else:
            ritz, others = self._ritz(flat), 0.0
            chosen = np.flatnonzero((ritz.values > limit).all(axis=-1))
        own = _decomposed(flat[chosen])
        largest, lead = max(ritz.largest, own.largest, others), stack.shape[:-2]
        if largest <= max(limit, enough):
            self._keep(flat, chosen, own, limit)
            return Excess(np.broadcast_to(flat[0, 0, 0] * 0, stack.shape), np.zeros(lead), np.zeros(lead), largest)
        lower, limit = limit, max(limit, 2 * enough - largest)
        found, kept = ritz.above(limit, flat), ritz.kept(limit)
        sums, squares = kept.sum(axis=-1), (kept * kept).sum(axis=-1)
        found[chosen], kept = own.above(limit, flat), own.kept(limit)
        sums[chosen], squares[chosen] = kept.sum(axis=-1), (kept * kept).sum(axis=-1)
        self._keep(flat, chosen, own, lower)
        return Excess(found.reshape(stack.shape), sums.reshape(lead), squares.reshape(lead), largest)

    def largest(self, stack: BlockArray) -> float:
        """Return the largest norm in a stack; where vectors are followed, of what they show."""
        flat = stack.reshape(-1, *stack.shape[-2:])
        return largest_of(stack) if self._vectors is None else self._ritz(flat).largest

    def _ritz(self, stack: BlockArray) -> _Triplets:
        """Return what the followed vectors show of a stack, and let a step of the subspace iteration improve them."""
        assert self._vectors is not None
        images = _times(stack, self._vectors)
        squares, turns = np.linalg.eigh(_gram(images))
        images, vectors = images @ turns, self._vectors @ turns
        following = _adjoint_times(stack, images)
        # In the least of them some noise: they may span an invariant space, which other values overtake.
        least, noise = following[..., 0], self._rng.standard_normal(following.shape[-2])
        least += _NOISE / math.sqrt(noise.size) * np.linalg.norm(least, axis=-1, keepdims=True) * noise
        self._vectors = np.linalg.qr(following).Q
        return _Triplets(images, np.sqrt(np.maximum(squares, 0.0)), vectors)

    def _keep(self, stack: BlockArray, places: Any, own: _Triplets, limit: float) -> None:
        """Follow the leading vectors of decomposed matrices too, or none where they are too many to be worth it."""
        if not len(places):
            return
        count, order = int(np.count_nonzero(own.values > limit, axis=-1).max()), min(stack.shape[-2:])
        before = 0 if self._vectors is None else self._vectors.shape[-1]
        wanted = max(before, math.ceil(_SPARE * count) + _MORE)
        if order <= _SMALL or wanted > _SHARE * order:
            self._vectors = None
            return
        # Where nothing is known, any vectors will do to begin with.
        vectors = self._rng.standard_normal((len(stack), order, wanted)).astype(stack.dtype)
        if self._vectors is not None:
            vectors[..., wanted - before :] = self._vectors
        vectors[places] = own.vectors[..., order - wanted :]
        self._vectors = np.linalg.qr(vectors).Q


class _Triplets(NamedTuple):
    """Singular triplets of each matrix of a stack, or of its adjoint where the matrix has fewer rows than columns.

    Images under it, values in increasing order, and vectors of the smaller side.
    """

    images: BlockArray
    values: FloatArray
    vectors: BlockArray

    @classmethod
    def none(cls, stack: BlockArray) -> _Triplets:
        """Return no triplets of each matrix."""
        count, long, short = len(stack), max(stack.shape[-2:]), min(stack.shape[-2:])
        images, vectors = (np.empty((count, side, 0), stack.dtype) for side in (long, short))
        return cls(images, np.empty((count, 0), stack.real.dtype), vectors)

    @property
    def largest(self) -> float:
        """The largest value; 0 where there is none."""
        return float(self.values.max(initial=0.0))

    def kept(self, limit: float) -> FloatArray:
        """Return what each value has above a limit."""
        return np.maximum(self.values.astype(np.float64) - limit, 0.0)

    def above(self, limit: float, stack: BlockArray) -> BlockArray:
        """Return the matrices of the stack that these are of with a limit taken off their values."""
        kept = self.kept(limit)
        first = kept.shape[-1] - int(np.count_nonzero(kept, axis=-1).max(initial=0))
        shares = (kept / np.maximum(self.values.astype(np.float64), limit)).astype(self.values.dtype)
        images, vectors = (self.images * shares[..., None, :])[..., first:], self.vectors[..., first:]
        left, right = (vectors, images) if _is_wide(stack) else (images, vectors)
        return np.asarray(left @ _adjoint(right))


def _decomposed(stack: BlockArray) -> _Triplets:
    """Decompose the smaller Gram matrices: what their squares cost in accuracy is at values far below the largest."""
    squares, vectors = np.linalg.eigh(_smaller_gram(stack))
    return _Triplets(_times(stack, vectors), np.sqrt(np.maximum(squares, 0.0)), vectors)


def largest_of(stack: BlockArray) -> float:
    """Return the largest norm in a stack, by decompositions."""
    flat = stack.reshape(-1, *stack.shape[-2:])
    frobenius = np.linalg.norm(flat, axis=(-2, -1))
    chosen = flat[frobenius >= frobenius.max() / math.sqrt(min(flat.shape[-2:]))]  # the norms of the others are smaller
    return math.sqrt(max(0.0, float(np.linalg.eigvalsh(_smaller_gram(chosen))[..., -1].max())))


def _is_wide(stack: BlockArray) -> bool:
    return bool(stack.shape[-2] < stack.shape[-1])


def _times(stack: BlockArray, vectors: BlockArray) -> BlockArray:
    """Return products with the vectors of the smaller side; the matrices themselves are never copied."""
    return _adjoint(_adjoint(vectors) @ stack) if _is_wide(stack) else stack @ vectors


def _adjoint_times(stack: BlockArray, images: BlockArray) -> BlockArray:
    """Return products with images, back to the smaller side."""
    return np.asarray(stack @ images) if _is_wide(stack) else _adjoint(_adjoint(images) @ stack)


def _gram(stack: BlockArray) -> BlockArray:
    return np.asarray(_adjoint(stack) @ stack)


def _smaller_gram(stack: BlockArray) -> BlockArray:
    return np.asarray(stack @ _adjoint(stack)) if _is_wide(stack) else _gram(stack)


def _adjoint(stack: BlockArray) -> BlockArray:
    return np.asarray(stack.conj().swapaxes(-1, -2))
