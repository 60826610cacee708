"""`convla inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from convla.cli.app import app
from convla.cli.output import check_writable, console, progress_bars, write_json
from convla.models.inspection import Inspection, LayerSettings, inspect_network, read_settings
from convla.models.kernels import split_kernels
from convla.models.weights import WEIGHT_FORMATS, printable, read_weights
from convla.typing import Padding

__all__: list[str] = []

PLOT_FORMATS = (".png", ".svg", ".pdf")


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
    check_writable("--json", json_file)
    check_writable("--plot", plot)
    if plot is not None and plot.suffix not in PLOT_FORMATS:
        raise ValueError(f"--plot must end in one of {', '.join(PLOT_FORMATS)}, got {str(plot)!r}")
    default = LayerSettings(padding=_padding(padding), stride=stride, dilation=dilation, groups=groups)
    settings = [] if layers is None else read_settings(layers, default)
    sizes = _image_sizes(image)
    arrays = read_weights(file)
    with progress_bars() as progress:
        bar = progress.add_task("layers", total=len(split_kernels(arrays).kernels))
        report = inspect_network(
            arrays,
            sizes,
            default=default,
            settings=settings,
            spectra=spectra,
            progress=lambda _: progress.advance(bar),
        )
    if json_file is not None:
        write_json(json_file, report.as_data())
    if plot is not None:
        from convla.models.plot import plot_inspection  # matplotlib takes half a second to import

        plot_inspection(report, plot)
    _show_inspection(report, file)  # last: who reads it may have gone
    return 0


def _padding(text: str) -> Padding:
    return int(text) if text.removeprefix("-").isdecimal() else text  # type: ignore[return-value]  # the geometry checks the word


def _image_sizes(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--image must be sizes such as 32x32, got {text!r}")
    return tuple(map(int, sizes))


def _plain(text: object) -> str:
    return escape(printable(str(text)))


def _show_inspection(report: Inspection, file: Path) -> None:
    screen = console()
    table = Table(title=_plain(file), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")  # the ends of names are what differs
    table.add_column("kernel")
    for heading in (*(column.heading for column in report.columns), "ms"):
        table.add_column(heading, justify="right")
    for layer in report.layers:
        values = [layer.quantities[column.name] for column in report.columns]
        cells = ["-" if value is None else f"{value:.4g}" for value in values]
        table.add_row(_plain(layer.name), "x".join(map(str, layer.shape)), *cells, f"{1e3 * layer.seconds:.1f}")
    if report.layers:
        screen.print(table)
    else:
        screen.print(f"{_plain(file)}: no convolution kernel")
    for layer in report.layers:
        for note in layer.notes:
            screen.print(f"  {_plain(layer.name)}: {_plain(note)}", style="dim", soft_wrap=True)
    for name, reason in report.others.items():
        screen.print(f"  not a kernel: {_plain(name)}: {_plain(reason)}", style="dim", soft_wrap=True)
