"""The Gram matrices ``f* f`` of a symbol at all frequencies of a grid, with a bound of their rounding errors.

``f* f`` is a trigonometric polynomial too, of twice the symbol's degree. So it is known everywhere from its values at
``2 m + 1`` frequencies along an axis: where a grid has more, those are formed from f, and the others interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from convla._array import namespace, on_device_of
from convla.spectra.certificate import U64, gamma
from convla.spectra.grids import DenseTable, IntArray, TorusGrid, interpolation, values_on_grid
from convla.spectra.symbol import Symbol, to_complex
from convla.typing import Array

__all__ = ["GramMatrices"]

_LARGE = 128  # order of Gram matrices
_HIGHEST_DEGREE = 64  # for longer kernels f itself is as quickly evaluated


class GramMatrices:
    """The Gram matrices of the smaller side, ``f* f`` or ``f f*``, at the frequencies of a grid.

    Parameters
    ----------
    symbol : Symbol
        In float64.
    grid : TorusGrid

    Attributes
    ----------
    error : float
        A bound of the error of each matrix in the Frobenius norm.

    Notes
    -----
    Held in memory are a block of frequencies and, where it interpolates, the matrices at the nodes: no more than
    ``2^(d+1)`` times the entries of the kernel for kernels of d axes without strides.
    """

    def __init__(self, symbol: Symbol, grid: TorusGrid) -> None:
        self._symbol, self._grid = symbol, grid
        axes = list(zip(symbol.degrees, grid.sizes, grid.twist, grid.counts, strict=True))
        fewer = [2 * degree + 1 < size for degree, size, _, _ in axes]
        self._nodes = self._tables = None
        if any(fewer) and max(symbol.degrees) <= _HIGHEST_DEGREE:
            self._nodes = TorusGrid(
                tuple(2 * m + 1 if less else size for (m, size, _, _), less in zip(axes, fewer, strict=True)),
                tuple(0 if less else t for (_, _, t, _), less in zip(axes, fewer, strict=True)),
                grid.half,
            )
            self._tables = [
                DenseTable(interpolation(*axis) if less else np.eye(axis[-1]))
                for axis, less in zip(axes, fewer, strict=True)
            ]
        # Of f by `Symbol.on_grid`, then of the Gram matrix: complex sums of products, 3 > 2 sqrt(2) roundings each.
        inner = max(symbol.rows, symbol.columns)
        error = 2 * gamma(symbol.rounding_terms, U64) * (1 + 1e-9) + gamma(3 * inner + 3, U64)
        scale = 1.0
        if self._nodes is not None and self._tables is not None:
            for table, nodes in zip(self._tables, self._nodes.sizes, strict=True):
                scale *= table.norm
                error = table.norm * error + gamma(nodes + 34, U64) * scale
        self.error = error * symbol.largest_frobenius() ** 2 * (1 + 1e-9)

    def __iter__(self) -> Iterator[tuple[IntArray, Array]]:
        """Yield the grid's indices q (F, d), and arrays of shape (F, groups, c, c), complex128, in blocks."""
        xp, symbol = self._symbol.xp, self._symbol
        if self._nodes is None or self._tables is None:
            for q, values in symbol.on_grid(self._grid):
                yield q, _gram(values)
            return
        ((_, values),) = symbol.on_grid(self._nodes, limit=None)
        order = min(symbol.rows, symbol.columns)
        grams = xp.reshape(_gram(values), (*self._nodes.counts, -1))
        half = self._grid.half
        if self._nodes.sizes[half] < self._grid.sizes[half]:
            grams = _both_halves(grams, self._nodes)
        parts = xp.concat((xp.real(grams), xp.imag(grams)), axis=-1)
        entries = grams.shape[-1]
        for q, block in values_on_grid(parts, self._tables):
            joined = to_complex(block[:, :entries], block[:, entries:])
            yield q, xp.reshape(joined, (-1, symbol.groups, order, order))


def _both_halves(grams: Array, grid: TorusGrid) -> Array:
    """Complete the values along the halved axis, which has no twist: ``-theta`` belongs to the complex conjugate."""
    xp = namespace(grams)
    mirrored = xp.conj(grams)
    for axis, (size, twist) in enumerate(zip(grid.sizes, grid.twist, strict=True)):
        opposite = (-np.arange(size) - twist) % size
        if axis == grid.half:
            opposite = opposite[size // 2 + 1 :]
        mirrored = xp.take(mirrored, on_device_of(opposite, grams, xp), axis=axis)
    return xp.concat((grams, mirrored), axis=grid.half)


def _gram(values: Array) -> Array:
    """Return A* A, or A A* where that is smaller, of a stack: half the work of complex products."""
    xp = namespace(values)
    real, imaginary = xp.real(values), xp.imag(values)
    if values.shape[-1] > values.shape[-2]:
        real, imaginary = xp.matrix_transpose(real), -xp.matrix_transpose(imaginary)
    stacked = xp.concat((real, imaginary), axis=-2)
    product = xp.matmul(xp.matrix_transpose(real), imaginary)
    return to_complex(_symmetric(stacked), product - xp.matrix_transpose(product))


def _symmetric(matrices: Array) -> Array:
    """Return A^T A for a stack: for large matrices one at a time, as the BLAS then computes one triangle only."""
    xp = namespace(matrices)
    order = matrices.shape[-1]
    if order < _LARGE:
        return xp.matmul(xp.matrix_transpose(matrices), matrices)
    flat = xp.reshape(matrices, (-1, *matrices.shape[-2:]))
    products = [xp.matmul(xp.matrix_transpose(flat[i, ...]), flat[i, ...]) for i in range(flat.shape[0])]
    return xp.reshape(xp.stack(products), (*matrices.shape[:-2], order, order))
