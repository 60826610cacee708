"""Fewer cases than all combinations of several axes, and no two entries of two axes that do not meet."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any


def in_turn(*axes: Collection[Any], last: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All combinations of the axes, each with one entry of `last`, which meets every entry of every axis.

    >>> in_turn("ab", "xyz", last=(0, 1))
    [('a', 'x', 0), ('a', 'y', 1), ('a', 'z', 0), ('b', 'x', 1), ('b', 'y', 0), ('b', 'z', 1)]
    """
    numbered = itertools.product(*map(enumerate, axes))
    rows = [(*(entry for _, entry in row), last[sum(place for place, _ in row) % len(last)]) for row in numbered]
    for column, axis in enumerate(axes):
        met = {(repr(row[column]), repr(row[-1])) for row in rows}
        missing = len(axis) * len(last) - len(met)
        if missing:
            raise ValueError(f"{missing} pairs of the axis {column} and the last never meet: exchange the axes")
    return rows
