"""Estimates with their errors, two ways of doing a thing compared seed by seed, and verdicts on many things at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "Moments",
    "PairedDifference",
    "SpreadRatio",
    "all_positive",
    "holm",
    "mean_with_error",
    "median_interval",
    "mostly_true",
    "paired_difference",
    "sequential_tail",
    "share",
    "share_interval",
    "spread_ratio",
]

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


class Moments:
    """Count, mean and central moments of a stream of blocks, in memory that does not grow with it.

    Blocks are merged by the formulas of Pebay (2008, Sandia report SAND2008-6212, Section 2), which do not cancel. The
    same blocks in the same order give the same bits.

    Examples
    --------
    >>> moments = Moments()
    >>> for block in ([1.0, 2.0], [6.0]):
    ...     moments.add(np.array(block))
    >>> mean = moments.mean()
    >>> mean.value, round(mean.stderr, 6), mean.count
    (3.0, 1.527525, 3)
    """

    def __init__(self) -> None:
        self.count, self.first = 0, 0.0
        self.second = self.third = self.fourth = 0.0

    def add(self, block: np.ndarray) -> None:
        """Take in the finite values of a block."""
        block = block[np.isfinite(block)]
        m = int(block.size)
        if not m:
            return
        mean = float(block.mean())
        centred = block - mean
        squares = centred * centred
        s2, s3, s4 = float(squares.sum()), float((squares * centred).sum()), float((squares * squares).sum())
        n, total, gap = self.count, self.count + m, mean - self.first
        t = gap / total
        self.fourth += s4 + gap * t**3 * n * m * (n * n - n * m + m * m)
        self.fourth += 6.0 * t * t * (n * n * s2 + m * m * self.second) + 4.0 * t * (n * s3 - m * self.third)
        self.third += s3 + gap * t * t * n * m * (n - m) + 3.0 * t * (n * s2 - m * self.second)
        self.second += s2 + gap * t * n * m
        self.first += t * m
        self.count = total

    def mean(self) -> Estimate:
        """Return the mean with its standard error."""
        if not self.count:
            return Estimate(math.nan, math.nan, 0)
        n = self.count
        return Estimate(self.first, math.sqrt(self.second / (n - 1) / n) if n > 1 else math.nan, n)

    def deviation(self) -> Estimate:
        """Return the standard deviation, with the standard error that the fourth moment gives it."""
        n = self.count
        if n < 2:
            return Estimate(math.nan, math.nan, n)
        variance = self.second / (n - 1)
        spread = max(self.fourth / n - (self.second / n) ** 2, 0.0) / n
        return Estimate(math.sqrt(variance), math.sqrt(spread / variance) / 2.0 if variance else math.nan, n)


def share(count: int, size: int) -> Estimate:
    """Return a share of 1; its error is the standard deviation of its posterior under Jeffreys' prior.

    It stays positive where nothing, or everything, was counted.
    """
    a, b = count + 0.5, size - count + 0.5
    spread = math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1.0)))
    return Estimate(count / size if size else math.nan, spread, size)


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

    def within(self, margin: float) -> bool:
        """Return whether there is no difference beyond a margin, by the simultaneous interval.

        The two one-sided tests of equivalence of D. J. Schuirmann (J. Pharmacokinetics and Biopharmaceutics 15, 1987),
        each at half of 1 - `CONFIDENCE` over the number of comparisons. False for fewer than two seeds, or a margin of
        NaN.
        """
        return -margin < self.simultaneous_low and self.simultaneous_high < margin


@dataclass(frozen=True)
class SpreadRatio:
    """The standard deviation over the seeds, over that of a baseline at the same seeds.

    Attributes
    ----------
    ratio : float
    low, high : float
        Its interval at `CONFIDENCE`.
    simultaneous_low, simultaneous_high : float
        The one that holds for all comparisons of the same table at once, at that level (Bonferroni).
    seeds : int
    """

    ratio: float
    low: float
    high: float
    simultaneous_low: float
    simultaneous_high: float
    seeds: int

    def verdict(self) -> str:
        """Return "less spread", "more spread" or "no difference seen", by the simultaneous interval."""
        if self.simultaneous_high < 1.0:
            return "less spread"
        return "more spread" if self.simultaneous_low > 1.0 else "no difference seen"


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
    from scipy.special import stdtrit  # takes a tenth of a second to import

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


def spread_ratio(values: Sequence[float], baseline: Sequence[float], comparisons: int = 1) -> SpreadRatio:
    """Return the standard deviation of some values over that of the baseline's, with its interval.

    Parameters
    ----------
    values, baseline : sequence of float
        One for each seed, in the same order; a seed at which either is NaN is left out.
    comparisons : int, default 1
        How many are made in the same table: the simultaneous interval is at level 1 - (1 - `CONFIDENCE`) / comparisons.

    Returns
    -------
    SpreadRatio
        NaN for fewer than three seeds, or where either does not vary.

    Notes
    -----
    The ratio is t exactly if values + t baseline and values - t baseline do not correlate. The interval holds the t
    for which a test of their correlation sees none; it is exact for pairs that are jointly normal, and heavy tails
    make it too narrow.

    References
    ----------
    E. J. G. Pitman, A note on normal correlation, Biometrika 31, 1939; W. A. Morgan, Biometrika 31, 1939.

    Examples
    --------
    >>> found = spread_ratio([1.0, 4.0, 9.0, 2.0], [1.0, 2.0, 4.0, 0.0])
    >>> round(found.ratio, 3), found.low < 1.0 < found.high, found.verdict()
    (2.084, True, 'no difference seen')
    """
    from scipy.special import stdtrit  # takes a tenth of a second to import

    pairs = np.array([values, baseline], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    seeds = pairs.shape[1]
    (variance, common), (_, other) = np.cov(pairs).tolist() if seeds > 2 else ((0.0, 0.0), (0.0, 0.0))
    if not (variance and other):
        return SpreadRatio(math.nan, math.nan, math.nan, math.nan, math.nan, seeds)
    ratio, apart = math.sqrt(variance / other), max(1.0 - common * common / (variance * other), 0.0)
    quantiles = (float(stdtrit(seeds - 2, 1.0 - (1.0 - CONFIDENCE) / (2.0 * count))) for count in (1, comparisons))
    alone, together = (math.exp(math.acosh(1.0 + 2.0 * t * t * apart / (seeds - 2)) / 2.0) for t in quantiles)
    return SpreadRatio(ratio, ratio / alone, ratio * alone, ratio / together, ratio * together, seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that any level bounds the probability of one false rejection among all of them.

    Parameters
    ----------
    p_values : sequence of float
        NaN stands for a test that was not made: it is counted, and stays NaN.

    Returns
    -------
    list of float

    References
    ----------
    S. Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6 (1979).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [math.nan] * len(p_values), 0.0
    made = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    for rank, (p, index) in enumerate(made):
        adjusted[index] = largest = max(largest, min(1.0, p * (len(p_values) - rank)))
    return adjusted


def all_positive(scores: Sequence[float]) -> str:
    """Return whether several quantities are all positive, given each estimate over its standard error.

    Parameters
    ----------
    scores : sequence of float
        Independent or not.

    Returns
    -------
    {"holds", "does not hold", "undecided"}
        The first if even the least is positive, and the second if one is negative, each by a one-sided normal test of
        every score whose levels add up to 1 - `CONFIDENCE`.

    Examples
    --------
    >>> all_positive([3.0, 2.0]), all_positive([3.0, -2.0]), all_positive([3.0, 0.5])
    ('holds', 'does not hold', 'undecided')
    """
    level = (1.0 - CONFIDENCE) / len(scores)
    if all(_normal_tail(score) <= level for score in scores):
        return "holds"
    return "does not hold" if any(_normal_tail(-score) <= level for score in scores) else "undecided"


def _normal_tail(score: float) -> float:
    """Return the probability that a standard normal number is above a score."""
    return math.erfc(score / math.sqrt(2.0)) / 2.0


def share_interval(count: int, size: int, comparisons: int = 1) -> tuple[float, float]:
    """Return the exact interval of a probability from how often a thing happened (Clopper and Pearson, 1934).

    Parameters
    ----------
    count, size : int
        So often of so many times.
    comparisons : int, default 1
        How many intervals are to hold at once, at the level `CONFIDENCE`.

    Examples
    --------
    >>> low, high = share_interval(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    from scipy.special import betaincinv

    tail = (1.0 - CONFIDENCE) / (2 * comparisons)
    low = float(betaincinv(count, size - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, size - count, 1.0 - tail)) if count < size else 1.0
    return low, high


def sequential_tail(beyond: Sequence[bool], wanted: int) -> tuple[float, bool]:
    """Return the p-value of a value from simulated ones that are drawn until enough of them lie beyond it.

    Parameters
    ----------
    beyond : sequence of bool
        Of each simulated value in the order of the draw, whether it is at least as far out.
    wanted : int
        How many such values end the draw.

    Returns
    -------
    p : float
        If the l-th draw ends it, ``wanted / l``; otherwise ``(g + 1) / (n + 1)``, g of all n being beyond. Whatever the
        distribution, it is at most t with a probability of at most t for any t, if the value is drawn as the simulated
        ones are and the largest number of draws is fixed in advance.
    ended : bool

    References
    ----------
    J. Besag and P. Clifford, *Sequential Monte Carlo p-values*, Biometrika 78 (1991).

    Examples
    --------
    >>> sequential_tail([True, False, True, True], 2), sequential_tail([False] * 19, 2)
    ((0.6666666666666666, True), (0.05, False))
    """
    found = 0
    for draws, one in enumerate(beyond, start=1):
        found += bool(one)
        if found == wanted:
            return wanted / draws, True
    return (found + 1) / (len(beyond) + 1), False


def mostly_true(counts: Sequence[tuple[int, int]], looks: int = 1) -> str:
    """Return whether each of several things is true more often than not, given (how often it was, of how many).

    Parameters
    ----------
    counts : sequence of tuple of int
    looks : int, default 1
        How many times the question is asked at most, of more and more cases: the error is that of all times together.

    Returns
    -------
    {"holds", "does not hold", "undecided"}
        By exact intervals that hold for all things at once: all lie above 1/2, one lies below it, or neither.

    Examples
    --------
    >>> mostly_true([(9, 9), (9, 9)]), mostly_true([(9, 9), (0, 9)]), mostly_true([(9, 9), (3, 3)])
    ('holds', 'does not hold', 'undecided')
    """
    intervals = [share_interval(count, size, len(counts) * looks) for count, size in counts]
    if all(low > 0.5 for low, _ in intervals):
        return "holds"
    return "does not hold" if any(high < 0.5 for _, high in intervals) else "undecided"


def median_interval(values: Sequence[float], comparisons: int = 1) -> tuple[float, float]:
    """Return two of the values between which the median lies, whatever the distribution.

    The interval is from minus to plus infinity where there are too few values to say.

    Parameters
    ----------
    values : sequence of float
    comparisons : int, default 1
        How many intervals are to hold at once, at the level `CONFIDENCE`.

    Examples
    --------
    >>> median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0, 8.0])
    (1.0, 8.0)
    """
    ordered = [-math.inf, *sorted(values), math.inf]
    size, tail, cumulative, rank = len(values), (1.0 - CONFIDENCE) / (2 * comparisons), 0.0, 0
    # The value of rank r is above the median if fewer than r values lie below it: P(B(size, 1/2) <= r - 1).
    while (cumulative := cumulative + math.comb(size, rank) * 0.5**size) <= tail:
        rank += 1
    return ordered[rank], ordered[size + 1 - rank]
