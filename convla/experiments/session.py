"""Units of work, cut into parts that are saved as they end; rows that a folder holds already are not run again."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from convla.experiments.folder import ResultsError, ResultsFolder
from convla.experiments.pool import Workers
from convla.experiments.records import DamagedRecordError, RecordFile
from convla.extending import flush_folder

__all__ = ["Job", "O", "Part", "Session", "U", "Unit", "Watcher", "joined"]


class Unit(Hashable, Protocol):
    """What leaves some rows, saved in one file."""

    @property
    def name(self) -> str:
        """The name of its file."""

    def describe(self) -> dict[str, Any]:
        """Return what it is, as plain data."""


MOST_WAITING = 1024
"""Parts that wait to be saved together: they are there for good some 10 ms later, however many they are."""

TRIES = 3
"""How often rows of a unit may turn out to be damaged, before that is an error."""

FLUSHED = 4
"""Files that are flushed to the disk at a time."""

MOST_BYTES = 2**26
"""Of the arrays that wait to be saved, but for the last."""

U = TypeVar("U", bound=Unit)
O = TypeVar("O")  # noqa: E741  (an outcome, a dataclass of arrays)


@dataclass(frozen=True)
class Part(Generic[U]):
    """Some rows of what a unit leaves, from `start` to before `stop`; what a worker is given."""

    unit: U
    start: int
    stop: int
    size: int = 0
    """Of the whole."""

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def title(self) -> str:
        """What a screen calls it."""
        title = str(getattr(self.unit, "title", self.unit.name))
        return title if self.rows == self.size else f"{title}, {self.start} to {self.stop}"


class Watcher:
    """Who is told how it goes. This one keeps silent; a progress display overrides what it shows."""

    def plan(self, parts: int, saved: int) -> None:
        """Hear how many parts there are, and how many of them are saved already."""

    def start(self, part: Part[Any], steps: int) -> None:
        """Hear that a part of so many steps begins."""

    def advance(self, part: Part[Any], steps: int) -> None:
        """Hear that so many more steps of a part are done."""

    def finish(self, part: Part[Any]) -> None:
        """Hear that a part is done, and saved."""

    def damaged(self, file: str, places: int) -> None:
        """Hear that so many places of a file could not be read, whose rows are run again."""


class Job(ABC, Generic[U, O]):
    """How units of one kind are run. It can be pickled, so that other processes can run them."""

    kind: ClassVar[type[Any]]
    """The dataclass of arrays that a unit leaves."""

    def describe(self, unit: U) -> dict[str, Any]:
        """Return what the numbers of a unit depend on beside the folder's identity, as plain data."""
        return unit.describe()

    @abstractmethod
    def size(self, unit: U) -> int:
        """Return how long each array is that a unit leaves."""

    def cut(self, unit: U) -> int:
        """Return how many rows a part has: all, or as many as take about a second, the same on every machine."""
        return self.size(unit)

    @abstractmethod
    def __call__(self, part: Part[U], advance: Callable[[int], None] = lambda _: None) -> O:
        """Run a part; `advance` is told how many more steps are done, from time to time."""

    def steps(self, part: Part[U]) -> int:
        """Return how many steps a part has, as `advance` counts them."""
        return part.rows

    def forget(self, unit: U) -> None:
        """Remove what an unfinished run of the unit has left behind."""


