"""Further runs of the published size, one by one, for the cells that the repetitions leave undecided.

If print and we ran the same experiment, a printed value is one more run of 1000 among ours, whatever their distribution:
no spread has to be known. Runs are added until `ENOUGH` of them lie at or below the printed value, and as many at or
above it; the p-value is that of Besag and Clifford for such a draw, twice the smaller of both sides. A cell that runs
of both sides surround so is reproduced, unless the correction for all cells contradicts it; one that they do not by the
last run is undecided still. Of cells that agree ``2 ENOUGH / (runs + 1)`` are left so: one in twenty after 200 runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from convla.experiments.csm.agreement import VERDICTS, Verdict
from convla.experiments.csm.columns import column_of, columns_of, estimate
from convla.experiments.csm.published import PUBLISHED_REPETITIONS
from convla.experiments.descents.outcome import Floats, Outcome
from convla.experiments.statistics import sequential_tail

__all__ = ["ENOUGH", "FIRST", "at_most", "published_runs", "rows_of", "settle", "wanted"]

ENOUGH = 5
"""So many runs on either side of a printed value decide."""

FIRST = 25
"""Runs of the first round."""


def at_most(rounds: int) -> int:
    """Return how many runs there are after so many rounds, each of which doubles them: 0, 25, 50, 100, 200, ..."""
    return FIRST << (rounds - 1) if rounds else 0


def rows_of(outcome: Outcome, start: int, stop: int | None = None) -> Outcome:
    """Return some repetitions of an outcome."""
    return Outcome(**{name: values[start:stop] for name, values in vars(outcome).items()})


def published_runs(outcome: Outcome, start: int = 0) -> list[Outcome]:
    """Return the repetitions from `start` as runs of the published size; what is left over belongs to none."""
    return [
        rows_of(outcome, first, first + PUBLISHED_REPETITIONS)
        for first in range(start, outcome.repetitions - PUBLISHED_REPETITIONS + 1, PUBLISHED_REPETITIONS)
    ]


def settle(verdicts: Sequence[Verdict], outcome: Outcome, repetitions: int, rounds: int) -> list[Verdict]:
    """Return verdicts on cells of one setting, those on undecided ones by the runs after the first repetitions.

    Parameters
    ----------
    verdicts : sequence of Verdict
        By the first repetitions, not yet corrected for how many cells there are.
    outcome : Outcome
        Of the setting, further runs among it.
    repetitions : int
        How many are not of further runs.
    rounds : int
        Which were allowed; without any the verdicts stay.

    Returns
    -------
    list of Verdict
    """
    runs = published_runs(outcome, repetitions)[: at_most(rounds)]
    if not runs:
        return list(verdicts)
    whole = estimate(outcome)
    columns = [columns_of(run) for run in runs]
    return [
        _by_runs(replace(verdict, ours=whole[verdict.cell.quantity]), _values(verdict.cell.quantity, columns))
        if _is_open(verdict)
        else verdict
        for verdict in verdicts
    ]


def wanted(verdicts: Sequence[Verdict], runs: int, rounds: int) -> int:
    """Return how many runs there should be of a setting with these verdicts, of which there are `runs`."""
    if not any(map(_is_open, verdicts)):
        return runs
    return min(at_most(rounds), max(FIRST, 2 * runs))


def _is_open(verdict: Verdict) -> bool:
    return verdict.verdict == VERDICTS[3] and verdict.cell.quantity[0] in "cC"


def _values(quantity: str, columns: Sequence[Mapping[str, Floats]]) -> Floats:
    """Return a cell's value in each run, as `estimate` has it; NaN where a run has nothing in the column."""
    found = []
    for run in columns:
        values = run[column_of(quantity)]
        values = values[np.isfinite(values)]
        if "_std" in quantity:
            found.append(float(values.std(ddof=1)) if values.size > 1 else 0.0)
        else:
            found.append(float(values.mean()) if values.size else np.nan)
    return np.array(found)


def _by_runs(verdict: Verdict, values: Floats) -> Verdict:
    cell = verdict.cell
    low, enough_below = sequential_tail((values <= cell.value + cell.half_unit).tolist(), ENOUGH)
    high, enough_above = sequential_tail((values >= cell.value - cell.half_unit).tolist(), ENOUGH)
    word = VERDICTS[0] if enough_below and enough_above else VERDICTS[3]
    return replace(verdict, p=min(1.0, 2.0 * min(low, high)), runs=len(values), verdict=word)
