"""Golub-Kahan-Lanczos bidiagonalisation: the largest singular triplets of a map that can only be applied.

Full re-orthogonalisation, thick restart, and a stopping rule on residuals: a result is reported as converged when a
bound on its error says so, never because it has stopped changing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import array_api_extra as xpx
import numpy as np

from convla._array import device_of, namespace, on_device_of, to_numpy
from convla.spectra.ritz import FloatArray, Ritz
from convla.typing import Array, Namespace

__all__ = ["LanczosResult", "golub_kahan_lanczos"]


@dataclass(frozen=True)
class LanczosResult:
    """What `golub_kahan_lanczos` found.

    Attributes
    ----------
    values : numpy.ndarray of float64, shape (k,)
        The Ritz values, decreasing.
    left, right : array of shape (k, m) and (k, n)
        The Ritz vectors, in rows.
    residuals : numpy.ndarray of float64, shape (k,)
        ``norm(M^T u - value v)``; ``M v = value u`` holds by construction.
    errors : numpy.ndarray of float64, shape (k,)
        Bounds on the errors of the values; see Notes of `golub_kahan_lanczos`.
    matvecs : int
        Applications of M and of its transpose together.
    converged : bool
    """

    values: FloatArray
    left: Array
    right: Array
    residuals: FloatArray
    errors: FloatArray
    matvecs: int
    converged: bool


def golub_kahan_lanczos(
    matvec: Callable[[Array], Array],
    rmatvec: Callable[[Array], Array],
    start: Array,
    k: int,
    *,
    rows: int,
    rtol: float,
    criterion: Literal["residual", "value"] = "residual",
    which: Literal["largest", "smallest"] = "largest",
    basis_size: int,
    max_matvecs: int,
    rng: np.random.Generator,
    companion: Callable[[Array], Array | None] | None = None,
    spacing: float = 1.0,
    min_steps: int = 0,
) -> LanczosResult:
    """Find the k largest, or smallest, singular triplets of M.

    Parameters
    ----------
    matvec, rmatvec : callable
        Multiply a vector (n,) by M, and (m,) by its transpose.
    start : array of shape (n,)
        Real, not zero. It should have a component along every wanted vector: add a random part to a structured guess.
    k : int
    rows : int
        m.
    rtol : float
        The tolerance, relative to the largest of the k singular values, and at least a rounding error of the norm.
    criterion : {"residual", "value"}
        What has to be below the tolerance: the residual of every triplet, or the error bound of every value.
    which : {"largest", "smallest"}
        "smallest" takes M with no more columns than rows, and converges slowly unless they are well separated.
    basis_size : int
        How many vectors of either side are kept at most. Few more than k make slow progress.
    max_matvecs : int
        The search ends unconverged after this many applications.
    rng : numpy.random.Generator
        For new directions where the bidiagonalisation ends early.
    companion : callable, optional
        For k = 1: returns a guess of the singular vector whose value may be close to that of a given one, or None.
    spacing : float
        The part of a large value by which the next one is smaller, at most; the error estimates believe in no wider
        gap.
    min_steps : int
        Before so many steps estimates of errors are not believed, only residuals.

    Returns
    -------
    LanczosResult

    Notes
    -----
    With ``M V = U B`` and ``M^T U = V B^T + beta v e_p^T`` the residual of a Ritz triplet is ``beta abs(x_p)``, x the
    left singular vector of B. Some singular value lies within the residual of each Ritz value. Where a few leading
    ones are separated from the rest of the spectrum, Lehmann's bounds are sharper, and of second order in the residual;
    see `convla.spectra.ritz`. They take a bound of the rest from the next Ritz values. So they are estimates: they fail
    where a singular value hides from the whole Krylov space.

    Copies of a multiple singular value do hide. So does the larger of two close ones, if the start vector has little of
    its vector: from then on the iteration settles on the other, or between the two, with residuals far below their
    distance. So after convergence the search goes on from a vector that is orthogonal to what was found; for k = 1 from
    the `companion`, if there is one, else not.

    References
    ----------
    G. H. Golub and W. Kahan, Calculating the singular values and pseudo-inverse of a matrix, SIAM J. Numer. Anal. 2
    (1965) 205-224.
    J. Baglama and L. Reichel, Augmented implicitly restarted Lanczos bidiagonalization methods, SIAM J. Sci. Comput.
    27 (2005) 19-42.
    H. D. Simon and H. Zha, Low-rank matrix approximation using the Lanczos bidiagonalization process with applications,
    SIAM J. Sci. Comput. 21 (2000) 2257-2274, for re-orthogonalising one side.
    """
    process = _Bidiagonalisation(matvec, rmatvec, start, rows, k, basis_size, which, spacing, rng)
    limit = max(1, min(start.shape[0], rows))
    by_value = criterion == "value"
    search = _HiddenVectors(k, rtol, by_value, companion, min_steps)
    since_restart = 0
    while True:
        process.step()
        since_restart += 1
        size = process.size
        exhausted = size >= limit
        full = size >= process.capacity
        spent = process.matvecs >= max_matvecs
        # The SVD of B is not free next to a small convolution: look at every third step.
        if not (exhausted or full or process.invariant or since_restart % 3 == 0 or spent):
            continue
        ritz = process.ritz()
        done = exhausted or (size >= k and search.finished(process, ritz))
        hidden = done and not exhausted and search.goes_on(ritz)
        if (done and not hidden) or spent:
            break
        if hidden:
            search.start_afresh(process, ritz)
        elif full:
            process.restart(ritz)
        if hidden or full:
            since_restart = 0
    left, right = process.vectors(ritz, k)
    residuals, errors = ritz.residuals[:k], ritz.errors(k)
    if search.before is not None:  # starting afresh dropped what the recurrence knew of the residuals
        residuals = process.true_residuals(left, right, ritz.values)
        errors = errors + search.errors + search.doubt(ritz) if by_value else residuals
    return LanczosResult(
        values=ritz.values[:k],
        left=left,
        right=right,
        residuals=residuals,
        errors=errors,
        matvecs=process.matvecs,
        converged=done and not hidden,
    )


class _HiddenVectors:
    """The search for singular vectors that the Krylov space of the start vector does not contain, or hardly.

    It starts afresh, from a vector orthogonal to those that are found. For k = 1 this happens once, with the found
    vector's companion, if it has one. For k > 1 the vector is random, and the search ends when a fresh start has not
    raised the k values. A start that has, found a vector whose value exceeds the k-th one of before by more than the
    tolerance: this happens no more often than there are singular values that do, so the search ends.
    """

    def __init__(
        self,
        k: int,
        rtol: float,
        by_value: bool,
        companion: Callable[[Array], Array | None] | None,
        min_steps: int,
    ) -> None:
        self.k, self.rtol, self.by_value, self.min_steps = k, rtol, by_value, min_steps
        self.companion = companion if k == 1 else None
        self.before: FloatArray | None = None  # the k values at the last fresh start
        self.errors: FloatArray | float = 0.0  # and their errors
        self._following: Array | None = None

    def finished(self, process: _Bidiagonalisation, ritz: Ritz) -> bool:
        """Tell whether this start has shown what it can."""
        if 2 * self.min_steps > process.matvecs and ritz.residuals[: self.k].max() > ritz.tolerance(self.rtol):
            return False
        # With a companion the errors of two starts add up.
        share = 0.5 * self.rtol if self.companion is not None else self.rtol
        if self.before is not None:
            settled = ritz.settled(self.k, share, by_value=self.by_value)
            return settled and ritz.converged(self.k, share, by_value=self.by_value)
        if not ritz.converged(self.k, self.rtol, by_value=self.by_value):
            return False
        if self.companion is not None:
            self._following = self.companion(process.vectors(ritz, 1)[1][0, :])
            if self._following is not None:
                return ritz.converged(self.k, share, by_value=self.by_value)
            self.companion = None
        return True

    def goes_on(self, ritz: Ritz) -> bool:
        """Tell whether another start is due."""
        if self.before is None:
            return self.k > 1 or self._following is not None
        return self.k > 1 and ritz.raised(self.before, self.rtol)

    def doubt(self, ritz: Ritz) -> float:
        """Bound by how much the values would be mixed with the one after the k-th, if that cannot be told apart."""
        if len(ritz.values) <= self.k:
            return 0.0
        error = float(ritz.errors(self.k + 1)[-1])
        return 0.0 if error <= 0.5 * abs(ritz.values[self.k] - ritz.values[self.k - 1]) else error

    def start_afresh(self, process: _Bidiagonalisation, ritz: Ritz) -> None:
        """Keep the found vectors, and go on from another one."""
        self.before, self.errors = ritz.values[: self.k], ritz.errors(self.k)
        process.beyond = ritz.following(self.k)
        # No more than the k: the next value is then one that the new start shows.
        process.restart_from(ritz, self._following)


class _Bidiagonalisation:
    """The growing bases U, V in rows and the small matrix B = U^T M V, restarted in place."""

    def __init__(
        self,
        matvec: Callable[[Array], Array],
        rmatvec: Callable[[Array], Array],
        start: Array,
        rows: int,
        k: int,
        basis_size: int,
        which: str,
        spacing: float,
        rng: np.random.Generator,
    ) -> None:
        self._which = which
        self._matvec, self._rmatvec = matvec, rmatvec
        self._rng = rng
        xp = self._xp = namespace(start)
        columns = start.shape[0]
        self.capacity = min(max(basis_size, k + 3), rows, columns)
        self._k = k
        self._V = xp.zeros((self.capacity + 1, columns), dtype=start.dtype, device=device_of(start))
        self._U = xp.zeros((self.capacity, rows), dtype=start.dtype, device=device_of(start))
        self._B = np.zeros((self.capacity, self.capacity))
        self._tiny = float(xp.finfo(start.dtype).eps) * 4
        self.size = 0
        self.matvecs = 0
        self.invariant = False
        self.spacing = spacing
        self.beyond = 0.0  # what is known from before of the values that follow the found ones
        self._beta = 0.0
        self._both_sides = which == "smallest"
        # The components of the next image along the left vectors, where the recurrence gives them.
        self._couplings: FloatArray | None = np.zeros(0)
        self._set_v(0, start / _norm(start, xp))

    def step(self) -> None:
        """Add one vector to either basis: steps (2)-(4) of Golub and Kahan's algorithm, re-orthogonalised.

        The left vectors stay as orthogonal as the right ones while B is well conditioned (Simon and Zha 2000). So they
        are left alone until a small alpha magnifies their rounding errors, or the right ones show what they have lost.
        """
        j = self.size
        image, coefficients = self._left(self._matvec(self._V[j, :]))
        self._B[:j, j] = coefficients
        alpha = _norm(image, self._xp)
        scale = max(float(np.abs(self._B).max()), float(np.linalg.norm(coefficients)) if j else 0.0)
        if alpha <= 0.1 * scale and not self._both_sides:
            image, coefficients = _orthogonalise(image, self._U[:j, :], self._xp)
            self._B[:j, j] += coefficients
            alpha = _norm(image, self._xp)
        if alpha <= self._tiny * scale or alpha == 0.0:
            alpha = 0.0
            image = self._direction(None, self._U[:j, :])
        else:
            image = image / alpha
        self._B[j, j] = alpha
        self._U = xpx.at(self._U)[j, :].set(image)
        back = self._rmatvec(image) - alpha * self._V[j, :]
        back, removed = _orthogonalise(back, self._V[: j + 1, :], self._xp)
        # What is removed is B^T U^T u: no more than rounding errors, if u is orthogonal to the other left vectors.
        self._both_sides = self._both_sides or bool(np.abs(removed).max() > self._tiny * max(scale, alpha))
        self.matvecs += 2
        self._beta = _norm(back, self._xp)
        self.size = j + 1
        self.invariant = self._beta <= self._tiny * max(scale, alpha)
        if self.invariant:
            self._beta = 0.0
            if self.size < self._V.shape[1]:
                back = self._direction(None, self._V[: j + 1, :])
        else:
            back = back / self._beta
        self._couplings = np.append(np.zeros(j), self._beta)
        self._set_v(j + 1, back)

    def _left(self, image: Array) -> tuple[Array, FloatArray]:
        """Remove from an image its components along the left vectors; return them too."""
        U = self._U[: self.size, :]
        if self._both_sides or self._couplings is None:
            return _orthogonalise(image, U, self._xp)
        first = int(np.argmax(self._couplings != 0)) if self._couplings.any() else self.size
        known = on_device_of(self._couplings[first:], image, self._xp, dtype=image.dtype)
        return image - self._xp.matmul(known, U[first:, :]), self._couplings

    def ritz(self) -> Ritz:
        """Return the singular value decomposition of B, the wanted end first."""
        size = self.size
        x, values, yt = np.linalg.svd(self._B[:size, :size])
        rounding = self._tiny * float(values[0])
        end = slice(None, None, 1 if self._which == "largest" else -1)
        return Ritz(
            values[end], x[:, end], yt.T[:, end], self._beta * np.abs(x[-1, end]), rounding, self.beyond, self.spacing
        )

    def vectors(self, ritz: Ritz, k: int) -> tuple[Array, Array]:
        """Return the first k Ritz vectors of either side, in rows."""
        left = self._rotate(self._U[: self.size, :], ritz.x[:, :k])
        return left, self._rotate(self._V[: self.size, :], ritz.y[:, :k])

    def true_residuals(self, left: Array, right: Array, values: FloatArray) -> FloatArray:
        """Return ``norm(M^T u - value v)`` of triplets, by one application for each."""
        xp = self._xp
        self.matvecs += left.shape[0]
        return np.array(
            [_norm(self._rmatvec(left[i, :]) - float(values[i]) * right[i, :], xp) for i in range(left.shape[0])]
        )

    def restart(self, ritz: Ritz) -> None:
        """Keep the leading Ritz vectors and go on from the last residual."""
        couplings, following = self._beta * ritz.x[-1, :], self._V[self.size, :]
        self._keep(ritz, min(max(self._k + 2, self.capacity // 3), self.capacity - 1, self.size))
        self._couplings = couplings[: self.size]
        self._set_v(self.size, following)

    def restart_from(self, ritz: Ritz, vector: Array | None) -> None:
        """Keep the k leading Ritz vectors and go on from another vector, a random one if None.

        Their residuals are dropped; from here on B is what M is on the two bases, not what a recurrence says.
        """
        self._both_sides = True
        self._keep(ritz, self._k)
        self._couplings = None
        self._set_v(self.size, self._direction(vector, self._V[: self.size, :]))

    def _keep(self, ritz: Ritz, count: int) -> None:
        left, right = self.vectors(ritz, count)
        self._U = xpx.at(self._U)[:count, :].set(left)
        self._V = xpx.at(self._V)[:count, :].set(right)
        self._B[:] = 0.0
        self._B[range(count), range(count)] = ritz.values[:count]
        self.size = count

    def _rotate(self, basis: Array, coefficients: FloatArray) -> Array:
        rotation = on_device_of(np.ascontiguousarray(coefficients.T), basis, self._xp, dtype=basis.dtype)
        return self._xp.matmul(rotation, basis)

    def _set_v(self, index: int, vector: Array) -> None:
        self._V = xpx.at(self._V)[index, :].set(vector)

    def _direction(self, vector: Array | None, basis: Array) -> Array:
        """Return a unit vector orthogonal to the rows of `basis`, from a vector or a random one.

        Zero where the rows span the whole space.
        """
        xp = self._xp
        if basis.shape[0] >= basis.shape[1]:
            return xp.zeros(basis.shape[1], dtype=basis.dtype, device=device_of(basis))
        if vector is not None:
            vector, _ = _orthogonalise(vector / _norm(vector, xp), basis, xp)
            norm = _norm(vector, xp)
            if norm > math.sqrt(self._tiny):
                return vector / norm
        vector = on_device_of(self._rng.standard_normal(basis.shape[1]), basis, xp, dtype=basis.dtype)
        vector, _ = _orthogonalise(vector / _norm(vector, xp), basis, xp)
        return vector / _norm(vector, xp)


def _orthogonalise(vector: Array, basis: Array, xp: Namespace) -> tuple[Array, FloatArray]:
    """Remove from a vector its components along the orthonormal rows of `basis`; return it with the coefficients.

    Twice where the first pass cancelled much: then once more is enough (Giraud, Langou, Rozloznik and van den Eshof,
    Numer. Math. 101 (2005) 87-100).
    """
    total: FloatArray = np.zeros(basis.shape[0])
    if basis.shape[0] == 0:
        return vector, total
    before = _norm(vector, xp)
    for _ in range(3):
        coefficients = xp.matmul(basis, vector)
        vector = vector - xp.matmul(coefficients, basis)
        total += to_numpy(coefficients)
        after = _norm(vector, xp)
        if after > 0.7 * before or after == 0.0:
            break
        before = after
    return vector, total


def _norm(vector: Array, xp: Namespace) -> float:
    return math.sqrt(float(xp.vecdot(vector, vector)))
