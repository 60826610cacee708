"""The singular values of one map of a network, each found once, as far as an effort allows."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from convla._array import to_numpy
from convla.linear_map import LinearMap
from convla.networks.effort import FULL, Effort
from convla.operators import ConvOperator
from convla.spectra import (
    SingularValues,
    SpectralDensity,
    largest_singular_value,
    singular_value_bounds,
    smallest_singular_value,
    spectral_density,
)
from convla.spectra.dense import decomposition_is_cheap, decomposition_work, dense_values
from convla.spectra.density import values_are_at_hand
from convla.spectra.fourier import fourier_is_exact
from convla.spectra.frobenius import squared_frobenius_norm
from convla.spectra.inverse import factorisation_work
from convla.spectra.merge import values_in
from convla.spectra.parts import direct_sum

__all__ = ["Spectrum"]


_RTOL = {"float32": 1e-5}
"""Of the largest value, where it is not the usual one: a report shows four digits, and the enclosure is wider."""

_PROBES, _DEGREE = 8, 32
"""Of the stochastic estimate of how the values are distributed."""

T = TypeVar("T")


class _kept(Generic[T]):  # noqa: N801 - it decorates, as `functools.cached_property` does
    """A property that is found once for each spectrum, whichever of several threads asks for it first."""

    def __init__(self, method: Callable[[Any], T]) -> None:
        self._method, self._name = method, method.__name__
        self.__doc__ = method.__doc__

    def __get__(self, spectrum: Spectrum, owner: type) -> T:
        with spectrum.lock:
            if self._name not in spectrum.found:
                spectrum.found[self._name] = self._method(spectrum)
            return spectrum.found[self._name]  # type: ignore[no-any-return]


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
    start : Spectrum, optional
        Of a map near this one, such as this without the normalisation behind it: a start for few products. With
        factors that differ, as after training, more products get further from the symbol's waves.
    effort : Effort

    Notes
    -----
    Several threads may ask; what does not converge says so in its status, and the caller catches the warning.
    """

    def __init__(
        self,
        operator: LinearMap,
        *,
        rounding: float = 0.0,
        upper: float = math.inf,
        copies: int = 1,
        start: Spectrum | None = None,
        effort: Effort = FULL,
    ) -> None:
        self.lock = threading.RLock()
        self.found: dict[str, Any] = {}
        self._start = start
        self.operator, self.rounding, self.copies, self.effort = operator, rounding, copies, effort
        self._upper = upper

    @_kept
    def largest(self) -> SingularValues:
        """Find the largest singular value; its status says where it has not converged."""
        operator, effort = self.operator, self.effort
        start: Any = None
        lanczos = effort.quick and not decomposition_is_cheap(operator, limit=effort.direct)
        if lanczos:  # to look for the symbol's waves takes longer than the few products
            start = np.random.default_rng(0).standard_normal((1, *operator.domain_shape))
            if self._start is not None and self._start.operator.domain_shape == operator.domain_shape:
                start = self._start.largest.right
        return largest_singular_value(
            operator,
            rtol=_RTOL.get(str(operator.dtype)),
            method="lanczos" if lanczos else "auto",
            start=start,
            max_matvecs=effort.max_matvecs,
        )

    @_kept
    def bounds(self) -> tuple[float, float]:
        """Enclose it, which holds whatever the iteration behind `largest` did."""
        method: Literal["auto", "entries"] = "auto"
        if self.effort.quick and not decomposition_is_cheap(self.operator, limit=self.effort.direct):
            method = "entries"
        lower, upper, *_ = singular_value_bounds(self.operator, method=method, start=self.largest)
        return max(0.0, lower - self.rounding), min(upper + self.rounding, self._upper)

    @_kept
    def smallest(self) -> SingularValues:
        """Find the smallest singular value, or a number that it does not exceed: then its status is "not converged".

        Raises
        ------
        ValueError
            If the effort allows neither.
        """
        if self._is_direct:
            return smallest_singular_value(self.operator)
        if self.effort.bounding == 0:
            raise ValueError(f"left out to save time: a matrix of shape {self.operator.shape}")
        return smallest_singular_value(self.operator, method="lanczos", max_matvecs=self.effort.bounding)

    @_kept
    def deficiency(self) -> int | None:
        """Count the singular values that are zero, as far as float64 can tell; None where that takes too long."""
        if not decomposition_is_cheap(self.operator, limit=self.effort.direct):
            return None
        values = np.asarray(to_numpy(dense_values(self._in_double).values))
        return self.copies * int(np.count_nonzero(values <= max(self.operator.shape) * np.finfo(float).eps * values[0]))

    @_kept
    def squared_frobenius_norm(self) -> float:
        """Sum the squares of all of them."""
        return self.copies * squared_frobenius_norm(self.operator)

    @_kept
    def density(self) -> SpectralDensity | None:
        """Tell how the singular values are distributed; None where that takes more than the effort allows."""
        if self._density_work > self.effort.density or self.largest.value == 0.0:
            return None
        found = spectral_density(self.operator, probes=_PROBES, degree=_DEGREE, start=self.largest)
        return replace(found, zeros=self.copies * found.zeros)

    @property
    def _density_work(self) -> float:
        """The operations that the distribution takes."""
        operator = self.operator
        if not isinstance(operator, ConvOperator):
            return decomposition_work(operator)
        geometry = operator.geometry
        if fourier_is_exact(geometry):
            side = max(geometry.out_channels, geometry.in_channels) // geometry.groups
            return 25.0 * geometry.groups * side**3 * math.prod(geometry.output_shape)
        if values_are_at_hand(operator):
            return math.fsum(decomposition_work(part.operator) for part in direct_sum(operator))
        products = operator.kernel.size * math.prod(geometry.output_shape)
        return float(_PROBES * (_DEGREE + 2) * products)

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
