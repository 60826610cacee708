"""How likely the printed cells are, if print and we ran the same experiment.

A printed value of columns A and C is taken for that of a run of the published size, drawn from ours: resampled runs say
how far out it is, with whatever tail the repetitions have, and no normal law is asked for. They are of the size
r R / (r + R) for r printed and R of our repetitions, so that their spread is that of the difference of the two values:
both runs' sampling errors are in it. Column B is a count, and gets the exact test of two counts. Column D has no
expectation, and no probability is given for it.

The tails are rare: where fewer than `LEAST` repetitions carry the spread of a cell, its error is not known, and the
cell is undecided; `convla.experiments.csm.further` decides it by further runs. Of the others those whose probability
stands up to Holm's correction for all cells of columns A to C at once are not reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convla.experiments.csm.columns import Column, column_of, columns_of, estimate, resampled
from convla.experiments.csm.published import PUBLISHED_REPETITIONS, PublishedCell, published_cells
from convla.experiments.csm.settings import Setting
from convla.experiments.descents.outcome import Floats, Outcome
from convla.experiments.statistics import CONFIDENCE, Estimate, holm

__all__ = ["LEAST", "VERDICTS", "Verdict", "carriers", "cells_of", "compare", "decide"]

LEAST = 30
"""Fewer repetitions than this say little of a spread."""

RESAMPLES = (1_000, 20_000)
"""Resampled runs: the first suffice for cells whose probability is above `LIKELY`. The others see down to 1e-4, a fifth
of what Holm's correction asks for first among 90 cells."""
LIKELY = 0.1

VERDICTS = ("reproduced", "order of magnitude only", "not reproduced", "undecided")


@dataclass(frozen=True)
class Verdict:
    """Ours beside the printed value.

    Attributes
    ----------
    cell : PublishedCell
    ours : Estimate
    z : float
        The difference, less what rounding in print explains, over its standard deviation; NaN in column D, which has
        none, and where fewer than `LEAST` repetitions carry it.
    p : float
        The probability of a printed value so far out, NaN where z is.
    holm : float
        The same after Holm's correction for all cells of columns A to C of the report.
    verdict : str
        One of `VERDICTS`.
    runs : int
        The further runs by which it was decided, 0 where the repetitions sufficed.
    """

    cell: PublishedCell
    ours: Estimate
    z: float
    p: float
    holm: float
    verdict: str
    runs: int = 0


def cells_of(table: int, setting: Setting) -> list[PublishedCell]:
    """Return the printed cells of a setting's row in one of its tables."""
    return [cell for cell in published_cells(table) if (cell.n, cell.optimizer) == (setting.n, setting.optimizer)]


def compare(
    cells: Sequence[PublishedCell], outcome: Outcome, estimates: Mapping[str, Estimate] | None = None
) -> list[Verdict]:
    """Return printed cells of one setting beside an outcome of it, not yet corrected for how many cells there are.

    Parameters
    ----------
    cells : sequence of PublishedCell
    outcome : Outcome
    estimates : dict of str to Estimate, optional
        What `estimate` makes of the outcome.

    Returns
    -------
    list of Verdict
        Of cells of columns A to C "undecided" or "reproduced", which `decide` has the last word on.
    """
    estimates = estimate(outcome) if estimates is None else estimates
    columns = columns_of(outcome)
    count = int(outcome.converged.sum())
    size = max(1, round(count * PUBLISHED_REPETITIONS / (count + PUBLISHED_REPETITIONS)))
    carried = [cell for cell in cells if cell.quantity[0] in "cC" and carriers(cell.quantity, columns) >= LEAST]
    runs: dict[str, Floats] = {}
    for number in RESAMPLES:
        unlikely = [
            cell for cell in carried if cell.quantity not in runs or _two_sided(cell, runs[cell.quantity]) < LIKELY
        ]
        needed = dict.fromkeys(column_of(cell.quantity) for cell in unlikely)
        if needed:
            runs |= resampled({name: columns[name] for name in needed}, size, number)
    return [_compared(cell, estimates[cell.quantity], runs.get(cell.quantity), cell in carried) for cell in cells]


