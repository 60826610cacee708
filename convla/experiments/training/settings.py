"""What a training run depends on, and an experiment as a plan of runs: the same for every seed, paired by seed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from convla.experiments.training.method_settings import Initialization, Penalty, Transform, check_share
from convla.extending import check_choice, check_integer, check_real

__all__ = [
    "MEASURES",
    "MOST_BLOCKS",
    "MOST_EPOCHS",
    "MOST_SEEDS",
    "NEUTRAL",
    "Arm",
    "Experiment",
    "Plan",
    "Published",
    "Run",
    "Selection",
    "Training",
    "block_name",
]

OPTIMIZERS = ("sgd", "adam")

MOST_SEEDS = 1000
"""Runs of one arm: the seeds of those that choose a learning rate begin so far above the others'."""

MOST_EPOCHS = 10**6
MOST_BLOCKS = 10**4
"""Combinations of a grid."""

MEASURES = {
    "best-test-accuracy": "best test accuracy over the epochs, %",
    "final-test-accuracy": "test accuracy after the last epoch, %",
    "final-test-loss": "test loss after the last epoch",
    "final-train-accuracy": "training accuracy in the last epoch, %",
    "final-train-loss": "training loss in the last epoch",
    "mean-train-accuracy": "training accuracy, mean over the epochs, %",
    "mean-train-loss": "training loss, mean over the epochs",
    "final-similarity": "convolutional similarity after the last epoch",
    "final-map-cosine": "mean modulus of the cosine of two maps after the last epoch, mean over the layers",
    "final-resting-share": "weights with gradient 0 in a batch of the last epoch, mean over the layers, %",
    "final-output-correlation": "mean cosine of two filters after the last epoch, mean over the layers",
    "final-input-correlation": "mean cosine of two input channels' weights after the last epoch, likewise",
}
"""What a run is summed up by, and what it is in words. A best over the epochs is chosen by the test set itself, as some
sources do; it is above what one would meet on new images."""

NEUTRAL = ("final-resting-share", "final-output-correlation", "final-input-correlation")
"""Measures of which neither more nor less is better."""


@dataclass(frozen=True)
class Training:
    """Everything but the seed that a run depends on.

    Attributes
    ----------
    dataset : str
        A key of `convla.experiments.training.datasets.DATASETS`.
    swap : bool
        Train on the test images and test on the training images, as CDG Figure 6 does.
    network : str
        A key of `convla.experiments.training.networks.NETWORKS`.
    optimizer : {"sgd", "adam"}
    learning_rate : float
    momentum : float
        Of SGD; the first beta of Adam.
    beta2 : float
        The second beta of Adam.
    weight_decay : float
    batch_size, epochs : int
    milestones : tuple of int
        The epochs after which the learning rate is multiplied by `decay`.
    decay : float
    augment : bool
        Crop from images padded by four pixels, and flip left and right, at random.
    standardize : bool
        Subtract each channel's mean over the training images and divide by its standard deviation.
    held_out : float
        If not 0, this share of the training images takes the place of the test images.
    initialization : Initialization, optional
    penalty : Penalty, optional
    transform : Transform, optional
    """

    dataset: str
    network: str
    learning_rate: float
    batch_size: int
    epochs: int
    optimizer: str = "sgd"
    momentum: float = 0.0
    beta2: float = 0.999
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    augment: bool = False
    standardize: bool = False
    swap: bool = False
    held_out: float = 0.0
    initialization: Initialization | None = None
    penalty: Penalty | None = None
    transform: Transform | None = None

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_real("learning_rate", self.learning_rate, minimum=0.0)
        check_real("weight_decay", self.weight_decay, minimum=0.0)
        check_real("decay", self.decay, minimum=0.0)
        for name in ("momentum", "beta2", "held_out"):
            check_share(name, getattr(self, name))
        check_integer("batch_size", self.batch_size, minimum=2)
        check_integer("epochs", self.epochs, minimum=1)
        check_integer("epochs", self.epochs, maximum=MOST_EPOCHS)
        for milestone in self.milestones:
            check_integer("milestones", milestone, minimum=1)

    def lasting(self, epochs: int) -> Training:
        """Return the same for another number of epochs, the milestones in proportion."""
        moved = tuple(max(1, round(milestone * epochs / self.epochs)) for milestone in self.milestones)
        return replace(self, epochs=epochs, milestones=moved)


