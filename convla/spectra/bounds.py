"""Enclosures of the largest singular value that are proved to hold, rounding errors included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer, check_rng
from convla.algebra import BlockDiagonal, Diagonal, Identity, Zero
from convla.algebra.stacks import split
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.batch import Batch
from convla.spectra.border import Problem, check_map, given_vectors, prepared, without_factor
from convla.spectra.certificate import U64, gamma
from convla.spectra.dense import decomposition_is_cheap, dense_triplets
from convla.spectra.enclosure import are_own, dense_upper_bound, symbol_maxima, symbol_upper_bound
from convla.spectra.lanczos import block_lanczos
from convla.spectra.maximiser import SymbolPeak, start_vectors
from convla.spectra.norms import NormBound, norm_bound, written_out_bound
from convla.spectra.result import SingularValues
from convla.spectra.roundoff import in_double, product_error, schur_bound
from convla.spectra.scaling import rounded_down, rounded_up
from convla.spectra.search import lanczos_triplets
from convla.spectra.starts import structured_start
from convla.spectra.symbol import Symbol
from convla.typing import Array, ArrayLike, Seed

__all__ = ["SingularValueBounds", "is_bounded_by_its_matrix", "proved_upper_bound", "singular_value_bounds"]

_DENSE_SIDE = 256
_WRITTEN_PRODUCTS = 2**27  # of a Gram matrix that is formed where the symbol alone bounds loosely: 512 rows
_MATVECS_FROM_WAVES, _MATVECS, _CHEAP_MATVECS = 8, 24, 40
_CHEAP = 10**7  # products in an application
_NOISE = 0.05  # of the start, for the parts of the operator that the wave does not reach
_MODULI = "row and column sums of the matrix's moduli"
_BELOW = "norm of the image of a Ritz vector, in float64"
_SPARE = 1e-12  # what a bound that is tried may grow by, in rounding, when it is proved
_LARGE = 1e100  # beside a kernel with entries of order 1
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
    method: Literal["auto", "dense", "symbol", "entries"] = "auto",
    start: SingularValues | ArrayLike | None = None,
    max_matvecs: int | None = None,
    rng: Seed = 0,
) -> SingularValueBounds:
    """Enclose the largest singular value of an operator, provably.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map.
    method : {"auto", "dense", "symbol", "entries"}
        How to bound from above: from the matrix itself, from the symbol (any size), or the cheapest that is tight; by
        "entries" from the row and column sums of the moduli, which costs two products and is seldom tight. A
        map made of several convolutions is bounded from theirs, and by "auto" from its matrix too where that is small.
    start : SingularValues or array of shape (..., *domain_shape), optional
        A previous result for this operator, or an image, whose first vector serves for the lower bound as it is. By
        default a short iteration finds one. What a result knows of the symbol's maxima is not looked for again.
    max_matvecs : int, optional
        The length of that iteration, in applications of the operator and its transpose: by default 8 from plane waves,
        24 on images too small for those, and 40 where each takes fewer than ten million products.
    rng : numpy.random.Generator or seed

    Returns
    -------
    SingularValueBounds

    Raises
    ------
    TypeError
        If `operator` is no `LinearMap`, or holds exact objects.
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
    - other boundaries: M = T E with T the zero-padded ("valid") convolution of the extended image and E the extension,
      whose norm is the square root of the most positions that read one entry. The bound exceeds the
      symbol's by up to that factor, which a shift under "replicate" attains. ``norm(M)^2 <= norm(M)_1 norm(M)_inf`` is
      taken where it is smaller, and by "auto" the matrix itself if one of its sides is at most some 500.
    - along an axis longer than 32 times the degree m of ``f* f`` the supremum over all frequencies is bounded instead,
      from N frequencies: it is at most ``cos(pi m / N)^(-1/2)`` times their maximum.

    Maps made of maps: `convla.spectra.norms`. Of a map of one's own, made of no others, nothing is known but its
    products: it is taken for the matrix that it writes out, with sums of products. One that is too large to be written
    out, and defines no modulus ``__abs__``, is bounded by infinity.

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
    check_map(operator)
    check_choice("method", method, ("auto", "dense", "symbol", "entries"))
    if max_matvecs is not None:
        check_integer("max_matvecs", max_matvecs, minimum=2)
    given = None if start is None else _given_vector(operator, start)
    peaks = start.peaks if isinstance(start, SingularValues) else ()
    return _enclosed(operator, method, given, max_matvecs, check_rng(rng), peaks)


