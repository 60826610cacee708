"""Both ends of the spectrum, each followed by a block of vectors: the tracker "block"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from convla._array import device_of, namespace
from convla._validate import check_integer, check_real
from convla.penalties.pairs import ActivePairs, Shifted, active_pairs, cluster, pointwise_matrix
from convla.penalties.tracker import State, Tracker
from convla.spectra.carrier import Carrier
from convla.spectra.result import End, SingularValues
from convla.spectra.status import Status
from convla.spectra.tracking import BlockTracker

__all__ = ["Block"]

_RTOL = 1e-3
"""Residuals of this part of sigma_max^2 bound the error of the penalty by as much, and leave the usual small step of a
descent with one or two block steps."""

_SMALL = 100
"""Rows or columns of a matrix at each position that is decomposed at every kernel."""


@dataclass(frozen=True, kw_only=True)
class Block(Tracker):
    """Both ends of the spectrum, each by a block of its own; the lower end of a singular Gram matrix is known.

    Parameters
    ----------
    vectors : int
        At each end.
    steps : int
        Of the block iteration at each kernel, at most; it stops at residuals of 1e-3 ``sigma_max^2``.
    cluster_rtol : float, optional
        How close to the leading eigenvalues others count as active, whose gradients are averaged; see
        `convla.penalty_gradient`.

    Notes
    -----
    A convolution of one tap, stride 1 and at most 100 channels on one side is decomposed at every kernel: its matrix is
    that of its channels at every position.

    Otherwise neither end is looked at while it cannot count: the lower one while the upper one is farther from alpha
    than 0 is, the upper one as long as it cannot have come far enough since it was found too low. A search from nothing
    ends as soon as the value is known to 1e-3 ``sigma_max^2``. See `convla.spectra.tracking.BlockTracker` for what is
    done.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.penalties import Block, shifted
    >>> target = shifted(ConvOperator(np.diag([3.0, 2.0])[:, :, None], (1,)), 1.0, "input")
    >>> tracker = Block(vectors=2)
    >>> tracker.step(target, tracker.initial(target))[0].value
    8.0
    """

    name: ClassVar[str] = "block"
    trusted: ClassVar[bool] = True

    vectors: int = 4
    steps: int = 20
    cluster_rtol: float | None = None

    def __post_init__(self) -> None:
        check_integer("vectors", self.vectors, minimum=1)
        check_integer("steps", self.steps, minimum=1)
        if self.cluster_rtol is not None:
            check_real("cluster_rtol", self.cluster_rtol, minimum=0.0)

    def initial(self, target: Shifted) -> State:
        """Return the states of both ends, which know nothing; nothing where each matrix is decomposed."""
        if _is_small(target):
            return {}
        return {
            f"{end}_{name}": array
            for end, tracker in self._ends(target).items()
            for name, array in tracker.initial(target.factor).items()
        }

    def step(self, target: Shifted, state: State) -> tuple[ActivePairs, State]:
        """Follow the ends that can be active."""
        if _is_small(target):
            return active_pairs(target, cluster_rtol=self.cluster_rtol), state
        factor = target.factor
        xp = namespace(factor.like)
        ends, after = self._ends_that_count(target, state)
        if not ends:
            signs, right, left = (
                xp.zeros((0, *shape), dtype=factor.dtype, device=device_of(factor.like))
                for shape in ((), factor.domain_shape, factor.range_shape)
            )
            return ActivePairs(target.alpha, signs, right, left, target.nulls), after
        values = xp.astype(xp.concat([found.values for found in ends]), factor.dtype)
        left, right = (xp.concat([getattr(found, name) for found in ends]) for name in ("left", "right"))
        # Of a map with few columns both blocks hold the same vectors; each counts once.
        total = min(right.shape[0], factor.shape[1])
        squares = (values * values)[:total]
        value, signs, chosen, nulls = cluster(squares, target.alpha, target.nulls, self.cluster_rtol)
        images = xp.reshape(xp.take(values, chosen), (-1,) + (1,) * (left.ndim - 1)) * xp.take(left, chosen, axis=0)
        statuses = [found.status for found in ends]
        pairs = ActivePairs(
            value,
            signs,
            xp.take(right, chosen, axis=0),
            images,
            nulls,
            error=max(map(_error, ends)),
            status=Status.NOT_CONVERGED if Status.NOT_CONVERGED in statuses else Status.ESTIMATED,
        )
        return pairs, after

    def challenge(self, target: Shifted, pairs: ActivePairs, state: State) -> tuple[ActivePairs, State]:
        """Search from random vectors, which have a part in every invariant subspace, and compare.

        A Ritz value lies inside the spectrum, so that a larger penalty from any vectors refutes a smaller one.
        """
        if _is_small(target):
            return pairs, state
        factor = target.factor
        largest, distance = 0.0, -math.inf
        for end in self._ends(target):
            if end == "largest" or self._lower_can_be_active(target, largest):
                seed = int(state[f"{end}_updates"]) + 1
                other = BlockTracker(block=2, steps=self.steps, end=end, reseed=0, rtol=_RTOL, rng=seed)
                square = other.step(factor, other.initial(factor))[0].value ** 2
                largest = max(largest, square)
                distance = max(distance, square - target.alpha if end == "largest" else target.alpha - square)
        if distance <= pairs.value + _RTOL * max(largest, target.alpha):
            return pairs, state
        return self.step(target, self.initial(target))

    def _ends_that_count(self, target: Shifted, state: State) -> tuple[list[SingularValues], State]:
        """Follow the ends that can be active, as accurately as they can change the value, and return what was found.

        Of a map that is nearly singular, and less than twice alpha in square, only the lower end is active; how far
        the upper one is from that need not be known. A search from nothing uses one Krylov space for both.
        """
        factor, after, carrier = target.factor, dict(state), Carrier(target.factor)
        trackers = self._ends(target)
        upper, lower = trackers["largest"], trackers.get("smallest")
        least = 0.0
        if lower is not None and int(state["smallest_updates"]):
            least = lower.range(carrier, _of_end(state, "smallest"))[1]

        def follow(end: End, **known: Any) -> SingularValues:
            found, new = trackers[end].step(factor, _of_end(after, end), carrier=carrier, **known)
            after.update({f"{end}_{name}": array for name, array in new.items()})
            return found

        found: dict[End, SingularValues] = {}
        bar = self._bar(target, least)
        norm, most = upper.range(carrier, _of_end(state, "largest"))
        if most > bar:
            found["largest"] = follow("largest", bar=bar)
            norm, most = upper.range(carrier, _of_end(after, "largest"))
        else:  # that it is too low is an update, too
            after["largest_updates"] = state["largest_updates"] + 1
        if lower is not None and self._lower_can_be_active(target, norm**2):
            found["smallest"] = follow("smallest", norm=norm)
            if most <= bar and most > self._bar(target, found["smallest"].value):  # which is not as low as was thought
                found["largest"], most = follow("largest"), math.inf
        if most <= bar:
            found.pop("largest", None)
        return [found[end] for end in trackers if end in found], after

    def _bar(self, target: Shifted, least: float) -> float:
        """Return what sigma_max has to exceed for the upper end to be active where a singular value is `least`."""
        return math.sqrt(max(0.0, 2.0 * target.alpha * (1.0 - self._active_rtol(target)) - least**2))

    def _ends(self, target: Shifted) -> dict[End, BlockTracker]:
        options: dict[str, Any] = {"block": self.vectors, "steps": self.steps, "rtol": _RTOL, "outermost": True}
        ends: tuple[End, ...] = ("largest",) if target.nulls else ("largest", "smallest")
        return {end: BlockTracker(end=end, **options) for end in ends}

    def _lower_can_be_active(self, target: Shifted, largest: float) -> bool:
        """Tell whether a squared singular value can be as far below alpha as the `largest` is above it.

        None is farther than alpha. At the start of most descents this spares the costlier of the two searches.
        """
        return largest - self._active_rtol(target) * max(largest, target.alpha) <= 2.0 * target.alpha

    def _active_rtol(self, target: Shifted) -> float:
        if self.cluster_rtol is not None:
            return self.cluster_rtol
        return math.sqrt(float(namespace(target.factor.like).finfo(target.factor.dtype).eps))


def _is_small(target: Shifted) -> bool:
    """Tell whether the map is one matrix at each position, and to decompose it takes no longer than to follow it."""
    matrix = pointwise_matrix(target.factor)
    return matrix is not None and min(matrix.shape) <= _SMALL


def _of_end(state: State, end: str) -> Mapping[str, Any]:
    return {name.removeprefix(f"{end}_"): array for name, array in state.items() if name.startswith(f"{end}_")}


def _error(found: SingularValues) -> float:
    """Bound the error of the outermost squared singular value, by Temple's inequality if it stands apart.

    Should no other than those of the block lie between it and the last of the block.
    """
    assert found.residuals is not None
    value = found.value
    residual = float(found.residuals[0]) * value
    gap = abs(value**2 - float(found.values[-1]) ** 2)
    return residual * min(1.0, residual / gap) if gap else residual
