"""Does the evidence bite? ``python -m proofs_checks.mutate [--statement ID ...] [--limit N]``.

Shipped functions that the statements name are changed, one place at a time, and the evidence of the statements is run
against each mutant in a process of its own. A mutant that no evidence contradicts has survived: the evidence leaves
that place of the code unpinned, unless the mutant is equivalent, which `equivalent.toml` says of those known to be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convla._dispatch import KERNELS
from proofs_checks.draws import without_shrinking
from proofs_checks.ledger import SOURCES, select
from proofs_checks.mutation import Mutant, applied, mutants
from proofs_checks.runner import run_evidence
from proofs_checks.statement import Evidence, Statement

__all__ = ["RECORD", "Trial", "equivalent", "main", "try_mutant"]

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

RECORD = Path(__file__).parent / "mutants.json"
"""How many mutants of the whole ledger were noticed, equivalent, or survived, when they were last tried."""

CROWDED = 30
"""How many times a process may take its time by the clock, on a machine that does other things as well."""

PATIENCE = 60.0
"""Seconds that evidence may take besides ten times what it takes without a mutation: a kernel is compiled anew, and a
mutant may not end."""

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
        The evidence that noticed it and what it said, or why it is equivalent.
    seconds : float
    """

    mutant: Mutant
    statements: tuple[str, ...]
    result: str
    by: str
    seconds: float


def equivalent() -> dict[str, str]:
    """Return why mutants are known to compute the same, by what identifies them, or a function all of whose do."""
    path = Path(__file__).parent / "equivalent.toml"
    table: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))
    return table


def try_mutant(mutant: Mutant, statements: Sequence[Statement], *, examples: int, limit: float) -> Trial:
    """Run the evidence of the statements against a mutant, in a process of its own.

    Parameters
    ----------
    mutant : Mutant
    statements : sequence of Statement
    examples : int
        Random inputs of each property.
    limit : float
        Seconds of the processor's time after which the process is ended, and the mutant taken for noticed. Where the
        system does not count these, and where the machine is busy, `CROWDED` times as many by the clock.
    """
    ids = tuple(statement.id for statement in statements)
    start = time.perf_counter()
    known = equivalent()
    reason = known.get(mutant.where, known.get(f"{mutant.module}.{mutant.name}"))
    if reason is not None:
        return Trial(mutant, ids, "equivalent", reason, 0.0)
    by = _in_a_process(_notice, (mutant, ids, examples, SECONDS), limit)
    if by is None:
        by = f"it does not end within {CROWDED * limit:.0f} s"
    return Trial(mutant, ids, "noticed" if by else "survived", by, time.perf_counter() - start)


def _in_a_process(function: Any, arguments: tuple[Any, ...], limit: float) -> Any:
    """Return what a function returns in a process of its own; its error as text, None if it does not end."""
    # Forks of a server that has imported the ledger start at once; forks of this process would lose the threads that
    # its libraries run.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
    if "forkserver" in METHODS:
        context.set_forkserver_preload(PRELOADED)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sending, function, arguments, math.ceil(limit)))
    process.start()
    sending.close()
    try:
        return receiving.recv() if receiving.poll(CROWDED * limit) else None
    except EOFError:
        return f"the process ended, or took more than {limit:.0f} s"
    finally:
        process.kill()
        process.join()
        receiving.close()


def _report(sending: Any, function: Any, arguments: tuple[Any, ...], limit: int) -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    sys.stderr = sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        result = function(*arguments)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    sending.send(result)
    sending.close()


def _notice(mutant: Mutant, ids: tuple[str, ...], examples: int, seconds: dict[str, float]) -> str:
    """Return which evidence contradicts the mutant, and how; nothing if none does."""
    SECONDS.update(seconds)
    pieces = _pieces(select(ids))
    with applied(mutant), without_shrinking():
        for statement, piece in pieces:
            try:
                outcome = run_evidence(statement, piece, examples)
            except Exception as error:
                return f"{statement.id} {piece.name}: {type(error).__name__}: {error}"
            if outcome.status == "contradicted":
                return f"{statement.id} {piece.name}: {outcome.finding}"
    return ""


def _pieces(statements: Sequence[Statement]) -> list[tuple[Statement, Evidence]]:
    found = {id(piece): (statement, piece) for statement in statements for piece in statement.evidence}
    return sorted(found.values(), key=lambda pair: SECONDS.get(pair[1].name, 0.0))


