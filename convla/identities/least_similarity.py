"""How small the convolutional similarity of two kernels of unit norm can be: bounds, kernels, and proved enclosures.

Kernels of N taps are polynomials of degree n = N - 1, one of them reversed, and their cross-correlation is the product;
the similarity is its squared norm. ``c_N`` is the least for two kernels of norm 1, one axis and one channel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from convla._validate import check_integer, check_rng
from convla.testing import gamma
from convla.typing import NumPyArray, Seed

__all__ = [
    "CATALAN",
    "half_circle_pair",
    "least_similar_pair",
    "least_similarity_enclosure",
    "similarity_lower_bound",
    "similarity_upper_bound",
]

CATALAN = 0.9159655941772190
"""1 - 1/9 + 1/25 - ..., which is the integral of log(2 cos(t / 2)) from 0 to pi / 2."""


def similarity_lower_bound(taps: int) -> float:
    """Return a positive lower bound of the convolutional similarity of two kernels of unit norm with `taps` entries.

    Parameters
    ----------
    taps : int
        N, at least 1, of kernels with one axis and one channel.

    Returns
    -------
    float
        The larger of ``1 / (binom(2n, n) binom(n, n // 2)^2)`` and ``sqrt(2n) exp(-8 G n / pi)``, with n = N - 1 and G
        Catalan's constant.

    Notes
    -----
    The first: Bombieri's norm, the sum of |a_i|^2 / binom(n, i), satisfies [PQ]^2 >= [P]^2 [Q]^2 / binom(2n, n); it is
    at most the Euclidean norm and at least that over the largest binomial coefficient.

    The second: for z1, z2 on the unit circle log max(|z1 - w|, |z2 - w|) is the potential of a measure on the bisector
    of z1 and z2. Swept to the circle it is at most the potential of a probability measure there plus its own mean over
    the circle, at most 2 G / pi - u^2 / (2 pi) for an angle of pi - 2 u between them. So with r = pq,
    |p(z1)|^2 |q(z2)|^2 <= exp(4 n (2 G / pi - u^2 / (2 pi))) times a mean of |r|^2, and over all z1, z2 that mean is
    the squared norm of r. The first step is Boyd's, who has the maximum norm in place of the mean.

    References
    ----------
    B. Beauzamy, E. Bombieri, P. Enflo, H. Montgomery, Products of polynomials in many variables, J. Number Theory 36
    (1990), Theorem 1.2. D. W. Boyd, Sharp inequalities for the product of polynomials, Bull. London Math. Soc. 26
    (1994).

    Examples
    --------
    >>> from convla.identities import similarity_lower_bound
    >>> similarity_lower_bound(2), round(1e12 * similarity_lower_bound(12), 1)
    (0.5, 33.8)
    """
    degree = check_integer("taps", taps, minimum=1) - 1
    bombieri = 1.0 / (math.comb(2 * degree, degree) * math.comb(degree, degree // 2) ** 2)
    return max(bombieri, math.sqrt(2 * degree) * math.exp(-8 * CATALAN * degree / math.pi))


def similarity_upper_bound(taps: int) -> float:
    """Return an upper bound of the least similarity of kernels of unit norm, which `half_circle_pair` is below.

    Parameters
    ----------
    taps : int
        N, at least 1.

    Returns
    -------
    float
        ``8 pi n exp(-8 G n / pi) / erf(pi sqrt(n) / 6)^2``, n = N - 1, G Catalan's constant; at most 1.

    Notes
    -----
    The product of the pair's polynomials p, q is z^(2n) +- 1, of squared norm 2. The zeros e^(i t) of p are the
    midpoints of n cells of [-pi/2, pi/2], so log |p(-1)|, the sum of the concave log(2 cos(t / 2)), is at least n / pi
    times its integral 2 G; and its second derivative along the circle is at least -n within pi / 6 of -1, so that
    |p|^2 there is at least |p(-1)|^2 exp(-n x^2). The same holds for q at 1.

    Examples
    --------
    >>> from convla.identities import similarity_upper_bound
    >>> round(1e9 * similarity_upper_bound(12), 2)
    2.05
    """
    degree = check_integer("taps", taps, minimum=1) - 1
    if degree == 0:
        return 1.0
    inner = math.erf(math.pi * math.sqrt(degree) / 6)
    return min(1.0, 8 * math.pi * degree * math.exp(-8 * CATALAN * degree / math.pi) / inner**2)


def half_circle_pair(taps: int) -> tuple[NumPyArray, NumPyArray]:
    """Return two kernels of unit norm whose zeros are evenly spread on the right and on the left half of the circle.

    Parameters
    ----------
    taps : int
        N, at least 1.

    Returns
    -------
    k1, k2 : array of shape (taps,)
        The frequencies of the one are near pi, those of the other near 0.

    Examples
    --------
    >>> from convla.identities import half_circle_pair
    >>> [k.round(3).tolist() for k in half_circle_pair(3)]
    [[0.5, -0.707, 0.5], [0.5, 0.707, 0.5]]
    """
    degree = check_integer("taps", taps, minimum=1) - 1
    angles = -np.pi / 2 + (np.arange(degree) + 0.5) * np.pi / max(degree, 1)
    # One pair of conjugate zeros after the other, the outermost and the innermost by turns: coefficients stay moderate.
    kernel = np.ones(1)
    for angle in angles[angles > 1e-12]:
        kernel = np.convolve(kernel, [1.0, -2.0 * np.cos(angle), 1.0])
    if degree % 2:
        kernel = np.convolve(kernel, [1.0, -1.0])
    kernel = kernel / np.linalg.norm(kernel)
    return kernel, kernel * (-1.0) ** np.arange(taps)


def least_similar_pair(
    taps: int, *, starts: int = 64, sweeps: int = 400, rng: Seed = 0
) -> tuple[NumPyArray, NumPyArray]:
    """Search two kernels of unit norm with the least convolutional similarity.

    Parameters
    ----------
    taps : int
        N, at least 1.
    starts : int
        Random starts, of which the best is returned.
    sweeps : int
        Alternating minimisations from each start.
    rng : numpy.random.Generator or seed

    Returns
    -------
    k1, k2 : array of shape (taps,)
        A pair of which no change of one kernel alone lessens the similarity. Their similarity bounds the minimum from
        above.

    Raises
    ------
    TypeError, ValueError
        If a count is no positive integer.

    Notes
    -----
    For fixed K1 the similarity is the quadratic form of the Toeplitz matrix of K1's autocorrelation, least at its last
    eigenvector. Among the starts is the pair of (1 + z)^(N-1) and (1 - z)^(N-1), equal and alternating signs, whose
    product leaves out every second power.

    Examples
    --------
    >>> from convla.identities import least_similar_pair
    >>> k1, k2 = least_similar_pair(2)
    >>> bool(abs(abs(k1 @ k1) - 1) < 1e-12), bool(abs(k1 @ k2) < 1e-12)
    (True, True)
    """
    check_integer("taps", taps, minimum=1)
    check_integer("starts", starts, minimum=1)
    check_integer("sweeps", sweeps, minimum=1)
    generator = check_rng(rng)
    k1 = generator.standard_normal((starts, taps))
    k1[0] = [math.comb(taps - 1, i) for i in range(taps)]
    k1 /= np.linalg.norm(k1, axis=1, keepdims=True)
    for _ in range(sweeps):
        k2, _ = _best_partner(k1)
        k1, values = _best_partner(k2)
    best = int(np.argmin(values))
    return k1[best], k2[best]


def _best_partner(kernels: NumPyArray) -> tuple[NumPyArray, NumPyArray]:
    """Return for each row its unit-norm partner of least similarity, and that similarity."""
    rows, taps = kernels.shape
    padded = np.concatenate((np.zeros((rows, taps - 1)), kernels, np.zeros((rows, taps - 1))), axis=1)
    # Row t of the convolution's matrix is the kernel at lag t: similarity is |matrix @ partner|^2.
    place = np.arange(2 * taps - 1)[:, None] + taps - 1 - np.arange(taps)[None, :]
    _, values, vectors = np.linalg.svd(padded[:, place], full_matrices=False)
    return vectors[:, -1, ::-1], values[:, -1] ** 2


def least_similarity_enclosure(taps: int, *, vertices: int = 30_000) -> tuple[float, float]:
    """Enclose c_N, the least convolutional similarity of two kernels of unit norm, provably.

    Parameters
    ----------
    taps : int
        N, at least 1.
    vertices : int
        How many vertices the last of the polytopes below may have, at least: the more, the closer the lower bound.

    Returns
    -------
    lower, upper : float
        ``lower <= c_N <= upper``; the upper one is the similarity of the best pair found, but for a rounding.

    Raises
    ------
    TypeError, ValueError
        If an argument is no positive integer.

    Notes
    -----
    The autocorrelations of kernels of N taps are the non-negative cosine polynomials of degree n (Fejer and Riesz), and
    CS is their inner product, so c_N is the least eigenvalue of the Toeplitz matrix T(a), least over all a of this kind
    with a_0 = 1. It is a concave function of a, and the set lies in the polytope of those that are non-negative on a
    finite grid; a concave function is least at a vertex. A vertex vanishes at n points of the grid, which are adjacent
    in pairs but for the ends of the interval (Gale's evenness condition), so all are written down. The grid is refined
    where the worst vertices have their zeros. At every vertex T(a) - lower * I is proved positive definite by a
    Cholesky factorisation, with bounds of all rounding errors.

    References
    ----------
    S. M. Rump, Verification of positive definiteness, BIT 46 (2006), for the last step.

    Examples
    --------
    >>> from convla.identities import least_similarity_enclosure
    >>> lower, upper = least_similarity_enclosure(5)
    >>> bool(lower <= upper <= 1.02 * lower)
    True
    """
    degree = check_integer("taps", taps, minimum=1) - 1
    check_integer("vertices", vertices, minimum=1)
    if degree == 0:
        return 1.0, 1.0
    k1, k2 = least_similar_pair(taps, starts=16, sweeps=200)
    first, second = ([Fraction(float(entry)) for entry in kernel] for kernel in (k1, k2))
    product = np.convolve(np.array(first, dtype=object), np.array(second, dtype=object)[::-1])
    norms = sum(entry * entry for entry in first) * sum(entry * entry for entry in second)
    upper = math.nextafter(float(sum(entry * entry for entry in product) / norms), math.inf)
    angles = (np.arange(14) + 0.5) * np.pi / 14  # fourteen nodes have quadrature weights, to degree 27: a_0 > 0
    if degree > 27:
        raise ValueError(f"taps must be at most 28, got {taps}")
    while True:
        values, zeros, counted = [], [], 0
        for polynomials, errors, pairs in _vertices(np.sort(np.cos(angles)), degree):
            values.append(_toeplitz_floor(polynomials, errors))
            zeros.append(pairs)
            counted += len(pairs)
        least = min(float(value.min()) for value in values)
        worst = {
            round(float(np.mean(np.arccos(np.clip(pair, -1, 1)))), 6)
            for value, pairs in zip(values, zeros, strict=True)
            for place in np.argsort(value)[:6]
            if value[place] < 0.985 * upper
            for pair in pairs[place]
        }
        refined = np.unique(np.concatenate((angles, sorted(worst))))
        if counted >= vertices or refined.size == angles.size:
            return max(least, similarity_lower_bound(taps) * (1 - 1e-12)), upper
        angles = refined


def _vertices(grid: NumPyArray, degree: int) -> Iterator[tuple[NumPyArray, NumPyArray, NumPyArray]]:
    """Yield the cosine polynomials that vanish at `degree` points and are non-negative on the grid and at -1 and 1.

    Each as coefficients a_0 .. a_n relative to a_0, a bound of their errors, and the pairs of neighbours (k, 2) at
    which it vanishes besides the ends.
    """
    for ends in itertools.product((False, True), repeat=2):
        count, odd = divmod(degree - sum(ends), 2)
        if odd or degree < sum(ends):
            continue
        points = np.concatenate(([] if ends[0] else [-1.0], grid, [] if ends[1] else [1.0]))
        chosen = itertools.combinations(range(points.size - count), count)
        starts = np.array(list(chosen), dtype=np.int64).reshape(
            math.comb(points.size - count, count), count
        ) + np.arange(count)
        pairs = np.stack((points[starts], points[starts + 1]), axis=2)
        roots = np.concatenate(
            [pairs.reshape(len(pairs), -1)]
            + [np.full((len(pairs), 1), side) for side, end in zip((-1.0, 1.0), ends, strict=True) if end],
            axis=1,
        )
        a, moduli = (np.eye(1, degree + 2).repeat(len(roots), axis=0) for _ in range(2))
        for root in roots.T:
            a, moduli = _raised(a) - 2.0 * root[:, None] * a, _raised(moduli) + 2.0 * np.abs(root)[:, None] * moduli
        sign = -1.0 if ends[1] else 1.0
        a, moduli = sign * a[:, : degree + 1], moduli[:, : degree + 1]
        errors = gamma(6 * degree + 6, np.float64) * moduli
        first = a[:, :1] - errors[:, :1]
        yield a / a[:, :1], (errors + np.abs(a) * errors[:, :1] / first) / first, pairs


def _raised(a: NumPyArray) -> NumPyArray:
    """Multiply a_0 + 2 sum a_t cos(t x) by 2 cos x: each coefficient moves by one place to either side."""
    above = np.concatenate((a[:, 1:], np.zeros((len(a), 1))), axis=1)
    below = np.concatenate((a[:, 1:2], a[:, :-1]), axis=1)
    return np.asarray(above + below)


def _toeplitz_floor(a: NumPyArray, errors: NumPyArray) -> NumPyArray:
    """Return proved lower bounds of the least eigenvalues of the Toeplitz matrices of a, entries off by errors."""
    size = a.shape[1]
    lags = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    floors = np.empty(len(a))
    for start in range(0, len(a), 20_000):
        part = slice(start, start + 20_000)
        matrices = a[part][:, lags]
        # Rump: if Cholesky of A - c I ends, with c = gamma / (1 - gamma) times the trace, A is positive definite.
        margin = 2.0 * gamma(size + 2, np.float64) * size + 2.0 * errors[part].sum(axis=1)
        values = np.linalg.eigvalsh(matrices)[:, 0] - 2.0 * margin
        np.linalg.cholesky(matrices - (values + margin)[:, None, None] * np.eye(size))
        floors[part] = values - 4 * np.finfo(np.float64).eps
    return floors
