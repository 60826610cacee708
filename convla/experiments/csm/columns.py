"""Columns A-D of CSM's tables from the repetitions of a setting, their standard errors, and how they compare in print.

A printed value comes from 1000 repetitions and has a sampling error of its own. It is estimated twice, from what is
printed beside it and from our repetitions, and the larger one is taken: the tails are rare, and a run that misses them
is too sure of itself. The z score is the difference of the two values, less what the rounding in print explains, over
the standard deviation of that difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convla.experiments.csm.published import PublishedCell
from convla.experiments.descents.outcome import Floats, Outcome
from convla.experiments.statistics import Estimate

__all__ = ["LEAST", "LIMIT", "VERDICTS", "Verdict", "compare", "estimate"]

RESAMPLES = 400
LIMIT = 3.0
"""A cell is reproduced within |z| <= 3. Between runs of 1000 repetitions of the same experiment that fails for up to
0.24 % of the cells of columns A, B and C's means, and for 2 to 3 % of C's standard deviations in Tables 4 and 6, which
hang on a handful of repetitions: about 0.4 of the 90 cells."""

LEAST = 30
"""Below this many repetitions nothing is decided: a bootstrap over a few values says little."""

VERDICTS = ("reproduced", "order of magnitude only", "not reproduced", "undecided")


@dataclass(frozen=True)
class Verdict:
    """Ours beside the printed value.

    Attributes
    ----------
    cell : PublishedCell
    ours : Estimate
    z : float
        NaN in column D, where the difference has no standard deviation.
    verdict : str
        One of `VERDICTS`.
    """

    cell: PublishedCell
    ours: Estimate
    z: float
    verdict: str


def estimate(outcome: Outcome, *, seed: int = 0) -> dict[str, Estimate]:
    """Return columns A-D of one setting, under the names of `convla.experiments.csm.published.QUANTITIES`.

    Standard deviations divide by n - 1, as the printed ones do (Table 6, N = 16 SGD, is impossible otherwise), and are
    0 for a single value, as in Table 6, N = 16 Adam. Standard errors of means and standard deviations are by bootstrap
    over the repetitions; that of the frequency B is the standard deviation of its posterior under Jeffreys' prior,
    which stays positive where no failure was seen. Column D gets none: its expectation is infinite.

    Parameters
    ----------
    outcome : Outcome
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict of str to Estimate
    """
    kept = outcome.converged
    start, end = outcome.similarity[kept].T
    with np.errstate(divide="ignore", invalid="ignore"):
        # The signed and cosine readings can start below zero: a change is measured against the modulus of the start.
        change = 100.0 * (end - start) / np.abs(start)
    change = np.where(np.isfinite(change), change, np.nan)
    down, up = end < start, end > start
    columns = {
        "corr": outcome.correlation[kept],
        "C_decrease": np.where(down, -change, np.nan),
        "D_increase": np.where(up, change, np.nan),
    }
    estimates = {}
    for name, (mean, std) in _bootstrap(columns, seed).items():
        unit = "" if name == "corr" else "_pct"
        estimates[f"{name}_mean{unit}"], estimates[f"{name}_std{unit}"] = mean, std
    for name in ("D_increase_mean_pct", "D_increase_std_pct"):
        estimates[name] = replace(estimates[name], stderr=math.nan)
    count, size = int(down.sum()), int(kept.sum())
    a, b = count + 0.5, size - count + 0.5
    spread = math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1.0)))
    share = count / size if size else math.nan
    estimates["B_reduction_frequency_pct"] = Estimate(100.0 * share, 100.0 * spread, size)
    return estimates


def compare(cell: PublishedCell, ours: Estimate) -> Verdict:
    """Return the verdict on one printed cell.

    Column D averages a ratio whose denominator has a positive density at 0, so it has no finite expectation and its
    sample values differ by orders of magnitude between seeds: it gets no z score and can at best agree in order of
    magnitude, within a factor of 10, unless neither side has anything to average.
    """
    reproduced, _, different, undecided = VERDICTS
    if cell.quantity.startswith("D"):
        return Verdict(cell, ours, math.nan, _verdict_on_increase(cell, ours))
    if ours.count < LEAST:
        return Verdict(cell, ours, math.nan, undecided)
    z = _z_of_counts(cell, ours) if cell.quantity.startswith("B") else _z_of_moments(cell, ours)
    return Verdict(cell, ours, z, reproduced if abs(z) <= LIMIT else different)


def _verdict_on_increase(cell: PublishedCell, ours: Estimate) -> str:
    reproduced, magnitude, different, _ = VERDICTS
    if cell.count == 0 or ours.count == 0:
        # A printed 0 stands for "no repetition increased".
        return reproduced if cell.count == ours.count else different
    if "_std" in cell.quantity and min(cell.count, ours.count) == 1:
        return magnitude  # one value has no spread to compare
    return magnitude if abs(math.log10(ours.value / cell.value)) <= 1.0 else different


def _z_of_moments(cell: PublishedCell, ours: Estimate) -> float:
    if "_std" in cell.quantity:
        relative = ours.stderr / ours.value if ours.value > 0.0 else 0.0
        printed = relative * cell.value * math.sqrt(ours.count / cell.count)
    else:
        printed = cell.std / math.sqrt(cell.count)
    theirs = max(printed, ours.stderr * math.sqrt(ours.count / cell.count))
    gap = ours.value - cell.value
    gap = math.copysign(max(0.0, abs(gap) - cell.half_unit), gap)
    return _ratio(gap, math.hypot(ours.stderr, theirs))


def _z_of_counts(cell: PublishedCell, ours: Estimate) -> float:
    """Return the z score of two frequencies in percent, with the pooled variance."""
    n, m = ours.count, cell.count
    pooled = (ours.value * n + cell.value * m) / (100.0 * (n + m))
    return _ratio(ours.value - cell.value, 100.0 * math.sqrt(pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)))


def _ratio(gap: float, spread: float) -> float:
    if gap == 0.0:
        return 0.0
    return gap / spread if spread > 0.0 else math.copysign(math.inf, gap)


def _bootstrap(columns: dict[str, Floats], seed: int) -> dict[str, tuple[Estimate, Estimate]]:
    """Return the mean and standard deviation of each column, NaN being absence, with bootstrap standard errors."""
    names = list(columns)
    present = {name: np.isfinite(columns[name]) for name in names}
    centres = {name: float(columns[name][present[name]].mean()) if present[name].any() else 0.0 for name in names}
    # Moments about the mean, so that the weighted variances below do not cancel.
    moments = []
    for name in names:
        offset = np.where(present[name], columns[name] - centres[name], 0.0)
        moments += [present[name].astype(float), offset, offset * offset]
    table = np.stack(moments, axis=1)
    resampled = np.concatenate([weights @ table for weights in _weights(table.shape[0], seed)])
    estimates = {}
    for index, name in enumerate(names):
        count, mean, std = _summary(table.sum(axis=0, keepdims=True)[:, 3 * index : 3 * index + 3])
        _, means, stds = _summary(resampled[:, 3 * index : 3 * index + 3])
        size = int(count[0])
        estimates[name] = (
            Estimate(centres[name] + float(mean[0]) if size else 0.0, _spread(means, size), size),
            Estimate(float(std[0]) if size > 1 else 0.0, _spread(stds, size), size),
        )
    return estimates


def _summary(sums: Floats) -> tuple[Floats, Floats, Floats]:
    count, first, second = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = first / count
        variance = np.maximum(second - first * mean, 0.0) / (count - 1.0)
    return count, mean, np.where(count > 1.0, np.sqrt(np.maximum(variance, 0.0)), np.nan)


def _spread(resampled: Floats, size: int) -> float:
    finite = resampled[np.isfinite(resampled)]
    return float(finite.std(ddof=1)) if size > 1 and finite.size > 1 else math.nan


def _weights(size: int, seed: int) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Yield the resamples as rows of counts, a few at a time, so that memory stays bounded."""
    generator = np.random.default_rng(seed)
    if size == 0:
        yield np.zeros((RESAMPLES, 0))
        return
    rows = max(1, min(RESAMPLES, 2_000_000 // size))
    for start in range(0, RESAMPLES, rows):
        draws = generator.integers(size, size=(min(rows, RESAMPLES - start), size))
        offsets = np.arange(draws.shape[0])[:, None] * size
        counts = np.bincount((draws + offsets).ravel(), minlength=draws.size)
        yield counts.reshape(draws.shape).astype(np.float64)
