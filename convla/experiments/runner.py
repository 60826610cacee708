"""Run what the targets need, setting by setting, saving each as it ends; resume what was interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from convla._dispatch import engine_names
from convla._validate import check_choice, check_integer
from convla.experiments.executors import EXECUTORS, AnyOutcome, AnySetting, Job, Watcher, run_jobs
from convla.experiments.outcome import Outcome, check_engine
from convla.experiments.rck_settings import FigureSetting, Traces, figure_settings
from convla.experiments.report import Report, build_report
from convla.experiments.results import ResultsFolder, surroundings
from convla.experiments.settings import TARGETS, Readings, Setting, control_settings, table_settings

__all__ = ["DEFAULT_TARGETS", "Request", "Run", "reproduce", "saved_settings"]

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
        if not isinstance(self.readings, Readings):
            raise TypeError(f"readings must be Readings, got {self.readings!r}")
        check_choice("engine", self.engine, engine_names())
        check_choice("executor", self.executor, EXECUTORS)
        for name, low, high in (
            ("repetitions", 2, 10**8),
            ("seed", 0, None),
            ("kernels", 2, 10**4),
            ("workers", 1, None),
        ):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum=low, maximum=high))
        object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers depend on; the executor, the workers and the CPU's engines change no bit of them."""
        return {
            "seed": self.seed,
            "repetitions": self.repetitions,
            "kernels": self.kernels,
            **asdict(self.readings),
            "convla": metadata.version("convla"),
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


def saved_settings(request: Request) -> int:
    """Return how many settings of a request its results folder holds."""
    folder = ResultsFolder(request.output, request.identity)
    return sum(_load(folder, setting, request) is not None for setting in request.settings())


def reproduce(
    request: Request,
    watcher: Watcher | None = None,
    draw: Callable[[dict[Setting, Outcome], dict[FigureSetting, Traces], Path], list[str]] = lambda *_: [],
) -> Run:
    """Run the settings of a request, save them, and report on them beside the printed numbers.

    Parameters
    ----------
    request : Request
    watcher : Watcher, optional
        Who is told how it goes.
    draw : callable, optional
        Draws pictures of the outcomes and of the figures' traces into a folder and returns their names: by
        `convla.experiments.plots.plot_run` and `convla.experiments.rck_plots.plot_figures`, which need matplotlib.

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
    engine = check_engine(request.engine)
    folder = ResultsFolder(request.output, request.identity)
    settings = request.settings()
    began = time.perf_counter()
    manifest = _describe(request, settings, engine)
    folder.write_manifest(manifest)
    done: dict[AnySetting, AnyOutcome] = {}
    if request.resume:
        saved = {setting: _load(folder, setting, request) for setting in settings}
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
    files = report.write(folder) + draw(outcomes, figures, folder.path)
    seconds = time.perf_counter() - began
    folder.write_manifest(
        manifest
        | {
            "complete": True,
            "seconds": round(seconds, 3),  # of this run; what was resumed took its own
            "resumed_settings": len(settings) - len(missing),
            "diverged_repetitions": report.diverged,
            "verdicts": report.counts(),
            "files": files,
        }
    )
    return Run(report, outcomes, figures, folder.path, files, seconds)


def _load(folder: ResultsFolder, setting: AnySetting, request: Request) -> AnyOutcome | None:
    if isinstance(setting, FigureSetting):
        return folder.load(setting, Traces, request.kernels)
    return folder.load(setting, Outcome, request.repetitions)


def _describe(request: Request, settings: Sequence[AnySetting], engine: str) -> dict[str, Any]:
    return {
        "complete": False,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "targets": list(request.targets),
        "engine": engine,
        "executor": request.executor,
        "workers": request.workers,
        **surroundings(("convla", "numpy", "scipy", "numba", "array-api-compat")),
        "settings": [setting.describe() for setting in settings],
    }
