"""`convla reproduce`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convla.cli.app import INTERRUPTED, app
from convla.cli.output import RunBars, check_writable, complain, console, write_json
from convla.experiments.executors import AnySetting
from convla.experiments.outcome import Outcome
from convla.experiments.published import QUANTITIES, published_flags
from convla.experiments.rck_settings import FigureSetting, Traces
from convla.experiments.report import Report
from convla.experiments.runner import DEFAULT_TARGETS, Request, Run, reproduce, saved_settings
from convla.experiments.settings import TARGETS, Readings, Setting

__all__: list[str] = []

VERDICT_STYLE = {
    "reproduced": "green",
    "order of magnitude only": "yellow",
    "not reproduced": "red",
    "undecided": "yellow",
    "holds": "green",
    "does not hold": "red",
}


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
    kernels: Annotated[int, typer.Option(help="Random kernels of each descent of the figures.")] = 5,
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
    executor: Annotated[str, typer.Option(help="local (threads) or loky (processes).")] = "local",
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
        readings=Readings(similarity, kernel_loss, train),
        engine=engine,
        executor=executor,
        workers=workers,
        output=output,
        resume=resume,
    )
    check_writable("--json", json_file)
    try:
        with _ProgressBars("settings", len(request.settings())) as bars:
            result = reproduce(request, bars, _plot)
    except KeyboardInterrupt:
        complain(
            f"interrupted: {saved_settings(request)} of {len(request.settings())} settings are saved in {output}; "
            "the same command with --resume goes on from there"
        )
        return INTERRUPTED
    if json_file is not None:
        write_json(json_file, result.report.as_data())
    _show(result)  # last: who reads it may have gone
    return 0


def _plot(outcomes: dict[Setting, Outcome], figures: dict[FigureSetting, Traces], folder: Path) -> list[str]:
    from convla.experiments.plots import plot_run  # matplotlib takes half a second to import
    from convla.experiments.rck_plots import plot_figures

    return plot_run(outcomes, folder) + plot_figures(figures, folder)


class _ProgressBars(RunBars):
    def start(self, setting: AnySetting, repetitions: int) -> None:
        """Show a bar for a setting that begins."""
        self.begin(setting, setting.name, repetitions)


def _show(result: Run) -> None:
    screen = console()
    for table in result.report.tables:
        _show_table(screen, result.report, table)
    if result.report.controls:
        _show_controls(screen, result.report)
    for conclusion in result.report.conclusions:
        style = VERDICT_STYLE[conclusion.verdict]
        screen.print(f"[{style}]{conclusion.verdict}[/]: [bold]{conclusion.subject}.[/] {escape(conclusion.statement)}")
        screen.print(f"    {escape(conclusion.evidence)}", style="dim")
    _show_summary(screen, result)


def _show_table(screen: Console, report: Report, number: int) -> None:
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
    screen.print(table)
    if any(verdict.cell.flag for verdict in report.tables[number]):
        screen.print("  * doubtful in print; the report of --json says why", style="dim")
    for flag in published_flags(number):
        if flag["N"] is None:
            screen.print(f"  {flag['cells'][0]}: {escape(flag['note'])}", style="dim")
    screen.print()


def _show_controls(screen: Console, report: Report) -> None:
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
    screen.print(table)
    screen.print()


def _show_summary(screen: Console, result: Run) -> None:
    screen.print()
    for columns, name in (("ABC", "columns A-C"), ("D", "column D")):
        counts = {verdict: count for verdict, count in result.report.counts(columns).items() if count}
        if counts:
            parts = [f"[{VERDICT_STYLE[verdict]}]{count} {verdict}[/]" for verdict, count in counts.items()]
            screen.print(f"{name}: {', '.join(parts)}")
    (two, cells), (three, _) = result.report.within(2.0), result.report.within(3.0)
    if cells:
        screen.print(f"columns A-C: {two} of {cells} cells within 2 standard errors, {three} within 3")
    for name, count in result.report.diverged.items():
        screen.print(f"{name}: {count} diverged, dropped")
    screen.print(f"{result.seconds:.1f} s; in {result.folder}: {', '.join(result.files)}, manifest.json")
