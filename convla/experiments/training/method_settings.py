"""What a run may do to a network, as settings: how it begins, what is penalised, what its gradients become."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla.extending import check_choice, check_integer, check_real
from convla.similarity.objectives import OBJECTIVES
from convla.transforms import TRANSFORMS

__all__ = ["Initialization", "Penalty", "Transform", "check_share"]

INITIALIZATIONS = ("convolutional-similarity", "orthogonal", "delta-orthogonal")
PENALTIES = (*OBJECTIVES, "singular-values")
AXES = {"output": 0, "input": 1, "rasterised": None}


@dataclass(frozen=True)
class Initialization:
    """How the convolutional kernels are set before training.

    Attributes
    ----------
    kind : {"convolutional-similarity", "orthogonal", "delta-orthogonal"}
        The first minimises convolutional similarity from the network's own initial weights (CSM Algorithm 1).
    iterations : int
        Steps of Adam on the convolutional similarity.
    learning_rate, beta1, beta2 : float
        Of that Adam.
    keep_norms : bool
        Minimise the scale-invariant form instead, and keep every filter's norm.
    gain : float
        Of the orthogonal kernels.
    """

    kind: str
    iterations: int = 500
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    keep_norms: bool = False
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, INITIALIZATIONS)
        check_integer("iterations", self.iterations, minimum=0)
        check_real("learning_rate", self.learning_rate, minimum=0.0)
        check_share("beta1", self.beta1)
        check_share("beta2", self.beta2)
        check_real("gain", self.gain, minimum=0.0)


@dataclass(frozen=True)
class Penalty:
    """What is added to the loss, summed over the convolutional layers.

    Attributes
    ----------
    kind : {"convolutional-similarity", "kernel-orthogonality", "ocnn", "singular-values"}
        The last is R_alpha of each layer's matrix on the image that the layer is given.
    weight : float
        Its factor.
    normalized : bool
        The scale-invariant form of the first.
    alpha : float
    gram : {"input", "smaller"}
        Of the last, as `convla.frameworks.torch.SpectralPenalty` takes them.
    """

    kind: str
    weight: float
    normalized: bool = False
    alpha: float = 1.0
    gram: str = "input"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, PENALTIES)
        check_real("weight", self.weight, minimum=0.0)
        check_real("alpha", self.alpha, positive=True)
        check_choice("gram", self.gram, ("input", "smaller"))

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the objective."""
        return {name: value for name, value in vars(self).items() if name in OBJECTIVES[self.kind].options}


@dataclass(frozen=True)
class Transform:
    """What the gradients of the kernels become before every step of the optimizer.

    Attributes
    ----------
    kind : {"reweighted", "sobolev", "laplacian", "orthonormal", "normalized"}
    linear : bool
        Those of linear layers too.
    scale : float
        The transformed gradient is multiplied by it.
    lam, sigma, blend : float
    axis : {"output", "input", "rasterised"}
        Of the re-weighting or smoothing.
    discretization, method, rank_deficient : str
    per_filter : bool
        As the functions of `convla.gradients` and `convla.orthonormal` take them. What is left out is their default;
        what the kind does not have is refused.
    """

    kind: str
    linear: bool = False
    scale: float = 1.0
    lam: float | None = None
    sigma: float | None = None
    blend: float | None = None
    axis: str | None = None
    discretization: str | None = None
    method: str | None = None
    rank_deficient: str | None = None
    per_filter: bool | None = None

    def __post_init__(self) -> None:
        known = self._known()
        for name, value in vars(self).items():
            if name not in ("kind", "linear", "scale", *known) and value is not None:
                own = ", ".join(known) or "none"
                raise ValueError(f"{name} is not an option of the transform {self.kind!r}: it has {own}")
        check_real("scale", self.scale, positive=True)
        if self.axis is not None:
            check_choice("axis", self.axis, tuple(AXES))
        # Values that the function refuses are to be refused here, not at the first step of a run.
        function = TRANSFORMS[self.kind]
        engine = {"engine": "reference"} if "engine" in inspect.signature(function).parameters else {}
        function(np.zeros((2, 2, 1)), **self.options(), **engine)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the transform."""
        given = {name: getattr(self, name) for name in self._known() if getattr(self, name) is not None}
        return given | ({"axis": AXES[given["axis"]]} if "axis" in given else {})

    def _known(self) -> list[str]:
        """Return what an experiment may set of the transform: those of its function's parameters that stand here."""
        function = TRANSFORMS[check_choice("kind", self.kind, tuple(TRANSFORMS))]
        return [name for name in inspect.signature(function).parameters if name in vars(self)]


def check_share(name: str, value: float) -> None:
    """Raise `ValueError` unless the value is in [0, 1)."""
    check_real(name, value, minimum=0.0)
    if value >= 1.0:
        raise ValueError(f"{name} must be below 1, got {value}")