SECONDS: dict[str, float] = {}
"""How long each piece of evidence takes, so that the quick ones are asked first."""


def _time(ids: tuple[str, ...], examples: int) -> dict[str, float]:
    seconds = {}
    for statement, piece in _pieces(select(ids)):
        outcome = run_evidence(statement, piece, examples)
        if outcome.status == "contradicted":
            raise RuntimeError(f"{statement.id} {piece.name} is contradicted as it is: {outcome.finding}")
        seconds[piece.name] = outcome.seconds
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Try mutants, print the survivors, and return 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m proofs_checks.mutate", description=__doc__)
    parser.add_argument("--statement", action="append", metavar="ID", help="a statement or a source; by default all")
    parser.add_argument("--limit", type=int, help="try at most so many mutants, drawn from all")
    parser.add_argument("--each", type=int, help="of every statement, go on until so many mutants were noticed")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--max-examples", type=int, default=25, help="random inputs of each property")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--verbose", action="store_true", help="print every trial as it ends")
    parser.add_argument("--json", type=Path, help="also write every trial there")
    parser.add_argument("--record", action="store_true", help="keep the counts, which the ledger's page states")
    options = parser.parse_args(arguments)
    statements = select(options.statement or [])
    ids = tuple(statement.id for statement in statements)
    # To find one mutant that is noticed takes less than to time all evidence first.
    timed = {} if options.each else _in_a_process(_time, (ids, options.max_examples), 3600.0)
    if not isinstance(timed, dict):
        print(timed, file=sys.stderr)
        return 2
    SECONDS.update(timed)
    random.seed(options.seed)
    trials = _some_of_each(statements, options) if options.each else _sample(statements, options)
    if options.json:
        options.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1), encoding="utf-8")
    survived = [trial for trial in trials if trial.result == "survived"]
    for trial in survived:
        print(f"survived: {trial.mutant.where} (line {trial.mutant.line}; {', '.join(trial.statements)})")
    counts = {name: sum(trial.result == name for trial in trials) for name in ("noticed", "equivalent", "survived")}
    print(f"{len(trials)} mutants: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if options.record:
        RECORD.write_text(json.dumps(counts) + "\n", encoding="utf-8")
    return 1 if survived else 0


def _limit(statements: Sequence[Statement]) -> float:
    if not SECONDS:
        return 300.0
    return PATIENCE + 10 * sum(SECONDS.get(piece.name, 0.0) for _, piece in _pieces(statements))


def _sample(statements: Sequence[Statement], options: argparse.Namespace) -> list[Trial]:
    """Try mutants of all that the statements' functions have, each against all who name the function."""
    naming: dict[str, list[Statement]] = {}
    for statement in statements:
        for function in statement.functions:
            naming.setdefault(function, []).append(statement)
    drawn = _spread(list(naming))

    def run(mutant: Mutant) -> Trial:
        own = naming[mutant.function]
        trial = try_mutant(mutant, own, examples=options.max_examples, limit=_limit(own))
        if options.verbose:
            print(f"{trial.result:10} {mutant.where} | {trial.by[:100]}", flush=True)
        return trial

    with ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(run, drawn[: options.limit]))


def _spread(functions: Sequence[str]) -> list[Mutant]:
    """Return the functions' mutants in an order that takes one of each in turn, so that few stand for all."""
    decks = [mutants(function) for function in functions]
    for deck in decks:
        random.shuffle(deck)
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*decks))
    return list({mutant.where: mutant for mutant in rounds if mutant is not None}.values())


def _some_of_each(statements: Sequence[Statement], options: argparse.Namespace) -> list[Trial]:
    """Of every statement, draw mutants until it has noticed so many by its own evidence; what it misses is not told."""
    trials = []
    for statement in statements:
        if not statement.functions:
            continue
        drawn = [mutant for function in statement.functions for mutant in mutants(function)]
        random.shuffle(drawn)
        noticed = 0
        for mutant in drawn:
            trial = try_mutant(mutant, [statement], examples=options.max_examples, limit=_limit([statement]))
            noticed += trial.result == "noticed"
            if noticed >= options.each:
                break
        if noticed < options.each:
            trials.append(Trial(drawn[-1], (statement.id,), "survived", "", 0.0))
        else:
            trials.append(trial)
    return trials


if __name__ == "__main__":
    sys.exit(main())
