"""A proved upper bound of the norms of many small matrices, cheaper than their decompositions.

``norm(A) <= s`` holds if and only if ``s^2 I - A* A`` is positive semidefinite, and a Cholesky factorisation that runs
to completion proves this up to a known rounding error. It costs a fraction of an eigenvalue decomposition, and matrices
whose Frobenius norms already say enough are spared even that.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from convla._array import device_of, namespace, on_device_of, to_numpy
from convla._dispatch import accelerated
from convla.spectra.grids import IntArray, to_complex
from convla.spectra.leading import leading_pairs
from convla.spectra.symbol import FloatArray
from convla.typing import Array

__all__ = [
    "U64",
    "Combinations",
    "certified_norm_bound",
    "gamma",
    "hermitian",
    "provable",
    "proved_below",
    "shown_below",
]

U64 = 2.0**-53

_SLACK, _SLACK_GROWTH = 1e-5, 6  # by how much a raised bound exceeds the square that raised it; more where it fails
_RITZ_STEPS = 16
_FIRST = 4  # matrices, and then twice as many each time
_PIECE = 1 << 21  # numbers in a stack of matrices that is formed


class Combinations(NamedTuple):
    """Matrices that are combinations of fewer: ``sum_k weights[f, k] coefficients[b, k, g]``, numbered by (b, g, f).

    Attributes
    ----------
    coefficients : float64 array of shape (B, K, G, c, c)
    weights : numpy.ndarray of float64, shape (F, K)

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.certificate import Combinations
    >>> two = np.arange(8.0).reshape(1, 2, 1, 2, 2)
    >>> Combinations(two, np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])).at(np.array([1]))
    array([[[2., 3.],
            [4., 5.]]])
    """

    coefficients: Array
    weights: FloatArray

    @classmethod
    def of(cls, matrices: Array) -> Combinations:
        """Return a stack (B, c, c), or (B, G, c, c), each of itself."""
        xp = namespace(matrices)
        grouped = matrices if matrices.ndim == 4 else matrices[:, None, ...]
        return cls(xp.reshape(grouped, (grouped.shape[0], 1, *grouped.shape[1:])), np.ones((1, 1)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of b, g and f."""
        return self.coefficients.shape[0], self.coefficients.shape[2], len(self.weights)

    @property
    def order(self) -> int:
        """The order c of the matrices."""
        return int(self.coefficients.shape[-1])

    def at(self, numbers: IntArray) -> Array:
        """Return the matrices of some numbers: (n, c, c)."""
        xp, order = namespace(self.coefficients), self.order
        b, g, f = np.unravel_index(numbers, self.shape)
        some, place = np.unique(b, return_inverse=True)
        flat = xp.reshape(_chosen(self.coefficients, some), (len(some), self.weights.shape[1], -1))
        weights = on_device_of(self.weights, flat, xp, dtype=flat.dtype)
        matrices = xp.reshape(xp.matmul(weights, flat), (-1, order, order))
        return _chosen(matrices, np.ravel_multi_index((place, f, g), (len(some), *self.shape[:0:-1])))


def certified_norm_bound(grams: Combinations, error: float, guess: float, *, numbers: IntArray | None = None) -> float:
    """Return a number that the norms of a stack of matrices A, known by their Gram matrices, do not exceed.

    Parameters
    ----------
    grams : Combinations
        Approximations of ``A* A = S + i A``, S symmetric and A not, each as ``S + A``. One that is symmetric is real.
    error : float
        A bound of the spectral norm of each error, and of the modulus of its trace.
    guess : float
        Not negative. Where it is a bound, it is returned, and nothing is decomposed.
    numbers : numpy.ndarray of int, optional
        Of the matrices that are meant; all by default.

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
    bound, numbers = guess, np.arange(math.prod(grams.shape)) if numbers is None else numbers
    # A few at first: where the guess is too low, they show it.
    done, count = 0, _FIRST
    while done < len(numbers):
        bound = _raised(grams, error, bound, numbers[done : done + count])
        done, count = done + count, 2 * count
    return bound


def _raised(grams: Combinations, error: float, bound: float, numbers: IntArray) -> float:
    """Return a bound as `certified_norm_bound` does, for so few matrices that all may be looked at more closely."""
    left = numbers[~proved_below(grams, error, bound, numbers)]
    if not left.size:
        return bound
    largest = max(_largest_eigenvalue(grams.at(some)) for some in _pieces(left, grams.order))
    square, slack = max(bound**2 - error, largest, 0.0), _SLACK
    while left.size:
        bound = provable(math.sqrt(square * (1 + slack)), error, grams.order)
        left = left[~proved_below(grams, error, bound, left)]
        slack *= _SLACK_GROWTH
    return bound


def proved_below(
    grams: Combinations, error: float, bound: float, numbers: IntArray
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which of some matrices, known by their Gram matrices as above, are proved to have norms up to `bound`."""
    order = grams.order
    shift = (bound**2 * (1 - 8 * U64) - error) / _growth(order)
    rounding = 1 + gamma(order * order + 8, U64)
    return shown_below(grams.coefficients, grams.weights, bound**2, error, shift, rounding, numbers=numbers)


def provable(norm: float, error: float, order: int) -> float:
    """Return a bound that `certified_norm_bound` proves of matrices of a norm, however large its rounding errors.

    Parameters
    ----------
    norm, error : float
    order : int
        Of the Gram matrices.
    """
    return math.sqrt((norm**2 * _growth(order) + error) * (1 + 16 * U64))


