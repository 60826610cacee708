"""`convla verify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from convla._validate import check_integer
from convla.cli.app import app
from convla.cli.output import check_writable, console, counted, progress_bars, show_table, write_json, write_text
from convla.errors import ConvlaError, install_line
from convla.experiments.pool import EXECUTORS, Pool

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
    claims: Annotated[
        str | None,
        typer.Option(metavar="FILE|MODULE", help="Your own statements in place of the ledger: .toml, .py or module."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Also write it there as a page.")] = None,
    badge_file: Annotated[
        Path | None, typer.Option("--badge", help="Also write a badge there: .svg, or .json for a badge service.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier --json report: exit with 1 if anything it confirmed is lost.")
    ] = None,
    executor: Annotated[str, typer.Option(help=EXECUTORS)] = "local",
    workers: Annotated[int, typer.Option(help="Processes; more than one needs the extra parallel.")] = 1,
    graph: Annotated[
        bool, typer.Option("--graph", help="Run nothing: print which statement rests on which, as DOT.")
    ] = False,
) -> int:
    """Check every statement of the ledger: proofs at a size, properties, counterexamples, measurements.

    With an ID the claim, its correction and what each check found are printed too. The exit code is 1 if any verdict is
    contradicted by its evidence.
    """
    check_integer("--max-examples", max_examples, minimum=1)
    pool = Pool.of_processes(executor, workers)
    check_writable("--json", json_file)
    check_writable("--markdown", markdown_file)
    check_writable("--badge", badge_file)
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise ConvlaError(f"verify draws its examples with Hypothesis: {install_line('verify')}") from None
    # Here, not at the top: the other commands need neither Hypothesis nor the ledger.
    from proofs_checks.badge import BADGE_SUFFIXES, badge
    from proofs_checks.claims import load_claims
    from proofs_checks.graph import dot
    from proofs_checks.ledger import select
    from proofs_checks.runner import changes, markdown, verify

    if badge_file is not None and badge_file.suffix not in BADGE_SUFFIXES:
        raise ValueError(f"--badge must end in {' or '.join(BADGE_SUFFIXES)}, got {badge_file.name!r}")
    statements = select(ids or [], None if claims is None else load_claims(claims))
    if graph:
        print(dot(statements))
        return 0
    earlier = None if baseline is None else _read_report(baseline)
    with progress_bars() as progress:
        bar = progress.add_task("", total=sum(len(statement.evidence) for statement in statements))

        def show(outcome: Outcome) -> None:
            progress.update(bar, advance=1, description=f"{outcome.statement.id:12}")

        spread = None if pool.is_local else pool.map
        report = verify(statements, examples=max_examples, progress=show, spread=spread, claims=claims)
    if json_file is not None:
        write_json(json_file, report.as_data())
    if markdown_file is not None:
        write_text(markdown_file, markdown(report))
    if badge_file is not None:
        write_text(badge_file, badge(report, badge_file))
    _show(report)
    if ids:
        _tell(report)
    lost = [] if earlier is None else changes(report, earlier)
    for line in lost:
        console().print(f"[red]lost[/] {escape(line)}")
    return 1 if report.contradicted or lost else 0


def _read_report(path: Path) -> dict[str, Any]:
    """Return an earlier report.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or is no report.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--baseline {path} is no report of verify: {error}") from error
    if not isinstance(data, dict) or "statements" not in data:
        raise ValueError(f"--baseline {path} is no report of verify")
    return data


def _tell(report: Report) -> None:
    """Print what the statements say and what their evidence found, each whole."""
    screen = console()
    for outcomes in report.statements().values():
        statement = outcomes[0].statement
        screen.print(f"\n[bold]{escape(statement.id)}[/]: {escape(statement.title)}; {escape(statement.number)}")
        for label in ("claim", "verdict", "correction", "counterexample", "note"):
            text = statement.verdict.value if label == "verdict" else getattr(statement, label)
            if text:
                screen.print(f"  {label}: {escape(text)}", soft_wrap=True)
        for outcome in outcomes:
            where = f"{outcome.evidence.name} ({outcome.evidence.kind.value}: {outcome.evidence.covers})"
            style = STATUS_STYLE[outcome.status]
            screen.print(f"  [{style}]{outcome.status}[/] {escape(where)}", soft_wrap=True)
            screen.print(f"    {escape(outcome.finding)}", soft_wrap=True)


def _show(report: Report) -> None:
    screen = console()
    rows = []
    for outcomes in report.statements().values():
        statement = outcomes[0].statement
        tally = ", ".join(_tally(outcomes))
        rows.append([statement.id, statement.number, statement.verdict.value, tally, escape(statement.title)])
    headings = ("id", "where", "verdict", "evidence", "statement")
    show_table(screen, headings, rows, words=("id", "verdict"), prose=("where", "evidence", "statement"))
    for outcome in report.outcomes:
        if outcome.status != "confirmed":
            style = STATUS_STYLE[outcome.status]
            where = f"{outcome.statement.id} {outcome.evidence.name}"
            screen.print(f"[{style}]{outcome.status}[/] {where}: {escape(outcome.finding)}")
    counts = {status: sum(outcome.status == status for outcome in report.outcomes) for status in STATUS_STYLE}
    seconds = sum(outcome.seconds for outcome in report.outcomes)
    shown = ", ".join(f"[{STATUS_STYLE[status]}]{count} {status}[/]" for status, count in counts.items() if count)
    screen.print(f"\n{counted(len(report.statements()), 'statement')}; evidence: {shown}; {seconds:.1f} s")


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
