"""Enclosures of the largest singular value that are proved to hold, rounding errors included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla._threads import blas_on_one_thread
from convla._validate import check_array, check_choice, check_integer
from convla.errors import ShapeError
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.border import convolution_of, prepared
from convla.spectra.certificate import U64, gamma
from convla.spectra.dense import dense_triplets
from convla.spectra.enclosure import dense_upper_bound, symbol_maxima, symbol_upper_bound
from convla.spectra.maximiser import SymbolPeak, start_vectors
from convla.spectra.result import SingularValues
from convla.spectra.roundoff import in_double, product_error
from convla.spectra.scaling import scale_down, scale_up
from convla.spectra.search import lanczos_triplets
from convla.spectra.starts import structured_start
from convla.spectra.symbol import Symbol
from convla.typing import Array, ArrayLike, Seed

__all__ = ["SingularValueBounds", "singular_value_bounds"]

_DENSE_SIDE = 256
_MATVECS_FROM_WAVES, _MATVECS, _CHEAP_MATVECS = 12, 24, 40
_CHEAP = 10**7  # products in an application
_NOISE = 0.05  # of the start, for the parts of the operator that the waves do not reach
_WAVES = 4  # of the symbol's maxima, whose plane waves the short iteration starts from
_INDEPENDENT = 1e-3  # of their overlaps' eigenvalues: waves closer to each other count once
_TOLERANCE = 1e-4  # of the short iteration: below what the torus adds to the other side


class SingularValueBounds(NamedTuple):
    """An enclosure of the largest singular value.

    Attributes
    ----------
    lower, upper : float
        ``lower <= sigma_max <= upper``.
    lower_certificate, upper_certificate : str
        What proves each side, in a sentence.
    """

    lower: float
    upper: float
    lower_certificate: str
    upper_certificate: str


@blas_on_one_thread()
def singular_value_bounds(
    operator: LinearMap,
    *,
    method: Literal["auto", "dense", "symbol"] = "auto",
    start: SingularValues | ArrayLike | None = None,
    max_matvecs: int | None = None,
    rng: Seed = 0,
) -> SingularValueBounds:
    """Enclose the largest singular value of an operator, provably.

    Parameters
    ----------
    operator : ConvOperator or its transpose
    method : {"auto", "dense", "symbol"}
        How to bound from above: from the matrix itself, from the symbol (any size), or the cheapest that is tight.
    start : SingularValues or array of shape (..., *domain_shape), optional
        A previous result for this operator, or an image, whose first vector serves for the lower bound as it is. By
        default a short iteration finds one.
    max_matvecs : int, optional
        The length of that iteration, in applications of the operator and its transpose: by default 12 from plane waves,
        24 on images too small for those, and 40 where each takes fewer than ten million products.
    rng : numpy.random.Generator or seed

    Returns
    -------
    SingularValueBounds

    Raises
    ------
    TypeError
        If `operator` is not a `ConvOperator` or its transpose, or its kernel holds exact objects.
    ValueError
        If an option is out of range.

    Notes
    -----
    Below: ``norm(M v) / norm(v)`` for a Ritz vector v, evaluated in float64.

    Above, f being the symbol (polyphase for strides) and the maximum taken over the groups:

    - zero boundary: M is a submatrix of the convolution on any torus that the image and its padding fit into, so
      ``sigma_max <= max norm(f)`` over the torus's frequencies. The functions on the torus may as well change sign
      when they go around; of the two kinds the one whose frequencies miss the maximum of f is taken.
    - circular boundary: the same with the image's own torus; equality where the outputs visit it evenly.
    - reflect, replicate: M = T E with T the zero-padded ("valid") convolution of the extended image and E the
      extension, whose norm is the square root of the most positions that read one entry. The bound exceeds the
      symbol's by up to that factor, which a shift under "replicate" attains. ``norm(M)^2 <= norm(M)_1 norm(M)_inf`` is
      taken where it is smaller.
    - along an axis longer than 32 times the degree m of ``f* f`` the supremum over all frequencies is bounded instead,
      from N frequencies: it is at most ``cos(pi m / N)^(-1/2)`` times their maximum.

    Each maximum is proved by Cholesky factorisations with a rounding error bound, see `convla.spectra.certificate`.

    References
    ----------
    M. Riesz, Eine trigonometrische Interpolationsformel, Jahresber. DMV 23 (1914) 354-368, for the factor.
    S. M. Rump, Verification of positive definiteness, BIT 46 (2006) 433-452.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, singular_value_bounds
    >>> difference = ConvOperator(np.array([[[1.0, 0.0, -1.0]]]), (600,))
    >>> lower, upper, *_ = singular_value_bounds(difference)
    >>> bool(lower <= 2 * np.cos(np.pi / 601) <= upper)
    True
    """
    convolution_of(operator)  # of other maps there is no enclosure
    check_choice("method", method, ("auto", "dense", "symbol"))
    if max_matvecs is not None:
        check_integer("max_matvecs", max_matvecs, minimum=2)
    problem = prepared(operator)
    scaled, exponent = problem.convolution, problem.exponent
    assert scaled is not None
    given = None if start is None else _given_vector(operator, scaled, start)
    if not bool(namespace(scaled.kernel).any(scaled.kernel != 0)):
        zero = "no entry of the kernel that meets the image differs from zero"
        return SingularValueBounds(0.0, 0.0, zero, zero)
    generator = np.random.default_rng(rng)
    dense = method == "dense" or (method == "auto" and min(scaled.shape) <= _DENSE_SIDE)
    peaks = () if dense else symbol_maxima(scaled, generator)
    if given is not None:
        lower = _rayleigh_lower(scaled, given, transposed=problem.transposed)
    elif dense:
        lower = _rayleigh_lower(scaled, dense_triplets(in_double(scaled), 1).right)
    else:
        lower = _rayleigh_lower(scaled, _ritz_vector(scaled, peaks, max_matvecs, generator))
    if dense:
        upper, above = dense_upper_bound(scaled, guess=lower)
    else:
        upper, above = symbol_upper_bound(scaled, guess=lower, rng=generator, peaks=peaks)
    return SingularValueBounds(
        scale_down(lower, exponent), scale_up(upper, exponent), "norm of the image of a Ritz vector, in float64", above
    )


def _ritz_vector(
    operator: ConvOperator, peaks: Sequence[SymbolPeak], max_matvecs: int | None, rng: np.random.Generator
) -> Array:
    """Return a vector whose image's norm is close to the largest singular value."""
    geometry = operator.geometry
    # The maxima are those of the operator's own symbol, but for the phases that a stride picks.
    known = bool(peaks) and (geometry.boundary == "zero" or set(geometry.stride) == {1})
    if known:
        xp = namespace(operator.kernel)
        noise = rng.standard_normal(operator.domain_shape) / math.sqrt(math.prod(operator.domain_shape))
        start = _best_of_waves(operator, peaks[:_WAVES])
        start = (start + _NOISE * on_device_of(noise, start, xp, dtype=start.dtype))[None, ...]
    else:
        start, _ = structured_start(operator, rng)
    if max_matvecs is None:
        products = math.prod(operator.kernel.shape) * math.prod(geometry.output_shape)
        max_matvecs = _CHEAP_MATVECS if products < _CHEAP else _MATVECS_FROM_WAVES if known else _MATVECS
    return lanczos_triplets(
        operator, 1, rtol=_TOLERANCE, criterion="value", start=start, block=1, max_matvecs=max_matvecs, rng=rng
    ).right


