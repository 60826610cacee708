"""OGN: orthonormalised gradients."""

from proofs_checks.ogn import method, polar, tables

STATEMENTS = (*polar.STATEMENTS, *method.STATEMENTS, *tables.STATEMENTS)
