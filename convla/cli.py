"""The command line: parse, call the library, show what it returns; every error is one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from convla import __version__
from convla.errors import ConvlaError
from convla.experiments.outcome import Outcome
from convla.experiments.published import QUANTITIES, published_flags
from convla.experiments.report import Report
from convla.experiments.runner import DEFAULT_TARGETS, Request, Run, reproduce, saved_settings
from convla.experiments.settings import TARGETS, Readings, Setting

__all__ = ["app", "run"]

app = typer.Typer(
    help="The numerical linear algebra of convolutional layers, checked against the published theory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
VERDICT_STYLE = {
    "reproduced": "green",
    "order of magnitude only": "yellow",
    "not reproduced": "red",
    "undecided": "yellow",
    "holds": "green",
    "does not hold": "red",
}


def run(arguments: Sequence[str]) -> int:
    """Run the command line on `arguments` and return the exit code: 0, 1, 2 for a wrong use, 130 when interrupted."""
    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments), prog_name="convla", standalone_mode=False)
    except typer.Abort:
        _complain("interrupted")
        return INTERRUPTED
    except (ConvlaError, ValueError, TypeError, OSError) as error:
        _complain(str(error))
        return 2
    except _USAGE_ERROR as error:
        if error.format_message():  # none after the help that a bare `convla` prints
            _complain(error.format_message())
        return 2
    return code if isinstance(code, int) else 0


# The base of the parser's own errors; typer carries its parser, or takes it from click, depending on its version.
_USAGE_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _complain(message: str) -> None:
    print(f"convla: {' '.join(message.split())}", file=sys.stderr)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"convla {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("reproduce")
def _reproduce(
    targets: Annotated[
        list[str] | None, typer.Argument(help=f"What to re-run: {', '.join(TARGETS)}; by default tables and controls.")
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Repetitions of every setting.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
    similarity: Annotated[
        str, typer.Option(help="Reading of 'feature map similarity': squared, absolute, signed or cosine.")
    ] = "squared",
    kernel_loss: Annotated[
        str, typer.Option(help="Reading of the loss of Tables 1-2: inner (Eq. 5) or cosine, squared.")
    ] = "inner",
    train: Annotated[str, typer.Option(help="Which kernels are trained: both or first.")] = "both",
    engine: Annotated[str, typer.Option(help="auto, reference, numba or cuda; all give the same numbers.")] = "auto",
    executor: Annotated[str, typer.Option(help="local (threads) or loky (processes).")] = "local",
    workers: Annotated[int, typer.Option(help="Threads or processes; by default one for each CPU.")] = os.cpu_count()
    or 1,
    output: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --output.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
) -> int:
    """Re-run the toy experiments of CSM Tables 1-6 and print our values beside the published ones.

    For every cell: ours with its standard error, the printed value, the z score of their difference, and a verdict.
    CSV files, plots and a manifest land in the results folder.
    """
    request = Request(
        targets=tuple(targets or DEFAULT_TARGETS),
        repetitions=repetitions,
        seed=seed,
        readings=Readings(similarity, kernel_loss, train),
        engine=engine,
        executor=executor,
        workers=workers,
        output=output,
        resume=resume,
    )
    if json_file is not None:
        try:
            json_file.open("a", encoding="utf-8").close()  # better known before the work than after
        except OSError as error:
            raise OSError(f"--json {json_file} cannot be written: {error.strerror}") from error
    try:
        with _ProgressBars(len(request.settings())) as bars:
            result = reproduce(request, bars, _plot)
    except KeyboardInterrupt:
        _complain(
            f"interrupted: {saved_settings(request)} of {len(request.settings())} settings are saved in {output}; "
            "the same command with --resume goes on from there"
        )
        return INTERRUPTED
    _show(result)
    if json_file is not None:
        json_file.write_text(json.dumps(result.report.as_data(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _plot(outcomes: dict[Setting, Outcome], folder: Path) -> list[str]:
    from convla.experiments.plots import plot_run  # matplotlib takes half a second to import

    return plot_run(outcomes, folder)


class _ProgressBars:
    """A bar for the whole and one for each running setting, on standard error; nothing where that is no terminal."""

    def __init__(self, settings: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._whole = self._progress.add_task("settings", total=settings)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> _ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, setting: Setting, repetitions: int) -> None:
        """Show a bar for a setting that begins."""
        self._bars[setting.name] = self._progress.add_task(setting.name, total=repetitions)

    def advance(self, setting: Setting, repetitions: int) -> None:
        """Move a setting's bar."""
        self._progress.advance(self._bars[setting.name], repetitions)

    def finish(self, setting: Setting) -> None:
        """Take a setting's bar away, and move that of the whole."""
        self._progress.remove_task(self._bars.pop(setting.name))
        self._progress.advance(self._whole)


