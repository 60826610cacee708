"""A source of experiments: its settings, cut into units of work; its report sets what they leave beside the printed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from convla.experiments.folder import Table
from convla.experiments.session import Job, O, U

__all__ = ["Conclusion", "Report", "Sheet", "Source"]

S = TypeVar("S")
"""What a report needs of a setting."""


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


class Source(Job[U, O], Generic[U, O, S]):
    """The settings of a source, how a part of one is run, and what is made of all of them."""

    @abstractmethod
    def units(self) -> tuple[U, ...]:
        """Return the settings that are to be run, each once."""

    @abstractmethod
    def summarize(self, unit: U, outcomes: Iterable[O]) -> S:
        """Return what the report needs of a setting, from its rows as a stream."""

    def further(self, found: Mapping[U, S]) -> tuple[Self, list[U]] | None:  # noqa: ARG002
        """Return the same source with more rows of some settings, to decide what these summaries leave undecided.

        None if all is decided, or nothing more may be run.
        """
        return None

    @abstractmethod
    def report(self, found: Mapping[U, S]) -> Report:
        """Return what the settings' summaries say."""

    @abstractmethod
    def draw(self, found: Mapping[U, S], folder: Path) -> list[str]:
        """Draw pictures of them into a folder, and return their names."""
