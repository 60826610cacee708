"""Ritz values of a batch of Gram maps, and estimates of their errors from what the iteration knows."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FloatArray", "Ritz", "lehmann_bounds"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_LARGEST_CLUSTER = 8  # of leading values that one estimate takes together
_WORTHWHILE = 1e3  # times the wanted accuracy, up to which the sharper bounds are tried
_WAY = 0.8  # of a gap, that a Ritz value below it may still have to go


@dataclass(frozen=True)
class Ritz:
    """The eigenvalue decompositions of the projections of P Gram maps, the wanted end first.

    Attributes
    ----------
    values : numpy.ndarray of shape (P, p)
        Estimates of squared singular values, monotone along the last axis.
    x : numpy.ndarray of shape (P, p, p)
        The eigenvectors, in columns.
    couplings : numpy.ndarray of shape (P, b, p)
        The residuals ``G v - value v`` of the Ritz vectors, as combinations of the b orthonormal vectors of the next
        block.
    rtol : float
        The wanted accuracy of a singular value, relative to the leading one.
    rounding : float
        What rounding errors may do to an eigenvalue, relative to the largest: no error is below it.
    spacing : float
        A singular value is followed by one that is smaller by no more than this part of it, seen or not.
    down : bool
        Whether the largest values are wanted, and not the smallest.
    """

    values: FloatArray
    x: FloatArray
    couplings: FloatArray
    rtol: float
    rounding: float
    spacing: float
    down: bool

    @functools.cached_property
    def residuals_of_gram(self) -> FloatArray:
        """``norm(G v - value v)``; of shape (P, p)."""
        return np.asarray(np.sqrt(np.einsum("pik,pik->pk", self.couplings, self.couplings)))

    @property
    def residuals(self) -> FloatArray:
        """``norm(M^T u - s v)`` with s the root of the value and ``M v = s u``; of shape (P, p)."""
        return np.asarray(self.residuals_of_gram / np.maximum(self._roots, math.sqrt(self._floor)))

    @property
    def _roots(self) -> FloatArray:
        return np.asarray(np.sqrt(self.values))

    @property
    def _floor(self) -> float:
        """An eigenvalue below which rounding leaves nothing to tell."""
        return max(self.rounding * float(self.values.max()), float(np.finfo(float).tiny))

    def ordered(self, k: int) -> tuple[FloatArray, np.ndarray, np.ndarray]:
        """Return the k leading singular values of all maps together, their maps, and their places there."""
        order = np.argsort(-self.values if self.down else self.values, axis=None, kind="stable")[:k]
        parts, places = np.unravel_index(order, self.values.shape)
        return self._roots[parts, places], parts, places

    def leading(self, k: int) -> FloatArray:
        """Return the k leading singular values of all maps together."""
        return self.ordered(k)[0]

    @functools.cached_property
    def errors(self) -> FloatArray:
        """Estimates of the errors of all singular values; of shape (P, p).

        The c leading Ritz values are below their eigenvalues by no more than the sum of their squared residuals over
        the gap to the rest of the spectrum (Kato and Temple), and by no more than Lehmann's bounds say, which are
        sharper. The rest is guessed: the next Ritz value is no farther on its way than its residual, or most of the
        gap, and no farther off than the spacing allows. So these are estimates: they fail where a value hides. At the
        lower end, where values crowd and a Krylov space shows few of them, no gap is believed: some eigenvalue is
        within the residual of each Ritz value, and that is all.
        """
        values, residuals = self.values, self.residuals_of_gram
        rounding = self.rounding * float(values.max())
        bounds = np.maximum(residuals, rounding)
        if not self.down:
            return np.asarray(self._roots - np.sqrt(np.maximum(values - bounds, 0.0)))
        together = np.cumsum(residuals**2, axis=1)
        best = np.full(len(values), np.inf)
        cluster_of = np.zeros(len(values), dtype=int)
        for cluster in range(1, min(_LARGEST_CLUSTER + 1, values.shape[1])):
            gap = values[:, cluster - 1] - self._rest(cluster)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                quality = np.where(gap > self._floor, together[:, cluster - 1] / gap, np.inf)
            cluster_of, best = np.where(quality < best, cluster, cluster_of), np.minimum(best, quality)
            quality = np.maximum(quality, rounding)
            bounds[:, :cluster] = np.minimum(bounds[:, :cluster], quality[:, None])
        wanted = max(self.rtol, self.rounding) * float(values.max())
        for p in np.flatnonzero((cluster_of > 0) & (bounds[:, 0] > wanted) & (best < _WORTHWHILE * wanted)):
            cluster = int(cluster_of[p])
            ends = lehmann_bounds(self.values[p], self.couplings[p], float(self._rest(cluster)[p]), cluster)
            bounds[p, :cluster] = np.minimum(
                bounds[p, :cluster], np.maximum(np.abs(ends - values[p, :cluster]), rounding)
            )
        # From eigenvalues to their roots: the derivative, or the root of the error where that is less.
        slopes = np.maximum(2 * self._roots, math.sqrt(self._floor))
        return np.asarray(np.minimum(bounds / slopes, np.sqrt(bounds)))

    def _rest(self, cluster: int) -> FloatArray:
        """Guess what bounds the eigenvalues of each map after the first `cluster`; of shape (P,)."""
        before, after = self.values[:, cluster - 1], self.values[:, cluster]
        way = np.minimum(self.residuals_of_gram[:, cluster], _WAY * (before - after))
        return np.maximum(after + way, before * (1.0 - self.spacing) ** 2)

    def converged(self, k: int, *, by_value: bool) -> bool:
        """Tell whether the k leading values are found, as far as these spaces show.

        Their errors, or residuals, have to be within the tolerance, and no other may be about to overtake the last of
        them: in each map the next one alone can, by its residual, or, if none of the map's is among the k, its error.
        """
        if self.values.size < k:
            return False
        leading, parts, places = self.ordered(k)
        tolerance = max(self.rtol, self.rounding) * float(leading.max())
        errors = self.errors
        if (errors if by_value else self.residuals)[parts, places].max() > tolerance:
            return False
        maps, size = self.values.shape
        taken = np.bincount(parts, minlength=maps)
        if k == 1:  # of one map the estimate of the error has taken the followers into account
            taken[parts[0]] = size
        rivals = np.flatnonzero(taken < size)
        after = taken[rivals]
        doubts = np.where(after == 0, errors[rivals, after], self.residuals[rivals, after])
        distances = np.abs(self._roots[rivals, after] - leading[-1])
        return bool((doubts <= np.maximum(tolerance, distances)).all())

    def settled(self, before: FloatArray) -> bool:
        """Tell whether the leading values are what they were, to within the tolerance."""
        now = self.leading(len(before))
        return bool((np.abs(now - before) <= max(self.rtol, self.rounding) * float(now.max())).all())


def lehmann_bounds(values: FloatArray, couplings: FloatArray, rest: float, count: int) -> FloatArray:
    """Bound the `count` largest eigenvalues of a symmetric matrix from above.

    Parameters
    ----------
    values : numpy.ndarray of shape (p,)
        Ritz values of a block Krylov space, decreasing, more than `count` of them or the whole spectrum.
    couplings : numpy.ndarray of shape (b, p)
        Their residuals, as combinations of the b vectors of the next block.
    rest : float
        At least every eigenvalue but the `count` largest; below ``values[count - 1]``, not below ``values[count]``.
    count : int

    Returns
    -------
    numpy.ndarray of shape (count,)

    Notes
    -----
    Among all matrices that agree on the Krylov space, these are the best bounds. They are the eigenvalues of the matrix
    that the iteration would have after one more step, if its new diagonal block were such that `rest` is an eigenvalue
    as often as the block has vectors: the nodes of a Gauss-Radau rule. The bound by ``residual^2 / gap`` takes the
    residual for a vector of the worst direction; this one knows that it is orthogonal to the other Ritz vectors, and
    how these couple to it.

    References
    ----------
    N. J. Lehmann, Optimale Eigenwerteinschliessungen, Numer. Math. 5 (1963) 246-272.
    B. N. Parlett, The Symmetric Eigenvalue Problem, SIAM, 1998, Sec. 10.5.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.ritz import lehmann_bounds
    >>> matrix = np.diag([4.0, 1.0, 0.0])
    >>> v = np.array([0.8, 0.6, 0.0])
    >>> value = v @ matrix @ v
    >>> residual = np.linalg.norm(matrix @ v - value * v)
    >>> round(float(lehmann_bounds(np.array([value]), np.array([[residual]]), 1.0, 1)[0]), 12)
    4.0
    """
    size, block = len(values), len(couplings)
    # Where a coupled value is `rest` itself the new block is infinite, and the bound with it.
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted = np.where(couplings == 0, 0.0, couplings / (values - rest))
        corner = rest * np.eye(block) + weighted @ couplings.T
    if not np.isfinite(corner).all():
        return np.full(count, np.inf)
    arrow = np.zeros((size + block, size + block))
    arrow[range(size), range(size)] = values
    arrow[size:, :size], arrow[:size, size:], arrow[size:, size:] = couplings, couplings.T, corner
    return np.asarray(np.linalg.eigvalsh(arrow)[::-1][:count])
