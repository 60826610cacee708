"""`convla train`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from convla.cli.app import app
from convla.cli.bars import RunBars
from convla.cli.output import check_writable, console, show_table, write_json
from convla.experiments.pool import EXECUTORS
from convla.experiments.training.datasets import DATASETS
from convla.experiments.training.execution import Request, Trained, train_experiments
from convla.experiments.training.report import Row
from convla.experiments.training.schema import read_experiment, shipped_experiments
from convla.experiments.training.settings import MEASURES

__all__: list[str] = []

VERDICT_STYLE = {"better": "green", "worse": "red", "no difference seen": "yellow", "diverges": "red"}


@app.command("train")
def _train(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT", help="Names of the list, or TOML files; none shows the list."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show the experiments and exit.")] = False,
    dataset: Annotated[
        str, typer.Option(help=f"{', '.join(DATASETS)}, or source for the data, and the full size, of the source.")
    ] = "digits",
    data: Annotated[Path, typer.Option(help="The folder of the data sets, in their original files.")] = Path("data"),
    seeds: Annotated[int | None, typer.Option(help="Runs of every arm, in place of the experiment's number.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every run, likewise.")] = None,
    seed: Annotated[int, typer.Option(help="The first of the seeds.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of each process; their number changes the rounding.")] = 1,
    executor: Annotated[str, typer.Option(help=EXECUTORS)] = "local",
    workers: Annotated[int, typer.Option(help="Processes; more than one needs the extra parallel.")] = 1,
    output: Annotated[Path, typer.Option(help="The results folder.")] = Path("results-training"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted session in --output.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Keep every run's weights, for convla inspect.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
) -> int:
    """Train networks with and without the sources' methods, from the same seeds, and compare them in pairs.

    By default at a small size, on the handwritten digits that come with scikit-learn. CSV files, a plot for each
    experiment and a manifest land in the results folder.
    """
    if show_list or not experiments:
        _show_experiments()
        return 0
    check_writable("--json", json_file)
    request = Request(
        experiments=tuple(read_experiment(name) for name in dict.fromkeys(experiments)),
        dataset=dataset,
        data=data,
        seeds=seeds,
        epochs=epochs,
        seed=seed,
        device=device,
        threads=threads,
        executor=executor,
        workers=workers,
        output=output,
        resume=resume,
        weights=weights,
    )
    bars = RunBars("runs")
    try:
        with bars:
            trained = train_experiments(request, bars, draw=True)
    except KeyboardInterrupt:
        return bars.interrupted(output)
    if json_file is not None:
        write_json(json_file, trained.report.as_data())
    _show(trained)  # last: who reads it may have gone
    return 0


def _show_experiments() -> None:
    rows = []
    for name in shipped_experiments():
        experiment = read_experiment(name)
        sizes = []
        for plan in (experiment.digits, experiment.full):
            runs = len(list(plan.blocks())) * len(experiment.arms) * plan.seeds
            sizes.append(f"{runs} runs of {plan.settings['epochs']} epochs")
        rows.append([name, escape(experiment.title), *sizes])
    headings = ("experiment", "what it compares", "on the digits", "as in the source")
    show_table(console(), headings, rows, words=headings[:1], prose=headings[1:])


def _show(trained: Trained) -> None:
    screen = console()
    report = trained.report
    for experiment, measure in dict.fromkeys((row.experiment, row.measure) for row in report.rows):
        rows = [row for row in report.rows if (row.experiment, row.measure) == (experiment, measure)]
        _show_rows(screen, f"{experiment}: {MEASURES[measure]}", rows)
    edge = sum(choice.at_the_edge for choice in report.choices)
    if report.choices:
        screen.print(
            f"learning rates: chosen on held-out training images, by the same search for every arm; {edge} of "
            f"{len(report.choices)} at the edge of the grid (selection.csv)"
        )
    screen.print("differences: mean over the seeds with its 95 % t interval, in pairs; the verdict is by the interval")
    screen.print("that holds for all comparisons of a table at once")
    screen.print(f"{trained.seconds:.1f} s; in {trained.folder}: {', '.join(trained.files)}, manifest.json")


def _show_rows(screen: Console, title: str, rows: list[Row]) -> None:
    grid, printed = any(row.block for row in rows), any(not math.isnan(row.printed) for row in rows)
    beside = ["printed"] if printed else []
    headings = [*(["at"] if grid else []), "arm", "rate", "mean", "std. error", "runs", *beside]
    headings += ["difference", "from", "to", "verdict"]
    lines = []
    for row in rows:
        gap = row.difference
        runs = f"{row.seeds}" + (f", {row.diverged} diverged" if row.diverged else "")
        numbers = [_signed(value) for value in (gap.mean, gap.low, gap.high)] if gap else ["", "", ""]
        lines.append(
            [
                *([row.block] if grid else []),
                escape(row.arm),
                *(f"{row.learning_rate:g}", _number(row.mean), _number(row.stderr), runs),
                *([_number(row.printed)] if printed else []),
                *numbers,
                f"[{VERDICT_STYLE.get(row.verdict, 'default')}]{row.verdict}[/]",
            ]
        )
    show_table(screen, headings, lines, words=("at", "arm", "verdict"), title=escape(title))
    screen.print()


def _signed(value: float) -> str:
    # What is left of the rounding of equal accuracies is no difference.
    return "" if math.isnan(value) else f"{0.0 if abs(value) < 1e-9 else value:+.4g}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"