def proved_upper_bound(operator: ConvOperator, guess: float) -> float:
    """Return a proved upper bound of a convolution's largest singular value, by trying a guess at once.

    Parameters
    ----------
    operator : ConvOperator
        With a kernel of float32 or float64.
    guess : float
        Positive. Where it is above the norm on the torus and what is added for the places between its frequencies, it
        is what is returned, and nothing is looked for; else that is larger. The bound of a small matrix is tight.

    Returns
    -------
    float

    Notes
    -----
    The upper end of `singular_value_bounds` without the lower one, and of the smallest torus that the image and its
    padding fit into, for kernels whose symbol has been made to obey a limit there.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.bounds import proved_upper_bound
    >>> smoothing = ConvOperator(np.array([[[0.25, 0.5, 0.25]]]), (600,))
    >>> round(proved_upper_bound(smoothing, 1.5), 3), round(proved_upper_bound(smoothing, 0.5), 3)
    (1.5, 1.002)
    """
    problem = prepared(operator)
    scaled, size = problem.convolution, abs(problem.factor)
    assert scaled is not None
    if not bool(namespace(scaled.kernel).any(scaled.kernel != 0)):
        return 0.0
    if is_bounded_by_its_matrix(scaled):
        lower = _rayleigh_lower(scaled, dense_triplets(in_double(scaled), 1).right)
        upper, _ = dense_upper_bound(scaled, guess=lower)
    else:
        # Less what rounding adds when it is proved; and its square is in range.
        known = min((Fraction(guess) / size - Fraction(problem.slack)) * Fraction(1 - _SPARE), Fraction(_LARGE))
        upper, _ = symbol_upper_bound(scaled, guess=max(0.0, float(known)), rng=check_rng(0), peaks=None)
    return rounded_up((Fraction(upper) + Fraction(problem.slack)) * size)


def _enclosed(
    operator: LinearMap,
    method: str,
    given: Array | None,
    max_matvecs: int | None,
    rng: np.random.Generator,
    peaks: Sequence[SymbolPeak] = (),
) -> SingularValueBounds:
    unscaled, factor = without_factor(operator)
    if isinstance(unscaled, (Diagonal, Identity, Zero)):
        known = norm_bound(operator, rng)
        assert known is not None
        return SingularValueBounds(rounded_down(known.value), rounded_up(known.value), *(known.certificate,) * 2)
    if isinstance(unscaled, BlockDiagonal):
        pieces = (
            [None] * len(unscaled.parts) if given is None else split(given, [p.domain_shape for p in unscaled.parts])
        )
        parts = [
            _enclosed(part * factor, method, piece if piece is not None and _usable(piece) else None, max_matvecs, rng)
            for part, piece in zip(unscaled.parts, pieces, strict=True)
        ]
        below, above = max(parts, key=lambda found: found.lower), max(parts, key=lambda found: found.upper)
        return SingularValueBounds(below.lower, above.upper, below.lower_certificate, above.upper_certificate)
    problem = prepared(operator)
    size = abs(problem.factor)
    if problem.convolution is not None:
        found = _of_convolution(problem, problem.convolution, method, given, max_matvecs, rng, peaks)
    else:
        found = _of_map(problem.operator, method, given, max_matvecs, rng)
    lower, upper = max(0.0, found.lower - 2 * problem.slack), found.upper
    exact = size * (Fraction(upper) + Fraction(problem.slack)) if math.isfinite(upper + problem.slack) else None
    return found._replace(
        lower=rounded_down(Fraction(lower) * size), upper=math.inf if exact is None else rounded_up(exact)
    )


def _of_convolution(
    problem: Problem,
    scaled: ConvOperator,
    method: str,
    given: Array | None,
    max_matvecs: int | None,
    rng: np.random.Generator,
    peaks: Sequence[SymbolPeak],
) -> SingularValueBounds:
    """Enclose the norm of a scaled convolution."""
    if not bool(namespace(scaled.kernel).any(scaled.kernel != 0)):
        zero = "no entry of the kernel that meets the image differs from zero"
        return SingularValueBounds(0.0, 0.0, zero, zero)
    dense = method == "dense" or (method == "auto" and min(scaled.shape) <= _DENSE_SIDE)
    peaks = () if dense or method == "entries" else symbol_maxima(scaled, rng, peaks)
    if given is not None:
        lower = _rayleigh_lower(scaled, given, transposed=problem.transposed)
    elif dense:
        lower = _rayleigh_lower(scaled, dense_triplets(in_double(scaled), 1).right)
    else:
        lower = _ritz_lower(scaled, peaks, max_matvecs, rng)
    if method == "entries":
        upper, above = schur_bound(scaled), _MODULI
    elif dense or (method == "auto" and _is_written_out(scaled)):
        upper, above = dense_upper_bound(scaled, guess=lower)
    else:
        upper, above = symbol_upper_bound(scaled, guess=lower, rng=rng, peaks=peaks)
    return SingularValueBounds(lower, upper, _BELOW, above)


def is_bounded_by_its_matrix(operator: ConvOperator) -> bool:
    """Tell whether `proved_upper_bound` writes a convolution out, so that its bound is tight, and not of the symbol."""
    return min(operator.shape) <= _DENSE_SIDE or _is_written_out(operator)


def _is_written_out(operator: ConvOperator) -> bool:
    """Tell whether the symbol's bound is up to the extension's norm too large, and the matrix is small."""
    extended = operator.geometry.boundary not in ("zero", "circular")
    return extended and min(operator.shape) * math.prod(operator.shape) <= _WRITTEN_PRODUCTS