def _show(result: Run) -> None:
    # A pipe has no width of its own: wide enough that no cell is folded.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for table in result.report.tables:
        _show_table(console, result.report, table)
    if result.report.controls:
        _show_controls(console, result.report)
    for conclusion in result.report.conclusions:
        style = VERDICT_STYLE[conclusion.verdict]
        console.print(
            f"[{style}]{conclusion.verdict}[/]: [bold]{conclusion.subject}.[/] {escape(conclusion.statement)}"
        )
        console.print(f"    {escape(conclusion.evidence)}", style="dim")
    _show_summary(console, result)


def _show_table(console: Console, report: Report, number: int) -> None:
    table = Table(title=f"CSM Table {number}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("N", "optimizer", "column", "ours", "std. error", "printed", "z", "verdict"):
        table.add_column(heading, justify="left" if heading in ("optimizer", "column", "verdict") else "right")
    for verdict in report.tables[number]:
        cell, ours = verdict.cell, verdict.ours
        table.add_row(
            str(cell.n),
            cell.optimizer,
            QUANTITIES[cell.quantity],
            f"{ours.value:.5g}",
            "" if ours.stderr != ours.stderr else f"{ours.stderr:.2g}",
            f"{cell.value:g}" + ("*" if cell.flag else ""),
            "" if verdict.z != verdict.z else f"{verdict.z:+.1f}",
            f"[{VERDICT_STYLE[verdict.verdict]}]{verdict.verdict}[/]",
        )
    console.print(table)
    if any(verdict.cell.flag for verdict in report.tables[number]):
        console.print("  * doubtful in print; the report of --json says why", style="dim")
    for flag in published_flags(number):
        if flag["N"] is None:
            console.print(f"  {flag['cells'][0]}: {escape(flag['note'])}", style="dim")
    console.print()


def _show_controls(console: Console, report: Report) -> None:
    table = Table(
        title="Controls: the same draws, other things minimised",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    headings = ("tables", "N", "optimizer", "minimised", "A", "B %", "C %", "increases", "diverged")
    for heading in (*headings, "norm before", "shorter keeps", "longer keeps", "|cos| before", "after", "std. error"):
        table.add_column(heading, justify="left" if heading in ("tables", "optimizer", "minimised") else "right")
    for row in report.controls:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)
    console.print()


def _show_summary(console: Console, result: Run) -> None:
    console.print()
    for columns, name in (("ABC", "columns A-C"), ("D", "column D")):
        counts = {verdict: count for verdict, count in result.report.counts(columns).items() if count}
        if counts:
            parts = [f"[{VERDICT_STYLE[verdict]}]{count} {verdict}[/]" for verdict, count in counts.items()]
            console.print(f"{name}: {', '.join(parts)}")
    (two, cells), (three, _) = result.report.within(2.0), result.report.within(3.0)
    if cells:
        console.print(f"columns A-C: {two} of {cells} cells within 2 standard errors, {three} within 3")
    for name, count in result.report.diverged.items():
        console.print(f"{name}: {count} diverged, dropped")
    console.print(f"{result.seconds:.1f} s; in {result.folder}: {', '.join(result.files)}, manifest.json")
