"""What is kept of a run: its losses and accuracies epoch by epoch, and the numbers that sum it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

__all__ = ["Curves"]

Floats = np.ndarray[Any, np.dtype[np.float64]]


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

    Notes
    -----
    Accuracies are shares of 1. After a loss that is not finite all entries are NaN.
    """

    train_loss: Floats
    train_accuracy: Floats
    test_loss: Floats
    test_accuracy: Floats
    similarity: Floats

    @classmethod
    def empty(cls, epochs: int) -> Curves:
        """Return curves of NaN."""
        return cls(*(np.full(epochs + 1, np.nan) for _ in fields(cls)))

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite."""
        return bool(np.isnan(self.test_loss[-1]))

    def measure(self, name: str) -> float:
        """Return one of `convla.experiments.training.settings.MEASURES`; NaN if the run diverged.

        Examples
        --------
        >>> curves = Curves(*(np.array([0.1, 0.5, 0.25]) for _ in range(5)))
        >>> curves.measure("best-test-accuracy"), curves.measure("mean-train-loss")
        (50.0, 0.375)
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
}
