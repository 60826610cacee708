"""Calls of one function spread over processes, which end with the one that started them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from convla.errors import ConvlaError, EngineError

__all__ = ["WorkerError", "in_processes"]

A = TypeVar("A")
R = TypeVar("R")

WATCHED = 0.5
"""Seconds between two looks at whether the parent is still there."""


class WorkerError(ConvlaError, RuntimeError):
    """A process that did part of the work is gone."""


def in_processes(
    function: Callable[[A], R], arguments: Sequence[A], *, workers: int, environment: Mapping[str, str], asked: str
) -> Iterator[tuple[A, R]]:
    """Yield each argument with its result as it ends, in any order; what has not ended is killed when one fails.

    The processes end by themselves within a second of this one, however it ends.

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
    WorkerError
        If a process was killed, by the system for the memory that it took or by somebody.
    """
    try:
        from loky import as_completed, get_reusable_executor
        from loky.process_executor import BrokenProcessPool
    except ImportError as error:
        raise EngineError(f"{asked} needs the package loky: pip install 'convla[parallel]'") from error
    pool = get_reusable_executor(
        max_workers=min(workers, os.cpu_count() or 1),
        env=dict(environment),
        initializer=_end_with,
        initargs=(os.getpid(),),
    )
    futures = {pool.submit(function, argument): argument for argument in arguments}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was killed, by the system if memory ran short; what had ended is saved, and the same "
            "command with --resume goes on from there, with fewer workers if need be"
        ) from error
    finally:
        pool.shutdown(kill_workers=any(not future.done() for future in futures))


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, which then can tell it nothing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
