"""Pictures of a run: the distributions behind each pair of tables, and what the controls say of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from convla.experiments.csm.published import published_cells
from convla.experiments.csm.settings import STUDIES, Setting, study_file
from convla.experiments.descents.outcome import Outcome
from convla.experiments.descents.study import read_study
from convla.experiments.drawing import DECREASE, INCREASE, INK, save_figure, tidy

__all__ = ["plot_run"]

PRINTED = "#111111"
MINIMIZED = {
    "kernel": ("orthogonal kernels", "#8a8a8a", "s"),
    "loss": ("convolutional similarity", "#2a78b5", "o"),
    "shrinkage": ("plain shrinkage", "#c8442e", "v"),
    "scale-invariant": ("scale-invariant CS", "#3f8f4e", "D"),
}


def plot_run(outcomes: Mapping[Setting, Outcome], folder: Path) -> list[str]:
    """Draw a PNG for every pair of tables that is complete, and one of the controls if they are there.

    Parameters
    ----------
    outcomes : mapping of Setting to Outcome
    folder : Path

    Returns
    -------
    list of str
        The files' names.
    """
    files = []
    for tables, study in STUDIES.items():
        rows = {s: o for s, o in outcomes.items() if s.tables == tables and s.control == "loss"}
        if rows:
            files.append(f"{study}.png")
            save_figure(_draw_tables(tables, rows, read_study(study_file(study)).title), folder / files[-1])
    if any(setting.control != "loss" for setting in outcomes):
        files.append("controls.png")
        save_figure(_draw_controls(outcomes), folder / files[-1])
    return files


def _figure(width: float, height: float, columns: int, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, columns, **options)))
    for axis in axes:
        tidy(axis)
    return figure, axes


def _draw_tables(tables: tuple[int, int], rows: Mapping[Setting, Outcome], title: str) -> Figure:
    figure, (left, right) = _figure(10.0, 0.62 * len(rows) + 1.7, 2, sharey=True)
    printed = {
        (cell.n, cell.optimizer, cell.quantity): cell.value for table in tables for cell in published_cells(table)
    }
    for height, (setting, outcome) in enumerate(rows.items()):
        key = (setting.n, setting.optimizer)
        kept = outcome.converged
        correlation = outcome.correlation[kept]
        _draw_density(left, correlation[np.isfinite(correlation)], height, (-1.0, 1.0), DECREASE)
        mean, std = printed[*key, "corr_mean"], printed[*key, "corr_std"]
        left.errorbar(mean, height + 0.08, xerr=std, color=PRINTED, marker="D", markersize=4, linewidth=1, capsize=3)
        left.plot(np.nanmean(correlation), height + 0.08, "o", markersize=9, mfc="none", mec=INCREASE, mew=1.6)
        start, end = outcome.similarity[kept].T
        with np.errstate(divide="ignore", invalid="ignore"):
            decades = np.log10(np.abs(end) / np.abs(start))
        decades = np.clip(decades, -12.0, 6.0)  # -inf where the kernels vanished
        up = end > start
        _draw_density(right, decades[~up], height, (-12.0, 6.0), DECREASE, decades.size)
        _draw_density(right, decades[up], height, (-12.0, 6.0), INCREASE, decades.size)
        share = 100.0 * (~up).mean()
        label = f"{share:.1f} %\nprinted {printed[*key, 'B_reduction_frequency_pct']:g} %"
        right.text(1.01, height, label, transform=right.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    left.set_yticks(range(len(rows)), [f"N = {setting.n}, {setting.optimizer}" for setting in rows])
    left.set_ylim(len(rows) - 0.35, -0.85)
    left.set_xlim(-1.45, 1.45)
    left.set_xlabel("correlation of loss and similarity over the iterates")
    left.set_title(f"Table {tables[0]}: printed mean and std (diamonds), our mean (rings)", fontsize=10, color=INK)
    right.axvline(0.0, color=INK, linewidth=0.8)
    right.set_xlim(-12.3, 6.3)
    right.set_xticks([-12, -9, -6, -3, 0, 3, 6], ["≤ -12", "-9", "-6", "-3", "0", "3", "≥ 6"])
    right.set_xlabel("last over first feature-map similarity, decades")
    right.set_title(f"Table {tables[1]}: decrease (blue), increase (red)", fontsize=10, color=INK)
    repetitions = next(iter(rows.values())).repetitions
    figure.suptitle(f"{title}, {repetitions} repetitions a row", fontsize=12, color=INK)
    return figure


def _draw_density(
    axis: Axes, values: np.ndarray[Any, Any], height: int, limits: tuple[float, float], color: str, of: int = 0
) -> None:
    """Draw a histogram as a ridge that stands on its row; `of` is the number that a full share refers to."""
    if values.size == 0:
        return
    edges = np.linspace(*limits, 73)
    counts, _ = np.histogram(values, edges)
    # The square root keeps the rare increases visible beside the many decreases.
    ridge = np.sqrt(counts / max(of, values.size))
    # Not by `stairs`, which measures each ridge for limits that are set anyway.
    axis.add_artist(
        StepPatch(height - 0.75 * ridge, edges, baseline=height, fill=True, color=color, alpha=0.75, linewidth=0)
    )


def _draw_controls(outcomes: Mapping[Setting, Outcome]) -> Figure:
    figure, axes = _figure(10.0, 4.6, 2)
    rows = [setting for setting in outcomes if setting.tables == (3, 4) and setting.control == "loss"]
    for index, row in enumerate(rows):
        runs = {
            ("kernel" if s.loss == "kernel" else s.control): o
            for s, o in outcomes.items()
            if (s.n, s.optimizer) == (row.n, row.optimizer) and s.tables in ((1, 2), (3, 4))
        }
        for place, (name, outcome) in enumerate(sorted(runs.items(), key=lambda item: list(MINIMIZED).index(item[0]))):
            label, color, marker = MINIMIZED[name]
            kept = outcome.converged
            x = index + 0.17 * (place - 1.5)
            cosine = outcome.cosine[kept]
            cosine = cosine[np.isfinite(cosine).all(axis=1)]
            style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 6, "linestyle": "none"}
            axes[0].plot(x, cosine[:, 1].mean(), label=label if index == 0 else None, **style)
            ends = np.maximum(np.median(outcome.survival, axis=0), 1e-8)
            axes[1].plot([x, x], ends, **(style | {"linestyle": "solid", "linewidth": 1.2}))
        start = outcomes[row].cosine[:, 0].mean()
        axes[0].hlines(start, index - 0.4, index + 0.4, color=INK, linewidth=0.8, linestyle="dotted")
    for axis in axes:
        axis.set_xticks(range(len(rows)), [f"N = {row.n}\n{row.optimizer}" for row in rows])
    axes[0].set_ylim(0.0, None)
    axes[0].set_title("mean |cos| of the feature maps at the end (dotted: at the start)", fontsize=10, color=INK)
    axes[0].legend(frameon=False, fontsize=9)
    axes[1].set_yscale("log")
    axes[1].set_ylim(0.4e-8, None)
    axes[1].set_yticks([1e-8, 1e-6, 1e-4, 1e-2, 1.0], ["≤ 1e-8", "1e-6", "1e-4", "1e-2", "1"])
    axes[1].axhline(1.0, color=INK, linewidth=0.8, linestyle="dotted")
    axes[1].set_title("share of its norm that the shorter and the longer kernel keeps", fontsize=10, color=INK)
    figure.suptitle("What is minimised, what it does to angles, and what to lengths", fontsize=12, color=INK)
    return figure
