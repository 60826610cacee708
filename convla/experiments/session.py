"""Units of work, each run as a whole and saved as it ends; what a results folder holds already is not run again."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from convla.experiments.folder import ResultsError, ResultsFolder
from convla.experiments.pool import Pool

__all__ = ["Job", "O", "Session", "U", "Unit", "Watcher"]


class Unit(Hashable, Protocol):
    """What is run as a whole, and saved in one file."""

    @property
    def name(self) -> str:
        """The name of its file."""

    def describe(self) -> dict[str, Any]:
        """Return what it is, as plain data."""


U = TypeVar("U", bound=Unit)
O = TypeVar("O")  # noqa: E741  (an outcome, a dataclass of arrays)


class Watcher:
    """Who is told how it goes. This one keeps silent; a progress display overrides what it shows."""

    def plan(self, units: int, saved: int) -> None:
        """Hear how many units there are, and how many of them are saved already."""

    def start(self, unit: Unit, steps: int) -> None:
        """Hear that a unit of so many steps begins."""

    def advance(self, unit: Unit, steps: int) -> None:
        """Hear that so many more steps of a unit are done."""

    def finish(self, unit: Unit) -> None:
        """Hear that a unit is done, and saved."""


class Job(ABC, Generic[U, O]):
    """How units of one kind are run. It can be pickled, so that other processes can run them."""

    kind: ClassVar[type[Any]]
    """The dataclass of arrays that a unit leaves."""

    def describe(self, unit: U) -> dict[str, Any]:
        """Return what the numbers of a unit depend on beside the folder's identity, as plain data."""
        return unit.describe()

    @abstractmethod
    def rows(self, unit: U) -> int:
        """Return how long each array is that a unit leaves."""

    @abstractmethod
    def __call__(self, unit: U, advance: Callable[[int], None] = lambda _: None) -> O:
        """Run a unit; `advance` is told how many more steps are done, from time to time."""

    def steps(self, unit: U) -> int:
        """Return how many steps a unit has, as `advance` counts them."""
        return self.rows(unit)

    def forget(self, unit: U) -> None:
        """Remove what an unfinished run of the unit has left behind."""


class Session(Generic[U, O]):
    """Run units, in a folder.

    Parameters
    ----------
    folder : ResultsFolder
    pool : Pool
    watcher : Watcher, optional
    resume : bool
        Take from the folder what has already ended there.

    Attributes
    ----------
    resumed : int
        How many units were taken from the folder.
    """

    def __init__(self, folder: ResultsFolder, pool: Pool, watcher: Watcher | None = None, *, resume: bool) -> None:
        self.resumed = 0
        self._folder, self._pool, self._resume = folder, pool, resume
        self._watcher = watcher or Watcher()

    def announce(self, work: Iterable[tuple[Job[Any, Any], Iterable[Any]]]) -> None:
        """Tell the watcher of all units that jobs will be asked to complete, each of them once."""
        units = saved = 0
        for job, of_job in work:
            for unit in of_job:
                units += 1
                saved += self._load(job, unit) is not None
        self._watcher.plan(units, saved)

    def complete(self, job: Job[U, O], units: Sequence[U]) -> dict[U, O]:
        """Return what units leave, in their order: what is not saved is run first."""
        self.run(job, dict.fromkeys(units))
        return {unit: self.saved(job, unit) for unit in units}

    def run(self, job: Job[U, O], units: Iterable[U]) -> None:
        """Run the units that are not saved, and save each as it ends; neither they nor what they leave are kept."""
        for unit, outcome in self._run(job, self._missing(job, units)):
            self._folder.save(unit.name, job.describe(unit), outcome)
            job.forget(unit)
            self._watcher.finish(unit)

    def saved(self, job: Job[U, O], unit: U) -> O:
        """Return what a unit that has been run left.

        Raises
        ------
        ResultsError
            If its file is gone.
        """
        found: O | None = self._folder.load(unit.name, job.describe(unit), job.kind, job.rows(unit))
        if found is None:
            raise ResultsError(f"{self._folder.path}: {unit.name} is gone, though it was saved")
        return found

    def _missing(self, job: Job[U, O], units: Iterable[U]) -> Iterator[U]:
        for unit in units:
            if self._load(job, unit) is not None:
                self.resumed += 1
                continue
            if not self._resume:
                job.forget(unit)
            yield unit

    def _run(self, job: Job[U, O], units: Iterable[U]) -> Iterator[tuple[U, O]]:
        if self._pool.is_local:
            with self._pool.limits():
                for unit in units:
                    self._watcher.start(unit, job.steps(unit))
                    yield unit, job(unit, functools.partial(self._watcher.advance, unit))
        else:
            for unit, outcome in self._pool.map(job, units):
                self._watcher.start(unit, job.steps(unit))
                self._watcher.advance(unit, job.steps(unit))
                yield unit, outcome

    def _load(self, job: Job[U, O], unit: U) -> O | None:
        if not self._resume:
            return None
        found: O | None = self._folder.load(unit.name, job.describe(unit), job.kind, job.rows(unit))
        return found
