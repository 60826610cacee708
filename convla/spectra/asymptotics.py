"""The largest singular value of a large zero-padded layer from its symbol alone, to second order in the image size."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from convla._array import namespace, to_numpy
from convla._validate import check_rng
from convla.linear_map import LinearMap
from convla.spectra.border import prepared
from convla.spectra.maximiser import symbol_peaks
from convla.spectra.symbol import FloatArray, Symbol
from convla.typing import Seed

__all__ = ["asymptotic_largest_singular_value"]

_STEP = 1e-3  # of the differences, in radians: their error, about 1e-6, is that of the leading term's own accuracy


def asymptotic_largest_singular_value(operator: LinearMap, *, rng: Seed = 0) -> float:
    """Estimate the largest singular value of a zero-padded operator at a cost that does not depend on the image size.

    Parameters
    ----------
    operator : ConvOperator or its transpose
        With boundary "zero".
    rng : numpy.random.Generator or seed
        For the search for the symbol's maxima.

    Returns
    -------
    float
        An estimate, neither a lower nor an upper bound.

    Raises
    ------
    TypeError
        If `operator` is not a `ConvOperator` or its transpose, or its kernel holds exact objects.
    ValueError
        If its boundary is not "zero".

    Notes
    -----
    With S the maximum of ``norm(f)``, attained at theta*, and n_j the sizes in output steps,

        sigma^2 ~ S^2 + sum_j pi^2 / (2 (n_j + 1)^2) d^2/dtheta_j^2 norm(f(theta*))^2:

    the energy of a particle in a box, its mass given by the curvature. It asks for an isolated maximum with a simple
    singular value and curvatures that do not mix the axes much; of several maxima the one with the largest estimate
    counts. Flat symbols, those of orthogonal layers, have no such expansion. "Singular values of a layer" in the
    documentation measures the range of validity.

    References
    ----------
    S. V. Parter, On the extreme eigenvalues of truncated Toeplitz matrices, Bull. Amer. Math. Soc. 67 (1961) 191-197.
    H. Widom, On the eigenvalues of certain Hermitian operators, Trans. Amer. Math. Soc. 88 (1958) 491-522.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, asymptotic_largest_singular_value
    >>> smoothing = ConvOperator(np.array([[[1.0, 2.0, 1.0]]]), (100,))  # norm 4 cos(pi / 202)^2
    >>> bool(abs(asymptotic_largest_singular_value(smoothing) - 4 * np.cos(np.pi / 202) ** 2) < 1e-5)
    True
    """
    problem = prepared(operator)
    scaled = problem.convolution
    if scaled is None:
        raise TypeError(f"operator must be a convolution, or fold into one, got {type(operator).__name__}")
    geometry = scaled.geometry
    if geometry.boundary != "zero":
        raise ValueError(f"operator must have boundary 'zero', got {geometry.boundary!r}")
    xp = namespace(scaled.kernel)
    symbol = Symbol(xp.astype(scaled.kernel, xp.float64), geometry)
    sizes = np.array([n / s for n, s in zip(geometry.image_shape, geometry.stride, strict=True)])
    estimates = []
    for peak in symbol_peaks(symbol, rng=check_rng(rng), refinements=12):
        centre, curvatures = _expansion(symbol, peak.frequency, peak.group)
        square = centre + float(np.sum(np.pi**2 / (2 * (sizes + 1) ** 2) * np.minimum(curvatures, 0.0)))
        estimates.append(math.sqrt(max(square, 0.0)))
    return float(Fraction(max(estimates)) * abs(problem.factor))


def _expansion(symbol: Symbol, frequency: FloatArray, group: int) -> tuple[float, FloatArray]:
    """Return ``norm(f)^2`` and its second derivatives along the axes, by central differences."""
    offsets = _STEP * np.concatenate((np.zeros((1, frequency.size)), np.eye(frequency.size), -np.eye(frequency.size)))
    values = symbol.xp.linalg.svdvals(symbol.at(frequency + offsets)[group, ...])[:, 0]
    squares = np.asarray(to_numpy(values), np.float64) ** 2
    forward, backward = np.split(squares[1:], 2)
    return float(squares[0]), (forward + backward - 2 * squares[0]) / _STEP**2
