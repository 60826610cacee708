"""What became of mutants that were tried, kept in a file: a run goes on where the last one stopped.

What is kept of a mutant counts as long as the code of the mutated function, and of the checks that decided, is the
same; beyond that it is tried anew. What these call is not looked at.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from proofs_checks.mutation import Mutant, definition
from proofs_checks.statement import Evidence

__all__ = ["RECORD", "Kept", "Record", "basis"]

RECORD = Path(__file__).parent / "mutants.json"
"""The record of the ledger's mutants, of which its page states the counts."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a trial.

    Attributes
    ----------
    result : str
        "noticed", "equivalent" or "survived".
    by : str
        The evidence that noticed it, by its name.
    basis : str
        Of the code that this rests on, as `basis` gives it.
    """

    result: str
    by: str
    basis: str


class Record:
    """What is known of evidence and mutants.

    Parameters
    ----------
    path : path, optional
        Read if it is there, and written whenever something is added; without one nothing is kept.

    Attributes
    ----------
    seconds : dict of str to float
        Of the processor's time that each piece of evidence took, without a mutation, by its name and basis.
    trials : dict of str to Kept
        By what identifies the mutant.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        data = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
        self.seconds: dict[str, float] = data.get("seconds", {})
        self.trials = {where: Kept(**kept) for where, kept in data.get("trials", {}).items()}

    def result_of(self, mutant: Mutant, pieces: Iterable[Evidence]) -> Kept | None:
        """Return what became of a mutant, if neither its function nor what decided has changed."""
        kept = self.trials.get(mutant.where)
        if kept is None:
            return None
        decided = [piece for piece in pieces if kept.by in ("", piece.name)]
        return kept if decided and kept.basis == basis(mutant, decided) else None

    def add(self, mutant: Mutant, result: str, by: str, pieces: Iterable[Evidence]) -> None:
        """Keep what became of a mutant, by which evidence, of all that was asked."""
        decided = [piece for piece in pieces if by in ("", piece.name)]
        self.trials[mutant.where] = Kept(result, by, basis(mutant, decided))
        self.write()

    def time_of(self, piece: Evidence) -> float | None:
        """Return how long a piece of evidence takes, if that is known."""
        return self.seconds.get(_timed(piece))

    def add_time(self, piece: Evidence, seconds: float) -> None:
        """Keep how long a piece of evidence takes; what an earlier version of it took is dropped."""
        self.seconds = {key: value for key, value in self.seconds.items() if key.split()[0] != piece.name}
        self.seconds[_timed(piece)] = round(seconds, 2)
        self.write()

    def keep_only(self, mutants: Iterable[str]) -> None:
        """Drop what is known of other mutants."""
        wanted = set(mutants)
        self.trials = {where: kept for where, kept in self.trials.items() if where in wanted}
        self.write()

    def counts(self) -> Counter[str]:
        """Return how many mutants have each result."""
        return Counter(kept.result for kept in self.trials.values())

    def write(self) -> None:
        """Write the file, so that an interruption leaves the old one or the new one."""
        if self._path is None:
            return
        data = {
            "seconds": dict(sorted(self.seconds.items())),
            "trials": {where: asdict(kept) for where, kept in sorted(self.trials.items())},
        }
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self._path)


def basis(mutant: Mutant | None, pieces: Iterable[Evidence]) -> str:
    """Return what stands for the code of a mutated function and of checks: it differs where any of that does."""
    texts = [] if mutant is None else [ast.unparse(definition(mutant))]
    texts += sorted(inspect.getsource(inspect.unwrap(piece.check)) for piece in pieces)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _timed(piece: Evidence) -> str:
    return f"{piece.name} {basis(None, [piece])}"
