"""Golub-Kahan-Lanczos bidiagonalisation: the largest singular triplets of a map that can only be applied.

Full re-orthogonalisation, thick restart, and a stopping rule on residuals: a result is reported as converged when a
bound on its error says so, never because it has stopped changing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import array_api_extra as xpx
import numpy as np

from convla._array import device_of, namespace, on_device_of, to_numpy
from convla.typing import Array, Namespace

__all__ = ["LanczosResult", "golub_kahan_lanczos"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_LARGEST_CLUSTER = 8  # of leading singular values that one quadratic error bound takes together


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
        How many vectors of either side are kept at most. Below 2 k + 12 the search for further copies may not end.
    max_matvecs : int
        The search ends unconverged after this many applications.
    rng : numpy.random.Generator
        For new directions where the bidiagonalisation ends early.

    Returns
    -------
    LanczosResult

    Notes
    -----
    With ``M V = U B`` and ``M^T U = V B^T + beta v e_p^T`` the residual of a Ritz triplet is ``beta abs(x_p)``, x the
    left singular vector of B. Some singular value lies within the residual of each Ritz value. Where the c leading
    Ritz values are separated from the rest of the spectrum, of which s bounds the largest, a quadratic bound is
    sharper: with ``rho`` the norm of their residuals together, ``sigma_i <= theta_i + theta_1^2 rho^2 / (2 theta_i
    (theta_i^2 - s^2))``. As s the (c+1)-st Ritz value is taken, raised by its own residual or by 0.8 of the gap. So
    this is an estimate: it fails where a singular value hides from the whole Krylov space.

    For k > 1, copies of a multiple singular value do hide from one Krylov space. So after convergence the search goes
    on from a random vector orthogonal to what was found, until that adds nothing to the k largest.

    References
    ----------
    G. H. Golub and W. Kahan, Calculating the singular values and pseudo-inverse of a matrix, SIAM J. Numer. Anal. 2
    (1965) 205-224.
    J. Baglama and L. Reichel, Augmented implicitly restarted Lanczos bidiagonalization methods, SIAM J. Sci. Comput.
    27 (2005) 19-42.
    R. Mathias, Quadratic residual bounds for the Hermitian eigenvalue problem, SIAM J. Matrix Anal. Appl. 19 (1998)
    541-550.
    """
    process = _Bidiagonalisation(matvec, rmatvec, start, rows, k, basis_size, which, rng)
    limit = max(1, min(start.shape[0], rows))
    before: FloatArray | None = None  # the k largest before the last start from a fresh random vector
    since_restart = 0
    while True:
        process.step()
        since_restart += 1
        size = process.size
        exhausted = size >= limit
        full = size >= process.capacity
        # The SVD of B is not free next to a small convolution: look at every third step.
        if not (exhausted or full or process.invariant or since_restart % 3 == 0 or process.matvecs >= max_matvecs):
            continue
        ritz = process.ritz()
        done = exhausted or (size >= k and ritz.converged(k, rtol, criterion))
        if done and k > 1 and not exhausted and (before is None or ritz.raised(before, rtol)):
            before = ritz.values[:k]
            process.restart(ritz, keep=int(np.argmin(np.append(ritz.residuals <= ritz.tolerance(rtol), False))))
            since_restart = 0
            continue
        if done or process.matvecs >= max_matvecs:
            break
        if full:
            process.restart(ritz)
            since_restart = 0
    left, right = process.vectors(ritz, k)
    residuals, errors = ritz.residuals[:k], ritz.errors()[:k]
    if before is not None:  # starting afresh dropped what the recurrence knew of the residuals
        residuals = process.true_residuals(left, right, ritz.values)
        errors = residuals
    return LanczosResult(
        values=ritz.values[:k],
        left=left,
        right=right,
        residuals=residuals,
        errors=errors,
        matvecs=process.matvecs,
        converged=done,
    )