def _of_map(
    scaled: LinearMap, method: str, given: Array | None, max_matvecs: int | None, rng: np.random.Generator
) -> SingularValueBounds:
    """Enclose the norm of a map that is no convolution, with parts of order 1."""
    small = method in ("auto", "dense") and decomposition_is_cheap(scaled)
    if given is not None:
        lower = _rayleigh_lower(scaled, given)
    elif small or method == "dense":
        lower = _rayleigh_lower(scaled, dense_triplets(scaled, 1).right)
    else:
        found = lanczos_triplets(
            scaled, 1, rtol=_TOLERANCE, criterion="value", max_matvecs=max_matvecs or _CHEAP_MATVECS, rng=rng
        )
        lower = _rayleigh_lower(scaled, found.right)
    bounds = [written_out_bound(scaled)] if small or method == "dense" else []
    if method == "entries":
        bounds = [NormBound(Fraction(schur_bound(scaled)), _MODULI)]
    elif method != "dense":
        bounds += [bound for bound in [norm_bound(scaled, rng)] if bound is not None]
    if not bounds:
        return SingularValueBounds(lower, math.inf, _BELOW, "nothing: the map is not written out, and has no modulus")
    best = min(bounds, key=lambda bound: bound.value)
    return SingularValueBounds(lower, rounded_up(best.value), _BELOW, best.certificate)


def _ritz_lower(
    operator: ConvOperator, peaks: Sequence[SymbolPeak], max_matvecs: int | None, rng: np.random.Generator
) -> float:
    """Return the lower bound that a Ritz vector gives: one of the smaller side, after a short iteration."""
    geometry, xp = operator.geometry, namespace(operator.kernel)
    known = bool(peaks) and are_own(operator)
    if known:
        noise = rng.standard_normal(operator.domain_shape) / math.sqrt(math.prod(operator.domain_shape))
        wave = _wave(operator, peaks[0])
        start = (wave + _NOISE * on_device_of(noise, wave, xp, dtype=wave.dtype))[None, ...]
    else:
        start = structured_start(operator, rng).image
    if max_matvecs is None:
        products = math.prod(operator.kernel.shape) * math.prod(geometry.output_shape)
        max_matvecs = _CHEAP_MATVECS if products < _CHEAP else _MATVECS_FROM_WAVES if known else _MATVECS
    wide = operator.shape[0] < operator.shape[1]
    side = Batch(operator.T if wide else operator, geometry.groups)
    found = block_lanczos(
        side.gram,
        side.rows(operator.apply(start) if wide else start),
        1,
        rtol=_TOLERANCE,
        criterion="value",
        basis_size=max_matvecs,
        max_products=max(1, max_matvecs // 2),
        rng=rng,
    )
    hot = on_device_of(found.parts == np.arange(geometry.groups), found.vectors, xp, dtype=found.vectors.dtype)
    return _rayleigh_lower(operator, side.images(hot[:, None, None] * found.vectors), transposed=wide)


def _wave(operator: ConvOperator, peak: SymbolPeak) -> Array:
    """Return the plane wave of a maximum of the symbol, of norm 1, under a window where the image has edges."""
    geometry, xp = operator.geometry, namespace(operator.kernel)
    symbol = Symbol(operator.kernel, geometry)
    wave = start_vectors(symbol, peak, geometry.image_shape, windowed=geometry.boundary != "circular")[0, ...]
    return wave / xp.sqrt(xp.sum(wave * wave))


def _given_vector(operator: LinearMap, start: SingularValues | ArrayLike) -> Array:
    """Return the first right singular vector of a result, or an image, in float64 and of moderate size."""
    vectors = given_vectors(operator, start)
    xp = namespace(vectors)
    vector = xp.astype(vectors[0, ...], xp.float64)
    largest = float(xp.max(xp.abs(vector)))
    if largest == 0:
        raise ValueError("start must not be zero")
    return vector / largest


def _usable(piece: Array) -> bool:
    """Tell whether a block's piece of a vector is one to start from."""
    return bool(namespace(piece).any(piece != 0))


def _rayleigh_lower(operator: LinearMap, vector: Array | None, *, transposed: bool = False) -> float:
    """Return ``norm(M v) / norm(v)``, or of the transpose, less its rounding error: float64 from the exact kernel."""
    assert vector is not None  # the methods asked for a few values give their vectors
    xp = namespace(operator.like)
    precise = in_double(operator)
    if namespace(vector) is not xp:
        vector = to_numpy(vector)
    vector = xp.astype(vector, xp.float64)
    vector = xp.reshape(vector, operator.range_shape if transposed else operator.domain_shape)
    image = precise.adjoint(vector) if transposed else precise.apply(vector)
    square, length = float(xp.sum(image * image)), float(xp.sum(vector * vector))
    if square == 0.0 or length == 0.0:
        return 0.0
    summation = gamma(max(operator.shape) + 4, U64)
    return max(0.0, math.sqrt(square / length) * (1 - 2 * summation) - product_error(operator))
