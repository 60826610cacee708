"""RCK Figures 3.1 and 3.2 as a source of experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from convla.experiments.folder import Table, as_records
from convla.experiments.rck.conclusions import draw_figure_conclusions
from convla.experiments.rck.settings import FigureSetting, Traces, figure_settings, run_figure
from convla.experiments.session import Part, joined
from convla.experiments.source import Conclusion, Report, Source

__all__ = ["TARGETS", "TRACE_HEADER", "Figures", "Traced"]

TARGETS = ("figures",)

KERNELS = 2
"""Whose descents take about a second, on one core, and are one piece of work."""

TRACE_HEADER = (
    *("kernel_size", "alpha", "variant", "kernel", "iteration"),
    *("reported", "true", "sigma_max", "sigma_min", "condition"),
)


@dataclass(frozen=True)
class Traced(Report):
    """The traces of all panels; none unless the figures were asked for."""

    panels: Mapping[FigureSetting, Traces]
    conclusions: list[Conclusion]

    def tables(self) -> dict[str, Table]:
        """Return the traces, a row for each iterate, by the name of their CSV file."""
        return {"traces.csv": self._traces()} if self.panels else {}

    def as_data(self) -> dict[str, Any]:
        """Return the traces as plain data."""
        return {"traces": as_records(self._traces())}

    def _traces(self) -> Table:
        return TRACE_HEADER, [row for setting, traces in self.panels.items() for row in _rows(setting, traces)]


def _rows(setting: FigureSetting, traces: Traces) -> Iterator[tuple[Any, ...]]:
    columns = (traces.reported, traces.true, traces.sigma_max, traces.sigma_min, traces.condition)
    for kernel, iteration in np.ndindex(traces.true.shape):
        # A descent that ended early has no more iterates.
        if iteration <= traces.steps[kernel]:
            values = (float(column[kernel, iteration]) for column in columns)
            yield (setting.kernel, setting.alpha, setting.variant, kernel, iteration, *values)


@dataclass(frozen=True)
class Figures(Source[FigureSetting, Traces, Traces]):
    """The descents of both figures, if they are among some targets.

    Attributes
    ----------
    targets : tuple of str
    kernels : int
        Random kernels of each descent, in the first round.
    seed : int
    rounds : int
        How often their number may be doubled for sentences that are undecided.
    doubled : int
        How often it is.
    """

    targets: tuple[str, ...]
    kernels: int
    seed: int
    rounds: int = 0
    doubled: int = 0

    kind: ClassVar[type[Any]] = Traces

    def units(self) -> tuple[FigureSetting, ...]:
        """Return the settings of all panels."""
        return figure_settings() if "figures" in self.targets else ()

    def size(self, unit: FigureSetting) -> int:  # noqa: ARG002
        """Return the number of kernels."""
        return self.kernels << self.doubled

    def cut(self, unit: FigureSetting) -> int:  # noqa: ARG002
        """Return the kernels of a part."""
        return KERNELS

    def __call__(self, part: Part[FigureSetting], advance: Callable[[int], None] = lambda _: None) -> Traces:
        """Run the descents of some kernels."""
        return run_figure(part.unit, kernels=part.rows, start=part.start, seed=self.seed, advance=advance)

    def summarize(self, unit: FigureSetting, outcomes: Iterable[Traces]) -> Traces:  # noqa: ARG002
        """Return the traces of all kernels."""
        return joined([*outcomes])

    def report(self, found: Mapping[FigureSetting, Traces]) -> Traced:
        """Return the traces, and the sentences that they decide."""
        return Traced(found, self._conclusions(found))

    def further(self, found: Mapping[FigureSetting, Traces]) -> tuple[Self, list[FigureSetting]] | None:
        """Return the source with twice as many kernels, if a sentence is undecided and a round is left."""
        decided = all(conclusion.verdict != "undecided" for conclusion in self._conclusions(found))
        return None if decided or self.doubled == self.rounds else (replace(self, doubled=self.doubled + 1), [*found])

    def _conclusions(self, found: Mapping[FigureSetting, Traces]) -> list[Conclusion]:
        return draw_figure_conclusions(found, self.kernels, self.rounds)

    def draw(self, found: Mapping[FigureSetting, Traces], folder: Path) -> list[str]:
        """Draw the two figures and the barrier."""
        from convla.experiments.rck.plots import plot_figures  # matplotlib takes half a second to import

        return plot_figures(found, folder)
