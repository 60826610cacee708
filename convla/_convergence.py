"""Warnings of what did not converge, and how a caller that says so by other means does without them.

`warnings.catch_warnings` changes filters of the whole process: two threads that use it at the same time, or one that
goes on after the other was interrupted, can leave the filter of one in force for good. So those who warn ask here.
"""

from __future__ import annotations

import contextlib
import warnings

from convla._threads import OfThread
from convla.errors import ConvergenceWarning

__all__ = ["unheard", "warn"]


_unheard: OfThread[bool] = OfThread()


def warn(message: str, *, stacklevel: int) -> None:
    """Give a `ConvergenceWarning`, unless a function that called this one does without; see `warnings.warn`."""
    if not _unheard.values():
        warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)


def unheard() -> contextlib._GeneratorContextManager[None]:
    """Give no `ConvergenceWarning` on this Python thread: the status of a result says it, or the next step goes on."""
    return _unheard.holding(True)
