"""Run experiments: choose learning rates where that is asked for, run every arm from every seed, report; resume."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from convla._validate import check_choice, check_integer
from convla.errors import EngineError
from convla.experiments.results import ResultsFolder, surroundings
from convla.experiments.training.curves import Curves
from convla.experiments.training.datasets import DATASETS, Dataset
from convla.experiments.training.execution import Job, Watcher, load_once, run_all
from convla.experiments.training.report import Cell, Choice, Report, Result, build_report
from convla.experiments.training.settings import MOST_SEEDS, Experiment, Plan, Run, Training

__all__ = ["SELECTION_SEEDS", "Request", "Session", "check_torch", "train_experiments"]

SELECTION_SEEDS = MOST_SEEDS
"""The seeds of the runs that choose a learning rate begin so far above those of the runs that are reported."""


class _Silence:
    def plan(self, runs: int, saved: int) -> None:
        pass

    def start(self, run: Run) -> None:
        pass

    def advance(self, run: Run, epochs: int) -> None:
        pass

    def finish(self, run: Run) -> None:
        pass


@dataclass(frozen=True)
class Request:
    """What to run, and how.

    Attributes
    ----------
    experiments : tuple of Experiment
    dataset : str
        "digits" for the small size, "source" for the source's, or the name of a data set.
    data : path
        The folder of the files of the data sets.
    seeds, epochs : int, optional
        In place of the experiment's own.
    seed : int
        The first of the seeds, below `SELECTION_SEEDS`.
    device : {"cpu", "cuda"}
    threads : int
        Of PyTorch in each process; their number changes the rounding.
    workers : int
        Processes; their number changes nothing. More than one needs the extra ``parallel``.
    output : path
        The results folder.
    resume : bool
        Take from the folder what has already ended there, and go on with what had begun.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong in type or value.
    """

    experiments: tuple[Experiment, ...]
    dataset: str = "digits"
    data: str | os.PathLike[str] = "data"
    seeds: int | None = None
    epochs: int | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    output: str | os.PathLike[str] = "results-training"
    resume: bool = False

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, ("source", *DATASETS))
        check_choice("device", self.device, ("cpu", "cuda"))
        for name, low, high in (
            ("seeds", 2, SELECTION_SEEDS),
            ("epochs", 1, None),
            ("seed", 0, SELECTION_SEEDS - 1),
            ("threads", 1, None),
            ("workers", 1, None),
        ):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=low, maximum=high)

    def plans(self) -> list[tuple[Experiment, Plan]]:
        """Return the experiments at the size that is asked for."""
        return [
            (experiment, experiment.sized(self.dataset, seeds=self.seeds, epochs=self.epochs))
            for experiment in self.experiments
        ]


@dataclass(frozen=True)
class Session:
    """What `train_experiments` returns: the report, and the folder that holds it."""

    report: Report
    folder: Path
    files: list[str]
    seconds: float


def check_torch(device: str = "cpu") -> None:
    """Raise `EngineError` unless PyTorch is installed, and has the device."""
    if importlib.util.find_spec("torch") is None:
        raise EngineError("training needs PyTorch: pip install 'convla[train]'")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("device 'cuda': PyTorch finds no CUDA device; use 'cpu'")


def train_experiments(
    request: Request,
    watcher: Watcher | None = None,
    draw: Callable[[Report, Path], list[str]] = lambda *_: [],
) -> Session:
    """Run the experiments of a request, save every run as it ends, and report on them.

    Parameters
    ----------
    request : Request
    watcher : Watcher, optional
        Who is told how it goes.
    draw : callable, optional
        Draws pictures of a report into a folder and returns their names, as
        `convla.experiments.training.plots.plot_report` does, which needs matplotlib.

    Returns
    -------
    Session

    Raises
    ------
    EngineError
        If PyTorch, or the device, or the extra ``parallel`` is missing.
    DatasetError
        If the files of a data set are not there, or malformed.
    ResultsError
        If the results folder cannot be used.
    ValueError
        If a network or a method does not fit the data.
    """
    check_torch(request.device)
    began = time.perf_counter()
    cells = [
        Cell(experiment, plan, block, arm, experiment.training(plan, arm, block))
        for experiment, plan in request.plans()
        for block in plan.blocks()
        for arm in experiment.arms
    ]
    data = {name: load_once(name, Path(request.data)) for name in sorted({cell.training.dataset for cell in cells})}
    _check_networks([cell.training for cell in cells], data)
    folder = ResultsFolder(request.output, _identity(request))
    manifest = _describe(request, cells, data)
    folder.write_manifest(manifest)
    runs = _Runs(request, folder, data, watcher or _Silence())
    trials = [_trials(cell, request.seed) for cell in cells]
    candidates = [run for of_cell in trials for of_rate in of_cell.values() for run in of_rate]
    # Until the learning rates are chosen only the number of the other runs is known.
    runs.announce(candidates, [run for cell in cells for run in _seeded(cell, request.seed)])
    runs.complete(candidates)
    choices = [_choose(cell, of_cell, runs.curves) for cell, of_cell in zip(cells, trials, strict=True)]
    cells = [cell if choice is None else choice.cell for cell, choice in zip(cells, choices, strict=True)]
    runs.complete([run for cell in cells for run in _seeded(cell, request.seed)])
    results = [
        Result(
            cell,
            [(run.seed, runs.curves[run]) for run in _seeded(cell, request.seed)],
            len(data[cell.training.dataset].train if cell.training.swap else data[cell.training.dataset].test),
        )
        for cell in cells
    ]
    report = build_report(results, [choice for choice in choices if choice is not None])
    files = report.write(folder) + draw(report, folder.path)
    seconds = time.perf_counter() - began
    # The time is that of this session; what was resumed took its own.
    done = {"complete": True, "seconds": round(seconds, 3), "resumed_runs": runs.resumed, "files": files}
    folder.write_manifest(manifest | done)
    return Session(report, folder.path, files, seconds)


def _check_networks(trainings: Sequence[Training], data: Mapping[str, Dataset]) -> None:
    """Raise, before any run, if a network or a method does not fit the images."""
    from convla.experiments.training.trainer import check_training

    for training in dict.fromkeys(trainings):
        check_training(training, data[training.dataset])


class _Runs:
    """The curves of runs: loaded where they are saved, trained and saved where they are not."""

    def __init__(self, request: Request, folder: ResultsFolder, data: Mapping[str, Dataset], watcher: Watcher) -> None:
        self.curves: dict[Run, Curves] = {}
        self._loaded: dict[Run, Curves | None] = {}
        self.resumed = 0
        self._request, self._folder, self._data, self._watcher = request, folder, data, watcher
        self._job = Job(Path(request.data), folder.inner("checkpoints"), request.device, request.threads)

    def announce(self, *lists: Sequence[Run]) -> None:
        runs = {run for some in lists for run in some}
        self._watcher.plan(len(runs), sum(self._load(run) is not None for run in runs) if self._request.resume else 0)

    def complete(self, runs: Sequence[Run]) -> None:
        missing = []
        for run in dict.fromkeys(runs):
            saved = self._load(run) if self._request.resume else None
            if run in self.curves:
                continue
            if saved is not None:
                self.curves[run] = saved
                self.resumed += 1
            else:
                missing.append(run)
                if not self._request.resume:
                    self._job.checkpoint(run).unlink(missing_ok=True)
        for run, curves in run_all(self._job, missing, workers=self._request.workers, watcher=self._watcher):
            self._folder.save(self._entry(run), curves)
            self._job.checkpoint(run).unlink(missing_ok=True)
            self.curves[run] = curves
            self._watcher.finish(run)

    def _load(self, run: Run) -> Curves | None:
        if run not in self._loaded:  # every file is read once, for the count and for the report
            self._loaded[run] = self._folder.load(self._entry(run), Curves, run.training.epochs + 1)
        return self._loaded[run]

    def _entry(self, run: Run) -> _Entry:
        return _Entry(run, self._data[run.training.dataset].digest)


@dataclass(frozen=True)
class _Entry:
    """A run and the data it was on, as the results folder wants them."""

    run: Run
    digest: str

    @property
    def name(self) -> str:
        return self.run.name

    def describe(self) -> dict[str, Any]:
        return self.run.describe() | {"data": self.digest}


def _seeded(cell: Cell, seed: int) -> list[Run]:
    return [Run(cell.training, number) for number in range(seed, seed + cell.plan.seeds)]


def _trials(cell: Cell, seed: int) -> dict[float, list[Run]]:
    """Return the runs that choose an arm's learning rate, by the rate; none where it is given."""
    selection = cell.plan.selection
    if selection is None:
        return {}
    held = replace(cell.training, held_out=selection.held_out)
    numbers = range(SELECTION_SEEDS + seed, SELECTION_SEEDS + seed + selection.seeds)
    return {
        rate: [Run(replace(held, learning_rate=rate), number) for number in numbers] for rate in selection.learning_rate
    }


