"""`convla inspect`: what the layers of models in files do, row by row, and what bounds the whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from convla.cli.app import app
from convla.cli.inspections import Targets, inspect_files
from convla.cli.thresholds import parse_threshold
from convla.experiments.pool import EXECUTORS, Pool
from convla.geometry import BOUNDARIES
from convla.networks.data import read_data
from convla.networks.files import MODEL_FORMATS
from convla.networks.measures import MEASURES
from convla.networks.settings import LayerSettings, read_settings
from convla.typing import Padding

__all__ = ["image_sizes"]


@app.command("inspect")
def _inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=f"Models: {', '.join(MODEL_FORMATS)}.")],
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
    boundary: Annotated[str | None, typer.Option(help=f"Likewise; {', '.join(BOUNDARIES)}; zero by default.")] = None,
    transposed: Annotated[bool, typer.Option("--transposed", help="Likewise: transposed convolutions.")] = False,
    measures: Annotated[
        str | None, typer.Option(help=f"What to find, by commas: {', '.join(MEASURES)}. All by default.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="A pattern of layers' names, * standing for anything.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which layers are only estimated; their rows say so.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Inputs in a .npy or .npz, with the batch, whose Jacobian bounds .onnx and .pt2 from below."),
    ] = None,
    warn: Annotated[
        list[str] | None,
        typer.Option(help='A threshold such as "cond>1e4" or "lipschitz>100"; exit code 1 if a layer is beyond it.'),
    ] = None,
    executor: Annotated[str, typer.Option(help=f"For several files: {EXECUTORS}.")] = "local",
    workers: Annotated[int, typer.Option(help="Threads or processes; by default one for each CPU.")] = os.cpu_count()
    or 1,
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
    """Measure every layer of models: singular values, similarity, orthogonality; and bound the whole.

    Files are only read, never run: no pickled object is loaded. Each layer is shown as it is done, and Ctrl-C keeps
    what is there. A star marks what weights alone do not say. With several files --json, --csv, --html and --plot name
    folders, and a file that cannot be read does not keep the others.
    """
    targets = Targets(json=json_file, csv=csv_file, html=html_file, plot=plot, many=len(files) > 1)
    targets.check(files)
    thresholds = [parse_threshold(text) for text in warn or ()]
    pool = Pool.of(executor, workers)
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
    options: dict[str, Any] = {
        "image": None if image is None else image_sizes(image),
        "default": default,
        "settings": [] if layers is None else read_settings(layers, default),
        "measures": None if measures is None else measures.split(","),
        "only": only,
        "budget": budget,
        "data": None if data is None else read_data(data),
    }
    return inspect_files(files, options, pool, targets, thresholds, wide=wide)


def _number_or_word(text: str) -> Padding:
    return int(text) if text.removeprefix("-").isdecimal() else text  # type: ignore[return-value]  # checked later


def image_sizes(text: str) -> tuple[int, ...]:
    """Return the sizes that an option says."""
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--image must be sizes such as 32x32, got {text!r}")
    return tuple(map(int, sizes))
