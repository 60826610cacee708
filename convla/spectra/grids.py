"""Trigonometric polynomials with matrix coefficients at the frequencies of a torus, axis by axis.

Values on a product of frequencies are products with one small table for each axis: a few operations for each value and
tap of one axis, elementary rounding bounds, and no more in memory than a block at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla._array import is_numpy, namespace, on_device_of
from convla.typing import Array

__all__ = [
    "BLOCK_ENTRIES",
    "ROOT_UNITS",
    "DenseTable",
    "Exponentials",
    "IntArray",
    "TorusGrid",
    "interpolation",
    "roots_of_unity",
    "to_complex",
    "values_on_grid",
]

ROOT_UNITS = 20
"""Bound of the error of `roots_of_unity`, in rounding units of float64: an angle of modulus at most pi is right to
three roundings, 9.5 units; its cosine and sine to 4 units in the last place each, 5.7 together."""

BLOCK_ENTRIES = 1 << 18
"""Complex numbers in a block: what stays in the cache."""

_LONGEST_BLOCK = 1024  # frequencies, so that the table of a long axis stays small

IntArray = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


@dataclass(frozen=True)
class TorusGrid:
    """The frequencies ``theta = 2 pi (q + twist / 2) / size`` of a torus, one of each conjugate pair.

    Along one axis only the lower half is kept: for a real kernel ``f(-theta)`` is the conjugate of ``f(theta)``.

    Attributes
    ----------
    sizes : tuple of int
    twist : tuple of {0, 1}
        1 for functions that change sign when they go around that axis (the skew-circulant matrices).
    half : int
        The axis that is halved.

    Examples
    --------
    >>> from convla.spectra.grids import TorusGrid
    >>> TorusGrid((4, 6), (0, 1), half=1).counts
    (4, 3)
    """

    sizes: tuple[int, ...]
    twist: tuple[int, ...]
    half: int

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of frequencies along each axis."""
        return tuple(
            (size - t) // 2 + 1 if axis == self.half else size
            for axis, (size, t) in enumerate(zip(self.sizes, self.twist, strict=True))
        )

    def frequencies(self, q: IntArray) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return theta, in radians, for indices of shape (F, d)."""
        return (q + np.array(self.twist) / 2) * (2 * math.pi / np.array(self.sizes))

    def numbers(self, q: IntArray) -> tuple[IntArray, IntArray]:
        """Return a number for each of the torus's frequencies of indices (F, d), and that of its conjugate ``-theta``.

        Of those that are kept the number is smaller but for the ends of the halved axis, which hold both of a pair. An
        index that goes around an axis is that of a frequency before.
        """
        around = (index % np.array(self.sizes) for index in (q, -q - np.array(self.twist)))
        axes = sorted(range(len(self.sizes)), key=lambda axis: axis != self.half)
        sizes = [self.sizes[axis] for axis in axes]
        own, conjugate = (np.ravel_multi_index(tuple(index.T[axes]), sizes) for index in around)
        return own, conjugate


def roots_of_unity(numerators: IntArray, denominator: int) -> np.ndarray[Any, np.dtype[np.complex128]]:
    """Return ``exp(2 pi i numerators / denominator)``, to `ROOT_UNITS` however large the numerators are.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.grids import roots_of_unity
    >>> roots_of_unity(np.array([0, 10**15]), 4)
    array([1.+0.j, 1.+0.j])
    """
    angles = 2 * math.pi * _centred(numerators, denominator) / denominator
    return np.cos(angles) + 1j * np.sin(angles)


def _centred(numerators: IntArray, modulus: int) -> IntArray:
    """Return the residues of least modulus."""
    residues: IntArray = np.remainder(numerators, modulus)
    return np.where(2 * residues > modulus, residues - modulus, residues)


class Exponentials:
    """The table ``exp(i theta_q lag)`` of one axis of a grid.

    Parameters
    ----------
    lags : numpy.ndarray of int, shape (k,)
    size, twist, count : int
        Of the grid's axis.
    """

    def __init__(self, lags: IntArray, size: int, twist: int, count: int) -> None:
        self._lags, self._size, self._twist, self.count = lags.astype(np.int64), size, twist, count

    def rows(self, first: int, length: int) -> np.ndarray[Any, Any]:
        """Return the rows of consecutive frequencies."""
        numerators = 2 * np.arange(first, first + length) + self._twist
        return roots_of_unity(np.multiply.outer(numerators, self._lags), 2 * self._size)

    def blocks(self, coefficients: Array, length: int) -> Iterator[tuple[IntArray, Array]]:
        """Yield q and ``sum_k coefficient_k exp(i theta_q lag_k)`` for (..., k, entries), at most `length` q a block.

        Some frequencies of a long axis may come twice. Frequency ``q0 + stride q1`` needs the product of two
        exponentials, one of them the same for all q0: no table of all frequencies is formed.
        """
        xp = namespace(coefficients)
        if self.count <= _LONGEST_BLOCK:
            yield from _consecutive(self, coefficients, length)
            return
        if xp.isdtype(coefficients.dtype, "real floating"):
            coefficients = to_complex(coefficients, xp.zeros_like(coefficients))
        stride = -(-self.count // length)
        steps = stride * np.arange(-(-self.count // stride))
        table = _placed(roots_of_unity(np.multiply.outer(2 * steps, self._lags), 2 * self._size), coefficients)
        for first in range(stride):
            turn = _placed(self.rows(first, 1)[0], coefficients)
            yield first + steps, xp.matmul(table, coefficients * turn[:, None])


class DenseTable:
    """A table that is given as a matrix, real.

    Parameters
    ----------
    table : numpy.ndarray of shape (count, k)

    Attributes
    ----------
    norm : float
        The largest sum of the moduli of a row: how much an error of the coefficients can grow.
    """

    def __init__(self, table: np.ndarray[Any, Any]) -> None:
        self._table, self.count = table, len(table)
        self.norm = float(np.abs(table).sum(axis=1).max()) * (1 + 1e-9)

    def rows(self, first: int, length: int) -> np.ndarray[Any, Any]:
        """Return the rows of consecutive frequencies."""
        return self._table[first : first + length]

    def blocks(self, coefficients: Array, length: int) -> Iterator[tuple[IntArray, Array]]:
        """Yield q and the products of those rows with coefficients (..., k, entries), at most `length` rows a block."""
        yield from _consecutive(self, coefficients, length)


def _consecutive(
    table: Exponentials | DenseTable, coefficients: Array, length: int
) -> Iterator[tuple[IntArray, Array]]:
    for first in range(0, table.count, length):
        rows = table.rows(first, min(length, table.count - first))
        yield first + np.arange(len(rows)), _product(rows, coefficients)


def interpolation(degree: int, size: int, twist: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the matrix from a polynomial's values at ``n = 2 degree + 1`` frequencies to those of a grid's axis.

    Parameters
    ----------
    degree : int
    size, twist, count : int
        Of the grid's axis.

    Returns
    -------
    numpy.ndarray of shape (count, n)
        ``D(theta_q - 2 pi j / n)``, ``D(x) = sin(n x / 2) / (n sin(x / 2))`` being Dirichlet's kernel, to a relative
        error of 32 rounding units: angles and their sines are right to 9 each, near zeros too.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.grids import interpolation
    >>> cosine = np.cos(2 * np.pi * np.arange(3) / 3)
    >>> (interpolation(1, 4, 0, 4) @ cosine).round(12) + 0
    array([ 1.,  0., -1.,  0.])
    """
    n = 2 * degree + 1
    # x = pi numerator / (size n)
    numerators = np.subtract.outer((2 * np.arange(count) + twist) * n, 2 * size * np.arange(n))
    above = np.sin(math.pi * _centred(numerators, 4 * size) / (2 * size))
    below = n * np.sin(math.pi * _centred(numerators, 4 * size * n) / (2 * size * n))
    node = numerators % (2 * size * n) == 0
    return np.where(node, 1.0, above / np.where(node, 1.0, below))


