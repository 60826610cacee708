"""When making kernels less similar fails to make feature maps less similar: ends in closed form, and limit laws."""

from __future__ import annotations

import math

import numpy as np

from convla._array import as_float_array, namespace
from convla._validate import check_array, check_integer, check_real, check_same_shape
from convla.errors import ShapeError
from convla.typing import AnyArray, Array, ArrayLike

__all__ = [
    "crossing_probability",
    "orthogonality_fails",
    "orthogonality_failure_limit",
    "orthogonalized_pair",
    "similarity_failure_limit",
]


def orthogonalized_pair(k1: ArrayLike, k2: ArrayLike) -> tuple[AnyArray, AnyArray]:
    """Return where the gradient flow of the squared inner product of two kernels ends.

    Parameters
    ----------
    k1, k2 : array of shape (..., taps)
        Pairs of kernels, none of whose sums and differences is 0; integers become float64.

    Returns
    -------
    k1, k2 : array of shape (..., taps)
        Orthogonal kernels.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the kernels are no arrays of finite real numbers of one shape, or one pair is equal or opposite.

    Notes
    -----
    ``<K1, K2> = (|K1 + K2|^2 - |K1 - K2|^2) / 4``, so that the sum and the difference each move along themselves, and
    the flow keeps the product of their lengths: it ends when both have the geometric mean of the two. Short steps end
    in the same directions, a little shorter.

    Examples
    --------
    >>> k1, k2 = orthogonalized_pair([3.0, 0.0], [1.0, 0.0001])
    >>> abs(round(float(k1 @ k2), 12))
    0.0
    """
    total, gap, longer, shorter = _sum_and_difference(k1, k2)
    xp = namespace(total)
    factor = xp.sqrt(shorter / longer)[..., None]
    total, gap = total * factor, gap / factor
    return (total + gap) / 2.0, (total - gap) / 2.0


def orthogonality_fails(k1: ArrayLike, k2: ArrayLike, gram: ArrayLike) -> AnyArray:
    """Return whether making two kernels orthogonal leaves their feature maps no less similar than they were.

    Parameters
    ----------
    k1, k2 : array of shape (..., taps)
        As `orthogonalized_pair` takes them.
    gram : array of shape (..., taps, taps)
        T of the input, ``<F1, F2> = K1^T T K2``: `convla.similarity.feature_map_gram`, for any padding.

    Returns
    -------
    array of bool of shape (...)
        Whether ``|<F1, F2>|`` at the end is at least that at the start.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `orthogonalized_pair`, and if `gram` does not fit.

    Notes
    -----
    With the sum and the difference S, D of the kernels, and maps F_S, F_D: it fails exactly if the longer of S and D
    has the smaller quotient ``|F|^2 / |K|``, or an equal one.

    Examples
    --------
    >>> bool(orthogonality_fails([1.0, 0.0], [0.6, 0.8], [[1.0, 0.0], [0.0, 1.0]]))
    False
    """
    total, gap, longer, shorter = _sum_and_difference(k1, k2)
    xp = namespace(total)
    gram = check_array("gram", gram, xp, min_ndim=2, axes="(..., taps, taps)")
    taps = total.shape[-1]
    if tuple(gram.shape[-2:]) != (taps, taps):
        raise ShapeError(f"gram must have shape (..., {taps}, {taps}) to go with k1, got {tuple(gram.shape)}")
    energies = (xp.sum(k * (gram @ k[..., None])[..., 0], axis=-1) for k in (total, gap))
    quotients = [energy / length for energy, length in zip(energies, (longer, shorter), strict=True)]
    return (longer - shorter) * (quotients[0] - quotients[1]) <= 0.0


def crossing_probability(ratio: float, correlation: float) -> float:
    """Return the probability that the modulus of a second normal variable, both of mean 0, is at least that of a first.

    Parameters
    ----------
    ratio : float
        The second's standard deviation over the first's.
    correlation : float
        Of the two.

    Returns
    -------
    float
        ``atan2(2 q sqrt(1 - r^2), 1 - q^2) / pi``.

    Raises
    ------
    TypeError, ValueError
        If an argument is no finite real number, the ratio is negative or the correlation not in [-1, 1].

    Notes
    -----
    The event is that (Z2 - Z1)(Z2 + Z1) is not negative; by Sheppard's formula (1899) its probability is
    ``1/2 + arcsin(c) / pi`` with c the correlation of the two factors.

    Examples
    --------
    >>> crossing_probability(1.0, 0.0), round(crossing_probability(0.1, 0.0), 5)
    (0.5, 0.06345)
    """
    q = check_real("ratio", ratio, minimum=0.0)
    r = check_real("correlation", correlation, minimum=-1.0)
    if r > 1.0:
        raise ValueError(f"correlation must be at most 1, got {correlation}")
    return math.atan2(2.0 * q * math.sqrt(1.0 - r * r), 1.0 - q * q) / math.pi


