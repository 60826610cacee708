"""Enclosures of the largest singular value that are proved to hold, rounding errors included."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np

from convla._array import device_of, namespace
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer
from convla.geometry import ConvGeometry
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.border import convolution_of
from convla.spectra.certificate import certified_norm_bound, gamma
from convla.spectra.dense import dense_triplets
from convla.spectra.maximiser import SymbolPeak, power_steps, symbol_peaks
from convla.spectra.result import SingularValues
from convla.spectra.scaling import scaled_to_unit
from convla.spectra.search import lanczos_triplets
from convla.spectra.starts import structured_start
from convla.spectra.symbol import FloatArray, Symbol, torus_frequencies
from convla.spectra.torus import circular_lattice, embedding_sizes, frequency_chunks
from convla.typing import Array, Seed

__all__ = ["SingularValueBounds", "singular_value_bounds"]

_DENSE_SIDE = 256
_NODES_PER_DEGREE = 32  # a grid of this many points for each degree of f* f costs a factor of 1.0024 per axis
_GUESS_SLACK = 2e-4  # over the largest Rayleigh quotient: what the power steps may have missed
_SINGLE_LIMIT = 2e-3  # of the squared bound: a wider rounding error of float32 is not worth its speed
_DENSE_SLACK = 1e-12  # over the value of a dense decomposition, so that the factorisation runs to completion
_U64 = 2.0**-53


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
    result: SingularValues | None = None,
    max_matvecs: int = 24,
    rng: Seed = 0,
) -> SingularValueBounds:
    """Enclose the largest singular value of an operator, provably.

    Parameters
    ----------
    operator : ConvOperator or its transpose
    method : {"auto", "dense", "symbol"}
        How to bound from above: from the matrix itself, from the symbol (any size), or the cheapest that is tight.
    result : SingularValues, optional
        A result for this operator, whose vector serves for the lower bound. By default a short iteration finds one.
    max_matvecs : int
        The length of that iteration, in applications of the operator and its transpose.
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
    convolution, _ = convolution_of(operator)
    check_choice("method", method, ("auto", "dense", "symbol"))
    max_matvecs = check_integer("max_matvecs", max_matvecs, minimum=2)
    scaled, exponent = scaled_to_unit(convolution)
    generator = np.random.default_rng(rng)
    if not bool(namespace(scaled.kernel).any(scaled.kernel != 0)):
        return SingularValueBounds(0.0, 0.0, "the kernel is zero", "the kernel is zero")
    dense = method == "dense" or (method == "auto" and min(scaled.shape) <= _DENSE_SIDE)
    if dense:
        found = dense_triplets(_in_double(scaled), 1) if result is None else result
        value = found.value if result is None else math.ldexp(result.value, -exponent)
        upper, above = _dense_upper(scaled, value)
    else:
        envelope = _envelope(scaled.geometry)
        symbol = Symbol(scaled.kernel, envelope.geometry, stride=envelope.stride)
        peaks = symbol_peaks(symbol, rng=generator)
        upper, above = _symbol_upper(symbol, peaks, envelope)
        if scaled.geometry.boundary != "zero":
            upper, above = min((upper, above), _entries_upper(scaled))
        if result is None:
            own = envelope.geometry is scaled.geometry and envelope.stride == scaled.geometry.stride
            start = structured_start(scaled, generator, peaks if own else None)
            found = lanczos_triplets(
                scaled, 1, rtol=5e-4, criterion="value", start=start, max_matvecs=max_matvecs, rng=generator
            )
        else:
            found = result
    vector = found.left if result is not None and convolution is not operator else found.right
    lower = _rayleigh_lower(scaled, vector)
    # The two sides come from different computations: where both are the value itself they may cross by a rounding.
    return SingularValueBounds(
        math.ldexp(min(lower, upper), exponent),
        math.ldexp(upper, exponent),
        "norm of the image of a Ritz vector, in float64",
        above,
    )


class _Envelope(NamedTuple):
    """A torus whose convolution, times a factor, bounds an operator."""

    geometry: ConvGeometry
    stride: tuple[int, ...]
    sizes: tuple[int, ...]
    factor: float
    may_twist: bool
    reason: str


def _envelope(geometry: ConvGeometry) -> _Envelope:
    if geometry.boundary == "zero":
        reason = "submatrix of the convolution on a torus that the padded image fits into"
        return _Envelope(geometry, geometry.stride, embedding_sizes(geometry), 1.0, True, reason)
    if geometry.boundary == "circular":
        lattice = circular_lattice(geometry)
        reason = (
            "the convolution on the image's torus"
            if lattice.exact
            else "row submatrix of the convolution on the image's torus"
        )
        return _Envelope(geometry, lattice.stride, lattice.sizes, lattice.factor, False, reason)
    extended = ConvGeometry(
        geometry.kernel_shape,
        geometry.padded_shape,
        padding="valid",
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )
    readers = math.prod(int(np.bincount(geometry.sources(axis)).max()) for axis in range(geometry.ndim))
    reason = f"zero-padded convolution of the extended image, times the extension's norm sqrt({readers})"
    return _Envelope(extended, extended.stride, embedding_sizes(extended), math.sqrt(readers), True, reason)