def values_on_grid(
    coefficients: Array, tables: Sequence[Exponentials | DenseTable], *, limit: int = BLOCK_ENTRIES
) -> Iterator[tuple[IntArray, Array]]:
    """Yield ``sum coefficient_(k_1..k_d) table_1[q_1, k_1] ... table_d[q_d, k_d]`` for all q, in blocks.

    Parameters
    ----------
    coefficients : array of shape (k_1, ..., k_d, entries)
        Real or complex for `Exponentials`, real for `DenseTable`.
    tables : sequence of d tables
    limit : int
        Of the numbers in a block, where a single frequency has fewer.

    Yields
    ------
    q : numpy.ndarray of int, shape (F, d)
    values : array of shape (F, entries)

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.grids import Exponentials, values_on_grid
    >>> difference = np.array([[1.0], [0.0], [-1.0]], complex)  # values 2 i sin(theta)
    >>> _, values = next(values_on_grid(difference, [Exponentials(np.array([1, 0, -1]), 4, 0, 2)]))
    >>> values.round(12)
    array([[0.+0.j],
           [0.+2.j]])
    """
    if not tables:
        yield np.zeros((1, 0), np.int64), coefficients[None, ...]
        return
    yield from _blocks(np.zeros((1, 0), np.int64), coefficients[None, ...], tables, limit)


