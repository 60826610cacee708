"""Pictures of a report: the curves of every arm, and the paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convla.experiments.drawing import COLORS, DECREASE, INCREASE, INK, STYLES, save_figure, tidy
from convla.experiments.training.curves import BY_LAYER
from convla.experiments.training.report import Report, Result, Row
from convla.experiments.training.settings import MEASURES

__all__ = ["plot_report"]

GREY = "#8a8a8a"
LINES = (INK, *COLORS)

CURVES = {
    "final-test-accuracy": ("test_accuracy", "test accuracy, %", 100.0),
    "best-test-accuracy": ("test_accuracy", "test accuracy, %", 100.0),
    "final-test-loss": ("test_loss", "test loss", 1.0),
    "final-train-accuracy": ("train_accuracy", "training accuracy, %", 100.0),
    "mean-train-accuracy": ("train_accuracy", "training accuracy, %", 100.0),
    "final-train-loss": ("train_loss", "training loss", 1.0),
    "mean-train-loss": ("train_loss", "training loss", 1.0),
    "final-similarity": ("similarity", "convolutional similarity", 1.0),
    "final-map-cosine": ("map_cosine", "mean |cos| of maps", 1.0),
    "final-resting-share": ("resting", "weights with gradient 0, %", 100.0),
    "final-output-correlation": ("output_correlation", "correlation, output channels", 1.0),
    "final-input-correlation": ("input_correlation", "correlation, input channels", 1.0),
}
"""The curve behind each measure: its field, what to write beside it, and its factor."""

MOST_CURVES = 8
"""Of more arms or blocks than this only the differences are drawn: lines can no longer be told apart."""

MOST_LAYERS = 6
"""Of more layers than this some are drawn, evenly spaced, the first and the last among them."""


def plot_report(report: Report, folder: Path) -> list[str]:
    """Draw one PNG of each experiment's curves, if they are few, and one of its differences.

    Parameters
    ----------
    report : Report
    folder : Path

    Returns
    -------
    list of str
        The files' names.
    """
    files = []
    for name in dict.fromkeys(row.experiment for row in report.rows):
        results = [result for result in report.results if result.cell.experiment.name == name]
        rows = [row for row in report.rows if row.experiment == name]
        arms = {result.cell.arm.name for result in results}
        if len(arms) <= MOST_CURVES and len(results) // len(arms) <= MOST_CURVES:
            files.append(f"{name}-curves.png")
            save_figure(_draw_curves(results), folder / files[-1])
            if any(CURVES[measure][0] in BY_LAYER for measure in results[0].cell.experiment.measures):
                files.append(f"{name}-layers.png")
                save_figure(_draw_layers(results), folder / files[-1])
        if any(row.difference for row in rows):
            files.append(f"{name}.png")
            save_figure(_draw_differences(rows), folder / files[-1])
    return files


def _draw_curves(results: Sequence[Result]) -> Figure:
    """Draw the mean over the seeds with its standard error: a row for each curve, a column for each block."""
    experiment = results[0].cell.experiment
    curves = list(dict.fromkeys(CURVES[measure] for measure in experiment.measures))
    blocks = list(dict.fromkeys(result.cell.block_name for result in results))
    figure = Figure(figsize=(max(6.0, 3.6 * len(blocks)), 3.2 * len(curves) + 0.6), layout="constrained")
    axes = figure.subplots(len(curves), len(blocks), squeeze=False, sharex="col", sharey="row")
    for column, block in enumerate(blocks):
        for row, (field, label, factor) in enumerate(curves):
            axis = axes[row, column]
            tidy(axis, size=8)
            for number, result in enumerate(r for r in results if r.cell.block_name == block):
                _draw_mean(axis, result, field, factor, number)
            if field == "similarity":
                axis.set_yscale("log")
            if column == 0:
                axis.set_ylabel(label, fontsize=9, color=INK)
            if row == 0:
                axis.set_title(block, fontsize=9, color=INK)
        axes[-1, column].set_xlabel("epoch", fontsize=9, color=INK)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    seeds, dataset = len(results[0].runs), results[0].cell.training.dataset
    figure.suptitle(f"{experiment.title}\n{dataset}, mean and standard error of {seeds} seeds", fontsize=10, color=INK)
    return figure


def _draw_mean(axis: Axes, result: Result, field: str, factor: float, number: int) -> None:
    runs = [curves for _, curves in result.runs if not curves.diverged]
    if runs:
        values = factor * np.stack([curves.over_layers(field) for curves in runs])
        _draw_line(axis, np.arange(values.shape[1]), values, result.cell.arm.name, number)


def _draw_line(axis: Axes, places: np.ndarray, values: np.ndarray, name: str, number: int) -> None:
    """Draw the mean of rows, one for each seed, and its standard error."""
    mean = values.mean(axis=0)
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    style: dict[str, Any] = {"color": LINES[number % len(LINES)], "linewidth": 1.3}
    # One epoch is a point, which a line would not show.
    style["marker"] = "o" if np.isfinite(mean).sum() == 1 else ""
    axis.plot(places, mean, label=name, linestyle=STYLES[number // len(LINES) % 3], **style)
    axis.fill_between(places, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0)


def _draw_layers(results: Sequence[Result]) -> Figure:
    """Draw the first block's curves of single layers: a row for each curve, and for correlations one by distance."""
    experiment, block = results[0].cell.experiment, results[0].cell.block_name
    shown = [result for result in results if result.cell.block_name == block]
    named = dict.fromkeys(CURVES[measure] for measure in experiment.measures if CURVES[measure][0] in BY_LAYER)
    rows = [(field, label, factor, False) for field, label, factor in named]
    rows += [(field, f"{label}, at the end", 1.0, True) for field, label, _ in named if "correlation" in field]
    layers = {field: _spaced(getattr(shown[0].runs[0][1], field).shape[1]) for field in BY_LAYER}
    columns = max(len(layers[field]) for field, *_ in rows)
    figure = Figure(figsize=(max(6.0, 2.6 * columns), 2.6 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    for row, (field, label, factor, by_distance) in zip(axes, rows, strict=True):
        for axis, layer in zip(row, layers[field], strict=False):
            tidy(axis, size=8)
            for number, result in enumerate(shown):
                runs = [getattr(curves, field) for _, curves in result.runs if not curves.diverged]
                if runs:
                    values = factor * np.stack(runs)[:, :, layer]
                    values = values[:, -1, 1:] if by_distance else (values if values.ndim == 2 else values[:, :, 0])
                    places = np.arange(values.shape[1]) + by_distance
                    _draw_line(axis, places, values, result.cell.arm.name, number)
            axis.set_title(f"layer {layer + 1}", fontsize=8, color=INK)
            axis.set_xlabel("distance" if by_distance else "epoch", fontsize=8, color=INK)
        row[0].set_ylabel(label, fontsize=8, color=INK)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    seeds, dataset = len(shown[0].runs), shown[0].cell.training.dataset
    place = f", {block}" if block else ""
    figure.suptitle(
        f"{experiment.title}\n{dataset}{place}, mean and standard error of {seeds} seeds", fontsize=10, color=INK
    )
    return figure


def _spaced(layers: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, layers - 1, min(layers, MOST_LAYERS))})


