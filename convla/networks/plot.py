"""Pictures of a report, fit for a paper: a panel for each quantity, before and after, and the network's bound."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from convla._files import atomic_write
from convla.errors import WeightsError
from convla.networks.certificate import Certificate
from convla.networks.comparison import Comparison
from convla.networks.report import ENDS, Inspection, LayerReport, enclosure_of
from convla.networks.weights import printable
from convla.spectra.status import Status

__all__ = ["bound_figure", "comparison_figure", "inspection_figure", "plot_inspection", "save_figure"]

PANELS = 4  # side by side
REACH = 1e100
"""Further out than an axis can reach."""
LETTERS = 40
"""Of a layer's name; what is more of it is left out in the middle."""
_BEFORE, _AFTER = "tab:orange", "tab:blue"


class _Point(NamedTuple):
    """What is drawn of a quantity: a value and what is proved to hold it, or words that stand for it."""

    value: float | None
    enclosure: tuple[float, float] | None
    words: str


def plot_inspection(report: Inspection, path: str | os.PathLike[str]) -> None:
    """Draw the quantities of every layer and save them in the format that the name ends in.

    Parameters
    ----------
    report : Inspection
        With at least one layer.
    path : path
        Its ending is any that Matplotlib writes.

    Raises
    ------
    WeightsError
        If there is no layer to draw.
    ValueError, OSError
        If the format is unknown, or the file cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla import inspect
    >>> from convla.networks.plot import plot_inspection
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "layers.png"
    ...     plot_inspection(inspect({"conv": np.ones((2, 1, 3))}, image=(8,)), path)
    ...     path.exists()
    True
    """
    save_figure(inspection_figure(report), path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a whole, in the format that the name ends in."""
    with (
        atomic_write(path, follow_links=True) as file,
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of letters that the font lacks
    ):
        figure.savefig(file, format=Path(path).suffix.removeprefix("."), dpi=150)


def inspection_figure(report: Inspection) -> Figure:
    """Return a figure of a report: one panel for each quantity, one line for each layer.

    The largest singular value is drawn with its proved enclosure, and what is not defined is said so.

    Parameters
    ----------
    report : Inspection

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    WeightsError
        If there is no layer to draw.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import inspect
    >>> from convla.networks.plot import inspection_figure
    >>> figure = inspection_figure(inspect({"conv": np.ones((2, 1, 3))}, image=(8,)))
    >>> [panel.get_title() for panel in figure.axes if panel.axison][:2]
    ['sigma_max', 'sigma_min']
    """
    if not report.layers:
        raise WeightsError("there is no convolution kernel to plot")
    columns = [column.name for column in report.columns if column.name not in ENDS]

    def points(column: str) -> list[list[_Point]]:
        return [[_point(layer, column) for layer in report.layers]]

    return _figure([layer.name for layer in report.layers], columns, points, [_AFTER])


def comparison_figure(found: Comparison) -> Figure:
    """Return a figure of two models: each quantity of each layer that both have, before and after.

    Parameters
    ----------
    found : Comparison

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import numpy as np
    >>> from convla import compare
    >>> from convla.networks.plot import comparison_figure
    >>> figure = comparison_figure(compare({"a": np.ones((2, 1, 3))}, {"a": np.eye(2)[:, None]}, image=(8,)))
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['before', 'after']
    """
    reports = found.before, found.after
    names = [row.name for row in found.before if row.name not in found.only_before]
    columns = [name for name in found.quantities if name in found.before[names[0]].quantities]

    def points(column: str) -> list[list[_Point]]:
        return [[_point(report[name], column) for name in names] for report in reports]

    figure = _figure(names, columns, points, [_BEFORE, _AFTER])
    handles = [Line2D([], [], linestyle="", marker="o", markersize=3.5, color=colour) for colour in (_BEFORE, _AFTER)]
    figure.legend(handles, ["before", "after"], loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def bound_figure(certificate: Certificate) -> Figure:
    """Return a figure of the network's bound: from what each step that changes it takes to what it gives.

    Parameters
    ----------
    certificate : Certificate
        Of a network that has a bound.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If no step changes the bound, or there is none.

    Examples
    --------
    >>> from convla.networks.certificate import Certificate, Step
    >>> from convla.networks.plot import bound_figure
    >>> figure = bound_figure(Certificate(3.0, (Step("conv", "conv2d", 3.0, 3.0, 3.0),)))
    >>> figure.axes[0].get_yticklabels()
    [Text(0, 0, 'conv')]
    """
    steps = [step for step in certificate.steps if step.is_shown]
    if not steps or math.isinf(certificate.upper):
        raise ValueError(f"certificate must have a bound that some step changes, got {certificate!r}")
    figure = Figure(figsize=(6.5, 0.8 + 0.22 * len(steps)), layout="constrained")
    panel = figure.subplots()
    for line, step in enumerate(steps):
        colour = "tab:red" if step.bound > step.before else "tab:green"
        panel.plot([step.before, step.bound], [line, line], color=colour, linewidth=6, solid_capstyle="butt")
    panel.axvline(certificate.upper, color="0.3", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_xlabel("bound of the Lipschitz constant up to here", fontsize=8)
    _ticks(panel)
    _names(panel, [step.name for step in steps])
    return figure


def _point(layer: LayerReport, column: str) -> _Point:
    value = layer.quantities[column]
    if column == "sigma_min" and layer.status.get(column) == Status.RANK_DEFICIENT:
        return _Point(None, None, "rank deficient")
    if value is None:
        return _Point(None, None, "not defined")
    if value != 0 and not 1 / REACH < abs(value) < REACH:
        return _Point(None, None, "infinite" if math.isinf(value) else f"{value:.3g}")
    return _Point(value, enclosure_of(layer, column), "")


def _figure(
    names: Sequence[str], columns: Sequence[str], points: Callable[[str], list[list[_Point]]], colours: Sequence[str]
) -> Figure:
    """Draw series of points, one panel for each column, one line for each name."""
    across = min(PANELS, len(columns))
    rows = -(-len(columns) // across)
    figure = Figure(figsize=(2.4 * across + 2.0, rows * (0.8 + 0.2 * len(names))), layout="constrained")
    panels = figure.subplots(rows, across, sharey=True, squeeze=False)
    for panel in panels.flat[len(columns) :]:
        panel.set_axis_off()
    for panel, column in zip(panels.flat, columns, strict=False):
        _panel(panel, points(column), colours)
        panel.set_title(column.replace("_", " ") if column not in ("sigma_max", "sigma_min") else column, fontsize=9)
    _names(panels[0, 0], names)
    return figure


def _panel(panel: Axes, series: list[list[_Point]], colours: Sequence[str]) -> None:
    drawn = [point.value for points in series for point in points if point.value is not None]
    low, high = min(drawn, default=0.0), max(drawn, default=0.0)
    for number, (points, colour) in enumerate(zip(series, colours, strict=True)):
        shift = 0.25 * (2 * number - len(series) + 1)
        values = [math.nan if point.value is None else point.value for point in points]
        places = [line + shift for line in range(len(points))]
        panel.plot(values, places, linestyle="", marker="o", markersize=3.5, color=colour)
        for point, place in zip(points, places, strict=True):
            if point.enclosure is not None:
                panel.plot(point.enclosure, [place] * 2, color=colour, linewidth=1, marker="|", markersize=7)
            if point.words:
                panel.text(
                    0.02, place, point.words, fontsize=5.5, color=colour if len(series) > 1 else "0.4", va="center",
                    transform=panel.get_yaxis_transform(),
                )  # fmt: skip
    # Layers differ by orders of magnitude; a linear stretch about 0 keeps those that are 0.
    if low > 0.0 and high > 10.0 * low:
        panel.set_xscale("log")
    elif high > 10.0:
        panel.set_xscale("symlog", linthresh=1.0)
    _ticks(panel)
    panel.grid(axis="y", linewidth=0.3, color="0.85")


def _ticks(panel: Axes) -> None:
    """Have few marks, so that their numbers do not meet."""
    axis, (low, high) = panel.xaxis, panel.get_xlim()
    if panel.get_xscale() == "log":
        near = high < 100.0 * low  # where powers of ten alone would be one or two
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if near else (1.0,), numticks=4))
        if near:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    elif panel.get_xscale() == "linear":
        axis.set_major_locator(MaxNLocator(4))
    panel.tick_params(labelsize=7)


def _names(panel: Axes, names: Sequence[str]) -> None:
    texts = [printable(name).replace("$", r"\$") for name in names]  # a name is no formula
    half = LETTERS // 2
    short = [text if len(text) <= LETTERS else f"{text[:half]}…{text[-half:]}" for text in texts]
    panel.set_yticks(range(len(names)), short)
    panel.set_ylim(len(names) - 0.5, -0.5)
