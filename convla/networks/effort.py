"""How much work the rows of a report take, how much of it is done, and how long the rest will take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convla.linear_map import LinearMap
from convla.networks.layers import Layer
from convla.operators import ConvOperator
from convla.spectra.dense import decomposition_is_cheap, decomposition_work
from convla.spectra.density import values_are_at_hand
from convla.spectra.fourier import fourier_is_exact
from convla.spectra.inverse import factorisation_work
from convla.spectra.parts import direct_sum

__all__ = [
    "BARE",
    "DEGREE",
    "FULL",
    "ITERATION",
    "PROBES",
    "QUICK",
    "Effort",
    "Pace",
    "Work",
    "density_work",
    "products_of",
    "work_of",
]

Work = Mapping[str, float]
"""The products that each part of a row takes: "largest", "bounds", "smallest", "density", and "rest"."""


@dataclass(frozen=True)
class Effort:
    """How much work may go into what is measured of one map.

    Attributes
    ----------
    max_matvecs : int
        Of the iteration for the largest value.
    direct : float
        Operations of a decomposition or factorisation for the smallest one; beyond, it is only bounded from above.
    bounding : int
        Applications that such a bound may take.
    density : float
        Operations that go into the distribution of all values; beyond, it is left out.
    kernels : float
        Products that go into one measure of a kernel; beyond, it is left out.
    enclosure : bool
        Whether the largest value is enclosed by factorisations; else by the entries, unless the matrix is small.
    quick : bool
        Whether the largest value is only looked at, unless the matrix is small.
    """

    max_matvecs: int = 10_000
    direct: float = 2.5e11
    bounding: int = 24
    density: float = 1e9
    kernels: float = math.inf
    enclosure: bool = True
    quick: bool = False


FULL = Effort()
QUICK = Effort(max_matvecs=8, direct=2e8, bounding=0, density=0.0, kernels=1e8, enclosure=False, quick=True)
BARE = Effort(max_matvecs=0, direct=0.0, bounding=0, density=0.0, kernels=0.0, enclosure=False, quick=True)
"""Nothing but the norms that can be read off the kernel."""

PROBES, DEGREE = 8, 32
"""Of the stochastic estimate of how the values are distributed."""

ITERATION = 110
"""Applications that the largest value usually takes."""

_RATES = {"largest": 1e-10, "bounds": 1e-10, "smallest": 5e-11, "density": 1e-10, "rest": 1e-10}
"""Seconds that a product takes, before any row says better."""

_NODES = 32
"""Of the frequencies that an upper bound is proved at, along an axis, for each degree of the symbol's square."""

_SHARE = 0.02
"""Of all the work of a kind, that has to be done until what it took says more than the usual rate."""

_OPERATIONS = 4
"""Of a decomposition, that take as long as a product."""

_OVERHEAD = 2e7
"""Products that a row could do while it is set up, and each of its parts while it calls what does them."""


def products_of(layers: Sequence[Layer]) -> float:
    """Return the products in one application of layers that stand together.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.effort import products_of
    >>> from convla.networks.layers import convolution_layer
    >>> products_of([convolution_layer(np.ones((4, 3, 3, 3)), (8, 8), padding=1)])
    6912.0
    """
    return float(sum(layer.kernel.size * math.prod(layer.operator.geometry.output_shape) for layer in layers))


def work_of(layers: Sequence[Layer], effort: Effort = FULL, parts: Iterable[str] = _RATES) -> dict[str, float]:
    """Estimate the products that a row takes, by its parts.

    Parameters
    ----------
    layers : sequence of Layer
        One, or several that stand together.
    effort : Effort
    parts : iterable of str
        Those that are wanted.
    """
    products, widest = products_of(layers), max(layers, key=lambda layer: layer.kernel.size)
    operator, single = widest.operator, len(layers) == 1
    # With the normalisations beside it, a layer takes what it takes alone.
    alone = all(layer is widest or layer.kind == "normalization" for layer in layers)
    decomposition = decomposition_work(operator) / _OPERATIONS
    small = alone and decomposition_is_cheap(operator)
    works = {
        "largest": decomposition if small else min(ITERATION, effort.max_matvecs) * products,
        "bounds": decomposition if small else sum(map(_enclosure_work, layers)) if effort.enclosure else products,
        "smallest": effort.bounding * products,
        "density": density_work(operator) if alone and density_work(operator) <= effort.density else 0.0,
        "rest": 4.0 * widest.kernel.size * widest.all_filters.shape[0] if single else 0.0,
    }
    if alone and decomposition_is_cheap(operator, limit=effort.direct):
        works["smallest"] = decomposition
    elif alone and factorisation_work(operator) <= effort.direct:
        works["smallest"] = factorisation_work(operator)  # sparse, and so as slow as products for their number
    return {part: works[part] + _OVERHEAD for part in parts}


