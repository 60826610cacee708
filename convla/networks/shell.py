"""What every page of HTML has: styles for a screen, a phone, the dark and paper, tables to sort; nothing to fetch."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from convla.networks.digits import Side, digits_of
from convla.networks.weights import printable

__all__ = ["Cell", "bullets", "number_cell", "page_of", "shown", "table_of", "text_of"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --quiet: #5c6670; --line: #d7dde3; --head: #f4f6f8;
  --chosen: #dde6ef; --mark: #9a4b00; --up: #c2571a; --down: #2a7f62; --bar: #3d6fa5; --zero: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #15181c; --quiet: #98a2ab; --line: #333a41;
  --head: #23282e; --chosen: #31404f; --mark: #ffb066; --up: #f08a4b; --down: #5cbf98; --bar: #7fb0e6;
  --zero: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 96rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--head); padding: 0; } th[aria-sort] { background: var(--chosen); }
th button { all: unset; cursor: pointer; padding: .3rem .6rem; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; max-width: 20rem; }
.word { text-align: left; } .none { color: var(--quiet); } .assumed { color: var(--mark); }
td svg { display: block; } .histogram rect { fill: var(--bar); } .histogram .zero { fill: var(--zero); }
.histogram .error { fill: var(--bar); opacity: .35; } .histogram line { stroke: var(--quiet); }
.steps { display: grid; grid-template-columns: minmax(6rem, 16rem) 1fr 5.5rem; gap: .15rem .6rem; max-width: 60rem;
  font-size: .85rem; font-variant-numeric: tabular-nums; align-items: center; }
.steps > * { min-width: 0; } .steps .name { text-align: right; line-height: 1.2; }
.track { position: relative; height: 1rem; background: var(--head); }
.track i { position: absolute; top: .12rem; height: .76rem; min-width: 2px; background: var(--up); }
.track .down { background: var(--down); } .track .link { top: .42rem; height: .16rem; background: var(--quiet); }
.track b { position: absolute; top: .2rem; width: .6rem; height: .6rem; margin-left: -.3rem; border-radius: 50%;
  border: 2px solid var(--bar); background: var(--paper); } .track b.after { background: var(--bar); }
.track .span { top: .2rem; height: .6rem; min-width: 2px; background: var(--bar); opacity: .35; }
ul { padding-left: 1.2rem; } code { font-size: .9em; }
@media (max-width: 640px) {
  body { margin: .75rem auto; padding: 0 .75rem; }
  .wide { overflow: visible; } table, tbody, tr, td { display: block; } td { white-space: normal; }
  thead, thead tr { display: flex; flex-wrap: wrap; gap: .25rem; } thead { margin-bottom: .5rem; }
  thead::before { content: "Sort by"; color: var(--quiet); width: 100%; }
  th { position: static; border: 1px solid var(--line); border-radius: .6rem; }
  tbody tr { border: 1px solid var(--line); border-radius: .4rem; margin-bottom: .6rem; padding: .2rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .12rem .6rem; text-align: right; }
  td::before { content: attr(data-label); color: var(--quiet); text-align: left; } td:empty { display: none; }
  td:first-child { font-weight: 600; text-align: left; min-width: 0; max-width: none; }
  td:first-child::before { content: none; }
  .steps { grid-template-columns: 5.5rem 1fr 4.2rem; gap: .15rem .4rem; font-size: .75rem; }
}
@page { size: A4 landscape; margin: 10mm; }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --quiet: #444; --line: #999; --head: #eee; --chosen: #ddd;
    --mark: #9a4b00; --up: #c2571a; --down: #2a7f62; --bar: #3d6fa5; --zero: #b3261e; }
  body { margin: 0; max-width: none; padding: 0; font-size: 9pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; } table { font-size: 6pt; width: 100%; } th { position: static; white-space: normal; }
  th button, td { padding: .1rem .2rem; } td.word { white-space: normal; }
  td:first-child { min-width: 16mm; } td svg { width: 12mm; height: 4mm; }
  tr, .steps > * { break-inside: avoid; } h2 { break-after: avoid; } thead { display: table-header-group; }
}
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const order = [...table.tBodies[0].rows];
  for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => {
    const next = {descending: "ascending", ascending: null}[head.getAttribute("aria-sort")];
    const way = next === undefined ? "descending" : next;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    if (way === null) { table.tBodies[0].append(...order); return; }
    head.setAttribute("aria-sort", way);
    const down = way === "descending" ? -1 : 1;
    const value = row => { const cell = row.cells[head.cellIndex];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent; };
    const compare = (x, y) => {
      if (typeof x === "string" || typeof y === "string")
        return down * String(x).localeCompare(String(y), undefined, {numeric: true});
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return x === y ? 0 : down * (x < y ? -1 : 1); };
    table.tBodies[0].append(...[...order].sort((a, b) => compare(value(a), value(b))));
  });
}
"""


class Cell(NamedTuple):
    """A cell of a table: its HTML, the number that it is sorted by (None: by its words), and classes of style."""

    content: str
    value: float | None = None
    style: str = ""


def text_of(text: object) -> str:
    """Return a text that a page can hold, whatever is in it."""
    return html.escape(printable(str(text)))


def shown(value: float, side: Side = "nearest") -> str:
    """Return a number as a page shows it; a bound rounded to its side."""
    return "infinite" if math.isinf(value) else digits_of(value, 5, side)


def number_cell(value: float | None, sign: str = "", side: Side = "nearest") -> Cell:
    """Return the cell of a number; what is not defined is the last, however a table is sorted."""
    if value is None:
        return Cell("not defined", math.nan, "none")
    return Cell(shown(value) if math.isinf(value) else sign + shown(value, side), float(value))


def table_of(heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table to sort: of each column its heading and style, and the rows."""
    top = "".join(
        f'<th class="{style}" scope="col"><button type="button">{text_of(head)}</button></th>' for head, style in heads
    )
    lines = []
    for row in rows:
        cells = []
        for (head, style), cell in zip(heads, row, strict=True):
            value = "" if cell.value is None else f' data-value="{_number(cell.value)}"'
            classes = f"{style} {cell.style}".strip()
            cells.append(f'<td class="{classes}" data-label="{text_of(head)}"{value}>{cell.content}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if math.isinf(value) else repr(value)


def bullets(lines: Sequence[str], heading: str) -> str:
    """Return lines of HTML under a heading; nothing where there are none."""
    return f"<h2>{heading}</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>" if lines else ""


def page_of(title: str, parts: Iterable[str]) -> str:
    """Return a page of HTML with its styles and its script inside.

    Examples
    --------
    >>> from convla.networks.shell import page_of
    >>> "<h1>Layers</h1>" in page_of("Layers", ["<p>None.</p>"])
    True
    """
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text_of(title)}</title><style>{_STYLE}</style></head>\n<body>\n<h1>{text_of(title)}</h1>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body></html>\n"
    )
