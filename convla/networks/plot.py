"""The picture of `convla inspect --plot`: one panel for each quantity, one bar for each layer."""

from __future__ import annotations

import os
import warnings
from itertools import zip_longest
from pathlib import Path

from matplotlib.figure import Figure

from convla._files import atomic_write
from convla.errors import WeightsError
from convla.networks.report import Inspection
from convla.networks.weights import printable

__all__ = ["plot_inspection"]

PANELS = 4  # side by side
REACH = 1e100


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
    if not report.layers:
        raise WeightsError("there is no convolution kernel to plot")
    names = [printable(layer.name).replace("$", r"\$") for layer in report.layers]  # a name is no formula
    rows = -(-len(report.columns) // PANELS)
    figure = Figure(figsize=(3.0 * PANELS + 1.5, rows * (1.0 + 0.22 * len(names))), layout="constrained")
    panels = figure.subplots(rows, PANELS, sharey=True, squeeze=False)
    for panel, column in zip_longest(panels.flat, report.columns):
        if column is None:
            panel.set_axis_off()
            continue
        # What is not defined, or further out than an axis can reach, has no bar.
        found = {i: layer.quantities[column.name] for i, layer in enumerate(report.layers)}
        bars = {
            i: value for i, value in found.items() if value is not None and (value == 0 or 1 / REACH < value < REACH)
        }
        panel.barh(list(bars), list(bars.values()), color="tab:blue", height=0.7)
        # Layers differ by orders of magnitude; a linear stretch about 0 keeps those that are 0.
        low, high = min(bars.values(), default=0.0), max(bars.values(), default=0.0)
        if low > 0.0 and high > 10.0 * low:
            panel.set_xscale("log")
        elif high > 10.0:
            panel.set_xscale("symlog", linthresh=1.0)
        panel.set_title(column.name.replace("_", " "), fontsize=9)
        panel.tick_params(labelsize=7)
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.5, -0.5)
    with (
        atomic_write(path, follow_links=True) as file,
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of letters that the font lacks
    ):
        figure.savefig(file, format=Path(path).suffix.removeprefix("."), dpi=150)
