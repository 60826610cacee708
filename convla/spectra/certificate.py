"""A proved upper bound of the norms of many small matrices, cheaper than their decompositions.

``norm(A) <= s`` holds if and only if ``s^2 I - A* A`` is positive semidefinite, and a Cholesky factorisation that runs
to completion proves this up to a known rounding error. It costs a fraction of an eigenvalue decomposition, and matrices
whose Frobenius norms already say enough are spared even that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy

from convla._array import device_of, is_numpy, namespace, on_device_of, to_numpy
from convla._threads import blas_for
from convla.spectra.leading import leading_pairs
from convla.spectra.symbol import FloatArray
from convla.typing import Array

__all__ = ["U64", "certified_norm_bound", "gamma", "provable", "proved_below"]

U64 = 2.0**-53

_SLACK = 1e-5  # by how much a raised bound exceeds the square that raised it; four times as much each time it fails
_RITZ_STEPS = 16
_SINGLE_CALLS = 16  # from this order on one call of LAPACK for each matrix costs less than the copies of a stacked one


def certified_norm_bound(grams: Array, error: float, guess: float) -> float:
    """Return a number that the norms of a stack of matrices A, known by their Gram matrices, do not exceed.

    Parameters
    ----------
    grams : array of shape (F, c, c), float64 or complex128
        Approximations of ``A* A``, of which the lower triangles are read.
    error : float
        A bound of their errors in the spectral norm.
    guess : float
        Not negative. Where it is a bound, it is returned, and nothing is decomposed.

    Returns
    -------
    float
        `guess`, or more where that is not proved.

    Notes
    -----
    With u the unit roundoff and gamma_n = n u / (1 - n u), a Cholesky factorisation of a Hermitian matrix H of order c
    that completes proves ``lambda_min(H) >= -gamma_{3(c+3)} trace(H)``; the factor 3 > 2 sqrt(2) covers complex
    arithmetic. What underflows is below u times the diagonal.

    References
    ----------
    S. M. Rump, Verification of positive definiteness, BIT 46 (2006) 433-452, Theorem 2.3.
    """
    bound, slack = guess, _SLACK
    while grams.shape[0]:
        failed = np.flatnonzero(~proved_below(grams, error, bound))
        if not failed.size:
            return bound
        grams = _chosen(grams, failed)
        square = max(bound**2 - error, _largest_eigenvalue(grams)) * (1 + slack)
        bound = provable(math.sqrt(max(square, 0.0)), error, grams.shape[-1])
        slack *= 4
    return bound


def proved_below(grams: Array, error: float, bound: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which matrices of a stack, known by their Gram matrices as above, are proved to have norms up to `bound`."""
    proved = (_upper_eigenvalues(grams, bound**2) + error) * (1 + 4 * U64) <= bound**2
    left = np.flatnonzero(~proved)
    shift = (bound**2 * (1 - 8 * U64) - error) / _growth(grams.shape[-1])
    if left.size and shift > 0:
        proved[left] = _factorise(shift, _chosen(grams, left))
    return proved


def provable(norm: float, error: float, order: int) -> float:
    """Return a bound that `certified_norm_bound` proves of matrices of a norm, however large its rounding errors.

    Parameters
    ----------
    norm, error : float
    order : int
        Of the Gram matrices.
    """
    return math.sqrt((norm**2 * _growth(order) + error) * (1 + 16 * U64))


def _growth(order: int) -> float:
    """Return by how much a Cholesky factorisation can err, of a shifted Gram matrix and relative to the shift."""
    return 1 + order * gamma(3 * (order + 3), U64) + 8 * U64


def _upper_eigenvalues(grams: Array, wanted: float) -> FloatArray:
    """Bound the eigenvalues of positive semidefinite matrices by their traces, or Frobenius norms where these may help.

    A Frobenius norm is at least the trace over the root of the order: beyond `wanted`, it need not be summed.
    """
    xp = namespace(grams)
    order = grams.shape[-1]
    rounding = 1 + gamma(order * order + 8, U64)
    diagonal = on_device_of(np.arange(order) * (order + 1), grams, xp)
    traces = xp.sum(xp.take(xp.reshape(grams, (-1, order * order)), diagonal, axis=1), axis=1)
    bounds = np.real(to_numpy(traces)) * rounding
    unknown = np.flatnonzero((bounds > wanted) & (bounds <= wanted * math.sqrt(order)))
    if unknown.size:
        some = _chosen(grams, unknown)
        parts = (xp.real(some), xp.imag(some)) if xp.isdtype(some.dtype, "complex floating") else (some,)
        norms = sum(np.asarray(to_numpy(xp.sum(part * part, axis=(1, 2))), np.float64) for part in parts) ** 0.5
        bounds[unknown] = np.minimum(bounds[unknown], norms * rounding)
    return bounds


def _largest_eigenvalue(grams: Array) -> float:
    """Estimate the largest eigenvalue in a stack, from below."""
    xp = namespace(grams)
    order = grams.shape[-1]
    start = np.random.default_rng(0).standard_normal(order)  # a vector that no structure of the matrices hides from
    stacked = xp.broadcast_to(on_device_of(start, grams, xp, dtype=grams.dtype), (grams.shape[0], order))
    values, _ = leading_pairs(lambda vectors: xp.matmul(grams, vectors), stacked, steps=min(order, _RITZ_STEPS))
    return float(values.max())


def _chosen(matrices: Array, indices: np.ndarray[Any, Any]) -> Array:
    xp = namespace(matrices)
    if len(indices) == matrices.shape[0]:
        return matrices
    return xp.take(matrices, on_device_of(indices, matrices, xp), axis=0)


def _factorise(shift: float, grams: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell for which matrices of a stack ``shift I - gram`` has a Cholesky factorisation."""
    xp = namespace(grams)
    order = grams.shape[-1]
    matrices = shift * xp.eye(order, dtype=grams.dtype, device=device_of(grams)) - grams
    if is_numpy(matrices) and order >= _SINGLE_CALLS:
        factorise = scipy.linalg.lapack.zpotrf if matrices.dtype.kind == "c" else scipy.linalg.lapack.dpotrf
        # The transpose of a matrix in C order is its conjugate in Fortran's.
        with blas_for(order**3):
            return np.array([factorise(matrix.T, lower=0, clean=0, overwrite_a=1)[1] == 0 for matrix in matrices])
    found = np.ones(matrices.shape[0], bool)
    found[_bisected(matrices, 0)] = False
    return found


def _bisected(matrices: Array, first: int) -> list[int]:
    """Find those that do not factorise where a library only tells whether all of a stack do."""
    if _factorises(matrices):
        return []
    count = matrices.shape[0]
    if count == 1:
        return [first]
    half = count // 2
    return _bisected(matrices[:half, ...], first) + _bisected(matrices[half:, ...], first + half)


def _factorises(matrices: Array) -> bool:
    xp = namespace(matrices)
    try:
        factors = xp.linalg.cholesky(matrices)
    except (ValueError, RuntimeError, ArithmeticError):  # each library raises its own; CuPy returns NaN instead
        return False
    return bool(xp.all(xp.isfinite(xp.real(factors) if xp.isdtype(factors.dtype, "complex floating") else factors)))


def gamma(terms: int, u: float) -> float:
    """Return ``n u / (1 - n u)``, the constant of the error bound of a sum of n products; infinity where undefined.

    References
    ----------
    N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM, 2002, Lemma 3.1.
    """
    return terms * u / (1 - terms * u) if terms * u < 1 else math.inf
