"""Where a descent on a penalty is, how it judges a place, and how it goes from one to the next: the parts of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from convla._array import namespace
from convla.linear_map import LinearMap
from convla.penalties.pairs import DENSE_ENTRIES, ActivePairs, Gram, Shifted, pair_gradients
from convla.penalties.spectrum import Spectrum, fourth_powers_fit, measure_spectrum
from convla.penalties.tracker import State, Tracker
from convla.typing import Array

__all__ = ["GROWTH", "Course", "Gradient", "Iterate", "norm_of"]

GROWTH = 1e4
"""A descent has diverged when its kernel is this many times as long as the first one and the root of alpha together;
a minimiser is shorter than that: its singular values are at most the root of 2 alpha."""

LOST = 0.01
"""An estimate that is off by this part of the penalty, or of alpha, comes from vectors that have to be found anew."""


@dataclass(frozen=True)
class Iterate:
    """A map on the way of a descent, and what is known of its penalty.

    Attributes
    ----------
    target : Shifted
        The map, and the matrix whose norm is its penalty.
    pairs : ActivePairs
    state : State
        What the tracker carries on from here.
    length : float
        Of the step that led here, in units of the gradient; NaN at the first.
    first_length : float
        Of the next step to try.
    spectrum : Spectrum, optional
        All singular values, where they have been computed.
    """

    target: Shifted
    pairs: ActivePairs
    state: State
    length: float = math.nan
    first_length: float = math.nan
    spectrum: Spectrum | None = None

    @property
    def operator(self) -> LinearMap:
        """The map."""
        return self.target.operator


@dataclass(frozen=True)
class Gradient:
    """The gradient of the penalty with respect to each kernel, and its norm."""

    kernels: tuple[Array, ...]
    norm: float


@dataclass(frozen=True)
class Course:
    """What stays the same along a descent: the penalty, its tracker, and how long a kernel may become.

    Attributes
    ----------
    alpha : float
    gram : {"input", "smaller"}
    tracker : Tracker
    first_norm : float
        Of the kernels that the descent started from.
    eps : float
        Of the dtype of the kernels and their gradients.
    """

    alpha: float
    gram: Gram
    tracker: Tracker
    first_norm: float
    eps: float

    @classmethod
    def of(cls, operator: LinearMap, alpha: float, gram: Gram, tracker: Tracker) -> Course:
        """Return the course of a descent from a map."""
        kernels = operator.kernels
        eps = max(float(namespace(kernel).finfo(kernel.dtype).eps) for kernel in kernels)
        return cls(alpha, gram, tracker, norm_of(kernels), eps)

    @property
    def limit(self) -> float:
        """The norm of a kernel from which on the descent has diverged."""
        return GROWTH * (self.first_norm + math.sqrt(self.alpha))

    def begin(self, operator: LinearMap, *, confirmed: bool) -> Iterate:
        """Return the first iterate."""
        target = Shifted.of(operator, self.alpha, self.gram)
        found = Iterate(target, *self.tracker.step(target, self.tracker.initial(target)))
        return self.confirmed(found) if confirmed else found

    def estimated(self, operator: LinearMap, before: Iterate) -> Iterate:
        """Return an iterate after another one, with what the tracker knows of it."""
        target = Shifted.of(operator, self.alpha, self.gram)
        return Iterate(target, *self.tracker.step(target, before.state))

    def confirmed(self, found: Iterate) -> Iterate:
        """Hold an estimate against all singular values of a small matrix, or against another search of a large one."""
        target = found.target
        if math.prod(found.operator.shape) > DENSE_ENTRIES:
            pairs, state = self.tracker.challenge(target, found.pairs, found.state)
            return replace(found, pairs=pairs, state=state)
        spectrum = measure_spectrum(target)
        pairs, state = found.pairs, found.state
        if abs(spectrum[0] - pairs.value) > LOST * max(spectrum[0], self.alpha):
            pairs, state = self.tracker.step(target, self.tracker.initial(target))
        return replace(found, pairs=pairs.proved(spectrum[0]), state=state, spectrum=spectrum)

    def gradient(self, at: Iterate) -> Gradient:
        """Return the gradient of the penalty, as far as the tracker knows it."""
        kernels = pair_gradients(at.target, at.pairs)
        return Gradient(kernels, norm_of(kernels))

    def ahead(self, at: Iterate, length: float, gradient: Gradient) -> LinearMap | None:
        """Return the map after a step, or None where its kernels grew without bound."""
        with np.errstate(over="ignore", invalid="ignore"):
            kernels = [k - length * g for k, g in zip(at.operator.kernels, gradient.kernels, strict=True)]
            norm = norm_of(kernels)
        if not norm <= self.limit:  # nor is that of a kernel with an infinity or a NaN
            return None
        operator = at.operator._with_kernels(kernels)
        return operator if fourth_powers_fit(operator) else None


def norm_of(kernels: Sequence[Array]) -> float:
    """Return the Euclidean norm of several arrays together."""
    return math.hypot(*(float(namespace(k).linalg.vector_norm(k)) for k in kernels))
