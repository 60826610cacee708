"""From runs to tables: what each arm reached, its difference to its baseline seed by seed, and what that allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from convla.experiments.folder import Table, as_records
from convla.experiments.statistics import (
    PairedDifference,
    SpreadRatio,
    mean_with_error,
    paired_difference,
    spread_ratio,
)
from convla.experiments.training.curves import BY_LAYER, OF_NETWORK, Curves
from convla.experiments.training.settings import MEASURES, NEUTRAL, Arm, Experiment, Plan, Run, Training, block_name
from convla.typing import Array

__all__ = [
    "CORRELATIONS_HEADER",
    "CURVES_HEADER",
    "LAYERS_HEADER",
    "RUNS_HEADER",
    "SELECTION_HEADER",
    "SPREAD_HEADER",
    "SUMMARY_HEADER",
    "Cell",
    "Choice",
    "Report",
    "Result",
    "Row",
    "build_report",
]

SUMMARY_HEADER = (
    *("experiment", "measure", "block", "arm", "learning_rate", "mean", "stderr", "seeds", "diverged", "against"),
    *("difference", "low", "high", "simultaneous_low", "simultaneous_high", "verdict", "margin", "printed"),
)
SPREAD_HEADER = (
    *("experiment", "measure", "block", "arm", "against", "ratio"),
    *("low", "high", "simultaneous_low", "simultaneous_high", "seeds", "verdict"),
)
RUNS_HEADER = ("experiment", "block", "arm", "learning_rate", "seed", "run", *MEASURES)
CURVES_HEADER = ("experiment", "block", "arm", "seed", "epoch", *OF_NETWORK)
LAYERS_HEADER = ("experiment", "block", "arm", "curve", "layer", "epoch", "mean", "stderr", "seeds")
CORRELATIONS_HEADER = ("experiment", "block", "arm", "channels", "layer", "distance", "mean", "stderr", "seeds")
SELECTION_HEADER = ("experiment", "block", "arm", "learning_rate", "held_out_accuracy", "chosen", "at_the_edge")


@dataclass(frozen=True)
class Cell:
    """One arm at one point of the grid of an experiment."""

    experiment: Experiment
    plan: Plan
    block: Mapping[str, Any]
    arm: Arm
    training: Training

    @property
    def block_name(self) -> str:
        """The point of the grid in words; empty without a grid."""
        return block_name(self.block)


@dataclass(frozen=True)
class Choice:
    """The learning rate that was chosen for a cell.

    Attributes
    ----------
    cell : Cell
        With the rate.
    accuracies : mapping of float to float
        The mean accuracy on the held-out images, in percent, at each rate; -inf if a run diverged.
    """

    cell: Cell
    accuracies: Mapping[float, float]

    @property
    def at_the_edge(self) -> bool:
        """Whether a better rate may lie beyond the grid."""
        rates = sorted(self.accuracies)
        return self.cell.training.learning_rate in (rates[0], rates[-1])


@dataclass(frozen=True)
class Result:
    """A cell and its curves.

    Attributes
    ----------
    cell : Cell
    runs : sequence of (int, Curves)
        One for each seed, in the order of the seeds.
    test_images : int
        How many there were, of which accuracies are shares.
    """

    cell: Cell
    runs: Sequence[tuple[int, Curves]]
    test_images: int

    def values(self, measure: str) -> list[float]:
        """Return a measure of every run."""
        return [curves.measure(measure) for _, curves in self.runs]


@dataclass(frozen=True)
class Row:
    """A cell in one measure, beside its baseline.

    Attributes
    ----------
    experiment, measure, block, arm : str
    learning_rate : float
    mean, stderr : float
        Over the seeds that did not diverge.
    seeds, diverged : int
        Runs, and how many of them diverged.
    against : str
        The arm that it is compared with; empty for a baseline.
    difference : PairedDifference, optional
    spread : SpreadRatio, optional
    verdict : str
        "better" or "worse", of a measure of which neither more nor less is better "higher" or "lower"; else "no
        difference seen", or "equivalent" where the experiment says within which margin that is; "diverges" if no two
        seeds came through; empty for a baseline.
    margin : float
        Differences up to this are none that matters; NaN if the experiment does not say.
    printed : float
        The value in print for these settings; NaN if there is none, or they are others.
    """

    experiment: str
    measure: str
    block: str
    arm: str
    learning_rate: float
    mean: float
    stderr: float
    seeds: int
    diverged: int
    against: str
    difference: PairedDifference | None
    spread: SpreadRatio | None
    verdict: str
    margin: float
    printed: float

    def as_tuple(self) -> tuple[Any, ...]:
        """Return the row under `SUMMARY_HEADER`."""
        gap = self.difference
        numbers = (gap.mean, gap.low, gap.high, gap.simultaneous_low, gap.simultaneous_high) if gap else (math.nan,) * 5
        return (
            *(self.experiment, self.measure, self.block, self.arm, self.learning_rate, self.mean, self.stderr),
            *(self.seeds, self.diverged, self.against, *numbers, self.verdict, self.margin, self.printed),
        )


@dataclass(frozen=True)
class Report:
    """What a session found.

    Attributes
    ----------
    results : list of Result
    rows : list of Row
    choices : list of Choice
    """

    results: list[Result]
    rows: list[Row] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def tables(self) -> dict[str, Table]:
        """Return the tables by the names of their CSV files."""
        tables: dict[str, Table] = {
            "summary.csv": self._summary(),
            "spread.csv": self._spread(),
            "runs.csv": (RUNS_HEADER, [row for result in self.results for row in _run_rows(result)]),
            "curves.csv": (CURVES_HEADER, [row for result in self.results for row in _curve_rows(result)]),
            "layers.csv": (LAYERS_HEADER, [row for result in self.results for row in _layer_rows(result)]),
            "correlations.csv": (
                CORRELATIONS_HEADER,
                [r for result in self.results for r in _correlation_rows(result)],
            ),
        }
        return tables | ({"selection.csv": self._selection()} if self.choices else {})

    def as_data(self) -> dict[str, Any]:
        """Return the rows as plain data, for JSON; NaN as None."""
        return {
            "summary": as_records(self._summary()),
            "spread": as_records(self._spread()),
            "selection": as_records(self._selection()),
        }

    def _summary(self) -> Table:
        return SUMMARY_HEADER, [row.as_tuple() for row in self.rows]

    def _spread(self) -> Table:
        return SPREAD_HEADER, [
            (row.experiment, row.measure, row.block, row.arm, row.against, *astuple(row.spread), row.spread.verdict())
            for row in self.rows
            if row.spread
        ]

    def _selection(self) -> Table:
        return SELECTION_HEADER, [row for choice in self.choices for row in _rates(choice)]


def build_report(results: Sequence[Result], choices: Sequence[Choice] = ()) -> Report:
    """Return the report on some results; the baselines of their arms must be among them.

    The simultaneous intervals are for all comparisons of the same experiment in the same measure.
    """
    return Report(
        list(results),
        [row for result in results for row in _rows(result, results)],
        list(choices),
    )


def _rows(result: Result, results: Sequence[Result]) -> list[Row]:
    cell = result.cell
    siblings = [other for other in results if other.cell.experiment is cell.experiment]
    comparisons = sum(bool(other.cell.arm.against) for other in siblings)
    wanted = (cell.block, cell.arm.against)
    baseline = next((other for other in siblings if (other.cell.block, other.cell.arm.name) == wanted), None)
    rows = []
    for measure in cell.experiment.measures:
        values = result.values(measure)
        estimate = mean_with_error(values)
        step = 100.0 / result.test_images if measure.endswith("test-accuracy") else 0.0
        difference = (
            paired_difference(values, baseline.values(measure), comparisons, resolution=step) if baseline else None
        )
        margin = cell.experiment.margins.get(measure, math.nan)
        verdict = ""
        if difference is not None:
            verdict = _verdict(measure, difference, margin) if estimate.count > 1 else "diverges"
        rows.append(
            Row(
                *(cell.experiment.name, measure, cell.block_name, cell.arm.name, cell.training.learning_rate),
                *(estimate.value, estimate.stderr, len(values), len(values) - estimate.count),
                cell.arm.against,
                difference,
                spread_ratio(values, baseline.values(measure), comparisons) if baseline else None,
                verdict,
                margin,
                _printed(cell, measure),
            )
        )
    return rows


def _verdict(measure: str, difference: PairedDifference, margin: float) -> str:
    if measure in NEUTRAL:
        said = difference.verdict(more_is_better=True)
        said = {"better": "higher", "worse": "lower"}.get(said, said)
    else:
        said = difference.verdict(more_is_better="accuracy" in measure)
    return "equivalent" if said == "no difference seen" and difference.within(margin) else said


def _printed(cell: Cell, measure: str) -> float:
    """Return the printed value of a cell, if its settings are those of the source."""
    full = cell.experiment.full
    try:
        printed_for = cell.experiment.training(full, cell.arm, cell.block)
    except (TypeError, ValueError):
        return math.nan
    if printed_for != cell.training:
        return math.nan
    return next(
        (
            entry.value
            for entry in cell.experiment.published
            if (entry.arm, entry.measure) == (cell.arm.name, measure) and entry.where.items() <= cell.block.items()
        ),
        math.nan,
    )


def _run_rows(result: Result) -> list[tuple[Any, ...]]:
    cell = result.cell
    head = (cell.experiment.name, cell.block_name, cell.arm.name, cell.training.learning_rate)
    return [
        (*head, seed, Run(cell.training, seed).name, *(curves.measure(measure) for measure in MEASURES))
        for seed, curves in result.runs
    ]


def _curve_rows(result: Result) -> list[tuple[Any, ...]]:
    cell = result.cell
    return [
        (cell.experiment.name, cell.block_name, cell.arm.name, seed, epoch, *map(float, values))
        for seed, curves in result.runs
        for epoch, values in enumerate(zip(*(getattr(curves, name) for name in OF_NETWORK), strict=True))
    ]


def _layer_rows(result: Result) -> Iterator[tuple[Any, ...]]:
    """Yield what each layer did, epoch by epoch, in the mean over the seeds that came through."""
    for name in BY_LAYER:
        curves = [getattr(curves, name) for _, curves in result.runs if not curves.diverged]
        # Of correlations the means over all pairs; at which distance stands with `_correlation_rows`.
        yield from _estimates(result, name, [(c if c.ndim == 2 else c[:, :, 0]).T for c in curves])


def _correlation_rows(result: Result) -> Iterator[tuple[Any, ...]]:
    """Yield how weights correlate after the last epoch, by the distance of their channels, likewise."""
    for channels in ("output", "input"):
        ends = [getattr(curves, f"{channels}_correlation")[-1] for _, curves in result.runs if not curves.diverged]
        yield from _estimates(result, channels, ends, first=1)


def _estimates(result: Result, name: str, runs: Sequence[Array], first: int = 0) -> Iterator[tuple[Any, ...]]:
    """Yield a row for each entry, from column `first` on, of arrays with a row for each layer: their mean over runs."""
    cell = result.cell
    values = np.stack(runs) if runs else np.empty((0, 0, 0))
    for layer, column in itertools.product(range(values.shape[1]), range(first, values.shape[2])):
        estimate = mean_with_error(values[:, layer, column].tolist())
        if estimate.count:
            head = (cell.experiment.name, cell.block_name, cell.arm.name, name, layer + 1, column)
            yield (*head, estimate.value, estimate.stderr, estimate.count)


def _rates(choice: Choice) -> list[tuple[Any, ...]]:
    cell = choice.cell
    return [
        (
            *(cell.experiment.name, cell.block_name, cell.arm.name, rate, accuracy),
            *(rate == cell.training.learning_rate, choice.at_the_edge and rate == cell.training.learning_rate),
        )
        for rate, accuracy in choice.accuracies.items()
    ]
