"""`convla verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from convla._validate import check_integer
from convla.cli.app import app
from convla.cli.output import check_writable, console, progress_bars, write_json
from convla.errors import ConvlaError

if TYPE_CHECKING:
    from proofs_checks.runner import Outcome, Report

__all__: list[str] = []

STATUS_STYLE = {"confirmed": "green", "contradicted": "red", "skipped": "yellow"}


@app.command("verify")
def _verify(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Statements such as CSM-6, or sources such as RCK; by default all."),
    ] = None,
    max_examples: Annotated[int, typer.Option(help="Random inputs that each property draws.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
) -> int:
    """Check every statement of the ledger: proofs at a size, properties, counterexamples, measurements.

    The exit code is 1 if any verdict is contradicted by its evidence.
    """
    check_integer("--max-examples", max_examples, minimum=1)
    check_writable("--json", json_file)
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise ConvlaError("verify draws its examples with Hypothesis: pip install 'convla[verify]'") from None
    # Here, not at the top: the other commands need neither Hypothesis nor the ledger.
    from proofs_checks.ledger import select
    from proofs_checks.runner import verify

    statements = select(ids or [])
    with progress_bars() as progress:
        bar = progress.add_task("", total=sum(len(statement.evidence) for statement in statements))

        def show(outcome: Outcome) -> None:
            progress.update(bar, advance=1, description=f"{outcome.statement.id:12}")

        report = verify(statements, examples=max_examples, progress=show)
    if json_file is not None:
        write_json(json_file, report.as_data())
    _show(report)
    return 1 if report.contradicted else 0


def _show(report: Report) -> None:
    screen = console()
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
    screen.print(table)
    for outcome in report.outcomes:
        if outcome.status != "confirmed":
            style = STATUS_STYLE[outcome.status]
            where = f"{outcome.statement.id} {outcome.evidence.name}"
            screen.print(f"[{style}]{outcome.status}[/] {where}: {escape(outcome.finding)}")
    counts = {status: sum(outcome.status == status for outcome in report.outcomes) for status in STATUS_STYLE}
    seconds = sum(outcome.seconds for outcome in report.outcomes)
    shown = ", ".join(f"[{STATUS_STYLE[status]}]{count} {status}[/]" for status, count in counts.items() if count)
    screen.print(f"\n{len(report.statements())} statements; evidence: {shown}; {seconds:.1f} s")


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
