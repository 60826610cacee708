"""RCK: the matrix of a convolution, and the penalty that steers its singular values."""

from proofs_checks.rck import algorithm, barrier, bought, figures, gradient, isometry, matrix, penalty

STATEMENTS = (
    *matrix.STATEMENTS,
    *isometry.STATEMENTS,
    *penalty.STATEMENTS,
    *gradient.STATEMENTS,
    *barrier.STATEMENTS,
    *algorithm.STATEMENTS,
    *bought.STATEMENTS,
    *figures.STATEMENTS,
)
