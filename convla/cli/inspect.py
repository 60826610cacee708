"""`convla inspect`."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from convla.cli.app import INTERRUPTED, app
from convla.cli.output import check_writable, complain, progress_bars, write_json
from convla.networks.inspection import (
    COLUMNS,
    SPECTRAL_COLUMNS,
    Column,
    Inspection,
    LayerReport,
    LayerSettings,
    inspect_network,
    read_settings,
)
from convla.networks.kernels import split_kernels
from convla.networks.weights import WEIGHT_FORMATS, printable, read_model
from convla.typing import Padding

__all__: list[str] = []

PLOT_FORMATS = (".png", ".svg", ".pdf")

SAVED = 2.0
"""Seconds between two savings of an unfinished report."""


@app.command("inspect")
def _inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"A file of weights: {', '.join(WEIGHT_FORMATS)}.")],
    image: Annotated[
        str, typer.Option(help="The image that each layer is given, such as 32x32, without its channels.")
    ],
    layers: Annotated[
        Path | None,
        typer.Option(help='A TOML file: a table for each layer or pattern such as \\["layer2.*"], keys as below.'),
    ] = None,
    padding: Annotated[str, typer.Option(help="full, same, valid or a number, for layers not in --layers.")] = "same",
    stride: Annotated[int, typer.Option(help="Likewise.")] = 1,
    dilation: Annotated[int, typer.Option(help="Likewise.")] = 1,
    groups: Annotated[str, typer.Option(help="Likewise; a number or depthwise.")] = "1",
    layout: Annotated[str, typer.Option(help="Likewise; oihw as in PyTorch, hwio as in Keras and Flax.")] = "oihw",
    transposed: Annotated[bool, typer.Option("--transposed", help="Likewise: transposed convolutions.")] = False,
    spectra: Annotated[
        bool, typer.Option("--spectra/--no-spectra", help="Find singular values too; large layers take seconds.")
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the whole report there, layer by layer.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the quantities there (.png, .svg, .pdf).")] = None,
) -> int:
    """Measure every convolution kernel of a model: singular values, similarity, orthogonality, and the time it took.

    Files are only read, never run: no pickled object is loaded. Each layer is shown as it is done.
    """
    check_writable("--json", json_file)
    check_writable("--plot", plot)
    if plot is not None and plot.suffix not in PLOT_FORMATS:
        raise ValueError(f"--plot must end in one of {', '.join(PLOT_FORMATS)}, got {str(plot)!r}")
    default = LayerSettings(
        padding=_number_or_word(padding),
        stride=stride,
        dilation=dilation,
        groups=_number_or_word(groups),  # type: ignore[arg-type]  # the layer checks the word
        layout=layout,  # type: ignore[arg-type]  # likewise
        transposed=transposed,
    )
    settings = [] if layers is None else read_settings(layers, default)
    sizes = _image_sizes(image)
    weights = read_model(file)
    kernels, others = split_kernels(weights.arrays)
    columns = SPECTRAL_COLUMNS + COLUMNS if spectra else COLUMNS
    source = {"file": str(file), "sha256": _digest(file)}
    screen = _Screen(file, kernels, columns)
    done: list[LayerReport] = []
    saved = time.monotonic()

    def save(complete: bool) -> Inspection:
        report = Inspection(tuple(done), {**others, **weights.unread}, columns, source, complete)
        if json_file is not None:
            write_json(json_file, report.as_data())
        return report

    with progress_bars(quiet=sys.stdout.isatty()) as progress:  # where the rows themselves are in sight
        bar = progress.add_task("layers", total=len(kernels))

        def show(layer: LayerReport) -> None:
            nonlocal saved
            done.append(layer)
            if time.monotonic() - saved >= SAVED:
                save(False)
                saved = time.monotonic()
            screen.show(layer)
            progress.advance(bar)

        try:
            inspect_network(weights, sizes, default=default, settings=settings, spectra=spectra, progress=show)
        except KeyboardInterrupt:
            if not done:
                raise
            save(False)
            kept = f"shown, and in {json_file}" if json_file else "shown"
            complain(f"interrupted: {len(done)} of {len(kernels)} layers are done and {kept}")
            return INTERRUPTED
    report = save(True)
    if plot is not None:
        from convla.networks.plot import plot_inspection  # matplotlib takes half a second to import

        plot_inspection(report, plot)
    screen.show_notes(report)
    return 0


def _number_or_word(text: str) -> Padding:
    return int(text) if text.removeprefix("-").isdecimal() else text  # type: ignore[return-value]  # checked later


def _image_sizes(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--image must be sizes such as 32x32, got {text!r}")
    return tuple(map(int, sizes))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class _Screen:
    """Rows on standard output as layers are done: a table where it fits, else each layer's values on lines of its own.

    No number is ever cut: what does not fit the width of a terminal goes to the next line, and a pipe has no width.
    """

    def __init__(self, file: Path, kernels: Mapping[str, Any], columns: Sequence[Column]) -> None:
        self.title, self.columns = printable(str(file)), columns
        self.limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self.headings = [*(column.heading for column in columns), "ms"]
        self.widths = [max(len(heading), NUMBER) for heading in self.headings]
        self.name = max([len("layer"), *map(len, map(printable, kernels))])
        self.kernel = max([len("kernel"), *(len(_sizes(kernel.shape)) for kernel in kernels.values())])
        whole = self.name + self.kernel + sum(self.widths) + 2 * (len(self.widths) + 1)
        self.table = self.limit is None or whole <= self.limit
        self.headed = bool(kernels)
        self.begun = self.gone = False

    def _print(self, *lines: str) -> None:
        """Print, as long as somebody reads: the files are wanted all the same, and the end of the program tells why."""
        if self.gone:
            return
        try:
            if not self.begun:
                self.begun = True
                print(self.title)
                if self.table and self.headed:
                    self._print(self._row("layer", "kernel", self.headings))
            print("\n".join(lines), flush=True)
        except OSError:
            self.gone = True

    def _row(self, name: str, kernel: str, cells: Sequence[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells, self.widths, strict=True)]
        return "  ".join([name.ljust(self.name), kernel.ljust(self.kernel), *numbers])

    def show(self, layer: LayerReport) -> None:
        """Show a layer."""
        found = [layer.quantities[column.name] for column in self.columns]
        cells = [*("-" if value is None else f"{value:.4g}" for value in found), f"{1e3 * layer.seconds:.1f}"]
        name, kernel = printable(layer.name), _sizes(layer.shape)
        if self.table:
            self._print(self._row(name, kernel, cells))
            return
        lines = [f"{name}  {kernel}", ""]
        for heading, cell in zip(self.headings, cells, strict=True):
            pair = f"  {heading} {cell}"
            if lines[-1] and len(lines[-1]) + len(pair) > (self.limit or 0):
                lines.append("")
            lines[-1] += pair
        self._print(*lines)

    def show_notes(self, report: Inspection) -> None:
        """Show what is to be said of the layers, and of the arrays that are none."""
        lines = [] if report.layers else [f"{self.title}: no convolution kernel"]
        lines += [f"  {printable(layer.name)}: {printable(note)}" for layer in report.layers for note in layer.notes]
        lines += [f"  not a kernel: {printable(name)}: {printable(why)}" for name, why in report.others.items()]
        if lines:
            self._print(*lines)


NUMBER = len("-1.234e-05")
"""The longest number of four digits, but for those beyond 1e100."""


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