def _choose(cell: Cell, trials: Mapping[float, Sequence[Run]], curves: Mapping[Run, Curves]) -> Choice | None:
    """Return the rate with the highest mean accuracy on the held-out images; the lowest loss decides between equals."""
    if not trials:
        return None

    def merit(rate: float) -> tuple[float, float]:
        runs = [curves[run] for run in trials[rate]]
        found = [(run.measure("final-test-accuracy"), -run.measure("final-test-loss")) for run in runs]
        # A rate at which a run diverges comes last.
        accuracy, loss = np.nan_to_num(np.mean(found, axis=0), nan=-np.inf)
        return float(accuracy), float(loss)

    merits = {rate: merit(rate) for rate in trials}
    best = max(merits, key=lambda rate: merits[rate])
    chosen = replace(cell, training=replace(cell.training, learning_rate=best))
    return Choice(chosen, {rate: accuracy for rate, (accuracy, _) in merits.items()})


def _identity(request: Request) -> dict[str, Any]:
    """Return what all numbers depend on; what a run depends on besides is in its own file."""
    return {
        "device": request.device,
        "threads": request.threads,
        "convla": metadata.version("convla"),
        "torch": metadata.version("torch"),
    }


def _describe(request: Request, cells: Sequence[Cell], data: Mapping[str, Dataset]) -> dict[str, Any]:
    return {
        "complete": False,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "experiments": [experiment.name for experiment in request.experiments],
        "dataset": request.dataset,
        "data": {name: dataset.digest for name, dataset in data.items()},
        "seed": request.seed,
        "seeds": request.seeds,
        "epochs": request.epochs,
        "workers": request.workers,
        **surroundings(("convla", "numpy", "scipy", "numba", "torch")),
        "settings": [
            {"experiment": cell.experiment.name, "arm": cell.arm.name, "training": asdict(cell.training)}
            for cell in cells
        ],
    }
