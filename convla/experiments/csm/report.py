"""From outcomes to tables: the rows of the CSV files, cell by cell beside the printed numbers, and the controls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convla.experiments import source
from convla.experiments.csm.agreement import LEAST, VERDICTS, Verdict, cells_of, compare, decide
from convla.experiments.csm.conclusions import draw_conclusions
from convla.experiments.csm.coverage import Coverage, measure_coverage
from convla.experiments.csm.further import ENOUGH, at_most, settle
from convla.experiments.csm.published import PUBLISHED_REPETITIONS, QUANTITIES, published_flags
from convla.experiments.csm.settings import CONTROLS, TABLES, Setting
from convla.experiments.csm.summary import Summary
from convla.experiments.folder import Table, as_records
from convla.experiments.source import Conclusion, Sheet
from convla.extending import in_order

__all__ = ["CONTROL_HEADER", "TABLE_HEADER", "Report", "build_report", "verdicts_on"]

TABLE_HEADER = (
    "table",
    "N",
    "optimizer",
    "quantity",
    "published",
    "ours",
    "stderr",
    "z",
    "p",
    "holm",
    "verdict",
    "runs",
)
CONTROL_HEADER = (
    "tables",
    "N",
    "optimizer",
    "minimized",
    "corr_mean",
    "B_reduction_frequency_pct",
    "C_decrease_mean_pct",
    "increases",
    "diverged",
    "norm_before",
    "shorter_after_over_before",
    "longer_after_over_before",
    "cosine_before",
    "cosine_after",
    "cosine_after_stderr",
)

TABLE_HEADINGS = ("N", "optimizer", "column", "ours", "std. error", "printed", "z", "p", "verdict")
CONTROL_HEADINGS = (
    *("tables", "N", "optimizer", "minimised", "A", "B %", "C %", "increases", "diverged"),
    *("norm before", "shorter keeps", "longer keeps", "|cos| before", "after", "std. error"),
)


@dataclass(frozen=True)
class Report(source.Report):
    """What a run says.

    Attributes
    ----------
    cells : dict of int to list of Verdict
        The cells of each table that was asked for.
    controls : list of tuple
        Rows under `CONTROL_HEADER`; empty unless the controls were asked for.
    conclusions : list of Conclusion
    diverged : dict of str to int
        How many repetitions of each setting were dropped, where there were any.
    coverage : Coverage
        Empty unless it was asked for.
    kept : set of tuple of int
        Repetitions of a setting, and how many of them were kept, where that is not all.
    further : dict of str to int
        How many repetitions there are of each setting in further runs, where there are any.
    rounds : int
        Of further runs that were allowed.
    """

    cells: dict[int, list[Verdict]]
    controls: list[tuple[Any, ...]]
    conclusions: list[Conclusion]
    diverged: dict[str, int]
    coverage: Coverage
    kept: set[tuple[int, int]] = field(default_factory=set)
    further: dict[str, int] = field(default_factory=dict)
    rounds: int = 0

    def counts(self, columns: str = "ABCD") -> dict[str, int]:
        """Return how many cells of these columns got each verdict."""
        cells = [verdict for verdicts in self.cells.values() for verdict in verdicts]
        found = Counter(verdict.verdict for verdict in cells if QUANTITIES[verdict.cell.quantity][0] in columns)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def tables(self) -> dict[str, Table]:
        """Return the tables by the names of their CSV files."""
        tables: dict[str, Table] = {
            f"table{table}.csv": (TABLE_HEADER, [_row(verdict) for verdict in verdicts])
            for table, verdicts in self.cells.items()
        }
        tables |= {"controls.csv": (CONTROL_HEADER, self.controls)} if self.controls else {}
        return tables | self.coverage.tables()

    def as_data(self) -> dict[str, Any]:
        """Return the report, its conclusions aside, as plain data."""
        return {
            "tables": {
                f"table{table}": {
                    "cells": [
                        row | ({"flag": v.cell.flag} if v.cell.flag else {})
                        for row, v in zip(as_records((TABLE_HEADER, [_row(v) for v in vs])), vs, strict=True)
                    ],
                    "flags": published_flags(table),
                }
                for table, vs in self.cells.items()
            },
            "controls": as_records((CONTROL_HEADER, self.controls)),
            **{name.removesuffix(".csv"): as_records(table) for name, table in self.coverage.tables().items()},
            "diverged": self.diverged,
            "further_repetitions": self.further,
            "verdicts": self.counts(),
        }

    def totals(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        return {
            "diverged_repetitions": self.diverged,
            "further_repetitions": self.further,
            "verdicts": self.counts(),
        }

    def sheets(self) -> list[Sheet]:
        """Return the tables, and the controls, as a screen shows them."""
        sheets = [_table_sheet(table, verdicts) for table, verdicts in self.cells.items()]
        if self.controls:
            rows = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in self.controls]
            title = "Controls: the same draws, other things minimised"
            sheets.append(Sheet(title, CONTROL_HEADINGS, rows, ("tables", "optimizer", "minimised"), []))
        return sheets + self.coverage.sheets()

    def summary(self) -> list[str]:
        """Return how many cells got each verdict, and how many repetitions diverged."""
        lines = []
        for columns, name in (("ABC", "columns A-C"), ("D", "column D")):
            counts = {verdict: count for verdict, count in self.counts(columns).items() if count}
            if counts:
                lines.append(f"{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
        lines += self._multiplicity() + self.coverage.lines()
        lines += [
            f"of {size} repetitions estimates, errors and counts are of all; z, p, medians, lengths, angles and "
            f"pictures are of the first {kept}, so that memory does not grow"
            for size, kept in sorted(self.kept)
        ]
        return lines + [f"{name}: {count} diverged, dropped" for name, count in self.diverged.items()]

    def _multiplicity(self) -> list[str]:
        """Return what the cells of columns A to C say at once, and what is left undecided."""
        cells = [v for vs in self.cells.values() for v in vs if not v.cell.quantity.startswith("D")]
        tested = [verdict for verdict in cells if not math.isnan(verdict.p)]
        lines = []
        if tested:
            below, expected = sum(verdict.p < 0.05 for verdict in tested), 0.05 * len(tested)
            lines.append(
                f"columns A-C: p < 0.05 in {below} of {len(tested)} cells, where {expected:.1f} are expected if all "
                f"agree; the least p is {min(verdict.p for verdict in tested):.2g}, and "
                f"{min(verdict.holm for verdict in tested):.2g} for {len(cells)} cells at once (Holm)"
            )
        if len(tested) < len(cells):
            lines.append(
                f"undecided are cells whose spread fewer than {LEAST} repetitions carry: more --repetitions, or "
                "--rounds of further runs, decide them"
            )
        return lines + self._further(cells)

    def _further(self, cells: Sequence[Verdict]) -> list[str]:
        """Return what further runs decided, at what cost and error."""
        judged = [verdict for verdict in cells if verdict.runs]
        if not judged:
            return []
        left = sum(verdict.verdict == VERDICTS[3] for verdict in judged)
        most = at_most(self.rounds)
        share = f"{100 * min(1.0, 2 * ENOUGH / (most + 1)):.0f} %"
        return [
            f"{len(judged)} cells by {sum(self.further.values())} further repetitions of {len(self.further)} settings, "
            f"in runs of {PUBLISHED_REPETITIONS}, at most {most} for each: a cell is decided when {ENOUGH} runs lie on "
            f"either side of print; {left} are left undecided, as {share} of those that agree would be"
        ]


def build_report(
    found: Mapping[Setting, Summary], targets: Sequence[str], runs: Mapping[Setting, int] | None = None, rounds: int = 0
) -> Report:
    """Return the report on the targets, from the summaries of the settings they need.

    Parameters
    ----------
    found : dict of Setting to Summary
    targets : sequence of str
    runs : dict of Setting to int, optional
        How many further runs there are of each setting, where there are any.
    rounds : int, default 0
        Of further runs that were allowed.
    """
    judged = in_order(lambda item: verdicts_on(*item, targets), list(found.items()))
    verdicts = decide([verdict for verdicts in judged for verdict in verdicts])
    return Report(
        cells={table: [verdict for verdict in verdicts if verdict.cell.table == table] for table in _wanted(targets)},
        controls=[_control_row(setting, found[setting]) for setting in sorted(found, key=_control_order)]
        if "controls" in targets
        else [],
        conclusions=draw_conclusions(found),
        diverged={setting.name: summary.diverged for setting, summary in found.items() if summary.diverged},
        coverage=measure_coverage(found if "coverage" in targets else {}),
        kept={(s.repetitions, s.kept.repetitions) for s in found.values() if not s.is_whole},
        further={setting.name: count * PUBLISHED_REPETITIONS for setting, count in (runs or {}).items()},
        rounds=rounds,
    )


def verdicts_on(setting: Setting, summary: Summary, targets: Sequence[str]) -> list[Verdict]:
    """Return the verdicts on a setting's cells among the targets, not yet corrected for how many cells there are."""
    if setting.control != "loss":
        return []
    cells = [cell for table in _wanted(targets) if table in setting.tables for cell in cells_of(table, setting)]
    return settle(compare(cells, summary.kept, summary.estimates), summary.further)


