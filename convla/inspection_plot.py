"""The picture of `convla inspect --plot`: one panel for each quantity, one bar for each layer."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

from convla.errors import WeightsError
from convla.inspection import Inspection

__all__ = ["plot_inspection"]


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
    >>> from convla.inspection import inspect_network
    >>> from convla.inspection_plot import plot_inspection
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "layers.png"
    ...     plot_inspection(inspect_network({"conv": np.ones((2, 1, 3))}, (8,)), path)
    ...     path.exists()
    True
    """
    if not report.layers:
        raise WeightsError("there is no convolution kernel to plot")
    names = [layer.name for layer in report.layers]
    height = 1.2 + 0.22 * len(names)
    figure = Figure(figsize=(2.4 * len(report.columns) + 2, height), layout="constrained")
    panels = figure.subplots(1, len(report.columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, report.columns, strict=True):
        values = [layer.quantities[column.name] or 0.0 for layer in report.layers]
        panel.barh(range(len(names)), values, color="tab:blue", height=0.7)
        # Layers differ by orders of magnitude; a linear stretch about 0 keeps those that are 0.
        panel.set_xscale("symlog", linthresh=1.0)
        panel.set_title(column.name.replace("_", " "), fontsize=9)
        panel.tick_params(labelsize=7)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=150)
