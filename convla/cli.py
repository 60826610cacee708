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
from convla.experiments.executors import AnySetting
from convla.experiments.outcome import Outcome
from convla.experiments.published import QUANTITIES, published_flags
from convla.experiments.rck_settings import FigureSetting, Traces
from convla.experiments.report import Report
from convla.experiments.runner import DEFAULT_TARGETS, Request, Run, reproduce, saved_settings
from convla.experiments.settings import TARGETS, Readings, Setting
from convla.inspection import Inspection, LayerSettings, inspect_network, read_settings
from convla.model_files import initialize_file
from convla.network import Initialization
from convla.typing import Padding
from convla.verification import verify_ledger
from convla.weights import WEIGHT_FORMATS, read_weights

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
    kernels: Annotated[int, typer.Option(help="Random kernels of each descent of the figures.")] = 5,
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
    _check_writable("--json", json_file)
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
        _write_json(json_file, result.report.as_data())
    return 0


@app.command("verify")
def _verify(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Statements such as CSM-6, or sources such as RCK; by default all."),
    ] = None,
    max_examples: Annotated[int, typer.Option(help="Random inputs that each property draws.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
) -> int:
    """Check every statement of the ledger: proofs at a size, properties, counterexamples, measurements.

    The exit code is 1 if any verdict is contradicted by its evidence.
    """
    return verify_ledger(ids or [], max_examples=max_examples, json_file=json_file)


def _plot(outcomes: dict[Setting, Outcome], figures: dict[FigureSetting, Traces], folder: Path) -> list[str]:
    from convla.experiments.plots import plot_run  # matplotlib takes half a second to import
    from convla.experiments.rck_plots import plot_figures

    return plot_run(outcomes, folder) + plot_figures(figures, folder)


@app.command("initialize")
def _initialize(
    source: Annotated[Path, typer.Argument(metavar="IN", help=f"A file of weights: {', '.join(WEIGHT_FORMATS)}.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where all its arrays go, in any of these formats.")],
    iterations: Annotated[int, typer.Option(help="Steps of Adam, with betas (0.5, 0.999).")] = 200,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 0.001,
    keep_norms: Annotated[
        bool, typer.Option("--keep-norms", help="Minimise the scale-invariant form and keep every filter's norm.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="An .npz file that keeps the state; if it is there, go on from it.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two savings of --state.")] = 50,
) -> int:
    """Minimise the convolutional similarity of a model's kernels before training (CSM Algorithm 1)."""
    _check_writable("OUT", target)
    _check_writable("--state", state)
    with _progress() as progress:
        bar = progress.add_task("similarity", total=iterations)

        def show(now: Initialization) -> None:
            progress.update(bar, completed=now.iteration, description=f"similarity {now.losses[-1]:.6g}")

        try:
            result = initialize_file(
                source,
                target,
                iterations=iterations,
                learning_rate=learning_rate,
                keep_norms=keep_norms,
                state=state,
                save_every=save_every,
                progress=show,
            )
        except KeyboardInterrupt:
            progress.stop()
            rest = f"the same command goes on from {state}" if state else "with --state it could go on from there"
            _complain(f"interrupted: {target} is not written; {rest}")
            return INTERRUPTED
    losses = f"{result.losses[0]:.6g} -> {result.losses[-1]:.6g}" if result.losses else "not computed"
    print(f"{len(result.kernels)} layers, {result.iteration} steps, similarity {losses}; in {target}")
    return 0


@app.command("inspect")
def _inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"A file of weights: {', '.join(WEIGHT_FORMATS)}.")],
    image: Annotated[str, typer.Option(help="The image that each layer is given, such as 32x32.")],
    layers: Annotated[
        Path | None,
        typer.Option(help='A TOML file: a table for each layer or pattern such as \\["layer2.*"], keys as below.'),
    ] = None,
    padding: Annotated[str, typer.Option(help="full, same, valid or a number, for layers not in --layers.")] = "same",
    stride: Annotated[int, typer.Option(help="Likewise.")] = 1,
    dilation: Annotated[int, typer.Option(help="Likewise.")] = 1,
    groups: Annotated[int, typer.Option(help="Likewise.")] = 1,
    spectra: Annotated[
        bool, typer.Option("--spectra/--no-spectra", help="Find singular values too; large layers take seconds.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the quantities there (.png, .svg, .pdf).")] = None,
) -> int:
    """Measure every convolution kernel of a model: singular values, similarity, orthogonality, and the time it took.

    Files are only read, never run: no pickled object is loaded.
    """
    _check_writable("--json", json_file)
    _check_writable("--plot", plot)
    default = LayerSettings(padding=_padding(padding), stride=stride, dilation=dilation, groups=groups)
    settings = [] if layers is None else read_settings(layers, default)
    sizes = _image_sizes(image)
    arrays = read_weights(file)
    with _progress() as progress:
        bar = progress.add_task("layers", total=None)
        report = inspect_network(
            arrays,
            sizes,
            default=default,
            settings=settings,
            spectra=spectra,
            progress=lambda _: progress.advance(bar),
        )
    _show_inspection(report, file)
    if json_file is not None:
        _write_json(json_file, report.as_data())
    if plot is not None:
        from convla.inspection_plot import plot_inspection  # matplotlib takes half a second to import

        plot_inspection(report, plot)
    return 0


def _padding(text: str) -> Padding:
    return int(text) if text.isdecimal() else text  # type: ignore[return-value]  # the geometry checks the word


def _image_sizes(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() for size in sizes):
        raise ValueError(f"--image must be sizes such as 32x32, got {text!r}")
    return tuple(map(int, sizes))


def _check_writable(option: str, path: Path | None) -> None:
    """Raise, before the work and not after it, if a file cannot be written."""
    if path is None:
        return
    try:
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written: {error.strerror}") from error


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _show_inspection(report: Inspection, file: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(title=escape(str(file)), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("kernel")
    for heading in (*(column.heading for column in report.columns), "ms"):
        table.add_column(heading, justify="right")
    for layer in report.layers:
        values = [layer.quantities[column.name] for column in report.columns]
        cells = ["-" if value is None else f"{value:.4g}" for value in values]
        table.add_row(escape(layer.name), "x".join(map(str, layer.shape)), *cells, f"{1e3 * layer.seconds:.1f}")
    if report.layers:
        console.print(table)
    else:
        console.print(f"{escape(str(file))}: no convolution kernel")
    for layer in report.layers:
        for note in layer.notes:
            console.print(f"  {escape(layer.name)}: {escape(note)}", style="dim")
    for name, reason in report.others.items():
        console.print(f"  not a kernel: {escape(name)}: {escape(reason)}", style="dim")


def _progress() -> Progress:
    """Return progress bars on standard error that show nothing where that is no terminal, and leave nothing."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


class _ProgressBars:
    """A bar for the whole and one for each running setting."""

    def __init__(self, settings: int) -> None:
        self._progress = _progress()
        self._whole = self._progress.add_task("settings", total=settings)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> _ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, setting: AnySetting, repetitions: int) -> None:
        """Show a bar for a setting that begins."""
        self._bars[setting.name] = self._progress.add_task(setting.name, total=repetitions)

    def advance(self, setting: AnySetting, repetitions: int) -> None:
        """Move a setting's bar."""
        self._progress.advance(self._bars[setting.name], repetitions)

    def finish(self, setting: AnySetting) -> None:
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
