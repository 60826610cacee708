"""Work spread over processes: the numbers of the serial run, bit for bit, when a worker is killed in the middle too."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from convla.cli.bars import RunBars
from convla.errors import EngineError
from convla.experiments import Study, read_outcomes, read_study
from convla.experiments import pool as pools
from convla.experiments.pool import Pool, WorkerError
from convla.experiments.reproduction import Request, reproduce
from convla.experiments.session import Part, Watcher

ROOT = Path(__file__).parents[1]

DEADLY = """\
import os, signal, pathlib
import numpy as np

def loss(kernels):
    marker = pathlib.Path(__file__).with_name("killed")
    if {serial} != os.getpid() and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return np.sum(kernels**2, axis=(1, 2, 3)), 2.0 * kernels
"""


@pytest.mark.command
@pytest.mark.filterwarnings("default")  # of the schedulers, about a worker that is gone
@pytest.mark.parametrize(("executor", "package"), [("loky", "loky"), ("dask-local:2", "distributed")])
def test_a_killed_worker_changes_no_bit(tmp_path: Path, executor: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    (tmp_path / "mine.py").write_text(DEADLY.format(serial=os.getpid()))
    study = Study(
        N=3, M=8, loss=f"{tmp_path}/mine.py:loss", learning_rate=0.01, iterations=2, repetitions=200, inputs="normal"
    )
    study.run(tmp_path / "serial", part=200)
    assert not (tmp_path / "killed").exists()
    study.run(tmp_path / "spread", part=20, pool=Pool(executor, workers=2))
    assert (tmp_path / "killed").exists()
    serial, spread = ((tmp_path / name / "results.csv").read_bytes() for name in ("serial", "spread"))
    assert serial == spread
    assert [outcome.repetitions for _, outcome in read_outcomes(tmp_path / "spread")] == [20] * 10


CLUSTER = """\
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, scheduler_port=int(sys.argv[1]), dashboard_address=None):
        print("there", flush=True)
        sys.stdin.read()
