"""Ritz values of a batch of Gram maps, and estimates of their errors from what the iteration knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FloatArray", "Ritz"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_LARGEST_CLUSTER = 8  # of leading values that one estimate takes together
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
    residuals_of_gram : numpy.ndarray of shape (P, p)
        ``norm(G v - value v)``.
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
    residuals_of_gram: FloatArray
    rtol: float
    rounding: float
    spacing: float
    down: bool

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

    def errors(self) -> FloatArray:
        """Estimate the errors of all singular values: by their residuals, or with the leading ones as a cluster.

        The c leading Ritz values are below their eigenvalues by no more than the sum of their squared residuals over
        the gap to the rest of the spectrum (Kato and Temple). The rest is guessed: the next Ritz value is no farther on
        its way than its residual, or most of the gap, and no farther off than the spacing allows.
        """
        values, residuals = self.values, self.residuals_of_gram
        bounds = np.maximum(residuals, self.rounding * values.max())
        together = np.cumsum(residuals**2, axis=1)
        for cluster in range(min(_LARGEST_CLUSTER, values.shape[1] - 1), 0, -1):
            gap = np.abs(values[:, cluster - 1] - values[:, cluster])
            gap = gap - np.minimum(residuals[:, cluster], _WAY * gap)
            if self.down:
                gap = np.minimum(gap, values[:, cluster - 1] * (1 - (1 - self.spacing) ** 2))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                quality = np.where(gap > self._floor, together[:, cluster - 1] / gap, np.inf)
            quality = np.maximum(quality, self.rounding * values.max())
            bounds[:, :cluster] = np.minimum(bounds[:, :cluster], quality[:, None])
        # From eigenvalues to their roots: the derivative, or the root of the error where that is less.
        slopes = np.maximum(2 * self._roots, math.sqrt(self._floor))
        return np.asarray(np.minimum(bounds / slopes, np.sqrt(bounds)))

    def converged(self, k: int, *, by_value: bool) -> bool:
        """Tell whether the k leading values are found, as far as these spaces show.

        Their errors, or residuals, have to be within the tolerance, and no other may be about to overtake the last of
        them: in each map the next one alone can, by its residual, or, if none of the map's is among the k, its error.
        """
        if self.values.size < k:
            return False
        leading, parts, places = self.ordered(k)
        tolerance = max(self.rtol, self.rounding) * float(leading.max())
        errors = self.errors()
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
