"""The command for a machine with a GPU, with a stand-in for the card: its steps, its files, and what it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from convla.gpu_check import command, main, timing
from convla.gpu_check.cases import cases


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
    monkeypatch.setattr(command, "run_tests", lambda *_: {"exit_code": 1, "last_lines": ["1 failed"]})
    monkeypatch.setattr(command, "cases", lambda *_, **__: iter(()))
    assert main(["--output", str(tmp_path), "--shrink", "64"]) == 1
    assert "tests: FAILED (exit code 1); 1 failed" in (tmp_path / "gpu-check.md").read_text()
