"""A source of experiments: its settings, cut into units of work; its report sets what they leave beside the printed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic

import numpy as np

from convla.experiments.folder import Table
from convla.experiments.session import Job, O, U

__all__ = ["Conclusion", "Part", "Report", "Sheet", "Source", "joined"]


@dataclass(frozen=True)
class Conclusion:
    """A sentence with its verdict.

    Attributes
    ----------
    subject : str
        Where the sentence stands.
    statement : str
    verdict : {"holds", "does not hold", "undecided"}
    evidence : str
        The numbers behind the verdict.
    """

    subject: str
    statement: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class Sheet:
    """A table for a screen.

    Attributes
    ----------
    title : str
    headings : tuple of str
    rows : sequence of sequence of str
    words : tuple of str
        The headings of columns of words; all others are of numbers.
    notes : list of str
        What is to be said below it.
    """

    title: str
    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    words: tuple[str, ...]
    notes: list[str]


class Report:
    """What the outcomes of a source's settings say: the sentences that they decide, and whatever there is besides."""

    conclusions: list[Conclusion]

    def tables(self) -> dict[str, Table]:
        """Return the tables by the names of their CSV files."""
        return {}

    def as_data(self) -> dict[str, Any]:
        """Return what the report says but for the conclusions as plain data, for JSON."""
        return {}

    def totals(self) -> dict[str, Any]:
        """Return what the manifest keeps of it."""
        return {}

    def sheets(self) -> list[Sheet]:
        """Return what is shown on a screen."""
        return []

    def summary(self) -> list[str]:
        """Return the lines that end it there."""
        return []


@dataclass(frozen=True)
class Part(Generic[U]):
    """Some rows of what a setting leaves, from `start` to before `stop` of `size`; the unit of work."""

    setting: U
    start: int
    stop: int
    size: int

    @property
    def name(self) -> str:
        """The name of its file: the setting's, with its place where it is not the whole."""
        whole = self.stop - self.start == self.size
        return self.setting.name if whole else f"{self.setting.name}-{self.start}-{self.stop}"

    def describe(self) -> dict[str, Any]:
        """Return the setting, and the place in it, as plain data."""
        return self.setting.describe() | {"start": self.start, "stop": self.stop}


class Source(Job[Part[U], O]):
    """The settings of a source, how a part of one is run, and what is made of all of them."""

    @abstractmethod
    def units(self) -> tuple[U, ...]:
        """Return the settings that are to be run, each once."""

    @abstractmethod
    def size(self, unit: U) -> int:
        """Return how long each array is that a setting leaves."""

    @abstractmethod
    def cut(self, unit: U) -> int:
        """Return how many rows of it take about a second; the same on every machine."""

    def parts(self, unit: U) -> list[Part[U]]:
        """Return the parts of a setting, in their order."""
        return self.span(unit, 0, self.size(unit))

    def span(self, unit: U, first: int, size: int) -> list[Part[U]]:
        """Return the parts of the rows from `first` to before `size`."""
        step = self.cut(unit)
        return [Part(unit, start, min(start + step, size), size) for start in range(first, size, step)]

    def further(self, outcomes: Mapping[U, O]) -> list[Part[U]]:  # noqa: ARG002
        """Return the parts that would decide what these outcomes leave undecided; none if all is decided, or may be."""
        return []

    def rows(self, unit: Part[U]) -> int:
        """Return how long each array is that a part leaves."""
        return unit.stop - unit.start

    @abstractmethod
    def report(self, outcomes: Mapping[U, O]) -> Report:
        """Return what outcomes say."""

    @abstractmethod
    def draw(self, outcomes: Mapping[U, O], folder: Path) -> list[str]:
        """Draw pictures of outcomes into a folder, and return their names."""


def joined(outcomes: Sequence[O]) -> O:
    """Return dataclasses of arrays as one, their rows one after the other."""
    first = outcomes[0]
    columns = {
        field.name: np.concatenate([getattr(outcome, field.name) for outcome in outcomes])
        for field in fields(first)  # type: ignore[arg-type]
    }
    return type(first)(**columns)
