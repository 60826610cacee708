"""A proved upper bound of the norms of many small matrices, cheaper than their decompositions.

``norm(A) <= s`` holds if and only if ``s^2 I - A* A`` is positive semidefinite, and a Cholesky factorisation that runs
to completion proves this up to a known rounding error. It costs a fraction of an eigenvalue decomposition, and matrices
whose Frobenius norms already say enough are spared even that.
"""

from __future__ import annotations

import math

import numpy as np

from convla._array import device_of, namespace, on_device_of, to_numpy
from convla.spectra.symbol import FloatArray, to_complex
from convla.typing import Array

__all__ = ["certified_norm_bound", "gamma"]

_SLACK = 1e-5  # by how much a raised bound exceeds the norm that raised it


def certified_norm_bound(real: Array, imaginary: Array | None, guess: float) -> float:
    """Return a number that no norm of a stack of matrices exceeds.

    Parameters
    ----------
    real, imaginary : array of shape (..., r, c)
        float32 or float64; None for the imaginary part of real matrices.
    guess : float
        Positive. Where it is an upper bound but for rounding, no decomposition is taken; where it is not, the matrices
        that prove it wrong are decomposed.

    Returns
    -------
    float
        At least each ``norm(real + i imaginary)``, whatever the rounding errors of this function; at least `guess`
        unless all matrices are smaller.

    Notes
    -----
    With u the unit roundoff and gamma_n = n u / (1 - n u), the computed Gram matrix is within ``2 gamma_{2r+2}
    norm(A)_F^2`` of the exact one, and a Cholesky factorisation of a Hermitian matrix H of order c that completes
    proves ``lambda_min(H) >= -gamma_{3(c+3)} trace(H)``; the factor 3 > 2 sqrt(2) covers complex arithmetic.

    References
    ----------
    S. M. Rump, Verification of positive definiteness, BIT 46 (2006) 433-452, Theorem 2.3.
    """
    xp = namespace(real)
    r, c = real.shape[-2:]
    if c > r:  # the Gram matrix of the shorter side is the smaller
        real = xp.matrix_transpose(real)
        imaginary = None if imaginary is None else -xp.matrix_transpose(imaginary)
        r, c = c, r
    real = xp.reshape(real, (-1, r, c))
    imaginary = None if imaginary is None else xp.reshape(imaginary, (-1, r, c))
    u = float(xp.finfo(real.dtype).eps) / 2
    frobenius = _squares(real) + (0 if imaginary is None else _squares(imaginary))
    largest = float(frobenius.max()) * (1 + gamma(2 * r * c + 2, u))
    if math.sqrt(largest) <= guess:
        return guess
    gram_error = 2 * gamma(2 * r + 2, u) * largest
    left = np.flatnonzero(frobenius * (1 + gamma(2 * r * c + 2, u)) > guess**2)
    if len(left) < len(frobenius):
        chosen = on_device_of(left, real, xp)
        real = xp.take(real, chosen, axis=0)
        imaginary = None if imaginary is None else xp.take(imaginary, chosen, axis=0)
    gram = _gram(real, imaginary)
    bound = guess
    pending = gram
    eye = xp.eye(c, dtype=gram.dtype, device=device_of(gram))
    while True:
        pending = _not_definite(bound**2 * eye, pending)
        if pending is None:
            break
        top = float(xp.max(xp.linalg.eigvalsh(pending)))
        bound = max(bound, math.sqrt(max(top, 0.0))) * (1 + _SLACK)
    cholesky_error = gamma(3 * (c + 3), u) * c * bound**2
    return math.sqrt(bound**2 + gram_error + cholesky_error + 4 * u * bound**2) * (1 + 4 * 2.0**-53)


def _gram(real: Array, imaginary: Array | None) -> Array:
    """Return A* A from real matrix products: (F, c, c)."""
    xp = namespace(real)
    if imaginary is None:
        return xp.matmul(xp.matrix_transpose(real), real)
    stacked = xp.concat((real, imaginary), axis=-2)
    symmetric = xp.matmul(xp.matrix_transpose(stacked), stacked)
    product = xp.matmul(xp.matrix_transpose(real), imaginary)
    return to_complex(symmetric, product - xp.matrix_transpose(product))


def _not_definite(shift: Array, gram: Array) -> Array | None:
    """Return the matrices of a stack for which ``shift - gram`` has no Cholesky factorisation; None where all have."""
    xp = namespace(gram)
    if _factorises(shift - gram):
        return None
    count = gram.shape[0]
    if count == 1:
        return gram
    halves = [_not_definite(shift, part) for part in (gram[: count // 2, ...], gram[count // 2 :, ...])]
    found = [half for half in halves if half is not None]
    return xp.concat(found, axis=0) if found else None


def _factorises(matrices: Array) -> bool:
    xp = namespace(matrices)
    try:
        factors = xp.linalg.cholesky(matrices)
    except (ValueError, RuntimeError, ArithmeticError):  # each library raises its own; CuPy returns NaN instead
        return False
    return bool(xp.all(xp.isfinite(xp.real(factors) if xp.isdtype(factors.dtype, "complex floating") else factors)))


def _squares(part: Array) -> FloatArray:
    sums = namespace(part).sum(part * part, axis=(-2, -1))
    return np.asarray(to_numpy(sums), np.float64)


def gamma(terms: int, u: float) -> float:
    """Return ``n u / (1 - n u)``, the constant of the error bound of a sum of n products; infinity where undefined.

    References
    ----------
    N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM, 2002, Lemma 3.1.
    """
    return terms * u / (1 - terms * u) if terms * u < 1 else math.inf