class Session(Generic[U, O]):
    """Run units, in a folder.

    Parameters
    ----------
    folder : ResultsFolder
    workers : Workers
    watcher : Watcher, optional
    resume : bool
        Take from the folder the rows that are there, however the run was cut that left them. Otherwise units begin
        anew.

    Attributes
    ----------
    resumed : int
        How many parts were taken from the folder.
    damaged : int
        How many records in it could not be read; their rows were run again.
    """

    def __init__(
        self, folder: ResultsFolder, workers: Workers, watcher: Watcher | None = None, *, resume: bool
    ) -> None:
        self.resumed = self.damaged = 0
        self._folder, self._workers, self._resume = folder, workers, resume
        self._watcher = watcher or Watcher()
        self._files: dict[Any, RecordFile] = {}
        self._ended = 0

    def announce(self, work: Iterable[tuple[Job[Any, Any], Iterable[Any]]]) -> None:
        """Find what is saved of the units that jobs will be asked for, and tell the watcher of all parts."""
        parts = 0
        for job, units in work:
            for unit in dict.fromkeys(units):
                parts += sum(1 for _ in self._missing(job, unit))
        saved = self.resumed + self._ended
        self._watcher.plan(saved + parts, saved)

    def complete(self, job: Job[U, O], units: Sequence[U]) -> dict[U, O]:
        """Return what units leave, in their order: what is not saved is run first."""
        self.run(job, units)
        return {unit: joined([*self.outcomes(job, unit)]) for unit in units}

    def run(self, job: Job[U, O], units: Iterable[U]) -> None:
        """Run what is not saved of units, and save each part as it ends; nothing of it is kept in memory."""
        parts = (part for unit in dict.fromkeys(units) for part in self._missing(job, unit))
        waiting: list[tuple[Part[U], O]] = []
        written: list[tuple[Part[U], O]] = []
        held = 0
        # The disk is waited for beside the work, for all parts together that ended meanwhile.
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] = writer.submit(lambda: None)

            def hand_over() -> None:
                nonlocal waiting, written, writing
                writing.result()
                while written:
                    part, _ = written.pop(0)  # before it is told of: after Ctrl-C nothing is told twice
                    job.forget(part.unit)
                    self._ended += 1
                    self._watcher.finish(part)
                # What Ctrl-C comes in between of still waits, and may be saved twice, which does no harm.
                writing, written, waiting = writer.submit(self._save, job, waiting), waiting, []

            try:
                for part, outcome in self._run(job, parts):
                    waiting.append((part, outcome))
                    held += sum(values.nbytes for values in vars(outcome).values())
                    if writing.done() or len(waiting) == MOST_WAITING or held > MOST_BYTES:
                        hand_over()
                        held = 0
            finally:
                try:
                    hand_over()
                finally:  # what ended is saved even if Ctrl-C comes as the other is told of
                    hand_over()

    def outcomes(self, job: Job[U, O], unit: U) -> Iterator[O]:
        """Yield what a unit that has been run left, some rows after the other, each read once.

        Rows of records that turn out to be damaged are run again.

        Raises
        ------
        ResultsError
            If the file is gone, or cannot be read.
        """
        file, row, size = self._file(job, unit), 0, job.size(unit)
        names = [field.name for field in fields(job.kind)]
        tries = 0
        while row < size:
            try:
                for stop, arrays in file.rows(row, size):
                    yield job.kind(**dict(zip(names, arrays, strict=True)))
                    row = stop
            except DamagedRecordError as error:
                self._tell(file)
                tries += 1
                if tries == TRIES:
                    raise ResultsError(f"{file.path}: what is written there comes back as something else") from error
                self.run(job, [unit])
            except (OSError, IndexError) as error:
                raise ResultsError(f"{file.path}: rows are gone that were saved: {error}") from error

    def _file(self, job: Job[U, O], unit: U) -> RecordFile:
        """Return the file of a unit, looked at once; empty when this session begins anew."""
        found = self._files.get(unit)
        if found is None:
            found = self._files[unit] = self._folder.records(unit.name, job.describe(unit))
            if self._resume:
                self.resumed += found.count(job.size(unit))
                self._tell(found)
            else:
                found.forget()
                job.forget(unit)
        return found

    def _tell(self, file: RecordFile) -> None:
        if file.damaged:
            self.damaged += file.damaged
            self._watcher.damaged(str(file.path), file.damaged)
            file.damaged = 0

    def _missing(self, job: Job[U, O], unit: U) -> Iterator[Part[U]]:
        size, step = job.size(unit), job.cut(unit)
        for start, stop in self._file(job, unit).missing(size):
            for first in range(start - start % step, stop, step):
                yield Part(unit, max(first, start), min(first + step, stop), size)

    def _run(self, job: Job[U, O], parts: Iterable[Part[U]]) -> Iterator[tuple[Part[U], O]]:
        if self._workers.pool.is_local:
            for part in parts:
                self._watcher.start(part, job.steps(part))
                with self._workers.pool.limits():
                    outcome = job(part, functools.partial(self._watcher.advance, part))
                yield part, outcome
        else:
            for part, outcome in self._workers.map(job, parts):
                self._watcher.start(part, job.steps(part))
                self._watcher.advance(part, job.steps(part))
                yield part, outcome

    def _save(self, job: Job[U, O], ended: Sequence[tuple[Part[U], O]]) -> None:
        files = {part.unit: self._file(job, part.unit) for part, _ in ended}
        path = self._folder.path
        try:
            for part, outcome in ended:
                path = files[part.unit].path
                files[part.unit].append(part.start, part.stop, [*vars(outcome).values()])
            with ThreadPoolExecutor(FLUSHED) as disk:  # which does not wait for one after the other
                for _ in disk.map(RecordFile.flush, files.values()):
                    pass
            if files:
                flush_folder(path.parent)
        except OSError as error:
            raise ResultsError(f"{path} cannot be written: {error.strerror}") from error


def joined(outcomes: Sequence[O]) -> O:
    """Return dataclasses of arrays as one, their rows one after the other."""
    first = outcomes[0]
    columns = {
        field.name: np.concatenate([getattr(outcome, field.name) for outcome in outcomes])
        for field in fields(first)  # type: ignore[arg-type]
    }
    return type(first)(**columns)
