"""One run: a network trained from a seed, its curves kept, its state saved so that it can go on exactly.

Initial weights, batches and augmentation follow from the seed alone, each from a stream of its own, so that runs of
one seed have them in common whatever the method does, and an epoch can be run again without those before it.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from convla.experiments.folder import ResultsError
from convla.experiments.training.curves import Curves
from convla.experiments.training.datasets import Dataset, split_stratified
from convla.experiments.training.images import Images
from convla.experiments.training.methods import Regularizer, initialize, total_similarity, transform_gradients
from convla.experiments.training.networks import build_network
from convla.experiments.training.observations import (
    DISTANCES,
    activations,
    channel_correlation,
    map_cosines,
    resting_shares,
)
from convla.experiments.training.settings import Run, Training
from convla.extending import at_most, atomic_write, blas_on_one_thread
from convla.frameworks.torch import convolutions
from convla.networks.weights import write_weights

__all__ = ["check_training", "train"]

WEIGHTS, BATCHES, AUGMENTATION, HELD_OUT = range(4)
"""The streams of random numbers that a seed is the parent of."""

EVALUATED = 1024
"""Images evaluated together; the number changes nothing but memory and rounding."""


def train(
    run: Run,
    dataset: Dataset,
    *,
    device: str = "cpu",
    threads: int = 1,
    checkpoint: Path | None = None,
    weights: Path | None = None,
    save_every: float = 10.0,
    advance: Callable[[int], None] = lambda _: None,
) -> Curves:
    """Run one training.

    Parameters
    ----------
    run : Run
    dataset : Dataset
        The one that the run names.
    device : str, default "cpu"
        Of PyTorch.
    threads : int, default 1
        Of PyTorch and of numba; their number changes the rounding.
    checkpoint : Path, optional
        Where the state is saved; if it is there, the run goes on from it, to the same numbers.
    weights : Path, optional
        Where the network's weights are written at the end, by name, in a format of
        `convla.networks.weights.write_weights`; not if the run diverges.
    save_every : float, default 10.0
        Seconds between two savings, at the end of an epoch.
    advance : callable
        Told how many epochs are done, from time to time; those of the checkpoint first.

    Returns
    -------
    Curves

    Raises
    ------
    ResultsError
        If the checkpoint is damaged, is of another run, or cannot be written.
    ValueError
        If the network, or the method, does not fit the data.
    """
    with _exact(threads):
        state = _State(run, dataset, device)
        if checkpoint is not None and checkpoint.exists():
            state.load(checkpoint)
            advance(state.epoch)
        saved = time.monotonic()
        while state.epoch < run.training.epochs and not state.diverged:
            state.run_epoch()
            advance(1)
            if checkpoint is not None and time.monotonic() - saved >= save_every:
                state.save(checkpoint)
                saved = time.monotonic()
        if weights is not None and not state.diverged:
            write_weights(weights, {name: value.cpu().numpy() for name, value in state.network.state_dict().items()})
    return state.curves


def check_training(training: Training, dataset: Dataset) -> None:
    """Raise `ValueError` if there is no such network, or the images are too small for it or for the method.

    It makes the network, and gives it two images.
    """
    state = _State(Run(_without_iterations(training), 0), dataset, "cpu", measured=False)
    state.network(state.train.batch(slice(0, 2))[0])


def _without_iterations(training: Training) -> Training:
    if training.initialization is None:
        return training
    return replace(training, initialization=replace(training.initialization, iterations=0))


class _State:
    """Everything that changes while a run goes on, and what its epochs need."""

    def __init__(self, run: Run, dataset: Dataset, device: str, *, measured: bool = True) -> None:
        self.run, self.data = run, dataset.digest
        training = run.training
        self.train, self.test = _images(run, dataset, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_number(run.seed, WEIGHTS))
            channels, height = self.train.shape[:2]
            network = build_network(
                training.network, in_channels=channels, image_size=height, classes=dataset.classes
            ).to(device)
            initialize(network, training.initialization)
        self.network: Any = network
        self.optimizer = _optimizer(training, network)
        transform_gradients(self.optimizer, network, training.transform)
        self.regularizer = Regularizer(network, training.penalty, self.train.batch(slice(0, 2))[0])
        layers = len(activations(network)), len(convolutions(network))
        self.curves = Curves.empty(training.epochs, *layers, DISTANCES)
        self.epoch = 0
        self.diverged = False
        if measured:
            self._measure()

    def run_epoch(self) -> None:
        """Train for one epoch and measure what it led to."""
        training, network = self.run.training, self.network
        rate = training.learning_rate * training.decay ** sum(self.epoch >= end for end in training.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        network.train()
        total, hits, count = 0.0, 0, 0
        resting: Any = 0.0
        for images, labels in self._batches():
            self.optimizer.zero_grad()
            outputs = network(images)
            loss = cross_entropy(outputs, labels)
            # Read before the step: a loss that is not finite ends the run, and no method is given its gradient.
            value = float(loss.detach())
            if not np.isfinite(value):
                self.diverged = True
                break
            (loss + self.regularizer()).backward()
            resting = resting + len(labels) * resting_shares(network)
            if not _step(self.optimizer):
                self.diverged = True
                break
            total += value * len(labels)
            hits += int((outputs.argmax(dim=1) == labels).sum())
            count += len(labels)
        self.epoch += 1
        if not self.diverged:
            self.curves.train_loss[self.epoch] = total / count
            self.curves.train_accuracy[self.epoch] = hits / count
            self.curves.resting[self.epoch] = (resting / count).cpu().numpy()
            self._measure()

    def _measure(self) -> None:
        self.network.eval()
        total, hits = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(self.test), EVALUATED):
                images, labels = self.test.batch(slice(start, start + EVALUATED))
                outputs = self.network(images)
                total += float(cross_entropy(outputs, labels, reduction="sum"))
                hits += int((outputs.argmax(dim=1) == labels).sum())
        loss, similarity = total / len(self.test), total_similarity(self.network)
        if not np.isfinite([loss, similarity]).all():
            self.diverged = True
            return
        self.curves.test_loss[self.epoch] = loss
        self.curves.test_accuracy[self.epoch] = hits / len(self.test)
        self.curves.similarity[self.epoch] = similarity
        self.curves.map_cosine[self.epoch] = map_cosines(self.network, self.test.batch(slice(0, EVALUATED))[0])
        kernels = [layer.weight for layer in convolutions(self.network).values()]
        for axis, curve in enumerate((self.curves.output_correlation, self.curves.input_correlation)):
            curve[self.epoch] = [channel_correlation(kernel, axis) for kernel in kernels]

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        training, seed = self.run.training, self.run.seed
        order = torch.from_numpy(_generator(seed, BATCHES, self.epoch).permutation(len(self.train)))
        generator = _generator(seed, AUGMENTATION, self.epoch) if training.augment else None
        for start in range(0, len(order), training.batch_size):
            places = order[start : start + training.batch_size]
            if len(places) > 1:  # the statistics of a batch need two images
                yield self.train.batch(places, generator)

    def save(self, path: Path) -> None:
        """Write the state, all or nothing."""
        state = {
            "run": self._stamp(),
            "epoch": self.epoch,
            "diverged": self.diverged,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "regularizer": self.regularizer.state_dict(),
            "curves": {field.name: torch.from_numpy(getattr(self.curves, field.name)) for field in fields(Curves)},
        }
        try:
            with atomic_write(path) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:
            raise ResultsError(f"{path} cannot be written: {error}") from error

    def load(self, path: Path) -> None:
        """Go back to a saved state."""
        try:
            if not path.is_file():  # a pipe would wait for a writer
                raise ResultsError(f"{path} is not a regular file: delete it")
            # Tensors and plain values only: a checkpoint runs nothing.
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["run"] != self._stamp():
                raise ResultsError(f"{path} is the checkpoint of another run: delete it")
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.regularizer.load_state_dict(state["regularizer"])
            for name, values in state["curves"].items():
                getattr(self.curves, name)[:] = values.numpy()
            self.epoch, self.diverged = state["epoch"], state["diverged"]
        except (OSError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
            raise ResultsError(f"{path} is damaged: delete it") from error

    def _stamp(self) -> str:
        return json.dumps([self.run.describe(), self.data], sort_keys=True)


def _images(run: Run, dataset: Dataset, device: str) -> tuple[Images, Images]:
    """Return the images to train on and those to test on."""
    training = run.training
    parts = [(dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels)]
    (images, labels), held = parts[::-1] if training.swap else parts
    if training.held_out:
        # The same for all seeds: what is chosen is chosen on the same images.
        kept, places = split_stratified(labels, training.held_out, seed=_number(0, HELD_OUT))
        images, labels, held = images[kept], labels[kept], (images[places], labels[places])
    standard = None
    if training.standardize:
        values = images.astype(np.float64)
        standard = values.mean(axis=(0, 2, 3)), values.std(axis=(0, 2, 3))
    return (
        Images(images, labels, white=dataset.white, standard=standard, device=device),
        Images(*held, white=dataset.white, standard=standard, device=device),
    )


def _optimizer(training: Training, network: Any) -> Any:
    common = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), betas=(training.momentum, training.beta2), **common)
    return torch.optim.SGD(network.parameters(), momentum=training.momentum, **common)


def _step(optimizer: Any) -> bool:
    """Make a step, and return whether it could be made: not with a gradient that overflowed."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return False
    optimizer.step()
    return True


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def _number(seed: int, *stream: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=stream).generate_state(1)[0])


@contextlib.contextmanager
def _exact(threads: int) -> Iterator[None]:
    """Let PyTorch choose no algorithm that gives other numbers the next time, and hold all pools to their threads."""
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with contextlib.ExitStack() as limits:
        limits.enter_context(blas_on_one_thread())
        limits.enter_context(at_most(threads))
        limits.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads)
        limits.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        )
        limits.callback(torch.use_deterministic_algorithms, deterministic)
        torch.use_deterministic_algorithms(True)
        yield
