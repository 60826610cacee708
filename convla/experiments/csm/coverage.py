"""Are the errors right, and what would other seeds say? Long runs cut into runs of the published size.

The long run stands for the truth. What runs of the published size believe of themselves is set beside how far they
scatter: their standard errors, how often their 95 % intervals hold the true value, and how often a run that takes the
place of print is contradicted, cell by cell; and what each of them, as ours, would have said of print.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convla.experiments.csm.agreement import VERDICTS, cells_of, compare, decide
from convla.experiments.csm.published import PUBLISHED_REPETITIONS, QUANTITIES, PublishedCell
from convla.experiments.csm.settings import TABLES, Setting
from convla.experiments.csm.summary import Summary
from convla.experiments.descents.outcome import Outcome, recut
from convla.experiments.folder import Table
from convla.experiments.source import Sheet
from convla.experiments.statistics import CONFIDENCE, share_interval

__all__ = ["COVERAGE_HEADER", "Coverage", "CoverageRow", "measure_coverage"]

COVERAGE_HEADER = (
    *(
        "table",
        "N",
        "optimizer",
        "quantity",
        "runs",
        "value",
        "spread",
        "stderr_over_spread",
        "covered",
        "contradicted",
    ),
)
HEADINGS = ("N", "optimizer", "column", "value", "spread", "error / spread", "95 % covers", "p < 0.05 %")

LIKELY = "p < 0.05"
SEED_COLUMNS = (*VERDICTS, LIKELY)

SEEDS = 20
"""So many of the runs are set beside print: what a run says of 90 cells takes seconds."""


@dataclass(frozen=True)
class CoverageRow:
    """What runs of the published size say of a cell.

    Attributes
    ----------
    cell : PublishedCell
    runs : int
        How many of them there are.
    value : float
        The truth: that of the long run.
    spread : float
        The standard deviation of their values.
    believed : float
        The median of their standard errors, over the spread.
    covered : float
        How many per cent of their intervals at `CONFIDENCE` hold the value.
    contradicted : float
        How many per cent of them, taken for print, the long run gives a probability below 1 - `CONFIDENCE`.
    """

    cell: PublishedCell
    runs: int
    value: float
    spread: float
    believed: float
    covered: float
    contradicted: float

    def fields(self) -> tuple[Any, ...]:
        """Return the row under `COVERAGE_HEADER`."""
        cell = self.cell
        where = (cell.table, cell.n, cell.optimizer, cell.quantity)
        return (*where, self.runs, self.value, self.spread, self.believed, self.covered, self.contradicted)


@dataclass(frozen=True)
class Coverage:
    """Rows for all cells of columns A to C, and what runs of the published size say of print.

    Attributes
    ----------
    rows : list of CoverageRow
    seeds : list of dict of str to int
        For each run: how many cells got each verdict, and under "p < 0.05" how many have such a probability.
    """

    rows: list[CoverageRow]
    seeds: list[dict[str, int]]

    def tables(self) -> dict[str, Table]:
        """Return both by the names of their CSV files; none where there is nothing."""
        if not self.rows:
            return {}
        seeds = [(number, *(counts[name] for name in SEED_COLUMNS)) for number, counts in enumerate(self.seeds)]
        return {
            "coverage.csv": (COVERAGE_HEADER, [row.fields() for row in self.rows]),
            "seeds.csv": (("run", *SEED_COLUMNS), seeds),
        }

    def sheets(self) -> list[Sheet]:
        """Return the rows by tables, for a screen."""
        return [
            Sheet(
                f"CSM Table {table}: runs of {PUBLISHED_REPETITIONS} against the truth",
                HEADINGS,
                [_texts(row) for row in self.rows if row.cell.table == table],
                ("optimizer", "column"),
                [],
            )
            for table in sorted({row.cell.table for row in self.rows})
        ]

    def lines(self) -> list[str]:
        """Return what it comes to."""
        if not self.rows:
            return []
        wrong = [row for row in self.rows if not self._is_nominal(row)]
        lines = [
            f"errors of runs of {PUBLISHED_REPETITIONS}: nominal 95 % intervals hold the true value in "
            f"{min(row.covered for row in self.rows):.0f} to {max(row.covered for row in self.rows):.0f} % of "
            f"{self.rows[0].runs} runs; in {len(wrong)} of {len(self.rows)} cells that is not 95 %"
            + (f": {_places(wrong)}" if wrong else "")
        ]
        for name in SEED_COLUMNS:
            counts = sorted(seed[name] for seed in self.seeds)
            if any(counts):
                lines.append(
                    f"of {len(self.rows)} cells {counts[0]} to {counts[-1]}, median {counts[len(counts) // 2]}, are "
                    f"{name} over {len(counts)} runs of {PUBLISHED_REPETITIONS}"
                )
        return lines

    def _is_nominal(self, row: CoverageRow) -> bool:
        low, high = share_interval(round(row.covered / 100.0 * row.runs), row.runs, len(self.rows))
        return low <= CONFIDENCE <= high


def measure_coverage(found: Mapping[Setting, Summary]) -> Coverage:
    """Return what runs of the published size, cut out of long ones, say of themselves and of print.

    Parameters
    ----------
    found : dict of convla.experiments.csm.settings.Setting to Summary
        Of rows of the tables, with `runs` of the published size. Nothing is returned for fewer than two runs.

    Returns
    -------
    Coverage
    """
    rows: list[CoverageRow] = []
    tables = {setting: summary for setting, summary in found.items() if setting.control == "loss"}
    for table in TABLES:
        for setting, summary in tables.items():
            if table in setting.tables and summary.repetitions >= 2 * PUBLISHED_REPETITIONS:
                rows += _measure(_tested(table, setting), summary)
    parts = {setting: _cut(summary.kept) for setting, summary in tables.items()}
    fewest = min((len(runs) for runs in parts.values()), default=0)
    return Coverage(rows, [_against_print(parts, number) for number in range(fewest)] if rows else [])


def _cut(outcome: Outcome) -> list[Outcome]:
    """Return the runs that are set beside print."""
    runs = recut([outcome], PUBLISHED_REPETITIONS)
    return [run for run in itertools.islice(runs, SEEDS) if run.repetitions == PUBLISHED_REPETITIONS]


def _tested(table: int, setting: Setting) -> list[PublishedCell]:
    return [cell for cell in cells_of(table, setting) if not cell.quantity.startswith("D")]


def _measure(cells: list[PublishedCell], summary: Summary) -> list[CoverageRow]:
    from scipy.special import ndtri  # takes a tenth of a second to import

    truth = summary.estimates
    # As if each run were printed, without rounding: the resampled runs of the whole are the same for all of them.
    printed = [
        replace(cell, value=float(value), half_unit=0.0, count=int(count))
        for cell in cells
        for value, _, count in summary.runs[cell.quantity]
    ]
    probabilities = np.array([verdict.p for verdict in compare(printed, summary.kept, truth)])
    rows = []
    for cell, p in zip(cells, probabilities.reshape(len(cells), -1), strict=True):
        values, errors, _ = summary.runs[cell.quantity].T
        spread = float(values.std(ddof=1))
        rows.append(
            CoverageRow(
                cell,
                len(values),
                truth[cell.quantity].value,
                spread,
                float(np.median(errors)) / spread if spread > 0.0 else math.nan,
                _percent(np.abs(values - truth[cell.quantity].value) <= ndtri(0.5 + CONFIDENCE / 2.0) * errors),
                _percent(p < 1.0 - CONFIDENCE) if np.isfinite(p).all() else math.nan,
            )
        )
    return rows


def _percent(truths: np.ndarray) -> float:
    return 100.0 * float(np.mean(truths))


def _against_print(parts: Mapping[Setting, list[Outcome]], number: int) -> dict[str, int]:
    verdicts = decide(
        [
            verdict
            for table in TABLES
            for setting, runs in parts.items()
            if table in setting.tables
            for verdict in compare(_tested(table, setting), runs[number])
        ]
    )
    counts = Counter(verdict.verdict for verdict in verdicts)
    return {name: counts[name] for name in VERDICTS} | {LIKELY: sum(verdict.p < 0.05 for verdict in verdicts)}


def _texts(row: CoverageRow) -> tuple[str, ...]:
    cell = row.cell
    return (
        *(str(cell.n), cell.optimizer, QUANTITIES[cell.quantity], f"{row.value:.5g}", f"{row.spread:.2g}"),
        *(
            f"{row.believed:.2f}",
            f"{row.covered:.0f}",
            "" if math.isnan(row.contradicted) else f"{row.contradicted:.0f}",
        ),
    )


def _places(rows: list[CoverageRow]) -> str:
    """Return the columns and tables of some rows, in short."""
    found = Counter((QUANTITIES[row.cell.quantity], row.cell.table) for row in rows)
    return ", ".join(f"{count} of {column} in Table {table}" for (column, table), count in sorted(found.items()))
