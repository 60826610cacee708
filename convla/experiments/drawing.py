"""What the pictures of all studies share: inks, axes without a frame, files that depend on the numbers alone."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from convla.extending import atomic_write

__all__ = ["COLORS", "DECREASE", "INCREASE", "INK", "STYLES", "save_figure", "tidy"]

DECREASE, INCREASE, INK = "#2a78b5", "#c8442e", "#333333"
COLORS = (DECREASE, INCREASE, "#3f8f4e", "#8a5fb0", "#c98a1b", "#4aa5a0", "#b0557f")
"""Of lines that are told apart."""
STYLES = ("solid", "dashed", "dotted")


def tidy(axis: Axes, *, right: bool = False, size: int = 9) -> None:
    """Leave away the frame of an axis, with `right` but the right side, and write its numbers in ink."""
    axis.spines["top"].set_visible(False)
    axis.spines["right"].set_visible(right)
    axis.tick_params(colors=INK, labelsize=size)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    figure.set_dpi(150)
    with atomic_write(path) as file:
        # No date and no version in the file: the same numbers give the same bytes. `savefig` would draw twice.
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
