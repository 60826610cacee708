"""`python -m tests`: which modules it leaves out, and how many of each test's parameter sets."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import COMMANDS, spread

MODULES = {path.stem for path in Path(__file__).parent.glob("test_*.py")}


def test_every_command_is_a_module() -> None:
    assert MODULES >= COMMANDS


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