def _blocks(
    done: IntArray, coefficients: Array, tables: Sequence[Exponentials | DenseTable], limit: int
) -> Iterator[tuple[IntArray, Array]]:
    """Evaluate along the first axis that is left, for (batch, k_1, ..., k_d, entries), and go on with the others."""
    xp = namespace(coefficients)
    batch, taps, *others, entries = coefficients.shape
    table, *rest = tables
    if not rest:
        for q, block in table.blocks(coefficients, max(1, min(limit // (batch * entries), _LONGEST_BLOCK))):
            yield _extended(done, q), xp.reshape(block, (-1, entries))
        return
    flat = xp.reshape(coefficients, (batch, taps, -1))
    length = max(1, limit // (batch * entries * math.prod(other.count for other in rest)))
    for first in range(0, table.count, length):
        q = np.arange(first, min(first + length, table.count))
        block = _product(table.rows(first, len(q)), flat)
        yield from _blocks(_extended(done, q), xp.reshape(block, (-1, *others, entries)), rest, limit)


def _extended(done: IntArray, q: IntArray) -> IntArray:
    """Return the indices of a batch along the earlier axes with each index along the next one."""
    return np.concatenate((np.repeat(done, len(q), axis=0), np.tile(q, len(done))[:, None]), axis=1)


def _product(rows: np.ndarray[Any, Any], coefficients: Array) -> Array:
    """Multiply rows of a table with coefficients; of a complex table with real ones, its parts: half of the work."""
    xp = namespace(coefficients)
    if np.iscomplexobj(rows) and xp.isdtype(coefficients.dtype, "real floating"):
        real, imaginary = (xp.matmul(_placed(part, coefficients), coefficients) for part in (rows.real, rows.imag))
        return to_complex(real, imaginary)
    return xp.matmul(_placed(rows, coefficients), coefficients)


def _placed(values: np.ndarray[Any, Any], like: Array) -> Array:
    return on_device_of(values, like, namespace(like), dtype=like.dtype)


def to_complex(real: Array, imaginary: Array) -> Array:
    """Join a real and an imaginary part into a complex array of the same precision."""
    xp = namespace(real)
    dtype = xp.complex64 if real.dtype == xp.float32 else xp.complex128
    if is_numpy(real):  # without temporaries
        joined = np.empty(real.shape, dtype)
        joined.real, joined.imag = real, np.asarray(imaginary)
        return joined
    return xp.astype(real, dtype) + xp.astype(imaginary, dtype) * 1j
