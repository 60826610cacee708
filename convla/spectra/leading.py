"""The leading eigenpairs of many Hermitian operators at once, to a few digits: Lanczos on stacks of vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla.spectra.symbol import FloatArray
from convla.typing import Array

__all__ = ["leading_pairs"]

_ROUNDING = 1e3  # units, below which a direction is taken for rounding errors: the space is invariant


def leading_pairs(apply: Callable[[Array], Array], start: Array, *, steps: int) -> tuple[FloatArray, Array]:
    """Take Lanczos steps on a stack of Hermitian positive semidefinite operators.

    Parameters
    ----------
    apply : callable
        Maps an array of shape (..., c, 1), one vector for each operator, to the images.
    start : array of shape (..., c)
        Not zero.
    steps : int
        Applications of each operator.

    Returns
    -------
    values : numpy.ndarray of float64, shape (...)
        The largest Ritz values: but for rounding at most the largest eigenvalues.
    vectors : array of shape (..., c)
        Their vectors, of norm 1; `start` itself where the operator takes it to 0.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.leading import leading_pairs
    >>> matrices = np.array([[[2.0, 1.0], [1.0, 2.0]], [[0.0, 0.0], [0.0, 5.0]]])
    >>> leading_pairs(lambda v: matrices @ v, np.array([[1.0, 0.5], [3.0, 4.0]]), steps=2)[0].round(9)
    array([3., 5.])
    """
    xp = namespace(start)
    vector = _normalised(start[..., None])
    basis, columns = vector * _unit_row(0, steps, vector), []
    for step in range(1, steps + 1):
        # Columns that are still to come are 0: the shapes stay the same, which compiled libraries ask for.
        image = apply(vector)
        adjoint = xp.matrix_transpose(basis if xp.isdtype(basis.dtype, "real floating") else xp.conj(basis))
        coefficients = xp.matmul(adjoint, image)
        columns.append(coefficients[..., 0])
        if step < steps:
            vector = _normalised(image - xp.matmul(basis, coefficients), _norms(image))
            # Once more, for what rounding left of the earlier vectors.
            vector = _normalised(vector - xp.matmul(basis, xp.matmul(adjoint, vector)))
            basis = basis + vector * _unit_row(step, steps, vector)
    # The host is asked for once, after the last step: a GPU's steps are not waited for.
    values, vectors = np.linalg.eigh(to_numpy(xp.stack(columns, axis=-1)), UPLO="U")
    first = np.eye(steps)[:, :1]
    leading = np.where(values[..., -1:, None] > 0, vectors[..., -1:], first)
    combination = on_device_of(leading, basis, xp, dtype=basis.dtype)
    return values[..., -1].astype(np.float64), xp.matmul(basis, combination)[..., 0]


def _unit_row(index: int, length: int, like: Array) -> Array:
    row = np.zeros((1, length))
    row[0, index] = 1
    return on_device_of(row, like, namespace(like), dtype=like.dtype)


def _norms(columns: Array) -> Array:
    xp = namespace(columns)
    if not xp.isdtype(columns.dtype, "complex floating"):
        return xp.sqrt(xp.sum(columns * columns, axis=-2, keepdims=True))
    real, imaginary = xp.real(columns), xp.imag(columns)
    return xp.sqrt(xp.sum(real * real + imaginary * imaginary, axis=-2, keepdims=True))


def _normalised(columns: Array, whole: Array | None = None) -> Array:
    """Return columns of norm 1, or 0 where they are but the rounding errors of the vectors they are a part of."""
    xp = namespace(columns)
    norms = _norms(columns)
    least = 0 if whole is None else _ROUNDING * xp.finfo(norms.dtype).eps * whole
    inverse = xp.where(norms > least, 1 / xp.where(norms > 0, norms, 1), 0)
    return columns * xp.astype(inverse, columns.dtype)
