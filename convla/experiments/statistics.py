"""Estimates with their errors, and two ways of doing a thing compared seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

__all__ = ["CONFIDENCE", "Estimate", "PairedDifference", "mean_with_error", "paired_difference"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic of a setting.

    Attributes
    ----------
    value : float
    stderr : float
        Its standard error; NaN where there is nothing to estimate it from.
    count : int
        How many repetitions entered it.
    """

    value: float
    stderr: float
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """The difference to a baseline over the seeds that both came through.

    Attributes
    ----------
    mean : float
    low, high : float
        Its t interval at `CONFIDENCE`.
    simultaneous_low, simultaneous_high : float
        The one that holds for all comparisons of the same table at once, at that level (Bonferroni).
    seeds : int
    """

    mean: float
    low: float
    high: float
    simultaneous_low: float
    simultaneous_high: float
    seeds: int

    def verdict(self, *, more_is_better: bool) -> str:
        """Return "better", "worse", or "no difference seen", by the simultaneous interval."""
        if self.seeds < 2 or not (self.simultaneous_low > 0.0 or self.simultaneous_high < 0.0):
            return "no difference seen"
        return "better" if (self.mean > 0.0) == more_is_better else "worse"


def mean_with_error(values: Sequence[float]) -> Estimate:
    """Return the mean of the finite values with its standard error, NaN for fewer than two.

    Examples
    --------
    >>> mean_with_error([1.0, 3.0, float("nan")])
    Estimate(value=2.0, stderr=1.0, count=2)
    """
    kept = np.array([value for value in values if math.isfinite(value)])
    mean = float(kept.mean()) if kept.size else math.nan
    return Estimate(mean, float(kept.std(ddof=1) / math.sqrt(kept.size)) if kept.size > 1 else math.nan, int(kept.size))


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], comparisons: int = 1, *, resolution: float = 0.0
) -> PairedDifference:
    """Return the mean of ``values - baseline`` with its t interval.

    Parameters
    ----------
    values, baseline : sequence of float
        One for each seed, in the same order; a seed at which either is NaN is left out.
    comparisons : int, default 1
        How many are made in the same table: the simultaneous interval is at level 1 - (1 - `CONFIDENCE`) / comparisons.
    resolution : float, default 0.0
        The step in which the values can differ, of an accuracy one image's share.

    Returns
    -------
    PairedDifference
        The intervals are NaN for fewer than two seeds.

    Notes
    -----
    It speaks of other seeds on the same images: how far the test images stand for others is not in it. Differences of
    an accuracy are multiples of one image, so that over few seeds they may all be equal, which is no evidence that they
    always are: their standard deviation is taken as at least resolution / sqrt(6), that of the difference of two values
    rounded to whole steps.

    Examples
    --------
    >>> difference = paired_difference([3.0, 4.0, 8.0], [1.0, 3.0, 5.0])
    >>> difference.mean, round(difference.low, 2), round(difference.high, 2)
    (2.0, -0.48, 4.48)
    """
    gaps = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    gaps = gaps[np.isfinite(gaps)]
    if gaps.size < 2:
        mean = float(gaps.mean()) if gaps.size else math.nan
        return PairedDifference(mean, math.nan, math.nan, math.nan, math.nan, int(gaps.size))
    mean, deviation = float(gaps.mean()), max(float(gaps.std(ddof=1)), resolution / math.sqrt(6.0))
    error = deviation / math.sqrt(gaps.size)
    alone, together = (
        error * float(stdtrit(gaps.size - 1, 1.0 - (1.0 - CONFIDENCE) / (2.0 * count))) for count in (1, comparisons)
    )
    return PairedDifference(mean, mean - alone, mean + alone, mean - together, mean + together, int(gaps.size))
