"""The command `convla verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convla.cli import run
from proofs_checks import ledger as ledger_module
from proofs_checks.csm import STATEMENTS
from proofs_checks.mutation import applied, mutants


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "report.json"
    assert run(["verify", "CSM-6", "csm-params", "--max-examples", "3", "--json", str(target)]) == 0
    out, err = capsys.readouterr()
    assert "CSM-6" in out
    assert "2 statements" in out
    assert not err
    report = json.loads(target.read_text(encoding="utf-8"))
    assert [row["id"] for row in report["statements"]] == ["CSM-6", "CSM-params"]
    assert report["max_examples"] == 3
    assert not report["contradicted"]


def test_a_contradicted_verdict_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    (doubled,) = (m for m in mutants("convla.identities.scaled_penalty_minimum") if m.change.endswith("doubled"))
    with applied(doubled):
        assert run(["verify", "RCK-scale"]) == 1
    assert "contradicted RCK-scale scaling_turns" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CSM-999"], "ID must be a statement or a source of the ledger, got 'CSM-999'"),
        (["--max-examples", "0"], "--max-examples must be at least 1, got 0"),
        (["--max-examples", "many"], "valid integer"),
        (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json cannot be written"),
        (["--json", "."], "--json . cannot be written: Is a directory"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_without_hypothesis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hypothesis", None)
    assert run(["verify"]) == 2
    assert "pip install 'convla[verify]'" in capsys.readouterr().err


def test_skipped_evidence_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flint", None)
    monkeypatch.setattr(ledger_module, "ledger", lambda: STATEMENTS)
    assert run(["verify", "CSM-17", "--max-examples", "1"]) == 0
    assert "skipped CSM-17" in capsys.readouterr().out
