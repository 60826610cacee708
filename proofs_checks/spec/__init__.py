"""SPEC: singular values of zero-padded convolutions."""

from proofs_checks.spec import limits, submatrices

STATEMENTS = (*submatrices.STATEMENTS, *limits.STATEMENTS)
