"""Statements that others keep in files of their own, in the same form: a TOML file with functions beside it, or a module.

The TOML file has one table ``[[statement]]`` for each statement, whose keys are the fields of
`proofs_checks.statement.Statement`, with the verdict in words, and in it one ``[[statement.evidence]]`` for each check:
its kind in words, what it covers, and ``check = "module:function"``, found beside the file or as it is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from proofs_checks.statement import Evidence, Kind, Statement, Verdict

__all__ = ["load_claims"]

Word = TypeVar("Word", bound=Enum)

WANTED = ("id", "number", "title", "claim", "verdict", "evidence")


def load_claims(target: str) -> tuple[Statement, ...]:
    """Return the statements of a file or module.

    Parameters
    ----------
    target : str
        A file ``.toml``, or ``.py`` or a module's name with STATEMENTS, a sequence of Statement.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no TOML, or what it holds is no statement; the message names the file, the statement and the key.
    """
    path = Path(target)
    if path.suffix not in (".toml", ".py"):
        return _checked(target, _imported(target))
    if not path.is_file():
        raise OSError(f"--claims {target} cannot be read: there is no such file")
    with _beside(path):
        if path.suffix == ".py":
            return _checked(target, _executed(path))
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{target} is no TOML file: {error}") from error
        rows = data.get("statement")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{target} must have tables [[statement]], got the keys {', '.join(data) or 'none'}")
        return _checked(target, [_statement(target, row) for row in rows])


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let modules beside the file be imported; they stay as they were imported."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imported(name: str) -> Any:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--claims must be a .toml or .py file or a module, got {name!r}: {error}") from error
    return getattr(module, "STATEMENTS", None)


def _executed(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, "STATEMENTS", None)


def _checked(target: str, statements: Any) -> tuple[Statement, ...]:
    if not isinstance(statements, list | tuple) or not all(isinstance(s, Statement) for s in statements):
        raise ValueError(f"{target} must have STATEMENTS, a tuple of proofs_checks.statement.Statement")
    if not statements:
        raise ValueError(f"{target} has no statement")
    ids = [statement.id for statement in statements]
    for name in ids:
        if ids.count(name) > 1:
            raise ValueError(f"{target} has two statements with the id {name}")
    return tuple(statements)


def _statement(target: str, row: dict[str, Any]) -> Statement:
    where = f"{target}, statement {row.get('id', '?')}"
    known = {field.name for field in fields(Statement)}
    for key in row:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; the keys are {', '.join(sorted(known))}")
    for key in WANTED:
        if key not in row:
            raise ValueError(f"{where}: {key} is missing")
    pieces = row["evidence"]
    if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
        raise ValueError(f"{where}: evidence must be tables [[statement.evidence]]")
    values = dict(row) | {
        "verdict": _word(where, "verdict", row["verdict"], Verdict),
        "evidence": tuple(_evidence(where, piece) for piece in pieces),
        "functions": tuple(row.get("functions", ())),
    }
    for key in known - {"verdict", "evidence", "functions", "suggested"}:
        if not isinstance(values.get(key, ""), str):
            raise ValueError(f"{where}: {key} must be text, got {values[key]!r}")
    return Statement(**values)


def _evidence(where: str, piece: dict[str, Any]) -> Evidence:
    for key in ("kind", "covers", "check"):
        if not isinstance(piece.get(key), str):
            raise ValueError(f"{where}: evidence must have {key}, as text")
    module, colon, name = piece["check"].partition(":")
    if not colon:
        raise ValueError(f"{where}: check must be 'module:function', got {piece['check']!r}")
    try:
        check = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: check {piece['check']!r} is not there: {error}") from error
    kind = _word(where, "kind", piece["kind"], Kind)
    return check if isinstance(check, Evidence) else Evidence(kind, piece["covers"], check)


def _word(where: str, key: str, text: Any, words: type[Word]) -> Word:
    for word in words:
        if word.value == text:
            return word
    raise ValueError(f"{where}: {key} must be one of {', '.join(repr(word.value) for word in words)}, got {text!r}")
