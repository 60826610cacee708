"""How singular values are distributed: their shares in intervals, the zeros among them, the stable rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.special

from convla._array import namespace, on_device_of, to_numbers, to_numpy
from convla._threads import blas_on_one_thread
from convla._validate import check_integer, check_real, check_rng
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.dense import decomposition_is_cheap
from convla.spectra.fourier import fourier_is_exact
from convla.spectra.frobenius import squared_frobenius_norm
from convla.spectra.merge import values_in
from convla.spectra.parts import direct_sum
from convla.spectra.result import SingularValues
from convla.spectra.ritz import FloatArray
from convla.spectra.status import Status
from convla.spectra.values import largest_singular_value, singular_values
from convla.typing import Array, Seed

__all__ = ["SpectralDensity", "StableRank", "spectral_density", "stable_rank", "values_are_at_hand"]

_DIRECT = 3e10  # operations of a decomposition: about a second
_WRITTEN = 1 << 24  # entries of a matrix that is written out for its Frobenius norm
_PROBES = 64
_SPARE = 1e-3  # what an estimate of the largest value may lack, relative to it
_SHARE = 0.95


@dataclass(frozen=True)
class SpectralDensity:
    """The shares of a map's singular values that lie in intervals.

    Attributes
    ----------
    edges : numpy.ndarray of float64, shape (bins + 1,)
        Of the intervals, from 0 to no less than the largest value.
    shares : numpy.ndarray of float64, shape (bins,)
        Of the ``min(m, n)`` singular values in each interval; their sum is 1 but for the error.
    errors : numpy.ndarray of float64, shape (bins,)
        What the shares may be off, all of them together in a share `confidence` of runs; 0 where they are exact.
    confidence : float
        1 where they are exact.
    blur : float
        Over which the intervals' ends are smoothed, as a difference of squared values relative to the largest; 0 where
        they are exact.
    zeros : int
        How many singular values are zero, or not to be told from it in float64; the least known number of them where
        the shares are estimated.
    zeros_proved : bool
        Whether that is their number without any doubt about rounding.
    status : Status
        "exact" or "estimated".
    """

    edges: FloatArray
    shares: FloatArray
    errors: FloatArray
    confidence: float
    blur: float
    zeros: int
    zeros_proved: bool
    status: Status

    def __repr__(self) -> str:
        return f"<SpectralDensity of {len(self.shares)} intervals up to {self.edges[-1]:.6g}: {self.status}>"


@dataclass(frozen=True)
class StableRank:
    """The stable rank of a map, with what supports it.

    Attributes
    ----------
    value : float
        The squared Frobenius norm over the squared largest singular value: between 1 and the rank.
    error : float
        What it may be off: a bound where the status is "exact" or "confirmed", else an estimate.
    status : Status
        That of the largest singular value; "estimated" where the Frobenius norm is.
    """

    value: float
    error: float
    status: Status

    def __float__(self) -> float:
        return self.value


def stable_rank(operator: LinearMap, *, start: SingularValues | None = None, rng: Seed = 0) -> StableRank:
    """Return the stable rank of a map: its squared Frobenius norm over its squared largest singular value.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map.
    start : SingularValues, optional
        A result for the largest singular value of this operator, which is then not looked for again.
    rng : numpy.random.Generator or seed

    Returns
    -------
    StableRank

    Raises
    ------
    TypeError
        If `operator` is no `LinearMap`, or its kernel holds exact objects.
    ValueError
        If the map is zero.

    Notes
    -----
    The Frobenius norm is exact for a convolution of any size and for a map that can be written out; of a larger map it
    is estimated by random vectors, with an error bar that holds in 95 of 100 runs.

    References
    ----------
    M. Rudelson and R. Vershynin, Sampling from large matrices: an approach through geometric functional analysis,
    J. ACM 54 (2007).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, stable_rank
    >>> identity = ConvOperator(np.array([[[0.0, 1.0, 0.0]]]), (8,))
    >>> round(stable_rank(identity).value, 9)
    8.0
    """
    largest = largest_singular_value(operator, rng=rng) if start is None else start
    if largest.value == 0.0:
        raise ValueError("operator must not be zero: a map that is zero has no stable rank")
    convolution = isinstance(operator, ConvOperator) or isinstance(operator.T, ConvOperator)
    status, spread = largest.status, 0.0
    if convolution or math.prod(operator.shape) <= _WRITTEN:
        value = squared_frobenius_norm(operator, unit=largest.value)
    else:
        squares, spread = _estimated_squares(operator, check_rng(rng))
        status = status if status == Status.NOT_CONVERGED else Status.ESTIMATED
        value = squares / largest.value / largest.value
    return StableRank(value, 2 * value * float(largest.errors[0]) / largest.value + value * spread, status)


def _estimated_squares(operator: LinearMap, rng: np.random.Generator) -> tuple[float, float]:
    """Return the squared Frobenius norm by random vectors, and its relative error in 95 of 100 runs."""
    side = operator.T if operator.shape[0] < operator.shape[1] else operator
    found = []
    for _ in range(_PROBES):
        image = side._apply(_unit_vector(side, rng)[None, ...])
        found.append(side.shape[1] * float(np.sum(np.square(to_numpy(image), dtype=np.float64))))
    mean = float(np.mean(found))
    return mean, float(_student(_PROBES, 1) * np.std(found, ddof=1) / math.sqrt(_PROBES)) / mean


@blas_on_one_thread()
def spectral_density(
    operator: LinearMap,
    bins: int = 32,
    *,
    probes: int = 16,
    degree: int = 64,
    confidence: float = _SHARE,
    start: SingularValues | None = None,
    rng: Seed = 0,
) -> SpectralDensity:
    """Return which shares of a map's singular values lie in intervals of equal length.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map.
    bins : int, default 32
        The number of intervals between 0 and the largest singular value.
    probes : int, default 16
        Random vectors, at least two, where not all values are at hand.
    degree : int, default 64
        Of the polynomials that then stand for the intervals; each probe takes half as many products with the Gram map.
    confidence : float, default 0.95
        The share of runs in which all error bars hold together.
    start : SingularValues, optional
        A result for the largest singular value of this operator, which is then not looked for again.
    rng : numpy.random.Generator or seed

    Returns
    -------
    SpectralDensity
        Exact where the values can be had by a decomposition of about a second.

    Raises
    ------
    TypeError
        If `operator` is no `LinearMap`, or its kernel holds exact objects.
    ValueError
        If an option is out of range, or the map is zero.

    Notes
    -----
    Where the values are not at hand, the indicator function of each interval, as a function of the squared value, is
    replaced by its Chebyshev expansion up to the degree, damped by Jackson's kernel: a polynomial p between 0 and 1.
    For a vector z drawn evenly from the unit sphere ``z^T p(G) z`` has the mean ``trace p(G) / n``, the smoothed share,
    and the Gauss quadrature of ``degree / 2 + 1`` Lanczos steps gives it exactly. The error bars are Student's, over
    the probes, for all intervals together (Bonferroni); they speak of the smoothed shares.

    References
    ----------
    G. H. Golub and G. Meurant, Matrices, Moments and Quadrature with Applications, Princeton, 2010.
    L. Lin, Y. Saad and C. Yang, Approximating spectral densities of large matrices, SIAM Rev. 58 (2016) 34-65.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, spectral_density
    >>> spectral_density(ConvOperator(np.array([[[0.0, 2.0, 0.0]]]), (8,)), bins=4).shares
    array([0., 0., 0., 1.])
    """
    bins = check_integer("bins", bins, minimum=1)
    probes = check_integer("probes", probes, minimum=2)
    degree = check_integer("degree", degree, minimum=2)
    confidence = check_real("confidence", confidence, minimum=0.0, maximum=1.0)
    convolution = operator if isinstance(operator, ConvOperator) else operator.T
    parts = direct_sum(convolution) if isinstance(convolution, ConvOperator) else None
    structural = 0 if parts is None else min(operator.shape) - values_in(parts)
    if values_are_at_hand(operator):
        return _exact(singular_values(operator, rng=rng), bins, structural)
    largest = largest_singular_value(operator, rng=rng) if start is None else start
    if largest.value == 0.0:
        raise ValueError("operator must not be zero: a map that is zero has no density")
    # The polynomials are only bounded on an interval that holds all values.
    known = largest.upper if math.isfinite(largest.upper) else math.inf
    top = min(known, largest.value * (1.0 + _SPARE)) if not largest.status.proved else known
    edges = np.linspace(0.0, top, bins + 1)
    coefficients = _smoothed_intervals((edges / top) ** 2, degree)
    generator = check_rng(rng)
    found = np.array([_probe(operator, top, coefficients, degree // 2 + 1, generator) for _ in range(probes)])
    spread = found.std(axis=0, ddof=1) / math.sqrt(probes)
    return SpectralDensity(
        edges=edges,
        shares=found.mean(axis=0),
        errors=_student(probes, bins, confidence) * spread,
        confidence=confidence,
        blur=math.pi / degree,
        zeros=structural,
        zeros_proved=False,
        status=Status.ESTIMATED,
    )


def values_are_at_hand(operator: LinearMap) -> bool:
    """Tell whether all singular values can be had in about a second."""
    convolution = operator if isinstance(operator, ConvOperator) else operator.T
    if not isinstance(convolution, ConvOperator):
        return decomposition_is_cheap(operator, limit=_DIRECT)
    if fourier_is_exact(convolution.geometry):
        return True
    return all(decomposition_is_cheap(part.operator, limit=_DIRECT) for part in direct_sum(convolution))


def _exact(found: SingularValues, bins: int, structural: int) -> SpectralDensity:
    values = np.asarray(to_numpy(found.values), np.float64)
    top = float(values[0])
    if top == 0.0:
        raise ValueError("operator must not be zero: a map that is zero has no density")
    edges = np.linspace(0.0, top, bins + 1)
    zeros = int(np.count_nonzero(values <= found.errors))
    shares = np.histogram(values, edges)[0] / values.size
    return SpectralDensity(edges, shares, np.zeros(bins), 1.0, 0.0, zeros, zeros == structural, Status.EXACT)


def _smoothed_intervals(edges: FloatArray, degree: int) -> FloatArray:
    """Return the Chebyshev coefficients (bins, degree + 1) of intervals on [0, 1], damped by Jackson's kernel."""
    angles = np.arccos(np.clip(2.0 * edges - 1.0, -1.0, 1.0))
    orders = np.arange(1, degree + 1)
    sines = np.sin(orders * angles[:, None]) / orders
    first = (angles[:-1] - angles[1:])[:, None] / math.pi
    others = 2.0 / math.pi * (sines[:-1] - sines[1:])
    step = math.pi / (degree + 2)
    places = np.arange(degree + 1)
    damping = (degree + 2 - places) * np.cos(step * places) + np.sin(step * places) / math.tan(step)
    return np.asarray(np.concatenate((first, others), axis=1) * damping / (degree + 2))


