"""Block Lanczos on a Gram map: the extreme singular values of maps that can only be applied, a batch of them at once.

Full re-orthogonalisation, thick restart, and a stopping rule on residuals: a result is reported as converged when an
estimate of its error says so, never because it has stopped changing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import array_api_extra as xpx
import numpy as np

from convla._array import device_of, is_on_gpu, namespace, on_device_of, to_numpy
from convla.spectra.ritz import FloatArray, Ritz
from convla.typing import Array

__all__ = ["LanczosResult", "block_lanczos", "random_start_error"]

_KEPT = 0.7  # of a unit vector, after what it has of others was removed: then it is orthogonal to them to rounding
_SHORT = 1e-2  # of the largest coupling, below which a row is cleaned once more
_UNREAD_STEPS = 4  # that a GPU is given before its numbers are read: more would be wasted once it has converged
_FRESH_STEPS = 6  # of a start from random vectors, at least, before it can have shown what was hidden


@dataclass(frozen=True)
class LanczosResult:
    """What `block_lanczos` found.

    Attributes
    ----------
    values : numpy.ndarray of float64, shape (k,)
        The square roots of the Ritz values, the wanted end first.
    parts : numpy.ndarray of int, shape (k,)
        Which map of the batch each value belongs to.
    vectors : array of shape (k, n)
        The Ritz vectors: right singular vectors of that map.
    residuals : numpy.ndarray of float64, shape (k,)
        ``norm(G v - value^2 v) / value``.
    errors : numpy.ndarray of float64, shape (k,)
        Estimates of the errors of the values; see `convla.spectra.ritz`.
    products : int
        How many vectors were multiplied by the Gram map, one for each map of the batch together.
    random_steps : int
        Block steps before the first restart, from a block that held a random vector: see `random_start_error`.
    converged : bool
    opposite : array of shape (1, n)
        The Ritz vector at the other end of all, before a restart dropped it.
    opposite_part : int
        Which map it belongs to.
    """

    values: FloatArray
    parts: np.ndarray
    vectors: Array
    residuals: FloatArray
    errors: FloatArray
    products: int
    random_steps: int
    converged: bool
    opposite: Array
    opposite_part: int


def block_lanczos(
    gram: Callable[[Array], Array],
    start: Array,
    k: int,
    *,
    rtol: float,
    criterion: Literal["residual", "value"] = "residual",
    which: Literal["largest", "smallest"] = "largest",
    basis_size: int,
    max_products: int,
    rng: np.random.Generator,
    spacing: float = 1.0,
    min_steps: int = 0,
) -> LanczosResult:
    """Find the k largest, or smallest, singular values among a batch of maps M_1, ..., M_P, through M^T M of each.

    Parameters
    ----------
    gram : callable
        Multiplies vectors (P, j, n) by ``M_p^T M_p``, each map its own, whatever j.
    start : array of shape (P, b, n)
        Real. The Krylov space of a block of b vectors shows up to b copies of a value. Its last vector should be
        random, of normal numbers, and a structured guess before it have a random part.
    k : int
        At most P n.
    rtol : float
        The tolerance, relative to the largest of the wanted values, and at least what rounding does to it.
    criterion : {"residual", "value"}
        What has to be below the tolerance: the residual of every triplet, or the error estimate of every value.
    which : {"largest", "smallest"}
        "smallest" converges slowly unless the values are well separated.
    basis_size : int
        How many vectors are kept for each map at most.
    max_products : int
        The search ends unconverged after this many vectors were multiplied.
    rng : numpy.random.Generator
        For new directions where a Krylov space ends, and for the search for copies.
    spacing : float
        The part of a large value by which the next one is smaller, at most; the estimates believe in no wider gap.
    min_steps : int
        Before so many block steps estimates of errors are not believed, only residuals.

    Returns
    -------
    LanczosResult

    Notes
    -----
    Copies of a value beyond the block's size hide from the Krylov space. So for k > 1 the search goes on after
    convergence, from random vectors orthogonal to what was found, until such a start has not changed the k values. One
    that has, found a vector whose value exceeds the k-th one of before by more than the tolerance: this happens no more
    often than there are singular values that do, so the search ends.

    Differences from the references: one side is bidiagonalised implicitly, as only the right vectors are kept; the
    projection of the Gram matrix is assembled from the coefficients of the re-orthogonalisation, which are at hand.

    References
    ----------
    G. H. Golub and R. Underwood, The block Lanczos method for computing eigenvalues, Mathematical Software III (1977).
    K. Wu and H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl.
    22 (2000) 602-616.
    """
    process = _Process(gram, start, k, basis_size, which, rng)
    before: FloatArray | None = None
    since, steps, random_steps = 0, 0, 0
    other: tuple[Array, int] | None = None
    while True:
        process.step()
        since, steps = since + 1, steps + 1
        whole, full = process.whole, process.full
        spent = process.products >= max_products
        # The decompositions are not free next to small convolutions.
        if not (whole or full or spent or since % process.pace == 0):
            continue
        process.settle()
        ritz = process.ritz(rtol, spacing)
        early = since < (min_steps if before is None else max(_FRESH_STEPS, min_steps // 2))
        done = whole or ritz.converged(k, by_value=criterion == "value" and not early)
        done = done and (whole or before is None or not early)
        hidden = done and not whole and k > 1 and not (before is not None and ritz.settled(before))
        if spent or (done and not hidden):
            done = done and not hidden
            break
        if hidden:
            before, since, other = ritz.leading(k), 0, other or process.opposite(ritz)
            # The last block is dropped, and with it the residuals: those of the vectors that are found, no others.
            process.restart(ritz, fresh=int(np.bincount(ritz.ordered(k)[1]).max()))
        elif full:
            random_steps, other = random_steps or steps, other or process.opposite(ritz)
            process.restart(ritz)
    values, parts, places = ritz.ordered(k)
    opposite, opposite_part = other or process.opposite(ritz)
    return LanczosResult(
        values=values,
        parts=parts,
        vectors=process.vectors(ritz, parts, places),
        residuals=ritz.residuals[parts, places],
        errors=ritz.errors[parts, places],
        products=process.products,
        random_steps=random_steps or steps,
        converged=done,
        opposite=opposite,
        opposite_part=opposite_part,
    )


def random_start_error(steps: int, order: int, *, failure: float) -> float:
    """Bound the relative error of the largest singular value after Lanczos from a random vector.

    Parameters
    ----------
    steps : int
        Of the Lanczos method on ``M^T M``, without a restart.
    order : int
        The order of ``M^T M``.
    failure : float
        The probability, over the random vector, with which the bound may fail.

    Returns
    -------
    float
        ``sigma_max <= (1 + bound) value``; infinity where so few steps say nothing.

    Notes
    -----
    But for a probability of ``1.648 sqrt(n) exp(-sqrt(e) (2 k - 1))`` the Ritz value after k steps is at least
    ``(1 - e)`` times the largest eigenvalue. A block that contains the random vector has a larger Krylov space, and so
    no smaller Ritz value.

    References
    ----------
    J. Kuczynski and H. Wozniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms with a
    random start, SIAM J. Matrix Anal. Appl. 13 (1992) 1094-1122, Theorem 4.2.

    Examples
    --------
    >>> from convla.spectra.lanczos import random_start_error
    >>> round(random_start_error(200, 10_000, failure=1e-10), 5)
    0.00249
    """
    if failure == 0.0:
        return math.inf
    share = (math.log(1.648 * math.sqrt(order) / failure) / (2 * steps - 1)) ** 2
    return math.inf if share >= 1 else (1 - share) ** -0.5 - 1


@dataclass(frozen=True)
class _Step:
    """A step whose numbers have not been read: where it began, what it multiplied, and what its next block is made of.

    The numbers are the components along the basis that were removed, first those of the recurrence, and then for each
    row of the image its components along the rows before it and its length.
    """

    size: int
    local: int
    width: int
    image: Array
    numbers: list[Array]


class _Process:
    """The growing bases V, in rows for each map, and the projections ``H = V G V^T``, restarted in place.

    Numbers decide where a row has to be cleaned or replaced, which is rare. So on a GPU, which would have to be waited
    for, some steps are taken on trust, and read together; from one that was wrong they are taken anew.
    """

    def __init__(
        self,
        gram: Callable[[Array], Array],
        start: Array,
        k: int,
        basis_size: int,
        which: str,
        rng: np.random.Generator,
    ) -> None:
        self._gram, self._rng = gram, rng
        xp = self._xp = namespace(start)
        self._parts, block, self._n = (int(size) for size in start.shape)
        self._down = which == "largest"
        self._block = min(block, self._n)
        self._keep = min(k + 2 * self._block, self._n)
        self._capacity = min(max(basis_size, self._keep + 4 * self._block), self._n)
        shape = (self._parts, self._capacity + self._block, self._n)
        self._V = xp.zeros(shape, dtype=start.dtype, device=device_of(start))
        self._H = np.zeros((self._parts, self._capacity, self._capacity))
        self._eps = float(xp.finfo(start.dtype).eps)
        self._coupling: FloatArray = np.zeros((self._parts, self._block, self._block))
        self._last = self._block  # how many of the last vectors span the block that is multiplied next
        self._local = 0  # the first vector that the next product is coupled to
        self._size = 0
        self._unread: list[_Step] = []
        self._patient = is_on_gpu(start)
        self.products = 0
        self._append(start[:, : self._block, :], raw=True)

    @property
    def whole(self) -> bool:
        """Whether the bases span their whole spaces."""
        return self._size == self._n

    @property
    def full(self) -> bool:
        """Whether there is no room for another block."""
        return self._size + min(self._block, self._n - self._size) > self._capacity

    @property
    def pace(self) -> int:
        """How many steps to take from one look at the Ritz values to the next: more where they take longer."""
        pace = 1 + (self._parts > 1) + self._size // 16
        return max(pace, _UNREAD_STEPS) if self._patient else pace

    def step(self) -> None:
        """Multiply the newest block, and add it to the bases."""
        size, width, end = self._size, self._last, self._size + self._last
        basis = self._V[:, :end, :]
        image = self._gram(self._V[:, size:end, :])
        self.products += width
        # First what the recurrence couples the block to, then what rounding errors have brought of the others.
        image, near = self._removed(image, basis[:, self._local :, :])
        image, more = self._removed(image, basis)
        local, self._local, self._size = self._local, size, end
        self._last = min(self._block, self._n - end)
        numbers = self._tentative(image) if self._last else []
        self._unread.append(_Step(size, local, width, image, [near, more, *numbers]))
        if not self._patient:
            self.settle()

    def settle(self) -> None:
        """Read the numbers of the steps that were taken on trust, and take those anew that should not have been."""
        steps, self._unread = self._unread, []
        if not steps:
            return
        numbers = iter(self._read(*(array for step in steps for array in step.numbers)))
        for place, step in enumerate(steps):
            read = [next(numbers) for _ in step.numbers]
            self._project(step, read[0], read[1])
            self._size = end = step.size + step.width
            self._local, self._last = step.size, min(self._block, self._n - end)
            coupling = self._coupling_of(step, read[2:])
            if coupling is None:
                self._coupling = self._append(step.image)
                for _ in steps[place + 1 :]:
                    self.step()
                self.settle()
                return
            self._coupling = coupling

    def _project(self, step: _Step, near: FloatArray, coefficients: FloatArray) -> None:
        """Put the products of a step with the basis into the projection."""
        size, end = step.size, step.size + step.width
        coefficients[:, step.local :, :] += near
        self._H[:, :end, size:end] = coefficients
        self._H[:, size:end, :end] = np.swapaxes(coefficients, 1, 2)
        square = self._H[:, size:end, size:end]
        self._H[:, size:end, size:end] = (square + np.swapaxes(square, 1, 2)) / 2

    def ritz(self, rtol: float, spacing: float) -> Ritz:
        """Return the eigenvalue decompositions of the projections, the wanted end first."""
        size = self._size
        values, x = np.linalg.eigh(self._H[:, :size, :size])
        if self._down:
            values, x = values[:, ::-1], x[:, :, ::-1]
        width = self._coupling.shape[2]
        couplings = np.einsum("pij,pjk->pik", self._coupling, x[:, size - width :, :])
        return Ritz(
            np.maximum(values, 0.0), x, couplings, rtol, 4 * self._eps, spacing if self._down else 1.0, self._down
        )

    def vectors(self, ritz: Ritz, parts: np.ndarray, places: np.ndarray) -> Array:
        """Return Ritz vectors, in rows."""
        xp, size = self._xp, self._size
        rows = []
        for part, place in zip(parts.tolist(), places.tolist(), strict=True):
            weights = on_device_of(ritz.x[part, :, place].copy(), self._V, xp, dtype=self._V.dtype)
            rows.append(xp.matmul(weights, self._V[part, :size, :]))
        return xp.stack(rows)

    def opposite(self, ritz: Ritz) -> tuple[Array, int]:
        """Return the Ritz vector, of all maps, at the end that is not wanted, in a row, and its map."""
        last = ritz.values[:, -1]
        part = int(np.argmin(last) if self._down else np.argmax(last))
        return self.vectors(ritz, np.array([part]), np.array([self._size - 1])), part

    def restart(self, ritz: Ritz, *, fresh: int = 0) -> None:
        """Keep the leading Ritz vectors of every map and go on from the last block; or `fresh`, and random vectors."""
        xp, size = self._xp, self._size
        kept = fresh or max(self._keep, self._capacity // 3)
        kept = min(kept, self._capacity - self._block, size)
        following = self._V[:, size : size + self._last, :]
        rotation = np.ascontiguousarray(np.swapaxes(ritz.x[:, :, :kept], 1, 2))
        vectors = xp.matmul(on_device_of(rotation, self._V, xp, dtype=self._V.dtype), self._V[:, :size, :])
        self._V = xpx.at(self._V)[:, :kept, :].set(vectors)
        self._H[:] = 0.0
        self._H[:, range(kept), range(kept)] = ritz.values[:, :kept]
        self._size, self._local = kept, 0
        self._last = min(self._block, self._n - kept)
        if fresh:
            following = self._random(self._last)
        self._append(following[:, : self._last, :], raw=bool(fresh))

    def _read(self, *arrays: Array) -> list[FloatArray]:
        """Return arrays on the host, in one transfer: a GPU is waited for once."""
        xp = self._xp
        joined = np.array(to_numpy(xp.concat([xp.reshape(array, (-1,)) for array in arrays])), np.float64)
        shapes = [tuple(int(n) for n in array.shape) for array in arrays]
        parts = np.split(joined, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _removed(self, rows: Array, basis: Array) -> tuple[Array, Array]:
        """Remove from rows their components along orthonormal ones; return them, and the components in columns."""
        xp = self._xp
        coefficients = xp.matmul(basis, xp.matrix_transpose(rows))
        rows = rows - xp.matmul(xp.matrix_transpose(coefficients), basis)
        return rows, coefficients

    def _tentative(self, rows: Array) -> list[Array]:
        """Put the next block after the bases as `_append` does where no row is short; return what would tell."""
        size, width, numbers = self._size, self._last, []
        for i in range(rows.shape[1]):
            row, end = rows[:, i : i + 1, :], size + min(i, width)
            if i:
                row, part = self._removed(row, self._V[:, size:end, :])
                numbers.append(part)
            if i < width:
                row, length = self._unit(row)
                numbers.append(length)
                self._V = xpx.at(self._V)[:, end : end + 1, :].set(row)
        return numbers

    def _coupling_of(self, step: _Step, numbers: list[FloatArray]) -> FloatArray | None:
        """Return how the block after a step is made of its image; None if a row was too short to be trusted."""
        width, rest, least = self._last, iter(numbers), _SHORT * self._scale()
        coupling = np.zeros((self._parts, width, step.width))
        for i in range(step.width if width else 0):
            if i:
                coupling[:, : min(i, width), i] = next(rest)[:, :, 0]
            if i < width:
                coupling[:, i, i] = next(rest)[:, 0, 0]
                if bool((coupling[:, i, i] < least).any()):
                    return None
        return coupling

    def _scale(self) -> float:
        """Return the largest coupling so far, which short rows are compared with."""
        return max(float(np.abs(self._H).max(initial=0.0)), float(np.finfo(float).tiny))

    def _append(self, rows: Array, *, raw: bool = False) -> FloatArray:
        """Put the next block after the bases, orthonormal, and return how it is made of the rows given.

        A row that depends on those before it, up to rounding, is replaced by a random direction, of which it is made
        with a coefficient of zero. Rows that are `raw` have not been made orthogonal to the bases yet.
        """
        xp, size, width = self._xp, self._size, self._last
        coupling = np.zeros((self._parts, width, rows.shape[1]))
        scale = self._scale()
        for i in range(rows.shape[1]):
            row, end = rows[:, i : i + 1, :], size + min(i, width)
            made = []
            if i:
                row, part = self._removed(row, self._V[:, size:end, :])
                made.append(part)
            if i < width:
                row, norms = self._unit(row)
                made.append(norms)
            read = self._read(*made)
            if i:
                coupling[:, : end - size, i] = read[0][:, :, 0]
            if i >= width:
                continue
            lengths = read[-1][:, 0, 0]
            # Raw rows have no scale to be compared with.
            vanished = lengths <= (0.0 if raw else 4 * self._eps * scale)
            if raw or bool((lengths < _SHORT * scale).any()):
                # A row that is short beside what was removed has kept rounding errors of that, or is no more than them.
                row, kept = self._cleaned(row, end)
                vanished = vanished | (kept < _KEPT)
            coupling[:, i, i] = np.where(vanished, 0.0, lengths)
            if vanished.any():
                mask = on_device_of(vanished[:, None, None], row, xp)
                row, _ = self._cleaned(xp.where(mask, self._random(1), row), end)
            self._V = xpx.at(self._V)[:, end : end + 1, :].set(row)
        return coupling

    def _cleaned(self, row: Array, end: int) -> tuple[Array, FloatArray]:
        """Return unit vectors orthogonal to the first `end` of the bases, and how much the last pass kept of them.

        Twice is enough, and thrice for what is made of rounding errors (Giraud, Langou, Rozloznik and van den Eshof,
        Numer. Math. 101 (2005) 87-100).
        """
        row, _ = self._unit(row)
        for _ in range(3):
            row, _ = self._removed(row, self._V[:, :end, :])
            row, norms = self._unit(row)
            kept = self._read(norms)[0][:, 0, 0]
            if bool((kept >= _KEPT).all()):
                break
        return row, kept

    def _random(self, count: int) -> Array:
        draws = self._rng.standard_normal((self._parts, count, self._n))
        return on_device_of(draws, self._V, self._xp, dtype=self._V.dtype)

    def _unit(self, row: Array) -> tuple[Array, Array]:
        """Return rows (P, 1, n) of norm 1, those of norm 0 as they are, and their norms (P, 1, 1)."""
        xp = self._xp
        squares = xp.matmul(row, xp.matrix_transpose(row))
        norms = xp.sqrt(squares)
        safe = xp.where(norms == 0, xp.ones_like(norms), norms)
        return row / safe, norms
