"""Products of large matrices, cut into blocks that the threads of `convla._threads` share.

The BLAS's own threads wait for each other at the end of every routine: beside processes that compute, two of them may
take twice the time of one. Blocks are taken by whoever is free, and the numbers do not depend on who that is.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np

from convla._threads import blas_on_one_thread, share, taken
from convla.typing import Array

__all__ = ["product"]

SHARED_FROM = 2e8
"""Operations from which a product is worth sharing."""
SIDE = 256
"""The least side of a block: what a routine packs anew for each is little beside what it computes."""
BLOCKS = 8
"""Into so many blocks a matrix is cut at most."""

_Block = tuple[slice, slice, slice]


def product(a: Array, b: Array) -> Array:
    """Return ``a @ b``; large NumPy matrices, or stacks of them, are multiplied by as many threads as are allowed.

    Below `SHARED_FROM` operations it is the library's own product, for which the caller holds the BLAS at one thread.

    Parameters
    ----------
    a : array, shape (..., m, k)
    b : array, shape (..., k, n)
        Of a's array library and leading axes. Of the product of a matrix with its own transpose half is computed.

    Returns
    -------
    array, shape (..., m, n)

    Examples
    --------
    >>> import numpy as np
    >>> from convla._products import product
    >>> rows = np.ones((2, 512, 512), np.float32)
    >>> np.unique(product(rows, np.swapaxes(rows, 1, 2)))
    array([512.], dtype=float32)
    """
    rows, inner, columns = *a.shape[-2:], b.shape[-1]
    if not isinstance(a, np.ndarray) or 2 * math.prod(a.shape) * columns < SHARED_FROM:
        return a @ b
    first, second = a.reshape(-1, rows, inner), np.asarray(b).reshape(-1, inner, columns)
    count = len(first)
    result = np.empty((count, rows, columns), np.result_type(first, second))
    symmetric = rows > SIDE and _is_transpose(first, second)
    blocks: queue.SimpleQueue[_Block] = queue.SimpleQueue()
    for block in _triangle(count, rows) if symmetric else _blocks(count, rows, columns, inner):
        blocks.put(block)

    def multiply() -> None:
        for stack, above, beside in taken(blocks):
            np.matmul(first[stack, above], second[stack, :, beside], out=result[stack, above, beside])

    with blas_on_one_thread():
        share(multiply)
    if symmetric:
        for cut in _cuts(rows)[1:]:
            result[:, : cut.start, cut] = np.swapaxes(result[:, cut, : cut.start], 1, 2)
    return result.reshape(*a.shape[:-1], columns)


def _is_transpose(first: Any, second: Any) -> bool:
    """Tell whether one stack is the other's, transposed, in the same memory."""
    turned = second.swapaxes(1, 2)
    return bool(
        first.shape == turned.shape
        and first.dtype == turned.dtype
        and first[0].strides == turned[0].strides
        and (len(first) == 1 or first.strides == turned.strides)
        and first.__array_interface__["data"] == turned.__array_interface__["data"]
    )


def _cuts(side: int) -> list[slice]:
    length = max(SIDE, 64 * -(-side // (64 * BLOCKS)))
    return [slice(start, min(start + length, side)) for start in range(0, side, length)]


def _blocks(count: int, rows: int, columns: int, inner: int) -> Iterator[_Block]:
    """Cut each matrix along its longer side; of small ones several are one block."""
    together = math.ceil(SHARED_FROM / (BLOCKS * 2 * rows * columns * inner))
    for start in range(0, count, together):
        stack = slice(start, start + together)
        for cut in _cuts(max(rows, columns)) if together == 1 else [slice(None)]:
            yield (stack, cut, slice(None)) if rows > columns else (stack, slice(None), cut)


def _triangle(count: int, side: int) -> Iterator[_Block]:
    """Cut the lower triangles by rows, the longest first, and the blocks on the diagonals off: these are symmetric."""
    for matrix in range(count):
        stack = slice(matrix, matrix + 1)
        for cut in reversed(_cuts(side)):
            if cut.start:
                yield stack, cut, slice(0, cut.start)
            yield stack, cut, cut
