"""The definition of a convolution, entry by entry: the oracle, slow and independent of the package's index tables."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from convla import ConvGeometry


def read(position: int, size: int, boundary: str) -> int | None:
    """Where the extension of an axis by its boundary is read, walking back step by step; None for a zero."""
    while not 0 <= position < size:
        if boundary == "zero":
            return None
        if boundary == "circular":
            position += size if position < 0 else -size
        elif boundary == "replicate":
            position += 1 if position < 0 else -1
        elif size == 1:
            position = 0
        else:
            position = -position if position < 0 else 2 * (size - 1) - position
    return position


def dense_matrix(kernel: Any, geometry: ConvGeometry, order: str = "C") -> Any:
    """The matrix of a convolution, by loops over every output, channel and tap (Guo and Ye, Eqs. 1.2 and 2.4)."""
    out_shape, in_shape = geometry.range_shape, geometry.domain_shape
    matrix = np.zeros((int(np.prod(out_shape)), int(np.prod(in_shape))), kernel.dtype)
    out_per_group = geometry.out_channels // geometry.groups
    inner = geometry.kernel_shape[1]

    def place(channel: int, position: tuple[int, ...], size: tuple[int, ...]) -> int:
        if order == "F":
            position, size = position[::-1], size[::-1]
        return channel * int(np.prod(size)) + int(np.ravel_multi_index(position, size))

    for c, *output in itertools.product(*map(range, out_shape)):
        for d, *tap in itertools.product(range(inner), *map(range, geometry.kernel_size)):
            position = [
                read(o * s + a * step - low, n, geometry.boundary)
                for o, s, a, step, (low, _), n in zip(
                    output, geometry.stride, tap, geometry.dilation, geometry.padding, geometry.image_shape, strict=True
                )
            ]
            if None not in position:
                row = place(c, tuple(output), out_shape[1:])
                column = place(c // out_per_group * inner + d, tuple(position), in_shape[1:])
                matrix[row, column] += kernel[(c, d, *tap)]
    return matrix
