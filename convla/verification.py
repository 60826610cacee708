"""`convla verify`: run the ledger's evidence with a progress bar and show what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from convla._validate import check_integer
from convla.errors import ConvlaError

if TYPE_CHECKING:
    from proofs_checks.runner import Outcome, Report

__all__ = ["verify_ledger"]

STATUS_STYLE = {"confirmed": "green", "contradicted": "red", "skipped": "yellow"}


def verify_ledger(ids: Sequence[str], *, max_examples: int, json_file: Path | None = None) -> int:
    """Run the evidence of statements, print a table, and return 1 if it contradicts any verdict, else 0.

    Parameters
    ----------
    ids : sequence of str
        Statements such as "CSM-6" or sources such as "RCK"; all if empty.
    max_examples : int
        How many inputs each property draws, at least 1.
    json_file : Path, optional
        Where the whole report goes too.

    Raises
    ------
    ValueError
        If an id is unknown or the count is less than 1.
    NotADirectoryError
        If the folder of `json_file` does not exist.
    IsADirectoryError
        If `json_file` is a folder.
    ConvlaError
        If Hypothesis is not installed.
    """
    check_integer("--max-examples", max_examples, minimum=1)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise NotADirectoryError(f"--json {json_file}: the folder {json_file.absolute().parent} does not exist")
    if json_file is not None and json_file.is_dir():
        raise IsADirectoryError(f"--json {json_file}: must be a file, and is a folder")
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise ConvlaError("verify draws its examples with Hypothesis: pip install 'convla[verify]'") from None
    # Here, not at the top: the other commands need neither Hypothesis nor the ledger.
    from proofs_checks.ledger import select
    from proofs_checks.runner import verify

    statements = select(ids)
    with _progress() as progress:
        bar = progress.add_task("", total=sum(len(statement.evidence) for statement in statements))

        def show(outcome: Outcome) -> None:
            progress.update(bar, advance=1, description=outcome.statement.id)

        report = verify(statements, examples=max_examples, progress=show)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_data(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _show(report)
    return 1 if report.contradicted else 0


def _progress() -> Progress:
    console = Console(stderr=True)
    console.quiet = not console.is_terminal  # bars that are off still end a line in some versions of Rich
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _show(report: Report) -> None:
    # A pipe has no width of its own: wide enough that no cell is folded.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "where", "verdict", "evidence", "statement"):
        table.add_column(heading, no_wrap=heading in ("id", "verdict"))
    for outcomes in report.statements().values():
        statement = outcomes[0].statement
        table.add_row(
            statement.id,
            statement.number,
            statement.verdict.value,
            ", ".join(_tally(outcomes)),
            escape(statement.title),
        )
    console.print(table)
    for outcome in report.outcomes:
        if outcome.status != "confirmed":
            style = STATUS_STYLE[outcome.status]
            where = f"{outcome.statement.id} {outcome.evidence.name}"
            console.print(f"[{style}]{outcome.status}[/] {where}: {escape(outcome.finding)}")
    counts = {status: sum(outcome.status == status for outcome in report.outcomes) for status in STATUS_STYLE}
    seconds = sum(outcome.seconds for outcome in report.outcomes)
    shown = ", ".join(f"[{STATUS_STYLE[status]}]{count} {status}[/]" for status, count in counts.items() if count)
    console.print(f"\n{len(report.statements())} statements; evidence: {shown}; {seconds:.1f} s")


def _tally(outcomes: Sequence[Any]) -> list[str]:
    """Return the evidence by kind: how many pieces were confirmed, and how many were not."""
    kinds: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        by_status = kinds.setdefault(outcome.evidence.kind.value, {})
        by_status[outcome.status] = by_status.get(outcome.status, 0) + 1
    lines = []
    for kind, counts in kinds.items():
        for status, count in counts.items():
            times = f"{count} x " if count > 1 else ""
            text = f"{times}{kind}" if status == "confirmed" else f"{times}{kind} {status}"
            lines.append(f"[{STATUS_STYLE[status]}]{text}[/]")
    return lines
