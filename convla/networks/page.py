"""A report as one page of HTML that needs nothing else: a table to sort, spectra, and the network's bound by steps."""

from __future__ import annotations

import math

from convla.networks.certificate import Certificate
from convla.networks.drawings import histogram, waterfall
from convla.networks.report import ENDS, Inspection, LayerReport
from convla.networks.shell import Cell, bullets, number_cell, page_of, shown, table_of, text_of

__all__ = ["to_page"]

_SIGNS = {"nearest": "", "above": "≤ ", "below": "≥ "}


def to_page(report: Inspection) -> str:
    """Return a report as a page of HTML, with its styles and its script inside: it opens without a network.

    Parameters
    ----------
    report : Inspection

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from convla import inspect
    >>> from convla.networks.page import to_page
    >>> page = to_page(inspect({"conv": np.ones((2, 1, 3))}, image=(8,)))
    >>> page.startswith("<!DOCTYPE html>"), "http" in page
    (True, False)
    """
    source = [f"{text_of(name)}: <code>{text_of(value)}</code>" for name, value in report.source.items()]
    return page_of(
        f"Layers of {report.model_name}",
        [
            "" if report.complete else "<p>Interrupted: these are the rows that were done.</p>",
            _table(report),
            bullets(_notes(report), "Notes"),
            "" if report.certificate is None else _bound(report.certificate),
            bullets(source, "Source"),
        ],
    )


def _table(report: Inspection) -> str:
    words = ("layer", "kind", "shape", "image", "stride", "padding")
    spectra = any(layer.density is not None for layer in report.layers)
    heads = [(word, "word") for word in words]
    heads += [("spectrum", "word")] * spectra
    heads += [(column.heading, "") for column in report.columns]
    heads.append(("status", "word"))
    rows = []
    for layer, record in zip(report.layers, report.records(), strict=True):
        cells = []
        for word in words:
            assumed = word in layer.assumed and record[word] != ""
            mark = ' <span class="assumed" title="assumed: the file does not say">*</span>' if assumed else ""
            cells.append(Cell(f"{text_of(record[word])}{mark}"))
        if spectra:
            cells.append(Cell("") if layer.density is None else Cell(histogram(layer.density)))
        cells += [_number(layer, column.name) for column in report.columns]
        cells.append(Cell(text_of(layer.summary)))
        rows.append(cells)
    return table_of(heads, rows)


def _number(layer: LayerReport, name: str) -> Cell:
    """Return the cell of a quantity, with a sign where it is only a bound."""
    side = layer.side(name)
    return number_cell(layer.quantities[name], "" if name in ENDS else _SIGNS[side], side)


def _notes(report: Inspection) -> list[str]:
    lines = [f"{text_of(layer.name)}: {text_of(note)}" for layer in report.layers for note in layer.notes]
    lines += [f"no row: {text_of(name)}: {text_of(why)}" for name, why in report.others.items()]
    if any(layer.assumed for layer in report.layers):
        lines.insert(0, '<span class="assumed">*</span> assumed: weights alone do not say it')
    return lines


def _bound(certificate: Certificate) -> str:
    if math.isinf(certificate.upper):
        reasons = "".join(f"<li>{text_of(reason)}</li>" for reason in certificate.reasons)
        return f"<h2>The network</h2><p>It has no proved Lipschitz bound:</p><ul>{reasons}</ul>"
    lower = f", and at least {shown(certificate.lower, 'below')}, seen at data" if certificate.lower else ""
    words = (
        f"Its Lipschitz constant is at most {shown(certificate.upper, 'above')} (proved){lower}. Each line is a step "
        "that changes the bound: from that of what it takes to its own, on a logarithmic scale. A layer's share, shown "
        "where one points, is how many times smaller the bound would be if it stretched nothing."
    )
    return f"<h2>The network</h2><p>{words}</p>{waterfall(certificate.steps)}"
