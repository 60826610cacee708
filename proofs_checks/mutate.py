"""Does the evidence bite? ``python -m proofs_checks.mutate [--statement ID ...] [--limit N]``.

Shipped functions that the statements name are changed, one place at a time, and the evidence of the statements is run
against each mutant in a process of its own. A mutant that no evidence contradicts has survived: the evidence leaves
that place of the code unpinned, unless the mutant is equivalent, which `equivalent.toml` says of those known to be.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convla._dispatch import KERNELS
from proofs_checks.draws import without_shrinking
from proofs_checks.ledger import SOURCES, ledger, select
from proofs_checks.mutation import Mutant, applied, mutants
from proofs_checks.record import RECORD, Record
from proofs_checks.runner import run_evidence
from proofs_checks.statement import Evidence, Statement

__all__ = ["Trial", "equivalent", "main", "try_mutant"]

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PATIENCE = 40.0
"""Seconds of the processor's time that a piece of evidence may take besides ten times what it takes without a mutation:
kernels are compiled anew, and a mutant may not end."""

UNKNOWN = 30.0
"""Seconds that evidence is taken to take where it has not been timed."""

CROWDED = 10
"""How many times as long it may take by the clock, on a machine that does other things as well."""

METHODS = multiprocessing.get_all_start_methods()
PRELOADED = [f"proofs_checks.{source.lower()}" for source in SOURCES]
PRELOADED += sorted({place.partition(":")[0] for (_, engine), place in KERNELS.items() if engine == "numba"})
PRELOADED += ["convla.experiments.training.networks", "convla.frameworks.torch"]
"""What the server of the forks has imported, as far as it is installed: a fork then starts at once."""


@dataclass(frozen=True)
class Trial:
    """What became of a mutant.

    Attributes
    ----------
    mutant : Mutant
    statements : tuple of str
        The ids whose evidence was run.
    result : str
        "noticed", "equivalent" or "survived".
    by : str
        The statement and the evidence that noticed it.
    finding : str
        What the evidence said, or why the mutant is equivalent.
    seconds : float
    """

    mutant: Mutant
    statements: tuple[str, ...]
    result: str
    by: str
    finding: str
    seconds: float


def equivalent() -> dict[str, str]:
    """Return why mutants are known to compute the same, by what identifies them, or a function all of whose do."""
    path = Path(__file__).parent / "equivalent.toml"
    table: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))
    return table


def _reason(mutant: Mutant) -> str | None:
    known = equivalent()
    return known.get(mutant.where, known.get(f"{mutant.module}.{mutant.name}"))


def try_mutant(mutant: Mutant, statements: Sequence[Statement], *, examples: int, record: Record) -> Trial:
    """Run the evidence of the statements against a mutant, in a process of its own.

    The quickest is asked first, and the first that notices ends it.

    Parameters
    ----------
    mutant : Mutant
    statements : sequence of Statement
    examples : int
        Random inputs of each property.
    record : Record
        Knows how long the evidence takes. A process that takes longer than `PATIENCE` and ten times that with one piece
        is ended, and the mutant taken for noticed by it. It is the processor's time that counts, where the system
        tells it.
    """
    ids = tuple(statement.id for statement in statements)
    start = time.perf_counter()
    reason = _reason(mutant)
    if reason is not None:
        return Trial(mutant, ids, "equivalent", "", reason, 0.0)
    pieces = sorted(_pieces(statements), key=lambda pair: record.time_of(pair[1]) or 0.0)
    plan = [(statement.id, piece.name, _allowed(record, piece)) for statement, piece in pieces]
    ended, asked = _in_a_process(_notice, (mutant, plan, examples))
    seconds = time.perf_counter() - start
    if ended is None:
        allowed = next(allowed for name, check, allowed in plan if (name, check) == asked)
        ended = f"it does not end within {allowed:.0f} s"
    if not ended:
        return Trial(mutant, ids, "survived", "", "", seconds)
    return Trial(mutant, ids, "noticed", " ".join(asked), ended, seconds)


def _pieces(statements: Sequence[Statement]) -> list[tuple[Statement, Evidence]]:
    return list({id(piece): (statement, piece) for statement in statements for piece in statement.evidence}.values())


def _allowed(record: Record, piece: Evidence) -> float:
    seconds = record.time_of(piece)
    return PATIENCE + 10.0 * (UNKNOWN if seconds is None else seconds)


Asked = tuple[str, str]
"""A statement and a piece of its evidence, by their names."""
Ask = Callable[[Asked, float], None]
"""What a process tells before it asks evidence: which, and for how long at most."""


def _in_a_process(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Asked]:
    """Return what a function returns in a process of its own, and what it asked last; None if it does not end."""
    # Forks of a server that has imported the ledger start at once; forks of this process would lose the threads that
    # its libraries run.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
    if "forkserver" in METHODS:
        context.set_forkserver_preload(PRELOADED)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sending, function, arguments))
    process.start()
    sending.close()
    asked, allowed = ("", ""), PATIENCE
    try:
        while receiving.poll(CROWDED * allowed):
            kind, *told = receiving.recv()
            if kind == "failed":
                raise RuntimeError(f"{' '.join(asked)}: {told[0]}")
            if kind == "ended":
                return told[0], asked
            asked, allowed = told
        return None, asked
    except EOFError:  # it was ended for the time that it took, or crashed
        return None, asked
    finally:
        process.kill()
        process.join()
        receiving.close()


def _report(sending: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sys.stderr = sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def ask(asked: Asked, allowed: float) -> None:
        if resource is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + allowed) + 1, hard))
        sending.send(("asked", asked, allowed))

    try:
        told = "ended", function(ask, *arguments)
    except Exception as error:  # of the tool, or of evidence that cannot run
        told = "failed", f"{type(error).__name__}: {error}"
    sending.send(told)
    sending.close()


def _notice(ask: Ask, mutant: Mutant, plan: Sequence[tuple[str, str, float]], examples: int) -> str:
    """Return how evidence contradicts the mutant, asked in this order; nothing if none does."""
    found = {(statement.id, piece.name): (statement, piece) for statement in select([]) for piece in statement.evidence}
    with applied(mutant), without_shrinking():
        for name, check, allowed in plan:
            ask((name, check), allowed)
            try:
                outcome = run_evidence(*found[name, check], examples)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            if outcome.status == "contradicted":
                return outcome.finding
    return ""


def _time(ask: Ask, pieces: Sequence[Asked], examples: int) -> list[float] | str:
    """Return the processor's time that evidence takes, or what is contradicted without a mutation."""
    seconds = []
    for name, check in pieces:
        (statement,) = select([name])
        (piece,) = (piece for piece in statement.evidence if piece.name == check)
        ask((name, check), 3600.0)
        start = time.process_time()
        outcome = run_evidence(statement, piece, examples)
        if outcome.status == "contradicted":
            return f"{name} {check} is contradicted as it is: {outcome.finding}"
        seconds.append(time.process_time() - start)
    return seconds


