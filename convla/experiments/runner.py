"""Run what the targets need, setting by setting, saving each as it ends; resume what was interrupted."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from convla._dispatch import ENGINES
from convla._validate import check_choice, check_integer
from convla.experiments.executors import EXECUTORS, AnyOutcome, AnySetting, Job, Watcher, run_jobs
from convla.experiments.outcome import Outcome
from convla.experiments.rck_settings import FigureSetting, Traces, figure_settings
from convla.experiments.report import Report, build_report
from convla.experiments.results import ResultsFolder
from convla.experiments.settings import TARGETS, Readings, Setting, control_settings, table_settings

__all__ = ["DEFAULT_TARGETS", "Request", "Run", "reproduce"]

DEFAULT_TARGETS = ("tables", "controls")


@dataclass(frozen=True)
class Request:
    """What to run, and how.

    Attributes
    ----------
    targets : tuple of str
        Of `convla.experiments.settings.TARGETS`.
    repetitions : int
        Of every setting, at least 2.
    seed : int
        At least 0.
    kernels : int
        Random kernels of each descent of the figures, at least 2.
    readings : Readings
    engine : {"auto", "reference", "numba", "cuda"}
    executor : {"local", "loky"}
    workers : int
        Threads or processes, at least 1.
    output : path
        The results folder.
    resume : bool
        Take from the folder what has already ended there.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong in type or value.
    """

    targets: tuple[str, ...] = DEFAULT_TARGETS
    repetitions: int = 1000
    seed: int = 0
    kernels: int = 5
    readings: Readings = field(default_factory=Readings)
    engine: str = "auto"
    executor: str = "local"
    workers: int = os.cpu_count() or 1
    output: str | os.PathLike[str] = "results"
    resume: bool = False

    def __post_init__(self) -> None:
        for target in self.targets:
            check_choice("target", target, TARGETS)
        check_integer("repetitions", self.repetitions, minimum=2)
        check_integer("seed", self.seed, minimum=0)
        check_integer("kernels", self.kernels, minimum=2)
        check_choice("engine", self.engine, ENGINES)
        check_choice("executor", self.executor, EXECUTORS)
        check_integer("workers", self.workers, minimum=1)

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers depend on; the engine, the executor and the workers change no bit of them."""
        return {
            "seed": self.seed,
            "repetitions": self.repetitions,
            "kernels": self.kernels,
            **asdict(self.readings),
        }

    def settings(self) -> tuple[AnySetting, ...]:
        """Return the settings that the targets need, each once."""
        tables = [target for target in self.targets if target.startswith("table")]
        needed: dict[AnySetting, None] = dict.fromkeys(table_settings(tables) if tables else ())
        if "controls" in self.targets:
            needed |= dict.fromkeys(control_settings())
        if "figures" in self.targets:
            needed |= dict.fromkeys(figure_settings())
        return tuple(needed)


@dataclass(frozen=True)
class Run:
    """What `reproduce` returns: the report, the outcomes it stands on, and the folder that holds both."""

    report: Report
    outcomes: dict[Setting, Outcome]
    figures: dict[FigureSetting, Traces]
    folder: Path
    files: list[str]
    seconds: float


class _Silence:
    def start(self, setting: AnySetting, repetitions: int) -> None:
        pass

    def advance(self, setting: AnySetting, repetitions: int) -> None:
        pass

    def finish(self, setting: AnySetting) -> None:
        pass


def reproduce(request: Request, watcher: Watcher | None = None) -> Run:
    """Run the settings of a request, save them, and report on them beside the printed numbers.

    Parameters
    ----------
    request : Request
    watcher : Watcher, optional
        Who is told how it goes.

    Returns
    -------
    Run

    Raises
    ------
    ResultsError
        If the results folder cannot be used.
    EngineError
        If the engine or the executor is not available.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = reproduce(Request(targets=("table1",), repetitions=50, output=folder))
    >>> run.files, run.report.within(3.0)[1]
    (['table1.csv', 'conclusions.csv'], 12)
    """
    watcher = watcher or _Silence()
    folder = ResultsFolder(request.output, request.identity)
    settings = request.settings()
    began = time.perf_counter()
    manifest = _describe(request, settings)
    folder.write_manifest(manifest)
    done: dict[AnySetting, AnyOutcome] = {}
    if request.resume:
        saved = {setting: _load(folder, setting) for setting in settings}
        done = {setting: outcome for setting, outcome in saved.items() if outcome is not None}
    job = Job(request.readings, request.repetitions, request.seed, request.engine, request.kernels)
    missing = [setting for setting in settings if setting not in done]
    for setting, outcome in run_jobs(job, missing, executor=request.executor, workers=request.workers, watcher=watcher):
        folder.save(setting, outcome)
        done[setting] = outcome
        watcher.finish(setting)
    # In the order of the settings, whichever ended first.
    outcomes = {s: o for s in settings if isinstance(s, Setting) and isinstance(o := done[s], Outcome)}
    figures = {s: t for s in settings if isinstance(s, FigureSetting) and isinstance(t := done[s], Traces)}
    report = build_report(outcomes, request.targets, figures)
    files = report.write(folder)
    seconds = time.perf_counter() - began
    folder.write_manifest(
        manifest
        | {
            "complete": True,
            "seconds": round(seconds, 3),
            "resumed_settings": len(settings) - len(missing),
            "diverged_repetitions": report.diverged,
            "verdicts": report.counts(),
            "files": files,
        }
    )
    return Run(report, outcomes, figures, folder.path, files, seconds)


def _load(folder: ResultsFolder, setting: AnySetting) -> AnyOutcome | None:
    return folder.load(setting, Traces) if isinstance(setting, FigureSetting) else folder.load(setting, Outcome)


def _describe(request: Request, settings: Sequence[AnySetting]) -> dict[str, Any]:
    packages = ("convla", "numpy", "scipy", "numba", "array-api-compat")
    return {
        "complete": False,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "targets": list(request.targets),
        "engine": request.engine,
        "executor": request.executor,
        "workers": request.workers,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "settings": [setting.describe() for setting in settings],
    }
