"""`python -m tests`: it has a test of every module, and how many of each test's parameter sets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import spread

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))


def marks_of(thing: object) -> set[str]:
    marks = getattr(thing, "pytestmark", [])
    return {mark.name for mark in (marks if isinstance(marks, list) else [marks])}


def marks_of_tests(module: ModuleType) -> Iterator[set[str]]:
    """The marks of each test of a module, those of its class and of the module included."""
    for name, member in vars(module).items():
        if name.startswith("test_"):
            yield marks_of(module) | marks_of(member)
        elif name.startswith("Test"):
            tests = [test for key, test in vars(member).items() if key.startswith("test_")]
            yield from (marks_of(module) | marks_of(member) | marks_of(test) for test in tests)


def runs_something(name: str) -> bool:
    try:
        module = importlib.import_module(f"tests.{name}")
    except pytest.skip.Exception:  # its library is not installed
        return True
    return any(
        not marks & {"command", "slow"} and ("jax" not in marks or "quick" in marks) for marks in marks_of_tests(module)
    )


def test_some_test_of_every_module_takes_part() -> None:
    assert [name for name in MODULES if not runs_something(name)] == []


def test_parameter_sets_are_spread() -> None:
    class Item:
        def __init__(self, nodeid: str, skipped: bool = False) -> None:
            self.nodeid, self.skipped = nodeid, skipped

        def get_closest_marker(self, name: str) -> object:
            return name if self.skipped else None

    alone, never = Item("m.py::alone"), Item("m.py::never", skipped=True)
    many = [Item(f"m.py::many[{i}]") for i in range(101)]
    kept = spread([alone, never, *many], 6)
    assert alone in kept
    assert never not in kept
    assert [i for i, one in enumerate(many) if one in kept] == [0, 20, 40, 60, 80, 100]
