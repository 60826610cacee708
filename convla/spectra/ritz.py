"""Ritz values of a bidiagonalisation, and bounds of their errors from what the iteration knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FloatArray", "Ritz", "lehmann_bounds"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_LARGEST_CLUSTER = 8  # of leading values that one bound takes together
_WAY = 0.8  # of a gap, that a Ritz value below it may still have to go
_SHARE = 1e-3  # of a hidden singular vector in one found from a random vector, at least


@dataclass(frozen=True)
class Ritz:
    """The decomposition ``B = X diag(values) Y^T``, the wanted end first, with the residuals that follow.

    Attributes
    ----------
    values : numpy.ndarray of shape (p,)
    x, y : numpy.ndarray of shape (p, p)
    residuals : numpy.ndarray of shape (p,)
        ``norm(M^T U x - value V y)``; ``M V y = value U x`` holds by construction.
    rounding : float
        What the rounding errors of the applications of M may do to a value: no error is below it.
    beyond : float
        A value up to which there are more singular values, whether or not this space shows them.
    spacing : float
        A value is followed by one that is smaller by no more than this part of it, whether or not this space shows it.
    """

    values: FloatArray
    x: FloatArray
    y: FloatArray
    residuals: FloatArray
    rounding: float
    beyond: float = 0.0
    spacing: float = 1.0

    def tolerance(self, rtol: float) -> float:
        """Return a relative tolerance as an absolute one, no smaller than what rounding allows."""
        return max(rtol * float(self.values[0]), self.rounding)

    def errors(self, k: int) -> FloatArray:
        """Bound the errors of the first k values: by their residuals, or by Lehmann's bounds of a leading cluster.

        Lehmann's bounds of the c leading values need a bound of the next one. That is its own Lehmann bound, which
        in turn takes the value after it to be no farther on its way than its residual, or most of the gap.
        """
        bounds = np.maximum(self.residuals, self.rounding)
        if self.values[0] == 0:
            return bounds[:k]
        best = np.full(len(self.values), np.inf)
        chosen = []
        together = np.cumsum((self.values * self.residuals) ** 2)
        for cluster in range(1, min(_LARGEST_CLUSTER + 1, len(self.values))):
            spread = abs(self.values[cluster - 1] ** 2 - self._on_its_way(cluster) ** 2)
            if spread <= self.rounding * self.values[0]:
                continue
            quality = together[cluster - 1] / spread
            if (quality < best[: min(cluster, k)]).any():
                chosen.append(cluster)
                best[:cluster] = np.minimum(best[:cluster], quality)
        for cluster in chosen:
            rest = self._on_its_way(cluster)
            if cluster + 1 < len(self.values):
                further = self._lehmann(cluster + 1, self._on_its_way(cluster + 1))[cluster]
                rest = min(rest, further) if self._down else max(rest, further)
            ends = self._lehmann(cluster, rest)
            bounds[:cluster] = np.minimum(
                bounds[:cluster], np.maximum(np.abs(ends - self.values[:cluster]), self.rounding)
            )
        return bounds[:k]

    def converged(self, k: int, rtol: float, *, by_value: bool) -> bool:
        """Tell whether the first k values are found, as far as this space shows: their errors, or their residuals."""
        tolerance = self.tolerance(rtol)
        if not by_value:
            found = bool((self.residuals[:k] <= tolerance).all())
        # Lehmann's bound takes an eigendecomposition: first see whether it can help.
        elif k == 1 and self.residuals[0] ** 2 > tolerance * self.values[0]:
            found = False
        else:
            found = bool((self.errors(k) <= tolerance).all())
        if not found or k == 1 or len(self.values) <= k:
            return found
        # Only the next value can overtake the k-th. Those below are never settled in a space of bounded size.
        return bool(self.residuals[k] <= max(tolerance, abs(self.values[k] - self.values[k - 1])))

    def settled(self, k: int, rtol: float, *, by_value: bool) -> bool:
        """Tell whether the value after the first k is known well enough to say that it is not one of them.

        Asked of a space that grows from one new vector, orthogonal to k vectors that are found.
        """
        if len(self.values) <= k:
            return False
        tolerance, distance = self.tolerance(rtol), abs(self.values[k] - self.values[k - 1])
        if by_value:
            return bool(self.errors(k + 1)[k] <= max(tolerance, 0.5 * distance))
        # The residual has the share that the vector has in a hidden singular vector, times the distance of the values.
        # Of a random vector that grows with the iteration, from a ratio of two normal numbers.
        return bool(self.residuals[k] <= max(tolerance, _SHARE * distance))

    def following(self, k: int) -> float:
        """Return where the value after the first k may be."""
        return self._on_its_way(k) if len(self.values) > k else 0.0

    @property
    def _down(self) -> bool:
        """Whether the wanted end is the upper one."""
        return bool(self.values[0] >= self.values[-1])

    def _on_its_way(self, index: int) -> float:
        """Guess how far the true value is from a Ritz value: no farther than its residual, or most of the gap."""
        gap = abs(self.values[index - 1] - self.values[index])
        way = min(float(self.residuals[index]), _WAY * gap)
        if not self._down:
            return max(0.0, float(self.values[index] - way))
        shown = max(float(self.values[index] + way), float(self.values[index - 1]) * (1.0 - self.spacing))
        return self.beyond if shown < self.beyond < self.values[index - 1] else shown

    def _lehmann(self, cluster: int, rest: float) -> FloatArray:
        """Bound the singular values of a leading cluster, given a bound of the next one."""
        sign = 1.0 if self._down else -1.0
        squares = lehmann_bounds(sign * self.values**2, self.values * self.residuals, sign * rest**2, cluster)
        return np.sqrt(np.maximum(sign * squares, 0.0))

    def raised(self, before: FloatArray, rtol: float) -> bool:
        """Tell whether one of the wanted values has moved on since `before` by more than the tolerance."""
        return bool((np.abs(self.values[: len(before)] - before) > self.tolerance(rtol)).any())


def lehmann_bounds(values: FloatArray, couplings: FloatArray, rest: float, count: int) -> FloatArray:
    """Bound the `count` largest eigenvalues of a symmetric matrix from above.

    Parameters
    ----------
    values : numpy.ndarray of shape (p,)
        Ritz values of a Krylov space, decreasing, more than `count` of them or the whole spectrum.
    couplings : numpy.ndarray of shape (p,)
        The norms of their residuals, which are all multiples of one vector.
    rest : float
        At least every eigenvalue but the `count` largest; below ``values[count - 1]``, not below ``values[count]``.
    count : int

    Returns
    -------
    numpy.ndarray of shape (count,)

    Notes
    -----
    Among all matrices that agree on the Krylov space, these are the best bounds. They are the eigenvalues of the matrix
    that the iteration would have after one more step, if its new diagonal entry were such that `rest` is an eigenvalue:
    the nodes of a Gauss-Radau rule. The bound by ``residual^2 / gap`` takes the residual for a vector of the worst
    direction; this one knows that it is orthogonal to the other Ritz vectors, and how these couple to it.

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
    >>> bound = lehmann_bounds(np.array([value]), np.array([np.linalg.norm(matrix @ v - value * v)]), 1.0, 1)
    >>> round(float(bound[0]), 12)
    4.0
    """
    coupled = couplings > 0
    differences = values - rest
    # Where a coupled value is `rest` itself the new entry is infinite, and the bound with it.
    with np.errstate(divide="ignore"):
        terms = couplings[coupled] ** 2 / differences[coupled]
    corner = rest + float(terms.sum())
    if not np.isfinite(corner):
        return np.full(count, np.inf)
    size = len(values)
    arrow = np.diag(np.append(values, corner))
    arrow[size, :size] = arrow[:size, size] = couplings
    return np.linalg.eigvalsh(arrow)[::-1][:count]