def _wanted(targets: Sequence[str]) -> list[int]:
    return [table for table in TABLES if "tables" in targets or f"table{table}" in targets]


def _row(verdict: Verdict) -> tuple[Any, ...]:
    cell, ours = verdict.cell, verdict.ours
    return (
        cell.table,
        cell.n,
        cell.optimizer,
        cell.quantity,
        cell.value,
        ours.value,
        ours.stderr,
        verdict.z,
        verdict.p,
        verdict.holm,
        verdict.verdict,
        verdict.runs,
    )


def _table_sheet(table: int, verdicts: Sequence[Verdict]) -> Sheet:
    rows = [
        (
            *(str(cell.n), cell.optimizer, QUANTITIES[cell.quantity], f"{ours.value:.5g}"),
            "" if ours.stderr != ours.stderr else f"{ours.stderr:.2g}",
            f"{cell.value:g}" + ("*" if cell.flag else ""),
            "" if verdict.z != verdict.z else f"{verdict.z:+.1f}",
            "" if verdict.p != verdict.p else f"{verdict.p:.2g}",
            verdict.verdict,
        )
        for verdict in verdicts
        for cell, ours in [(verdict.cell, verdict.ours)]
    ]
    doubtful = any(verdict.cell.flag for verdict in verdicts)
    notes = ["* doubtful in print; the report of --json says why"] if doubtful else []
    notes += [f"{flag['cells'][0]}: {flag['note']}" for flag in published_flags(table) if flag["N"] is None]
    return Sheet(f"CSM Table {table}", TABLE_HEADINGS, rows, ("optimizer", "column", "verdict"), notes)


def _control_order(setting: Setting) -> tuple[Any, ...]:
    return (setting.tables, setting.n, setting.optimizer, CONTROLS.index(setting.control))


def _control_row(setting: Setting, summary: Summary) -> tuple[Any, ...]:
    outcome, columns = summary.kept, summary.estimates
    kept = outcome.converged
    cosines = outcome.cosine[kept]
    cosines = cosines[np.isfinite(cosines).all(axis=1)]
    minimized = setting.control if setting.control != "loss" else setting.loss
    return (
        f"{setting.tables[0]}-{setting.tables[1]}",
        setting.n,
        setting.optimizer,
        minimized,
        columns["corr_mean"].value,
        columns["B_reduction_frequency_pct"].value,
        columns["C_decrease_mean_pct"].value,
        columns["D_increase_mean_pct"].count,
        summary.diverged,
        float(outcome.norms[kept, 0].mean()),
        *(float(value) for value in np.median(outcome.survival, axis=0)),
        *(float(value) for value in cosines.mean(axis=0)),
        float(cosines[:, 1].std(ddof=1) / np.sqrt(len(cosines))) if len(cosines) > 1 else float("nan"),
    )