class Course:
    """A run: what to try, with what is known already.

    Parameters
    ----------
    record : Record
    examples : int
        Random inputs of each property.
    seed : int
        Of the draw.
    minutes : float
        After so many nothing new is begun.
    verbose : bool
        Print every trial as it ends.
    """

    def __init__(self, record: Record, *, examples: int, seed: int, minutes: float, verbose: bool) -> None:
        self.record, self.examples, self.seed, self.verbose = record, examples, seed, verbose
        self.end = time.perf_counter() + 60.0 * minutes
        self._lock = threading.Lock()
        self._confirmed: set[str] = set()

    def sample(self, statements: Sequence[Statement], limit: int | None, jobs: int) -> Iterator[Trial]:
        """Try mutants of all that the statements' functions have, each against all statements that it is wrong for."""
        naming: dict[str, list[Statement]] = {}
        for statement in statements:
            for function in statement.functions:
                naming.setdefault(function, []).append(statement)
        decks = {function: self._shuffled(mutants(function)) for function in naming}
        concerned: dict[str, dict[str, Statement]] = {}
        for function, deck in decks.items():
            for mutant in deck:
                concerned.setdefault(mutant.where, {}).update({s.id: s for s in naming[function]})
        # One of each function in turn, so that few stand for all.
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*decks.values()))
        drawn = list({mutant.where: mutant for mutant in rounds if mutant is not None}.values())[:limit]
        if not set(ledger()) - set(statements):
            self.record.keep_only(concerned)
        for mutant in itertools.chain.from_iterable(decks.values()):  # named since they were tried
            kept = self.record.trials.get(mutant.where)
            if kept is not None and kept.result == "survived" and _reason(mutant) is not None:
                self.record.add(mutant, "equivalent", "", [piece for _, piece in _pieces(naming[mutant.function])])
        with ThreadPoolExecutor(jobs) as pool:
            yield from filter(None, pool.map(lambda m: self._try(m, list(concerned[m.where].values())), drawn))

    def some_of_each(self, statements: Sequence[Statement], wanted: int) -> Iterator[Trial]:
        """Of every statement, draw mutants until it has noticed so many by its own evidence; none is told that it misses."""
        for statement in statements:
            if not statement.functions:
                continue
            noticed = 0
            for mutant in self._shuffled([m for function in statement.functions for m in mutants(function)]):
                trial = try_mutant(mutant, [statement], examples=self.examples, record=self.record)
                noticed += trial.result == "noticed"
                if noticed >= wanted:
                    break
            yield trial if noticed >= wanted else Trial(mutant, (statement.id,), "survived", "", "", 0.0)

    def _shuffled(self, deck: list[Mutant]) -> list[Mutant]:
        """Return mutants in an order of the seed that stays the same for those that are left when code changes."""
        return sorted(deck, key=lambda mutant: hashlib.sha256(f"{self.seed} {mutant.where}".encode()).digest())

    def _try(self, mutant: Mutant, statements: list[Statement]) -> Trial | None:
        pieces = [piece for _, piece in _pieces(statements)]
        kept = self.record.result_of(mutant, pieces)
        if kept is not None and (kept.result == "equivalent") == (_reason(mutant) is not None):
            return Trial(mutant, tuple(s.id for s in statements), kept.result, kept.by, "", 0.0)
        if time.perf_counter() > self.end:
            return None
        with self._lock:
            self._time(statements)
        trial = try_mutant(mutant, statements, examples=self.examples, record=self.record)
        with self._lock:
            self._confirm(trial.by)
            self.record.add(mutant, trial.result, trial.by.rpartition(" ")[2], pieces)
            if self.verbose:
                print(
                    f"{trial.result:10} {mutant.where} | {trial.by}: {trial.finding[:100]} ({trial.seconds:.0f} s)",
                    flush=True,
                )
        return trial

    def _time(self, statements: list[Statement]) -> None:
        """Learn how long evidence takes that is new, and that it confirms what is right."""
        new = [(s.id, piece) for s, piece in _pieces(statements) if self.record.time_of(piece) is None]
        seconds = self._unmutated([(name, piece.name) for name, piece in new])
        for (_, piece), taken in zip(new, seconds, strict=True):
            self.record.add_time(piece, taken)

    def _confirm(self, by: str) -> None:
        """Make sure, once a run, that evidence which has noticed a mutant confirms what is right."""
        if by and by not in self._confirmed:
            name, check = by.split(" ")
            self._unmutated([(name, check)])

    def _unmutated(self, pieces: list[Asked]) -> list[float]:
        if not pieces:
            return []
        seconds, asked = _in_a_process(_time, (pieces, self.examples))
        if not isinstance(seconds, list):
            raise RuntimeError(seconds or f"{' '.join(asked)} does not end")
        self._confirmed.update(map(" ".join, pieces))
        return seconds


