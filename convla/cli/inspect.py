"""`convla inspect`: what the layers of a model in a file do, row by row, and what bounds the whole."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from convla.cli.app import app
from convla.cli.output import INTERRUPTED, check_plot, check_writable, complain, progress_bars, write_json, write_text
from convla.cli.rows import Screen
from convla.cli.thresholds import Threshold, parse_threshold
from convla.networks.files import MODEL_FORMATS
from convla.networks.inspection import Plan
from convla.networks.measures import MEASURES
from convla.networks.report import Inspection, LayerReport
from convla.networks.settings import LayerSettings, read_settings
from convla.typing import Padding

__all__ = ["image_sizes"]

SAVED = 2.0
"""Seconds between two savings of an unfinished report."""


@app.command("inspect")
def _inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"A model: {', '.join(MODEL_FORMATS)}.")],
    image: Annotated[
        str | None,
        typer.Option(help="For weights alone: the image that each layer is given, as 32x32, without channels."),
    ] = None,
    layers: Annotated[
        Path | None,
        typer.Option(help='A TOML file: a table for each layer or pattern such as \\["layer2.*"], keys as below.'),
    ] = None,
    padding: Annotated[
        str | None, typer.Option(help="full, same (default), valid or a number, for layers not in --layers.")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Likewise; 1 by default.")] = None,
    dilation: Annotated[int | None, typer.Option(help="Likewise; 1 by default.")] = None,
    groups: Annotated[str | None, typer.Option(help="Likewise; a number or depthwise.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Likewise; oihw as in PyTorch (default), hwio as in Keras and Flax.")
    ] = None,
    boundary: Annotated[
        str | None, typer.Option(help="Likewise; zero (default), circular, reflect or replicate.")
    ] = None,
    transposed: Annotated[bool, typer.Option("--transposed", help="Likewise: transposed convolutions.")] = False,
    measures: Annotated[
        str | None, typer.Option(help=f"What to find, by commas: {', '.join(MEASURES)}. All by default.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="A pattern of layers' names, * standing for anything.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which layers are only estimated; their rows say so.")
    ] = None,
    warn: Annotated[
        list[str] | None,
        typer.Option(help='A threshold such as "cond>1e4" or "lipschitz>100"; exit code 1 if a layer is beyond it.'),
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Print a table however narrow the terminal is.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the whole report there, layer by layer.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write the rows there.")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Also write a page there that opens without a network.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the quantities there (.png, .svg, .pdf).")] = None,
) -> int:
    """Measure every layer of a model: singular values, similarity, orthogonality; and bound the whole.

    Files are only read, never run: no pickled object is loaded. Each layer is shown as it is done, and Ctrl-C keeps
    what is there. A star marks what weights alone do not say.
    """
    files = {"--json": json_file, "--csv": csv_file, "--html": html_file, "--plot": plot}
    for option, path in files.items():
        check_writable(option, path)
    check_plot(plot)
    thresholds = [parse_threshold(text) for text in warn or ()]
    said = {
        "padding": None if padding is None else _number_or_word(padding),
        "stride": stride,
        "dilation": dilation,
        "groups": None if groups is None else _number_or_word(groups),
        "layout": layout,
        "boundary": boundary,
        "transposed": transposed or None,
    }
    given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    default = LayerSettings(**given, said=frozenset(given))
    plan = Plan(
        file,
        image=None if image is None else image_sizes(image),
        default=default,
        settings=[] if layers is None else read_settings(layers, default),
        measures=None if measures is None else measures.split(","),
        only=only,
        budget=budget,
    )
    report = _run(plan, Screen(str(file), plan.tasks, plan.columns, wide=wide), json_file)
    _write(report, json_file, csv_file, html_file)
    if not report.complete:
        kept = f"shown, and in {json_file}" if json_file else "shown"
        complain(f"interrupted: {len(report)} of {len(plan.tasks)} rows are done and {kept}")
        return INTERRUPTED
    if plot is not None:
        from convla.networks.plot import plot_inspection  # matplotlib takes half a second to import

        plot_inspection(report, plot)
    return _warned(report, thresholds)


def _run(plan: Plan, screen: Screen, json_file: Path | None) -> Inspection:
    """Measure, show each row as it is done, and keep what is done in the file."""
    done: list[LayerReport] = []
    saved = time.monotonic()
    with progress_bars(quiet=sys.stdout.isatty()) as progress:  # where the rows themselves are in sight
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


def _write(report: Inspection, json_file: Path | None, csv_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        write_json(json_file, report.as_data())
    for path, text in ((csv_file, report.to_csv), (html_file, report.to_html)):
        if path is not None:
            write_text(path, text())


def _warned(report: Inspection, thresholds: list[Threshold]) -> int:
    """Say what is beyond the thresholds, and return the exit code."""
    beyond = [sentence for threshold in thresholds for sentence in threshold.broken_by(report)]
    for sentence in beyond:
        complain(sentence)
    return 1 if beyond else 0


def _number_or_word(text: str) -> Padding:
    return int(text) if text.removeprefix("-").isdecimal() else text  # type: ignore[return-value]  # checked later


def image_sizes(text: str) -> tuple[int, ...]:
    """Return the sizes that an option says."""
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--image must be sizes such as 32x32, got {text!r}")
    return tuple(map(int, sizes))
