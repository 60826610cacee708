"""Where work is done: in this process, in others on this machine, on a cluster; any `concurrent.futures.Executor`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import platform
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from convla.errors import ConvlaError, EngineError, install_line
from convla.extending import at_most, blas_on_one_thread, check_integer

__all__ = ["EXECUTORS", "Pool", "WorkerError"]

A = TypeVar("A")
R = TypeVar("R")

EXECUTORS = "local (threads of this process), loky or dask-local:N (processes), dask://HOST:PORT (a cluster), or mpi"
"""The executors in words."""

WATCHED = 0.5
"""Seconds between two looks at whether the parent is still there."""

RESTARTS = 3
"""How often in a row, without a piece of work done in between, workers may be lost before that is an error."""

WAITING = 3
"""Pieces of work for each worker that an executor is given at a time: the one it does, and those that wait there."""

PATIENCE = 60
"""Seconds that a scheduler may take to answer: one that is started anew is not there at once."""

COUNTED = 1.0
"""Seconds between two looks at how many workers a cluster has."""


class WorkerError(ConvlaError, RuntimeError):
    """A process that did part of the work is gone, or has other versions of what the numbers depend on."""


@dataclass(frozen=True)
class Pool:
    """Where units of work are done.

    Attributes
    ----------
    executor : str or concurrent.futures.Executor
        "local" is this process; "loky" (extra ``parallel``) and "dask-local:N" (extra ``dask``) are processes on this
        machine; "dask://HOST:PORT" is the scheduler of a Dask cluster; "mpi" (extra ``mpi``) are the other ranks of
        ``mpiexec -n N python -m mpi4py.futures -m convla ...``, or processes that MPI starts. An executor of one's own
        is used as it is, and not shut down.
    workers : int
        Processes of loky, no more of them than CPUs; processes that MPI starts; or how many workers an executor of
        one's own has.
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
            r"local|loky|mpi|dask-local:[1-9]\d*|dask://[^/\s]+:\d+", str(self.executor)
        ):
            raise ValueError(
                "executor must be 'local', 'loky', 'dask-local:N', 'dask://HOST:PORT', 'mpi' or an Executor, "
                f"got {self.executor!r}"
            )
        for name in ("workers", "threads"):
            check_integer(name, getattr(self, name), minimum=1)

    @classmethod
    def of(cls, executor: str | Executor, workers: int) -> Pool:
        """Return so many threads of this process, or so many processes of one thread each."""
        return cls(executor, 1, workers) if executor == "local" else cls(executor, workers, 1)

    @classmethod
    def of_processes(cls, executor: str | Executor, workers: int, threads: int = 1) -> Pool:
        """Return this process, or so many others where more than one is asked for, each of so many threads."""
        return cls("loky" if executor == "local" and workers > 1 else executor, workers, threads)

    @property
    def is_local(self) -> bool:
        """Whether all is done in this process."""
        return self.executor == "local"

    @contextlib.contextmanager
    def limits(self) -> Iterator[None]:
        """Hold this process to its threads."""
        with at_most(self.threads), blas_on_one_thread():
            yield

    def map(self, function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[tuple[A, R]]:
        """Yield each argument with its result as it ends, in any order; what has not begun is given up when one fails.

        What a process was doing when it was killed, by the system for the memory that it took or by somebody, is done
        again. The processes of loky end by themselves within a second of this one, however it ends.

        Parameters
        ----------
        function : picklable callable
        arguments : iterable
            Drawn as workers come free, `WAITING` for each of them at a time: they may be millions.

        Raises
        ------
        EngineError
            If the executor needs a package that is not installed, or its cluster does not answer.
        WorkerError
            If processes are lost again and again, or have other versions of convla, NumPy or numba than this one.
        """
        source = iter(arguments)
        waiting = deque(itertools.islice(source, 1))  # drawn, and not yet with the executor
        lost = 0
        while waiting:
            running: dict[Future[tuple[dict[str, str], R]], A] = {}
            with contextlib.ExitStack() as stack:
                executor, workers = self._start(stack, running)
                try:
                    while True:
                        room = WAITING * workers() - len(running) - len(waiting)
                        waiting += itertools.islice(source, max(0, room))
                        while waiting:
                            running[executor.submit(_tagged, function, waiting[0], self.threads)] = waiting[0]
                            waiting.popleft()
                        if not running:
                            return
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            found, result = future.result()
                            _check_versions(found)
                            argument = running.pop(future)
                            lost = 0
                            yield argument, result
                except self._losses() as error:
                    waiting.extendleft(reversed(running.values()))
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
        from distributed.comm import CommClosedError

        return (BrokenExecutor, CancelledError, CommClosedError, KilledWorker)

    def _start(self, stack: contextlib.ExitStack, running: dict[Any, Any]) -> tuple[Executor, Callable[[], int]]:
        """Return an executor, and what counts its workers; the stack ends it, with what is running if need be."""
        if isinstance(self.executor, Executor):
            stack.callback(lambda: [future.cancel() for future in running])
            return self.executor, lambda: self.workers
        if self.executor == "loky":
            return self._start_loky(stack, running)
        return self._start_mpi(stack) if self.executor == "mpi" else self._start_dask(stack)

    def _start_loky(self, stack: contextlib.ExitStack, running: dict[Any, Any]) -> tuple[Executor, Callable[[], int]]:
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
        return executor, lambda: workers

    def _start_mpi(self, stack: contextlib.ExitStack) -> tuple[Executor, Callable[[], int]]:
        try:
            from mpi4py import MPI
            from mpi4py.futures import MPIPoolExecutor, _core
        except (ImportError, RuntimeError) as error:  # the latter where mpi4py finds no library of MPI
            raise EngineError(f"executor 'mpi' needs mpi4py and an MPI: {install_line('mpi')}") from error
        if MPI.COMM_WORLD.Get_size() > 1 and _core.SharedPool is None:
            # Every rank would run the whole, and write the same files.
            raise EngineError(
                "executor 'mpi': the ranks of mpiexec are workers if it runs python -m mpi4py.futures -m convla ..."
            )
        if MPI.COMM_WORLD.Get_size() == 1 and shutil.which("mpiexec") is None:
            # MPICH would wait for one for ever, and hear no signal meanwhile.
            raise EngineError("executor 'mpi' starts processes by mpiexec, which is not on the PATH")
        executor = MPIPoolExecutor(max_workers=self.workers, main=False)
        stack.callback(executor.shutdown, cancel_futures=True)
        return executor, lambda: max(1, int(executor.num_workers))

    def _start_dask(self, stack: contextlib.ExitStack) -> tuple[Executor, Callable[[], int]]:
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
            client = stack.enter_context(Client(place, timeout=PATIENCE, set_as_default=False))
        except OSError as error:  # a timeout, too
            raise EngineError(f"executor {self.executor!r}: no scheduler answers at {place}") from error

        def workers() -> int:
            try:
                return int(max(1, sum(client.nthreads().values())))
            except OSError as error:
                raise BrokenExecutor("the scheduler is gone") from error

        # A cluster grows and shrinks; a queue gives its workers one after the other.
        return _DaskExecutor(client), _now_and_then(workers)


class _DaskExecutor(Executor):
    """The futures of a client of Dask as those of `concurrent.futures`, each of which ends, however the client's does.

    One of `Client.get_executor` waits for ever where the connection broke as its result was on its way.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, function: Callable[..., R], /, *arguments: Any) -> Future[R]:  # type: ignore[override]
        ours: Future[R] = Future()

        def pass_on(theirs: Any) -> None:
            try:
                ours.set_result(theirs.result())
            except BaseException as error:
                ours.set_exception(error)

        self._client.submit(function, *arguments, pure=False).add_done_callback(pass_on)
        return ours


def _now_and_then(count: Callable[[], int]) -> Callable[[], int]:
    """Return what calls a function anew once `COUNTED` seconds are over, and else returns what it returned."""
    counted, found = -math.inf, 0

    def current() -> int:
        nonlocal counted, found
        if time.monotonic() > counted + COUNTED:
            counted, found = time.monotonic(), count()
        return found

    return current


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
