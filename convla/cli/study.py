"""`convla study`: run one, or draw what it found."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from convla.cli.app import app
from convla.cli.bars import RunBars
from convla.cli.output import check_writable, console, counted, show_table, write_json
from convla.experiments.csm.settings import study_file
from convla.experiments.descents.quantities import QUANTITIES
from convla.experiments.descents.study import AXES, Study, StudyResult, read_rows, read_study
from convla.experiments.folder import as_records
from convla.experiments.pool import EXECUTORS, Pool

__all__: list[str] = []


class _RunUnlessNamed(TyperGroup):
    """A group whose first argument may be a file to run instead of a command's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


study = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    help="Run a study of one's own, `convla study FILE.toml`: descents on kernels, under every combination of the "
    "file's settings. `convla study --example` prints a file, `convla study run --help` the options.",
)
app.add_typer(study, name="study")


@study.command("run")
def _run(
    file: Annotated[Path | None, typer.Argument(metavar="FILE.toml", help="What the study is.")] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a file with every key explained, which reruns CSM Table 3.")
    ] = False,
    output: Annotated[Path, typer.Option(help="The results folder.")] = Path("results-study"),
    repetitions: Annotated[int | None, typer.Option(help="In place of the file's number.")] = None,
    engine: Annotated[str, typer.Option(help="auto, reference, numba or cuda.")] = "auto",
    executor: Annotated[str, typer.Option(help=EXECUTORS)] = "local",
    workers: Annotated[int, typer.Option(help="Threads, or processes; by default one for each CPU.")] = os.cpu_count()
    or 1,
    part: Annotated[
        int | None, typer.Option(help="Repetitions of one piece of work; by default as many as take about a second.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted study in --output.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write results.parquet, too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the rows there.")] = None,
) -> int:
    """Run a study, and estimate its quantities: results.csv has a row for each setting and quantity."""
    if example:
        sys.stdout.write(study_file().read_text(encoding="utf-8"))
        return 0
    if file is None:
        raise typer.BadParameter("give a file; `convla study --example` prints one")
    check_writable("--json", json_file)
    plan = read_study(file)
    if repetitions is not None:
        plan = plan.repeated(repetitions)
    bars = RunBars("parts")
    try:
        with bars:
            result = plan.run(
                output,
                engine=engine,
                pool=Pool.of(executor, workers),
                part=part,
                resume=resume,
                parquet=parquet,
                watcher=bars,
            )
    except KeyboardInterrupt:
        return bars.interrupted(output)
    if json_file is not None:
        header = list(result.rows[0])
        write_json(json_file, as_records((header, [[row[name] for name in header] for row in result.rows])))
    _show(result, plan)  # last: who reads it may have gone
    return 0


@study.command("plot")
def _plot(
    folder: Annotated[Path, typer.Argument(help="The results folder of a study.")],
    quantity: Annotated[str, typer.Option(help=", ".join(QUANTITIES))] = "failed_pct",
    axis: Annotated[str, typer.Option(help="The setting along the horizontal axis.")] = "N",
    log: Annotated[bool, typer.Option("--log", help="The vertical axis in decades.")] = False,
    output: Annotated[Path | None, typer.Option(help="The picture; by default in the folder.")] = None,
) -> int:
    """Draw a quantity against a setting, with 95 % intervals: a line for each combination of the other settings."""
    from convla.experiments.descents.plots import plot_rows  # matplotlib takes half a second to import

    path = output or folder / f"{quantity}-{axis}.png"
    check_writable("--output", path)
    plot_rows(read_rows(folder), quantity, axis, path, log=log)
    print(path)
    return 0


def _show(result: StudyResult, plan: Study) -> None:
    screen = console()
    varying = [axis for axis in AXES if len({row[axis] for row in result.rows}) > 1]
    headings = [*varying, "quantity", "estimate", "std. error", "number", "engine"]
    rows = [
        [
            *(escape(str(row[axis])) for axis in varying),
            row["quantity"],
            f"{row['estimate']:.5g}",
            "" if math.isnan(row["stderr"]) else f"{row['stderr']:.2g}",
            str(row["number"]),
            row["engine"],
        ]
        for row in result.rows
    ]
    show_table(screen, headings, rows, words=("quantity", "engine"))
    screen.print()
    beyond = ", ".join(dict.fromkeys(filter(None, (setting.beyond_compiled for setting in plan.settings))))
    for name, count in result.engines.items():
        why = f", which the compiled one does not run: {beyond}" if name == "reference" and beyond else ""
        screen.print(f"engine {name}: {counted(count, 'setting')}{escape(why)}")
    screen.print(f"{result.seconds:.1f} s; in {result.folder}: results.csv, manifest.json")
