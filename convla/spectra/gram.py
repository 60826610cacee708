"""The Gram matrices ``f* f`` of a symbol at all frequencies of a grid, with a bound of their rounding errors.

``f* f`` is a trigonometric polynomial too, of twice the symbol's degree. So it is known everywhere from its values at
``2 m + 1`` frequencies along an axis: where a grid has more, those are formed from f, and the others interpolated.
The matrices ``S + i A``, S symmetric and A not, are held as the real ``S + A``: half the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from convla._array import namespace, on_device_of
from convla._products import product
from convla._threads import blas_on_one_thread
from convla.spectra.certificate import U64, Combinations, gamma
from convla.spectra.grids import DenseTable, IntArray, TorusGrid, interpolation, values_on_grid
from convla.spectra.symbol import Symbol
from convla.typing import Array

__all__ = ["GramMatrices"]

_BLOCK = 1 << 19  # numbers in a block of coefficients, where one has fewer
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
        A bound of the Frobenius norm of each matrix's error, and of the modulus of the error's trace.

    Notes
    -----
    One number bounds both. An error of f enters as ``dZ* Z + Z* dZ``, whose trace is at most twice the product of the
    Frobenius norms, as its own norm is. Rounding in a product is bounded entry by entry by a multiple of ``B^T B``, B
    being the moduli of Z, and the trace of that is the square of B's Frobenius norm, which bounds the Frobenius norm of
    ``B^T B`` too. Interpolation is linear, and what it rounds is bounded by the matrices' moduli, entry by entry.

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
        # Of f by `Symbol.on_grid`, then of the Gram matrix: real sums of products, see `_packed`.
        inner = max(symbol.rows, symbol.columns)
        error = 2 * gamma(symbol.rounding_terms, U64) * (1 + 1e-9) + 2 * gamma(2 * inner + 3, U64)
        scale = 1.0
        if self._nodes is not None and self._tables is not None:
            for table, nodes in zip(self._tables, self._nodes.sizes, strict=True):
                scale *= table.norm
                error = table.norm * error + gamma(nodes + 34, U64) * scale
        self.error = (error + gamma(2, U64) * scale) * symbol.largest_frobenius() ** 2 * (1 + 1e-9)

    def __iter__(self) -> Iterator[tuple[IntArray, Combinations]]:
        """Yield some of the grid's indices q (B, F, d), and S + A of the matrices of B, all groups and F."""
        if self._nodes is None or self._tables is None:
            for q, values in _one_of_each_pair(self._symbol, self._grid):
                yield q[:, None, :], Combinations.of(_packed(values))
            return
        xp, half = self._symbol.xp, self._grid.half
        whole = self._nodes.sizes[half] < self._grid.sizes[half]
        nodes = _packed_at_nodes(self._symbol, self._nodes, whole=whole)
        matrix, *others, table = nodes.shape[-3:], *self._tables
        weights, last = table.rows(0, table.count), np.arange(table.count)[:, None]
        flat = xp.reshape(nodes, (*nodes.shape[: len(others)], -1))
        for q, block in values_on_grid(flat, others, limit=_BLOCK):
            lines = np.concatenate((np.repeat(q[:, None, :], len(last), axis=1), np.tile(last, (len(q), 1, 1))), axis=2)
            yield lines, Combinations(xp.reshape(block, (-1, weights.shape[1], *matrix)), weights)


def _packed_at_nodes(symbol: Symbol, grid: TorusGrid, *, whole: bool) -> Array:
    """Return S + A at the frequencies of a grid, `whole` if of both halves, of shape (*frequencies, groups, c, c).

    One product is taken for each pair of conjugate frequencies: ``-theta`` belongs to S - A.
    """
    xp = symbol.xp
    known: dict[int, Array] = {}
    for q, values in _one_of_each_pair(symbol, grid):
        packed = _packed(values)
        known |= {number: packed[row, ...] for row, number in enumerate(grid.numbers(q)[0].tolist())}
    counts = grid.sizes if whole else grid.counts
    pairs = zip(*grid.numbers(np.indices(counts).reshape(len(counts), -1).T), strict=True)
    nodes = [known[a] if a <= b else xp.matrix_transpose(known[b]) for a, b in pairs]
    return xp.reshape(xp.stack(nodes), (*counts, *nodes[0].shape))


def _one_of_each_pair(symbol: Symbol, grid: TorusGrid) -> Iterator[tuple[IntArray, Array]]:
    """Yield f at the frequencies of a grid as `Symbol.on_grid` does, without the second of conjugate ones."""
    for q, values in symbol.on_grid(grid):
        own, conjugate = grid.numbers(q)
        first = np.flatnonzero(own <= conjugate)
        if first.size == len(q):
            yield q, values
        elif first.size:
            yield q[first], symbol.xp.take(values, on_device_of(first, values, symbol.xp), axis=0)


def _packed(values: Array) -> Array:
    """Return S + A of the Gram matrices ``S + i A = Z* Z``, or ``Z Z*`` where that is smaller, of a stack Z = X + i Y.

    It is ``X^T (X + Y) + Y^T (Y - X)``, one real product. Its rounding errors are at most ``gamma_(2 n + 1)`` times
    ``(abs(X) + abs(Y))^T (abs(X) + abs(Y))`` for Z of n rows, whose Frobenius norm is at most twice the square of Z's.
    Those of S and A together have the same norm.
    """
    xp = namespace(values)
    real, imaginary = xp.real(values), xp.imag(values)
    if values.shape[-1] > values.shape[-2]:
        real, imaginary = xp.matrix_transpose(real), -xp.matrix_transpose(imaginary)
    first = xp.concat((real, imaginary), axis=-2)
    half = first.shape[-2] // 2
    real, imaginary = first[..., :half, :], first[..., half:, :]  # one entry behind the other: quicker to read again
    second = xp.concat((real + imaginary, imaginary - real), axis=-2)
    with blas_on_one_thread():
        return product(xp.matrix_transpose(first), second)
