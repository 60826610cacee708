"""The singular values of one map of a network, each found once, and how much work may go into them."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass

import numpy as np

from convla._array import to_numpy
from convla.errors import ConvergenceWarning
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra import SingularValues, largest_singular_value, singular_value_bounds, smallest_singular_value
from convla.spectra.dense import decomposition_is_cheap, dense_values
from convla.spectra.frobenius import squared_frobenius_norm
from convla.spectra.inverse import factorisation_work
from convla.spectra.merge import values_in
from convla.spectra.parts import direct_sum

__all__ = ["FULL", "QUICK", "Effort", "Spectrum"]


@dataclass(frozen=True)
class Effort:
    """How much work may go into the singular values of one map.

    Attributes
    ----------
    max_matvecs : int
        Of the iteration for the largest value.
    direct : float
        Operations of a decomposition or factorisation for the smallest one; beyond, it is only bounded from above.
    bounding : int
        Applications that such a bound may take.
    """

    max_matvecs: int = 10_000
    direct: float = 2.5e11
    bounding: int = 24


_RTOL = {"float32": 1e-5}
"""Of the largest value, where it is not the usual one: a report shows four digits, and the enclosure is wider."""

FULL = Effort()
QUICK = Effort(max_matvecs=12, direct=1e9, bounding=0)


class Spectrum:
    """The singular values of a map, as far as they are asked for.

    Parameters
    ----------
    operator : LinearMap
    rounding : float
        A bound of the norm of what the map lacks of the one that is meant.
    upper : float
        What the largest singular value of the one that is meant is known not to exceed.
    copies : int
        How often the map stands side by side in the one that is meant, as a pointwise one does at every pixel.
    effort : Effort
    """

    def __init__(
        self,
        operator: LinearMap,
        *,
        rounding: float = 0.0,
        upper: float = math.inf,
        copies: int = 1,
        effort: Effort = FULL,
    ) -> None:
        self.operator, self.rounding, self.copies, self.effort = operator, rounding, copies, effort
        self._upper = upper

    @functools.cached_property
    def largest(self) -> SingularValues:
        """The largest singular value."""
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # its status says so
            return largest_singular_value(
                self.operator, rtol=_RTOL.get(str(self.operator.dtype)), max_matvecs=self.effort.max_matvecs
            )

    @functools.cached_property
    def bounds(self) -> tuple[float, float]:
        """Its enclosure, which holds whatever the iteration behind `largest` did."""
        lower, upper, *_ = singular_value_bounds(self.operator, start=self.largest)
        return max(0.0, lower - self.rounding), min(upper + self.rounding, self._upper)

    @functools.cached_property
    def smallest(self) -> SingularValues:
        """The smallest singular value, or a number that it does not exceed: then its status is "not converged".

        Raises
        ------
        ValueError
            If the effort allows neither.
        """
        if self._is_direct:
            return smallest_singular_value(self.operator)
        if self.effort.bounding == 0:
            raise ValueError(f"left out to save time: a matrix of shape {self.operator.shape}")
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            return smallest_singular_value(self.operator, method="lanczos", max_matvecs=self.effort.bounding)

    @functools.cached_property
    def deficiency(self) -> int | None:
        """How many of the singular values are zero, as far as float64 can tell; None where that takes too long."""
        if not decomposition_is_cheap(self.operator, limit=self.effort.direct):
            return None
        values = np.asarray(to_numpy(dense_values(self._in_double).values))
        return self.copies * int(np.count_nonzero(values <= max(self.operator.shape) * np.finfo(float).eps * values[0]))

    @functools.cached_property
    def squared_frobenius_norm(self) -> float:
        """The sum of the squares of all of them."""
        return self.copies * squared_frobenius_norm(self.operator)

    @property
    def _in_double(self) -> LinearMap:
        return self.operator.astype(np.float64)

    @property
    def _is_direct(self) -> bool:
        limit, operator = self.effort.direct, self.operator
        if decomposition_is_cheap(operator, limit=limit):
            return True
        if not isinstance(operator, ConvOperator):
            return False
        parts = direct_sum(operator)
        if values_in(parts) < min(operator.shape):  # its structure alone makes it singular
            return True
        works = [
            decomposition_is_cheap(part.operator, limit=limit) or factorisation_work(part.operator) <= limit
            for part in parts
        ]
        return all(works)
