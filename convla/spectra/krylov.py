"""A search from one random vector of a map, for what is known of either end of its spectrum to a few digits.

All that is asked for here is how large an end's outermost squared singular value is, so that the iteration need not
wait until its vectors have settled. A square is never below 0: at the lower end a small enough Rayleigh quotient is an
answer, whatever its residual. And where the upper end is too low to matter, how low it is does not matter either.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla._array import namespace, on_device_of, row_dots, to_numbers
from convla.spectra.batch import Batch
from convla.spectra.block_iteration import Block
from convla.spectra.result import End
from convla.typing import Array

__all__ = ["FAR", "KrylovSpace", "extended"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_SHARE = 1e-4
"""A random vector holds less than this part of what it holds of an eigenvector in the mean with a chance of 0.8 %."""

_SMALL = 0.01

FAR = 0.9
"""Of the singular value from which on the upper end is of interest: what is below is searched anew, not followed."""

_ENOUGH = 1e100  # of a sum that would overflow

_ROWS, _BYTES = 120, 1 << 26
"""A space grows to so many rows, and with their images to so many bytes."""

_TOGETHER = 8
"""So many rows become one chunk: a product with few rows is bound by memory."""


class KrylovSpace:
    """The Lanczos vectors of one map's Gram matrix from a unit vector, and their images.

    Parameters
    ----------
    batch : Batch
        Of one group.
    start : array of shape (1, 1, n)

    Attributes
    ----------
    order : int
        The length of a row.
    coupling : float
        The norm of what the Gram matrix makes of the last row beside the space: with the last entry of a Ritz vector's
        coefficients its residual.

    Notes
    -----
    Every new row is orthogonalised against all others, once; twice where that has taken away more than half of it. A
    GPU is waited for once in a step.

    References
    ----------
    B. N. Parlett, The Symmetric Eigenvalue Problem, SIAM 1998, Section 13.1; Section 6.9 for the second time.
    """

    def __init__(self, batch: Batch, start: Array) -> None:
        self._batch, self._xp = batch, namespace(start)
        self._chunks: list[Array] = []
        self._images: list[Array] = []
        self._diagonal: list[float] = []
        self._couplings: list[float] = []
        self._next = start
        self._multiply()

    @property
    def order(self) -> int:
        """The length of a row."""
        return self._batch.order

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._diagonal)

    @property
    def room(self) -> int:
        """How many rows there may be."""
        itemsize = 4 if self._next.dtype == self._xp.float32 else 8
        return min(self.order, _ROWS, max(2, _BYTES // (itemsize * sum(self._batch.linear_map.shape))))

    @property
    def gram(self) -> FloatArray:
        """The projected Gram matrix, (rows, rows): tridiagonal."""
        beside = self._couplings[:-1]
        return np.diag(self._diagonal) + np.diag(beside, 1) + np.diag(beside, -1)

    @property
    def coupling(self) -> float:
        """See the class."""
        return self._couplings[-1]

    @property
    def rounding(self) -> float:
        """Below what part of sigma_max^2 residuals are rounding errors: those of sums of n terms add up like root n."""
        return float(10.0 * self.order**0.5 * float(self._xp.finfo(self._next.dtype).eps))

    def extend(self) -> bool:
        """Add a row, and tell whether there was one: else the space is invariant, to rounding."""
        if self.rows == self.order or self.coupling <= self.rounding * max(self._diagonal):
            return False
        self._next = self._remainder / self.coupling
        self._multiply()
        return True

    def block(self, coefficients: FloatArray) -> Block:
        """Return Ritz vectors from their coefficients (rows, number)."""
        xp = self._xp
        if len(self._images) > 1:
            self._images[:] = [xp.concat(self._images, axis=1)]
        weights = on_device_of(np.ascontiguousarray(coefficients.T)[None], self._next, xp, dtype=self._next.dtype)
        place, vectors = 0, None
        for chunk in self._chunks:
            part = weights[..., place : place + chunk.shape[1]] @ chunk
            vectors, place = part if vectors is None else vectors + part, place + chunk.shape[1]
        assert vectors is not None
        images = weights @ self._images[0]
        residuals = on_device_of(self.coupling * np.abs(coefficients[-1:, :]), self._next, xp, dtype=self._next.dtype)
        return Block(row_dots(images, images, xp), residuals, vectors, images, self.rows)

    def _multiply(self) -> None:
        """Take up the next row, multiply it, and leave what is beside the space for the one after."""
        xp, row = self._xp, self._next
        before = self._chunks[-1][:, -1:, :] if self._chunks else None
        self._chunks.append(row)
        if [chunk.shape[1] for chunk in self._chunks[-_TOGETHER:]] == [1] * _TOGETHER:
            self._chunks[-_TOGETHER:] = [xp.concat(self._chunks[-_TOGETHER:], axis=1)]
        image = self._batch.apply(row)
        self._images.append(image)
        square = row_dots(image, image, xp)[..., None]
        remainder = self._batch.adjoint(image) - square * row
        if before is not None:
            remainder = remainder - self.coupling * before
        length = row_dots(remainder, remainder, xp)[..., None]
        while True:
            for chunk in self._chunks:
                remainder = remainder - (remainder @ xp.matrix_transpose(chunk)) @ chunk
            left = row_dots(remainder, remainder, xp)[..., None]
            diagonal, was, now = to_numbers(xp.concat([square, length, left], axis=None))
            if now >= 0.5 * was or now <= (self.rounding * diagonal) ** 2:
                break
            length = left
        self._remainder = remainder
        self._diagonal.append(diagonal)
        self._couplings.append(math.sqrt(now))


def extended(space: KrylovSpace, *, end: End, count: int, rtol: float, bar: float) -> tuple[Block, bool, float, float]:
    """Extend a Krylov space of one map until the outermost square at one end is known.

    Parameters
    ----------
    space : KrylovSpace
        That of one random vector, or what an earlier call made of it.
    end : {"largest", "smallest"}
    count : int
        Of the Ritz vectors that are returned, at most: fewer where the space has not as many, and one where the upper
        end is far below the bar.
    rtol : float
    bar : float
        A squared singular value below which the upper end is of no interest.

    Returns
    -------
    block : Block
    known : bool
        Whether the outermost Ritz vector has a residual below ``rtol sigma_max^2``, or the random vector shows nothing
        that far beyond its square; at the lower end, whether its square is below that; at the upper end, whether no
        square comes near the bar.
    tolerance : float
        ``rtol sigma_max^2``.
    above : float
        A square that the upper end does not exceed, should that be known but for a chance of about 1 %.
    """
    rtol, order = max(rtol, space.rounding), space.order
    while True:
        gram = space.gram
        squares, ritz = np.linalg.eigh(gram)
        tolerance, width = rtol * float(squares[-1]), float(squares[-1] - squares[0])
        if end == "largest":
            squares, ritz = squares[::-1], ritz[:, ::-1]
            room = max(tolerance, 0.25 * (bar - squares[0]))  # below the bar, for several steps of a descent
            known = _share_beyond(squares[0] + room, gram) <= _SHARE / order
        else:
            known = bool(squares[0] <= tolerance) or _share_beyond(tolerance - squares[0], -gram) <= _SHARE / order
        # In a narrow spectrum each residual is small: one that is not small beside its width says nothing of its end.
        residual = space.coupling * abs(float(ritz[-1, 0]))
        known = known or (space.rows > 1 and residual <= min(tolerance, _SMALL * width))
        if known or space.rows >= space.room or not space.extend():
            break
    above = _ceiling(gram, order) if end == "largest" and squares[0] < bar else math.inf
    if end == "largest" and squares[0] < FAR**2 * bar:
        count = 1
    return space.block(ritz[:, :count]), bool(known), tolerance, above


def _ceiling(gram: FloatArray, order: int) -> float:
    """Return from where on a Krylov space's random vector has next to no part of any eigenvector, or infinity."""
    low = float(np.linalg.eigvalsh(gram)[-1])
    high = 4.0 * low
    if _share_beyond(high, gram) > _SHARE / order:
        return math.inf
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _share_beyond(middle, gram) > _SHARE / order else (low, middle)
    return high


def _share_beyond(x: float, gram: FloatArray) -> float:
    """Bound the squared part of a Krylov space's vector in any eigenvector of an eigenvalue that is at least x.

    Notes
    -----
    Let p_j be the orthonormal polynomials of the vector's spectral measure; their recurrence is the tridiagonal matrix
    of the Lanczos method. The part is at most ``1 / sum_j p_j(x)^2`` where x is beyond the Ritz values: that is the
    least ``|q(G) v|^2`` of all polynomials q of lower degree with ``q(x) = 1``, and the zeros of the one that attains
    it are below x, from where on it grows. Of a random vector of n entries the part is ``1 / n`` in the mean.

    References
    ----------
    G. Szego, Orthogonal Polynomials, 4th ed., AMS 1975, Sections 3.1 and 3.41.
    """
    before, now, total, coupling = 0.0, 1.0, 1.0, 0.0
    for entry, following in zip(np.diagonal(gram)[:-1].tolist(), abs(np.diagonal(gram, 1)).tolist(), strict=True):
        if following == 0:  # the space was invariant here
            return 1.0
        if total > _ENOUGH:
            break
        before, now = now, ((x - entry) * now - coupling * before) / following
        coupling, total = following, total + now * now
    return 1.0 / total
