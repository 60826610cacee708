"""What is kept of a run: its losses and accuracies epoch by epoch, its layers', and the numbers that sum it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

__all__ = ["BY_LAYER", "OF_NETWORK", "Curves"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

OF_NETWORK = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "similarity")
"""The curves of a whole network: one number at a time."""

BY_LAYER = ("map_cosine", "resting", "output_correlation", "input_correlation")
"""The curves of its layers."""


@dataclass(frozen=True)
class Curves:
    """Each array has an entry for the network before training and one after every epoch.

    Attributes
    ----------
    train_loss, train_accuracy : numpy.ndarray of shape (epochs + 1,)
        Means over the epoch's batches, as they came, of the classification loss alone; NaN before training.
    test_loss, test_accuracy : numpy.ndarray of shape (epochs + 1,)
    similarity : numpy.ndarray of shape (epochs + 1,)
        The convolutional similarity, summed over the convolutional layers.
    map_cosine : numpy.ndarray of shape (epochs + 1, activations)
        `convla.experiments.training.observations.map_cosines` on test images.
    resting : numpy.ndarray of shape (epochs + 1, convolutions)
        The share of the weights whose gradient is 0, the mean over the epoch's batches; NaN before training.
    output_correlation, input_correlation : numpy.ndarray of shape (epochs + 1, convolutions, distances + 1)
        `convla.experiments.training.observations.channel_correlation` of the weights.

    Notes
    -----
    Accuracies are shares of 1. After a loss that is not finite all entries are NaN.
    """

    train_loss: Floats
    train_accuracy: Floats
    test_loss: Floats
    test_accuracy: Floats
    similarity: Floats
    map_cosine: Floats
    resting: Floats
    output_correlation: Floats
    input_correlation: Floats

    @classmethod
    def empty(cls, epochs: int, activations: int = 0, convolutions: int = 0, distances: int = 0) -> Curves:
        """Return curves of NaN."""
        layers = [(activations,), (convolutions,), *[(convolutions, distances + 1)] * 2]
        shapes = [*[()] * len(OF_NETWORK), *layers]
        return cls(*(np.full((epochs + 1, *shape), np.nan) for _, shape in zip(fields(cls), shapes, strict=True)))

    def over_layers(self, name: str) -> Floats:
        """Return a curve, of those of the layers the mean over them; of shape (epochs + 1,)."""
        curve: Floats = getattr(self, name)
        if name in OF_NETWORK:
            return curve
        values = curve if curve.ndim == 2 else curve[:, :, 0]
        return np.array([_mean(row) for row in values])

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite."""
        return bool(np.isnan(self.test_loss[-1]))

    def measure(self, name: str) -> float:
        """Return one of `convla.experiments.training.settings.MEASURES`; NaN if the run diverged.

        Examples
        --------
        >>> curves = Curves.empty(2)
        >>> curves.test_accuracy[:] = curves.test_loss[:] = [0.1, 0.5, 0.25]
        >>> curves.measure("best-test-accuracy"), curves.measure("final-test-loss")
        (50.0, 0.25)
        """
        return float(SUMMARIES[name](self)) if not self.diverged else float("nan")


SUMMARIES: dict[str, Callable[[Curves], float]] = {
    "best-test-accuracy": lambda c: 100.0 * c.test_accuracy[1:].max(),
    "final-test-accuracy": lambda c: 100.0 * c.test_accuracy[-1],
    "final-test-loss": lambda c: c.test_loss[-1],
    "final-train-accuracy": lambda c: 100.0 * c.train_accuracy[-1],
    "final-train-loss": lambda c: c.train_loss[-1],
    "mean-train-accuracy": lambda c: 100.0 * c.train_accuracy[1:].mean(),
    "mean-train-loss": lambda c: c.train_loss[1:].mean(),
    "final-similarity": lambda c: c.similarity[-1],
    "final-map-cosine": lambda c: c.over_layers("map_cosine")[-1],
    "final-resting-share": lambda c: 100.0 * c.over_layers("resting")[-1],
    "final-output-correlation": lambda c: c.over_layers("output_correlation")[-1],
    "final-input-correlation": lambda c: c.over_layers("input_correlation")[-1],
}


def _mean(values: Floats) -> float:
    """Return the mean over the layers that have a value."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
