"""What a descent on kernels is told: the layer, what is minimised and watched, the optimiser, and its draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convla.experiments.descents.pairs import LOSSES, OPTIMIZERS, SIMILARITIES
from convla.extending import check_choice

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """Everything that the repetitions of a setting depend on, but for the seed.

    Attributes
    ----------
    draws : str
        The name that fixes the random draws: settings that share it share their inputs and kernels.
    n : int
        The kernels' length N.
    m : int
        The input's length M.
    padding : {"full", "valid"}
    loss : {"kernel", "convolutional", "shrinkage"}
    normalized : bool
        Divide the loss by |K1|^2 |K2|^2.
    similarity : {"squared", "absolute", "signed", "cosine"}
    optimizer : {"SGD", "Adam"}
    learning_rate : float
    iterations : int
    both : bool
        Train both kernels, else only K1.
    """

    draws: str
    n: int
    m: int
    padding: str
    loss: str
    normalized: bool
    similarity: str
    optimizer: str
    learning_rate: float
    iterations: int
    both: bool

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)

    def descent(self) -> dict[str, Any]:
        """Return the keyword arguments of `convla.experiments.descents.pairs.descend_pairs`."""
        names = ("loss", "normalized", "similarity", "optimizer", "learning_rate", "iterations", "both")
        return {name: getattr(self, name) for name in names} | {"toeplitz": self.padding == "full"}
