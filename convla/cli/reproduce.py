"""`convla reproduce`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from convla.cli.app import app
from convla.cli.bars import RunBars
from convla.cli.output import check_writable, console, show_table, write_json
from convla.experiments.csm.settings import Readings
from convla.experiments.pool import EXECUTORS
from convla.experiments.reproduction import DEFAULT_TARGETS, TARGETS, Request, Run, reproduce
from convla.experiments.source import Sheet

__all__: list[str] = []

VERDICT_STYLE = {
    "reproduced": "green",
    "order of magnitude only": "yellow",
    "not reproduced": "red",
    "undecided": "yellow",
    "holds": "green",
    "does not hold": "red",
}
# The longer ones first: "not reproduced" has another one in it.
VERDICT = re.compile("|".join(sorted(VERDICT_STYLE, key=len, reverse=True)))


def _folder(text: str | Path) -> Path:
    if not str(text):
        raise typer.BadParameter("a folder needs a name; the current one is '.'")
    return Path(text)


@app.command("reproduce")
def _reproduce(
    targets: Annotated[
        list[str] | None, typer.Argument(help=f"What to re-run: {', '.join(TARGETS)}; by default tables and controls.")
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Repetitions of every setting.")] = 1000,
    kernels: Annotated[int, typer.Option(help="Random kernels of each descent of the figures.")] = 12,
    rounds: Annotated[
        int, typer.Option(help="Rounds in which more is run of what is undecided, each twice the one before.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
    similarity: Annotated[
        str, typer.Option(help="Reading of 'feature map similarity': squared, absolute, signed or cosine.")
    ] = "squared",
    kernel_loss: Annotated[
        str, typer.Option(help="Reading of the loss of Tables 1-2: inner (Eq. 5) or cosine, squared.")
    ] = "inner",
    train: Annotated[str, typer.Option(help="Which kernels are trained: both or first.")] = "both",
    engine: Annotated[
        str, typer.Option(help="auto, reference, numba (all to the same bits) or cuda (to rounding).")
    ] = "auto",
    executor: Annotated[str, typer.Option(help=EXECUTORS)] = "local",
    workers: Annotated[int, typer.Option(help="Threads or processes; by default one for each CPU.")] = os.cpu_count()
    or 1,
    output: Annotated[Path, typer.Option(help="The results folder.", parser=_folder, metavar="PATH")] = Path("results"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --output.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
) -> int:
    """Re-run the toy experiments of CSM Tables 1-6, or RCK Figures 3.1-3.2, and compare with what was published.

    For every cell: ours with its standard error, the printed value, the z score of their difference, and a verdict.
    CSV files, plots and a manifest land in the results folder.
    """
    request = Request(
        targets=tuple(targets or DEFAULT_TARGETS),
        repetitions=repetitions,
        seed=seed,
        kernels=kernels,
        rounds=rounds,
        readings=Readings(similarity, kernel_loss, train),
        engine=engine,
        executor=executor,
        workers=workers,
        output=output,
        resume=resume,
    )
    check_writable("--json", json_file)
    bars = RunBars("parts")
    try:
        with bars:
            result = reproduce(request, bars, draw=True)
    except KeyboardInterrupt:
        return bars.interrupted(output)
    if json_file is not None:
        write_json(json_file, result.as_data())
    _show(result)  # last: who reads it may have gone
    return 0


def _show(result: Run) -> None:
    screen = console()
    for report in result.reports:
        for sheet in report.sheets():
            _show_sheet(screen, sheet)
    for conclusion in result.conclusions:
        statement = f"[bold]{conclusion.subject}.[/] {escape(conclusion.statement)}"
        screen.print(f"{_styled(conclusion.verdict)}: {statement}")
        screen.print(f"    {escape(conclusion.evidence)}", style="dim")
    screen.print()
    for report in result.reports:
        for line in report.summary():
            screen.print(_styled(line))
    screen.print(f"{result.seconds:.1f} s; in {result.folder}: {', '.join(result.files)}, manifest.json")


def _show_sheet(screen: Console, sheet: Sheet) -> None:
    rows = [[*map(_styled, row)] for row in sheet.rows]
    show_table(screen, sheet.headings, rows, words=sheet.words, title=sheet.title)
    for note in sheet.notes:
        screen.print(f"  {escape(note)}", style="dim")
    screen.print()


def _styled(text: str) -> str:
    """Return a text, its verdicts in their colours."""
    return VERDICT.sub(lambda found: f"[{VERDICT_STYLE[found[0]]}]{found[0]}[/]", escape(text))
