"""A kernel that is kept below a maximum while it changes, with what earlier projections have taught of it."""

from __future__ import annotations

import math
import threading
from typing import NamedTuple, get_args

import numpy as np

from convla._array import to_numpy
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer, check_real
from convla.operators import ConvOperator
from convla.projections.blocks import BlockMethod, Blocks, TorusBlocks, blocks_of
from convla.projections.excess import Follower
from convla.projections.nearest import extrapolated
from convla.projections.scaling import scaled_below
from convla.projections.units import distance_between, in_units, unit_of, with_kernel
from convla.spectra.bounds import proved_upper_bound, singular_value_bounds

__all__ = ["FEW_ITERATIONS", "FollowedKernel", "KeptKernel"]

FEW_ITERATIONS = 5
_ROUNDS = 4  # of the blocks' limit, moved until the proved bound is close to the maximum
_CLOSE = 2e-3  # of the maximum
_MISSED = 1e-4  # of the limit: what the followed vectors may miss, so that it costs no second proof


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
    the limit are followed, and they tell, without a proof, whether the next one exceeds it. A kernel that has not
    changed since its proof is not looked at again: a copy of it is kept.

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
        self._last: KeptKernel | None = None
        self._lock = threading.Lock()  # who was interrupted may ask again while another thread is still at it
        self._ratio = 0.0  # of the proved bound to the norm of the blocks; 0 where no kernel has exceeded the maximum

    @blas_on_one_thread()
    def kept(self, operator: ConvOperator) -> KeptKernel:
        """Return a kernel near that of an operator, in host memory and always in the same setting."""
        with self._lock:
            last = self._last
            if last is None or not np.array_equal(to_numpy(operator.kernel), to_numpy(last.operator.kernel)):
                self._last = self._found(operator)
                return self._last
            return last._replace(iterations=0)

    def _found(self, operator: ConvOperator) -> KeptKernel:
        if self._blocks is None:
            self._blocks = blocks_of(operator, self._method)
        if not self._ratio:
            upper = self._proof(operator)
            if upper <= self._maximum:
                return KeptKernel(operator, upper, 0)
            self._ratio = 1.0
        unit = unit_of(operator)
        given = np.ldexp(np.asarray(operator.kernel, np.float64), -unit).reshape(self._blocks.shape)
        best, least, iterations = None, math.inf, 0
        for _ in range(_ROUNDS):
            limit = in_units(self._maximum, unit) / self._ratio
            near = extrapolated(
                self._blocks,
                given,
                limit * (1 - _MISSED),
                max_iterations=self._max_iterations,
                follower=self._follower,
            )
            iterations += near.iterations
            found = with_kernel(operator, np.ldexp(near.kernel, unit)) if near.iterations else operator
            settled = scaled_below(found, self._maximum, proof=self._proof)
            distance = distance_between(settled.operator, operator)
            if distance < least or best is None:
                best, least = settled, distance
            if settled.factor == 1.0 and (self._tries_the_maximum or not near.iterations):
                break
            bound = settled.upper / settled.factor if settled.factor else 0.0
            if not (bound > 0 and near.norm > 0):  # nothing is left of it beside the kernel: so much can only be scaled
                settled = scaled_below(operator, self._maximum, proof=self._proof)
                if distance_between(settled.operator, operator) <= least:
                    best = settled
                break
            if not self._blocks.bounding or not self._tries_the_maximum:
                self._ratio = float(np.ldexp(bound, -unit)) / near.norm
            if abs(bound - self._maximum) <= _CLOSE * self._maximum:
                break
            if self._blocks.bounding and bound < self._maximum:
                break
            if self._blocks.bounding:  # what was followed has missed something: from the beginning
                self._follower = Follower()
        assert best is not None
        return KeptKernel(best.operator, best.upper, iterations)

    @property
    def _tries_the_maximum(self) -> bool:
        """Whether the maximum itself is proved, on the torus of the blocks or one as good, and no tighter bound."""
        blocks = self._blocks
        return isinstance(blocks, TorusBlocks) and blocks.geometry.boundary in ("zero", "circular")

    def _proof(self, operator: ConvOperator) -> float:
        if self._tries_the_maximum:
            return proved_upper_bound(operator, self._maximum)
        return singular_value_bounds(operator).upper