def decide(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts on all cells of a report, corrected for how many cells of columns A to C there are."""
    tested = [verdict for verdict in verdicts if not verdict.cell.quantity.startswith("D")]
    adjusted = dict(zip(map(id, tested), holm([verdict.p for verdict in tested]), strict=True))
    decided = []
    for verdict in verdicts:
        corrected = adjusted.get(id(verdict), math.nan)
        word = VERDICTS[2] if corrected <= 1.0 - CONFIDENCE else verdict.verdict
        decided.append(replace(verdict, holm=corrected, verdict=word))
    return decided


def carriers(quantity: str, columns: Mapping[str, Column]) -> float:
    """Return how many repetitions carry the sampling error of a mean or standard deviation of columns A and C.

    The error's square is a sum over repetitions, of w: (sum w)^2 / sum w^2 is as many as there are if all w are equal,
    and 1 if a single one is all of it.

    Examples
    --------
    >>> columns = {"corr": np.array([1.0, -1.0, 1.0, -1.0])}, {"corr": np.array([9.0, 0.0, 0.0, 0.0])}
    >>> [round(carriers("corr_mean", column), 2) for column in columns]
    [4.0, 1.71]
    """
    values = columns[column_of(quantity)]
    values = values[np.isfinite(values)]
    if values.size < 2:
        return 0.0
    influence = values - values.mean()
    if "_std" in quantity:
        influence = influence**2 - np.mean(influence**2)
    weights = influence**2
    total = float(weights.sum())
    return total / float((weights / total) @ weights) if total > 0.0 else 0.0


def _compared(cell: PublishedCell, ours: Estimate, runs: Floats | None, carried: bool) -> Verdict:
    reproduced, _, _, undecided = VERDICTS
    if cell.quantity.startswith("D"):
        return Verdict(cell, ours, math.nan, math.nan, math.nan, _verdict_on_increase(cell, ours))
    if cell.quantity.startswith("B"):
        if ours.count < LEAST:
            return Verdict(cell, ours, math.nan, math.nan, math.nan, undecided)
        return Verdict(cell, ours, _z_of_counts(cell, ours), _p_of_counts(cell, ours), math.nan, reproduced)
    if not carried or runs is None:
        return Verdict(cell, ours, math.nan, math.nan, math.nan, undecided)
    gap = ours.value - cell.value
    gap = math.copysign(max(0.0, abs(gap) - cell.half_unit), gap)
    return Verdict(cell, ours, gap / float(np.nanstd(runs, ddof=1)), _two_sided(cell, runs), math.nan, reproduced)


def _two_sided(cell: PublishedCell, runs: Floats) -> float:
    """Return twice the share of runs at least as far out as the printed value, as it may have been before rounding."""
    runs = runs[np.isfinite(runs)]
    below = int((runs <= cell.value + cell.half_unit).sum())
    above = int((runs >= cell.value - cell.half_unit).sum())
    return min(1.0, 2.0 * (1 + min(below, above)) / (1 + runs.size))


def _counts(cell: PublishedCell, ours: Estimate) -> tuple[int, int, int, int]:
    """Return successes and size, of ours and of print."""
    return round(ours.value / 100.0 * ours.count), ours.count, round(cell.value / 100.0 * cell.count), cell.count


def _z_of_counts(cell: PublishedCell, ours: Estimate) -> float:
    """Return the z score of two frequencies, with the pooled variance."""
    x, n, y, m = _counts(cell, ours)
    pooled = (x + y) / (n + m)
    spread = math.sqrt(pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m))
    return (x / n - y / m) / spread if spread > 0.0 else 0.0


def _p_of_counts(cell: PublishedCell, ours: Estimate) -> float:
    """Return the probability of counts no more likely than these two, given their sum (Fisher's exact test)."""
    x, n, y, m = _counts(cell, ours)
    seen = np.arange(max(0, x + y - n), min(m, x + y) + 1)
    logarithms = _log_choose(m, seen) + _log_choose(n, x + y - seen) - _log_choose(n + m, np.array(x + y))
    own = logarithms[seen == y]
    return min(1.0, float(np.exp(logarithms[logarithms <= own + 1e-7]).sum()))


def _log_choose(n: int, k: np.ndarray) -> Floats:
    value: Floats = _log_gamma(n + 1.0) - _log_gamma(k + 1.0) - _log_gamma(n - k + 1.0)
    return value


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
"""For the thousand counts of a cell: SciPy's takes a tenth of a second to import."""


def _verdict_on_increase(cell: PublishedCell, ours: Estimate) -> str:
    """Return the verdict on a cell of column D.

    It averages a ratio whose denominator has a positive density at 0, so it has no finite expectation and its sample
    values differ by orders of magnitude between seeds: it can at best agree in order of magnitude, within a factor of
    10, unless neither side has anything to average.
    """
    reproduced, magnitude, different, _ = VERDICTS
    if cell.count == 0 or ours.count == 0:
        # A printed 0 stands for "no repetition increased".
        return reproduced if cell.count == ours.count else different
    if "_std" in cell.quantity and min(cell.count, ours.count) == 1:
        return magnitude  # one value has no spread to compare
    return magnitude if abs(math.log10(ours.value / cell.value)) <= 1.0 else different
