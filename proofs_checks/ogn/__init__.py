"""OGN: orthonormalised gradients."""

from proofs_checks.ogn import architectures, diversity, method, polar, tables

STATEMENTS = (
    *polar.STATEMENTS,
    *method.STATEMENTS,
    *architectures.STATEMENTS,
    *tables.STATEMENTS,
    *diversity.STATEMENTS,
)