def _draw_differences(rows: Sequence[Row]) -> Figure:
    """Draw a panel for each measure: the differences to the baselines, with both intervals."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    shown = {measure: [row for row in rows if row.measure == measure and row.difference] for measure in measures}
    count = max(map(len, shown.values()))
    figure = Figure(figsize=(2.4 + 3.8 * len(measures), 0.24 * count + 1.9), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axis, measure in zip(axes, measures, strict=True):
        tidy(axis, size=8)
        axis.axvline(0.0, color=INK, linewidth=0.8, linestyle="dotted")
        for height, row in enumerate(shown[measure]):
            _draw_interval(axis, height, row)
        axis.set_xlabel(f"difference in {MEASURES[measure]}", fontsize=8, color=INK)
    names = [f"{row.block}: {row.arm}" if row.block else row.arm for row in shown[measures[0]]]
    axes[0].set_yticks(range(count), [_shortened(name) for name in names])
    axes[0].set_ylim(count - 0.4, -0.6)
    figure.suptitle(
        f"{rows[0].experiment}: difference to the baseline over {rows[0].seeds} seeds, in pairs\n"
        "thick: 95 %; thin: 95 % for all together",
        fontsize=9,
        color=INK,
    )
    return figure


def _draw_interval(axis: Axes, height: int, row: Row) -> None:
    gap = row.difference
    if gap is None or not math.isfinite(gap.low):
        return
    color = {"better": DECREASE, "worse": INCREASE}.get(row.verdict, GREY)
    axis.plot([gap.simultaneous_low, gap.simultaneous_high], [height, height], color=color, linewidth=0.9)
    axis.plot([gap.low, gap.high], [height, height], color=color, linewidth=2.6, solid_capstyle="butt")
    axis.plot(gap.mean, height, "o", color=color, markersize=4.5)


def _shortened(name: str) -> str:
    return name if len(name) <= 64 else f"{name[:61]}..."
