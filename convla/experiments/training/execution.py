"""Run experiments: choose learning rates where that is asked for, run every arm from every seed, report; resume."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from convla.errors import EngineError, install_line
from convla.experiments.folder import ResultsFolder, surroundings
from convla.experiments.pool import Pool, Workers
from convla.experiments.session import Job, Part, Session, Watcher
from convla.experiments.training.curves import Curves
from convla.experiments.training.datasets import DATASETS, Dataset, load_dataset
from convla.experiments.training.report import Cell, Choice, Report, Result, build_report
from convla.experiments.training.settings import MOST_SEEDS, Experiment, Plan, Run, Training
from convla.extending import check_choice, check_integer

__all__ = ["SELECTION_SEEDS", "Request", "Trained", "TrainingJob", "check_torch", "load_once", "train_experiments"]

SELECTION_SEEDS = MOST_SEEDS
"""The seeds of the runs that choose a learning rate begin so far above those of the runs that are reported."""


@functools.cache
def load_once(name: str, folder: Path) -> Dataset:
    """Return a data set, read once in each process."""
    return load_dataset(name, folder)


@dataclass(frozen=True)
class TrainingJob(Job[Run, Curves]):
    """How a run is done.

    Attributes
    ----------
    data : Path
        The folder of the data sets.
    digests : mapping of str to str
        The hash of each data set.
    checkpoints : Path
        The folder of the states of runs that have begun.
    weights : Path, optional
        The folder of the weights that runs end with, if they are to be kept.
    device : str
    threads : int
    """

    data: Path
    digests: Mapping[str, str]
    checkpoints: Path
    weights: Path | None
    device: str
    threads: int

    kind: ClassVar[type[Any]] = Curves

    def describe(self, unit: Run) -> dict[str, Any]:
        """Return the run and the data it is on, as plain data."""
        return unit.describe() | {"data": self.digests[unit.training.dataset]}

    def size(self, unit: Run) -> int:
        """Return the number of epochs, and one more for the network before training: a run is one part."""
        return unit.training.epochs + 1

    def steps(self, part: Part[Run]) -> int:
        """Return the number of epochs."""
        return part.unit.training.epochs

    def checkpoint(self, run: Run) -> Path:
        """Return where the state of a run is saved."""
        return self.checkpoints / f"{run.name}.pt"

    def forget(self, unit: Run) -> None:
        """Remove the state of a run."""
        self.checkpoint(unit).unlink(missing_ok=True)

    def __call__(self, part: Part[Run], advance: Callable[[int], None] = lambda _: None) -> Curves:
        """Do the run, from its checkpoint if there is one."""
        from convla.experiments.training.trainer import train

        run = part.unit
        return train(
            run,
            load_once(run.training.dataset, self.data),
            device=self.device,
            threads=self.threads,
            checkpoint=self.checkpoint(run),
            weights=self.weights / f"{run.name}.npz" if self.weights else None,
            advance=advance,
        )


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
    executor : str or concurrent.futures.Executor
        As `convla.experiments.pool.Pool` takes it; more than one worker of "local" are processes of loky.
    workers : int
        Processes; their number changes nothing. More than one needs the extra ``parallel``.
    output : path
        The results folder.
    resume : bool
        Take from the folder what has already ended there, and go on with what had begun.
    weights : bool
        Keep the weights that every run ends with, in a file that `convla inspect` reads.

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
    executor: str | Executor = "local"
    workers: int = 1
    output: str | os.PathLike[str] = "results-training"
    resume: bool = False
    weights: bool = False

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
        self.pool()  # refuses what is no executor

    def pool(self) -> Pool:
        """Return where the runs are done."""
        return Pool.of_processes(self.executor, self.workers, self.threads)

    def plans(self) -> list[tuple[Experiment, Plan]]:
        """Return the experiments at the size that is asked for."""
        return [
            (experiment, experiment.sized(self.dataset, seeds=self.seeds, epochs=self.epochs))
            for experiment in self.experiments
        ]


@dataclass(frozen=True)
class Trained:
    """What `train_experiments` returns: the report, and the folder that holds it."""

    report: Report
    folder: Path
    files: list[str]
    seconds: float


def check_torch(device: str = "cpu") -> None:
    """Raise `EngineError` unless PyTorch is installed, and has the device."""
    if importlib.util.find_spec("torch") is None:
        raise EngineError(f"training needs PyTorch: {install_line('train')}")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("device 'cuda': PyTorch finds no CUDA device; use 'cpu'")


def train_experiments(
    request: Request,
    watcher: Watcher | None = None,
    *,
    draw: bool = False,
) -> Trained:
    """Run the experiments of a request, save every run as it ends, and report on them.

    Parameters
    ----------
    request : Request
    watcher : Watcher, optional
        Who is told how it goes.
    draw : bool, default False
        Draw pictures into the results folder, too, which needs matplotlib.

    Returns
    -------
    Trained

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
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(request.pool()))
        folder = ResultsFolder(request.output, _identity(request))
        stack.enter_context(folder.locked())
        manifest = _describe(request, cells, data)
        folder.write_manifest(manifest)
        digests = {name: dataset.digest for name, dataset in data.items()}
        kept = folder.inner("weights") if request.weights else None
        job = TrainingJob(
            Path(request.data), digests, folder.inner("checkpoints"), kept, request.device, request.threads
        )
        session: Session[Run, Curves] = Session(folder, workers, watcher, resume=request.resume)
        choices, results = _train_cells(session, job, cells, data, request.seed)
        report = build_report(results, [choice for choice in choices if choice is not None])
        files = folder.write_tables(report.tables())
        if draw:
            from convla.experiments.training.plots import plot_report  # matplotlib takes half a second to import

            files += plot_report(report, folder.path)
        seconds = time.perf_counter() - began
        # The time is that of this session; what was resumed took its own.
        done = {"complete": True, "seconds": round(seconds, 3), "resumed_runs": session.resumed, "files": files}
        folder.write_manifest(manifest | done)
    return Trained(report, folder.path, files, seconds)


def _train_cells(
    session: Session[Run, Curves], job: TrainingJob, cells: Sequence[Cell], data: Mapping[str, Dataset], seed: int
) -> tuple[list[Choice | None], list[Result]]:
    """Choose the learning rates of cells where that is asked for, then run each from every seed."""
    trials = [_trials(cell, seed) for cell in cells]
    candidates = [run for of_cell in trials for of_rate in of_cell.values() for run in of_rate]
    # Until the learning rates are chosen only the number of the other runs is known.
    session.announce([(job, [*candidates, *(run for cell in cells for run in _seeded(cell, seed))])])
    curves = session.complete(replace(job, weights=None), candidates)
    choices = [_choose(cell, of_cell, curves) for cell, of_cell in zip(cells, trials, strict=True)]
    chosen = [cell if choice is None else choice.cell for cell, choice in zip(cells, choices, strict=True)]
    curves = session.complete(job, [run for cell in chosen for run in _seeded(cell, seed)])
    return choices, [
        Result(
            cell,
            [(run.seed, curves[run]) for run in _seeded(cell, seed)],
            len(data[cell.training.dataset].train if cell.training.swap else data[cell.training.dataset].test),
        )
        for cell in chosen
    ]


def _check_networks(trainings: Sequence[Training], data: Mapping[str, Dataset]) -> None:
    """Raise, before any run, if a network or a method does not fit the images."""
    from convla.experiments.training.trainer import check_training

    for training in dict.fromkeys(trainings):
        check_training(training, data[training.dataset])


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
        "weights": request.weights,
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
