"""Where work is done: in this process, in others on this machine, on a cluster; any `concurrent.futures.Executor`."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from convla.errors import ConvlaError, EngineError, install_line
from convla.extending import at_most, blas_on_one_thread, check_integer

__all__ = ["EXECUTORS", "Pool", "WorkerError"]

A = TypeVar("A")
R = TypeVar("R")

EXECUTORS = "local (threads of this process), loky or dask-local:N (processes), or dask://HOST:PORT (a cluster)"
"""The executors in words."""

WATCHED = 0.5
"""Seconds between two looks at whether the parent is still there."""

RESTARTS = 3
"""How often in a row, without a piece of work done in between, workers may be lost before that is an error."""

WAITING = 3
"""Pieces of work for each worker that an executor is given at a time: the one it does, and those that wait there."""


class WorkerError(ConvlaError, RuntimeError):
    """A process that did part of the work is gone, or has other versions of what the numbers depend on."""


@dataclass(frozen=True)
class Pool:
    """Where units of work are done.

    Attributes
    ----------
    executor : str or concurrent.futures.Executor
        "local" is this process; "loky" (extra ``parallel``) and "dask-local:N" (extra ``dask``) are processes on this
        machine; "dask://HOST:PORT" is the scheduler of a Dask cluster. An executor of one's own is used as it is, and
        not shut down.
    workers : int
        Processes of loky, no more of them than CPUs; or how many workers an executor of one's own has.
    threads : int
        Of each process.

    Raises
    ------
    ValueError
        If there is no such executor.
    """

    executor: str | Executor = "local"
    workers: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.executor, Executor) and not re.fullmatch(
            r"local|loky|dask-local:[1-9]\d*|dask://[^/\s]+:\d+", str(self.executor)
        ):
            raise ValueError(
                "executor must be 'local', 'loky', 'dask-local:N', 'dask://HOST:PORT' or an Executor, "
                f"got {self.executor!r}"
            )
        for name in ("workers", "threads"):
            check_integer(name, getattr(self, name), minimum=1)

    @classmethod
    def of(cls, executor: str | Executor, workers: int) -> Pool:
        """Return so many threads of this process, or so many processes of one thread each."""
        return cls(executor, 1, workers) if executor == "local" else cls(executor, workers, 1)

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

        What a process was doing when it was killed, by the system for the memory that it took or by somebody, is done
        again. The processes of loky end by themselves within a second of this one, however it ends.

        Parameters
        ----------
        function : picklable callable
        arguments : sequence

        Raises
        ------
        EngineError
            If the executor needs a package that is not installed, or its cluster does not answer.
        WorkerError
            If processes are lost again and again, or have other versions of convla, NumPy or numba than this one.
        """
        waiting = list(reversed(arguments))
        lost = 0
        while waiting:
            running: dict[Future[tuple[dict[str, str], R]], A] = {}
            with contextlib.ExitStack() as stack:
                executor, workers = self._start(stack, running)
                try:
                    while waiting or running:
                        # A few pieces wait at the executor, not all of them: a million would flood a scheduler.
                        while waiting and len(running) < WAITING * workers:
                            future = executor.submit(_tagged, function, waiting[-1], self.threads)
                            running[future] = waiting.pop()
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            found, result = future.result()
                            _check_versions(found)
                            argument = running.pop(future)
                            lost = 0
                            yield argument, result
                except self._losses() as error:
                    waiting += reversed(running.values())
                    lost += 1
                    if lost == RESTARTS or isinstance(self.executor, Executor):
                        raise WorkerError(
                            "a worker process was killed, by the system if memory ran short; what had ended is saved, "
                            "and the same command with --resume goes on from there, with fewer workers if need be"
                        ) from error

    def _losses(self) -> tuple[type[BaseException], ...]:
        """Return what is raised in place of a result where workers were lost."""
        if not str(self.executor).startswith("dask"):
            return (BrokenExecutor, CancelledError)
        from distributed import KilledWorker  # after three of them died at the same piece of work

        return (BrokenExecutor, CancelledError, KilledWorker)

    def _start(self, stack: contextlib.ExitStack, running: dict[Any, Any]) -> tuple[Executor, int]:
        """Return an executor, and how many workers it has; the stack ends it, with what is running if need be."""
        if isinstance(self.executor, Executor):
            stack.callback(lambda: [future.cancel() for future in running])
            return self.executor, self.workers
        return self._start_loky(stack, running) if self.executor == "loky" else self._start_dask(stack)

    def _start_loky(self, stack: contextlib.ExitStack, running: dict[Any, Any]) -> tuple[Executor, int]:
        try:
            from loky import get_reusable_executor
        except ImportError as error:
            raise EngineError(f"executor 'loky' needs loky: {install_line('parallel')}") from error
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        workers = min(self.workers, os.cpu_count() or 1)
        executor: Executor = get_reusable_executor(
            max_workers=workers,
            env=dict.fromkeys(names, str(self.threads)),
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        stack.callback(lambda: executor.shutdown(kill_workers=bool(running)))  # type: ignore[call-arg]
        return executor, workers

    def _start_dask(self, stack: contextlib.ExitStack) -> tuple[Executor, int]:
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise EngineError(f"executor {self.executor!r} needs Dask: {install_line('dask')}") from error
        kind, _, place = str(self.executor).partition(":")
        try:
            if kind == "dask-local":
                options = {"n_workers": int(place), "threads_per_worker": 1, "dashboard_address": None}
                place = stack.enter_context(LocalCluster(**options)).scheduler_address
            else:
                place = f"tcp:{place}"
            client = stack.enter_context(Client(place, timeout=10, set_as_default=False))
        except OSError as error:  # a timeout, too
            raise EngineError(f"executor {self.executor!r}: no scheduler answers at {place}") from error
        executor: Executor = client.get_executor()
        stack.callback(executor.shutdown, wait=False)
        return executor, max(1, sum(client.nthreads().values()))


def _tagged(function: Callable[[A], R], argument: A, threads: int) -> tuple[dict[str, str], R]:
    """Call a function on a worker, and say with what versions."""
    with at_most(threads), blas_on_one_thread():
        return _versions(), function(argument)


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions that numbers may depend on."""
    packages = ("convla", "numpy", "numba", "scipy")
    return {"Python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _check_versions(found: dict[str, str]) -> None:
    ours = _versions()
    if found != ours:
        differing = [f"{name} {found.get(name)} and not {ours[name]}" for name in ours if found.get(name) != ours[name]]
        raise WorkerError(f"a worker has {', '.join(differing)} as this process does: its numbers could be others")


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, which then can tell it nothing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
