"""Compiled functions on all of numba's threads, safe to call after a fork and from several Python threads.

Threads do not survive a fork, and GNU OpenMP ends a child that asks for its parent's: there the same code runs on the
calling thread. numba's own layer, "workqueue", ends the process when two threads enter it at once: there they take
turns.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numba

__all__ = ["ParallelFunction", "compiled_in_parallel", "thread_count", "threading_layer"]

_CONCURRENT_LAYERS = ("omp", "tbb")


class _Threads:
    """What this process knows of numba's threads."""

    def __init__(self) -> None:
        self.lost = False  # started by a parent process
        self.turns = threading.Lock()

    def after_fork(self) -> None:
        self.lost = self.lost or threading_layer() is not None
        self.turns = threading.Lock()  # another thread of the parent may have held it


def threading_layer() -> str | None:
    """Return the threading layer that numba has started; None before the first parallel call."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


def thread_count() -> int:
    """Return the number of numba's threads.

    The first call starts them. An OpenMP pool that starts sets the number of PyTorch's threads to its own, so that
    PyTorch is then given its number back.
    """
    torch: Any = sys.modules.get("torch")
    if threading_layer() is not None or not hasattr(torch, "set_num_threads"):
        return int(numba.get_num_threads())
    before = torch.get_num_threads()
    try:
        return int(numba.get_num_threads())
    finally:
        torch.set_num_threads(before)


_threads = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.after_fork)


class ParallelFunction:
    """A function compiled with ``parallel=True``, and what runs in its place where there are no threads."""

    def __init__(self, parallel: Callable[..., None], serial: Callable[..., None]) -> None:
        self.parallel = parallel
        self.serial = serial

    def __call__(self, *arguments: Any) -> None:
        """Run on all threads, on this one after a fork, or wait for another thread's call."""
        if _threads.lost:
            self.serial(*arguments)
        elif threading_layer() in _CONCURRENT_LAYERS:
            self.parallel(*arguments)
        else:
            with _threads.turns:
                thread_count()
                self.parallel(*arguments)


def compiled_in_parallel(
    serial: Callable[..., None] | None = None, **options: Any
) -> Callable[[Callable[..., None]], ParallelFunction]:
    """Compile the decorated function with numba's `options` and ``parallel=True``.

    Parameters
    ----------
    serial : callable, optional
        Does the same on one thread. Without it the function is compiled a second time when that is needed; the cache on
        disk cannot hold both.
    """

    def compile_both(function: Callable[..., None]) -> ParallelFunction:
        parallel = numba.njit(cache=True, parallel=True, **options)(function)
        return ParallelFunction(parallel, serial or numba.njit(**options)(function))

    return compile_both
