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
_FAR = 0.1  # of the limit: how far above it a value counts for `below`


class Excess(NamedTuple):
    """What the singular values of a stack have above a limit.

    Attributes
    ----------
    stack : array of shape (..., rows, columns)
        The matrices with the limit taken off all singular values, 0 where none is left.
    sums : numpy.ndarray of shape (...)
        Their nuclear norms.
    largest : float
        The largest norm of the matrices themselves, if it is above the limit.
    """

    stack: BlockArray
    sums: FloatArray
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

    def excess(self, stack: BlockArray, limit: float, *, below: float = 0.0) -> Excess:
        """Return what a stack has above a limit.

        Parameters
        ----------
        stack : array of shape (..., rows, columns)
        limit : float
        below : float
            The limit is lowered by so much times what the largest value has above it, or a tenth of the limit if it
            has more.

        Returns
        -------
        Excess
            In a followed space values may be missed: then it is smaller, and still what it says that it is of a stack
            with those values lowered.
        """
        tall = _tall(stack)
        lowest = limit * (1 - below * _FAR)
        left = np.linalg.norm(tall, axis=(-2, -1)) > lowest  # no value of the others is above it
        images, values, vectors = self._ritz(tall) if self._vectors is not None else _nothing(tall)
        decomposed = np.flatnonzero(left & ((values > lowest).all(axis=-1)))
        own = _decomposed(tall[decomposed])
        largest = float(max(values[left].max(initial=0.0), own.values.max(initial=0.0)))
        lowered = limit - below * min(max(0.0, largest - limit), _FAR * limit)
        found, sums = _above(images, values, vectors, lowered)
        found[decomposed], sums[decomposed] = _above(*own, lowered)
        self._keep(tall, decomposed, own, lowered)
        turned = _adjoint(found) if stack.shape[-2] < stack.shape[-1] else found
        return Excess(turned.reshape(stack.shape), sums.reshape(stack.shape[:-2]), largest)

    def largest(self, stack: BlockArray) -> float:
        """Return the largest norm in a stack; where vectors are followed, of what they show."""
        return largest_of(stack) if self._vectors is None else float(self._ritz(_tall(stack)).values.max())

    def _ritz(self, tall: BlockArray) -> _Triplets:
        """Take a step of the subspace iteration."""
        assert self._vectors is not None
        basis = np.linalg.qr(_adjoint(tall) @ (tall @ self._vectors)).Q
        found = _decomposed(tall @ basis)
        self._vectors = basis @ found.vectors
        return found._replace(vectors=self._vectors)

    def _keep(self, tall: BlockArray, places: Any, own: _Triplets, limit: float) -> None:
        """Follow the leading vectors of decomposed matrices too, or none where they are too many to be worth it."""
        if not len(places):
            return
        count, columns = int(np.count_nonzero(own.values > limit, axis=-1).max()), tall.shape[-1]
        before = 0 if self._vectors is None else self._vectors.shape[-1]
        wanted = max(before, math.ceil(_SPARE * count) + _MORE)
        if columns <= _SMALL or wanted > _SHARE * columns:
            self._vectors = None
            return
        vectors = np.zeros((len(tall), columns, wanted), tall.dtype)
        # Where nothing is known, any vectors will do to begin with: those of a structured matrix are none of these.
        vectors[..., : wanted - before] = np.random.default_rng(0).standard_normal((columns, wanted - before))
        if self._vectors is not None:
            vectors[..., wanted - before :] = self._vectors
        vectors[places] = own.vectors[..., columns - wanted :]
        self._vectors = vectors


class _Triplets(NamedTuple):
    """Singular triplets of each matrix: images under it, values in increasing order, right vectors."""

    images: BlockArray
    values: FloatArray
    vectors: BlockArray


def _decomposed(stack: BlockArray) -> _Triplets:
    """Decompose the Gram matrices: what their squares cost in accuracy is at values far below the largest."""
    squares, vectors = np.linalg.eigh(_adjoint(stack) @ stack)
    return _Triplets(stack @ vectors, np.sqrt(np.maximum(squares, 0.0)), vectors)


def _nothing(stack: BlockArray) -> _Triplets:
    """Return no triplets of each matrix."""
    count, rows, columns = stack.shape
    values = np.zeros((count, 0), stack.real.dtype)
    return _Triplets(np.zeros((count, rows, 0), stack.dtype), values, np.zeros((count, columns, 0), stack.dtype))


def _above(images: BlockArray, values: FloatArray, vectors: BlockArray, limit: float) -> tuple[BlockArray, FloatArray]:
    """Return the matrices of given triplets with a limit taken off their values, and the sums of what is left."""
    kept = np.maximum(values - values.dtype.type(limit), 0.0)
    first = values.shape[-1] - int(np.count_nonzero(kept, axis=-1).max(initial=0))
    shares = kept[..., first:] / np.maximum(values[..., first:], values.dtype.type(limit))
    stack = images[..., first:] * shares[..., None, :] @ _adjoint(vectors[..., first:])
    return stack, kept.sum(axis=-1, dtype=np.float64)


def largest_of(stack: BlockArray) -> float:
    """Return the largest norm in a stack, by decompositions."""
    tall = _tall(stack)
    frobenius = np.linalg.norm(tall, axis=(-2, -1))
    chosen = tall[frobenius >= frobenius.max() / math.sqrt(tall.shape[-1])]  # the norms of the others are smaller
    return math.sqrt(max(0.0, float(np.linalg.eigvalsh(_adjoint(chosen) @ chosen)[..., -1].max())))


def _tall(stack: BlockArray) -> BlockArray:
    """Return the matrices (n, rows, columns) of a stack, or their adjoints, with no fewer rows than columns."""
    flat = stack.reshape(-1, *stack.shape[-2:])
    return _adjoint(flat) if stack.shape[-2] < stack.shape[-1] else flat


def _adjoint(stack: BlockArray) -> BlockArray:
    return np.asarray(stack.conj().swapaxes(-1, -2))
