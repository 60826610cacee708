"""A kernel that is kept below a maximum while it changes, with what earlier projections have taught of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np

from convla._array import to_numpy
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer, check_real
from convla.operators import ConvOperator
from convla.projections.blocks import BlockMethod, Blocks, TorusBlocks, blocks_of
from convla.projections.changes import bound_after
from convla.projections.excess import Follower
from convla.projections.nearest import extrapolated
from convla.projections.scaling import scaled_below
from convla.projections.units import distance_between, frobenius_norm, from_units, in_units, unit_of, with_kernel
from convla.spectra.bounds import is_bounded_by_its_matrix, proved_upper_bound, singular_value_bounds

__all__ = ["FEW_ITERATIONS", "FollowedKernel", "KeptKernel"]

FEW_ITERATIONS = 5
_ROUNDS = 4  # of the blocks' limit, moved until the proved bound is close to the maximum
_CLOSE = 2e-3  # of the maximum
_MISSED = 1e-4  # of the limit: what the followed vectors may miss, so that it costs no second proof
_LOW = 0.5  # of the maximum: a norm below it need not be known more closely
_MORE = 1.01  # of a norm below the maximum that the followed vectors show: what is tried to be proved

Proof = Callable[[ConvOperator], float]


class KeptKernel(NamedTuple):
    """A kernel that obeys a maximum.

    Attributes
    ----------
    operator : ConvOperator
        With the kernel; the one given where that obeys the maximum.
    upper : float
        The proved bound of the largest singular value.
    iterations : int
    """

    operator: ConvOperator
    upper: float
    iterations: int


class FollowedKernel:
    """Finds kernels near those of a layer that changes, with a proved maximum of their largest singular values.

    Parameters
    ----------
    maximum : float
        Positive.
    method : {"auto", "matrix", "torus"}
        As in `convla.clip_singular_values`.
    max_iterations : int
        Of each projection.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong in type or value.

    Notes
    -----
    A kernel that has never exceeded the maximum costs its proof. From the first that did on the singular vectors above
    the limit are followed, and they tell, without a proof, whether the next one exceeds it. A kernel that has changed
    since the last proof by less than that left below the maximum needs none: see `convla.projections.changes`.

    No kernel that is found is farther from the one given than that one scaled down by its own proved norm would be, but
    for rounding to its dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.projections.following import FollowedKernel
    >>> followed = FollowedKernel(1.0)
    >>> kept = followed.kept(ConvOperator(np.array([[[1.0, 2.0, 1.0]]]), (16,)))
    >>> kept.upper <= 1.0, kept.iterations
    (True, 4)
    """

    def __init__(self, maximum: float, *, method: BlockMethod = "auto", max_iterations: int = FEW_ITERATIONS) -> None:
        self._maximum = check_real("maximum", maximum, positive=True)
        check_choice("method", method, get_args(BlockMethod))
        self._method = method
        self._max_iterations = check_integer("max_iterations", max_iterations, minimum=1)
        self._follower = Follower()
        self._blocks: Blocks | None = None
        self._lock = threading.Lock()  # who was interrupted may ask again while another thread is still at it
        self._proved: KeptKernel | None = None
        self._exceeded = False  # whether any kernel has exceeded the maximum
        self._ratio = 1.0  # of the proved bound to the norm of the blocks

    @blas_on_one_thread()
    def kept(self, operator: ConvOperator, *, upper: float | None = None) -> KeptKernel:
        """Return a kernel near that of an operator, in host memory and always in the same setting.

        `upper` is the bound of `convla.singular_value_bounds`, where that is known.
        """
        with self._lock:
            known = self._known(operator)
            if known <= self._maximum:
                return KeptKernel(operator, known, 0)
            self._proved = self._found(operator, upper)
            return self._proved

    def _known(self, operator: ConvOperator) -> float:
        """Return what the last proof says of another kernel."""
        if self._proved is None:
            return math.inf
        before, upper, _ = self._proved
        if np.array_equal(to_numpy(before.kernel), to_numpy(operator.kernel)):
            return upper
        return bound_after(before, upper, operator) if upper < (1 - _CLOSE) * self._maximum else math.inf

    def _found(self, operator: ConvOperator, upper: float | None) -> KeptKernel:
        if self._blocks is None:
            self._blocks = blocks_of(operator, self._method)
        proof = self._proof if upper is None else _enclosed  # a scaled kernel is proved as what it is scaled by was
        if upper is None and not self._exceeded:
            upper = self._proof(operator, _LOW * self._maximum)
            if self._maximum < upper <= (1 + _CLOSE) * self._maximum:  # a bound that had to be raised is no tight one
                upper = self._proof(operator)
        if upper is not None and upper <= self._maximum:
            return KeptKernel(operator, upper, 0)
        self._exceeded = True
        return self._moved(operator, self._blocks, upper, proof)

    def _moved(self, operator: ConvOperator, blocks: Blocks, upper: float | None, proof: Proof) -> KeptKernel:
        """Return the kernel itself where it is proved to obey after all, else the nearest of some that do.

        To scale it down is a candidate, which moves it by a share that its bound tells, and at least by the one that
        the norm of its blocks does. So mostly it need not be proved, nor tried.
        """
        unit = unit_of(operator)
        given = np.ldexp(np.asarray(operator.kernel, np.float64), -unit).reshape(blocks.shape)
        size = from_units(frobenius_norm(given), unit)
        best, least, iterations, is_scaled = KeptKernel(operator, math.inf, 0), math.inf, 0, False
        for _ in range(_ROUNDS):
            limit = in_units(self._maximum, unit) / self._ratio
            near = extrapolated(
                blocks,
                given,
                limit * (1 - _MISSED),
                max_iterations=self._max_iterations,
                enough=limit,
                follower=self._follower,
            )
            iterations += near.iterations
            found = with_kernel(operator, np.ldexp(near.kernel, unit)) if near.iterations else operator
            distance = distance_between(found, operator)
            shown = from_units(near.before, unit) if self._is_comparable(operator, blocks) else 0.0
            if upper is None and self._share(shown) * size <= distance:
                upper = self._proof(operator, math.inf if near.iterations else _MORE * from_units(near.norm, unit))
                if upper <= self._maximum:
                    return KeptKernel(operator, upper, 0)
            if near.iterations and blocks.bounding and upper is not None and self._share(upper) * size <= distance:
                break
            if near.iterations:
                settled = scaled_below(found, self._maximum, proof=self._proof)
            else:
                settled = scaled_below(found, self._maximum, proof=proof, upper=upper)
            distance = distance_between(settled.operator, operator)
            if distance <= least:
                best, least, is_scaled = KeptKernel(settled.operator, settled.upper, 0), distance, not near.iterations
            bound = settled.upper / settled.factor if settled.factor else 0.0
            if not (bound > 0 and near.norm > 0):  # nothing is left of it beside the kernel: so much can only be scaled
                break
            if settled.factor == 1.0 and self._tries_the_maximum:
                break
            if not blocks.bounding or not self._tries_the_maximum:
                self._ratio = float(np.ldexp(bound, -unit)) / near.norm
            if abs(bound - self._maximum) <= _CLOSE * self._maximum:
                break
            if blocks.bounding and bound < self._maximum:
                break
            if blocks.bounding:  # what was followed has missed something: from the beginning
                self._follower = Follower()
        if upper is not None and not is_scaled and self._share(upper) * size <= least:
            scaled = scaled_below(operator, self._maximum, proof=proof, upper=upper)
            if distance_between(scaled.operator, operator) <= least:
                best = KeptKernel(scaled.operator, scaled.upper, 0)
        return best._replace(iterations=iterations)

    def _share(self, norm: float) -> float:
        """Return by what share a kernel of a norm has to be scaled down."""
        return 1 - self._maximum / norm if norm > self._maximum else 0.0

    def _is_comparable(self, operator: ConvOperator, blocks: Blocks) -> bool:
        """Tell whether the norm of the blocks is at most what is proved: the layer's own, or that of their torus."""
        return blocks.exact or (self._tries_the_maximum and not is_bounded_by_its_matrix(operator))

    @property
    def _tries_the_maximum(self) -> bool:
        """Whether the maximum itself is proved, on the torus of the blocks or one as good, and no tighter bound."""
        blocks = self._blocks
        return isinstance(blocks, TorusBlocks) and blocks.geometry.boundary in ("zero", "circular")

    def _proof(self, operator: ConvOperator, tried: float = math.inf) -> float:
        """Return a proved bound: what is tried, up to the maximum, where that is one and the torus serves."""
        if self._tries_the_maximum:
            return proved_upper_bound(operator, min(tried, self._maximum))
        return _enclosed(operator)


def _enclosed(operator: ConvOperator) -> float:
    return singular_value_bounds(operator).upper
