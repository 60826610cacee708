"""Statements of this source."""

from proofs_checks.statement import Statement

STATEMENTS: tuple[Statement, ...] = ()
