"""The one place that owns threads: at most one pool works at a time, within the limits that the caller has set.

Three kinds of threads can meet in a process: those of the BLAS behind NumPy and SciPy, those of PyTorch, and the few
that this module keeps. A pool that waits actively for its next piece of work, as OpenBLAS's does for some 30 ms and
OpenMP's does, takes a core from whoever computes next. Its threads also wait for each other within every routine: a
decomposition on two of them takes 2 to 30 times as long as on one beside processes that compute, and gains 1.0 to 1.5
times on an idle machine. So this module's threads sleep while they have nothing to do, and the BLAS has one thread:

- a public function that calls it is decorated with ``@blas_on_one_thread()``;
- large products are cut into blocks, which `convla._products.product` shares among this module's threads;
- a compiled kernel, or whatever else releases the GIL, is run by `share`, which asks `thread_limit` how many threads
  the caller allows.

What is changed is put back when the outermost of these contexts is left, by an exception too. Two Python threads may be
inside at once: the number of the BLAS's threads is one for the whole process, and goes back when the last one leaves.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import threadpoolctl

__all__ = ["OfThread", "at_most", "blas_on_one_thread", "in_order", "share", "taken", "thread_limit"]

A = TypeVar("A")
R = TypeVar("R")


def thread_limit() -> int:
    """Return how many threads the caller allows: the least of all limits that are set anywhere.

    These are the processors that the process may use (its affinity, the quota of its control group), the environment's
    ``OMP_NUM_THREADS`` and ``NUMBA_NUM_THREADS``, `numba.set_num_threads`, `torch.set_num_threads` where PyTorch is
    loaded, the number of the BLAS's threads, which the environment and `threadpoolctl.threadpool_limits` set, and
    `at_most`.
    """
    limits = [_processors(), _blas.allowed(), _openmp_limit(), _numba_limit(), _torch_limit(), _own_limit()]
    return int(max(1, min(limits)))


class OfThread(threading.local, Generic[A]):
    """Values that hold on one Python thread, each while its context lasts.

    They are a set and no stack: where Ctrl-C comes as a context begins or ends, the inner one may end last.
    """

    def __init__(self) -> None:
        self._values: dict[object, A] = {}

    @contextlib.contextmanager
    def holding(self, value: A) -> Iterator[None]:
        """Add a value, and take it out again however the block is left."""
        values, place = self._values, object()
        try:
            values[place] = value
            yield
        finally:
            values.pop(place, None)

    def values(self) -> Collection[A]:
        """Return those that hold on the thread that asks."""
        return self._values.values()


_own: OfThread[int] = OfThread()


def at_most(threads: int) -> contextlib._GeneratorContextManager[None]:
    """Allow the compiled kernels that this Python thread calls so many threads, or fewer where others allow fewer."""
    return _own.holding(threads)


def _own_limit() -> float:
    return min(_own.values(), default=math.inf)


def _processors() -> float:
    try:
        return min(len(os.sched_getaffinity(0)), _QUOTA)
    except AttributeError:  # no affinity on this system
        return os.cpu_count() or 1


def _quota() -> float:
    """Return how many processors the control group of this process may keep busy; infinity where it has no limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return math.inf


_QUOTA = _quota()


def _openmp_limit() -> float:
    # A list names the numbers of nested levels, the outermost first.
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else math.inf


def _numba_limit() -> float:
    numba: Any = sys.modules.get("numba")
    if not hasattr(numba, "threading_layer"):
        return math.inf
    try:
        numba.threading_layer()
    except ValueError:
        # No threads yet, and so no limit of this thread's own: to ask for it would start them.
        return int(numba.config.NUMBA_NUM_THREADS)
    return int(numba.get_num_threads())


def _torch_limit() -> float:
    torch: Any = sys.modules.get("torch")
    return int(torch.get_num_threads()) if hasattr(torch, "get_num_threads") else math.inf


