"""What a descent knows of the penalty at each iterate: one estimator for each tracker, with the state it carries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convla._array import namespace
from convla._validate import check_choice, check_integer, check_real
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.penalties.value import GRAMS, ActivePairs, active_pairs, cluster, gram_map
from convla.spectra.power import PowerTracker, ShiftedPairs
from convla.spectra.status import Status
from convla.spectra.tracking import BlockTracker, SingularTriplets
from convla.typing import Array, Namespace

__all__ = ["ESTIMATORS", "Block", "Estimator", "EstimatorOptions", "Exact", "Power"]

_RTOL = 1e-3
"""Residuals of this part of sigma_max^2 bound the error of the penalty by as much, and leave the usual small step of a
descent with one or two block steps."""

State = dict[str, np.ndarray[Any, Any]]
Trackers = Mapping[str, PowerTracker | BlockTracker]


@dataclass(frozen=True, kw_only=True)
class EstimatorOptions:
    """What a penalty is taken of, and how its singular vectors are followed."""

    alpha: float
    gram: str
    tracker: str
    power_iterations: int
    block: int
    block_steps: int
    cluster_rtol: float | None

    def __post_init__(self) -> None:
        check_real("alpha", self.alpha, positive=True)
        check_choice("gram", self.gram, GRAMS)
        check_choice("tracker", self.tracker, tuple(ESTIMATORS))
        for name in ("power_iterations", "block", "block_steps"):
            check_integer(name, getattr(self, name), minimum=1)
        if self.cluster_rtol is not None:
            check_real("cluster_rtol", self.cluster_rtol, minimum=0.0)


class Estimator(Protocol):
    """The penalty and its active pairs, at one kernel after another."""

    def estimate(self, operator: ConvOperator) -> ActivePairs:
        """Return what is known at this kernel; at the first, to the accuracy that the tracker asks for at least."""

    def challenge(self, operator: ConvOperator, pairs: ActivePairs) -> ActivePairs:
        """Return an estimate after a search of its own for what it may have missed, made afresh where it had."""

    def restart(self, operator: ConvOperator) -> ActivePairs:
        """Return an estimate from nothing: what is carried has proved wrong."""

    def trackers(self, factor: LinearMap) -> Trackers:
        """Return what carries vectors from one kernel to the next, by name, where the Gram map's factor is this."""

    def state(self) -> State:
        """Return what is carried to the next kernel."""

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        """Carry on from a state."""


class Exact:
    """The whole spectrum at every kernel."""

    def __init__(self, alpha: float, gram: str, cluster_rtol: float | None) -> None:
        self.alpha, self.gram, self.cluster_rtol = alpha, gram, cluster_rtol

    def estimate(self, operator: ConvOperator) -> ActivePairs:
        return active_pairs(gram_map(operator, self.gram), self.alpha, cluster_rtol=self.cluster_rtol)

    def challenge(self, operator: ConvOperator, pairs: ActivePairs) -> ActivePairs:  # noqa: ARG002
        return pairs

    def restart(self, operator: ConvOperator) -> ActivePairs:
        return self.estimate(operator)

    def trackers(self, factor: LinearMap) -> Trackers:  # noqa: ARG002
        return {}

    def state(self) -> State:
        return {}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        pass


class Power:
    """Two triplets by the power method, the larger of which is taken: steps 6 and 7 of Algorithm 2.1."""

    def __init__(self, alpha: float, gram: str, iterations: int) -> None:
        self.gram = gram
        self.tracker = PowerTracker(alpha, iterations=iterations)

    def estimate(self, operator: ConvOperator) -> ActivePairs:
        pairs = self.tracker.update(gram_map(operator, self.gram))
        return _chosen(pairs, 0 if pairs.values.shape[0] == 1 or pairs.values[0] >= pairs.values[1] else 1)

    def challenge(self, operator: ConvOperator, pairs: ActivePairs) -> ActivePairs:  # noqa: ARG002
        return pairs

    def restart(self, operator: ConvOperator) -> ActivePairs:
        return self.estimate(operator)

    def trackers(self, factor: LinearMap) -> Trackers:  # noqa: ARG002
        return {"shifted": self.tracker}

    def state(self) -> State:
        return self.tracker.state()

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        self.tracker.restore(state, like)


