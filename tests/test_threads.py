"""Who owns threads: limits are respected, and put back; helpers are few, sleep, and are not waited for in vain."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  (its BLAS is loaded before the fixture sets the number of threads of each)
import threadpoolctl

from convla import ConvOperator, _threads, singular_value_bounds
from convla._array import all_finite
from convla._threads import at_most, blas_on_one_thread, in_order, share, thread_limit
from tests.interrupts import interrupted

ONE_BY_ENVIRONMENT = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
several_cores = pytest.mark.skipif(cores < 2, reason="one core")


def blas() -> list[int]:
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def two() -> Any:
    """Two threads for every BLAS, whatever the environment of this run says."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert set(blas()) == {2}
        yield


@pytest.mark.usefixtures("two")
def test_the_blas_is_held_and_given_back() -> None:
    with blas_on_one_thread():
        assert set(blas()) == {1}
        with blas_on_one_thread():
            assert set(blas()) == {1}
        assert set(blas()) == {1}
    assert set(blas()) == {2}


@pytest.mark.usefixtures("two")
def test_exceptions_leave_nothing_behind() -> None:
    @blas_on_one_thread()
    def fails() -> None:
        with blas_on_one_thread():
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fails()
        assert set(blas()) == {2}
    with pytest.raises(KeyError), at_most(1):
        raise KeyError
    assert _threads._own_limit() == np.inf


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupt_at_any_moment_leaves_nothing_behind(*, inside: bool) -> None:
    @blas_on_one_thread()
    def work() -> None:
        with at_most(1), blas_on_one_thread(), at_most(2):
            pass

    libraries = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    ended, interrupt = 0, True
    while interrupt:
        with blas_on_one_thread() if inside else contextlib.nullcontext():
            interrupt = interrupted(ended + 1, work, contextlib, _threads)
            assert {library.num_threads for library in libraries} == {1 if inside else 2}
        assert {library.num_threads for library in libraries} == {2}
        assert not _threads._blas.holds
        assert _threads._own_limit() == np.inf
        ended += interrupt
    assert ended > 100


def test_an_interrupt_leaves_numpys_treatment_of_errors_as_it_was() -> None:
    """An `errstate` that is interrupted as it begins or ends stays: Python looks there after a division of arrays."""
    operator = ConvOperator(np.random.default_rng(0).standard_normal((4, 1, 3)), (9,), groups=4)
    before, config = np.geterr(), sys.modules[np.errstate.__exit__.__module__]
    calls = (lambda: singular_value_bounds(operator), lambda: all_finite(np.ones(10**5)))
    for call, least in zip(calls, (20, 2), strict=True):
        came, moment = True, 0
        while came:
            moment += 1
            came = interrupted(moment, call, config)
            assert np.geterr() == before
        assert moment > least


def test_a_hold_that_ends_late_changes_no_treatment_of_errors() -> None:
    """One that was interrupted as it began lives as long as the traceback, which a notebook keeps."""
    hold = _threads._blas.hold()
    hold.__enter__()
    with np.errstate(over="raise"):
        within = np.geterr()
        del hold
        assert np.geterr() == within
    assert not _threads._blas.holds


@pytest.mark.usefixtures("two")
def test_a_limit_that_others_set_meanwhile_stays() -> None:
    with blas_on_one_thread():
        libraries = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        for library in libraries:
            library.set_num_threads(3)
        changed = blas()
    assert blas() == changed


@pytest.mark.usefixtures("two")
def test_several_python_threads_hold_the_blas_together() -> None:
    inside, outside, left = (threading.Barrier(4) for _ in range(3))
    seen: list[set[int]] = []

    @blas_on_one_thread()
    def hold() -> None:
        inside.wait()
        outside.wait()
        left.wait()
        seen.append(set(blas()))  # the others have left

    def leave_early() -> None:
        with blas_on_one_thread():
            inside.wait()
            seen.append(set(blas()))
            outside.wait()
        left.wait()

    workers = [threading.Thread(target=leave_early) for _ in range(3)]
    workers.append(threading.Thread(target=hold))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [{1}] * 4
    assert set(blas()) == {2}