def density_work(operator: LinearMap) -> float:
    """Estimate the operations that the distribution of a map's singular values takes."""
    if not isinstance(operator, ConvOperator):
        return decomposition_work(operator)
    geometry = operator.geometry
    if fourier_is_exact(geometry):
        side = max(geometry.out_channels, geometry.in_channels) // geometry.groups
        return 25.0 * geometry.groups * side**3 * math.prod(geometry.output_shape)
    if values_are_at_hand(operator):
        return math.fsum(decomposition_work(part.operator) for part in direct_sum(operator))
    return float(PROBES * (DEGREE + 2) * math.prod(geometry.kernel_shape) * math.prod(geometry.output_shape))


def _enclosure_work(layer: Layer) -> float:
    """Estimate the products of the factorisations at all frequencies that prove a layer's upper bound."""
    geometry = layer.operator.geometry
    groups, phases, frequencies = geometry.groups, 1, 1.0
    for k, d, s, (low, _), size in zip(
        geometry.kernel_size,
        geometry.dilation,
        geometry.stride,
        geometry.padding,
        geometry.output_shape,
        strict=True,
    ):
        lags, remainders = np.divmod(np.arange(k) * d - low, s)
        degree = int(np.ptp(lags))
        phases *= len(np.unique(remainders))
        frequencies *= min(size + degree, _NODES * degree) if degree else 1
    small, large = sorted((geometry.out_channels // groups, geometry.in_channels // groups * phases))
    # Real kernels have the same values at conjugate frequencies; a complex product takes four, of which half are kept.
    return 0.5 * frequencies * groups * (2.0 * large * small**2 + 4.0 / 3.0 * small**3)


class Pace:
    """What the rows so far say of how long the others will take.

    Each part of a row has a rate of its own: its seconds over its work in the rows that are done, with those of the
    usual rate for a small share of all its work, so that the first rows, which may be small, do not speak for all.

    Parameters
    ----------
    works : sequence of Work
        Of the rows to come, as `work_of` estimates them.
    threads : int
        Rows that are worked on at the same time.
    clock : callable
        The seconds that have passed since some moment.

    Examples
    --------
    >>> from convla.networks.effort import Pace
    >>> pace = Pace([{"largest": 1e10}, {"largest": 1e10}, {"largest": 2e10}], threads=1, clock=lambda: 0.0)
    >>> pace.note({"largest": 1e10}, {"largest": 5.0})
    >>> 11.0 < pace.seconds_left < 15.0
    True
    """

    def __init__(self, works: Sequence[Work], threads: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._threads, self._clock = threads, clock
        self._all = {part: math.fsum(work.get(part, 0.0) for work in works) for part in _RATES}
        self._left = dict(self._all)
        self._work, self._seconds = dict.fromkeys(_RATES, 0.0), dict.fromkeys(_RATES, 0.0)
        self._lock = threading.Lock()
        self._noted = clock()

    def note(self, work: Work, seconds: Mapping[str, float] | None) -> None:
        """Take account of a row that is done, and of the seconds of its parts, if it was not known already."""
        if seconds is not None:
            self.learn(work, seconds)
        with self._lock:
            self._noted = self._clock()
            for part, amount in work.items():
                self._left[part] = max(0.0, self._left[part] - amount)

    def learn(self, work: Work, seconds: Mapping[str, float]) -> None:
        """Take account of the seconds that parts of a row took, whatever is left to do of it."""
        with self._lock:
            for part, amount in work.items():
                self._work[part] += amount
                self._seconds[part] += seconds.get(part, 0.0)

    def expected(self, work: Work) -> float:
        """Return the seconds that so much work is expected to take on one thread."""
        with self._lock:
            return self._expected(work)

    @property
    def seconds_left(self) -> float:
        """The seconds that the rows to come are expected to take; what passes since the last row counts."""
        with self._lock:
            whole = self._expected(self._left) / self._threads
            return max(0.0, whole - (self._clock() - self._noted))

    def _expected(self, work: Work) -> float:
        # How much slower this machine is than the usual one, in all parts together, and then in each.
        some = _SHARE * _usual(self._all)
        slower = (math.fsum(self._seconds.values()) + some) / ((_usual(self._work) + some) or 1.0)
        total = 0.0
        for part, amount in work.items():
            few = _SHARE * self._all[part] or 1.0
            rate = (self._seconds[part] + slower * _RATES[part] * few) / (self._work[part] + few)
            total += amount * rate
        return total


def _usual(work: Work) -> float:
    """Return the seconds that work takes at the usual rates."""
    return math.fsum(amount * _RATES[part] for part, amount in work.items())
