"""CDG: channel-directed gradients."""

from proofs_checks.cdg import denoising, flows, greens, metrics

STATEMENTS = (*metrics.STATEMENTS, *greens.STATEMENTS, *flows.STATEMENTS, *denoising.STATEMENTS)
