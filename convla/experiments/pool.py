"""Where work is done: in this process, or in others on this machine, which end with the one that started them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from convla.errors import ConvlaError, EngineError, install_line
from convla.extending import at_most, blas_on_one_thread, check_choice

__all__ = ["EXECUTORS", "Pool", "WorkerError"]

A = TypeVar("A")
R = TypeVar("R")

EXECUTORS = ("local", "loky")

WATCHED = 0.5
"""Seconds between two looks at whether the parent is still there."""

RESTARTS = 3
"""How often in a row, without a piece of work done in between, workers may be lost before that is an error."""


class WorkerError(ConvlaError, RuntimeError):
    """A process that did part of the work is gone."""


@dataclass(frozen=True)
class Pool:
    """Where units of work are done.

    Attributes
    ----------
    executor : {"local", "loky"}
        "local" is this process; "loky" (extra ``parallel``) others on this machine.
    workers : int
        Processes, no more of them than CPUs.
    threads : int
        Of each process.

    Raises
    ------
    ValueError
        If there is no such executor.
    """

    executor: str = "local"
    workers: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, EXECUTORS)

    @property
    def is_local(self) -> bool:
        """Whether all is done in this process."""
        return self.executor == "local"

    @contextlib.contextmanager
    def limits(self) -> Iterator[None]:
        """Hold this process to its threads."""
        with at_most(self.threads), blas_on_one_thread():
            yield

    def map(self, function: Callable[[A], R], arguments: Sequence[A]) -> Iterator[tuple[A, R]]:
        """Yield each argument with its result as it ends, in any order; what has not begun is given up when one fails.

        The processes end by themselves within a second of this one, however it ends. What a process was doing when it
        was killed, by the system for the memory that it took or by somebody, is done again.

        Parameters
        ----------
        function : picklable callable
        arguments : sequence

        Raises
        ------
        EngineError
            If loky is not installed.
        WorkerError
            If processes are lost again and again.
        """
        waiting = list(reversed(arguments))
        lost = 0
        while waiting:
            executor = self._start()
            running: dict[Future[R], A] = {}
            try:
                while waiting or running:
                    # A few pieces wait at the executor, not all of them.
                    while waiting and len(running) < 3 * self.workers:
                        future = executor.submit(function, waiting[-1])
                        running[future] = waiting.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        argument = running.pop(future)
                        lost = 0
                        yield argument, result
            except BrokenExecutor as error:
                waiting += reversed(running.values())
                lost += 1
                if lost == RESTARTS:
                    raise WorkerError(
                        "a worker process was killed, by the system if memory ran short; what had ended is saved, and "
                        "the same command with --resume goes on from there, with fewer workers if need be"
                    ) from error
            finally:
                executor.shutdown(kill_workers=bool(running))

    def _start(self) -> Any:
        try:
            from loky import get_reusable_executor
        except ImportError as error:
            raise EngineError(f"executor {self.executor!r} needs loky: {install_line('parallel')}") from error
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        executor: Executor = get_reusable_executor(
            max_workers=min(self.workers, os.cpu_count() or 1),
            env=dict.fromkeys(names, str(self.threads)),
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        return executor


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, which then can tell it nothing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
