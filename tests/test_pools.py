"""Work spread over processes: the numbers of the serial run, bit for bit, when a worker is killed in the middle too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convla.experiments import Study
from convla.experiments import pool as pools
from convla.experiments.pool import Pool, WorkerError

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


@pytest.mark.filterwarnings("default")  # of the schedulers, about a worker that is gone
@pytest.mark.parametrize(("executor", "package"), [("loky", "loky"), ("dask-local:2", "distributed")])
def test_a_killed_worker_changes_no_bit(tmp_path: Path, executor: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    import os

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
    assert len(list((tmp_path / "spread" / "runs").glob("*.npz"))) == 10


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

    with Counted(2) as executor:
        found = dict(Pool(executor, workers=2).map(abs, range(-500, 0)))
    assert found == {number: -number for number in range(-500, 0)}
    assert executor.most <= 2 * pools.WAITING


def test_a_worker_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pools._versions()
    monkeypatch.setattr(pools, "_tagged", lambda function, argument, _: ({**ours, "numpy": "1.0"}, function(argument)))
    with ThreadPoolExecutor(1) as executor, pytest.raises(WorkerError, match=r"a worker has numpy 1\.0 and not"):
        list(Pool(executor).map(abs, [1]))


@pytest.mark.parametrize("name", ["cloud", "dask-local:0", "dask-local", "dask://", "dask://host", "mpi"])
def test_what_is_no_executor_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="executor must be 'local', 'loky', 'dask-local:N'"):
        Pool(name)
