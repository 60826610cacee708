"""A report as one page of HTML that needs nothing else: a table to sort, and the network's bound step by step."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from convla.networks.certificate import Certificate, Step
from convla.networks.report import Inspection
from convla.networks.weights import printable
from convla.spectra.status import Status

__all__ = ["to_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 90rem; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d7dde3; }
th { cursor: pointer; position: sticky; top: 0; background: #f4f6f8; } th[aria-sort] { background: #dde6ef; }
td.word, th.word { text-align: left; }
td.none { color: #8a939c; } .assumed { color: #9a4b00; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #1b1f24; }
ul { padding-left: 1.2rem; } code { font-size: .9em; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { background: #15181c; color: #e4e8ec; } th { background: #23282e; } th[aria-sort] { background: #31404f; }
  th, td { border-color: #333a41; } svg text { fill: #e4e8ec; } .assumed { color: #ffb066; }
}
@media print { th { position: static; } .wide { overflow: visible; } table { font-size: .6rem; } }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const table = head.closest("table"), place = [...head.parentNode.children].indexOf(head);
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => { const cell = row.children[place];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent; };
  const rows = [...table.tBodies[0].rows].sort((a, b) => { const x = value(a), y = value(b);
    if (typeof x === "number" && typeof y === "number")
      return (Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : down ? y - x : x - y);
    return (down ? -1 : 1) * String(y).localeCompare(String(x)); });
  table.tBodies[0].append(...rows);
});
"""

_LEFT, _WIDTH, _LINE = 230, 520, 22


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
    title = _text(report.source.get("file") or report.source.get("model") or "a model")
    parts = [f"<h1>Layers of {title}</h1>"]
    if not report.complete:
        parts.append("<p>Interrupted: these are the rows that were done.</p>")
    parts += [_table(report), _notes(report)]
    if report.certificate is not None:
        parts.append(_bound(report.certificate))
    source = "".join(f"<li>{_text(name)}: <code>{_text(value)}</code></li>" for name, value in report.source.items())
    parts.append(f"<h2>Source</h2><ul>{source}</ul>" if source else "")
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Layers of {title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body></html>\n"
    )


def _text(text: object) -> str:
    return html.escape(printable(str(text)))


def _table(report: Inspection) -> str:
    words = ("layer", "kind", "shape", "image", "stride", "padding")
    heads = [f'<th class="word" scope="col">{word}</th>' for word in words]
    heads += [f'<th scope="col">{_text(column.heading)}</th>' for column in report.columns]
    heads.append('<th class="word" scope="col">status</th>')
    lines = []
    for layer, record in zip(report.layers, report.records(), strict=True):
        cells = []
        for word in words:
            assumed = word in layer.assumed and record[word] != ""
            mark = ' <span class="assumed" title="assumed: the file does not say">*</span>' if assumed else ""
            cells.append(f'<td class="word">{_text(record[word])}{mark}</td>')
        cells += [_cell(record[column.name], _sign(layer.status, column.name)) for column in report.columns]
        cells.append(f'<td class="word">{_text(layer.summary)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{"".join(heads)}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _sign(status: dict[str, str], name: str) -> str:
    """Return the sign of a value that is only a bound."""
    bounded = status.get("sigma_min") == Status.NOT_CONVERGED
    return {"sigma_min": "≤ ", "condition": "≥ "}.get(name, "") if bounded else ""


def _cell(value: float | None, sign: str) -> str:
    if value is None:
        return '<td class="none" data-value="NaN">not defined</td>'
    shown = "infinite" if math.isinf(value) else f"{sign}{value:.5g}"
    number = "Infinity" if math.isinf(value) else repr(float(value))
    return f'<td data-value="{number}">{shown}</td>'


def _notes(report: Inspection) -> str:
    lines = [f"<li>{_text(layer.name)}: {_text(note)}</li>" for layer in report.layers for note in layer.notes]
    lines += [f"<li>no row: {_text(name)}: {_text(why)}</li>" for name, why in report.others.items()]
    if any(layer.assumed for layer in report.layers):
        lines.insert(0, '<li><span class="assumed">*</span> assumed: weights alone do not say it</li>')
    return f"<h2>Notes</h2><ul>{''.join(lines)}</ul>" if lines else ""


def _bound(certificate: Certificate) -> str:
    if math.isinf(certificate.upper):
        reasons = "".join(f"<li>{_text(reason)}</li>" for reason in certificate.reasons)
        return f"<h2>The network</h2><p>It has no proved Lipschitz bound:</p><ul>{reasons}</ul>"
    lower = f", and at least {certificate.lower:.5g}, seen at data" if certificate.lower else ""
    steps = [step for step in certificate.steps if 0.0 < step.bound < math.inf]
    return (
        f"<h2>The network</h2><p>Its Lipschitz constant is at most {certificate.upper:.5g} (proved){lower}. "
        "The bound from the input up to each step, on a logarithmic scale; a layer's share is how many times smaller "
        f"the bound would be if it stretched nothing.</p>{_waterfall(steps)}"
    )


def _waterfall(steps: Sequence[Step]) -> str:
    """Draw the bound up to each step, from the bound of the step before to its own."""
    logs = [math.log10(step.bound) for step in steps]
    low, high = min([0.0, *logs]), max([0.0, *logs])
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return _LEFT + (value - low) / span * _WIDTH

    bars, before = [], 0.0
    for row, (step, log) in enumerate(zip(steps, logs, strict=True)):
        left, right, top = place(min(before, log)), place(max(before, log)), row * _LINE + 4
        colour = "#c2571a" if log > before else "#2a7f62"
        share = f", share x {step.share:.3g}" if step.share > 1.0 else ""
        words = (
            f"{printable(step.name)}: {printable(step.what)}, gain {step.gain:.5g}, up to here {step.bound:.5g}{share}"
        )
        name = printable(step.name)
        short = name if len(name) <= 32 else f"…{name[-31:]}"
        bars.append(
            f"<g><title>{html.escape(words)}</title>"
            f'<text x="{_LEFT - 8}" y="{top + 11}" text-anchor="end">{html.escape(short)}</text>'
            f'<rect x="{left:.1f}" y="{top}" width="{max(right - left, 2.0):.1f}" height="14" fill="{colour}"/>'
            f'<text x="{right + 6:.1f}" y="{top + 11}">{step.bound:.4g}</text></g>'
        )
        before = log
    height, width = len(steps) * _LINE + 8, _LEFT + _WIDTH + 90
    size = f'viewBox="0 0 {width} {height}" width="{width}"'
    return f'<svg {size} role="img" aria-label="the bound, step by step">{"".join(bars)}</svg>'
