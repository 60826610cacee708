"""Convolutions on a torus: where a circular boundary makes the symbol's matrices the whole spectrum, exactly.

Also the torus that a zero-padded image fits into without meeting itself, whose norm bounds the zero-padded one's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convla._array import namespace, to_numpy
from convla.geometry import ConvGeometry
from convla.spectra.symbol import FloatArray, Symbol, plane_wave, torus_frequencies
from convla.typing import Array

__all__ = [
    "CircularLattice",
    "circular_lattice",
    "circular_singular_values",
    "circular_triplets",
    "embedding_sizes",
    "frequency_chunks",
]

_CHUNK_ENTRIES = 1 << 22  # entries of f in memory at a time


@dataclass(frozen=True)
class CircularLattice:
    """The output positions of a circular convolution, seen on the torus of the image.

    Attributes
    ----------
    stride : tuple of int
        The generator of the positions along each axis: ``gcd(stride, image)``.
    sizes : tuple of int
        How many distinct positions there are: ``image / stride``.
    repeats : tuple of float
        How often the outputs visit each position, on average.
    """

    stride: tuple[int, ...]
    sizes: tuple[int, ...]
    repeats: tuple[float, ...]

    @property
    def exact(self) -> bool:
        """Whether every position is visited equally often, so that the symbol's matrices are the whole spectrum."""
        return all(count == int(count) for count in self.repeats)

    @property
    def factor(self) -> float:
        """The ratio of the operator's norm to that of one visit of every position; a bound where not exact."""
        return math.sqrt(math.prod(math.ceil(count) for count in self.repeats))


