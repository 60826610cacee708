"""`convla compare`: what training or a regulariser changed between two models in files, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convla.cli.app import app
from convla.cli.inspect import image_sizes
from convla.cli.output import check_plot, check_writable, progress_bars, write_json, write_text
from convla.networks.comparison import Change, Comparison, compare
from convla.networks.files import MODEL_FORMATS
from convla.networks.measures import MEASURES
from convla.networks.report import ENDS
from convla.networks.settings import LayerSettings, read_settings
from convla.networks.weights import printable

__all__: list[str] = []


@app.command("compare")
def _compare(
    before: Annotated[Path, typer.Argument(metavar="A", help=f"A model: {', '.join(MODEL_FORMATS)}.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one, with layers of the same names.")],
    image: Annotated[
        str | None, typer.Option(help="For weights alone: the image that each layer is given, as 32x32.")
    ] = None,
    layers: Annotated[Path | None, typer.Option(help="For weights alone: a TOML file as for convla inspect.")] = None,
    measures: Annotated[
        str, typer.Option(help=f"What to compare, by commas: {', '.join(MEASURES)}.")
    ] = "sigma_max,stable_rank,similarity",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write both reports there.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write the changes there.")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Also write a page there that opens without a network.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the changes there (.png, .svg, .pdf).")] = None,
) -> int:
    """Show what changed from A to B: each quantity of each layer that both have, and its ratio."""
    for option, path in {"--json": json_file, "--csv": csv_file, "--html": html_file, "--plot": plot}.items():
        check_writable(option, path)
    check_plot(plot)
    with progress_bars() as progress:
        bar = progress.add_task("layers", total=None)
        found = compare(
            before,
            after,
            image=None if image is None else image_sizes(image),
            settings=[] if layers is None else read_settings(layers, LayerSettings()),
            measures=measures.split(","),
            progress=lambda row: progress.update(bar, advance=1, description=printable(row.name)),
        )
    if json_file is not None:
        write_json(json_file, found.as_data())
    if csv_file is not None:
        write_text(csv_file, found.to_csv())
    if html_file is not None:
        write_text(html_file, found.to_html())
    if plot is not None:
        from convla.networks.plot import comparison_figure, save_figure  # matplotlib takes half a second to import

        save_figure(comparison_figure(found), plot)
    print("\n".join(_lines(found)))
    return 0


def _lines(found: Comparison) -> list[str]:
    """Return the changes as a table; an interval is no change of its own."""
    changes = [change for change in found if change.quantity not in ENDS]
    rows = [("layer", "quantity", "before", "after", "ratio")]
    rows += [
        (printable(one.layer), one.quantity, _number(one.before), _number(one.after), _ratio(one)) for one in changes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for layer, quantity, *numbers in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join([layer.ljust(widths[0]), quantity.ljust(widths[1]), *cells]))
    lines += [f"  only in A: {printable(name)}" for name in found.only_before]
    lines += [f"  only in B: {printable(name)}" for name in found.only_after]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ratio(change: Change) -> str:
    return "-" if change.ratio is None else f"{change.ratio:.4g}"
