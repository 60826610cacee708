"""All statements, and finding some by id."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable

from proofs_checks.statement import Statement

__all__ = ["SOURCES", "ledger", "select"]

SOURCES = {
    "CSM": "Kernel Orthogonality does not necessarily imply a Decrease in Feature Map Redundancy in CNNs: "
    "Convolutional Similarity Minimization",
    "RCK": "P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks",
    "CDG": "Channel-Directed Gradients for Optimization of Convolutional Neural Networks",
    "OGN": "Orthonormalising gradients improves neural network optimisation",
    "OIC": "Orthogonal Initialization in Convolutional Layers",
    "SPEC": "Singular values of zero-padded convolutions: the theory that convla relies on",
}
"""The source documents by key; each has a package `proofs_checks.<key in lower case>` with its STATEMENTS."""


def ledger() -> tuple[Statement, ...]:
    """Return every statement, source by source."""
    packages = [importlib.import_module(f"proofs_checks.{key.lower()}") for key in SOURCES]
    return tuple(statement for package in packages for statement in package.STATEMENTS)


def select(ids: Iterable[str], statements: tuple[Statement, ...] | None = None) -> tuple[Statement, ...]:
    """Return the statements with these ids, or of these sources, in the order of the ledger.

    Parameters
    ----------
    ids : iterable of str
        Ids such as "CSM-6" or keys of sources such as "RCK", in any case; all statements if there are none.
    statements : tuple of Statement, optional
        Of these; by default of the ledger's.

    Raises
    ------
    ValueError
        If an id is none of theirs.

    Examples
    --------
    >>> from proofs_checks.ledger import select
    >>> [statement.id for statement in select(["csm-6"])]
    ['CSM-6']
    """
    if statements is None:
        statements = ledger()
    wanted = {name.upper() for name in ids}
    sources = dict.fromkeys(statement.source for statement in statements)
    known = {statement.id.upper() for statement in statements} | {source.upper() for source in sources}
    for name in sorted(wanted - known):
        near = difflib.get_close_matches(name, known, n=3)
        hint = f", did you mean {' or '.join(near)}?" if near else f"; the sources are {', '.join(sources)}"
        raise ValueError(f"ID must be a statement or a source of the ledger, got {name!r}{hint}")
    if not wanted:
        return statements
    return tuple(s for s in statements if s.id.upper() in wanted or s.source.upper() in wanted)
