"""Rows of layers on standard output as they are done: a table where it fits, else the values on their own lines."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence

from convla.networks.certificate import Certificate
from convla.networks.digits import digits_of
from convla.networks.measures import Column
from convla.networks.report import ENDS, Inspection, LayerReport, pads, sizes
from convla.networks.rows import Task
from convla.networks.weights import printable

__all__ = ["Screen", "words_of"]

NUMBER = len("<=-1.234e-05")
"""The longest number of four digits, but for those beyond 1e100."""

_SIGNS = {"nearest": "", "above": "<=", "below": ">="}

_ALIKE = 3
"""How many are named of what is no row for one reason; the JSON has all."""

_SHARES = 3
"""How many of the layers are named that make a network's bound large."""


class Screen:
    """What a terminal or a pipe is shown of a report.

    No number is ever cut: what does not fit the width of a terminal goes to the next line, and a pipe has no width.

    Parameters
    ----------
    title : str
    words : sequence of tuple of str
        Name, kernel, image, stride and padding of the rows that will come, as `words_of` returns them: they set the
        widths.
    columns : sequence of Column
    wide : bool
        Whether to print a table whatever the width of the terminal.
    """

    def __init__(self, title: str, words: Sequence[tuple[str, ...]], columns: Sequence[Column], *, wide: bool) -> None:
        self.title, self.columns = printable(title), columns
        self.limit = None if wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns
        self.headings = [*(column.heading for column in columns), "ms"]
        self.widths = [max(len(heading), NUMBER) for heading in self.headings]
        self.heading = ("layer", "kernel", "image", "stride", "padding")
        self.left = [max(map(len, column)) for column in zip(self.heading, *words, strict=True)]
        whole = sum(self.left) + 2 * len(self.left) + sum(self.widths) + 2 * len(self.widths)
        self.table = self.limit is None or whole <= self.limit
        self.headed = len(words) > 0
        self.begun = self.gone = False

    def _print(self, *lines: str) -> None:
        """Print, as long as somebody reads: the files are wanted all the same, and the end of the program tells why."""
        if self.gone:
            return
        try:
            if not self.begun:
                self.begun = True
                print(self.title)
                if self.table and self.headed:
                    self._print(self._row(self.heading, self.headings))
            print("\n".join(lines), flush=True)
        except OSError:
            self.gone = True

    def _row(self, words: Sequence[str], cells: Sequence[str]) -> str:
        texts = [word.ljust(width) for word, width in zip(words, self.left, strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(cells, self.widths, strict=True)]
        return "  ".join([*texts, *numbers])

    def show(self, layer: LayerReport) -> None:
        """Show a layer."""
        words = words_of(layer)
        cells = [*(_shown(layer, column.name) for column in self.columns), f"{1e3 * layer.seconds:.1f}"]
        if self.table:
            self._print(self._row(words, cells))
            return
        pairs = [f"{name} {word}" for name, word in zip(self.heading[2:], words[2:], strict=True) if word]
        pairs += [f"{name} {cell}" for name, cell in zip(self.headings, cells, strict=True)]
        self._print(f"{words[0]}  {words[1]}", *self._folded(pairs, "  "))

    def _folded(self, parts: Sequence[str], gap: str) -> list[str]:
        """Put parts behind each other on lines that fit the terminal; no part is broken."""
        lines = [""]
        for part in parts:
            if lines[-1] and self.limit is not None and len(lines[-1]) + len(gap) + len(part) > self.limit:
                lines.append("")
            lines[-1] += gap + part
        return lines

    def show_notes(self, report: Inspection) -> None:
        """Show what is to be said of the layers, of the network as a whole, and of what is no row."""
        lines = [] if report.layers else [f"{self.title}: no layer"]
        lines += [f"  {printable(layer.name)}: {printable(note)}" for layer in report.layers for note in layer.notes]
        if any(set(layer.assumed) & {"image", "stride", "padding"} for layer in report.layers):
            lines.append("  * assumed: weights alone do not say it; --layers and the options for all layers can")
        lines += _no_rows(report.others)
        if report.certificate is not None:
            lines += _bound(report.certificate)
        if lines:
            self._print(*lines)


def words_of(row: Task | LayerReport) -> tuple[str, ...]:
    """Return name, kernel, image, stride and padding of a row, before or after it is made.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.cli.rows import words_of
    >>> from convla import inspect
    >>> words_of(inspect({"conv": np.ones((2, 1, 3))}, image=(8,))["conv"])
    ('conv', '2x1x3', '8*', '1*', '1*')
    """
    name, shape = printable(row.name), sizes(row.shape)
    if isinstance(row, LayerReport):
        return (name, shape, *_geometry(row))
    layer = row.layers[0]
    cells = (sizes(layer.image), sizes(layer.geometry.stride), pads(layer.geometry.padding))
    return (name, shape, *(f"{cell}*" for cell in cells))


def _geometry(layer: LayerReport) -> tuple[str, str, str]:
    """Return the image, stride and padding of a row, those with a star that are assumed."""
    if not layer.geometry:
        return "", "", ""
    cells = sizes(layer.geometry["image"]), sizes(layer.geometry["stride"]), pads(layer.geometry["padding"])
    starred = [
        f"{cell}*" if name in layer.assumed else cell
        for name, cell in zip(("image", "stride", "padding"), cells, strict=True)
    ]
    return starred[0], starred[1], starred[2]


def _shown(layer: LayerReport, name: str) -> str:
    """Return a value as it is shown: with the sign of a bound where it is only that."""
    value = layer.quantities[name]
    if value is None:
        return "-"
    side = layer.side(name)
    return ("" if name in ENDS else _SIGNS[side]) + digits_of(value, 4, side)


def _no_rows(others: Mapping[str, str]) -> list[str]:
    """Return a line for each reason why something is no row: all the biases of a network have one."""
    names: dict[str, list[str]] = {}
    for name, why in others.items():
        names.setdefault(printable(why), []).append(printable(name))
    lines = []
    for why, alike in names.items():
        more = f", ... {len(alike)} in all" if len(alike) > _ALIKE else ""
        lines.append(f"  no row: {', '.join(alike[:_ALIKE])}{more}: {why}")
    return lines


def _bound(certificate: Certificate) -> list[str]:
    """Return what is said of a network as a whole, line by line."""
    if math.isinf(certificate.upper):
        return ["the network has no proved Lipschitz bound:", *(f"  {printable(one)}" for one in certificate.reasons)]
    lines = [f"the network: Lipschitz constant at most {digits_of(certificate.upper, 4, 'above')} (proved)"]
    if certificate.lower:
        lines.append(f"  and at least {digits_of(certificate.lower, 4, 'below')}, seen in a Jacobian at the data")
    if certificate.largest_shares:
        named = [f"{printable(step.name)} (x {step.share:.3g})" for step in certificate.largest_shares[:_SHARES]]
        lines.append(f"  what makes the bound large: {', '.join(named)}")
    return lines
