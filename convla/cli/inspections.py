"""Files that are inspected, one after another here or several at a time elsewhere, and the reports that are written."""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import ProgressColumn, Task
from rich.text import Text

from convla.cli.output import (
    INTERRUPTED,
    check_plot,
    check_writable,
    complain,
    progress_bars,
    reason,
    time_left,
    write_json,
    write_text,
)
from convla.cli.rows import Screen, words_of
from convla.cli.thresholds import Threshold
from convla.errors import ConvlaError
from convla.experiments.pool import Pool
from convla.extending import at_most
from convla.networks.inspection import Plan, inspect
from convla.networks.report import Inspection, LayerReport

__all__ = ["Targets", "TimeLeft", "inspect_files"]

SAVED = 2.0
"""Seconds between two savings of an unfinished report."""

_FAILURES = (ConvlaError, ValueError, TypeError, ArithmeticError, OSError, MemoryError)


@dataclass(frozen=True)
class Targets:
    """Where reports are written: a file for each kind, or a folder where `many` files are inspected."""

    json: Path | None = None
    csv: Path | None = None
    html: Path | None = None
    plot: Path | None = None
    many: bool = False

    def check(self, files: Sequence[Path]) -> None:
        """Raise, before the work, if a report could not be written.

        Raises
        ------
        OSError, ValueError
        """
        if self.many and any((self.json, self.csv, self.html, self.plot)):
            twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
            if twice:
                raise ValueError(f"FILE: two files are called {twice[0]!r}, and so would be their reports")
        if not self.many:
            check_plot(self.plot)
        for kind in ("json", "csv", "html", "plot"):
            folder = getattr(self, kind)
            if self.many and folder is not None:
                if folder.exists() and not folder.is_dir():
                    raise ValueError(f"--{kind} must be a folder for several files, got {str(folder)!r}")
                folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                check_writable(f"--{kind}", self.path(kind, file))

    def path(self, kind: str, file: Path) -> Path | None:
        """Return where a kind of report of a file goes."""
        path: Path | None = getattr(self, kind)
        if path is None or not self.many:
            return path
        return path / f"{file.name}.{'png' if kind == 'plot' else kind}"

    def write(self, file: Path, report: Inspection) -> None:
        """Write the reports of a file."""
        if (path := self.path("json", file)) is not None:
            write_json(path, report.as_data())
        for kind, text in (("csv", report.to_csv), ("html", report.to_html)):
            if (path := self.path(kind, file)) is not None:
                write_text(path, text())
        if report.complete and (path := self.path("plot", file)) is not None:
            from convla.networks.plot import plot_inspection  # matplotlib takes half a second to import

            plot_inspection(report, path)


def inspect_files(
    files: Sequence[Path],
    options: Mapping[str, Any],
    pool: Pool,
    targets: Targets,
    thresholds: Sequence[Threshold],
    *,
    wide: bool,
) -> int:
    """Inspect files, show and write what is found, and return the exit code.

    Parameters
    ----------
    files : sequence of Path
    options : mapping
        Keywords of `inspect`.
    pool : Pool
    targets : Targets
    thresholds : sequence of Threshold
    wide : bool
    """
    code = 0
    if pool.is_local:
        found = _here(files, options, pool, targets, wide=wide)
    else:
        found = _elsewhere(files, options, pool, wide=wide)
    for file, report in found:
        if isinstance(report, Exception):
            if not targets.many:
                raise report
            complain(reason(report))
            code = max(code, 2)
            continue
        targets.write(file, report)
        if not report.complete:
            return INTERRUPTED
        code = max(code, _warned(report, thresholds))
    return code


_Reports = Iterator[tuple[Path, "Inspection | Exception"]]


def _here(files: Sequence[Path], options: Mapping[str, Any], pool: Pool, targets: Targets, *, wide: bool) -> _Reports:
    """Inspect one file after another, and show each row as it is done."""
    for file in files:
        report: Inspection | Exception
        with at_most(pool.threads):
            try:
                plan = Plan(file, **options)
                screen = Screen(str(file), [*map(words_of, plan.tasks)], plan.columns, wide=wide)
                json_file = targets.path("json", file)
                report = _watched(plan, screen, json_file)
                if not report.complete:
                    kept = f"shown, and in {json_file}" if json_file else "shown"
                    complain(f"interrupted: {len(report)} of {len(plan.tasks)} rows are done and {kept}")
            except _FAILURES as error:
                report = error
        yield file, report


def _elsewhere(files: Sequence[Path], options: Mapping[str, Any], pool: Pool, *, wide: bool) -> _Reports:
    """Inspect several files at a time in other processes, and show each report as it is done."""
    with progress_bars() as progress:
        bar = progress.add_task("files", total=len(files))
        for file, report in pool.map(functools.partial(_attempt, dict(options)), [*files]):
            progress.advance(bar)
            if isinstance(report, Inspection):
                screen = Screen(str(file), [*map(words_of, report)], report.columns, wide=wide)
                for row in report:
                    screen.show(row)
                screen.show_notes(report)
            yield file, report


def _attempt(options: Mapping[str, Any], file: Path) -> Inspection | Exception:
    """Inspect a file in a worker; one that cannot be read is told, and does not end the others."""
    try:
        return inspect(file, **options)
    except _FAILURES as error:
        return ValueError(reason(error))


class TimeLeft(ProgressColumn):
    """How long a plan's rows will take, by those that are done, or by its budget; nothing while neither says it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def render(self, task: Task) -> Text:
        """Return the time in words."""
        if not task.completed and math.isinf(self._plan.budget):
            return Text("")
        return Text(f"about {time_left(self._plan.seconds_left)} left")


def _watched(plan: Plan, screen: Screen, json_file: Path | None) -> Inspection:
    """Measure, show each row as it is done, and keep what is done in the file."""
    done: list[LayerReport] = []
    saved = time.monotonic()
    with progress_bars(last=TimeLeft(plan)) as progress:
        bar = progress.add_task("layers", total=len(plan.tasks))

        def show(layer: LayerReport) -> None:
            nonlocal saved
            done.append(layer)
            if json_file is not None and time.monotonic() - saved >= SAVED:
                write_json(json_file, plan.report(done, complete=False).as_data())
                saved = time.monotonic()
            screen.show(layer)
            progress.advance(bar)

        report = plan.run(show)
    screen.show_notes(report)
    return report


def _warned(report: Inspection, thresholds: Sequence[Threshold]) -> int:
    """Say what is beyond the thresholds, and return the exit code."""
    beyond = [sentence for threshold in thresholds for sentence in threshold.broken_by(report)]
    for sentence in beyond:
        complain(sentence)
    return 1 if beyond else 0
