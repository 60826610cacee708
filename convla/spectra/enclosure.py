"""A proved upper bound of the largest singular value of a convolution, from the norms of small matrices alone.

The operator is part of a convolution on a torus, whose norm is the largest of its symbol's at the torus's frequencies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convla._array import namespace
from convla._products import product
from convla._validate import check_rng
from convla.geometry import ConvGeometry
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.certificate import U64, Combinations, certified_norm_bound, gamma, provable, proved_below
from convla.spectra.gram import GramMatrices
from convla.spectra.grids import IntArray, TorusGrid
from convla.spectra.maximiser import SymbolPeak, climbed_norms, symbol_peaks
from convla.spectra.roundoff import in_double, product_error, rounding_of_entries, schur_bound
from convla.spectra.symbol import FloatArray, Symbol
from convla.spectra.torus import circular_lattice, embedding_sizes
from convla.typing import Seed

__all__ = [
    "Envelope",
    "UpperBound",
    "are_own",
    "dense_upper_bound",
    "envelope",
    "neighbour_share",
    "symbol_maxima",
    "symbol_upper_bound",
    "upper_bound",
]

_NODES_PER_DEGREE = 32  # a grid of this many points for each degree of f* f costs a factor of 1.0024 per axis
_SPARE = 0.07  # how much larger than necessary a torus may be along an axis, if its frequencies lie better
_DENSE_SLACK = 1e-13  # over the value of a dense decomposition
_GUESS_SLACK = 2e-5  # over the largest Ritz value: what the iteration may have missed
_GUESS_STEPS = 8
_FEW = 8  # of the frequencies that are tried, one is tried first
_LEAST_SHARE = 0.9  # of the bound: hardly any norm is below a smaller part
_MAXIMA = 5  # of the symbol, that decide where the torus's frequencies should lie
_CURVATURE_STEPS = 6


class UpperBound(NamedTuple):
    """A proved upper bound of the largest singular value, and what proves it, in a sentence."""

    value: float
    certificate: str


class Envelope(NamedTuple):
    """A torus whose convolution, times a factor, bounds an operator.

    Attributes
    ----------
    geometry : ConvGeometry
        Of the symbol.
    stride, sizes : tuple of int
        Of the torus, in output steps.
    factor : float
    free : bool
        Whether the torus may be larger, and functions may change sign on the way around it.
    reason : str
    """

    geometry: ConvGeometry
    stride: tuple[int, ...]
    sizes: tuple[int, ...]
    factor: float
    free: bool
    reason: str


def upper_bound(operator: ConvOperator, *, guess: float = 0.0, rng: Seed = 0) -> float:
    """Return a proved upper bound of the largest singular value of an operator, by `symbol_upper_bound`.

    Parameters
    ----------
    operator : ConvOperator
        Scaled by `convla.spectra.scaling.scaled_to_unit`.
    guess : float
        A number that the largest singular value is believed to reach, as a Ritz value is. It only saves work.
    rng : numpy.random.Generator or seed

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.enclosure import upper_bound
    >>> smoothing = ConvOperator(np.array([[[0.25, 0.5, 0.25]]]), (300,))  # norm cos(pi / 602)^2
    >>> bool(0 < upper_bound(smoothing) - np.cos(np.pi / 602) ** 2 < 0.003)
    True
    """
    return symbol_upper_bound(operator, guess=guess, rng=check_rng(rng)).value


def symbol_upper_bound(
    operator: ConvOperator,
    *,
    guess: float,
    rng: np.random.Generator,
    peaks: Sequence[SymbolPeak] | None = (),
) -> UpperBound:
    """Bound the largest singular value of a scaled operator by its symbol, or its entries where those bound better.

    Parameters
    ----------
    operator : ConvOperator
        Scaled by `convla.spectra.scaling.scaled_to_unit`.
    guess : float
        A number that the largest singular value is believed to reach; 0 if none is known.
    rng : numpy.random.Generator
    peaks : sequence of SymbolPeak or None
        Maxima of the operator's symbol, if they are known; they decide how tight the bound is, not whether it holds.
        With None they are not looked for, and the bound is that on the smallest torus.

    Returns
    -------
    UpperBound
        Rounding errors included, those of the scaling too.
    """
    geometry = operator.geometry
    surround = envelope(geometry)
    symbol = Symbol(operator.kernel, surround.geometry, stride=surround.stride)
    peaks = [] if peaks is None else _maxima(symbol, surround, rng, peaks)
    grid, factor = _chosen_grid(symbol, surround, peaks)
    target = max(_corner_norms(symbol, peaks, grid) * (1 + _GUESS_SLACK), guess / factor)
    precise = symbol.astype(symbol.xp.float64)
    grams = GramMatrices(precise, grid)
    lines = _Lines(neighbour_share(symbol.degrees[-1], grid.sizes[-1]))
    for q, block in grams:
        own, conjugate = (numbers.reshape(q.shape[:2]) for numbers in grid.numbers(q.reshape(-1, q.shape[-1])))
        # Every group by itself, with the frequencies of one line along the last axis next to each other.
        numbers = np.arange(math.prod(block.shape)).reshape(block.shape).transpose(1, 0, 2)[:, own <= conjugate]
        steps = np.tile(q[own <= conjugate, -1], symbol.groups)
        left = lines.left(block, numbers.ravel(), steps, grams.error, target)
        target = certified_norm_bound(block, grams.error, target, numbers=left)
    sampled = any(a < b for a, b in zip(grid.sizes, surround.sizes, strict=True))
    reason = surround.reason + (", bounded over all frequencies from a grid" if sampled else "")
    found = UpperBound(target * factor * (1 + 16 * U64), reason)
    return (
        found
        if geometry.boundary == "zero"
        else min(found, UpperBound(schur_bound(operator), "row and column sums of the matrix's moduli"))
    )


def symbol_maxima(
    operator: ConvOperator, rng: np.random.Generator, known: Sequence[SymbolPeak] = ()
) -> Sequence[SymbolPeak]:
    """Return the maxima that `symbol_upper_bound` starts from; none where the torus has few frequencies.

    Parameters
    ----------
    operator : ConvOperator
        Scaled by `convla.spectra.scaling.scaled_to_unit`.
    rng : numpy.random.Generator
    known : sequence of SymbolPeak
        Maxima of the operator's own symbol, if a search has found them: not looked for again where they are the same.
    """
    surround = envelope(operator.geometry)
    symbol = Symbol(operator.kernel, surround.geometry, stride=surround.stride)
    usable = are_own(operator) and all(peak.is_of(symbol) for peak in known)
    return _maxima(symbol, surround, rng, known if usable else ())


def are_own(operator: ConvOperator) -> bool:
    """Tell whether `symbol_maxima` are those of the operator's own symbol: but for the phases that a stride picks."""
    return operator.geometry.boundary == "zero" or set(operator.geometry.stride) == {1}