@dataclass(frozen=True)
class _Ritz:
    """The decomposition ``B = X diag(values) Y^T``, the wanted end first, with the residuals that follow."""

    values: FloatArray
    x: FloatArray
    y: FloatArray
    residuals: FloatArray
    rounding: float  # of the norm of B

    def tolerance(self, rtol: float) -> float:
        return max(rtol * float(self.values[0]), self.rounding)

    def errors(self) -> FloatArray:
        """Bound the error of every value, by its residual or by the quadratic bound of a leading cluster."""
        values = self.values
        downwards = bool(values[0] >= values[-1])
        together = np.cumsum(self.residuals**2)
        bounds = self.residuals.copy()
        for cluster in range(1, min(_LARGEST_CLUSTER + 1, len(values))):
            # The next value is still on its way towards the cluster: by its residual, or by most of the gap.
            way = min(self.residuals[cluster], 0.8 * abs(values[cluster - 1] - values[cluster]))
            rest = values[cluster] + (way if downwards else -way)
            gaps = (values[:cluster] ** 2 - rest**2) if downwards else (max(rest, 0.0) ** 2 - values[:cluster] ** 2)
            inside = (gaps > 0) & (values[:cluster] > 0)
            steepest = max(values[0], values[cluster - 1]) ** 2
            quadratic = steepest * together[cluster - 1] / (2 * values[:cluster][inside] * gaps[inside])
            bounds[:cluster][inside] = np.minimum(bounds[:cluster][inside], quadratic)
        return bounds

    def converged(self, k: int, rtol: float, criterion: str) -> bool:
        tolerance = self.tolerance(rtol)
        quantity = self.residuals if criterion == "residual" else self.errors()
        if not (quantity[:k] <= tolerance).all():
            return False
        if k == 1:
            return True
        # No value that is still on its way may be able to overtake the k-th.
        distance = np.abs(self.values[k:] - self.values[k - 1])
        return not ((self.residuals[k:] > distance) & (quantity[k:] > tolerance)).any()

    def raised(self, before: FloatArray, rtol: float) -> bool:
        """Tell whether one of the wanted values has moved on since `before` by more than the tolerance."""
        return bool((np.abs(self.values[: len(before)] - before) > self.tolerance(rtol)).any())


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
        self._beta = 0.0
        self._set_v(0, start / _norm(start, xp))

    def step(self) -> None:
        """Add one vector to either basis: steps (2)-(4) of Golub and Kahan's algorithm, re-orthogonalised."""
        xp, j = self._xp, self.size
        image = self._matvec(self._V[j, :])
        image, coefficients = _orthogonalise(image, self._U[:j, :], xp)
        self._B[:j, j] = coefficients
        scale = max(float(np.abs(self._B).max()), float(np.linalg.norm(coefficients)) if j else 0.0)
        alpha = _norm(image, xp)
        if alpha <= self._tiny * scale or alpha == 0.0:
            alpha = 0.0
            image = self._random_direction(self._U[:j, :])
        else:
            image = image / alpha
        self._B[j, j] = alpha
        self._U = xpx.at(self._U)[j, :].set(image)
        back = self._rmatvec(image)
        back, _ = _orthogonalise(back, self._V[: j + 1, :], xp)
        self.matvecs += 2
        self._beta = _norm(back, xp)
        self.size = j + 1
        self.invariant = self._beta <= self._tiny * max(scale, alpha)
        if self.invariant:
            self._beta = 0.0
            if self.size < self._V.shape[1]:
                back = self._random_direction(self._V[: j + 1, :])
        else:
            back = back / self._beta
        self._set_v(j + 1, back)

    def ritz(self) -> _Ritz:
        """Return the singular value decomposition of B, the wanted end first."""
        size = self.size
        x, values, yt = np.linalg.svd(self._B[:size, :size])
        rounding = self._tiny * float(values[0])
        end = slice(None, None, 1 if self._which == "largest" else -1)
        return _Ritz(values[end], x[:, end], yt.T[:, end], self._beta * np.abs(x[-1, end]), rounding)

    def vectors(self, ritz: _Ritz, k: int) -> tuple[Array, Array]:
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

    def restart(self, ritz: _Ritz, *, keep: int | None = None) -> None:
        """Keep leading Ritz vectors and go on from the last residual; with `keep` given, from a random vector.

        Vectors that are kept while the last residual is dropped must be converged: their coupling to it is lost.
        """
        following = self._V[self.size, :]
        fresh = keep is not None
        most = min(max(self._k + 2, self.capacity // 3), self.capacity - 1, self.size)
        keep = most if keep is None else min(keep, most)
        left, right = self.vectors(ritz, keep)
        self._U = xpx.at(self._U)[:keep, :].set(left)
        self._V = xpx.at(self._V)[:keep, :].set(right)
        self._B[:] = 0.0
        self._B[range(keep), range(keep)] = ritz.values[:keep]
        self.size = keep
        self._set_v(keep, self._random_direction(right) if fresh else following)

    def _rotate(self, basis: Array, coefficients: FloatArray) -> Array:
        rotation = on_device_of(np.ascontiguousarray(coefficients.T), basis, self._xp, dtype=basis.dtype)
        return self._xp.matmul(rotation, basis)

    def _set_v(self, index: int, vector: Array) -> None:
        self._V = xpx.at(self._V)[index, :].set(vector)

    def _random_direction(self, basis: Array) -> Array:
        """Return a random unit vector orthogonal to the rows of `basis`; zero where there is none."""
        xp = self._xp
        if basis.shape[0] >= basis.shape[1]:
            return xp.zeros(basis.shape[1], dtype=basis.dtype, device=device_of(basis))
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
