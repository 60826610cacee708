"""CDG: channel-directed gradients."""

from proofs_checks.cdg import denoising, figures, flows, greens, metrics, trained

STATEMENTS = (
    *metrics.STATEMENTS,
    *greens.STATEMENTS,
    *flows.STATEMENTS,
    *figures.STATEMENTS,
    *denoising.STATEMENTS,
    *trained.STATEMENTS,
)
