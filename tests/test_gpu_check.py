"""The command for a machine with a GPU, with a stand-in for the card: its steps, its files, and what it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convla import NetworkSimilarity
from convla.gpu_check import command, main, timing
from convla.gpu_check.cases import Case, cases
from tests.cuda import stand_in


def test_without_a_device_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--output", str(tmp_path / "out")]) == 2
    assert "no GPU to check: CUDA_VISIBLE_DEVICES is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def card(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(command, "cuda_trouble", lambda: "")
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(timing, "WARM_UP", 0)
    return cupy


@pytest.mark.command
def test_the_benchmark_writes_a_row_for_every_case(
    card: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path), "--no-tests", "--shrink", "256"]) == 0
    data = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [row.get("error") for row in data["rows"]] == [None] * len(data["rows"])
    assert [row["name"] for row in data["rows"]] == [case.name for case in cases(shrink=256)]
    for row in data["rows"]:
        assert row["fraction_of_floor"] == pytest.approx(row["floor_ms"] / row["median_ms"])
    page = (tmp_path / "gpu-check.md").read_text()
    assert page.strip() == capsys.readouterr().out.strip()
    assert "a stand-in, compute capability 9.0" in page
    assert "All sizes are divided by 256" in page
    assert page.count("\n|") == len(data["rows"]) + 2
    assert card.__version__ in page


@pytest.mark.usefixtures("card")
def test_a_case_that_fails_says_so_and_the_others_go_on() -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    case = next(cases(shrink=64))._replace(run=fail)
    row = command._row(case, timing.Floors(1e9, 1e9))
    assert row["error"] == "ValueError: no such thing"
    data = {
        "device": command.device_facts(),
        "command": "",
        "rows": [row],
        "shrink": 1,
        "floors": timing.Floors(1, 1)._asdict(),
    }
    assert "(failed: ValueError: no such thing)" in command.markdown(data)


@pytest.mark.torch
@pytest.mark.usefixtures("card")
def test_what_pytorch_does_beside_a_case_is_the_same() -> None:
    import torch

    compared = 0
    for case in cases(torch, shrink=64):
        if case.torch is None:
            continue
        ours, theirs = case.run(), case.torch()
        if isinstance(ours, NetworkSimilarity):
            ours = ours.gradients
        pairs = zip(ours.values(), theirs, strict=True) if isinstance(ours, dict) else [(ours, theirs)]
        for got, wanted in pairs:
            wanted = wanted.detach().numpy()
            got = got.get().reshape(wanted.shape)
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5 * np.abs(wanted).max(), err_msg=case.name)
        compared += 1
    assert compared == 1 + 4 * 3 + 2


def test_every_aim_has_its_row() -> None:
    names = {"similarity of": 1.0, "Tables 1-6": 300.0, "largest": 10.0, "enclosure": 1.0, "20 polar factors": 8.0}
    with stand_in.installed():
        rows = list(cases(shrink=64))
    for start, target in names.items():
        found = [case for case in rows if case.name.startswith(start)]
        assert found
        assert all(case.target == target for case in found)
    maps = [case for case in rows if case.least_ratio is not None]
    assert len(maps) == 4 * 3
    assert all(case.least_ratio == 1.0 for case in maps)


@pytest.mark.usefixtures("card")
def test_operands_that_cannot_be_made_fail_in_a_row_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("convla.gpu_check.cases._maps", refuse)
    found = list(cases(shrink=64))
    assert [case.name for case in found].count("convolutions") == 1
    assert any(case.name.startswith("Tables 1-6") for case in found)
    row = command._row(next(case for case in found if case.name == "convolutions"), None)
    assert row["error"] == "MemoryError: no room"


@pytest.mark.usefixtures("card")
def test_floors_that_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(command, "measure_floors", refuse)
    monkeypatch.setattr(command, "cases", lambda *_, **__: iter([Case("nothing", lambda: None, 0.0, 0.0)]))
    assert main(["--output", str(tmp_path), "--no-tests"]) == 0
    page = (tmp_path / "gpu-check.md").read_text()
    assert "The floors could not be measured: MemoryError: no room." in page
    assert "| nothing |" in page


def test_what_is_slow_is_called_three_times() -> None:
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    timed = timing._timed(lambda: None, lambda: event, lambda *_: 1e3 * timing.PATIENCE)
    assert (timed.calls, timed.median) == (3, 1e3 * timing.PATIENCE)


def test_steps_that_take_too_long_or_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(command: list[str], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"], output=b"12 passed so far\n")

    monkeypatch.setattr(subprocess, "run", late)
    found = command.run_tests(["-m", "gpu"], seconds=3)
    assert found == {"stopped": "after 3 s: --minutes gives it more", "last_lines": ["12 passed so far"]}
    assert command._outcome(found) == "stopped after 3 s: --minutes gives it more"
    monkeypatch.setattr(command.shutil, "which", lambda name: f"/usr/bin/{name}")
    sanitized = command.run_sanitizer(8.0)
    assert sanitized["exit_code"] == 0
    assert sanitized["last_lines"][0] == "memcheck stopped after 2 s: --minutes gives it more"

    def refuse(*_: object, **__: object) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert command.run_tests([])["exit_code"] == 1


@pytest.mark.usefixtures("card")
def test_an_interrupt_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = []

    def row(case: Any, _: object) -> dict[str, Any]:
        if rows:
            raise KeyboardInterrupt
        rows.append({"name": case.name, "median_ms": 1.0})
        return rows[0]

    monkeypatch.setattr(command, "_row", row)
    assert main(["--output", str(tmp_path), "--no-tests", "--shrink", "64"]) == 130
    assert json.loads((tmp_path / "gpu-check.json").read_text())["rows"] == rows


def test_the_tests_run_where_a_skip_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(arguments: list[str], **options: Any) -> Any:
        seen.append((arguments, options))
        return SimpleNamespace(returncode=1, stdout="1 failed\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    result = command.run_tests(["-m", "gpu"], ["/usr/bin/compute-sanitizer"])
    assert result == {"exit_code": 1, "last_lines": ["1 failed"]}
    arguments, options = seen[0]
    assert arguments[0] == "/usr/bin/compute-sanitizer"
    assert arguments[-2:] == ["-m", "gpu"]
    assert options["env"]["CONVLA_REQUIRE_GPU"] == "1"
    assert options["cwd"] == Path(__file__).parents[1]
    monkeypatch.setattr(command.shutil, "which", lambda _: None)
    assert "not on the PATH" in command.run_sanitizer()["skipped"]
    monkeypatch.setattr(command.shutil, "which", lambda name: f"/usr/bin/{name}")
    sanitized = command.run_sanitizer()
    assert (sanitized["exit_code"], sorted(sanitized["tools"])) == (
        1,
        ["initcheck", "memcheck", "racecheck", "synccheck"],
    )
    assert all((Path(__file__).parents[1] / path).is_file() for path in command.SANITIZED)


def test_a_failed_step_is_the_exit_code(card: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert card.is_available()
    monkeypatch.setattr(command, "run_tests", lambda *_, **__: {"exit_code": 1, "last_lines": ["1 failed"]})
    monkeypatch.setattr(command, "cases", lambda *_, **__: iter(()))
    assert main(["--output", str(tmp_path), "--shrink", "64"]) == 1
    assert "tests: FAILED (exit code 1); 1 failed" in (tmp_path / "gpu-check.md").read_text()
