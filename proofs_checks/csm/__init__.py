"""CSM: kernel orthogonality, feature-map similarity and the convolutional similarity."""

from proofs_checks.csm import biases, bounds, counts, experiments, full, padded, similarity

STATEMENTS = (
    *full.STATEMENTS,
    *padded.STATEMENTS,
    *similarity.STATEMENTS,
    *bounds.STATEMENTS,
    *counts.STATEMENTS,
    *biases.STATEMENTS,
    *experiments.STATEMENTS,
)
