"""Run the evidence of statements and compare what it says with their verdicts."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from proofs_checks.claims import load_claims
from proofs_checks.ledger import ledger
from proofs_checks.statement import Evidence, Statement, UnavailableError

__all__ = ["Outcome", "Report", "Spread", "changes", "markdown", "run_evidence", "verify"]


Found: TypeAlias = tuple[str, str, float]
"""A status, a finding and the seconds that it took: what another process can send of an outcome."""


@dataclass(frozen=True)
class Outcome:
    """What one piece of evidence said.

    Attributes
    ----------
    statement : Statement
    evidence : Evidence
    status : str
        "confirmed", "contradicted" or "skipped".
    finding : str
        What was found, why it contradicts the verdict, or what was missing; one line.
    seconds : float
    """

    statement: Statement
    evidence: Evidence
    status: str
    finding: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """The outcomes of a run, in the order of the ledger."""

    outcomes: tuple[Outcome, ...]
    examples: int

    @property
    def contradicted(self) -> bool:
        """Whether any verdict is contradicted by its evidence."""
        return any(outcome.status == "contradicted" for outcome in self.outcomes)

    def statements(self) -> dict[str, list[Outcome]]:
        """Return the outcomes of every statement by its id."""
        grouped: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            grouped.setdefault(outcome.statement.id, []).append(outcome)
        return grouped

    def as_data(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        rows = []
        for outcomes in self.statements().values():
            statement = outcomes[0].statement
            rows.append(
                {
                    "id": statement.id,
                    "source": statement.source,
                    "number": statement.number,
                    "ours": statement.ours,
                    "suggested": statement.suggested,
                    "title": statement.title,
                    "claim": statement.claim,
                    "verdict": statement.verdict.value,
                    "correction": statement.correction,
                    "counterexample": statement.counterexample,
                    "note": statement.note,
                    "functions": list(statement.functions),
                    "evidence": [
                        {
                            "name": outcome.evidence.name,
                            "kind": outcome.evidence.kind.value,
                            "covers": outcome.evidence.covers,
                            "status": outcome.status,
                            "finding": outcome.finding,
                            "seconds": round(outcome.seconds, 3),
                        }
                        for outcome in outcomes
                    ],
                }
            )
        return {"max_examples": self.examples, "contradicted": self.contradicted, "statements": rows}


def run_evidence(statement: Statement, piece: Evidence, examples: int) -> Outcome:
    """Run one piece of evidence; a failed assertion in it is an outcome, any other error is a defect and is raised."""
    start = time.perf_counter()
    try:
        finding, status = piece.check(examples), "confirmed"
    except UnavailableError as error:
        finding, status = str(error), "skipped"
    except AssertionError as error:
        finding, status = " ".join(str(error).split()) or "the check failed", "contradicted"
    return Outcome(statement, piece, status, finding, time.perf_counter() - start)


class Spread(Protocol):
    """What calls a function on arguments anywhere, as `convla.experiments.pool.Pool.map` does."""

    def __call__(
        self, function: Callable[[tuple[str, int]], Found], arguments: Iterable[tuple[str, int]], /
    ) -> Iterator[tuple[tuple[str, int], Found]]:
        """Yield each argument with its result as it ends, in any order."""


@dataclass(frozen=True)
class _Elsewhere:
    """Runs the evidence at a place, the id of a statement and a number, in a process that loads the statements itself."""

    claims: str | None
    examples: int

    def __call__(self, place: tuple[str, int]) -> Found:
        return _found(_statements(self.claims)[place[0]], place[1], self.examples)


@functools.cache
def _statements(claims: str | None) -> dict[str, Statement]:
    return {statement.id: statement for statement in (ledger() if claims is None else load_claims(claims))}


def _found(statement: Statement, number: int, examples: int) -> Found:
    outcome = run_evidence(statement, statement.evidence[number], examples)
    return outcome.status, outcome.finding, outcome.seconds


def verify(
    statements: Iterable[Statement],
    *,
    examples: int,
    progress: Callable[[Outcome], None] = lambda _: None,
    spread: Spread | None = None,
    claims: str | None = None,
) -> Report:
    """Run all evidence of `statements` with `examples` random examples for each property.

    Evidence that several statements share runs once, and has taken no time the second time.

    Parameters
    ----------
    statements : iterable of Statement
    examples : int
        The number of inputs that each property draws, at least 1.
    progress : callable
        Called with every outcome as it comes.
    spread : callable, optional
        Runs the pieces in other processes, to the same findings: the draws follow from the checks alone.
    claims : str, optional
        What `proofs_checks.claims.load_claims` takes the statements from; by default they are the ledger's.
    """
    pieces = [(statement, number) for statement in statements for number in range(len(statement.evidence))]
    sharing: dict[int, list[int]] = {}
    for position, (statement, number) in enumerate(pieces):
        sharing.setdefault(id(statement.evidence[number]), []).append(position)
    firsts = {(pieces[group[0]][0].id, pieces[group[0]][1]): group for group in sharing.values()}
    by_id = {statement.id: statement for statement, _ in pieces}
    here = ((place, _found(by_id[place[0]], place[1], examples)) for place in firsts)
    ended = here if spread is None else spread(_Elsewhere(claims, examples), firsts)
    outcomes: dict[int, Outcome] = {}
    for place, (status, finding, seconds) in ended:
        for position in firsts[place]:
            statement, number = pieces[position]
            took = seconds if position == firsts[place][0] else 0.0
            outcomes[position] = Outcome(statement, statement.evidence[number], status, finding, took)
            progress(outcomes[position])
    return Report(tuple(outcomes[position] for position in range(len(pieces))), examples)


def markdown(report: Report) -> str:
    """Return the report as a page of Markdown: a table, then every statement with what its evidence found."""
    counts = Counter(outcome.status for outcome in report.outcomes)
    lines = [
        f"{len(report.statements())} statements; evidence: "
        + ", ".join(f"{n} {status}" for status, n in counts.items()),
        "",
        "| statement | where | verdict | evidence |",
        "|---|---|---|---|",
    ]
    for outcomes in report.statements().values():
        statement = outcomes[0].statement
        states = Counter(outcome.status for outcome in outcomes)
        shown = ", ".join(f"{n} {status}" for status, n in states.items())
        lines.append(f"| {statement.id} {statement.title} | {statement.number} | {statement.verdict.value} | {shown} |")
    for outcomes in report.statements().values():
        statement = outcomes[0].statement
        lines += ["", f"## {statement.id}: {statement.title}", "", f"> {statement.claim}", ""]
        for label in ("correction", "counterexample", "note"):
            if getattr(statement, label):
                lines += [f"{label.capitalize()}: {getattr(statement, label)}", ""]
        lines += [
            f"- {o.status}, {o.evidence.kind.value} ({o.evidence.covers}): {o.evidence.name}: {o.finding}"
            for o in outcomes
        ]
    return "\n".join(lines) + "\n"


def changes(report: Report, baseline: dict[str, Any]) -> list[str]:
    """Return what a report has lost against an earlier one, as `Report.as_data` gave it.

    Evidence that was confirmed and is no longer, evidence and statements that are gone, and verdicts that differ, each
    in a line; nothing if all that held still does.
    """
    now = {row["id"]: row for row in report.as_data()["statements"]}
    lost = []
    for before in baseline["statements"]:
        row = now.get(before["id"])
        if row is None:
            lost.append(f"{before['id']} is gone")
            continue
        if row["verdict"] != before["verdict"]:
            lost.append(f"{before['id']} was {before['verdict']}, and is {row['verdict']}")
        states = {piece["name"]: piece["status"] for piece in row["evidence"]}
        for piece in before["evidence"]:
            state = states.get(piece["name"], "gone")
            if piece["status"] == "confirmed" and state != "confirmed":
                lost.append(f"{before['id']} {piece['name']} was confirmed, and is {state}")
    return lost
