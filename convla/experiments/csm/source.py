"""CSM Tables 1-6 and their controls as a source of experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from convla.experiments.csm.further import wanted
from convla.experiments.csm.published import PUBLISHED_REPETITIONS
from convla.experiments.csm.report import Report, build_report, verdicts_on
from convla.experiments.csm.settings import Readings, Setting, control_settings, table_settings
from convla.experiments.csm.summary import Summary, summarize
from convla.experiments.descents.outcome import Outcome, run_setting
from convla.experiments.session import Part
from convla.experiments.source import Source

__all__ = ["Tables"]


@dataclass(frozen=True)
class Tables(Source[Setting, Outcome, Summary]):
    """The tables and controls among some targets.

    Attributes
    ----------
    targets : tuple of str
        Of which those in `convla.experiments.csm.settings.TARGETS` are this source's.
    repetitions, seed : int
    readings : Readings
    engine : str
    rounds : int
        In how many rounds further runs may be added to a setting with undecided cells.
    runs : dict of Setting to int
        How many there are.
    """

    targets: tuple[str, ...]
    repetitions: int
    seed: int
    readings: Readings
    engine: str
    rounds: int = 0
    runs: Mapping[Setting, int] = field(default_factory=dict)

    kind: ClassVar[type[Any]] = Outcome

    def units(self) -> tuple[Setting, ...]:
        """Return the settings that the targets need."""
        tables = [target for target in self.targets if target.startswith("table")]
        tables += ["tables"] if "coverage" in self.targets else []
        needed = dict.fromkeys(table_settings(tables) if tables else ())
        if "controls" in self.targets:
            needed |= dict.fromkeys(control_settings())
        return tuple(needed)

    def size(self, unit: Setting) -> int:
        """Return the number of repetitions, those of further runs included."""
        return self.repetitions + self.runs.get(unit, 0) * PUBLISHED_REPETITIONS

    def cut(self, unit: Setting) -> int:
        """Return the repetitions of a part."""
        return unit.descent(self.readings).part

    def __call__(self, part: Part[Setting], advance: Callable[[int], None] = lambda _: None) -> Outcome:
        """Run a part of a setting."""
        return run_setting(
            part.unit.descent(self.readings),
            repetitions=part.rows,
            start=part.start,
            seed=self.seed,
            engine=self.engine,
            advance=advance,
        )

    def summarize(self, unit: Setting, outcomes: Iterable[Outcome]) -> Summary:
        """Return the estimates of a setting, with no more than so many of its repetitions."""
        cut = "coverage" in self.targets and unit.control == "loss"
        return summarize(outcomes, run=PUBLISHED_REPETITIONS if cut else 0, repetitions=self.repetitions)

    def further(self, found: Mapping[Setting, Summary]) -> tuple[Self, list[Setting]] | None:
        """Return the source with runs of the published size of settings that have undecided cells."""
        if not self.rounds:
            return None
        more = {
            setting: count
            for setting, summary in found.items()
            if (count := wanted(verdicts_on(setting, summary, self.targets), self.runs.get(setting, 0), self.rounds))
            > self.runs.get(setting, 0)
        }
        return (replace(self, runs={**self.runs, **more}), [*more]) if more else None

    def report(self, found: Mapping[Setting, Summary]) -> Report:
        """Return our cells beside the printed ones, the controls, and the sentences that they decide."""
        return build_report(found, self.targets, self.runs, self.rounds)

    def draw(self, found: Mapping[Setting, Summary], folder: Path) -> list[str]:
        """Draw a PNG for every pair of tables, and one of the controls."""
        from convla.experiments.csm.plots import plot_run  # matplotlib takes half a second to import

        return plot_run({setting: summary.kept for setting, summary in found.items()}, folder)