def _probe(
    operator: LinearMap, top: float, coefficients: FloatArray, steps: int, rng: np.random.Generator
) -> FloatArray:
    """Return ``z^T p(M^T M / top^2) z`` for each polynomial and a random vector z of norm 1."""
    side = operator.T if operator.shape[0] < operator.shape[1] else operator
    xp = namespace(side.like)
    size = side.shape[1]
    steps = min(steps, size)
    basis = xp.reshape(_unit_vector(side, rng), (1, size))
    diagonal, beside = [], []
    for _ in range(steps):
        image = xp.reshape(basis[-1, :], (1, *side.domain_shape))
        image = xp.reshape(side._adjoint(side._apply(image)), (size,)) / top / top
        diagonal.append(xp.sum(image * basis[-1, :]))
        for _ in range(2):  # what is left of the others after once is rounding of what was removed
            image = image - xp.matmul(xp.matmul(basis, image), basis)
        norm = xp.sqrt(xp.sum(image * image))
        beside.append(norm)
        basis = xp.concat([basis, (image / xp.where(norm > 0, norm, xp.ones_like(norm)))[None, :]])
    # Read together, which a GPU is waited for once. What comes after the Krylov space is whole is dropped.
    numbers = np.array(to_numbers(xp.stack([*diagonal, *beside]))).reshape(2, steps)
    ends = np.flatnonzero(numbers[1] <= 4 * float(xp.finfo(side.dtype).eps))
    count = int(ends[0]) + 1 if ends.size else steps
    off = numbers[1, : count - 1]
    tridiagonal = np.diag(numbers[0, :count]) + np.diag(off, 1) + np.diag(off, -1)
    nodes, vectors = np.linalg.eigh(tridiagonal)
    angles = np.arccos(np.clip(2.0 * nodes - 1.0, -1.0, 1.0))
    polynomials = coefficients @ np.cos(np.arange(coefficients.shape[1])[:, None] * angles)
    return np.asarray(polynomials @ vectors[0] ** 2)


def _unit_vector(operator: LinearMap, rng: np.random.Generator) -> Array:
    """Return a vector drawn evenly from the unit sphere, as an argument of a map."""
    draw = rng.standard_normal(operator.domain_shape)
    xp = namespace(operator.like)
    return on_device_of(draw / np.linalg.norm(draw), operator.like, xp, dtype=operator.dtype)


def _student(probes: int, bins: int, confidence: float = _SHARE) -> float:
    """Return how many standard errors wide the bars are that hold for all intervals together."""
    return float(scipy.special.stdtrit(probes - 1, 1.0 - (1.0 - confidence) / bins / 2.0))
