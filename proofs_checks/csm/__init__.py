"""CSM: kernel orthogonality, feature-map similarity and the convolutional similarity."""

from proofs_checks.csm import biases, bounds, counts, experiments, failures, full, normalized, padded, similarity

STATEMENTS = (
    *full.STATEMENTS,
    *padded.STATEMENTS,
    *similarity.STATEMENTS,
    *bounds.STATEMENTS,
    *counts.STATEMENTS,
    *biases.STATEMENTS,
    *failures.STATEMENTS,
    *normalized.STATEMENTS,
    *experiments.STATEMENTS,
)
