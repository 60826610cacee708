"""The experiments of the sources, run as one: what the targets need, saved part by part, beside the printed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from convla.experiments.csm import settings as csm
from convla.experiments.csm.settings import Readings
from convla.experiments.csm.source import Tables
from convla.experiments.descents.outcome import check_engine
from convla.experiments.folder import ResultsFolder, surroundings
from convla.experiments.pool import Pool, Workers
from convla.experiments.rck import source as rck
from convla.experiments.session import Session, Watcher
from convla.experiments.source import Conclusion, Report, Source
from convla.extending import check_choice, check_integer, engine_names

__all__ = ["DEFAULT_TARGETS", "TARGETS", "Request", "Run", "reproduce"]

TARGETS = (*csm.TARGETS, *rck.TARGETS)
DEFAULT_TARGETS = ("tables", "controls")


@dataclass(frozen=True)
class Request:
    """What to run, and how.

    Attributes
    ----------
    targets : tuple of str
        Of `TARGETS`.
    repetitions : int
        Of every setting, at least 2.
    seed : int
        At least 0.
    kernels : int
        Random kernels of each descent of the figures, at least 2.
    rounds : int
        In how many rounds at most more is run of what is left undecided; each doubles what the one before has added.
    readings : Readings
    engine : {"auto", "reference", "numba", "cuda"}
    executor : str or concurrent.futures.Executor
        As `convla.experiments.pool.Pool` takes it.
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
    kernels: int = 12
    rounds: int = 0
    readings: Readings = field(default_factory=Readings)
    engine: str = "auto"
    executor: str | Executor = "local"
    workers: int = os.cpu_count() or 1
    output: str | os.PathLike[str] = "results"
    resume: bool = False

    def __post_init__(self) -> None:
        for target in self.targets:
            check_choice("target", target, TARGETS)
        if not isinstance(self.readings, Readings):
            raise TypeError(f"readings must be Readings, got {self.readings!r}")
        check_choice("engine", self.engine, engine_names())
        for name, low, high in (
            ("repetitions", 2, 10**8),
            ("seed", 0, None),
            ("kernels", 2, 10**4),
            ("rounds", 0, 10),
            ("workers", 1, None),
        ):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum=low, maximum=high))
        object.__setattr__(self, "targets", tuple(self.targets))
        self.pool()  # refuses what is no executor

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

    def sources(self) -> tuple[Source[Any, Any, Any], ...]:
        """Return the sources; those that no target asks for have no units."""
        return (
            Tables(self.targets, self.repetitions, self.seed, self.readings, self.engine, self.rounds),
            rck.Figures(self.targets, self.kernels, self.seed, self.rounds),
        )

    def pool(self) -> Pool:
        """Return where the settings are run."""
        return Pool.of(self.executor, self.workers)


@dataclass(frozen=True)
class Run:
    """What `reproduce` returns.

    Attributes
    ----------
    reports : tuple of Report
        That of CSM's tables, and that of RCK's figures.
    found : dict
        By the setting, what is left of it: a `convla.experiments.csm.summary.Summary`, or the traces of a figure.
    folder : Path
        Which holds both.
    files : list of str
    seconds : float
    """

    reports: tuple[Report, ...]
    found: dict[Any, Any]
    folder: Path
    files: list[str]
    seconds: float

    @property
    def conclusions(self) -> list[Conclusion]:
        """The sentences of all reports."""
        return [conclusion for report in self.reports for conclusion in report.conclusions]

    def as_data(self) -> dict[str, Any]:
        """Return all reports as plain data, for JSON."""
        data = {key: value for report in self.reports for key, value in report.as_data().items()}
        return data | {"conclusions": [vars(conclusion) for conclusion in self.conclusions]}


def reproduce(request: Request, watcher: Watcher | None = None, *, draw: bool = False) -> Run:
    """Run the settings of a request, save them, and report on them beside the printed numbers.

    Parameters
    ----------
    request : Request
    watcher : Watcher, optional
        Who is told how it goes.
    draw : bool, default False
        Draw pictures into the results folder, too, which needs matplotlib.

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
    >>> run.files, sum(run.reports[0].counts("A").values())
    (['table1.csv', 'conclusions.csv'], 12)
    """
    engine = check_engine(request.engine)
    began = time.perf_counter()
    work = [(source, source.units()) for source in request.sources()]
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(request.pool()))
        folder = ResultsFolder(request.output, request.identity)
        stack.enter_context(folder.locked())
        manifest = _describe(request, engine) | {"settings": [unit.describe() for _, units in work for unit in units]}
        folder.write_manifest(manifest)
        session: Session[Any, Any] = Session(folder, workers, watcher, resume=request.resume)
        session.announce(work)
        done = [_decided(session, source, _found(session, source, units)) for source, units in work]
        reports = tuple(source.report(found) for source, found in done)
        run = Run(reports, {unit: o for _, found in done for unit, o in found.items()}, folder.path, [], 0.0)
        run.files.extend(name for report in reports for name in folder.write_tables(report.tables()))
        if run.conclusions:
            rows = [(c.subject, c.statement, c.verdict, c.evidence) for c in run.conclusions]
            run.files.extend(
                folder.write_tables({"conclusions.csv": (("subject", "statement", "verdict", "evidence"), rows)})
            )
        if draw:
            run.files.extend(name for source, found in done for name in source.draw(found, folder.path))
        seconds = time.perf_counter() - began
        folder.write_manifest(
            manifest
            | {
                "complete": True,
                "seconds": round(seconds, 3),  # of this run; what was resumed took its own
                "resumed_parts": session.resumed,
                "damaged_records": session.damaged,
                "files": run.files,
            }
            | {key: value for report in reports for key, value in report.totals().items()}
        )
    return replace(run, seconds=seconds)


def _found(session: Session[Any, Any], source: Source[Any, Any, Any], units: Sequence[Any]) -> dict[Any, Any]:
    """Return what the report needs of settings: each is run in parts, saved, and read as a stream."""
    session.run(source, units)
    return {unit: source.summarize(unit, session.outcomes(source, unit)) for unit in units}


def _decided(
    session: Session[Any, Any], source: Source[Any, Any, Any], found: dict[Any, Any]
) -> tuple[Source[Any, Any, Any], dict[Any, Any]]:
    """Return a source and what its settings leave, after more of them has been run for as long as it asks for it."""
    while (more := source.further(found)) is not None:
        source, units = more
        session.announce([(source, units)])
        found = found | _found(session, source, units)
    return source, found


def _describe(request: Request, engine: str) -> dict[str, Any]:
    return {
        "complete": False,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "targets": list(request.targets),
        "engine": engine,
        "executor": str(request.executor),
        "workers": request.workers,
        "rounds": request.rounds,
        **surroundings(("convla", "numpy", "scipy", "numba", "array-api-compat")),
    }
