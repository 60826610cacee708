"""Where every entry of a convolution comes from: the one place that knows index arithmetic.

Along each axis a convolution reads the extended image ``x[source[p]]``, p = 0 .. padded - 1, at the positions
``p = output * stride + tap * dilation``. Everything else (output sizes, the rows and columns of the matrix, the sets
Omega of the gradient formulas) follows from that one line and from the table ``source``, which the boundary
defines (`convla._edges`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np

from convla import _edges as edges
from convla._validate import check_choice, check_integer, check_per_axis, check_sizes
from convla.errors import ShapeError
from convla.typing import Boundary, IndexArray, Padding

__all__ = ["BOUNDARIES", "ORDERS", "PADDINGS", "ConvGeometry"]

PADDINGS = tuple(edges.PADDINGS)
BOUNDARIES = tuple(edges.BOUNDARIES)
ORDERS = ("C", "F")


@dataclass(frozen=True, init=False)
class ConvGeometry:
    """The shape of a convolution: everything about it but the numbers.

    Parameters
    ----------
    kernel_shape : sequence of int
        ``(c_out, c_in // groups, *kernel)`` with one, two or three kernel axes.
    image_shape : sequence of int
        The sizes of the image without its channels, one for each kernel axis.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)
        How far the image is extended before and after each axis. With ``k`` the extent of the dilated kernel, "full"
        means ``k - 1`` on both sides, "same" ``(k - 1) // 2`` before and ``k // 2`` after, "valid" none. An integer
        stands for both sides of every axis; pairs (low, high) give each axis its own, and crop where they are negative.
    stride, dilation : int or sequence of int
        Steps between the positions of the kernel, and between its taps; one for all axes or one for each.
    groups : int
        The channels fall into this many groups; each output channel reads the input channels of its group only.
    boundary : {"zero", "circular", "reflect", "replicate", "symmetric"}
        What stands outside the image: zeros, its periodic extension, its mirror image about the edge sample (which is
        not repeated), its edge sample, or its mirror image about the edge itself (which repeats the edge sample).

    Attributes
    ----------
    kernel_shape, image_shape, stride, dilation : tuple of int
    padding : tuple of (int, int)
        The resolved (low, high) of each axis.
    groups : int
    boundary : str

    Raises
    ------
    TypeError
        If a size, stride, dilation or padding is not an integer.
    ValueError
        If one is out of range, or a name is unknown.
    ShapeError
        If the numbers of axes differ, the channels do not divide into the groups, or the dilated kernel is larger than
        the padded image.

    Notes
    -----
    "same" with unit stride and dilation is the layer of Guo and Ye, whose ``m = ceil(k / 2)`` is this ``(k - 1) // 2``
    counted from one. For an even kernel it reads one entry more after than before; numpy.correlate, scipy.signal and
    scipy.ndimage read one more before, so that their features stand one place later.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Eqs. (1.1), (1.2).

    Examples
    --------
    >>> from convla import ConvGeometry
    >>> geometry = ConvGeometry((8, 3, 3, 3), (32, 32), padding="same", stride=2)
    >>> geometry.range_shape, geometry.shape
    ((8, 16, 16), (2048, 3072))
    """

    kernel_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    boundary: Boundary

    def __init__(
        self,
        kernel_shape: Sequence[int],
        image_shape: Sequence[int],
        *,
        padding: Padding,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        boundary: Boundary = "zero",
    ) -> None:
        kernel = check_sizes("kernel_shape", kernel_shape)
        if len(kernel) not in (3, 4, 5):
            raise ShapeError(
                f"kernel_shape must be (c_out, c_in // groups, *kernel) with 1 to 3 kernel axes, got {kernel}"
            )
        ndim = len(kernel) - 2
        image = check_sizes("image_shape", image_shape)
        if len(image) != ndim:
            raise ShapeError(f"image_shape must have {ndim} axes, as the kernel {kernel} has, got {image}")
        groups = check_integer("groups", groups, minimum=1)
        if kernel[0] % groups:
            raise ShapeError(f"groups must divide the number of output channels {kernel[0]}, got {groups}")
        strides = check_per_axis("stride", stride, ndim)
        dilations = check_per_axis("dilation", dilation, ndim)
        extents = tuple((k - 1) * d + 1 for k, d in zip(kernel[2:], dilations, strict=True))
        pads = edges.resolve_padding(padding, extents)
        check_choice("boundary", boundary, BOUNDARIES)
        for extent, size, (low, high) in zip(extents, image, pads, strict=True):
            if extent > size + low + high:
                raise ShapeError(
                    f"the kernel must fit in the padded image: kernel {kernel[2:]} with dilation {dilations} spans "
                    f"{extents}, image {image} with padding {pads}"
                )
        values = {
            "kernel_shape": kernel,
            "image_shape": image,
            "padding": pads,
            "stride": strides,
            "dilation": dilations,
            "groups": groups,
            "boundary": boundary,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> ConvGeometry:
        """Return the geometry with some of its parameters changed, the others as they are.

        Parameters
        ----------
        **changes
            Of the constructor's parameters. Padding that is not among them stays as many positions as it is, whatever
            the kernel.

        Raises
        ------
        TypeError, ValueError, ShapeError
            As the constructor.

        Examples
        --------
        >>> from convla import ConvGeometry
        >>> geometry = ConvGeometry((8, 3, 3, 3), (32, 32), padding="same")
        >>> geometry.replace(image_shape=(16, 8), stride=2).range_shape
        (8, 8, 4)
        """
        parameters = self.__getstate__()
        unknown = sorted(changes.keys() - parameters.keys())
        if unknown:
            raise TypeError(f"a geometry has the parameters {', '.join(parameters)}, got {', '.join(unknown)}")
        return ConvGeometry(**(parameters | changes))

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.kernel_shape, self.image_shape, self.padding, self.stride, self.dilation, self.boundary))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached: the hash of a string, and so of a geometry, differs between processes.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    # Sizes. Each is cached: operators ask for them at every application.

    @functools.cached_property
    def ndim(self) -> int:
        """The number of image axes: 1, 2 or 3."""
        return len(self.image_shape)

    @functools.cached_property
    def in_channels(self) -> int:
        """The number of channels of the image."""
        return self.kernel_shape[1] * self.groups

    @functools.cached_property
    def out_channels(self) -> int:
        """The number of channels of the features."""
        return self.kernel_shape[0]

    @functools.cached_property
    def kernel_size(self) -> tuple[int, ...]:
        """The sizes of the kernel without its channels."""
        return self.kernel_shape[2:]

    @property
    def longest_axis(self) -> int:
        """The axis along which the image is longest, the first of them."""
        return self.image_shape.index(max(self.image_shape))

    @functools.cached_property
    def padded_shape(self) -> tuple[int, ...]:
        """The sizes of the extended image without its channels."""
        return tuple(n + low + high for n, (low, high) in zip(self.image_shape, self.padding, strict=True))

    @functools.cached_property
    def output_shape(self) -> tuple[int, ...]:
        """The sizes of the features without their channels."""
        return tuple(
            (p - (k - 1) * d - 1) // s + 1
            for p, k, d, s in zip(self.padded_shape, self.kernel_size, self.dilation, self.stride, strict=True)
        )

    @functools.cached_property
    def domain_shape(self) -> tuple[int, ...]:
        """The shape of one image: ``(c_in, *image)``."""
        return (self.in_channels, *self.image_shape)

    @functools.cached_property
    def range_shape(self) -> tuple[int, ...]:
        """The shape of one image's features: ``(c_out, *output)``."""
        return (self.out_channels, *self.output_shape)

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix M: (number of feature entries, number of image entries)."""
        return math.prod(self.range_shape), math.prod(self.domain_shape)

    @functools.cached_property
    def largest_row_count(self) -> int:
        """The largest number of products in one entry of the features: the terms of its rounding error bound."""
        return math.prod(self.kernel_shape[1:])

    @functools.cached_property
    def largest_column_count(self) -> int:
        """The largest number of products in one entry of the image adjoint."""
        readers = 1
        for axis in range(self.ndim):
            sources = self.sources(axis)
            counts = np.bincount(sources + 1, self._visits(axis), minlength=2)[1:]  # without the zeros
            readers *= int(counts.max())
        return self.out_channels // self.groups * readers

    def _visits(self, axis: int) -> IndexArray:
        """Return how many pairs of an output and a tap read each position of the extended axis.

        These are the taps t with ``t * dilation = p (mod stride)`` whose output exists: an arithmetic progression
        within an interval, so that no table of outputs by taps is needed.
        """
        stride, dilation = self.stride[axis], self.dilation[axis]
        p = np.arange(self.padded_shape[axis])
        common = math.gcd(stride, dilation)
        step = stride // common
        residue = p // common * pow(dilation // common, -1, step) % step
        first = np.maximum(-(((self.output_shape[axis] - 1) * stride - p) // dilation), 0)
        last = np.minimum(p // dilation, self.kernel_size[axis] - 1)
        count = (last - residue) // step - (first - 1 - residue) // step
        return cast(IndexArray, np.where(p % common == 0, np.maximum(count, 0), 0))

    @functools.cached_property
    def largest_entry_count(self) -> int:
        """The largest number of taps that meet in one entry of M: above 1 only where the boundary repeats the image."""
        meeting = 1
        if self.boundary == "zero":
            return meeting
        for axis in range(self.ndim):
            sources = np.sort(self.axis_map(axis), axis=1)
            # In a sorted row, `count` taps read one source where two places `count - 1` apart hold the same.
            count = 1
            while count < sources.shape[1] and np.any(
                (sources[:, count:] == sources[:, :-count]) & (sources[:, count:] >= 0)
            ):
                count += 1
            meeting *= count
        return meeting

    # Index maps.

    def sources(self, axis: int) -> IndexArray:
        """Return the image index behind every position of the extended axis; -1 where a zero stands.

        Parameters
        ----------
        axis : int
            An image axis, counted from 0.

        Returns
        -------
        numpy.ndarray of shape (padded_shape[axis],)

        Examples
        --------
        >>> from convla import ConvGeometry
        >>> ConvGeometry((1, 1, 3), (4,), padding=2, boundary="reflect").sources(0)
        array([2, 1, 0, 1, 2, 3, 2, 1])
        """
        size, (low, high) = self.image_shape[axis], self.padding[axis]
        return edges.BOUNDARIES[self.boundary](np.arange(-low, size + high), size)

    def axis_map(self, axis: int) -> IndexArray:
        """Return the image index that each output position reads through each tap, along one axis; -1 for a zero.

        Parameters
        ----------
        axis : int
            An image axis, counted from 0.

        Returns
        -------
        numpy.ndarray of shape (output_shape[axis], kernel_size[axis])

        Examples
        --------
        >>> from convla import ConvGeometry
        >>> ConvGeometry((1, 1, 3), (4,), padding="same").axis_map(0)
        array([[-1,  0,  1],
               [ 0,  1,  2],
               [ 1,  2,  3],
               [ 2,  3, -1]])
        """
        return self._read(axis, np.arange(self.kernel_size[axis]))

    def _read(self, axis: int, taps: IndexArray) -> IndexArray:
        output = np.arange(self.output_shape[axis])[:, None] * self.stride[axis]
        return cast(IndexArray, self.sources(axis)[output + taps * self.dilation[axis]])

    @functools.cached_property
    def live_taps(self) -> tuple[tuple[bool, ...], ...]:
        """Along each axis, which taps meet the image at all; the others only ever read zeros.

        Examples
        --------
        >>> from convla import ConvGeometry
        >>> ConvGeometry((1, 1, 3), (1,), padding="same").live_taps
        ((False, True, False),)
        """
        maps = [self.axis_map(axis) for axis in range(self.ndim)]
        return tuple(tuple(bool(np.any(tap >= 0)) for tap in sources.T) for sources in maps)

    def position_map(self, order: str = "C") -> IndexArray:
        """Return the image position that each output position reads through each tap, both flattened; -1 for a zero.

        Parameters
        ----------
        order : {"C", "F"}
            Row-major or column-major vec() of the positions; the taps are row-major in both.

        Returns
        -------
        numpy.ndarray of shape (prod(output_shape), prod(kernel_size))
            Of int32 where that is wide enough.

        Examples
        --------
        >>> from convla import ConvGeometry
        >>> ConvGeometry((1, 1, 2, 1), (2, 2), padding="valid").position_map("F")
        array([[0, 1],
               [2, 3]], dtype=int32)
        """
        check_choice("order", order, ORDERS)
        return self._positions(order, [self.axis_map(axis) for axis in range(self.ndim)])

    def _positions(self, order: str, tables: list[IndexArray]) -> IndexArray:
        """Combine the image indices (outputs, taps) of every axis into flattened positions."""
        n = self.ndim
        taps = [table.shape[1] for table in tables]
        dtype = np.int32 if math.prod(self.image_shape) <= np.iinfo(np.int32).max else np.int64
        # Taps before positions, so that the long axes are innermost while this is computed.
        positions = np.zeros((1,) * (2 * n), dtype=dtype)
        inside = np.ones((1,) * (2 * n), dtype=bool)
        for axis in range(n):
            stride = math.prod(self.image_shape[axis + 1 :] if order == "C" else self.image_shape[:axis])
            here = [1] * (2 * n)
            place = axis if order == "C" else n - 1 - axis
            here[axis], here[n + place] = taps[axis], self.output_shape[axis]
            sources = tables[axis].T.reshape(here)
            positions = positions + (stride * sources).astype(dtype)
            inside = inside & (sources >= 0)
        positions[~inside] = -1
        return cast(IndexArray, positions.reshape(math.prod(taps), -1).T)

    def omega(self, entry: Sequence[int], order: str = "C") -> tuple[IndexArray, IndexArray]:
        """Return the rows and columns of M where one entry of the kernel stands.

        Parameters
        ----------
        entry : sequence of int
            The index ``(c_out, c_in, *tap)`` of the kernel entry; ``c_in`` counts within the group.
        order : {"C", "F"}
            Row-major or column-major vec().

        Returns
        -------
        rows, columns : numpy.ndarray of shape (count,)

        Notes
        -----
        This is the set Omega_{p,q,z,y} of the gradient formulas: tap (p, q), input channel z, output channel y. With
        another boundary than "zero", several entries of the kernel may share a place in M, where they add up.

        References
        ----------
        P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Theorem 2.3.

        Examples
        --------
        >>> from convla import ConvGeometry
        >>> ConvGeometry((1, 1, 3), (4,), padding="same").omega((0, 0, 2))
        (array([0, 1, 2]), array([1, 2, 3]))
        """
        if len(entry) != len(self.kernel_shape):
            raise ShapeError(f"entry must have {len(self.kernel_shape)} indices (c_out, c_in, *tap), got {entry!r}")
        out, inner, *tap = (
            check_integer(f"entry[{axis}]", index, minimum=0, maximum=size - 1)
            for axis, (index, size) in enumerate(zip(entry, self.kernel_shape, strict=True))
        )
        check_choice("order", order, ORDERS)
        tables = [self._read(axis, np.array([t])) for axis, t in enumerate(tap)]
        positions = self._positions(order, tables)[:, 0]
        rows = np.flatnonzero(positions >= 0)
        channel = out // (self.out_channels // self.groups) * self.kernel_shape[1] + inner
        columns = positions[rows].astype(np.intp)
        return out * positions.size + rows, channel * math.prod(self.image_shape) + columns

    def windows(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield every tap with the slices of the extended image that it multiplies.

        Yields
        ------
        tap : tuple of int
            The position in the kernel, without the channels; row-major order.
        window : tuple of slice
            One slice for each image axis; each window has the shape `output_shape`.

        Examples
        --------
        >>> from convla import ConvGeometry
        >>> for tap, window in ConvGeometry((1, 1, 2), (5,), padding="valid", stride=2).windows():
        ...     print(tap, window)
        (0,) (slice(0, 3, 2),)
        (1,) (slice(1, 4, 2),)
        """
        for tap in itertools.product(*map(range, self.kernel_size)):
            starts = [a * d for a, d in zip(tap, self.dilation, strict=True)]
            yield (
                tap,
                tuple(
                    slice(start, start + (n - 1) * s + 1, s)
                    for start, n, s in zip(starts, self.output_shape, self.stride, strict=True)
                ),
            )