def hermitian(packed: Array) -> Array:
    """Return the matrices ``S + i A`` of a stack of ``S + A``.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.certificate import hermitian
    >>> hermitian(np.array([[2.0, 3.0], [1.0, 4.0]]))
    array([[2.+0.j, 2.+1.j],
           [2.-1.j, 4.+0.j]])
    """
    halves = packed / 2
    turned = namespace(packed).matrix_transpose(halves)
    return to_complex(halves + turned, halves - turned)


def _growth(order: int) -> float:
    """Return by how much a Cholesky factorisation can err, of a shifted Gram matrix and relative to the shift."""
    return 1 + order * gamma(3 * (order + 3), U64) + 8 * U64


@accelerated("shown_below")
def shown_below(
    coefficients: Array,
    weights: FloatArray,
    square: float,
    error: float,
    shift: float,
    rounding: float,
    *,
    numbers: IntArray,
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell for which matrices H a bound of the eigenvalues, or a factorisation, shows what is wanted.

    Parameters
    ----------
    coefficients, weights : array
        Of `Combinations` S + A, which stand for ``H = S + i A``, positive semidefinite but for its error.
    square, error : float
        It is shown by a trace or a Frobenius norm that is at most `square`, `error` and rounding included: see Notes,
    shift : float
        or by a Cholesky factorisation of ``shift I - H``, where this is positive, that completes.
    rounding : float
        By what factor a computed sum of no more than ``c^2`` positive numbers may be too small.
    numbers : numpy.ndarray of int
        Of the matrices in question.

    Returns
    -------
    numpy.ndarray of bool

    Notes
    -----
    What is wanted is a bound of the largest eigenvalue of ``H - E``, positive semidefinite, where `error` bounds both
    the spectral norm of E and the modulus of its trace. That eigenvalue is at most ``trace(H - E)``, so at most
    ``trace(H) + abs(trace(E))``: here the norm of E would not do, as the trace of E can be the order times as large. It
    is also at most ``norm(H) + norm(E)``, and ``norm(H)`` is at most H's Frobenius norm, or `shift` where the
    factorisation completes, but for its rounding: there the norm of E is enough.
    """
    grams = Combinations(coefficients, weights)
    shown = [_shown_of_stack(grams.at(some), square, error, shift, rounding) for some in _pieces(numbers, grams.order)]
    return np.concatenate([np.zeros(0, bool), *shown])


def _pieces(numbers: IntArray, order: int) -> list[IntArray]:
    """Divide numbers of matrices of an order so that those of a piece fit in a moderate piece of memory."""
    length = max(1, _PIECE // order**2)
    return [numbers[first : first + length] for first in range(0, len(numbers), length)]


def _shown_of_stack(
    grams: Array, square: float, error: float, shift: float, rounding: float
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    shown = (_upper_eigenvalues(grams, square, rounding) + error) * (1 + 4 * U64) <= square
    left = np.flatnonzero(~shown)
    if left.size and shift > 0:
        shown[left] = _factorise(shift, _chosen(grams, left))
    return shown


def _upper_eigenvalues(grams: Array, wanted: float, rounding: float) -> FloatArray:
    """Bound the eigenvalues of positive semidefinite matrices by their traces, or Frobenius norms where these may help.

    A Frobenius norm is at least the trace over the root of the order: beyond `wanted`, it need not be summed. That of
    S + A is that of S + i A.
    """
    xp = namespace(grams)
    order = grams.shape[-1]
    diagonal = on_device_of(np.arange(order) * (order + 1), grams, xp)
    traces = xp.sum(xp.take(xp.reshape(grams, (-1, order * order)), diagonal, axis=1), axis=1)
    bounds = np.asarray(to_numpy(traces)) * rounding
    unknown = np.flatnonzero((bounds > wanted) & (bounds <= wanted * math.sqrt(order)))
    if unknown.size:
        some = _chosen(grams, unknown)
        norms = np.asarray(to_numpy(xp.sum(some * some, axis=(1, 2)))) ** 0.5
        bounds[unknown] = np.minimum(bounds[unknown], norms * rounding)
    return bounds


def _largest_eigenvalue(grams: Array) -> float:
    """Estimate the largest eigenvalue of a stack of S + A, each for S + i A, from below."""
    xp = namespace(grams)
    order = grams.shape[-1]
    turned = xp.matrix_transpose(grams)

    def apply(vectors: Array) -> Array:
        # (S + i A)(x + i y), from the products of S + A and S - A with x and y.
        (even_x, odd_x), (even_y, odd_y) = (products(xp.real(vectors)), products(xp.imag(vectors)))
        return to_complex(even_x - odd_y, even_y + odd_x)

    def products(part: Array) -> tuple[Array, Array]:
        part = part / 2
        straight, back = xp.matmul(grams, part), xp.matmul(turned, part)
        return straight + back, straight - back

    start = np.random.default_rng(0).standard_normal(order)  # a vector that no structure of the matrices hides from
    stacked = xp.broadcast_to(on_device_of(start, grams, xp, dtype=grams.dtype), (grams.shape[0], order))
    values, _ = leading_pairs(apply, to_complex(stacked, xp.zeros_like(stacked)), steps=min(order, _RITZ_STEPS))
    return float(values.max())


def _chosen(matrices: Array, indices: np.ndarray[Any, Any]) -> Array:
    xp = namespace(matrices)
    if np.array_equal(indices, np.arange(matrices.shape[0])):
        return matrices
    return xp.take(matrices, on_device_of(indices, matrices, xp), axis=0)


def _factorise(shift: float, grams: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell for which matrices of a stack ``shift I - H`` has a Cholesky factorisation."""
    xp = namespace(grams)
    order = grams.shape[-1]
    real = bool(xp.all(grams == xp.matrix_transpose(grams)))
    grams = grams if real else hermitian(grams)
    matrices = shift * xp.eye(order, dtype=grams.dtype, device=device_of(grams)) - grams
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