class _Limited:
    """The libraries that are held at one thread, with how many threads they had before."""

    def __init__(self) -> None:
        self.before: dict[str, tuple[Any, int]] = {}
        self.held: set[str] = set()  # of those, the ones that have been set: an interrupt may fall in between

    def settle(self, libraries: list[Any], *, held: bool) -> None:
        """Set every library to one thread, or back. Called again after an interrupt, it does what is left to do."""
        if held:
            for library in libraries:
                if library.filepath not in self.held:
                    self.before.setdefault(library.filepath, (library, library.num_threads))
                    _set(library, 1)
                    self.held.add(library.filepath)
        else:
            self.held.clear()
            for path, (library, threads) in tuple(self.before.items()):
                # Another number than one was set by someone else since, and stays.
                if library.num_threads == 1:
                    _set(library, threads)
                del self.before[path]


def _set(library: Any, threads: int) -> None:
    # From version 3.8 on, threadpoolctl lets only the Python thread that came first set the number of a pool that all
    # share. The holds are of all Python threads, so that whoever leaves last has to be able to.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(threads)


class _LimitedHere(_Limited, threading.local):
    """Those of one Python thread."""


class _Blas:
    """Every BLAS of the process: those with one number of threads for all, and those with one for each caller."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # With the Python thread of each. As Ctrl-C may fall between any two instructions, they are not counted: a hold
        # is there or not, and may be taken out twice.
        self.holds: dict[object, int] = {}
        self.everyone, self.mine = _Limited(), _LimitedHere()
        self.modules = -1
        self.shared: list[Any] = []
        self.own: list[Any] = []

    def find(self) -> None:
        """Look for libraries again where modules have been imported since."""
        modules = len(sys.modules)
        if modules != self.modules:
            found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
            self.own = [library for library in found if getattr(library, "threading_layer", "") == "openmp"]
            self.shared = [library for library in found if library not in self.own]
            self.modules = modules

    def settle(self) -> None:
        """Bring the libraries to what the holds ask for."""
        self.find()
        self.everyone.settle(self.shared, held=bool(self.holds))
        self.mine.settle(self.own, held=threading.get_ident() in self.holds.values())

    def allowed(self) -> float:
        """Return the least number of threads that the caller has left to a BLAS."""
        with self.lock:
            self.settle()
            counts: list[float] = []
            for limited, libraries in ((self.everyone, self.shared), (self.mine, self.own)):
                before = [threads for _, threads in limited.before.values()]
                counts += before or [library.num_threads for library in libraries]
        return min(counts, default=math.inf)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Take a hold, and let it go however the block is left."""
        hold, floats = object(), np.geterr()
        try:
            with self.lock:
                self.holds[hold] = threading.get_ident()
                self.settle()
            yield
        except GeneratorExit:  # of a context that was interrupted as it began, let go when its traceback is
            raise
        except BaseException:
            # Where Ctrl-C comes as an `errstate` begins or ends, what it has set would stay.
            np.seterr(**floats)
            raise
        finally:
            try:
                self._let_go(hold)
            except BaseException:  # interrupted
                self._let_go(hold)
                raise

    def _let_go(self, hold: object) -> None:
        with self.lock:
            self.holds.pop(hold, None)
            self.settle()


_blas = _Blas()


def blas_on_one_thread() -> contextlib._GeneratorContextManager[None]:
    """Hold the BLAS of NumPy and SciPy at one thread: a context, or a decorator of a function that calls it.

    Examples
    --------
    >>> import numpy as np
    >>> from convla._threads import blas_on_one_thread
    >>> @blas_on_one_thread()
    ... def power_step(matrix, vector):
    ...     return matrix.T @ (matrix @ vector)
    >>> power_step(np.eye(2), np.ones(2))
    array([1., 1.])
    """
    return _blas.hold()


