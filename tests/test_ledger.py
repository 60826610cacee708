"""The ledger: its evidence confirms every verdict, and notices every mutation of the code."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import hypothesis
import pytest

from proofs_checks.draws import without_shrinking
from proofs_checks.ledger import SOURCES, ledger, select
from proofs_checks.mutation import applied
from proofs_checks.page import FENCE, main
from proofs_checks.runner import Outcome, run_evidence, verify
from proofs_checks.statement import Evidence, Kind, Mutation, Statement, Verdict

PIECES = {id(piece): (statement, piece) for statement in ledger() for piece in statement.evidence}
MUTATIONS = [(statement, mutation) for statement in ledger() for mutation in statement.mutations]


@functools.lru_cache
def examples() -> int:
    return hypothesis.settings().max_examples


@pytest.mark.parametrize(
    ("statement", "piece"), PIECES.values(), ids=[f"{s.id}-{piece.name}" for s, piece in PIECES.values()]
)
def test_evidence_confirms_the_verdict(statement: Statement, piece: Evidence) -> None:
    outcome = run_evidence(statement, piece, examples())
    if outcome.status == "skipped":
        pytest.skip(outcome.finding)
    assert outcome.status == "confirmed", outcome.finding
    assert outcome.finding


@pytest.mark.parametrize(
    ("statement", "mutation"),
    MUTATIONS,
    ids=[f"{s.id}-{m.target.rpartition(':')[2]}-{i}" for i, (s, m) in enumerate(MUTATIONS)],
)
def test_evidence_notices_the_mutation(statement: Statement, mutation: Mutation) -> None:
    with applied(mutation), without_shrinking():
        assert any(
            run_evidence(statement, piece, examples=50).status == "contradicted" for piece in statement.evidence
        ), f"{statement.id} does not notice {mutation.old!r} -> {mutation.new!r} in {mutation.target}"


def test_ids_are_unique_and_belong_to_a_source() -> None:
    ids = [statement.id for statement in ledger()]
    assert len(set(ids)) == len(ids)
    assert {statement.source for statement in ledger()} == set(SOURCES)


def test_select() -> None:
    assert select([]) == ledger()
    assert [s.id for s in select(["CSM-33", "csm-6"])] == ["CSM-6", "CSM-33"]
    assert {s.source for s in select(["spec"])} == {"SPEC"}
    with pytest.raises(ValueError, match=r"got 'CSM-66', did you mean CSM-6"):
        select(["CSM-66"])


def _statement(check: Evidence) -> Statement:
    return Statement("CSM-0", "ours", "t", "c", Verdict.HOLDS, (check,), (Mutation("m:f", "a", "b"),))


def test_a_contradiction_is_reported_and_shared_evidence_runs_once() -> None:
    calls = []

    def fails(examples: int) -> str:
        calls.append(examples)
        raise AssertionError("no\nway")

    seen: list[Outcome] = []
    piece = Evidence(Kind.PROPERTY, "nothing", fails)
    report = verify([_statement(piece), _statement(piece)], examples=7, progress=seen.append)
    assert report.contradicted
    assert calls == [7]
    assert [(o.status, o.finding) for o in seen] == [("contradicted", "no way")] * 2
    assert report.as_data()["statements"][0]["evidence"][0]["status"] == "contradicted"


def test_a_statement_without_what_its_verdict_speaks_of_is_refused() -> None:
    piece = Evidence(Kind.PROPERTY, "nothing", lambda _: "")
    with pytest.raises(ValueError, match="must have evidence, a mutation"):
        Statement("CSM-0", "ours", "t", "c", Verdict.REFUTED, (piece,), (Mutation("m:f", "a", "b"),))


def test_a_page_is_stale_beyond_the_tolerance_of_its_figures(tmp_path: Path) -> None:
    assert main(["--docs", str(tmp_path)]) == 0
    page = tmp_path / "ledger.md"
    text = page.read_text(encoding="utf-8")
    median = re.search(rf"{FENCE}text\n  N = 3, M = 64, P = 0: median (0\.\d+)", text)
    assert median
    for changed, stale in (
        (text, 0),
        (text[: median.start(1)] + str(1.02 * float(median[1])) + text[median.end(1) :], 0),
        (text[: median.start(1)] + str(1.2 * float(median[1])) + text[median.end(1) :], 1),
        (text.replace("Eq. (13)", "Eq. (13.1)"), 1),
        (text + "more\n", 1),
    ):
        page.write_text(changed, encoding="utf-8")
        assert main(["--check", "--docs", str(tmp_path)]) == stale


def test_a_stale_mutation_is_an_error() -> None:
    with (
        pytest.raises(LookupError, match="exactly once, found it 0 times"),
        applied(Mutation("proofs_checks.networks:linear_parameters", "no such passage", "")),
    ):
        pass


def test_mutants_are_put_back() -> None:
    from proofs_checks import networks

    original = networks.linear_parameters
    with applied(Mutation("proofs_checks.networks:linear_parameters", "inputs + 1", "inputs")):
        assert networks.linear_parameters(2, 3) == 6
    assert networks.linear_parameters is original