def main(arguments: list[str] | None = None) -> int:
    """Try mutants, print the survivors, and return 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m proofs_checks.mutate", description=__doc__)
    parser.add_argument("--statement", action="append", metavar="ID", help="a statement or a source; by default all")
    parser.add_argument("--limit", type=int, help="try at most so many mutants, drawn from all")
    parser.add_argument("--each", type=int, help="of every statement, go on until so many mutants were noticed")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--max-examples", type=int, default=25, help="random inputs of each property")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing new after so long")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--verbose", action="store_true", help="print every trial as it ends")
    parser.add_argument("--json", type=Path, help="also write every trial there")
    parser.add_argument(
        "--record",
        action="store_true",
        help="go on from what is kept in mutants.json, of which the ledger's page states the counts, and keep what is found",
    )
    options = parser.parse_args(arguments)
    statements = select(options.statement or [])
    course = Course(
        Record(RECORD if options.record else None),
        examples=options.max_examples,
        seed=options.seed,
        minutes=options.minutes,
        verbose=options.verbose,
    )
    if options.each:
        trials = list(course.some_of_each(statements, options.each))
    else:
        trials = list(course.sample(statements, options.limit, options.jobs))
    if options.json:
        options.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1), encoding="utf-8")
    survived = [trial for trial in trials if trial.result == "survived"]
    for trial in survived:
        print(f"survived: {trial.mutant.where} (line {trial.mutant.line}; {', '.join(trial.statements)})")
    counts = Counter(trial.result for trial in trials)
    print(f"{len(trials)} mutants: " + ", ".join(f"{counts[name]} {name}" for name in RESULTS))
    return 1 if survived else 0


RESULTS = ("noticed", "equivalent", "survived")


if __name__ == "__main__":
    sys.exit(main())
