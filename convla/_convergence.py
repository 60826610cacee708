"""Warnings of what did not converge, and how a caller that says so by other means does without them.

`warnings.catch_warnings` changes filters of the whole process: two threads that use it at the same time, or one that
goes on after the other was interrupted, can leave the filter of one in force for good. So those who warn ask here.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

from convla.errors import ConvergenceWarning

__all__ = ["unheard", "warn"]


class _Here(threading.local):
    """Who does without warnings on one Python thread: they may end in any order, after Ctrl-C."""

    def __init__(self) -> None:
        self.silent: dict[object, None] = {}


_here = _Here()


def warn(message: str, *, stacklevel: int) -> None:
    """Give a `ConvergenceWarning`, unless a function that called this one does without; see `warnings.warn`."""
    if not _here.silent:
        warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Give no `ConvergenceWarning` on this Python thread: the status of a result says it, or the next step goes on."""
    silent, caller = _here.silent, object()
    try:
        silent[caller] = None
        yield
    finally:
        silent.pop(caller, None)
