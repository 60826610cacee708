"""A layer as its kernel and how it is used: the linear map that it stands for, on images of a size."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from convla.geometry import ConvGeometry
from convla.linear_map import LinearMap
from convla.networks.gains import outward
from convla.operators import ConvOperator
from convla.typing import Boundary, Padding

__all__ = ["Layer", "LayerKind", "convolution_layer", "dense_layer", "normalization_layer"]

DEAD = 2.0**-20
"""A filter is called dead if its norm is at most this share of the largest in its layer: eight units of rounding of
single precision, so that it is lost in the rounding of what the other filters give."""


LayerKind = Literal["convolution", "linear", "normalization"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A kernel and the map that it stands for.

    Attributes
    ----------
    kernel : numpy.ndarray of shape (c_out, c_in // groups, *kernel)
        Of the convolution; for a transposed layer, of the one that it is the transpose of. A linear layer has the
        kernel (c_out, c_in, 1) on one position, a normalisation with fixed statistics (c, 1, 1) with c groups.
    geometry : ConvGeometry
        Likewise.
    transposed : bool
    kind : {"convolution", "linear", "normalization"}
    rounding : float
        A bound of the norm of what the map lacks of the one that is meant, where the kernel was computed.
    assumed : tuple of str
        What of the geometry is no knowledge: "image", "stride", "padding" and so on.
    """

    kernel: np.ndarray[Any, Any]
    geometry: ConvGeometry
    transposed: bool = False
    kind: LayerKind = "convolution"
    rounding: float = 0.0
    assumed: tuple[str, ...] = ()

    @property
    def image(self) -> tuple[int, ...]:
        """The sizes of what the layer is given, without channels."""
        return self.geometry.output_shape if self.transposed else self.geometry.image_shape

    @property
    def output(self) -> tuple[int, ...]:
        """The sizes of what it gives."""
        return self.geometry.image_shape if self.transposed else self.geometry.output_shape

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the layer's matrix on its image: (entries of a value, entries of an argument)."""
        rows, columns = self.geometry.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of input and of output channels."""
        channels = self.geometry.in_channels, self.geometry.out_channels
        return channels[::-1] if self.transposed else channels

    @functools.cached_property
    def filters(self) -> np.ndarray[Any, Any]:
        """The filters of the layer's outputs, (groups, outputs of a group, inputs of a group, *kernel)."""
        shape = self.kernel.shape
        groups = self.geometry.groups
        grouped = self.kernel.reshape(groups, shape[0] // groups, *shape[1:])
        return grouped.swapaxes(1, 2) if self.transposed else grouped

    @functools.cached_property
    def all_filters(self) -> np.ndarray[Any, Any]:
        """The same without the groups."""
        return self.filters.reshape(-1, *self.filters.shape[2:])

    @functools.cached_property
    def live(self) -> np.ndarray[Any, Any]:
        """Which filters are not dead, (groups, outputs of a group): see `DEAD`."""
        largest = np.abs(self.filters).max()
        if largest == 0:
            return np.zeros(self.filters.shape[:2], dtype=bool)
        # Divided by the largest entry first: squares may leave the range of the dtype.
        scaled = (self.filters / largest).reshape(*self.filters.shape[:2], -1).astype(np.float64)
        norms = np.sqrt((scaled * scaled).sum(axis=2))
        return np.asarray(norms > DEAD * norms.max())

    @functools.cached_property
    def operator(self) -> ConvOperator:
        """A convolution with the singular values of the layer, each at least once.

        That of the layer itself; of a pointwise one on one pixel, as its matrix acts on all pixels alike.
        """
        geometry = self.geometry.replace(image_shape=(1,) * self.geometry.ndim) if self.pointwise else self.geometry
        return ConvOperator(self.kernel, geometry)

    @property
    def map(self) -> LinearMap:
        """The map itself, on the whole image, by direct sums."""
        whole = ConvOperator(self.kernel, self.geometry).with_engine("direct")
        return whole.T if self.transposed else whole

    @property
    def pointwise(self) -> bool:
        """Whether one matrix acts on all pixels alike."""
        geometry = self.geometry
        return all(size == 1 for size in (*geometry.kernel_size, *geometry.stride)) and not any(
            map(any, geometry.padding)
        )

    @functools.cached_property
    def moduli_bound(self) -> float:
        """A bound of the norm of the map of the kernel's moduli, by Schur's test, whatever the image and the stride.

        Where the boundary repeats the image, a column holds an entry of the kernel as often as the image's is repeated.
        """
        moduli, groups = np.abs(self.kernel.astype(np.float64)), self.geometry.groups
        rows = float(moduli.sum(axis=tuple(range(1, moduli.ndim))).max())
        grouped = moduli.reshape(groups, -1, *moduli.shape[1:])
        columns = float(grouped.sum(axis=(1, *range(3, grouped.ndim))).max())
        sources = [self.geometry.sources(axis) for axis in range(self.geometry.ndim)]
        repeats = math.prod(int(np.bincount(source[source >= 0], minlength=1).max()) for source in sources)
        return outward(math.sqrt(rows) * math.sqrt(columns) * math.sqrt(repeats), moduli.size + 4)

    @functools.cached_property
    def filter_norm(self) -> float:
        """A lower bound of the map's norm: the norm of the largest filter, or 0 if no output sees the image under all.

        The filter is then a row of the matrix, whatever the boundary.
        """
        geometry = self.geometry
        for n, k, d, s, (low, _), outputs in zip(
            geometry.image_shape,
            geometry.kernel_size,
            geometry.dilation,
            geometry.stride,
            geometry.padding,
            geometry.output_shape,
            strict=True,
        ):
            first = max(0, -(-low // s))  # the first output that reads nothing before the image
            if first >= outputs or first * s - low + (k - 1) * d >= n:
                return 0.0
        rows = self.kernel.astype(np.float64).reshape(len(self.kernel), -1)
        largest = float(np.abs(rows).max())
        if largest == 0.0:
            return 0.0
        squares = float(((rows / largest) ** 2).sum(axis=1).max())
        return largest * math.sqrt(squares) * (1.0 - (rows.shape[1] + 8) * 2.0**-52)

    @property
    def in_double(self) -> Layer:
        """The same layer with its kernel in float64, which holds it exactly."""
        return replace(self, kernel=self.kernel.astype(np.float64))

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """What two layers have in common that have the same singular values and measures."""
        digest = hashlib.sha256(np.ascontiguousarray(self.kernel).data).hexdigest()
        return digest, str(self.kernel.dtype), self.geometry, self.transposed, self.rounding

    def with_normalization(self, normalization: Layer, *, before: bool = False) -> Layer | None:
        """Return the layer and a normalisation behind it, or before it, as one; None where the channels do not fit.

        The kernel is computed in float64, and rounded to the dtype that it had, unless an entry leaves the range of
        that; `rounding` bounds what this changes.
        """
        scale = normalization.kernel.reshape(-1).astype(np.float64)
        if normalization.kind != "normalization" or scale.size != self.channels[0 if before else 1]:
            return None
        groups = self.geometry.groups
        kernel = self.kernel.astype(np.float64).reshape(groups, -1, *self.kernel.shape[1:])
        # The first axis of a kernel holds all channels of one side, the second one those of a group of the other side.
        if before == self.transposed:
            factor = scale.reshape(groups, -1, 1, *(1,) * self.geometry.ndim)
        else:
            factor = scale.reshape(groups, 1, -1, *(1,) * self.geometry.ndim)
        kernel = (kernel * factor).reshape(self.kernel.shape)
        if np.abs(kernel).max() <= np.finfo(self.kernel.dtype).max:
            kernel = kernel.astype(self.kernel.dtype)
        # Each entry is rounded twice, and the scale's own entries a few times (see `normalization_layer`).
        relative = 2.0**-51 + float(np.finfo(kernel.dtype).eps)
        tiny = float(np.finfo(kernel.dtype).smallest_subnormal) * kernel.size
        rounding = (self.rounding + relative * self.moduli_bound) * float(np.abs(scale).max()) + tiny
        return replace(self, kernel=kernel, rounding=outward(rounding, 8))


def dense_layer(matrix: np.ndarray[Any, Any]) -> Layer:
    """Return the layer of a matrix (outputs, inputs).

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.layers import dense_layer
    >>> dense_layer(np.ones((3, 2))).operator.shape
    (3, 2)
    """
    kernel = np.asarray(matrix)[:, :, None]
    return Layer(kernel, ConvGeometry(kernel.shape, (1,), padding="valid"), kind="linear")


def normalization_layer(variance: np.ndarray[Any, Any], weight: np.ndarray[Any, Any] | None, epsilon: float) -> Layer:
    """Return the linear part of a normalisation with fixed statistics: each channel times a factor.

    The factors ``weight / sqrt(variance + epsilon)`` are computed in float64, each rounded no more than four times.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.layers import normalization_layer
    >>> normalization_layer(np.array([3.0, 15.0]), np.array([2.0, 2.0]), 1.0).kernel.reshape(-1)
    array([1. , 0.5])
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a variance that is none makes a factor that is none
        scale = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)
    if weight is not None:
        scale = weight.astype(np.float64) * scale
    kernel = scale.reshape(-1, 1, 1)
    geometry = ConvGeometry(kernel.shape, (1,), padding="valid", groups=scale.size)
    rounding = 2.0**-51 * float(np.abs(scale).max(initial=0.0))
    return Layer(kernel, geometry, kind="normalization", rounding=rounding)


def convolution_layer(
    kernel: np.ndarray[Any, Any],
    image: Sequence[int],
    *,
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    transposed: bool = False,
) -> Layer:
    """Return a convolution on images of a size, or the transpose of one that gives features of another size.

    Parameters
    ----------
    kernel : numpy.ndarray of shape (c_out, c_in // groups, *kernel)
        For a transposed layer (c_in, c_out // groups, *kernel).
    image : sequence of int
        What the convolution is given; for a transposed layer, what that gives.
    padding, stride, dilation, groups, boundary
        As in `ConvGeometry`.
    transposed : bool

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.layers import convolution_layer
    >>> up = convolution_layer(np.ones((6, 4, 2, 2)), (16, 16), padding=0, stride=2, transposed=True)
    >>> up.image, up.output
    ((8, 8), (16, 16))
    """
    geometry = ConvGeometry(
        kernel.shape, image, padding=padding, stride=stride, dilation=dilation, groups=groups, boundary=boundary
    )
    return Layer(kernel, geometry, transposed)
