"""From outcomes to tables: the rows of the CSV files, cell by cell beside the printed numbers, and the controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla.experiments.conclusions import Conclusion, draw_conclusions
from convla.experiments.outcome import Outcome
from convla.experiments.published import QUANTITIES, TABLES, published_cells, published_flags
from convla.experiments.rck_conclusions import draw_figure_conclusions
from convla.experiments.rck_settings import FigureSetting, Traces
from convla.experiments.results import ResultsFolder
from convla.experiments.settings import CONTROLS, Setting
from convla.experiments.statistics import VERDICTS, Estimate, Verdict, compare, estimate

__all__ = ["CONTROL_HEADER", "TABLE_HEADER", "TRACE_HEADER", "Report", "build_report"]

TABLE_HEADER = ("table", "N", "optimizer", "quantity", "published", "ours", "stderr", "z", "verdict")
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

TRACE_HEADER = (
    "kernel_size",
    "alpha",
    "variant",
    "kernel",
    "iteration",
    "reported",
    "true",
    "sigma_max",
    "sigma_min",
    "condition",
)


@dataclass(frozen=True)
class Report:
    """What a run says.

    Attributes
    ----------
    tables : dict of int to list of Verdict
        The cells of each table that was asked for.
    controls : list of tuple
        Rows under `CONTROL_HEADER`; empty unless the controls were asked for.
    conclusions : list of Conclusion
    traces : list of tuple
        Rows under `TRACE_HEADER`, one for each iterate; empty unless the figures were asked for.
    diverged : dict of str to int
        How many repetitions of each setting were dropped, where there were any.
    """

    tables: dict[int, list[Verdict]]
    controls: list[tuple[Any, ...]]
    conclusions: list[Conclusion]
    diverged: dict[str, int]
    traces: list[tuple[Any, ...]]

    def counts(self, columns: str = "ABCD") -> dict[str, int]:
        """Return how many cells of these columns got each verdict."""
        cells = [verdict for verdicts in self.tables.values() for verdict in verdicts]
        found = Counter(verdict.verdict for verdict in cells if QUANTITIES[verdict.cell.quantity][0] in columns)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def within(self, limit: float) -> tuple[int, int]:
        """Return how many cells of columns A-C have |z| <= limit, and how many there are."""
        scores = [
            abs(verdict.z)
            for verdicts in self.tables.values()
            for verdict in verdicts
            if not verdict.cell.quantity.startswith("D")
        ]
        return sum(score <= limit for score in scores), len(scores)

    def write(self, folder: ResultsFolder) -> list[str]:
        """Write the CSV files and return their names."""
        files = []
        for table, verdicts in self.tables.items():
            files.append(f"table{table}.csv")
            folder.write_csv(files[-1], TABLE_HEADER, [_row(verdict) for verdict in verdicts])
        if self.controls:
            files.append("controls.csv")
            folder.write_csv(files[-1], CONTROL_HEADER, self.controls)
        if self.traces:
            files.append("traces.csv")
            folder.write_csv(files[-1], TRACE_HEADER, self.traces)
        if self.conclusions:
            files.append("conclusions.csv")
            rows = [(c.subject, c.statement, c.verdict, c.evidence) for c in self.conclusions]
            folder.write_csv(files[-1], ("subject", "statement", "verdict", "evidence"), rows)
        return files

    def as_data(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON; NaN as None."""

        def plain(row: Sequence[Any]) -> list[Any]:
            return [None if value != value else value for value in row]

        return {
            "tables": {
                f"table{table}": {
                    "cells": [dict(zip(TABLE_HEADER, plain(_row(v)), strict=True)) | _flag(v) for v in verdicts],
                    "flags": published_flags(table),
                }
                for table, verdicts in self.tables.items()
            },
            "controls": [dict(zip(CONTROL_HEADER, plain(row), strict=True)) for row in self.controls],
            "traces": [dict(zip(TRACE_HEADER, plain(row), strict=True)) for row in self.traces],
            "conclusions": [vars(conclusion) for conclusion in self.conclusions],
            "diverged": self.diverged,
            "verdicts": self.counts(),
        }


def build_report(
    outcomes: Mapping[Setting, Outcome], targets: Sequence[str], figures: Mapping[FigureSetting, Traces]
) -> Report:
    """Return the report on the targets, from the outcomes of the settings they need."""
    wanted = [table for table in TABLES if "tables" in targets or f"table{table}" in targets]
    estimates = {setting: estimate(outcome) for setting, outcome in outcomes.items()}
    return Report(
        tables={
            table: [
                compare(cell, estimates[setting][cell.quantity])
                for cell in published_cells(table)
                for setting in estimates
                if setting.control == "loss" and table in setting.tables
                if (setting.n, setting.optimizer) == (cell.n, cell.optimizer)
            ]
            for table in wanted
        },
        controls=[
            _control_row(setting, outcomes[setting], estimates[setting])
            for setting in sorted(outcomes, key=_control_order)
        ]
        if "controls" in targets
        else [],
        conclusions=draw_conclusions(outcomes, estimates) + draw_figure_conclusions(figures),
        diverged={setting.name: outcome.diverged for setting, outcome in outcomes.items() if outcome.diverged},
        traces=[row for setting, traces in figures.items() for row in _trace_rows(setting, traces)],
    )


def _trace_rows(setting: FigureSetting, traces: Traces) -> Iterator[tuple[Any, ...]]:
    columns = (traces.reported, traces.true, traces.sigma_max, traces.sigma_min, traces.condition)
    for kernel, iteration in np.ndindex(traces.true.shape):
        # A descent that ended early has no more iterates.
        if iteration <= traces.steps[kernel]:
            values = (float(column[kernel, iteration]) for column in columns)
            yield (setting.kernel, setting.alpha, setting.variant, kernel, iteration, *values)


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
        verdict.verdict,
    )


def _flag(verdict: Verdict) -> dict[str, str]:
    return {"flag": verdict.cell.flag} if verdict.cell.flag else {}


def _control_order(setting: Setting) -> tuple[Any, ...]:
    return (setting.tables, setting.n, setting.optimizer, CONTROLS.index(setting.control))


def _control_row(setting: Setting, outcome: Outcome, columns: Mapping[str, Estimate]) -> tuple[Any, ...]:
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
        outcome.diverged,
        float(outcome.norms[kept, 0].mean()),
        *(float(value) for value in np.median(outcome.survival, axis=0)),
        *(float(value) for value in cosines.mean(axis=0)),
        float(cosines[:, 1].std(ddof=1) / np.sqrt(len(cosines))) if len(cosines) > 1 else float("nan"),
    )
