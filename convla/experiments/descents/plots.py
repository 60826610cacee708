"""A quantity of a study drawn against one of its settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from convla.experiments.descents.quantities import QUANTITIES
from convla.experiments.descents.study import AXES, StudyError
from convla.experiments.drawing import COLORS, INK, STYLES, save_figure, tidy
from convla.extending import check_choice

__all__ = ["plot_rows"]

LINES = (*COLORS, INK)
MARKERS = ("o", "s", "^")
"""As many as styles: where words stand side by side they tell lines apart instead."""
MOST_LINES = len(LINES) * len(STYLES)
ROW = 0.19
"""Inches of a row of the legend, which stands below, so that it hides no interval."""
NORMAL = 1.96
"""Standard errors of a 95 % interval."""


def plot_rows(rows: Sequence[Mapping[str, Any]], quantity: str, axis: str, path: Path, *, log: bool = False) -> None:
    """Draw a quantity with its 95 % intervals against a setting, a line for each combination of the others.

    Parameters
    ----------
    rows : sequence of mapping
        Of `convla.experiments.descents.study.StudyResult`.
    quantity : str
        One of `convla.experiments.descents.quantities.QUANTITIES`.
    axis : str
        An attribute of a setting; words stand side by side in the order of the rows, with no line between them.
    path : Path
        Of the PNG.
    log : bool, default False
        The vertical axis in decades.

    Raises
    ------
    StudyError
        If there are too many lines to tell apart.
    """
    check_choice("quantity", quantity, tuple(QUANTITIES))
    check_choice("axis", axis, AXES)
    chosen = [row for row in rows if row["quantity"] == quantity]
    others = _telling_apart(chosen, axis)
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in chosen:
        lines.setdefault(tuple(row[name] for name in others), []).append(row)
    if len(lines) > MOST_LINES:
        raise StudyError(
            f"{len(lines)} combinations of {', '.join(others)} are more than the {MOST_LINES} lines there are"
        )
    words = list(dict.fromkeys(row[axis] for row in chosen))
    numbers = all(isinstance(word, int | float) for word in words)
    figure = Figure(figsize=(7.0, 4.6 + ROW * len(lines) * bool(others)), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    looks = itertools.cycle(itertools.product(STYLES, LINES))
    for number, ((values, line), (style, color)) in enumerate(zip(lines.items(), looks, strict=False)):
        aside = 0.0 if numbers else 0.5 * ((number + 1) / (len(lines) + 1) - 0.5)  # so that none hides another
        places = [row[axis] if numbers else words.index(row[axis]) + aside for row in line]
        order = sorted(range(len(line)), key=places.__getitem__)
        reach = [0.0 if math.isnan(row["stderr"]) else NORMAL * row["stderr"] for row in line]
        axes.errorbar(
            [places[i] for i in order],
            [line[i]["estimate"] for i in order],
            yerr=[reach[i] for i in order],
            label=", ".join(f"{name} {value}" for name, value in zip(others, values, strict=True)) or None,
            color=color,
            linestyle=style if numbers else "none",  # between words there is nothing
            marker=MARKERS[STYLES.index(style)],
            markersize=4,
            linewidth=1.3,
            capsize=2,
        )
    if not numbers:
        axes.set_xticks(range(len(words)), [str(word) for word in words])
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(axis, color=INK)
    axes.set_ylabel(QUANTITIES[quantity], fontsize=9, color=INK)
    if others:
        figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    save_figure(figure, path)


def _telling_apart(rows: Sequence[Mapping[str, Any]], axis: str) -> list[str]:
    """Return the settings beside `axis` that tell rows apart; not those that follow from others, as a rate may."""
    names = [name for name in AXES if name != axis and len({row[name] for row in rows}) > 1]
    for name in ("stream", "learning_rate", "iterations"):
        fewer = [other for other in names if other != name]
        if len({tuple(row[key] for key in (axis, *fewer)) for row in rows}) == len(rows):
            names = fewer
    return names
