"""Tables of the commands: at any width of the terminal, and in a pipe, every cell is there, whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from convla.cli.output import show_table

HEADINGS = ("N", "optimizer", "estimate", "std. error", "verdict", "where")
ROWS = [
    ["16", "Adam", "-1.23456e-05", "0.0123", "[red]order of magnitude only[/]", "Table 2, its second column"],
    ["3", "SGD", "2.5131e+05", "", "[green]reproduced[/]", "Table 4"],
]
WORDS = ("optimizer", "verdict")


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_no_cell_is_cut(width: int) -> None:
    file = io.StringIO()
    show_table(Console(file=file, width=width), HEADINGS, ROWS, words=WORDS, prose=("where",), title="Both")
    shown = file.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for cell in ("-1.23456e-05", "0.0123", "2.5131e+05", "order of magnitude only", "reproduced"):
        assert cell in " ".join(shown.split())
    for word in ["Table", "2,", "its", "second", "column"]:
        assert word in shown
    assert shown.startswith("Both")


def test_what_is_too_wide_has_its_headings_beside_it() -> None:
    file = io.StringIO()
    show_table(Console(file=file, width=50), HEADINGS[:4], [row[:4] for row in ROWS], words=WORDS)
    assert file.getvalue().splitlines()[0].split() == ["N", "optimizer", "estimate", "std.", "error"]
    file = io.StringIO()
    show_table(Console(file=file, width=30), HEADINGS[:4], [row[:4] for row in ROWS], words=WORDS)
    assert file.getvalue().splitlines() == [
        "N 16  optimizer Adam",
        "  estimate -1.23456e-05",
        "  std. error 0.0123",
        "N 3  optimizer SGD",
        "  estimate 2.5131e+05",
    ]
