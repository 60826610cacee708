"""Ways to run a list of settings: one after the other on this process's threads, or spread over processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from convla._threads import at_most, blas_on_one_thread
from convla._validate import check_choice
from convla.experiments.outcome import Outcome, run_setting
from convla.experiments.processes import in_processes
from convla.experiments.rck_settings import FigureSetting, Traces, run_figure
from convla.experiments.settings import Readings, Setting

__all__ = [
    "EXECUTORS",
    "AnyOutcome",
    "AnySetting",
    "Job",
    "Watcher",
    "run_jobs",
]

AnySetting: TypeAlias = Setting | FigureSetting
AnyOutcome: TypeAlias = Outcome | Traces

EXECUTORS = ("local", "loky")


class Watcher(Protocol):
    """Who is told how a run goes: a progress display, or nobody."""

    def start(self, setting: AnySetting, repetitions: int) -> None:
        """Hear that a setting begins."""

    def advance(self, setting: AnySetting, repetitions: int) -> None:
        """Hear that so many more repetitions of a setting are done."""

    def finish(self, setting: AnySetting) -> None:
        """Hear that a setting is done, and saved."""


class Job:
    """How to run one setting; a picklable callable.

    Parameters
    ----------
    readings : Readings
    repetitions, seed : int
    engine : str
    kernels : int
        Random kernels of each descent of the figures.
    """

    def __init__(self, readings: Readings, repetitions: int, seed: int, engine: str, kernels: int) -> None:
        self.readings = readings
        self.repetitions = repetitions
        self.seed = seed
        self.engine = engine
        self.kernels = kernels

    def size(self, setting: AnySetting) -> int:
        """Return how many repetitions the setting has."""
        return self.kernels if isinstance(setting, FigureSetting) else self.repetitions

    def __call__(self, setting: AnySetting, advance: Callable[[int], None] = lambda _: None) -> AnyOutcome:
        """Run the setting."""
        if isinstance(setting, FigureSetting):
            return run_figure(setting, kernels=self.kernels, seed=self.seed, advance=advance)
        return run_setting(
            setting,
            self.readings,
            repetitions=self.repetitions,
            seed=self.seed,
            engine=self.engine,
            advance=advance,
        )


def run_jobs(
    job: Job, settings: Sequence[AnySetting], *, executor: str, workers: int, watcher: Watcher
) -> Iterator[tuple[AnySetting, AnyOutcome]]:
    """Yield each setting with its outcome as it ends, in any order.

    Parameters
    ----------
    job : Job
    settings : sequence of Setting or FigureSetting
    executor : {"local", "loky"}
        "local" runs them in order, each on `workers` threads; "loky" (extra ``parallel``) runs one in each of `workers`
        processes, which pays for the reference engine, a single thread otherwise.
    workers : int
        At least 1.
    watcher : Watcher

    Raises
    ------
    EngineError
        If the executor needs a package that is not installed.
    """
    check_choice("executor", executor, EXECUTORS)
    if executor == "local":
        yield from _run_local(job, settings, workers, watcher)
    else:
        yield from _run_loky(job, settings, workers, watcher)


def _run_local(
    job: Job, settings: Sequence[AnySetting], workers: int, watcher: Watcher
) -> Iterator[tuple[AnySetting, AnyOutcome]]:
    with at_most(workers), blas_on_one_thread():
        for setting in settings:
            watcher.start(setting, job.size(setting))
            yield setting, job(setting, functools.partial(watcher.advance, setting))


def _run_loky(
    job: Job, settings: Sequence[AnySetting], workers: int, watcher: Watcher
) -> Iterator[tuple[AnySetting, AnyOutcome]]:
    # One thread each: the processes are the parallelism.
    one_thread = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    ended = in_processes(job, settings, workers=workers, environment=one_thread, asked="executor 'loky'")
    for setting in settings:
        watcher.start(setting, job.size(setting))
    for setting, outcome in ended:
        watcher.advance(setting, job.size(setting))
        yield setting, outcome