@dataclass(frozen=True)
class Run:
    """One training, from one seed: initial weights and batches follow from the seed alone."""

    training: Training
    seed: int

    @property
    def name(self) -> str:
        """The name of its file: it tells runs apart, whichever experiment they are for."""
        text = json.dumps(_told(self.training), sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.training.dataset}-{self.training.network}-{key}-seed{self.seed}"

    @property
    def title(self) -> str:
        """What a screen calls it."""
        return f"{self.training.network}, seed {self.seed}"

    def describe(self) -> dict[str, Any]:
        """Return the run as plain data, without what has its default value."""
        return {"seed": self.seed, "training": _told(self.training)}


@dataclass(frozen=True)
class Arm:
    """One of the ways of training that an experiment compares.

    Attributes
    ----------
    name : str
    against : str
        The arm that it is compared with, seed by seed; empty for a baseline.
    changes : mapping
        The fields of `Training` in which it differs from the experiment's settings.
    """

    name: str
    against: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """How each arm gets its learning rate: by the same search for all, on images that are not the test images.

    Attributes
    ----------
    learning_rate : tuple of float
        The grid.
    seeds : int
        Runs of each; their seeds are not those of the runs that are reported.
    held_out : float
        The share of the training images that decides.
    """

    learning_rate: tuple[float, ...]
    seeds: int = 2
    held_out: float = 0.25

    def __post_init__(self) -> None:
        if not self.learning_rate:
            raise ValueError("learning_rate must have at least one entry")
        for rate in self.learning_rate:
            check_real("learning_rate", rate, minimum=0.0)
        check_integer("seeds", self.seeds, minimum=1)
        check_integer("seeds", self.seeds, maximum=MOST_SEEDS)
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")


@dataclass(frozen=True)
class Published:
    """A printed value: of an arm, at a point of the grid, in the measure of the same place."""

    arm: str
    value: float
    where: Mapping[str, Any] = field(default_factory=dict)
    measure: str = ""


@dataclass(frozen=True)
class Plan:
    """An experiment at one size.

    Attributes
    ----------
    settings : mapping
        Fields of `Training`, common to all.
    grid : mapping of str to tuple
        Fields that are varied; every combination is a block, with every arm in it.
    seeds : int
    selection : Selection, optional
        Without one, the learning rates of settings, grid and arms are taken as they are.
    epochs : int, optional
        In place of those of settings and arms.
    """

    settings: Mapping[str, Any]
    grid: Mapping[str, tuple[Any, ...]]
    seeds: int
    selection: Selection | None = None
    epochs: int | None = None

    def blocks(self) -> Iterator[dict[str, Any]]:
        """Yield every point of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


@dataclass(frozen=True)
class Experiment:
    """An experiment: what is compared, at the source's size and at that of the digits.

    Attributes
    ----------
    name, title, source, notes : str
    measures : tuple of str
        Keys of `MEASURES`; the first is what the verdict rests on.
    arms : tuple of Arm
    full, digits : Plan
    published : tuple of Published
        What is printed for the full size.
    margins : mapping of str to float
        Of some measures, the difference up to which two arms are taken to do the same.
    """

    name: str
    title: str
    source: str
    notes: str
    measures: tuple[str, ...]
    arms: tuple[Arm, ...]
    full: Plan
    digits: Plan
    published: tuple[Published, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)

    def training(self, plan: Plan, arm: Arm, block: Mapping[str, Any]) -> Training:
        """Return what one arm does in one block."""
        training = Training(**{**plan.settings, **block, **arm.changes})
        return training if plan.epochs is None else training.lasting(plan.epochs)

    def sized(self, dataset: str, *, seeds: int | None = None, epochs: int | None = None) -> Plan:
        """Return the plan for a data set, its seeds and epochs changed if they are given.

        Parameters
        ----------
        dataset : str
            "digits" for the small size; "source" for the full size on the source's data; or the name of a data set, for
            the full size on that one.
        seeds, epochs : int, optional

        Returns
        -------
        Plan
        """
        plan = self.digits if dataset == "digits" else self.full
        grid, settings = dict(plan.grid), dict(plan.settings)
        if dataset not in ("digits", "source"):
            grid.pop("dataset", None)
            settings["dataset"] = dataset
        return replace(
            plan, grid=grid, settings=settings, seeds=seeds if seeds is not None else plan.seeds, epochs=epochs
        )


def block_name(block: Mapping[str, Any]) -> str:
    """Return a point of the grid in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in block.items())


def _told(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults: a new field then leaves old results valid."""
    told = {}
    for entry in fields(value):
        content = getattr(value, entry.name)
        if content != entry.default:
            told[entry.name] = _told(content) if is_dataclass(content) else content
    return told
