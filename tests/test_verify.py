"""The command `convla verify`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from convla.cli import run
from convla.errors import install_line
from convla.experiments.pool import Pool
from proofs_checks import ledger as ledger_module
from proofs_checks.claims import load_claims
from proofs_checks.csm import STATEMENTS
from proofs_checks.mutation import applied, mutants
from proofs_checks.runner import verify


@pytest.mark.command
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
    assert install_line("verify") in capsys.readouterr().err


def test_skipped_evidence_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flint", None)
    monkeypatch.setattr(ledger_module, "ledger", lambda: STATEMENTS)
    assert run(["verify", "CSM-17", "--max-examples", "1"]) == 0
    assert "skipped CSM-17" in capsys.readouterr().out


CLAIMS = Path(__file__).parent.parent / "docs" / "claims" / "achour.toml"


def test_an_id_prints_the_claim_and_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "CSM-13", "--max-examples", "2"]) == 0
    out = capsys.readouterr().out
    assert "claim: Under Eq. (13)" in out
    assert "correction: Under Eq. (13) read" in out
    assert "Eq. (13) uses [0, 0, 1], Eq. (2) defines [1, 0, 0]" in out


@pytest.mark.command
def test_claims_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, page = tmp_path / "report.json", tmp_path / "report.md"
    options = ["--claims", str(CLAIMS), "--max-examples", "5"]
    assert run(["verify", *options, "ach-frobenius", "--json", str(report), "--markdown", str(page)]) == 0
    assert "N = 4: 20 is not 12" in capsys.readouterr().out
    assert "## ACH-frobenius: the regulariser" in page.read_text(encoding="utf-8")
    assert run(["verify", *options, "--baseline", str(report)]) == 0
    data = json.loads(report.read_text(encoding="utf-8"))
    data["statements"][0]["evidence"].append({"name": "another", "status": "confirmed"})
    report.write_text(json.dumps(data), encoding="utf-8")
    capsys.readouterr()
    assert run(["verify", *options, "--baseline", str(report)]) == 1
    assert "lost ACH-frobenius another was confirmed, and is gone" in capsys.readouterr().out
    with pytest.raises(ValueError, match="did you mean ACH-FROBENIUS"):
        ledger_module.select(["ACH-frob"], load_claims(str(CLAIMS)))


def test_a_badge_says_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, endpoint = tmp_path / "badge.svg", tmp_path / "badge.json"
    assert run(["verify", "RCK-count", "RCK-scale", "--max-examples", "5", "--badge", str(endpoint)]) == 0
    fields = json.loads(endpoint.read_text(encoding="utf-8"))
    assert fields.keys() == {"schemaVersion", "label", "message", "color"}
    assert (fields["schemaVersion"], fields["message"]) == (1, "2 confirmed")
    (doubled,) = (m for m in mutants("convla.identities.scaled_penalty_minimum") if m.change.endswith("doubled"))
    with applied(doubled):
        assert run(["verify", "RCK-count", "RCK-scale", "--max-examples", "5", "--badge", str(picture)]) == 1
    svg = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert svg[0].text == "statements: 1 confirmed, 1 contradicted"
    assert [rectangle.get("fill") for rectangle in svg.iter("{http://www.w3.org/2000/svg}rect")] == ["#444", "#c5221f"]
    capsys.readouterr()
    assert run(["verify", "RCK-count", "--badge", str(tmp_path / "badge.png")]) == 2
    assert "--badge must end in .svg or .json, got 'badge.png'" in capsys.readouterr().err


def test_claims_in_a_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own_claims.py"
    file.write_text(
        "from proofs_checks.statement import Kind, Statement, Verdict, evidence\n"
        "@evidence(Kind.PROOF, 'one')\n"
        "def never(_):\n"
        "    assert 1 == 2, 'one is not two'\n"
        "STATEMENTS = (Statement('OWN-1', 'p. 1', 't', 'c', Verdict.HOLDS, (never,)),)\n",
        encoding="utf-8",
    )
    assert run(["verify", "--claims", str(file)]) == 1
    assert "contradicted OWN-1 never: one is not two" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[statement", "is no TOML file"),
        ("a = 1", "must have tables [[statement]]"),
        ('[[statement]]\nid = "A-1"', "statement A-1: number is missing"),
        ('[[statement]]\nid = "A-1"\nverdit = "holds"', "unknown key 'verdit'"),
        (HEAD := '[[statement]]\nid="A-1"\nnumber="1"\ntitle="t"\nclaim="c"\nevidence=[]\n', "verdict is missing"),
        (HEAD + 'verdict="true"', "verdict must be one of 'holds'"),
        (HEAD + 'verdict="holds"', "must have evidence"),
        (HEAD.replace("[]", '[{kind="proof", covers="c", check="no.such:f"}]') + 'verdict="holds"', "is not there"),
        (
            HEAD.replace("[]", '[{kind="proof", covers="c", check="math:pi"}]') + 'verdict="holds"',
            "kind must be one of",
        ),
    ],
)
def test_wrong_claims_are_one_line(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "claims.toml"
    file.write_text(text, encoding="utf-8")
    assert run(["verify", "--claims", str(file)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_missing_claims_and_baselines_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--claims", "no/such.toml"], ["--claims", "no_such_module"], ["--baseline", "no/such.json"]):
        assert run(["verify", *options]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    assert run(["verify", "--baseline", str(tmp_path / "x.json")]) == 2
    assert "is no report of verify" in capsys.readouterr().err


def test_graph(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "CSM", "--graph"]) == 0
    out = capsys.readouterr().out
    assert '"CSM-bound" -> "CSM-6";' in out
    assert '"CSM-35" -> "CSM-34" [dir=none, style=dashed];' in out


@pytest.mark.command
def test_evidence_that_is_spread_finds_the_same(tmp_path: Path) -> None:
    file = tmp_path / "shared_claims.py"
    file.write_text(
        "from proofs_checks.statement import Kind, Statement, Verdict, evidence\n"
        "@evidence(Kind.PROOF, 'one')\n"
        "def never(_):\n"
        "    assert 1 == 2, 'one is not two'\n"
        "@evidence(Kind.PROPERTY, 'all')\n"
        "def drawn(examples):\n"
        "    return f'{examples} drawn'\n"
        "STATEMENTS = (Statement('OWN-1', 'p. 1', 't', 'c', Verdict.HOLDS, (never, drawn)),\n"
        "              Statement('OWN-2', 'p. 2', 't', 'c', Verdict.HOLDS, (drawn,)))\n",
        encoding="utf-8",
    )

    def spread(function: Any, arguments: Any) -> Iterator[Any]:
        # As another process gets the work, and with the last piece ending first.
        for argument in reversed(list(arguments)):
            yield argument, pickle.loads(pickle.dumps(function))(argument)

    statements = load_claims(str(file))
    alone = verify(statements, examples=3)
    elsewhere = verify(statements, examples=3, spread=spread, claims=str(file))
    found = [(o.statement.id, o.evidence.name, o.status, o.finding) for o in alone.outcomes]
    assert found == [(o.statement.id, o.evidence.name, o.status, o.finding) for o in elsewhere.outcomes]
    assert found[2] == ("OWN-2", "drawn", "confirmed", "3 drawn")
    assert elsewhere.outcomes[2].seconds == 0.0
    with ThreadPoolExecutor(2) as executor:
        of_ledger = verify(STATEMENTS[:3], examples=2, spread=Pool(executor, workers=2).map)
    expected = verify(STATEMENTS[:3], examples=2)
    assert [o.finding for o in of_ledger.outcomes] == [o.finding for o in expected.outcomes]