class Block:
    """Both ends of the spectrum, each by a block of its own; the lower end of a singular Gram matrix is known.

    The lower end is not looked at while the upper one is too far from alpha for it to count.
    """

    def __init__(self, alpha: float, gram: str, cluster_rtol: float | None, block: int, steps: int) -> None:
        self.alpha, self.gram, self.cluster_rtol = alpha, gram, cluster_rtol
        self.ends = {
            end: BlockTracker(block=block, steps=steps, end=end, rtol=_RTOL) for end in ("largest", "smallest")
        }

    def estimate(self, operator: ConvOperator) -> ActivePairs:
        return self._estimated(operator, lambda tracker, factor: tracker.follow(factor))

    def restart(self, operator: ConvOperator) -> ActivePairs:
        return self._estimated(operator, lambda tracker, factor: tracker.start(factor))

    def challenge(self, operator: ConvOperator, pairs: ActivePairs) -> ActivePairs:
        """Search from random vectors, which have a part in every invariant subspace, and compare.

        A Ritz value lies inside the spectrum, so that a larger penalty from any vectors refutes a smaller one.
        """
        factor = gram_map(operator, self.gram)
        largest, distance = 0.0, -math.inf
        for end, tracker in self.trackers(factor).items():
            if end == "largest" or self._lower_can_be_active(largest, factor.dtype, namespace(factor.like)):
                other = BlockTracker(
                    block=2, steps=tracker.steps, end=end, reseed=0, rtol=_RTOL, seed=tracker.updates + 1
                )
                square = float(other.update(factor).singular_values[0]) ** 2
                largest = max(largest, square)
                distance = max(distance, square - self.alpha if end == "largest" else self.alpha - square)
        return pairs if distance <= pairs.value + _RTOL * max(largest, self.alpha) else self.restart(operator)

    def _estimated(
        self, operator: ConvOperator, find: Callable[[BlockTracker, LinearMap], SingularTriplets]
    ) -> ActivePairs:
        factor = gram_map(operator, self.gram)
        xp = namespace(factor.like)
        rows, columns = factor.shape
        ends: list[SingularTriplets] = []
        converged = True
        for end, tracker in self.trackers(factor).items():
            if end == "largest" or self._lower_can_be_active(float(ends[0].singular_values[0]) ** 2, factor.dtype, xp):
                ends.append(find(tracker, factor))
                converged = converged and tracker.converged
        vectors, images = (xp.concat([getattr(end, name) for end in ends]) for name in ("vectors", "images"))
        # Of a map with few columns both blocks hold the same vectors; each counts once.
        total = min(vectors.shape[0], columns)
        squares = xp.concat([end.singular_values**2 for end in ends])[:total]
        value, signs, chosen, nulls = cluster(squares, self.alpha, max(0, columns - rows), self.cluster_rtol)
        return ActivePairs(
            value,
            signs,
            xp.take(vectors, chosen, axis=0),
            xp.take(images, chosen, axis=0),
            nulls,
            error=max(map(_error, ends)),
            status=Status.ESTIMATED if converged else Status.NOT_CONVERGED,
        )

    def _lower_can_be_active(self, largest: float, dtype: Any, xp: Namespace) -> bool:
        """Tell whether a squared singular value can be as far below alpha as the `largest` is above it.

        None is farther than alpha. At the start of most descents this spares the costlier of the two searches.
        """
        rtol = float(xp.finfo(dtype).eps) ** 0.5 if self.cluster_rtol is None else self.cluster_rtol
        return largest - rtol * max(largest, self.alpha) <= 2.0 * self.alpha

    def trackers(self, factor: LinearMap) -> dict[str, BlockTracker]:
        rows, columns = factor.shape
        return {end: tracker for end, tracker in self.ends.items() if end == "largest" or rows >= columns}

    def state(self) -> State:
        return {f"{end}_{key}": value for end, t in self.ends.items() for key, value in t.state().items()}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        for end, tracker in self.ends.items():
            tracker.restore({k.removeprefix(f"{end}_"): v for k, v in state.items() if k.startswith(end)}, like)


def _error(found: SingularTriplets) -> float:
    """Bound the error of the outermost squared singular value, by Temple's inequality if it stands apart.

    Should no other than those of the block lie between it and the last of the block.
    """
    residual = float(found.residuals[0])
    gap = abs(float(found.singular_values[0]) ** 2 - float(found.singular_values[-1]) ** 2)
    return residual * min(1.0, residual / gap) if gap else residual


def _chosen(pairs: ShiftedPairs, place: int) -> ActivePairs:
    one = slice(place, place + 1)
    return ActivePairs(float(pairs.values[place]), pairs.signs[one], pairs.vectors[one, ...], pairs.images[one, ...])


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "power": lambda options: Power(options.alpha, options.gram, options.power_iterations),
    "block": lambda options: Block(
        options.alpha, options.gram, options.cluster_rtol, options.block, options.block_steps
    ),
    "exact": lambda options: Exact(options.alpha, options.gram, options.cluster_rtol),
}
"""The estimator of each tracker, made from a descent's options."""
