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
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Self, TypeVar

from convla.errors import ConvlaError, EngineError, install_line
from convla.extending import at_most, blas_on_one_thread, check_integer

__all__ = ["EXECUTORS", "Pool", "WorkerError", "Workers"]

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

CONNECTED = 10
"""Seconds that a scheduler may take to answer at first."""

PATIENCE = 60
"""Seconds that it may take when it was there and is gone: one that is started anew is not there at once."""

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
        check_integer("workers", workers, minimum=1)  # by the name that was asked for, threads or not
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
        """Start the workers, yield what `Workers.map` does, and end them."""
        with Workers(self) as workers:
            yield from workers.map(function, arguments)


class Workers:
    """The workers of a pool, from when they are started until they are ended: a context.

    Parameters
    ----------
    pool : Pool

    Raises
    ------
    EngineError
        On entry, if the executor needs a package that is not installed, or its cluster does not answer.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._stack = contextlib.ExitStack()
        self._running: dict[Future[Any], Any] = {}
        self._started: tuple[Executor, Callable[[], int]] | None = None

    def __enter__(self) -> Self:
        if not self.pool.is_local:
            self._start(CONNECTED)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

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
        WorkerError
            If processes are lost again and again, or have other versions of convla, NumPy or numba than this one.
        """
        if self.pool.is_local:
            for argument in arguments:
                with self.pool.limits():
                    result = function(argument)
                yield argument, result  # the caller's code has its own limits
            return
        source = iter(arguments)
        waiting = deque(itertools.islice(source, 1))  # drawn, and not yet with the executor
        lost = 0
        try:
            while waiting:
                executor, workers = self._started or self._start(PATIENCE)
                try:
                    while True:
                        room = WAITING * workers() - len(self._running) - len(waiting)
                        waiting += itertools.islice(source, max(0, room))
                        while waiting:
                            future = executor.submit(_tagged, function, waiting[0], self.pool.threads)
                            self._running[future] = waiting.popleft()
                        if not self._running:
                            return
                        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                            found, result = future.result()
                            _check_versions(found)
                            argument = self._running.pop(future)
                            lost = 0
                            yield argument, result
                except self._losses() as error:
                    waiting.extendleft(reversed(self._running.values()))
                    self._end()
                    lost += 1
                    if lost == RESTARTS or isinstance(self.pool.executor, Executor):
                        raise WorkerError(
                            "a worker process was killed, by the system if memory ran short; what had ended is saved, "
                            "and the same command with --resume goes on from there, with fewer workers if need be"
                        ) from error
        finally:
            if self._running:
                self._end()

    def _start(self, patience: int) -> tuple[Executor, Callable[[], int]]:
        """Start the executor; a scheduler may take so many seconds to answer."""
        executor = self.pool.executor
        try:
            if isinstance(executor, Executor):
                self._stack.callback(lambda: [future.cancel() for future in self._running])
                self._started = executor, lambda: self.pool.workers
            elif executor == "loky":
                self._started = self._start_loky()
            else:
                self._started = self._start_mpi() if executor == "mpi" else self._start_dask(patience)
        except BaseException:
            self._end()
            raise
        return self._started

    def _end(self) -> None:
        """End the executor, with what is running if need be."""
        self._started = None
        try:
            self._stack.close()
        finally:
            self._running.clear()

    def _losses(self) -> tuple[type[BaseException], ...]:
        """Return what is raised in place of a result where workers were lost."""
        if not str(self.pool.executor).startswith("dask"):
            return (BrokenExecutor, CancelledError)
        from distributed import KilledWorker  # after three of them died at the same piece of work
        from distributed.comm import CommClosedError

        return (BrokenExecutor, CancelledError, CommClosedError, KilledWorker)

    def _start_loky(self) -> tuple[Executor, Callable[[], int]]:
        try:
            from loky import get_reusable_executor
        except ImportError as error:
            raise EngineError(f"executor 'loky' needs loky: {install_line('parallel')}") from error
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        workers = min(self.pool.workers, os.cpu_count() or 1)
        executor: Executor = get_reusable_executor(
            max_workers=workers,
            env=dict.fromkeys(names, str(self.pool.threads)),
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        self._stack.callback(lambda: executor.shutdown(kill_workers=bool(self._running)))  # type: ignore[call-arg]
        return executor, lambda: workers

    def _start_mpi(self) -> tuple[Executor, Callable[[], int]]:
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
        executor = MPIPoolExecutor(max_workers=self.pool.workers, main=False)
        self._stack.callback(executor.shutdown, cancel_futures=True)
        return executor, lambda: max(1, int(executor.num_workers))

    def _start_dask(self, patience: int) -> tuple[Executor, Callable[[], int]]:
        name = str(self.pool.executor)
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise EngineError(f"executor {name!r} needs Dask: {install_line('dask')}") from error
        kind, _, place = name.partition(":")
        if kind == "dask-local":
            options = {"n_workers": int(place), "threads_per_worker": 1, "dashboard_address": None}
            address = self._stack.enter_context(LocalCluster(**options)).scheduler_address
        else:
            address = f"tcp:{place}"
            _check_host(name, place.strip("/").rpartition(":")[0].strip("[]"))
        try:
            client = self._stack.enter_context(Client(address, timeout=patience, set_as_default=False))
        except OSError as error:  # a timeout, too
            raise EngineError(
                f"executor {name!r}: no scheduler of Dask answered at {address} within {patience} s: is one running "
                "there, and does the network let this machine reach its port?"
            ) from error

        def workers() -> int:
            try:
                return int(max(1, sum(client.nthreads().values())))
            except OSError as error:
                raise BrokenExecutor("the scheduler is gone") from error

        # A cluster grows and shrinks; a queue gives its workers one after the other.
        return _DaskExecutor(client), _now_and_then(workers)


class _DaskExecutor(Executor):
    """The futures of a client of Dask as those of `concurrent.futures`, each of which ends while the client lives.

    One of `Client.get_executor` waits for ever where the connection broke as its result was on its way. A result is
    waited for in the client's own loop: the thread of `Future.add_done_callback` is one for all clients of a process,
    and would wait for ever, for each of them, for a result of a client that has been closed.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, function: Callable[..., R], /, *arguments: Any) -> Future[R]:  # type: ignore[override]
        ours: Future[R] = Future()
        theirs = self._client.submit(function, *arguments, pure=False)

        async def pass_on() -> None:
            try:
                ours.set_result(await theirs)
            except BaseException as error:
                ours.set_exception(error)

        self._client.loop.add_callback(pass_on)
        return ours


def _check_host(executor: str, host: str) -> None:
    """Raise at once if there is no such host: a client would ask for it again and again."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise EngineError(f"executor {executor!r}: no host is known here by the name {host!r}") from error


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
