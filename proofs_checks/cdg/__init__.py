"""CDG: channel-directed gradients."""

from proofs_checks.cdg import greens, metrics

STATEMENTS = (*metrics.STATEMENTS, *greens.STATEMENTS)
