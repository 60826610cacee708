"""What a descent on kernels is told: the layer, what is minimised and watched, the optimiser, and its draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from convla.descent import Optimizer
from convla.experiments.descents.draws import check_draws
from convla.experiments.descents.functions import LossFunction, load_loss, load_optimizer
from convla.experiments.descents.pairs import LOSSES, OPTIMIZERS, SIMILARITIES
from convla.extending import check_choice, check_integer, check_real

__all__ = ["NAMED_LOSSES", "Setting"]

NAMED_LOSSES = {
    **{name: (name, False) for name in LOSSES},
    "scale-invariant": ("convolutional", True),
    "cosine": ("kernel", True),
}
"""The losses by name: which one, and whether it is divided by |K_i|^2 |K_j|^2."""

PADDINGS = ("full", "same", "valid")


@dataclass(frozen=True)
class Setting:
    """Everything that the repetitions of a setting depend on, but for the seed.

    Attributes
    ----------
    N, M : int
        Along each axis, the size of the kernels and of the input.
    loss : str
        "kernel": the sum over pairs of kernels of <K_i, K_j>^2; "cosine": that over |K_i|^2 |K_j|^2; "convolutional":
        the sum over pairs of kernels, and of channels, of |K_i (x) K_j|^2; "scale-invariant": that over
        |K_i|^2 |K_j|^2; "shrinkage": the sum of |K_i|^2; or a function of one's own, as
        `convla.experiments.descents.functions.load_loss` reads it.
    learning_rate : float
    iterations : int
    optimizer : str
        One of `OPTIMIZERS`; or one of one's own, as `convla.experiments.descents.functions.load_optimizer` reads
        it.
    dimensions : {1, 2}
    channels : int
        Of the input.
    kernels : int
        How many of them, S; at least 2.
    padding : {"full", "same", "valid"} or int
    stride : int
        Of the feature maps along each axis; the losses are of the kernels alone.
    weights, inputs : str
        What kernels and inputs are drawn from: see `convla.experiments.descents.draws.DISTRIBUTIONS`; or a ``.npy``.
    similarity : {"squared", "absolute", "signed", "cosine"}
        What is watched: the sum over pairs of kernels of this function of the feature maps' inner product.
    train : {"both", "first"}
        Which kernels are trained: all of them, or K_1 alone.
    stream : str
        The name that fixes the random draws: settings that share it, and what they draw, share inputs and kernels. By
        default what is drawn, so that losses, optimisers and paddings are compared on the same draws.

    Raises
    ------
    TypeError, ValueError
        If an attribute is wrong in type or value.
    """

    N: int
    M: int
    loss: str
    learning_rate: float
    iterations: int
    optimizer: str = "Adam"
    dimensions: int = 1
    channels: int = 1
    kernels: int = 2
    padding: str | int = "full"
    stride: int = 1
    weights: str = "uniform"
    inputs: str = "uniform"
    similarity: str = "squared"
    train: str = "both"
    stream: str = ""

    def __post_init__(self) -> None:
        for name in ("loss", "optimizer", "weights", "inputs", "stream"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a text, got {getattr(self, name)!r}")
        for name, low, high in (
            ("N", 1, 4096),
            ("M", 1, 4096),
            ("iterations", 1, 10**7),
            ("dimensions", 1, 2),
            ("channels", 1, 4096),
            ("kernels", 2, 4096),
            ("stride", 1, 4096),
        ):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum=low, maximum=high))
        check_real("learning_rate", self.learning_rate, positive=True)
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        for name, known in (("loss", tuple(NAMED_LOSSES)), ("optimizer", tuple(OPTIMIZERS))):
            if ":" not in getattr(self, name):
                check_choice(f"{name} without a 'file.py:'", getattr(self, name), known)
        _ = self.make_optimizer
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_choice("train", self.train, ("both", "first"))
        if self.padding not in PADDINGS and (not isinstance(self.padding, int) or isinstance(self.padding, bool)):
            named = ", ".join(map(repr, PADDINGS))
            raise ValueError(f"padding must be one of {named}, or a number of positions, got {self.padding!r}")
        low, high = self._padded()
        if self.M + low + high < self.N:
            raise ValueError(f"N must be at most {self.M + low + high}, the padded input, got {self.N}")
        if self.loss not in NAMED_LOSSES:
            _ = self.function
        check_draws("weights", self.weights, self.kernel_shape)
        check_draws("inputs", self.inputs, self.input_shape)

    def _padded(self) -> tuple[int, int]:
        if isinstance(self.padding, int):
            check_integer("padding", self.padding, minimum=0)
            return self.padding, self.padding
        both = {"full": 2 * (self.N - 1), "same": self.N - 1, "valid": 0}[self.padding]
        return both // 2, both - both // 2

    @property
    def taps(self) -> int:
        """The number of entries of a kernel."""
        return math.prod(self.kernel_shape)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(channels, N) or (channels, N, N)."""
        return (self.channels, *(self.N,) * self.dimensions)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, M) or (channels, M, M)."""
        return (self.channels, *(self.M,) * self.dimensions)

    @property
    def function(self) -> LossFunction | None:
        """The loss, where it is a function of one's own."""
        return None if self.loss in NAMED_LOSSES else load_loss(self.loss)

    @property
    def make_optimizer(self) -> Callable[[float], Optimizer]:
        """What makes an optimiser of a learning rate."""
        return OPTIMIZERS.get(self.optimizer) or load_optimizer(self.optimizer)

    @property
    def minimized(self) -> tuple[str, bool]:
        """Which of `LOSSES` it is otherwise, and whether it is normalised."""
        return NAMED_LOSSES[self.loss]

    @property
    def draws(self) -> str:
        """The name of the stream of random numbers."""
        named = ("dimensions", "channels", "kernels", "N", "M", "weights", "inputs")
        return self.stream or " ".join(f"{name}={getattr(self, name)}" for name in named)

    @property
    def beyond_compiled(self) -> str:
        """Why the compiled kernel does not run it, in words; empty where it does."""
        if self.kernels != 2:
            return f"{self.kernels} kernels"
        if self.loss not in NAMED_LOSSES:
            return "a loss of one's own"
        if self.optimizer not in OPTIMIZERS:
            return "an optimizer of one's own"
        several = (self.dimensions, self.channels) != (1, 1)
        return "correlations of several axes or channels" if several and self.minimized[0] == "convolutional" else ""

    @property
    def compiled(self) -> bool:
        """Whether the compiled kernel runs it."""
        return not self.beyond_compiled

    @property
    def part(self) -> int:
        """How many repetitions take about a second on one core: a power of two, the same on every machine."""
        # Of a repetition and iteration: sums over pairs of taps in the loss and in what is watched, for each kernel.
        work = self.kernels * self.N**self.dimensions * self.taps + self.kernels**2 * self.taps**2 / 8 + 50 * self.taps
        speed = 1e9 if self.compiled else 1e8
        power = round(math.log2(speed / (work * self.iterations)))
        return 1 << min(17, max(0, power))

    def describe(self) -> dict[str, Any]:
        """Return the setting as plain data."""
        return asdict(self)