def _maxima(
    symbol: Symbol, surround: Envelope, rng: np.random.Generator, known: Sequence[SymbolPeak]
) -> Sequence[SymbolPeak]:
    """Return the maxima that decide where the torus's frequencies should lie, of those that are known, if any are."""
    few = math.prod(4 * degree or 1 for degree in symbol.degrees) > math.prod(surround.sizes) / 2
    if few:
        return []
    peaks = (list(known) or symbol_peaks(symbol, rng=rng))[:_MAXIMA]
    # A polynomial of degree m in [0, G] bends by at most m^2 G / 2 (Bernstein), and a frequency is within half a step.
    # What is lower than the highest by more than this can lose decides nothing.
    steps = [math.pi * degree / size for degree, size in zip(symbol.degrees, surround.sizes, strict=True)]
    return [peak for peak in peaks if peak.value >= peaks[0].value * (1 - sum(step**2 for step in steps) / 8)]


def neighbour_share(degree: int, size: int) -> float:
    """Return k such that no frequency of a torus is above a bound if a neighbour along an axis is below k times it.

    Parameters
    ----------
    degree : int
        Of ``f* f`` along the axis.
    size : int
        Of the torus along the axis.

    Returns
    -------
    float
        Negative if neighbours say nothing.

    Notes
    -----
    Let X be the maximum of ``norm(f)`` on the grid, attained at theta with the vector v, and ``a = pi degree / size``.
    On the line through theta, ``g = norm(f v)^2`` is a trigonometric polynomial, at most X^2 on the grid, so
    ``sup g = G <= X^2 / cos(a)`` (M. Riesz). The angle ``arccos(sqrt(g / G))`` changes by no more than half the degree
    per radian (Bernstein and Szego), so the neighbours have ``sqrt(g) >= sqrt(G) cos(arccos(X / sqrt(G)) + a)
    = X cos(a) - sqrt(G - X^2) sin(a) >= k X`` with ``k = cos(a) - sqrt(1 / cos(a) - 1) sin(a)``.

    References
    ----------
    G. Szego, Ueber einen Satz des Herrn Serge Bernstein, Schriften der Koenigsberger Gelehrten Gesellschaft 5 (1928).

    Examples
    --------
    >>> from convla.spectra.enclosure import neighbour_share
    >>> round(neighbour_share(2, 33), 4), neighbour_share(2, 4)
    (0.9563, -1.0)
    """
    angle = math.pi * degree / size
    if angle >= 1:
        return -1.0
    return (math.cos(angle) - math.sqrt(1 / math.cos(angle) - 1) * math.sin(angle)) * (1 - 32 * U64)


