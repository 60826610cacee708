"""Inputs on which an equality of multilinear forms proves it for every real input of that size.

A form that is linear in K1 and in K2 is fixed by its values on pairs of unit kernels; one that is quadratic in X is
fixed by its values at e_i and at e_i + e_j, i < j, because those give its symmetric bilinear form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from convla.typing import NumPyArray as Array

__all__ = ["agree_on_all_bases", "quadratic_basis", "unit_kernels", "vector_sizes"]

BATCH = 1 << 20
"""At most this many entries in a batch of inputs times kernels: a few tens of MB of int64."""


def unit_kernels(channels: int, size: Sequence[int]) -> Array:
    """Return every kernel with one entry 1 and the others 0: integers (channels * taps, channels, *size)."""
    entries = channels * math.prod(size)
    return np.eye(entries, dtype=np.int64).reshape(entries, channels, *size)


def quadratic_basis(channels: int, size: Sequence[int], batch: int) -> Iterator[Array]:
    """Yield the inputs e_i and e_i + e_j, i < j, in batches: integers (at most `batch`, channels, *size)."""
    entries = channels * math.prod(size)
    rows, columns = np.triu_indices(entries)
    for start in range(0, rows.size, batch):
        first, second = rows[start : start + batch], columns[start : start + batch]
        block = np.zeros((first.size, entries), dtype=np.int64)
        block[np.arange(first.size), first] = 1
        block[np.arange(first.size), second] = 1
        yield block.reshape(-1, channels, *size)


def agree_on_all_bases(
    left: Callable[[Array, Array, Array], Array],
    right: Callable[[Array, Array, Array], Array],
    channels: int,
    kernel: Sequence[int],
    image: Sequence[int],
    where: str = "",
) -> int:
    """Assert that two forms, linear in each kernel and quadratic in the input, are equal; return how many inputs.

    Parameters
    ----------
    left, right : callable
        Called with stacks of kernels (s, channels, *kernel), twice, and inputs (batch, channels, *image); return
        (batch, s, s).
    channels, kernel, image
        The size at which equality is proved.
    where : str
        Said in the message of a failure.
    """
    kernels = unit_kernels(channels, kernel)
    per_input = kernels.shape[0] * max(kernels.shape[0], math.prod(n + m for n, m in zip(kernel, image, strict=True)))
    count = 0
    for inputs in quadratic_basis(channels, image, max(1, BATCH // per_input)):
        one, other = left(kernels, kernels, inputs), right(kernels, kernels, inputs)
        assert one.dtype == other.dtype == np.int64, f"not exact: {one.dtype}, {other.dtype}"
        if not np.array_equal(one, other):
            batch, a, b = np.argwhere(one != other)[0]
            raise AssertionError(
                f"C = {channels}, N = {tuple(kernel)}, M = {tuple(image)}{where}: K1 = {kernels[a].tolist()}, "
                f"K2 = {kernels[b].tolist()}, X = {inputs[batch].tolist()} give {one[batch, a, b]} and "
                f"{other[batch, a, b]}"
            )
        count += one.size
    return count


def vector_sizes(largest_kernel: int, largest_image: int) -> Iterator[tuple[int, int]]:
    """Yield every (N, M) up to the bounds, small ones first."""
    pairs = itertools.product(range(1, largest_kernel + 1), range(1, largest_image + 1))
    yield from sorted(pairs, key=sum)
