"""Files written whole or not at all: where links, pipes and other permissions wait, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla import _files
from convla._files import atomic_write, check_replaceable
from convla.cli import run
from convla.experiments.folder import ResultsError, ResultsFolder
from convla.experiments.pool import Pool, WorkerError
from convla.networks.weights import read_weights, write_weights
from tests.interrupts import interrupted


def put(path: Path, content: bytes, **options: Any) -> None:
    with atomic_write(path, **options) as file:
        file.write(content)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_plain_open(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        put(tmp_path / "ours", b"1")
        (tmp_path / "plain").write_bytes(b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "ours").chmod(0o640)
    put(tmp_path / "ours", b"2")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o640


def test_a_link_is_followed_only_where_the_user_named_it(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").write_bytes(b"theirs")
    (inside / "link").symlink_to(outside / "file")
    put(inside / "link", b"ours", follow_links=True)
    assert (inside / "link").is_symlink()
    assert (outside / "file").read_bytes() == b"ours"
    put(inside / "link", b"again")
    assert not (inside / "link").is_symlink()
    assert (outside / "file").read_bytes() == b"ours"
    (inside / "dangling").symlink_to(outside / "new")
    put(inside / "dangling", b"new", follow_links=True)
    assert (outside / "new").read_bytes() == b"new"


def test_what_is_no_file_is_refused_before_and_at_the_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        why = "Is a directory" if path == tmp_path else "not a regular file"
        with pytest.raises(OSError, match=why):
            check_replaceable(path, follow_links=True)
        with pytest.raises(OSError, match=why), atomic_write(path, follow_links=True):
            pass
    with pytest.raises(FileNotFoundError):
        check_replaceable(tmp_path / "none" / "file")
    check_replaceable(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    put(tmp_path / "file", b"old")

    def interrupted() -> None:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored")  # one that was just opened
def test_an_interrupt_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "report"

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"new")

    came, moment = True, 0
    while came:
        moment += 1
        path.write_bytes(b"old")
        came = interrupted(moment, write, _files)
        assert [file.name for file in tmp_path.iterdir()] == ["report"]
        assert path.read_bytes() in (b"old", b"new")
    assert moment > 20


def test_content_and_name_are_flushed_before_it_is_called_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real_sync, real_replace = os.fsync, os.replace
    kind = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(kind[stat.S_ISDIR(os.fstat(fd).st_mode)]), real_sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), real_replace(*names)))
    put(tmp_path / "file", b"1")
    assert calls == ["file", "replace", "folder"]


class TestResultsFolders:
    def test_planted_links_are_not_followed(self, tmp_path: Path) -> None:
        output, victim = tmp_path / "output", tmp_path / "victim"
        output.mkdir()
        victim.write_text("precious")
        for name in ("manifest.json", ".manifest.json.part", "tables12.png", "table1.csv", "conclusions.csv"):
            (output / name).symlink_to(victim)
        victim.write_text("{}")  # a manifest that can be read
        assert run(["reproduce", "table1", "table2", "--repetitions", "4", "--output", str(output)]) == 2
        for name in ("manifest.json",):
            (output / name).unlink()
        victim.write_text("precious")
        assert run(["reproduce", "table1", "table2", "--repetitions", "4", "--output", str(output)]) == 0
        assert victim.read_text() == "precious"
        assert not (output / "tables12.png").is_symlink()
        assert json.loads((output / "manifest.json").read_text())["complete"]

    def test_a_link_in_place_of_an_inner_folder(self, tmp_path: Path) -> None:
        (tmp_path / "output").mkdir()
        (tmp_path / "output" / "runs").symlink_to(tmp_path)
        with pytest.raises(ResultsError, match="runs in it is a symbolic link"):
            ResultsFolder(tmp_path / "output", {})

    def test_a_pipe_in_place_of_the_manifest(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "manifest.json")
        with pytest.raises(ResultsError, match=r"manifest\.json is not a manifest of convla"):
            ResultsFolder(tmp_path, {})


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_outputs_of_inspect(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, target = tmp_path / "model.npz", tmp_path / "real.svg"
    write_weights(model, {"conv.weight": np.ones((2, 1, 3))})
    os.mkfifo(tmp_path / "pipe.svg")
    assert run(["inspect", str(model), "--image", "8", option, str(tmp_path / "pipe.svg")]) == 2
    assert "pipe.svg cannot be written: not a regular file" in capsys.readouterr().err
    (tmp_path / "link.svg").symlink_to(target)
    arguments = ["inspect", str(model), "--image", "8", "--measures", "similarity"]
    assert run([*arguments, option, str(tmp_path / "link.svg")]) == 0
    assert (tmp_path / "link.svg").is_symlink()
    assert target.stat().st_size > 100


def test_initialize_keeps_permissions_and_links(tmp_path: Path) -> None:
    model, target, link = (tmp_path / name for name in ("model.npz", "real.npz", "link.npz"))
    write_weights(model, {"conv.weight": np.random.default_rng(0).standard_normal((3, 2, 3))})
    link.symlink_to(target)
    before = os.umask(0o022)
    try:
        assert run(["initialize", str(model), str(link), "--iterations", "1"]) == 0
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert read_weights(target)["conv.weight"].shape == (3, 2, 3)


def end_itself(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_long(seconds: float) -> float:
    Path(os.environ["CONVLA_TEST_PIDS"], str(os.getpid())).touch()
    time.sleep(seconds)
    return seconds


@pytest.mark.command
class TestProcesses:
    def test_a_killed_worker_is_one_line(self) -> None:
        pytest.importorskip("loky", reason="loky is not installed")
        with pytest.raises(WorkerError, match=r"a worker process was killed.*the same command with --resume goes on"):
            list(Pool("loky", workers=2).map(end_itself, [0, 1, 2, 3]))

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_workers_end_with_their_parent(self, how: int, tmp_path: Path) -> None:
        pytest.importorskip("loky", reason="loky is not installed")
        script = (
            "from convla.experiments.pool import Pool\n"
            "from tests.test_files import sleep_long\n"
            "list(Pool('loky', workers=2).map(sleep_long, [60.0, 61.0]))"
        )
        environment = {**os.environ, "CONVLA_TEST_PIDS": str(tmp_path), "PYTHONPATH": os.getcwd()}
        parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < min(2, os.cpu_count() or 1) and time.monotonic() < until:
            time.sleep(0.1)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert workers
        parent.send_signal(how)
        parent.wait()
        until = time.monotonic() + 10
        while any(map(running, workers)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(running, workers))


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and not yet asked for its code


@pytest.mark.command
def test_an_ascii_terminal_is_written_to_in_escapes(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, **{"名前.weight": np.ones((2, 1, 3))})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    line = [sys.executable, "-m", "convla", "inspect", str(path), "--image", "8", "--measures", "similarity"]
    done = subprocess.run(line, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u540d\u524d.weight" in done.stdout
    done = subprocess.run([sys.executable, "-m", "convla", "train"], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.command
def test_a_terminated_command_says_what_is_saved(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "convla", "reproduce", "tables", "--repetitions", "200000", "--output", str(tmp_path)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    # Threads that compile, as on a first run they do for a while, are waited for: the first part ends that.
    until = time.monotonic() + 120
    while not any(tmp_path.glob("runs/*.records")) and time.monotonic() < until:
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.count("\n") == 1
    assert "the same command with --resume goes on from there" in err
