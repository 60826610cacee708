"""What a report needs of a setting's repetitions, read as a stream: memory does not grow with their number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from convla.experiments.csm.columns import columns_of, estimate, frequency, quantity_of
from convla.experiments.csm.published import PUBLISHED_REPETITIONS
from convla.experiments.descents.draws import CHUNK
from convla.experiments.descents.outcome import Floats, Outcome, recut
from convla.experiments.session import joined
from convla.experiments.statistics import Estimate, Moments

__all__ = ["MOST", "Summary", "summarize"]

MOST = 2**17
"""Repetitions of a setting that are kept, some 11 MiB: what needs them as such is of the first of them."""


@dataclass(frozen=True)
class Summary:
    """The repetitions of a setting.

    Attributes
    ----------
    kept : Outcome
        The first of them, at most `MOST`.
    repetitions, converged, failed : int
        How many there are, how many of them converged, and how many of these did not end less similar.
    estimates : dict of str to Estimate
        Of all of them: what `convla.experiments.csm.columns.estimate` returns for no more than `MOST`, by bootstrap;
        for more the errors are those that the moments give.
    runs : dict of str to numpy.ndarray of shape (runs, 3)
        Value, standard error and count of each quantity in runs of another size, cut out of all of them.
    further : dict of str to numpy.ndarray of shape (runs,)
        The value of each quantity of columns A and C in further runs of the published size, of which nothing else is.
    """

    kept: Outcome
    repetitions: int
    converged: int
    failed: int
    estimates: dict[str, Estimate]
    runs: dict[str, Floats] = field(default_factory=dict)
    further: dict[str, Floats] = field(default_factory=dict)

    @property
    def diverged(self) -> int:
        """How many repetitions diverged."""
        return self.repetitions - self.converged

    @property
    def is_whole(self) -> bool:
        """Whether all repetitions are kept."""
        return self.kept.repetitions == self.repetitions


class _Totals:
    """Counts and moments of a stream of blocks, and the first of its repetitions."""

    def __init__(self) -> None:
        self.repetitions = self.converged = self.failed = 0
        self.blocks: list[Outcome] = []
        self.moments = {name: Moments() for name in ("corr", "C_decrease", "D_increase")}

    def add(self, block: Outcome) -> None:
        kept = block.converged
        start, end = block.similarity[kept].T
        self.converged += int(kept.sum())
        self.failed += int((end >= start).sum())
        for name, values in columns_of(block).items():
            self.moments[name].add(values)
        if self.repetitions < MOST:
            self.blocks.append(block)
        self.repetitions += block.repetitions

    def estimates(self) -> dict[str, Estimate]:
        found = {}
        for name, moments in self.moments.items():
            pair = moments.mean(), moments.deviation()
            for moment, value in zip(("mean", "std"), pair, strict=True):
                # Column D has no expectation, and its mean no error.
                stderr = math.nan if name == "D_increase" else value.stderr
                found[quantity_of(name, moment)] = Estimate(float(np.nan_to_num(value.value)), stderr, value.count)
        return found | frequency(self.converged - self.failed, self.converged)


def summarize(outcomes: Iterable[Outcome], *, run: int = 0, repetitions: int | None = None) -> Summary:
    """Return what is needed of a setting's repetitions.

    Parameters
    ----------
    outcomes : iterable of Outcome
        The repetitions in their order, cut anywhere: the cut changes no bit.
    run : int, default 0
        Of which size to cut runs out of them; none for 0.
    repetitions : int, optional
        How many of them are summarized, by default all; those that follow are further runs.
    """
    stream, rest = iter(outcomes), list[Outcome]()
    totals = _Totals()
    runs: dict[str, list[tuple[float, float, int]]] = {}
    for piece in recut(_taken(_first(stream, repetitions, rest), totals), run or CHUNK):
        if piece.repetitions == run:
            for name, found in estimate(piece).items():
                runs.setdefault(name, []).append((found.value, found.stderr, found.count))
    kept = joined(totals.blocks)
    return Summary(
        kept,
        totals.repetitions,
        totals.converged,
        totals.failed,
        estimate(kept) if kept.repetitions == totals.repetitions else totals.estimates(),
        {name: np.array(values) for name, values in runs.items()},
        _values(recut(itertools.chain(rest, stream), PUBLISHED_REPETITIONS)),
    )


def _first(stream: Iterator[Outcome], count: int | None, rest: list[Outcome]) -> Iterator[Outcome]:
    """Yield the first repetitions of a stream, and leave what follows them in the last block that was taken."""
    for block in stream:
        if count is None:
            yield block
            continue
        yield block[:count]
        if block.repetitions >= count:
            rest.append(block[count:])
            return
        count -= block.repetitions


def _values(runs: Iterable[Outcome]) -> dict[str, Floats]:
    """Return the value of each quantity in whole runs of the published size, as `estimate` has it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if run.repetitions == PUBLISHED_REPETITIONS:
            for name, values in columns_of(run).items():
                kept = values[np.isfinite(values)]
                deviation = float(kept.std(ddof=1)) if kept.size > 1 else 0.0
                found.setdefault(quantity_of(name, "mean"), []).append(float(kept.mean()) if kept.size else 0.0)
                found.setdefault(quantity_of(name, "std"), []).append(deviation)
    return {name: np.array(values) for name, values in found.items()}


def _taken(outcomes: Iterable[Outcome], totals: _Totals) -> Iterator[Outcome]:
    for block in recut(outcomes, CHUNK):
        totals.add(block)
        yield block
