"""The singular values of one map of a network, each found once, as far as an effort allows."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from convla._array import to_numpy
from convla.linear_map import LinearMap
from convla.networks.effort import DEGREE, FULL, PROBES, Effort, density_work
from convla.operators import ConvOperator
from convla.spectra import (
    SingularValues,
    SpectralDensity,
    largest_singular_value,
    singular_value_bounds,
    smallest_singular_value,
    spectral_density,
)
from convla.spectra.border import prepared
from convla.spectra.dense import decomposition_is_cheap, dense_values
from convla.spectra.frobenius import squared_frobenius_norm
from convla.spectra.inertia import factorisation_is_cheap
from convla.spectra.inverse import factorisation_work
from convla.spectra.leading import leading_pairs
from convla.spectra.merge import values_in
from convla.spectra.parts import direct_sum
from convla.spectra.roundoff import in_double
from convla.spectra.scaling import scaled_to_unit
from convla.spectra.status import Status
from convla.typing import Array

__all__ = ["Spectrum"]


_RTOL = {"float32": 1e-5}
"""Of the largest value, where it is not the usual one: a report shows four digits, and the enclosure is wider."""

T = TypeVar("T")


class _kept(Generic[T]):  # noqa: N801 - it decorates, as `functools.cached_property` does
    """A property that is found once for each spectrum, whichever of several threads asks for it first."""

    def __init__(self, method: Callable[[Any], T]) -> None:
        self._method, self._name = method, method.__name__
        self.__doc__ = method.__doc__

    def __get__(self, spectrum: Spectrum, owner: type) -> T:
        with spectrum.lock:
            if self._name not in spectrum.found:
                began, within = time.perf_counter(), math.fsum(spectrum.seconds.values())
                spectrum.found[self._name] = self._method(spectrum)
                within = math.fsum(spectrum.seconds.values()) - within
                spectrum.seconds[self._name] = time.perf_counter() - began - within
            return spectrum.found[self._name]  # type: ignore[no-any-return]


class Spectrum:
    """The singular values of a map, as far as they are asked for.

    Parameters
    ----------
    operator : LinearMap
    rounding : float
        A bound of the norm of what the map lacks of the one that is meant.
    known : (float, float)
        What is known to enclose the largest singular value of the one that is meant.
    copies : int
        How often the map stands side by side in the one that is meant, as a pointwise one does at every pixel.
    effort : Effort

    Attributes
    ----------
    seconds : dict of str to float
        That each property took which was asked for, without those that it asked for itself.

    Notes
    -----
    Several threads may ask; what does not converge says so in its status, and the caller does without the warning.
    """

    def __init__(
        self,
        operator: LinearMap,
        *,
        rounding: float = 0.0,
        known: tuple[float, float] = (0.0, math.inf),
        copies: int = 1,
        effort: Effort = FULL,
    ) -> None:
        self.lock = threading.RLock()
        self.found: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.operator, self.rounding, self.copies, self.effort = operator, rounding, copies, effort
        self._known = known

    @_kept
    def largest(self) -> SingularValues:
        """Find the largest singular value; its status says where it has not converged."""
        if self._is_glimpsed:
            return self._glimpse
        most = max(2, self.effort.max_matvecs)
        return largest_singular_value(self._scaled, rtol=_RTOL.get(str(self.operator.dtype)), max_matvecs=most)

    @_kept
    def bounds(self) -> tuple[float, float]:
        """Enclose it, which holds whatever the iteration behind `largest` did."""
        if self._is_glimpsed:
            found = self._glimpse
            return found.value, found.upper
        by_factors = self.effort.enclosure or self._is_small
        method: Literal["auto", "entries"] = "auto" if by_factors else "entries"
        lower, upper, *_ = singular_value_bounds(self._scaled, method=method, start=self.largest)
        return self._within(lower, upper)

    @_kept
    def _glimpse(self) -> SingularValues:
        """Enclose the largest singular value with hardly any work; as the value stands what it is at least."""
        vector = None
        lower, upper = self._known
        if self.effort.max_matvecs:
            vector = _glimpsed(self.operator, self.effort.max_matvecs // 2)
            lower, upper, *_ = singular_value_bounds(self.operator, method="entries", start=vector)
            lower, upper = self._within(lower, upper)
        return SingularValues(
            values=np.array([lower]),
            left=None,
            right=vector,
            residuals=None,
            errors=np.array([upper - lower]),
            upper=upper,
            matvecs=self.effort.max_matvecs,
            status=Status.NOT_CONVERGED,
            method="lanczos",
        )

    def _within(self, lower: float, upper: float) -> tuple[float, float]:
        """Return bounds of the map as those of the one that is meant."""
        least, most = self._known
        return max(lower - self.rounding, least), min(upper + self.rounding, most)

    @functools.cached_property
    def _scaled(self) -> LinearMap:
        """The map as a multiple of one with entries of order 1, whose weights are laid out once for all searches."""
        if not isinstance(self.operator, ConvOperator):
            return self.operator
        scaled, exponent = scaled_to_unit(self.operator)
        return scaled * Fraction(2) ** exponent

    def release(self) -> None:
        """Give back the memory of what would only save time, were more asked for."""
        self.__dict__.pop("_scaled", None)

    @property
    def is_bare(self) -> bool:
        """Whether nothing is known but the norms that can be read off the kernel."""
        return self._is_glimpsed and self.effort.max_matvecs == 0

    @property
    def _is_glimpsed(self) -> bool:
        return self.effort.quick and not self._is_small

    @property
    def _is_small(self) -> bool:
        return decomposition_is_cheap(self.operator, limit=self.effort.direct)

    @_kept
    def smallest(self) -> SingularValues:
        """Find the smallest singular value, or a number that it does not exceed: then its status is "not converged".

        Raises
        ------
        ValueError
            If the effort allows neither.
        """
        if self._is_direct:
            return smallest_singular_value(self._scaled)
        if self.effort.bounding == 0:
            raise ValueError(f"left out to save time: a matrix of shape {self.operator.shape}")
        return self._bounded() or smallest_singular_value(
            self._scaled, method="lanczos", max_matvecs=self.effort.bounding
        )

    def _bounded(self) -> SingularValues | None:
        """Bound the smallest singular value by what the search for the largest one came across, if that is not zero."""
        if self.largest.least is None or self._is_banded:
            return None
        least = to_numpy(self.largest.least)
        operator = in_double(self._scaled)
        stretching = operator if least.shape == operator.domain_shape else operator.T
        image = to_numpy(stretching.apply(least.astype(np.float64)))
        largest = float(np.abs(image).max())
        value = largest * float(np.linalg.norm(image / largest)) / float(np.linalg.norm(least)) if largest else 0.0
        if not value > math.sqrt(np.finfo(operator.dtype).eps) * self.largest.value:
            return None
        return replace(
            self.largest,
            values=np.array([value]),
            left=None,
            right=None,
            residuals=None,
            errors=np.array([value]),
            upper=math.inf,
            matvecs=1,
            status=Status.NOT_CONVERGED,
        )

    @property
    def _is_banded(self) -> bool:
        """Whether a factorisation tells something of the smallest singular value."""
        return isinstance(self.operator, ConvOperator) and factorisation_is_cheap(self.operator)

    @_kept
    def deficiency(self) -> int | None:
        """Count the singular values that are zero, as far as float64 can tell; None where that takes too long."""
        if not decomposition_is_cheap(self.operator, limit=self.effort.direct):
            return None
        values = np.asarray(to_numpy(dense_values(self._in_double).values))
        return self.copies * int(np.count_nonzero(values <= max(self.operator.shape) * np.finfo(float).eps * values[0]))

    @_kept
    def stable_rank(self) -> float:
        """Sum the squares of all of them, in units of the largest one, which is not zero."""
        return self.copies * squared_frobenius_norm(self.operator, unit=self.largest.value)

    @_kept
    def density(self) -> SpectralDensity | None:
        """Tell how the singular values are distributed; None where that takes more than the effort allows."""
        if density_work(self.operator) > self.effort.density or self.largest.value == 0.0:
            return None
        found = spectral_density(self.operator, probes=PROBES, degree=DEGREE, start=self.largest)
        return replace(found, zeros=self.copies * found.zeros)

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


def _glimpsed(operator: LinearMap, steps: int) -> np.ndarray[Any, Any]:
    """Return an image that a map stretches nearly as much as any: the Ritz vector of a few steps from a random one."""
    problem = prepared(operator)
    scaled = problem.operator.T if problem.transposed else problem.operator
    shape = scaled.domain_shape

    def gram(column: Array) -> Array:
        return np.asarray(scaled._adjoint(scaled._apply(np.asarray(column).reshape(1, *shape)))).reshape(-1, 1)

    start = np.random.default_rng(0).standard_normal(math.prod(shape)).astype(operator.dtype)
    return np.asarray(leading_pairs(gram, start, steps=steps)[1]).reshape(1, *shape)
