"""The symbol of a convolution: the small matrices f(theta) that its singular values are made of.

Away from the edges of the image a convolution acts on a plane wave ``v exp(i theta.x)`` as the matrix ``f(theta)``
(c_out, c_in) acts on v. With stride s the outputs live on a lattice s times coarser, so the image splits into s phases
along each axis, which then are channels of f: the polyphase form. On a torus this is exact, and f at the torus's
frequencies holds all singular values; with zeros outside the image it bounds and nearly gives them.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convla._array import device_of, is_numpy, namespace, on_device_of
from convla.geometry import ConvGeometry
from convla.spectra.grids import (
    BLOCK_ENTRIES,
    ROOT_UNITS,
    Exponentials,
    IntArray,
    TorusGrid,
    to_complex,
    values_on_grid,
)
from convla.typing import Array

__all__ = ["FloatArray", "Symbol", "plane_wave", "random_complex", "torus_frequencies"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


class Symbol:
    """The matrix-valued trigonometric polynomial ``f(theta) = sum_t W_t exp(i theta.lag_t)`` of a convolution.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64.
    geometry : ConvGeometry
        Its padding, stride, dilation and groups are used; the image shape and the boundary are not.
    stride : sequence of int, optional
        Instead of the geometry's.

    Attributes
    ----------
    like : array
        Of the library, the device and the dtype that it is computed in.
    lags : numpy.ndarray of int, shape (taps, ndim)
        In steps of the output lattice.
    phases : numpy.ndarray of int, shape (P, ndim)
        The phases of the image that some tap reads; the columns of f are (c_in // groups, P), flattened.
    degrees : tuple of int
        Along each axis the degree of ``f* f`` as a trigonometric polynomial: the largest difference of two lags.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvGeometry
    >>> from convla.spectra.symbol import Symbol
    >>> kernel = np.array([[[1.0, 0.0, -1.0]]])
    >>> symbol = Symbol(kernel, ConvGeometry(kernel.shape, (6,), padding="same"))
    >>> abs(complex(symbol.at(np.array([[np.pi / 2]]))[0, 0, 0, 0]))
    2.0
    """

    def __init__(self, kernel: Array, geometry: ConvGeometry, *, stride: Sequence[int] | None = None) -> None:
        self.like = self._kernel = kernel
        self.groups = geometry.groups
        self.stride = np.array(geometry.stride if stride is None else stride)
        self.xp = namespace(kernel)
        splits = [
            np.divmod(np.arange(k) * d - low, s)
            for k, d, (low, _), s in zip(
                geometry.kernel_size, geometry.dilation, geometry.padding, self.stride.tolist(), strict=True
            )
        ]
        # The taps are a product of the axes, and so are their lags and phases.
        self._axis_lags = [lags for lags, _ in splits]
        self._axis_phases = [np.unique(phases, return_inverse=True) for _, phases in splits]
        self.lags = np.array(list(itertools.product(*self._axis_lags)))
        self.phases = np.array(list(itertools.product(*(phases for phases, _ in self._axis_phases))))
        places = [place for _, place in self._axis_phases]
        self._phase_of = np.ravel_multi_index(
            tuple(np.array(list(itertools.product(*places))).T), tuple(len(phases) for phases, _ in self._axis_phases)
        )
        self.degrees = tuple(int(np.ptp(lags)) for lags in self._axis_lags)
        out, inner = geometry.kernel_shape[:2]
        self.rows, self.inner = out // geometry.groups, inner
        self.columns = inner * len(self.phases)

    @functools.cached_property
    def _taps(self) -> Array:
        """Every tap of all groups in a row, (taps, c_out * c_in // groups): a product with a table gives f."""
        taps = self.xp.reshape(self._kernel, (-1, len(self.lags)))
        # In rows that lie one behind the other: else each conversion and product turns them again.
        return np.ascontiguousarray(taps.T) if is_numpy(taps) else self.xp.permute_dims(taps, (1, 0))

    def parts(self, frequencies: FloatArray) -> tuple[Array, Array]:
        """Return the real and the imaginary part of f.

        Parameters
        ----------
        frequencies : numpy.ndarray of shape (F, ndim)
            In radians per step of the output lattice.

        Returns
        -------
        real, imaginary : array of shape (groups, F, c_out // groups, c_in // groups * P)
            Of the kernel's library and dtype.
        """
        angles = frequencies @ self.lags.T.astype(np.float64)
        return self._combine(np.cos(angles)), self._combine(np.sin(angles))

    def at(self, frequencies: FloatArray) -> Array:
        """Return f at the frequencies: complex, shape (groups, F, c_out // groups, c_in // groups * P)."""
        real, imaginary = self.parts(frequencies)
        return to_complex(real, imaginary)

    def on_grid(self, grid: TorusGrid, *, limit: int | None = BLOCK_ENTRIES) -> Iterator[tuple[IntArray, Array]]:
        """Yield f at the frequencies of a grid, a block at a time.

        Parameters
        ----------
        grid : TorusGrid
        limit : int or None
            Of the entries in a block. None for a single block, in row-major order, of a grid of short axes.

        Yields
        ------
        q : numpy.ndarray of int, shape (F, ndim)
            Indices of frequencies of the grid; each is in some block, a few are in two.
        values : complex array of shape (F, groups, c_out // groups, c_in // groups * P)

        Notes
        -----
        With `rounding_terms` n, every entry is within ``gamma_n`` times the sum of its terms' moduli of the exact
        one, in the precision of the kernel.
        """
        xp = self.xp
        taps = xp.reshape(self._taps, (*map(len, self._axis_lags), -1))
        most = sys.maxsize if limit is None else limit // len(self.phases)
        planes = []
        for phase in itertools.product(*(range(len(phases)) for phases, _ in self._axis_phases)):
            chosen, tables = taps, []
            for axis, (_, places) in enumerate(self._axis_phases):
                mine = np.flatnonzero(places == phase[axis])
                if len(mine) < len(places):
                    chosen = xp.take(chosen, on_device_of(mine, chosen, xp), axis=axis)
                lags = self._axis_lags[axis][mine]
                tables.append(Exponentials(lags, grid.sizes[axis], grid.twist[axis], grid.counts[axis]))
            planes.append(values_on_grid(chosen, tables, limit=most))
        for blocks in zip(*planes, strict=True):
            q, first = blocks[0]
            stacked = first if len(blocks) == 1 else xp.stack([values for _, values in blocks], axis=-1)
            yield q, xp.reshape(stacked, (-1, self.groups, self.rows, self.columns))

    @property
    def rounding_terms(self) -> int:
        """The n of the bound ``gamma_n`` of the rounding errors of `on_grid`.

        Each axis is a complex product, 3 k > 2 sqrt(2) k roundings, with a table of products of two roots of unity.
        """
        return sum(3 * len(lags) + 2 * ROOT_UNITS + 6 for lags in self._axis_lags)

    def astype(self, dtype: Any) -> Symbol:
        """Return the symbol of the kernel in another precision."""
        other = copy.copy(self)
        other._taps = other.like = self.xp.astype(self._taps, dtype)
        return other

    def largest_frobenius(self) -> float:
        """Bound the Frobenius norms of f at all frequencies, and of the sums of its terms' moduli."""
        xp = self.xp
        moduli = xp.sum(xp.abs(self._taps), axis=0, dtype=xp.float64)
        sums = xp.sum(xp.reshape(moduli * moduli, (self.groups, -1)), axis=1)
        return math.sqrt(float(xp.max(sums))) * (1 + 1e-9)

    def tap_matrices(self, group: int) -> Array:
        """Return every tap as a matrix on the phases' channels: (taps, c_out // groups, c_in // groups * P)."""
        xp = self.xp
        taps = xp.reshape(self._taps, (-1, self.groups, self.rows, self.inner))[:, group, :, :]
        if len(self.phases) == 1:
            return taps
        placed = np.eye(len(self.phases))[self._phase_of]
        placed = on_device_of(placed, taps, xp, dtype=taps.dtype)
        spread = taps[:, :, :, None] * placed[:, None, None, :]
        return xp.reshape(spread, (taps.shape[0], self.rows, self.columns))

    def _combine(self, weights: FloatArray) -> Array:
        """Sum the taps with real weights (F, taps)."""
        xp, count = self.xp, len(weights)
        planes = []
        for phase in range(len(self.phases)):
            chosen = np.flatnonzero(self._phase_of == phase)
            table = on_device_of(weights[:, chosen], self.like, xp, dtype=self.like.dtype)
            taps = self._taps
            if len(chosen) != len(self._phase_of):
                taps = xp.take(taps, on_device_of(chosen, self.like, xp), axis=0)
            planes.append(xp.reshape(xp.matmul(table, taps), (count, self.groups, self.rows, self.inner)))
        stacked = planes[0] if len(planes) == 1 else xp.stack(planes, axis=-1)
        stacked = xp.reshape(stacked, (count, self.groups, self.rows, self.columns))
        return xp.permute_dims(stacked, (1, 0, 2, 3))


def torus_frequencies(
    sizes: Sequence[int], twist: Sequence[int] | None = None
) -> tuple[FloatArray, np.ndarray[Any, np.dtype[np.intp]]]:
    """Return one frequency of each conjugate pair of a torus, with how many frequencies it stands for.

    Parameters
    ----------
    sizes : sequence of int
        The points of the torus along each axis.
    twist : sequence of {0, 1}, optional
        1 for functions that change sign when they go around that axis (the skew-circulant matrices): the frequencies
        then stand half a step off.

    Returns
    -------
    frequencies : numpy.ndarray of shape (F, ndim)
    weights : numpy.ndarray of int, shape (F,)
        2, or 1 for a frequency that is its own conjugate; they sum to the product of the sizes.

    Notes
    -----
    For a real kernel ``f(-theta)`` is the conjugate of ``f(theta)``, so both have the same singular values.

    Examples
    --------
    >>> from convla.spectra.symbol import torus_frequencies
    >>> frequencies, weights = torus_frequencies((4,))
    >>> weights
    array([1, 2, 1])
    """
    twists = [0] * len(sizes) if twist is None else list(twist)
    points = np.indices(tuple(sizes)).reshape(len(sizes), -1)
    conjugates = np.stack([(-p - t) % size for p, size, t in zip(points, sizes, twists, strict=True)])
    own, other = (np.ravel_multi_index(tuple(index), tuple(sizes)) for index in (points, conjugates))
    kept = own <= other
    steps = np.array([2 * math.pi / size for size in sizes])
    frequencies = (points[:, kept].T + np.array(twists) / 2) * steps
    return frequencies, np.where(own[kept] == other[kept], 1, 2)


def plane_wave(
    vectors: Array, frequency: FloatArray, steps: Sequence[np.ndarray[Any, Any]], masks: Sequence[Sequence[Any]]
) -> Array:
    """Return the sum over the phases of ``vector exp(i frequency.step)`` on the positions of each phase.

    Parameters
    ----------
    vectors : complex array of shape (channels, P)
    frequency : numpy.ndarray of shape (ndim,)
    steps : sequence of numpy.ndarray
        Along each axis the lattice step of every position.
    masks : sequence of P sequences
        For each phase and each axis, 1 at the positions of the phase and 0 elsewhere, or a weight.

    Returns
    -------
    complex array of shape (channels, *positions)
    """
    xp = namespace(vectors)
    total = None
    for index, mask in enumerate(masks):
        factors: Any = np.ones((), dtype=complex)
        for axis, step in enumerate(steps):
            factors = np.multiply.outer(factors, np.exp(1j * frequency[axis] * step) * mask[axis])
        plane = on_device_of(factors, vectors, xp, dtype=vectors.dtype)
        term = xp.reshape(vectors[:, index], (-1, *(1,) * len(steps))) * plane[None, ...]
        total = term if total is None else total + term
    assert total is not None
    return total


def random_complex(shape: tuple[int, ...], like: Array, rng: np.random.Generator) -> Array:
    """Return complex normal numbers on the device and in the precision of the real array `like`."""
    xp = namespace(like)
    real, imaginary = rng.standard_normal((2, *shape))
    dtype = xp.complex64 if like.dtype == xp.float32 else xp.complex128
    return xp.asarray(real + 1j * imaginary, dtype=dtype, device=device_of(like))
