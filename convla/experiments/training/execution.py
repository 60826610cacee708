"""Runs done one after the other in this process, or several at a time in processes of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from convla.experiments.processes import in_processes
from convla.experiments.training.curves import Curves
from convla.experiments.training.datasets import Dataset, load_dataset
from convla.experiments.training.settings import Run

__all__ = ["Job", "Watcher", "load_once", "run_all"]


class Watcher(Protocol):
    """Who is told how it goes: a progress display, or nobody."""

    def plan(self, runs: int, saved: int) -> None:
        """Hear how many runs there are, and how many of them are saved already."""

    def start(self, run: Run) -> None:
        """Hear that a run begins."""

    def advance(self, run: Run, epochs: int) -> None:
        """Hear that so many more epochs of a run are done."""

    def finish(self, run: Run) -> None:
        """Hear that a run is done, and saved."""


@functools.cache
def load_once(name: str, folder: Path) -> Dataset:
    """Return a data set, read once in each process."""
    return load_dataset(name, folder)


@dataclass(frozen=True)
class Job:
    """How a run is done; a picklable callable.

    Attributes
    ----------
    data : Path
        The folder of the data sets.
    checkpoints : Path
        The folder of the states of runs that have begun.
    device : str
    threads : int
    """

    data: Path
    checkpoints: Path
    device: str
    threads: int

    def checkpoint(self, run: Run) -> Path:
        """Return where the state of a run is saved."""
        return self.checkpoints / f"{run.name}.pt"

    def __call__(self, run: Run, advance: Callable[[int], None] = lambda _: None) -> Curves:
        """Do the run, from its checkpoint if there is one."""
        from convla.experiments.training.trainer import train

        dataset = load_once(run.training.dataset, self.data)
        checkpoint = self.checkpoint(run)
        return train(run, dataset, device=self.device, threads=self.threads, checkpoint=checkpoint, advance=advance)


def run_all(job: Job, runs: Sequence[Run], *, workers: int, watcher: Watcher) -> Iterator[tuple[Run, Curves]]:
    """Yield each run with its curves as it ends, in any order.

    Parameters
    ----------
    job : Job
    runs : sequence of Run
    workers : int
        Processes; 1 is this one.
    watcher : Watcher

    Raises
    ------
    EngineError
        If more than one worker is asked for and loky is not installed.
    """
    if workers == 1:
        for run in runs:
            watcher.start(run)
            yield run, job(run, functools.partial(watcher.advance, run))
    elif runs:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads))
        for run, curves in in_processes(job, runs, workers=workers, environment=threads, asked="more than one worker"):
            watcher.start(run)
            yield run, curves
