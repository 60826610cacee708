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
        elif boundary == "symmetric":
            position = -1 - position if position < 0 else 2 * size - 1 - position
        elif size == 1:
            position = 0
        else:
            position = -position if position < 0 else 2 * (size - 1) - position
    return position


def products(geometry: ConvGeometry, order: str = "C") -> list[tuple[int, int, tuple[int, ...]]]:
    """Every product of a convolution, by loops over output, channel and tap (Guo and Ye, Eqs. 1.2 and 2.4).

    Each is (row, column, kernel entry): that entry times the image at that column adds to the features at that row.
    """
    found = []
    out_shape, in_shape = geometry.range_shape, geometry.domain_shape
    out_per_group = geometry.out_channels // geometry.groups
    inner = geometry.kernel_shape[1]

    def place(position: tuple[int, ...], size: tuple[int, ...]) -> int:
        if order == "F":
            position, size = position[::-1], size[::-1]
        return int(np.ravel_multi_index(position, size))

    out_size, in_size = int(np.prod(out_shape[1:])), int(np.prod(in_shape[1:]))
    for output, tap in itertools.product(
        itertools.product(*map(range, out_shape[1:])), itertools.product(*map(range, geometry.kernel_size))
    ):
        position = [
            read(o * s + a * step - low, n, geometry.boundary)
            for o, s, a, step, (low, _), n in zip(
                output, geometry.stride, tap, geometry.dilation, geometry.padding, geometry.image_shape, strict=True
            )
        ]
        if None in position:
            continue
        rows, columns = place(output, out_shape[1:]), place(tuple(position), in_shape[1:])
        for c, d in itertools.product(range(out_shape[0]), range(inner)):
            channel = c // out_per_group * inner + d
            found.append((c * out_size + rows, channel * in_size + columns, (c, d, *tap)))
    return found


def dense_matrix(kernel: Any, geometry: ConvGeometry, order: str = "C") -> Any:
    """The matrix of a convolution, filled product by product."""
    matrix = np.zeros((int(np.prod(geometry.range_shape)), int(np.prod(geometry.domain_shape))), kernel.dtype)
    for row, column, entry in products(geometry, order):
        matrix[row, column] += kernel[entry]
    return matrix


class NaiveMaps:
    """The three maps of a geometry on one image or a batch, summed product by product in the dtype of the arguments."""

    def __init__(self, geometry: ConvGeometry) -> None:
        self.geometry = geometry
        found = products(geometry)  # none where the taps meet nothing but zeros
        self._rows, self._columns = (np.array([product[i] for product in found], np.intp) for i in (0, 1))
        entries = np.array([entry for _, _, entry in found], np.intp).reshape(len(found), len(geometry.kernel_shape))
        self._entries = np.ravel_multi_index(tuple(entries.T), geometry.kernel_shape)

    def apply(self, image: Any, kernel: Any) -> Any:
        """The features (batch, c_out, *output)."""
        x, k = image.reshape(len(image), -1), kernel.reshape(-1)
        features = np.zeros((len(x), int(np.prod(self.geometry.range_shape))), np.result_type(x, k))
        np.add.at(features, (slice(None), self._rows), k[self._entries] * x[:, self._columns])
        return features.reshape(-1, *self.geometry.range_shape)

    def image_adjoint(self, features: Any, kernel: Any) -> Any:
        """The image (batch, c_in, *image)."""
        y, k = features.reshape(len(features), -1), kernel.reshape(-1)
        image = np.zeros((len(y), int(np.prod(self.geometry.domain_shape))), np.result_type(y, k))
        np.add.at(image, (slice(None), self._columns), k[self._entries] * y[:, self._rows])
        return image.reshape(-1, *self.geometry.domain_shape)

    def kernel_adjoint(self, features: Any, image: Any) -> Any:
        """The kernel, summed over the batch."""
        y, x = features.reshape(len(features), -1), image.reshape(len(image), -1)
        kernel = np.zeros(int(np.prod(self.geometry.kernel_shape)), np.result_type(y, x))
        np.add.at(kernel, self._entries, (y[:, self._rows] * x[:, self._columns]).sum(axis=0))
        return kernel.reshape(self.geometry.kernel_shape)