class _Task:
    """A piece of work that several threads take part in, each by calling it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work: Callable[[], object] | None = work
        self.lock = threading.Lock()
        self.running = 0
        self.finished = threading.Lock()
        self.closed = False
        self.error: BaseException | None = None

    def take_part(self) -> None:
        """Call the work on a thread of the pool, unless it has been closed."""
        with self.lock:
            work = self.work
            if work is None:
                return
            self.running += 1
        try:
            work()
        except BaseException as error:  # the caller's thread raises it
            self.error = error
        with self.lock:
            self.running -= 1
            if self.work is None and not self.running:
                self.finished.release()

    def close(self) -> None:
        """Let no other thread begin, and wait for those that have; called again after an interrupt, it goes on."""
        with self.lock:
            running = self.running
            if running:
                self.finished.acquire(blocking=False)
            self.work = None
        if running:
            self.finished.acquire()
        self.closed = True


class _Pool:
    """Sleeping threads, started when first wanted; none are left in a process that was forked."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self.threads = 0

    def offer(self, task: _Task, helpers: int) -> None:
        """Ask so many threads to take part in a task."""
        if self.threads < helpers:
            with self.lock:
                while self.threads < helpers:
                    name = f"convla-{self.threads + 1}"
                    threading.Thread(target=self._serve, args=(self.tasks,), name=name, daemon=True).start()
                    self.threads += 1
        # Threads that have not come for the last tasks, now closed, need no further call.
        for _ in range(helpers if self.tasks.qsize() < 4 * self.threads else 0):
            self.tasks.put(task)

    @staticmethod
    def _serve(tasks: queue.SimpleQueue[_Task]) -> None:
        while True:
            tasks.get().take_part()


_pool = _Pool()


def share(work: Callable[[], object]) -> None:
    """Call `work` on this thread, and at the same time on as many others as the caller's limits allow.

    A call takes jobs from a counter that all of them share until there are none left. Whoever comes late finds nothing
    to do, and is not waited for: on a machine whose cores are taken the calling thread may do it all.

    Parameters
    ----------
    work : callable
        Does all jobs that no other call has taken. It releases the GIL, or nothing runs at the same time.
    """
    helpers = thread_limit() - 1
    if not helpers:
        work()
        return
    task = _Task(work)
    try:
        _pool.offer(task, helpers)
        work()
    finally:
        # Not before it is closed: the others write into memory that the caller may let go.
        interrupts: list[BaseException] = []
        while not task.closed:
            try:
                task.close()
            except BaseException as interrupt:
                interrupts.append(interrupt)
        if interrupts:
            raise interrupts[0]
    if task.error is not None:
        raise task.error


def taken(waiting: queue.SimpleQueue[A]) -> Iterator[A]:
    """Take what waits in a queue that nobody adds to any more, until nothing is left; several threads may."""
    with contextlib.suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()


def in_order(function: Callable[[A], R], arguments: Sequence[A]) -> Iterator[R]:
    """Yield a function's results in the order of the arguments, of which as many are worked on at once as are allowed.

    Each is worked on by one thread; where there is a single argument, or one thread is allowed, by the caller's own,
    and compiled kernels may then have all that are allowed. When the caller stops asking, what waits is given up, and
    what has begun ends unheard.

    Parameters
    ----------
    function : callable
        Of one argument; it may be called by several Python threads at once.
    arguments : sequence

    Examples
    --------
    >>> from convla._threads import in_order
    >>> list(in_order(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    threads = min(thread_limit(), len(arguments))
    if threads < 2:
        yield from map(function, arguments)
        return
    results: list[Future[R]] = [Future() for _ in arguments]
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(arguments)):
        waiting.put(number)

    def work() -> None:
        with at_most(1):
            for number in taken(waiting):
                try:
                    results[number].set_result(function(arguments[number]))
                except BaseException as error:  # the caller's thread raises it
                    results[number].set_exception(error)

    try:
        # Daemons: a program that is interrupted does not wait for them.
        for number in range(threads):
            threading.Thread(target=work, name=f"convla-row-{number + 1}", daemon=True).start()
        for result in results:
            yield result.result()
    finally:
        for _ in taken(waiting):
            pass


def _forget_threads() -> None:
    """Begin anew in a forked process: only the thread that forked lives on there, and locks may have been held."""
    global _pool
    _pool = _Pool()
    _blas.lock = threading.RLock()
    # The holds of the parent's other threads have no one left to let them go.
    _blas.holds = {hold: thread for hold, thread in _blas.holds.items() if thread == threading.get_ident()}
    _blas.settle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
