"""Figures 3.1 and 3.2 of Guo and Ye with the paper's axes, reported and true values both, and the barrier's remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from convla.experiments.drawing import DECREASE, INCREASE, INK, save_figure, tidy
from convla.experiments.rck.settings import ALPHAS, ITERATIONS, SHAPES, FigureSetting, Traces

__all__ = ["plot_figures"]

LEFT: dict[str, tuple[Any, str]] = {
    "sigma_max": ("-", r"$\sigma_{\max}(M)$"),
    "sigma_min": ("--", r"$\sigma_{\min}(M)$"),
    "condition": (":", r"$\kappa(M)$"),
}
Panels = Mapping[FigureSetting, Traces]


def plot_figures(panels: Panels, folder: Path) -> list[str]:
    """Draw the two figures and the barrier, and return the files' names; nothing unless all panels are there."""
    if not panels:
        return []
    first = [FigureSetting(*shape, 1.0) for shape in SHAPES]
    second = [FigureSetting(*SHAPES[0], alpha) for alpha in ALPHAS]
    drawings = {
        "figure31.png": _draw_panels(
            first, panels, r"Figure 3.1: four kernel sizes, $\alpha = 1$", lambda s: f"{s.kernel} kernel"
        ),
        "figure32.png": _draw_panels(
            second, panels, "Figure 3.2: 3x3x3x1 kernels", lambda s: rf"$\alpha = {s.alpha:g}$"
        ),
        "barrier.png": _draw_barrier(panels),
    }
    for name, figure in drawings.items():
        save_figure(figure, folder / name)
    return list(drawings)


def _draw_panels(settings: list[FigureSetting], panels: Panels, title: str, label: Any) -> Figure:
    figure = Figure(figsize=(11.0, 8.2), layout="constrained")
    for axis, setting in zip(figure.subplots(2, 2).ravel(), settings, strict=True):
        traces = panels[setting]
        right = _twin(axis)
        for name, (style, _) in LEFT.items():
            _draw_band(axis, getattr(traces, name), DECREASE, style)
        _draw_band(right, traces.true, INCREASE, "-")
        _draw_band(right, traces.reported, INK, (0, (1.5, 1.2)), band=False)
        axis.set_title(label(setting), fontsize=11, color=INK)
        _mark_dip(right, traces, setting)
    _finish(figure, title, panels)
    return figure


def _mark_dip(axis: Axes, traces: Traces, setting: FigureSetting) -> None:
    """Draw the level alpha where the axis can show it, and name the dip of the reported value below it."""
    if setting.alpha < 0.05 * traces.true.max():
        return
    axis.axhline(setting.alpha, color=INCREASE, linewidth=0.7, alpha=0.6)
    axis.annotate(
        r"$\alpha$", (ITERATIONS - 1, setting.alpha), (0, 2), textcoords="offset points", fontsize=10, color=INCREASE
    )
    reported = np.median(traces.reported, axis=0)
    place = int(np.argmin(reported[:21]))
    rows = np.arange(len(traces.true))
    least = np.argmin(traces.reported[:, :21], axis=1)
    axis.annotate(
        f"least reported value {np.median(traces.reported[rows, least]):.1f},\n"
        f"the true one there {np.median(traces.true[rows, least]):.1f} (medians)",
        (place, reported[place]),
        xytext=(place + 4.0, 0.5),
        textcoords=("data", "axes fraction"),
        fontsize=10,
        color=INK,
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.7},
    )


def _draw_barrier(panels: Panels) -> Figure:
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    printed, remedy = (panels[FigureSetting(*SHAPES[0], 1.0, variant)] for variant in ("printed", "remedy"))
    titles = {
        "true": "the penalty that is minimised",
        "sigma_min": r"$\sigma_{\min}(M)$",
        "condition": r"$\kappa(M)$",
    }
    for axis, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        _style(axis)
        _draw_band(axis, getattr(printed, name), INCREASE, "-", label="$M^T M$, as printed")
        _draw_band(axis, getattr(remedy, name), DECREASE, "-", label="$M M^T$, both ends tracked")
        axis.set_title(title, fontsize=11, color=INK)
        axis.set_xlabel("iteration")
        if name == "true":
            axis.set_yscale("log")
            axis.axhline(1.0, color=INK, linewidth=0.7, linestyle="dotted")
            axis.annotate(r"$\alpha$", (1.0, 1.0), xycoords=("axes fraction", "data"), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=9, color=INK)  # fmt: skip
            axis.legend(frameon=False, fontsize=9)
        else:
            axis.set_ylim(0.0, None)
    kernels = len(printed.true)
    figure.suptitle(
        rf"The barrier and its remedy: 3x3x3x1 kernels, $\alpha = 1$, median and range of {kernels} random kernels",
        fontsize=12,
        color=INK,
    )
    return figure


def _draw_band(axis: Axes, rows: np.ndarray, color: str, style: Any, *, band: bool = True, label: str = "") -> None:
    """Draw the median of the rows as a line, and their range as a band."""
    iterations = np.arange(ITERATIONS + 1)
    axis.plot(iterations, np.median(rows, axis=0), color=color, linestyle=style, linewidth=1.8, label=label or None)
    if band:
        axis.fill_between(iterations, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.13, linewidth=0)


def _twin(axis: Axes) -> Axes:
    _style(axis)
    axis.set_xlabel("iteration")
    axis.set_ylabel(r"$\sigma_{\max}(M)$, $\sigma_{\min}(M)$, $\kappa(M)$", color=DECREASE)
    right = axis.twinx()
    right.spines["top"].set_visible(False)
    right.tick_params(colors=INCREASE, labelsize=9)
    right.set_ylabel(r"$\sigma_{\max}(M^T M - \alpha I)$", color=INCREASE)
    return right


def _style(axis: Axes) -> None:
    tidy(axis, right=True)
    axis.set_xlim(0, ITERATIONS)


def _finish(figure: Figure, title: str, panels: Panels) -> None:
    for axis in figure.axes:
        axis.set_ylim(0.0, None)
    handles = [Line2D([], [], color=DECREASE, linestyle=style, label=label) for style, label in LEFT.values()]
    handles += [
        Line2D([], [], color=INCREASE, label=r"$\sigma_{\max}(M^T M - \alpha I)$, true"),
        Line2D([], [], color=INK, linestyle=(0, (1.5, 1.2)), label="the same as Algorithm 2.1 reports it"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    kernels = len(next(iter(panels.values())).true)
    figure.suptitle(f"{title}; median and range of {kernels} random kernels", fontsize=13, color=INK)
