"""Calls of one function spread over processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from convla.errors import EngineError

__all__ = ["in_processes"]

A = TypeVar("A")
R = TypeVar("R")


def in_processes(
    function: Callable[[A], R], arguments: Sequence[A], *, workers: int, environment: Mapping[str, str], asked: str
) -> Iterator[tuple[A, R]]:
    """Yield each argument with its result as it ends, in any order; what has not ended is killed when one fails.

    Parameters
    ----------
    function : picklable callable
    arguments : sequence
        Hashable.
    workers : int
        Processes, no more of them than CPUs.
    environment : mapping
        Variables of the processes, such as their numbers of threads.
    asked : str
        What asked for them, in the message if loky is missing.

    Raises
    ------
    EngineError
        If loky is not installed.
    """
    try:
        from loky import as_completed, get_reusable_executor
    except ImportError as error:
        raise EngineError(f"{asked} needs the package loky: pip install 'convla[parallel]'") from error
    pool = get_reusable_executor(max_workers=min(workers, os.cpu_count() or 1), env=dict(environment))
    futures = {pool.submit(function, argument): argument for argument in arguments}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(kill_workers=any(not future.done() for future in futures))