@pytest.mark.usefixtures("two")
def test_many_short_holds_at_once() -> None:
    def often() -> None:
        for index in range(300):
            with blas_on_one_thread() if index % 2 else at_most(2), blas_on_one_thread():
                pass

    workers = [threading.Thread(target=often) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not _threads._blas.holds
    assert set(blas()) == {2}


@pytest.mark.usefixtures("two")
def test_the_least_of_all_limits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_processors", lambda: 8)
    monkeypatch.setattr(_threads, "_numba_limit", lambda: 7)
    monkeypatch.setattr(_threads, "_torch_limit", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert thread_limit() == 2
    with blas_on_one_thread():  # our own hold is no limit of the caller's
        assert thread_limit() == 2
    with at_most(1):
        assert thread_limit() == 1
        with at_most(5):
            assert thread_limit() == 1
    with threadpoolctl.threadpool_limits(1):
        assert thread_limit() == 1
        with blas_on_one_thread():
            assert thread_limit() == 1
            assert set(blas()) == {1}
    with threadpoolctl.threadpool_limits(5, user_api="blas"):
        allowed = min(blas())
        assert thread_limit() == min(allowed, 6)
        monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
        assert thread_limit() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "many")
        assert thread_limit() == min(allowed, 6)
        monkeypatch.setattr(_threads, "_torch_limit", lambda: 1)
        assert thread_limit() == 1


def test_limits_of_numba_and_pytorch_are_read() -> None:
    import numba

    assert _threads._numba_limit() <= numba.config.NUMBA_NUM_THREADS
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert _threads._numba_limit() == 1
    finally:
        numba.set_num_threads(before)
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert _threads._torch_limit() == 3
    finally:
        torch.set_num_threads(threads)


def test_at_most_is_of_one_python_thread() -> None:
    other: list[float] = []
    with at_most(1):
        worker = threading.Thread(target=lambda: other.append(_threads._own_limit()))
        worker.start()
        worker.join()
    assert other == [np.inf]


def test_work_that_is_shared_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "thread_limit", lambda: 4)
    for jobs in (0, 1, 1000):
        left, done = list(range(jobs)), []

        def work(left: list[int] = left, done: list[int] = done) -> None:
            while True:
                try:
                    job = left.pop()
                except IndexError:
                    return
                done.append(job)

        share(work)
        assert sorted(done) == list(range(jobs))
    assert _threads._pool.threads >= 3


def test_helpers_take_part_and_their_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "thread_limit", lambda: 2)
    here, together = threading.current_thread(), threading.Barrier(2)

    def work() -> None:
        together.wait(60)
        if threading.current_thread() is not here:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share(work)
    share(lambda: together.wait(60))  # the helper lives on