def _symbol_upper(symbol: Symbol, peaks: list[SymbolPeak], envelope: _Envelope) -> tuple[float, str]:
    """Bound the norm of f over the frequencies of the envelope's torus, or over all of them along long axes."""
    sizes, factor, sampled = [], envelope.factor, False
    for size, degree in zip(envelope.sizes, symbol.degrees, strict=True):
        limit = max(1, _NODES_PER_DEGREE * degree)
        if size > limit:
            sampled = True
            factor /= math.sqrt(math.cos(math.pi * degree / limit)) if degree else 1.0
        sizes.append(min(size, limit))
    twist = [0] * len(sizes)
    if envelope.may_twist:
        offsets = peaks[0].frequency * np.array(sizes) / (2 * math.pi)
        twist = [int(abs(offset - round(offset)) < 0.25) for offset in offsets.tolist()]
    frequencies, _ = torus_frequencies(sizes, twist)
    guess = _guess(symbol, peaks, sizes, twist)
    bound = _certify(symbol, frequencies, guess)
    reason = envelope.reason + (", bounded over all frequencies from a grid" if sampled else "")
    return bound * factor * (1 + 8 * _U64), reason


def _guess(symbol: Symbol, peaks: list[SymbolPeak], sizes: list[int], twist: list[int]) -> float:
    """Estimate the maximum over the torus's frequencies from those next to the symbol's maxima."""
    steps = 2 * math.pi / np.array(sizes)
    shift = np.array(twist) / 2
    guess = 0.0
    for peak in peaks:
        centre = np.floor(peak.frequency / steps - shift)
        corners = np.array(list(itertools.product((0, 1), repeat=len(sizes))))
        nearest = (centre + corners + shift) * steps
        matrices = symbol.at(nearest)[peak.group, ...]
        xp = namespace(matrices)
        vectors = xp.broadcast_to(peak.vector, (len(nearest), symbol.columns))
        values, _ = power_steps(matrices, vectors, steps=6)
        guess = max(guess, float(values.max()))
    return guess * (1 + _GUESS_SLACK)


def _certify(symbol: Symbol, frequencies: FloatArray, guess: float) -> float:
    """Return a proved bound of the norms of f at the given frequencies, rounding of f itself included."""
    xp = symbol.xp
    # Entries of f are sums of one product for each tap; cosine and sine are right to 2 units.
    terms = symbol.lags.shape[0] + 4
    size = symbol.largest_frobenius()
    single = float(xp.finfo(xp.float32).eps) / 2
    worst_case = 3 * (min(symbol.rows, symbol.columns) + 3) * min(symbol.rows, symbol.columns) * single
    precise = worst_case > _SINGLE_LIMIT or symbol.kernel.dtype != xp.float32
    working = symbol.astype(xp.float64) if precise else symbol
    unit = _U64 if precise else single
    bound = guess
    for chunk in frequency_chunks(working, len(frequencies)):
        bound = max(bound, certified_norm_bound(*working.parts(frequencies[chunk]), bound))
    return bound + 2 * gamma(terms, unit) * size


def _dense_upper(operator: ConvOperator, value: float) -> tuple[float, str]:
    precise = _in_double(operator)
    matrix = precise.to_dense()
    terms = operator.geometry.largest_row_count
    bound = certified_norm_bound(matrix, None, value * (1 + _DENSE_SLACK))
    # Taps that meet in one entry of the matrix, beyond the edges of an image, are added up in float64.
    meeting = 0.0 if operator.geometry.boundary == "zero" else gamma(terms, _U64) * _entries_upper(operator)[0]
    return bound + meeting, "Cholesky factorisation of the dense matrix"


def _entries_upper(operator: ConvOperator) -> tuple[float, str]:
    """Bound by the largest absolute row and column sums: Schur's test."""
    xp = namespace(operator.kernel)
    moduli = abs(_in_double(operator))
    geometry = operator.geometry
    ones = [
        xp.ones(s, dtype=xp.float64, device=device_of(operator.kernel))
        for s in (geometry.domain_shape, geometry.range_shape)
    ]
    rows, columns = float(xp.max(moduli.apply(ones[0]))), float(xp.max(moduli.adjoint(ones[1])))
    terms = max(geometry.largest_row_count, geometry.largest_column_count) + 4
    return math.sqrt(rows * columns) * (1 + 2 * gamma(terms, _U64)), "row and column sums of the matrix's moduli"


def _rayleigh_lower(operator: ConvOperator, vector: Array) -> float:
    """Return ``norm(M v) / norm(v)`` less its rounding error: float64 from the exact kernel."""
    xp = namespace(operator.kernel)
    precise = _in_double(operator)
    vector = xp.astype(xp.reshape(vector, operator.domain_shape), xp.float64)
    image = precise.apply(vector)
    ratio = math.sqrt(float(xp.sum(image * image)) / float(xp.sum(vector * vector)))
    geometry = operator.geometry
    # norm(fl(M v) - M v) <= gamma norm(abs(M)) norm(v), and abs(M) is bounded by its entries.
    rows, columns = geometry.largest_row_count, geometry.largest_column_count
    moduli = math.sqrt(rows * columns) * float(xp.max(xp.abs(operator.kernel)))
    summation = gamma(max(math.prod(geometry.domain_shape), math.prod(geometry.range_shape)) + 4, _U64)
    return max(0.0, ratio * (1 - 2 * summation) - 2 * gamma(rows + 2, _U64) * moduli)


def _in_double(operator: ConvOperator) -> ConvOperator:
    """Return the operator of the same kernel in float64, by direct sums: the rounding bounds here are theirs."""
    xp = namespace(operator.kernel)
    return operator.with_engine("direct").with_kernel(xp.astype(operator.kernel, xp.float64))