"""


class _Cluster:
    """A Dask scheduler in a process of its own, with a worker, at the same address whenever it is started."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "cluster.py"
        self.script.write_text(CLUSTER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(self.script), str(self.port)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"there\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class _KillAfter(Watcher):
    """Kills a cluster when so many parts are saved, and starts it anew."""

    def __init__(self, cluster: _Cluster, parts: int) -> None:
        self.cluster, self.left = cluster, parts
        self.finished: list[int] = []

    def finish(self, part: Any) -> None:
        self.finished.append(part.start)
        if len(self.finished) == self.left:
            self.cluster.kill()
            self.cluster.start()


@pytest.mark.command
@pytest.mark.filterwarnings("default")  # of the client, about a scheduler that is gone
def test_a_scheduler_that_is_killed_and_started_anew_changes_no_bit(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    study = Study(N=3, M=8, loss="kernel", learning_rate=0.01, iterations=2, repetitions=400, kernels=3)
    study.run(tmp_path / "serial")
    cluster = _Cluster(tmp_path)
    cluster.start()
    watcher = _KillAfter(cluster, 5)
    try:
        study.run(tmp_path / "spread", part=20, pool=Pool(f"dask://127.0.0.1:{cluster.port}"), watcher=watcher)
    finally:
        cluster.kill()
    assert len(watcher.finished) == len(set(watcher.finished)) == 20
    serial, spread = ((tmp_path / name / "results.csv").read_bytes() for name in ("serial", "spread"))
    assert serial == spread


@pytest.mark.command
@pytest.mark.filterwarnings("default")  # of the client, about what it does not wait for any more
def test_a_result_that_never_comes_keeps_no_later_client_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    begun = threading.Event()

    async def never(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as here:
        with distributed.Client(here, set_as_default=False) as first:
            monkeypatch.setattr(first, "_gather", never)
            pools._DaskExecutor(first).submit(abs, -2)
            assert begun.wait(60)
        with distributed.Client(here, set_as_default=False) as second:
            assert pools._DaskExecutor(second).submit(abs, -3).result(timeout=60) == 3


@pytest.mark.command
def test_two_ranks_of_mpi_change_no_bit(tmp_path: Path) -> None:
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mpiexec is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("no mpiexec and mpi4py are installed")
    path = tmp_path / "mine.toml"
    path.write_text(
        'N = [3, 5]\nM = 8\nloss = "kernel"\nkernels = 3\nlearning_rate = 0.01\niterations = 2\nrepetitions = 200\n'
    )
    read_study(path).run(tmp_path / "serial")
    line = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py.futures", "-m", "convla", "study", str(path)]
    line += ["--executor", "mpi", "--part", "30", "--output", str(tmp_path / "mpi")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    serial, spread = ((tmp_path / name / "results.csv").read_bytes() for name in ("serial", "mpi"))
    assert serial == spread


@pytest.mark.parametrize(
    ("size", "message"), [(2, r"python -m mpi4py\.futures -m convla"), (1, "mpiexec, which is not on the PATH")]
)
def test_mpi_that_would_run_the_whole_in_every_rank_or_wait_for_ever_is_refused(
    size: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpi4py, futures = ModuleType("mpi4py"), ModuleType("mpi4py.futures")
    mpi4py.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: size))  # type: ignore[attr-defined]
    futures.MPIPoolExecutor, futures._core = ThreadPoolExecutor, SimpleNamespace(SharedPool=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", mpi4py)
    monkeypatch.setitem(sys.modules, "mpi4py.futures", futures)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match=message):
        list(Pool("mpi").map(abs, [1]))


@pytest.mark.parametrize(("executor", "extra"), [("mpi", "mpi"), ("loky", "parallel"), ("dask-local:1", "dask")])
def test_what_an_executor_needs_is_named(executor: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mpi4py", "mpi4py.futures", "loky", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=rf"executor '{executor}' needs .*\[{extra}\]"):
        list(Pool(executor).map(abs, [1]))


@pytest.mark.command
def test_an_executor_of_ones_own_is_used_and_left_open(tmp_path: Path) -> None:
    study = Study(N=3, M=8, loss="kernel", learning_rate=0.01, iterations=2, repetitions=100)
    with ThreadPoolExecutor(2) as executor:
        study.run(tmp_path / "theirs", part=7, pool=Pool(executor, workers=2))
        assert executor.submit(int, "3").result() == 3
    study.run(tmp_path / "ours")
    ours, theirs = ((tmp_path / name / "results.csv").read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs


def test_no_more_than_a_few_pieces_wait_at_an_executor() -> None:
    class Counted(ThreadPoolExecutor):
        most = waiting = 0

        def submit(self, *arguments, **options):  # type: ignore[no-untyped-def]
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            future = super().submit(*arguments, **options)
            future.add_done_callback(lambda _: setattr(self, "waiting", self.waiting - 1))
            return future

    drawn = itertools.count()

    def pieces() -> Iterator[int]:
        for number in range(10**6):
            next(drawn)
            yield -number

    most = 2 * pools.WAITING
    with Counted(2) as executor:
        mapped = Pool(executor, workers=2).map(abs, pieces())
        found = dict(itertools.islice(mapped, 500))
        mapped.close()  # what a run does that ends early
    assert found.items() <= {-number: number for number in range(500 + most)}.items()
    assert len(found) == 500
    assert executor.most <= most
    # Of a million pieces no more are drawn than are done or waiting: neither they nor their results are kept.
    assert next(drawn) <= 500 + most


def test_workers_that_come_later_are_given_work(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 0.4, 0.4, 2.0, 2.0))
    monkeypatch.setattr(pools.time, "monotonic", lambda: next(times))
    found = iter((1, 8))
    count = pools._now_and_then(lambda: next(found))
    assert [count(), count(), count()] == [1, 1, 8]


def test_progress_tells_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 100.0, 110.0, 161.0))  # made, planned, and two ends
    monkeypatch.setattr("convla.cli.bars.time.monotonic", lambda: next(clock))
    bars = RunBars("parts")
    bars.plan(1000, 398)  # of which some are from before: the rate is of this run
    for unit in Study(N=[3, 4], M=8, loss="kernel", learning_rate=0.01, iterations=2).units():
        bars.start(Part(unit, 0, 1000), 1)
        bars.finish(Part(unit, 0, 1000))
    assert capsys.readouterr().err == "convla: 400 of 1000 parts, 0.0328 a second, 5:05:00 left\n"


def test_a_worker_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pools._versions()
    monkeypatch.setattr(pools, "_tagged", lambda function, argument, _: ({**ours, "numpy": "1.0"}, function(argument)))
    with ThreadPoolExecutor(1) as executor, pytest.raises(WorkerError, match=r"a worker has numpy 1\.0 and not"):
        list(Pool(executor).map(abs, [1]))


@pytest.mark.parametrize("name", ["cloud", "dask-local:0", "dask-local", "dask://", "dask://host", "mpi:2"])
def test_what_is_no_executor_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="executor must be 'local', 'loky', 'dask-local:N'"):
        Pool(name)


@pytest.mark.parametrize("executor", ["local", "loky"])
@pytest.mark.parametrize("pool", [Pool.of, Pool.of_processes])
def test_workers_are_called_workers(executor: str, pool: Any) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        pool(executor, 0)


@pytest.mark.command
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere.invalid:8786", r"no host is known here by the name 'nowhere\.invalid'"),
        ("127.0.0.1:1", r"no scheduler of Dask answered at tcp://127\.0\.0\.1:1 within 1 s: is one running there"),
    ],
)
def test_an_executor_that_cannot_start_leaves_no_folder(
    tmp_path: Path, place: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setattr(pools, "CONNECTED", 1)
    study = Study(N=3, M=8, loss="kernel", learning_rate=0.01, iterations=2, repetitions=10)
    with pytest.raises(EngineError, match=message):
        study.run(tmp_path / "out", pool=Pool(f"dask://{place}"))
    with pytest.raises(EngineError, match=message):
        reproduce(Request(targets=("table1",), executor=f"dask://{place}", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
