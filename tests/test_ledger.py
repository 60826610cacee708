"""The ledger: its evidence confirms every verdict, and notices wrong versions of the functions that it is about."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import convla
from convla import identities
from convla.identities.matrices import scaled_penalty_minimum
from proofs_checks import page as page_module
from proofs_checks.ledger import SOURCES, ledger, select
from proofs_checks.mutate import equivalent, try_mutant
from proofs_checks.mutation import applied, mutants, resolve
from proofs_checks.page import FENCE, main
from proofs_checks.record import RECORD, Record
from proofs_checks.runner import Outcome, run_evidence, verify
from proofs_checks.statement import Evidence, Kind, Statement, Verdict

PIECES = {id(piece): (statement, piece) for statement in ledger() for piece in statement.evidence}
ROOT = Path(__file__).parent.parent


LONG = {
    "corners_leave_out_all_but_the_shared_taps",
    "corners_leave_out_every_tap_but_the_centre",
    "enclosures_of_the_least_similarity",
    "large_matrices_by_iteration",
    "more_kernels_and_axes",
    "networks_halve_where_the_papers_do",
    "networks_have_the_published_parameters",
    "orthogonality_fails_every_second_time",
    "padded_identity_on_vectors",
    "products_fall_like_the_square_of_time",
    "sparse_matrices_are_the_dense_ones",
    "the_record_is_what_runs",
    "the_record_of_averaging_is_what_runs",
}
"""Evidence that takes seconds for any number of examples; `python -m proofs_checks.page --check` runs it as well."""


@functools.lru_cache
def examples() -> int:
    """A fifth of those that the page is checked with."""
    return max(5, hypothesis.settings().max_examples // 5)


@pytest.mark.parametrize(
    ("statement", "piece"),
    [
        pytest.param(s, piece, id=f"{s.id}-{piece.name}", marks=[pytest.mark.slow] if piece.name in LONG else [])
        for s, piece in PIECES.values()
    ],
)
def test_evidence_confirms_the_verdict(statement: Statement, piece: Evidence) -> None:
    outcome = run_evidence(statement, piece, examples())
    if outcome.status == "skipped":
        pytest.skip(outcome.finding)
    assert outcome.status == "confirmed", outcome.finding
    assert outcome.finding


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_statement_notices_wrong_versions_of_what_it_is_about(source: str, tmp_path: Path) -> None:
    report = tmp_path / "trials.json"
    command = [
        sys.executable,
        "-m",
        "proofs_checks.mutate",
        "--statement",
        source,
        "--each",
        "1",
        "--json",
        str(report),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    noticed = {trial["statements"][0] for trial in json.loads(report.read_text()) if trial["result"] == "noticed"}
    assert noticed == {statement.id for statement in select([source]) if statement.functions}


@pytest.mark.parametrize("statement", [s for s in ledger() if s.functions], ids=lambda statement: statement.id)
def test_functions_are_public_and_can_be_wrong(statement: Statement) -> None:
    _skip_without_torch(statement)
    assert any(mutants(function) for function in statement.functions)


def _skip_without_torch(*statements: Statement) -> None:
    if any(function.startswith("convla.experiments.training.") for s in statements for function in s.functions):
        pytest.importorskip("torch", reason="PyTorch is not installed")


def test_statements_without_functions_are_about_printed_numbers() -> None:
    for statement in ledger():
        if not statement.functions:
            assert not statement.ours
            assert {piece.kind for piece in statement.evidence} == {Kind.PROOF}, statement.id


@pytest.mark.command
def test_known_equivalents_are_mutants() -> None:
    _skip_without_torch(*ledger())
    found = [mutant for statement in ledger() for f in statement.functions for mutant in mutants(f)]
    whole = {f"{mutant.module}.{mutant.name}" for mutant in found}
    assert set(equivalent()) <= {mutant.where for mutant in found} | whole


def test_what_is_long_is_evidence_and_leaves_no_statement_alone() -> None:
    names = [{piece.name for piece in statement.evidence} for statement in ledger()]
    assert set().union(*names) >= LONG
    assert [group for group in names if group <= LONG] == []


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
    return Statement("CSM-0", "ours", "t", "c", Verdict.HOLDS, (check,), ("m.f",))


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
    with pytest.raises(ValueError, match="must have evidence, and the correction"):
        Statement("CSM-0", "ours", "t", "c", Verdict.REFUTED, (piece,), ("m.f",))


@pytest.mark.slow
def test_a_page_is_stale_beyond_the_tolerance_of_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "run_evidence", functools.cache(run_evidence))  # the same pages six times
    assert main(["--docs", str(tmp_path)]) == 0
    page = tmp_path / "ledger" / "csm.md"
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


def test_a_private_function_cannot_be_named() -> None:
    with pytest.raises(LookupError, match="is private"):
        resolve("convla.identities.inner_products._gram_outside")
    with pytest.raises(LookupError, match=r"no function convla\.nothing"):
        resolve("convla.nothing")


def test_mutants_are_everywhere_and_are_put_back() -> None:
    holders = [scaled_penalty_minimum, identities.scaled_penalty_minimum]
    (doubled,) = (m for m in mutants("convla.identities.scaled_penalty_minimum") if m.change.endswith("doubled"))
    with applied(doubled):
        assert [holder(3.0, 1.0) for holder in holders] == [1.6, 1.6]
    assert [holder(3.0, 1.0) for holder in holders] == [0.8, 0.8]


@pytest.mark.command
def test_mutants_of_compiled_kernels_are_compiled_and_put_back() -> None:
    gradient = np.array([[1.0], [3.0], [8.0]])
    (mutant,) = (
        m
        for m in mutants("convla.reweighted_gradient")
        if m.name == "_draw_in" and m.change.startswith("'base[i] + share * f[i]': - for +")
    )
    before = convla.reweighted_gradient(gradient, 2.0, engine="numba")
    with applied(mutant):
        wrong = convla.reweighted_gradient(gradient, 2.0, engine="numba")
    assert np.array_equal(wrong, gradient.mean() / 2 - gradient / 2)
    assert np.array_equal(convla.reweighted_gradient(gradient, 2.0, engine="numba"), before)


def test_mutants_of_one_change_at_several_places_have_names_of_their_own() -> None:
    for function in ("convla.identities.padding_error_terms", "convla.sobolev_gradient"):
        found = [mutant.where for mutant in mutants(function)]
        assert len(set(found)) == len(found)


def test_mutants_reach_private_functions_and_methods() -> None:
    assert {m.name for m in mutants("convla.identities.padding_error_terms")} >= {
        "padding_error_terms",
        "_gram_outside",
    }
    assert {m.name for m in mutants("convla.ConvOperator.to_dense")} == {"ConvOperator.to_dense"}


@pytest.mark.command
def test_a_mutant_that_nothing_notices_has_survived() -> None:
    mutant = mutants("convla.identities.scaled_penalty_minimum")[0]
    statement = next(s for s in ledger() if s.id == "CSM-13")
    trial = try_mutant(mutant, [statement], examples=1, record=Record())
    assert (trial.result, trial.by) == ("survived", "")
    statement = next(s for s in ledger() if s.id == "RCK-scale")
    assert try_mutant(mutant, [statement], examples=5, record=Record()).result == "noticed"


def test_a_record_counts_as_long_as_code_and_evidence_stay(tmp_path: Path) -> None:
    mutant = mutants("convla.identities.scaled_penalty_minimum")[0]
    (statement,) = select(["RCK-scale"])
    piece, other = statement.evidence[0], select(["CSM-13"])[0].evidence[0]

    def rewritten(_: int) -> str:
        return ""

    rewritten.__name__ = piece.name
    changed = Evidence(piece.kind, piece.covers, rewritten)
    record = Record(tmp_path / "record.json")
    record.add(mutant, "noticed", piece.name, [piece, other])
    record.add_time(piece, 1.234)
    again = Record(tmp_path / "record.json")
    kept = again.result_of(mutant, [piece])
    assert kept is not None
    assert (kept.result, kept.by, again.time_of(piece), again.time_of(changed)) == ("noticed", piece.name, 1.23, None)
    assert again.result_of(mutant, [changed]) is None
    assert again.result_of(mutant, [other]) is None, "what decided is gone"
    # That nothing noticed it rests on all that was asked.
    again.add(mutant, "survived", "", [piece])
    assert again.result_of(mutant, [piece]) is not None
    assert again.result_of(mutant, [piece, other]) is None
    assert Record(tmp_path / "record.json").counts() == {"survived": 1}
    again.keep_only([])
    assert not Record(tmp_path / "record.json").trials


def test_the_record_calls_equivalent_what_is_named_so() -> None:
    record, named = Record(RECORD), equivalent()
    assert len(record.trials) >= 300
    for where, kept in record.trials.items():
        assert kept.result != "equivalent" or where in named or where.partition(": ")[0] in named, where
