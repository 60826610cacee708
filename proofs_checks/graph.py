"""Which statement rests on which: those that its text names, and those that share its evidence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from proofs_checks.statement import Statement

__all__ = ["dot", "edges"]


def edges(statements: Sequence[Statement]) -> list[tuple[str, str, str]]:
    """Return (statement, other, why) for every statement whose text names the other, or that shares evidence with it.

    Examples
    --------
    >>> from proofs_checks.graph import edges
    >>> from proofs_checks.ledger import select
    >>> edges(select(["CSM-6", "CSM-bound"]))
    [('CSM-bound', 'CSM-6', 'names')]
    """
    ids = sorted((statement.id for statement in statements), key=len, reverse=True)
    named = re.compile(rf"\b({'|'.join(map(re.escape, ids))})\b(?!\.\d)")
    found = []
    for place, statement in enumerate(statements):
        text = " ".join((statement.claim, statement.correction, statement.counterexample, statement.note))
        names = dict.fromkeys(match[1] for match in named.finditer(text) if match[1] != statement.id)
        found += [(statement.id, name, "names") for name in names]
        pieces = {id(piece) for piece in statement.evidence}
        found += [
            (statement.id, other.id, "shares evidence")
            for other in statements[:place]
            if other.id not in names and pieces & {id(piece) for piece in other.evidence}
        ]
    return found


def dot(statements: Sequence[Statement]) -> str:
    """Return the graph of `edges` in Graphviz' language: full arrows where a text names, dashed lines where evidence is shared."""
    lines = ["digraph ledger {", "  rankdir=LR; node [shape=box, fontname=Helvetica];"]
    lines += [f'  "{s.id}" [tooltip="{s.title} ({s.verdict.value})"];'.replace("\\", "\\\\") for s in statements]
    for one, other, why in edges(statements):
        style = "" if why == "names" else " [dir=none, style=dashed]"
        lines.append(f'  "{one}" -> "{other}"{style};')
    return "\n".join([*lines, "}"])
