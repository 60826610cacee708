"""CSM Tables 1-6 and their controls as a source of experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from convla.experiments.csm.further import rows_of, wanted
from convla.experiments.csm.published import PUBLISHED_REPETITIONS
from convla.experiments.csm.report import Report, build_report, verdicts_on
from convla.experiments.csm.settings import Readings, Setting, control_settings, table_settings
from convla.experiments.descents.outcome import Outcome, run_setting
from convla.experiments.source import Part, Source

__all__ = ["Tables"]


@dataclass(frozen=True)
class Tables(Source[Setting, Outcome]):
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
    """

    targets: tuple[str, ...]
    repetitions: int
    seed: int
    readings: Readings
    engine: str
    rounds: int = 0

    kind: ClassVar[type[Any]] = Outcome

    def units(self) -> tuple[Setting, ...]:
        """Return the settings that the targets need."""
        tables = [target for target in self.targets if target.startswith("table")]
        tables += ["tables"] if "coverage" in self.targets else []
        needed = dict.fromkeys(table_settings(tables) if tables else ())
        if "controls" in self.targets:
            needed |= dict.fromkeys(control_settings())
        return tuple(needed)

    def size(self, unit: Setting) -> int:  # noqa: ARG002
        """Return the number of repetitions."""
        return self.repetitions

    def cut(self, unit: Setting) -> int:
        """Return the repetitions of a part."""
        return unit.descent(self.readings).part

    def __call__(self, unit: Part[Setting], advance: Callable[[int], None] = lambda _: None) -> Outcome:
        """Run a part of a setting."""
        return run_setting(
            unit.setting.descent(self.readings),
            repetitions=unit.stop - unit.start,
            start=unit.start,
            seed=self.seed,
            engine=self.engine,
            advance=advance,
        )

    def report(self, outcomes: Mapping[Setting, Outcome]) -> Report:
        """Return our cells beside the printed ones, the controls, and the sentences that they decide."""
        return build_report(outcomes, self.targets, self.repetitions, self.rounds)

    def further(self, outcomes: Mapping[Setting, Outcome]) -> list[Part[Setting]]:
        """Return runs of the published size, of settings that have undecided cells among the tables' asked for."""
        parts = []
        for setting, outcome in outcomes.items() if self.rounds else ():
            runs = (outcome.repetitions - self.repetitions) // PUBLISHED_REPETITIONS
            count = wanted(verdicts_on(setting, outcome, self.targets, self.repetitions, self.rounds), runs, self.rounds)
            size = self.repetitions + count * PUBLISHED_REPETITIONS
            parts += self.span(setting, outcome.repetitions, size) if count > runs else []
        return parts

    def draw(self, outcomes: Mapping[Setting, Outcome], folder: Path) -> list[str]:
        """Draw a PNG for every pair of tables, and one of the controls."""
        from convla.experiments.csm.plots import plot_run  # matplotlib takes half a second to import

        return plot_run({s: rows_of(outcome, 0, self.repetitions) for s, outcome in outcomes.items()}, folder)
