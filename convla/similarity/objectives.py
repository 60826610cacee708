"""What of a layer's kernels can be descended on, by name: the one list that reports, losses and training read.

An objective is a function of the kernels with its gradient. With its entry here it has a column in a report, a loss on
tensors, and is a penalty in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from convla.similarity.layer import convolutional_similarity, convolutional_similarity_and_gradient
from convla.similarity.orthogonality import (
    kernel_orthogonality,
    kernel_orthogonality_and_gradient,
    ocnn_residual,
    ocnn_residual_and_gradient,
)
from convla.typing import Array

__all__ = ["OBJECTIVES", "Objective", "Strides"]


class Strides(Protocol):
    """What is asked of a layer: a `convla.ConvGeometry` has it, and a convolutional module of PyTorch."""

    @property
    def stride(self) -> tuple[int, ...]:
        """The steps between two places of the kernel, one for each axis."""

    @property
    def dilation(self) -> tuple[int, ...]:
        """The steps between two taps, one for each axis."""

    @property
    def groups(self) -> int:
        """Into how many groups the channels fall."""


class Objective(NamedTuple):
    """A function of a layer's kernels of shape (c_out, c_in // groups, *kernel), and its gradient.

    Attributes
    ----------
    measure : {"similarity", "orthogonality"}
        The group of columns in a report that it belongs to.
    column, heading : str
        The name of its column, and what stands above it in a table.
    value, value_and_gradient : callable
        Functions of the kernels, and of the options by name; the first can be differentiated by PyTorch itself.
    options : mapping
        The defaults of the options: a truth value, an integer, a string, or a tuple of integers, one for each axis.
    decided : mapping
        Those of the options that the layer decides, as functions of it.
    """

    measure: str
    column: str
    heading: str
    value: Callable[..., Array]
    value_and_gradient: Callable[..., tuple[Array, Array]]
    options: Mapping[str, Any] = {}
    decided: Mapping[str, Callable[[Strides], Any]] = {}

    def at(self, layer: Strides) -> dict[str, Any]:
        """Return the options that a layer decides."""
        return {name: decide(layer) for name, decide in self.decided.items()}


def _groups(layer: Strides) -> int:
    return layer.groups


def _lags(layer: Strides) -> tuple[int, ...]:
    """Return the steps between the lags, in taps, at which kernels meet: s / gcd(s, d), taps being d apart."""
    return tuple(s // math.gcd(s, d) for s, d in zip(layer.stride, layer.dilation, strict=True))


OBJECTIVES: dict[str, Objective] = {
    "convolutional-similarity": Objective(
        measure="similarity",
        column="similarity",
        heading="L_CS",
        value=convolutional_similarity,
        value_and_gradient=convolutional_similarity_and_gradient,
        options={"pairs": "unordered", "normalized": False},
    ),
    "kernel-orthogonality": Objective(
        measure="orthogonality",
        column="kernel_orthogonality",
        heading="|WW'-I|^2",
        value=kernel_orthogonality,
        value_and_gradient=kernel_orthogonality_and_gradient,
        options={"groups": 1},
        decided={"groups": _groups},
    ),
    "ocnn": Objective(
        measure="orthogonality",
        column="ocnn_residual",
        heading="OCNN",
        value=ocnn_residual,
        value_and_gradient=ocnn_residual_and_gradient,
        options={"stride": (1,), "groups": 1},
        decided={"stride": _lags, "groups": _groups},
    ),
}
"""The objectives by the names that experiments give them."""