def circular_lattice(geometry: ConvGeometry) -> CircularLattice:
    """Return the lattice of a circular geometry.

    Examples
    --------
    >>> from convla import ConvGeometry
    >>> from convla.spectra.torus import circular_lattice
    >>> circular_lattice(ConvGeometry((1, 1, 3), (9,), padding="same", stride=6, boundary="circular"))
    CircularLattice(stride=(3,), sizes=(3,), repeats=(0.6666666666666666,))
    """
    # The positions q s mod n, q = 0, 1, ..., run through the multiples of gcd(s, n), each once in n / gcd(s, n) steps.
    stride = tuple(math.gcd(s, n) for s, n in zip(geometry.stride, geometry.image_shape, strict=True))
    sizes = tuple(n // g for n, g in zip(geometry.image_shape, stride, strict=True))
    repeats = tuple(count / size for count, size in zip(geometry.output_shape, sizes, strict=True))
    return CircularLattice(stride, sizes, repeats)


def circular_singular_values(kernel: Array, geometry: ConvGeometry) -> FloatArray:
    """Return every singular value of a convolution on an exact circular lattice, decreasing.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
    geometry : ConvGeometry
        With boundary "circular" and an exact `circular_lattice`.

    Returns
    -------
    numpy.ndarray of float64, shape (min(rows, columns),)

    References
    ----------
    H. Sedghi, V. Gupta and P. M. Long, The singular values of convolutional layers, ICLR 2019, for unit stride.
    """
    lattice = circular_lattice(geometry)
    symbol = Symbol(kernel, geometry, stride=lattice.stride)
    xp = symbol.xp
    values: list[FloatArray] = []
    frequencies, weights = torus_frequencies(lattice.sizes)
    for chunk in frequency_chunks(symbol, len(frequencies)):
        found = np.asarray(to_numpy(xp.linalg.svdvals(symbol.at(frequencies[chunk]))), np.float64)
        values.append(np.repeat(found, weights[chunk], axis=1).ravel())
    spectrum = np.concatenate(values) * lattice.factor
    rank_bound = min(geometry.shape)
    # Repeated outputs, and phases that no tap reads, add singular values 0.
    spectrum = np.concatenate((spectrum, np.zeros(max(0, rank_bound - spectrum.size))))
    return np.sort(spectrum)[::-1][:rank_bound]


def circular_triplets(
    kernel: Array, geometry: ConvGeometry, k: int, *, smallest: bool = False
) -> tuple[Array, FloatArray, Array]:
    """Return the k largest, or smallest, singular triplets of a convolution on an exact circular lattice.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
    geometry : ConvGeometry
        With boundary "circular" and an exact `circular_lattice`.
    k : int
        At most the number of singular values that come from the symbol, ``prod(sizes) * groups * min(rows, columns)``.
    smallest : bool
        Of those that come from the symbol.

    Returns
    -------
    left : array of shape (k, *range_shape)
    values : numpy.ndarray of float64, shape (k,)
    right : array of shape (k, *domain_shape)

    Raises
    ------
    ValueError
        If k is larger than that.
    """
    lattice = circular_lattice(geometry)
    symbol = Symbol(kernel, geometry, stride=lattice.stride)
    xp = symbol.xp
    frequencies, weights = torus_frequencies(lattice.sizes)
    values = np.concatenate(
        [
            np.asarray(to_numpy(xp.linalg.svdvals(symbol.at(frequencies[chunk]))), np.float64)
            for chunk in frequency_chunks(symbol, len(frequencies))
        ],
        axis=1,
    )
    available = int((values.shape[0] * values.shape[2] * weights).sum())
    if k > available:
        raise ValueError(f"k must be at most {available}, the singular values that come from the symbol, got {k}")
    inputs = [np.divmod(np.arange(n), g) for n, g in zip(geometry.image_shape, lattice.stride, strict=True)]
    masks = [[(rest == r) * 1.0 for (_, rest), r in zip(inputs, phase, strict=True)] for phase in symbol.phases]
    outputs = [
        (np.arange(count) * s % n) // g
        for count, s, n, g in zip(
            geometry.output_shape, geometry.stride, geometry.image_shape, lattice.stride, strict=True
        )
    ]
    found: list[float] = []
    left: list[Array] = []
    right: list[Array] = []
    order = np.argsort(values, axis=None)[:: 1 if smallest else -1]
    for group, index, rank in zip(*np.unravel_index(order[:k], values.shape), strict=True):
        matrix = symbol.at(frequencies[index : index + 1])[int(group), 0, :, :]
        single = weights[index] == 1
        # A frequency that is its own conjugate has a real matrix and real singular vectors.
        u, _, vt = xp.linalg.svd(xp.real(matrix) if single else matrix, full_matrices=False)
        u, v = (xp.astype(w, matrix.dtype) for w in (u[:, int(rank)], xp.conj(vt[int(rank), :])))
        waves = [
            plane_wave(u[:, None], frequencies[index], outputs, [[1.0] * len(outputs)]),
            plane_wave(
                xp.reshape(v, (symbol.inner, -1)), frequencies[index], [quotient for quotient, _ in inputs], masks
            ),
        ]
        for part in (xp.real,) if single else (xp.real, xp.imag):
            for wave, side in zip(waves, (left, right), strict=True):
                side.append(_in_group(_unit(part(wave)), int(group), symbol.groups))
            found.append(float(values[group, index, rank]) * lattice.factor)
        if len(found) >= k:
            break
    return xp.stack(left[:k]), np.array(found[:k]), xp.stack(right[:k])


def _in_group(block: Array, group: int, groups: int) -> Array:
    """Place the channels of one group among zeros for the others."""
    xp = namespace(block)
    return xp.concat([block if g == group else xp.zeros_like(block) for g in range(groups)], axis=0)


def _unit(array: Array) -> Array:
    return array / namespace(array).linalg.vector_norm(array)


def embedding_sizes(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the least sizes, in output steps, of a torus in which the zero-padded image does not meet itself.

    The zero-padded operator is then a submatrix of the torus's: its rows that read only zeros aside, output q reads
    ``q s + t d - low`` through tap t, and on a torus of N positions none of these is a position of the image unless it
    is one on the line, given ``N >= n``, ``N >= n + low - q_first s - t_first d`` and
    ``N > q_last s + t_last d - low``, where t runs over the taps that meet the image and q over the outputs.

    Examples
    --------
    >>> from convla import ConvGeometry
    >>> from convla.spectra.torus import embedding_sizes
    >>> embedding_sizes(ConvGeometry((1, 1, 3), (32,), padding="same"))
    (33,)
    """
    sizes = []
    for axis, (n, (low, _), s, d) in enumerate(
        zip(geometry.image_shape, geometry.padding, geometry.stride, geometry.dilation, strict=True)
    ):
        rows, taps = np.nonzero(geometry.axis_map(axis) >= 0)
        if not rows.size:  # nothing is read: the operator is zero
            sizes.append(1)
            continue
        least = int(rows.min()) * s + int(taps.min()) * d - low
        greatest = int(rows.max()) * s + int(taps.max()) * d - low
        sizes.append(-(-max(n, n - least, greatest + 1) // s))
    return tuple(sizes)


def frequency_chunks(symbol: Symbol, count: int) -> list[slice]:
    """Split `count` frequencies so that f fits in a moderate piece of memory at a time."""
    length = max(1, _CHUNK_ENTRIES // (symbol.groups * symbol.rows * symbol.columns))
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]