class _Lines:
    """Spares the neighbours along a line of frequencies whose norms are low, every third being tried.

    Where fewer than a third of those are low, to try them costs more than it spares: then no more are tried.

    Parameters
    ----------
    share : float
        Of the bound, below which a norm is low, see `neighbour_share`.
    """

    def __init__(self, share: float) -> None:
        self._share, self._worth_it = share, share > _LEAST_SHARE

    def left(self, grams: Combinations, numbers: IntArray, steps: IntArray, error: float, bound: float) -> IntArray:
        """Return the numbers of those matrices that are not proved to be below a bound.

        Parameters
        ----------
        grams : Combinations
        numbers : numpy.ndarray of int, shape (n,)
            Of those in question.
        steps : numpy.ndarray of int, shape (n,)
            Along a line, which goes on where the next step is larger by 1.
        error, bound : float
            See `proved_below`.
        """
        if not self._worth_it:
            return numbers
        starts = np.flatnonzero(np.append(True, np.diff(steps) != 1))
        lengths = np.diff(np.append(starts, len(steps)))
        along = np.arange(len(steps)) - np.repeat(starts, lengths)
        ends = along == np.repeat(lengths, lengths) - 1
        thirds = np.flatnonzero((along % 3 == 1) | (ends & (along % 3 == 0) & (along > 0)))
        low = []
        # A few of them tell whether the others are worth it.
        few = np.arange(len(thirds)) % _FEW == 0
        for tried in (thirds[few], thirds[~few]):
            if self._worth_it and tried.size:
                low.append(tried[proved_below(grams, error, self._share * bound, numbers[tried])])
                self._worth_it = 3 * low[-1].size >= tried.size
        found = np.concatenate([np.zeros(0, np.int64), *low])
        # None of them is the first of its line.
        return np.delete(numbers, np.concatenate((found, found - 1, found[~ends[found]] + 1)))


def envelope(geometry: ConvGeometry) -> Envelope:
    """Return the torus that bounds the operators of a geometry."""
    if geometry.boundary == "zero":
        reason = "submatrix of the convolution on a torus that the padded image fits into"
        return Envelope(geometry, geometry.stride, embedding_sizes(geometry), 1.0, True, reason)
    if geometry.boundary == "circular":
        lattice = circular_lattice(geometry)
        reason = (
            "the convolution on the image's torus"
            if lattice.exact
            else "row submatrix of the convolution on the image's torus"
        )
        return Envelope(geometry, lattice.stride, lattice.sizes, lattice.factor, False, reason)
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
    return Envelope(extended, extended.stride, embedding_sizes(extended), math.sqrt(readers), True, reason)


def _chosen_grid(symbol: Symbol, surround: Envelope, peaks: Sequence[SymbolPeak]) -> tuple[TorusGrid, float]:
    """Return frequencies on which the symbol's norm, times a factor, bounds the operator's.

    Where the torus is free, a size and a twist whose frequencies keep away from the maxima: by the value and the
    curvature of ``norm(f)^2`` at each, no decomposition is needed to tell.
    """
    factor = surround.factor
    choices: list[list[tuple[int, int]]] = []
    for size, degree in zip(surround.sizes, symbol.degrees, strict=True):
        limit = max(1, _NODES_PER_DEGREE * degree)
        largest = size + int(_SPARE * size) if surround.free else size
        twists = (0, 1) if surround.free else (0,)
        if size > limit:
            factor /= math.sqrt(math.cos(math.pi * degree / limit)) if degree else 1.0
            largest = size = limit
        choices.append([(n, t) for n in range(size, largest + 1) for t in (twists if degree else (0,))])
    heights = np.array([peak.value**2 for peak in peaks])
    curvatures = _curvatures(symbol, peaks, surround.sizes)
    places = _places(peaks, len(choices))
    # Along each axis, the distances of each maximum to the frequencies on both sides.
    offsets = []
    for axis, options in enumerate(choices):
        sizes, twists = np.array(options).T
        steps = places[:, axis, None] * sizes / (2 * math.pi) - twists / 2
        below = np.floor(steps) - steps
        offsets.append(np.stack((below, below + 1), axis=-1) * (2 * math.pi / sizes)[:, None])
    corners = np.array(list(itertools.product((0, 1), repeat=len(choices))))

    def highest(chosen: tuple[int, ...]) -> float:
        near = np.stack(
            [offset[:, index, side] for offset, index, side in zip(offsets, chosen, corners.T, strict=True)], axis=-1
        )
        losses = np.einsum("pci,pij,pcj->pc", near, curvatures, near) / 2
        return float((heights - losses.min(axis=1)).max(initial=0.0))

    best = min(itertools.product(*(range(len(options)) for options in choices)), key=highest)
    chosen = [options[index] for options, index in zip(choices, best, strict=True)]
    sizes = tuple(size for size, _ in chosen)
    return TorusGrid(sizes, tuple(twist for _, twist in chosen), half=sizes.index(max(sizes))), factor