@pytest.mark.parametrize("moment", range(1, 21))
def test_whoever_shares_work_outlives_those_that_help(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They write into memory that the caller may let go, after an interrupt too."""
    monkeypatch.setattr(_threads, "thread_limit", lambda: 3)
    here, helped = threading.current_thread(), threading.Event()
    working: list[bool] = []

    def work() -> None:
        if threading.current_thread() is here:
            helped.wait(0.01)
        else:
            working.append(True)
            helped.set()
            time.sleep(0.004)
            working.pop()

    interrupted(moment, lambda: share(work), _threads)
    assert not working
    time.sleep(0.001)
    assert not working
    together = threading.Barrier(3)
    share(lambda: together.wait(60))  # the helpers live on


def test_what_waits_is_given_up_where_threads_are_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "thread_limit", lambda: 2)
    gate, done, threads = threading.Event(), list[int](), list[threading.Thread]()

    class Started(threading.Thread):
        def start(self) -> None:
            super().start()
            threads.append(self)
            if len(threads) == 2:
                raise KeyboardInterrupt

    def work(number: int) -> None:
        gate.wait(10)
        done.append(number)

    monkeypatch.setattr(threading, "Thread", Started)
    with pytest.raises(KeyboardInterrupt):
        list(in_order(work, range(50)))
    gate.set()
    for thread in threads:
        thread.join()
    assert len(done) <= 2


def test_no_pool_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "thread_limit", lambda: 3)
    share(lambda: None)
    before, threads = _threads._pool.threads, threading.active_count()

    def often() -> None:
        for _ in range(300):
            share(lambda: None)

    workers = [threading.Thread(target=often) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert _threads._pool.threads == before
    assert threading.active_count() == threads
    assert _threads._pool.tasks.qsize() <= 4 * before + 5 * 2


def in_a_process(code: str, **environment: str) -> str:
    surroundings = {name: value for name, value in os.environ.items() if name not in ONE_BY_ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**surroundings, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COUNT = """
import threading
import numpy as np
from convla import ConvOperator
operator = ConvOperator(np.ones((64, 64, 3, 3)), (64, 64), engine="numba")
operator.apply(np.ones(operator.domain_shape))
print(sum(thread.name.startswith("convla") for thread in threading.enumerate()))
"""


@pytest.mark.command
@several_cores
@pytest.mark.parametrize("name", ONE_BY_ENVIRONMENT[:3])
def test_the_environment_is_respected(name: str) -> None:
    assert in_a_process(COUNT, **{name: "1"}).split() == ["0"]


@pytest.mark.command
@several_cores
def test_by_default_every_core_helps_and_numba_starts_no_threads() -> None:
    code = COUNT + "import numba\ntry:\n    numba.threading_layer()\nexcept ValueError:\n    print('asleep')\n"
    assert in_a_process(code).split() == [str(cores - 1), "asleep"]


AWAKE = """
import os, sys, time, threading
import numpy as np
import scipy.linalg
import convla
from convla import ConvOperator
from convla.similarity import orthogonality

def busy():
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    others = set(os.listdir("/proc/self/task")) - ours
    return sum(int(open(f"/proc/self/task/{name}/schedstat").read().split()[0]) for name in others)

draw = np.random.default_rng(0).standard_normal
kernel, large = draw((8, 8, 3, 3)), draw((128, 128, 3, 3))
layer = ConvOperator(kernel, (12, 12))
composed = layer @ layer + layer
reference = ConvOperator(large, (12, 12), engine="reference")
single = ConvOperator(kernel[:1, :1], (20, 20))
works = {
    "penalty": lambda: convla.penalty(layer, 1.0),
    "penalty_gradient": lambda: convla.penalty_gradient(layer, 1.0),
    "minimize_penalty": lambda: convla.minimize_penalty(layer, 1.0, iterations=2, tracker="exact"),
    "singular_values": lambda: convla.singular_values(layer),
    "singular_values of one channel": lambda: convla.singular_values(single),
    "singular_values of a composition": lambda: convla.singular_values(composed),
    "three singular_values": lambda: convla.singular_values(layer, 3),
    "largest_singular_value": lambda: convla.largest_singular_value(layer),
    "smallest_singular_value": lambda: convla.smallest_singular_value(layer),
    "condition_number": lambda: convla.condition_number(layer),
    "singular_value_bounds": lambda: convla.singular_value_bounds(composed),
    "asymptotic": lambda: convla.asymptotic_largest_singular_value(layer),
    "spectral_density": lambda: convla.spectral_density(layer),
    "clip_singular_values": lambda: convla.clip_singular_values(kernel, (8, 8), maximum=2.0),
    "orthonormalize": lambda: convla.orthonormalize(large),
    "orthonormalize, svd": lambda: convla.orthonormalize(large, method="svd"),
    "orthonormalize, newton-schulz": lambda: convla.orthonormalize(large, method="newton-schulz"),
    "orthonormalize_operator": lambda: convla.orthonormalize_operator(kernel, (8, 8)),
    "orthogonal_kernel": lambda: convla.orthogonal_kernel((128, 128, 3, 3), rng=0),
    "delta_orthogonal_kernel": lambda: convla.delta_orthogonal_kernel((128, 128, 3, 3), rng=0),
    "kernel_orthogonality": lambda: orthogonality.kernel_orthogonality_and_gradient(large),
    "ocnn_residual": lambda: orthogonality.ocnn_residual_and_gradient(large),
    "mutual_coherence": lambda: orthogonality.mutual_coherence_gradient(large),
    "spectral_isometry": lambda: orthogonality.spectral_isometry_gradient(large),
    "convolutional_similarity": lambda: convla.convolutional_similarity_and_gradient(large),
    "apply": lambda: reference.apply(draw((128, 12, 12))),
    "kernel_adjoint": lambda: reference.kernel_adjoint(draw((128, 12, 12)), draw((128, 12, 12))),
    "no function of the package": lambda: np.ones((1000, 1000)) @ np.ones((1000, 1000)),
}
def asleep():
    before = -1
    while busy() > before:
        before = busy()
        time.sleep(0.1)

asleep()
for name, work in works.items():
    before = busy()
    work()
    time.sleep(0.05)  # Linux counts when a thread goes to sleep, or at a tick
    if busy() > before:
        print(name)
        asleep()
"""


@pytest.mark.command
@several_cores
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="asks Linux for the time of each thread")
def test_no_public_function_wakes_the_threads_of_the_blas() -> None:
    assert in_a_process(AWAKE).splitlines() == ["no function of the package"]


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_one_product_changes_no_limit(engine: Any, two: None) -> None:  # noqa: ARG001
    operator = ConvOperator(np.ones((8, 8, 3, 3)), (64, 64), engine=engine)
    results: list[Callable[..., Any]] = [operator.apply, operator.adjoint]
    for product in results:
        product(np.ones((3, 8, 64, 64)))
        assert set(blas()) == {2}