def _best_of_waves(operator: ConvOperator, peaks: Sequence[SymbolPeak]) -> Array:
    """Return the Ritz vector of the plane waves of the symbol's maxima: the best of their combinations."""
    geometry = operator.geometry
    symbol = Symbol(operator.kernel, geometry)
    xp = symbol.xp
    windowed = geometry.boundary != "circular"
    pairs = [start_vectors(symbol, peak, geometry.image_shape, windowed=windowed) for peak in peaks]
    waves = xp.stack([pair[0, ...] / xp.sqrt(xp.sum(pair**2)) for pair in pairs])
    images = operator.apply(waves)
    rows, values = (xp.astype(xp.reshape(a, (len(peaks), -1)), xp.float64) for a in (waves, images))
    overlap, gram = (to_numpy(xp.matmul(a, xp.matrix_transpose(a))) for a in (rows, values))
    kept, turned = np.linalg.eigh(overlap)
    basis = turned[:, kept > _INDEPENDENT * kept[-1]] / np.sqrt(kept[kept > _INDEPENDENT * kept[-1]])
    combination = basis @ np.linalg.eigh(basis.T @ gram @ basis)[1][:, -1]
    weights = on_device_of(combination, waves, xp, dtype=waves.dtype)
    return xp.reshape(xp.matmul(weights, xp.reshape(waves, (len(peaks), -1))), operator.domain_shape)


def _given_vector(operator: LinearMap, scaled: ConvOperator, start: SingularValues | ArrayLike) -> Array:
    """Return the first right singular vector of a result, or an image, in float64 and of moderate size."""
    if isinstance(start, SingularValues) and start.right is None:
        raise ValueError("start must hold singular vectors, got a result without them")
    shape = operator.domain_shape
    axes = f"(..., {', '.join(map(str, shape))})"
    xp = namespace(operator.like)
    vectors = start.right if isinstance(start, SingularValues) else start
    array = check_array("start", vectors, xp, min_ndim=len(shape), axes=axes)
    if tuple(array.shape[-len(shape) :]) != shape:
        raise ShapeError(f"start must have shape {axes}, got {tuple(array.shape)}")
    vector = xp.astype(xp.reshape(array, (-1, *shape))[0, ...], xp.float64)
    if namespace(scaled.kernel) is not xp:
        vector, xp = to_numpy(vector), namespace(scaled.kernel)
    largest = float(xp.max(xp.abs(vector)))
    if not 0 < largest < math.inf:
        raise ValueError(f"start must be finite and not zero, got a largest modulus of {largest}")
    return vector / largest


def _rayleigh_lower(operator: ConvOperator, vector: Array, *, transposed: bool = False) -> float:
    """Return ``norm(M v) / norm(v)``, or of the transpose, less its rounding error: float64 from the exact kernel."""
    xp, geometry = namespace(operator.kernel), operator.geometry
    precise = in_double(operator)
    vector = xp.astype(vector, xp.float64)
    vector = xp.reshape(vector, operator.range_shape if transposed else operator.domain_shape)
    image = precise.adjoint(vector) if transposed else precise.apply(vector)
    ratio = math.sqrt(float(xp.sum(image * image)) / float(xp.sum(vector * vector)))
    summation = gamma(max(math.prod(geometry.domain_shape), math.prod(geometry.range_shape)) + 4, U64)
    return max(0.0, ratio * (1 - 2 * summation) - product_error(operator))