def _places(peaks: Sequence[SymbolPeak], dims: int) -> FloatArray:
    return np.array([peak.frequency for peak in peaks]).reshape(len(peaks), dims)


def _curvatures(symbol: Symbol, peaks: Sequence[SymbolPeak], sizes: Sequence[int]) -> FloatArray:
    """Return minus the second differences of ``norm(f)^2`` at its maxima, over half a step of the torus: (P, d, d)."""
    dims, steps = len(sizes), math.pi / np.array(sizes)
    pairs = list(itertools.combinations_with_replacement(range(dims), 2))
    units = np.eye(dims)
    offsets = np.array([units[i] if i == j else units[i] + units[j] for i, j in pairs]) * steps
    near = _places(peaks, dims)[:, None, :] + np.concatenate((offsets, -offsets))
    forward, backward = np.split(climbed_norms(symbol, peaks, near, steps=_CURVATURE_STEPS) ** 2, 2, axis=1)
    heights = np.array([peak.value**2 for peak in peaks])[:, None]
    differences = dict(zip(pairs, (2 * heights - forward - backward).T, strict=True))
    bends = np.zeros((len(peaks), dims, dims))
    for (i, j), difference in differences.items():
        mixed = difference if i == j else (difference - differences[i, i] - differences[j, j]) / 2
        bends[:, i, j] = bends[:, j, i] = mixed / (steps[i] * steps[j])
    values, axes = np.linalg.eigh(bends)
    return np.asarray((axes * np.maximum(values, 0.0)[:, None, :]) @ axes.swapaxes(1, 2))


def _corner_norms(symbol: Symbol, peaks: Sequence[SymbolPeak], grid: TorusGrid) -> float:
    """Estimate the largest norm at a grid's frequencies from those around the symbol's maxima."""
    corners = np.array(list(itertools.product((0, 1), repeat=len(grid.sizes))))
    twist, steps = np.array(grid.twist) / 2, 2 * math.pi / np.array(grid.sizes)
    cells = np.floor(_places(peaks, len(grid.sizes)) / steps - twist)
    near = (cells[:, None, :] + corners + twist) * steps
    return float(climbed_norms(symbol, peaks, near, steps=_GUESS_STEPS).max(initial=0.0))


def dense_upper_bound(operator: LinearMap, *, guess: float) -> UpperBound:
    """Bound the largest singular value of a scaled operator by its matrix, written out.

    Parameters
    ----------
    operator : LinearMap
        Scaled by `convla.spectra.scaling.scaled_to_unit` or `unit_scaled`.
    guess : float
        A Ritz value from a dense decomposition, rounded down.

    Returns
    -------
    UpperBound

    Raises
    ------
    MemoryError
        If the matrix would not fit in memory.
    """
    xp = namespace(operator.like)
    matrix = in_double(operator).to_dense()
    if matrix.shape[0] < matrix.shape[1]:
        matrix = xp.matrix_transpose(matrix)
    squares = float(xp.sum(matrix * matrix))
    error = gamma(matrix.shape[0] + 2, U64) * squares * (1 + gamma(math.prod(matrix.shape), U64))
    gram = product(xp.matrix_transpose(matrix), matrix)
    gram = (gram + xp.matrix_transpose(gram)) / 2  # real: exactly symmetric, and no farther from the exact one
    # What a Ritz value may lack of the largest singular value, however it was rounded.
    known = guess * (1 + _DENSE_SLACK + 8 * gamma(max(matrix.shape), U64)) + 2 * product_error(operator)
    bound = certified_norm_bound(Combinations.of(gram[None, ...]), error, provable(known, error, gram.shape[0]))
    return UpperBound(bound + rounding_of_entries(operator), "Cholesky factorisation of the dense matrix")
