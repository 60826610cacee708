"""Run code with one passage of a shipped function changed, everywhere the function is used."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proofs_checks.statement import Mutation

__all__ = ["applied"]

PACKAGES = ("convla", "proofs_checks")


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Replace the mutation's target by its mutant in every module that holds it, and put it back afterwards.

    Raises
    ------
    LookupError
        If the passage to change does not occur exactly once: the mutation is out of date.
    """
    module_name, _, path = mutation.target.partition(":")
    module = importlib.import_module(module_name)
    *owners, name = path.split(".")
    owner: Any = module
    for part in owners:
        owner = getattr(owner, part)
    original = inspect.getattr_static(owner, name)
    mutant = _mutant(mutation, original, name, vars(module))
    holders = [owner] if owners else [*_modules()]
    places = [(holder, key) for holder in holders for key, value in list(vars(holder).items()) if value is original]
    for holder, key in places:
        setattr(holder, key, mutant)
    try:
        yield
    finally:
        for holder, key in places:
            setattr(holder, key, original)


def _mutant(mutation: Mutation, original: Any, name: str, scope: dict[str, Any]) -> Any:
    function: Any = original.fget if isinstance(original, property) else original
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    count = source.count(mutation.old)
    if count != 1:
        raise LookupError(f"{mutation.target} must hold {mutation.old!r} exactly once, found it {count} times")
    built: dict[str, Any] = {}
    exec(compile(source.replace(mutation.old, mutation.new), f"<mutant of {mutation.target}>", "exec"), scope, built)
    return built[name]


def _modules() -> list[Any]:
    return [module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES]
