"""The printed numbers of CSM Tables 1-6 and 9-11, and how precisely each was printed."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

__all__ = [
    "PUBLISHED_REPETITIONS",
    "QUANTITIES",
    "PublishedCell",
    "published_cells",
    "published_flags",
    "published_tables",
]

QUANTITIES = {
    "corr_mean": "A mean",
    "corr_std": "A std",
    "B_reduction_frequency_pct": "B %",
    "C_decrease_mean_pct": "C mean %",
    "C_decrease_std_pct": "C std %",
    "D_increase_mean_pct": "D mean %",
    "D_increase_std_pct": "D std %",
}
"""The columns of the tables, by the names of the data file, with the short names of the source."""

PUBLISHED_REPETITIONS = 1000


@dataclass(frozen=True)
class PublishedCell:
    """One printed number.

    Attributes
    ----------
    table : int
    n : int
        The kernels' length N.
    optimizer : str
    quantity : str
        A key of `QUANTITIES`.
    value : float
    half_unit : float
        Half a unit of the last printed digit: the printed value is the true one rounded by at most this.
    std : float
        The standard deviation printed in the same column; NaN for B, which has none.
    count : int
        How many of the 1000 repetitions the value comes from: all, those that decreased (C), or the others (D).
    flag : str
        What is doubtful about the cell, or "".
    """

    table: int
    n: int
    optimizer: str
    quantity: str
    value: float
    half_unit: float
    std: float
    count: int
    flag: str


@functools.cache
def published_tables() -> dict[str, Any]:
    """Return the data file as it is: the tables' rows, the hyperparameters and the flags."""
    text = resources.files("convla.experiments.csm").joinpath("tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def published_flags(table: int) -> list[dict[str, Any]]:
    """Return the flags of one table: doubtful readings and captions that contradict the cells."""
    return [flag for flag in published_tables()["flags"] if flag["table"] == f"table{table}"]


@functools.cache
def published_cells(table: int) -> tuple[PublishedCell, ...]:
    """Return the printed cells of one table, row by row.

    Examples
    --------
    >>> cell = published_cells(1)[0]
    >>> cell.n, cell.optimizer, cell.quantity, cell.value, cell.half_unit
    (3, 'Adam', 'corr_mean', 0.67, 0.005)
    """
    flags = {
        (flag["N"], flag["optimizer"], quantity): flag["note"]
        for flag in published_flags(table)
        if flag["N"] is not None
        for quantity in flag["cells"]
    }
    return tuple(
        PublishedCell(
            table,
            row["N"],
            row["optimizer"],
            quantity,
            float(row[quantity]),
            _half_unit(quantity, row[quantity]),
            float(row.get(quantity.replace("_mean", "_std"), math.nan)) if quantity[0] != "B" else math.nan,
            _count(quantity, row),
            flags.get((row["N"], row["optimizer"], quantity), ""),
        )
        for row in published_tables()[f"table{table}"]["rows"]
        for quantity in QUANTITIES
        if quantity in row
    )


def _count(quantity: str, row: dict[str, Any]) -> int:
    if quantity[0] not in "CD":
        return PUBLISHED_REPETITIONS
    decreased = round(float(row["B_reduction_frequency_pct"]) / 100.0 * PUBLISHED_REPETITIONS)
    return decreased if quantity[0] == "C" else PUBLISHED_REPETITIONS - decreased


def _half_unit(quantity: str, value: float) -> float:
    if quantity == "B_reduction_frequency_pct":
        return 0.0  # a count out of 1000, printed exactly
    if quantity.startswith("D"):
        return 0.0  # printed with four digits of a number whose sampling error is of its own size
    if isinstance(value, int):
        return 0.5
    if value == 0.0:
        return 0.05  # the one such cell is flagged as printed with one decimal
    # JSON drops trailing zeros: the source prints at least two decimals in these columns.
    return 0.5 * 10.0 ** -max(2, len(str(value).partition(".")[2]))
