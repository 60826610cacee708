"""Times on a device by its own events, and the speeds of this very device that they are compared with."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Floors", "Timed", "device_time", "measure_floors", "torch_time"]

REPEATS = 20
WARM_UP = 3
PATIENCE = 10.0
"""Seconds after which what is slow is called no more, once it was timed three times."""


class Timed(NamedTuple):
    """Milliseconds of one call: the median of `REPEATS`, or of fewer where they are slow, and the extremes."""

    median: float
    least: float
    most: float
    calls: int


class Floors(NamedTuple):
    """What the device does at best, measured: bytes and float32 operations each second."""

    bytes_per_second: float
    operations_per_second: float

    def milliseconds(self, moved: float, operations: float) -> float:
        """Return the least time that moving so many bytes, or doing so many operations, takes here."""
        return 1e3 * max(moved / self.bytes_per_second, operations / self.operations_per_second)


def device_time(function: Callable[[], Any]) -> Timed:
    """Time a function of CuPy arrays, after calls that compile and warm up."""
    cuda = importlib.import_module("cupy").cuda
    return _timed(function, lambda: cuda.Event(), cuda.get_elapsed_time)


def torch_time(function: Callable[[], Any]) -> Timed:
    """Time a function of PyTorch's tensors on the device, in the same way."""
    cuda = importlib.import_module("torch").cuda
    return _timed(function, lambda: cuda.Event(enable_timing=True), lambda first, last: first.elapsed_time(last))


def _timed(function: Callable[[], Any], event: Callable[[], Any], elapsed: Callable[[Any, Any], float]) -> Timed:
    for _ in range(WARM_UP):
        function()
    times = []
    for _ in range(REPEATS):
        first, last = event(), event()
        first.record()
        function()
        last.record()
        last.synchronize()
        times.append(float(elapsed(first, last)))
        if len(times) >= 3 and sum(times) > 1e3 * PATIENCE:
            break
    return Timed(statistics.median(times), min(times), max(times), len(times))


def measure_floors(*, entries: int = 2**28, side: int = 8192) -> Floors:
    """Measure the device's memory by a copy of float32 `entries`, its arithmetic by a product of square matrices."""
    cupy = importlib.import_module("cupy")
    source, target = cupy.ones(entries, dtype=cupy.float32), cupy.empty(entries, dtype=cupy.float32)
    copy = device_time(lambda: cupy.copyto(target, source)).median
    a = cupy.asarray(np.random.default_rng(0).standard_normal((side, side), dtype=np.float32))
    product = device_time(lambda: a @ a).median
    return Floors(8 * entries / (1e-3 * copy), 2 * side**3 / (1e-3 * product))
