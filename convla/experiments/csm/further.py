"""Further runs of the published size, one by one, for the cells that the repetitions leave undecided.

If print and we ran the same experiment, a printed value is one more run of 1000 among ours, whatever their law: no
spread has to be known. Runs are added until `ENOUGH` of them lie at or below the printed value, and as many at or
above it; the p-value is that of Besag and Clifford for such a draw, twice the smaller of both sides. A cell that runs
of both sides surround so is reproduced, unless the correction for all cells contradicts it; one that they do not by the
last run is undecided still. Of cells that agree ``2 ENOUGH / (runs + 1)`` are left so: one in twenty after 200 runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from convla.experiments.csm.agreement import VERDICTS, Verdict
from convla.experiments.descents.outcome import Floats
from convla.experiments.statistics import sequential_tail

__all__ = ["ENOUGH", "FIRST", "at_most", "settle", "wanted"]

ENOUGH = 5
"""So many runs on either side of a printed value decide."""

FIRST = 25
"""Runs of the first round."""


def at_most(rounds: int) -> int:
    """Return how many runs there are after so many rounds, each of which doubles them: 0, 25, 50, 100, 200, ..."""
    return FIRST << (rounds - 1) if rounds else 0


def settle(verdicts: Sequence[Verdict], runs: Mapping[str, Floats]) -> list[Verdict]:
    """Return verdicts on cells of one setting, those on undecided ones by further runs of it.

    Parameters
    ----------
    verdicts : sequence of Verdict
        By the repetitions, not yet corrected for how many cells there are.
    runs : dict of str to numpy.ndarray
        The value of each quantity in every further run; empty where there is none.

    Returns
    -------
    list of Verdict
    """
    return [
        _by_runs(verdict, runs[verdict.cell.quantity]) if _is_open(verdict) and runs else verdict
        for verdict in verdicts
    ]


def wanted(verdicts: Sequence[Verdict], runs: int, rounds: int) -> int:
    """Return how many runs there should be of a setting with these verdicts, of which there are `runs`."""
    if not any(map(_is_open, verdicts)):
        return runs
    return min(at_most(rounds), max(FIRST, 2 * runs))


def _is_open(verdict: Verdict) -> bool:
    return verdict.verdict == VERDICTS[3] and verdict.cell.quantity[0] in "cC"


def _by_runs(verdict: Verdict, values: Floats) -> Verdict:
    cell = verdict.cell
    low, enough_below = sequential_tail((values <= cell.value + cell.half_unit).tolist(), ENOUGH)
    high, enough_above = sequential_tail((values >= cell.value - cell.half_unit).tolist(), ENOUGH)
    word = VERDICTS[0] if enough_below and enough_above else VERDICTS[3]
    return replace(verdict, p=min(1.0, 2.0 * min(low, high)), runs=len(values), verdict=word)