def orthogonality_failure_limit(taps: int, length: int) -> float:
    """Return the share of pairs of long kernels that fail to make maps of white noise less similar by being orthogonal.

    Parameters
    ----------
    taps : int
        N; entries of the kernels are independent, of mean 0 and one variance.
    length : int
        M, at least N, of the input: independent entries of mean 0 and one variance.

    Returns
    -------
    float
        ``arctan(2 sqrt(v)) / pi``, v the sum over t = 1 .. N - 1 of ``2 (N - t)(M - t) / (N M^2)``: about
        ``(N / M)(1 - N / (3 M))``.

    Raises
    ------
    TypeError, ValueError
        If an argument is no positive integer, or `length` less than `taps`.

    Examples
    --------
    >>> round(orthogonality_failure_limit(16, 64), 4)
    0.2375
    """
    n = check_integer("taps", taps, minimum=1)
    m = check_integer("length", length, minimum=n)
    spread = sum(2 * (n - t) * (m - t) for t in range(1, n)) / (n * m * m)
    # What is left has variance v; what there was is the kernels' own inner product, of variance 1, and the same.
    ratio = math.sqrt(spread / (1.0 + spread))
    return crossing_probability(ratio, ratio)


def similarity_failure_limit(time: float) -> float:
    """Return the share of pairs of long kernels that convolutional similarity fails, for white inputs.

    Parameters
    ----------
    time : float
        ``4 N s^2`` times the learning rate times the number of steps, for N taps with entries of variance s^2.

    Returns
    -------
    float
        For long times about ``(2 / sqrt(3)) time^(-3/2)``.

    Raises
    ------
    TypeError, ValueError
        If `time` is no positive real number.

    Notes
    -----
    As N grows, frequencies no longer meet: at each the product of the one spectrum with the other's conjugate keeps its
    phase and is multiplied by ``g = d exp(-d time / 2) / (a - b exp(-d time))``, with a >= b the two powers at the
    start over their mean, and d = a - b. Powers are exponential, phases uniform; given the powers the inner products
    before and after are normal, with variances the sums of ``a b`` and ``a b g^2`` and covariance that of ``a b g``.

    Examples
    --------
    >>> round(similarity_failure_limit(8.0), 4)
    0.0266
    """
    t = check_real("time", time, positive=True)
    # The trapezoidal rule in the logarithms of b and of d, which are integrated from 0 to infinity.
    logs = np.linspace(-30.0, 5.0, 701)
    b, d = np.exp(logs)[:, None], np.exp(logs)[None, :]
    weight = np.exp(-2.0 * b - d) * b * (b + d) * (b * d)
    weight = weight / weight.sum()
    # 1 - g, and the variance of g from it, without cancellation for short times.
    lost = -(d * np.expm1(-d * t / 2.0) + b * np.expm1(-d * t)) / (d - b * np.expm1(-d * t))
    mean = float((weight * lost).sum())
    variance = float((weight * (lost - mean) ** 2).sum())
    # `crossing_probability`, with 1 - E g^2 and the root of E g^2 - (E g)^2 for its arguments.
    return math.atan2(2.0 * math.sqrt(variance), mean * (2.0 - mean) - variance) / math.pi


def _sum_and_difference(k1: ArrayLike, k2: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """Return K1 + K2, K1 - K2 and their norms."""
    xp = namespace(k1, k2)
    k1, k2 = (check_array(name, k, xp, min_ndim=1, axes="(..., taps)") for name, k in (("k1", k1), ("k2", k2)))
    check_same_shape("k1", k1, "k2", k2)
    k1, k2 = (as_float_array(k, xp) for k in (k1, k2))
    parts = (k1 + k2, k1 - k2)
    norms = [xp.sqrt(xp.sum(part * part, axis=-1)) for part in parts]
    if not all(bool(xp.all(norm > 0.0)) for norm in norms):
        raise ValueError("k1 and k2 must be neither equal nor opposite in any pair")
    return parts[0], parts[1], norms[0], norms[1]
