"""How much work the rows of a report take, how much of it is done, and how long the rest will take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from convla.networks.layers import Layer
from convla.spectra.dense import decomposition_is_cheap, decomposition_work

__all__ = ["FULL", "QUICK", "Effort", "Pace", "products_of", "work_of"]


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
    quick : bool
        Whether the largest value is bounded by the entries alone, and not by factorisations.
    """

    max_matvecs: int = 10_000
    direct: float = 2.5e11
    bounding: int = 24
    density: float = 1e9
    kernels: float = math.inf
    quick: bool = False


FULL = Effort()
QUICK = Effort(max_matvecs=8, direct=2e8, bounding=0, density=0.0, kernels=1e8, quick=True)

_ITERATION = 160
"""Applications that the largest value and a bound of the smallest one usually take."""

_RATE = 2e-10
"""Seconds that a product takes, before any row says better."""

_SMALL = 0.1
"""Of the mean of all rows' work: a row of less takes its time for other things."""


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


def work_of(layers: Sequence[Layer]) -> float:
    """Estimate the products that the singular values of layers that stand together take, enclosure included."""
    if all(layer.kind == "normalization" for layer in layers):
        return 1e5
    operator = layers[-1].operator
    if len(layers) == 1 and decomposition_is_cheap(operator):
        return 3.0 * decomposition_work(operator)
    return _ITERATION * products_of(layers) + sum(map(_enclosure_work, layers))


def _enclosure_work(layer: Layer) -> float:
    """Estimate the products of the factorisations at all frequencies that prove a layer's upper bound."""
    geometry = layer.geometry
    if layer.kind != "convolution":
        return 0.0
    groups = geometry.groups
    rows = geometry.out_channels // groups
    columns = geometry.in_channels // groups * math.prod(geometry.stride)
    small, large = sorted((rows, columns))
    frequencies = math.prod(
        min(2 * size, 64 * max(1, taps - 1))
        for size, taps in zip(geometry.output_shape, geometry.kernel_size, strict=True)
    )
    return 0.5 * frequencies * groups * (3.0 * large * small**2 + 4.0 / 3.0 * small**3)


class Pace:
    """What the rows so far say of how long the others will take.

    Parameters
    ----------
    works : sequence of float
        Of the rows to come, as `work_of` estimates them.
    threads : int
        Rows that are worked on at the same time.

    Examples
    --------
    >>> from convla.networks.effort import Pace
    >>> pace = Pace([1e9, 1e9, 2e9], threads=1)
    >>> pace.note(1e9, 0.5)
    >>> round(pace.expected(2e9), 6), round(pace.seconds_left, 1)
    (1.0, 1.5)
    """

    def __init__(self, works: Sequence[float], threads: int) -> None:
        self._left, self._rows, self._threads = math.fsum(works), len(works), threads
        self._small = _SMALL * self._left / max(1, len(works))
        # Of the rows of much work, and of those of little: how many, their work, and their seconds.
        self._much, self._little = [0, 0.0, 0.0], [0, 0.0, 0.0]
        self._lock = threading.Lock()
        self._noted = time.monotonic()

    def note(self, work: float, seconds: float | None) -> None:
        """Take account of a row that is done, and of the seconds that it took, if it was not known already."""
        with self._lock:
            self._left = max(0.0, self._left - work)
            self._rows -= 1
            self._noted = time.monotonic()
            if seconds is not None:
                sums = self._little if work < self._small else self._much
                sums[0], sums[1], sums[2] = sums[0] + 1, sums[1] + work, sums[2] + seconds

    def expected(self, work: float) -> float:
        """Return the seconds that so much work is expected to take on one thread."""
        return self._seconds(work, 1)

    def _seconds(self, work: float, rows: int) -> float:
        """Return what rows take: each its share of what a row of little work does, and the rest by the work."""
        (_, much, long), (count, _, short) = self._much, self._little
        return rows * (short / count if count else 0.0) + work * (long / much if much else _RATE)

    @property
    def seconds_left(self) -> float:
        """The seconds that the rows to come are expected to take; what passes since the last row counts."""
        with self._lock:
            whole = self._seconds(self._left, self._rows) / self._threads
            return max(0.0, whole - (time.monotonic() - self._noted))
