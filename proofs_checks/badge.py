"""A report in one line, for a README: as SVG, or as the JSON that badge services read from an address."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

from proofs_checks.runner import Report

__all__ = ["BADGE_SUFFIXES", "badge"]

BADGE_SUFFIXES = (".svg", ".json")
LABEL = "statements"
COLOURS = {"contradicted": "#c5221f", "skipped": "#b06000", "confirmed": "#188038"}
"""Of what a statement is, the worst first; white letters on each have a contrast of at least 4.5."""

LETTER = 6.6
"""Pixels for each letter at 11 pixels' height: wide enough for every usual font, and `textLength` makes it so."""


def badge(report: Report, path: Path) -> str:
    r"""Return the text of a badge, as its file's name asks for.

    A statement is contradicted if any piece of its evidence is, and else skipped if any is: what was not run does not
    count as confirmed.

    Parameters
    ----------
    report : Report
    path : Path
        ``.svg`` for a picture; ``.json`` for the schema "endpoint", version 1, of shields.io.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the name ends otherwise.

    Examples
    --------
    >>> from proofs_checks.ledger import select
    >>> from proofs_checks.runner import verify
    >>> badge(verify(select(["RCK-count"]), examples=1), Path("ledger.json"))
    '{"schemaVersion": 1, "label": "statements", "message": "1 confirmed", "color": "#188038"}\n'
    """
    if path.suffix not in BADGE_SUFFIXES:
        raise ValueError(f"the badge's file must end in {' or '.join(BADGE_SUFFIXES)}, got {path.name!r}")
    states = Counter(
        next(state for state in COLOURS if any(outcome.status == state for outcome in outcomes))
        for outcomes in report.statements().values()
    )
    message = ", ".join(f"{states[state]} {state}" for state in reversed(COLOURS) if states[state])
    colour = next((colour for state, colour in COLOURS.items() if states[state]), COLOURS["skipped"])
    message = message or "none"
    if path.suffix == ".json":
        fields = {"schemaVersion": 1, "label": LABEL, "message": message, "color": colour}
        return json.dumps(fields) + "\n"
    return _svg(LABEL, message, colour)


def _svg(label: str, message: str, colour: str) -> str:
    parts = []
    left = 0.0
    for text, fill in ((label, "#444"), (message, colour)):
        letters = LETTER * len(text)
        parts.append(f'<rect x="{left:g}" width="{letters + 12:g}" height="20" fill="{fill}"/>')
        parts.append(f'<text x="{left + 6:g}" y="14" textLength="{letters:g}">{escape(text)}</text>')
        left += letters + 12
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{left:g}" height="20" role="img">'
    title = f"<title>{escape(f'{label}: {message}')}</title>"
    group = '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
    return "\n".join((head, title, group, *parts, "</g>", "</svg>")) + "\n"
