"""The direct sum that a convolution falls into, found from its geometry: smaller convolutions that share no entry.

Strides and dilations that have a common structure, taps that are zero, kernels of one tap and patches that do not
overlap split the image into classes of positions that no output reads together. The matrix is then, up to the order
of its rows and columns, block diagonal, most of its blocks are copies of each other, and each is the matrix of a
smaller convolution: its singular values are found once, and no search can miss one because its vector touches other
blocks. Groups split a block further; they stay in the part, as a batch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any, Generic, TypeVar

import numpy as np

from convla._array import namespace, to_numbers
from convla.algebra import BlockDiagonal
from convla.geometry import ConvGeometry
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.typing import Array

__all__ = ["Part", "blocks_of", "direct_sum", "live_taps"]

P = TypeVar("P", bound=LinearMap, covariant=True)

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
_Places = tuple[tuple[tuple[slice, slice], ...], ...]
"""Along each axis, the positions of every copy of a part in the image and in the output."""


@dataclass(frozen=True)
class Part(Generic[P]):
    """One of the blocks that a map's matrix falls into, and where its copies are.

    Attributes
    ----------
    operator : LinearMap
        The block; of a convolution, a convolution with the groups of the whole.
    places : tuple of tuple of (slice, slice)
        Along each axis, the positions of every copy in the image and in the output; none where it has all positions.
    inputs, outputs : slice
        Its channels in the image and in the output.
    """

    operator: P
    places: _Places = ()
    inputs: slice = field(default_factory=lambda: slice(None))
    outputs: slice = field(default_factory=lambda: slice(None))

    @property
    def copies(self) -> int:
        """How many blocks are equal to this one, itself included."""
        return math.prod(len(axis) for axis in self.places)

    def image(self, copy: int = 0) -> tuple[slice, ...]:
        """Return the positions of a copy in the image."""
        return tuple(image for image, _ in self._copy(copy))

    def output(self, copy: int = 0) -> tuple[slice, ...]:
        """Return the positions of a copy in the output."""
        return tuple(output for _, output in self._copy(copy))

    def _copy(self, copy: int) -> list[tuple[slice, slice]]:
        indices = np.unravel_index(copy, [len(axis) for axis in self.places])
        return [axis[int(index)] for axis, index in zip(self.places, indices, strict=True)]


@dataclass(frozen=True)
class _AxisPart:
    """A class of positions along one axis that some outputs read and no others: a convolution of its own."""

    size: int
    padding: tuple[int, int]
    stride: int
    dilation: int


_Kinds = dict[_AxisPart, list[tuple[slice, slice]]]


def blocks_of(whole: BlockDiagonal) -> list[Part[LinearMap]]:
    """Return the parts of a block diagonal map, each on channels of its own.

    Examples
    --------
    >>> from convla import block_diagonal, identity
    >>> from convla.spectra.parts import blocks_of
    >>> [part.inputs for part in blocks_of(block_diagonal([identity((1, 2)), identity((3, 2))]))]
    [slice(0, 1, None), slice(1, 4, None)]
    """
    places = []
    for shapes in ([part.domain_shape for part in whole.parts], [part.range_shape for part in whole.parts]):
        ends = list(itertools.accumulate(shape[0] for shape in shapes))
        places.append([slice(end - shape[0], end) for shape, end in zip(shapes, ends, strict=True)])
    return [
        Part(part, inputs=inputs, outputs=outputs) for part, inputs, outputs in zip(whole.parts, *places, strict=True)
    ]


def direct_sum(operator: ConvOperator) -> list[Part[ConvOperator]]:
    """Return the distinct blocks of a convolution's matrix; none if the kernel is zero.

    Parameters
    ----------
    operator : ConvOperator

    Returns
    -------
    list of Part
        The operator itself, as the only part, where nothing splits it. Rows and columns of zeros are in no part.

    Notes
    -----
    Along an axis with zeros around the image, output q reads the positions ``q s + t d - l``. With ``g = gcd(s, d)``
    the outputs fall into ``d / g`` classes modulo ``d / g``, each of which reads one class of positions modulo d, no
    two of them the same, since ``s / g`` and ``d / g`` have no common divisor; within a class the stride is ``s / g``
    and the dilation 1. Where the stride then reaches past the taps, every output is a class of its own. Taps that are
    zero count as absent: the ends of the kernel are cut, and a common divisor of the distances between the others
    becomes a dilation. Other boundaries couple the classes, and split where no output reads beyond the edges.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.parts import direct_sum
    >>> difference = ConvOperator(np.array([[[1.0, 0.0, -1.0]]]), (6,))
    >>> [(part.operator.kernel.tolist(), part.operator.shape, part.copies) for part in direct_sum(difference)]
    [([[[1.0, -1.0]]], (3, 3), 1), ([[[1.0, -1.0]]], (3, 3), 1)]
    """
    geometry, kernel = operator.geometry, operator.kernel
    live = live_taps(kernel)
    if not live.any():
        return []
    taps, blocks = _splitting(geometry, live.tobytes())
    if not blocks:
        return [Part(operator, (((slice(None), slice(None)),),) * geometry.ndim)]
    smaller = kernel[(..., *taps)]
    return [
        Part(ConvOperator(smaller, block, order=operator.order, engine=operator.engine), places)
        for block, places in blocks
    ]


def live_taps(kernel: Array) -> BoolArray:
    """Return which taps of a kernel some filter does not have as zero: an array of NumPy, of the shape of the taps."""
    # One filter most often tells of all taps, and to look at all takes as long as many a convolution.
    first = _live(kernel[:1, :1, ...])
    return first if first.all() else _live(kernel)


def _live(kernel: Array) -> BoolArray:
    xp = namespace(kernel)
    live = to_numbers(xp.astype(xp.any(kernel != 0, axis=(0, 1)), xp.int8))
    return np.array(live, np.bool_).reshape(tuple(kernel.shape[2:]))


@lru_cache(maxsize=256)
def _splitting(geometry: ConvGeometry, live: bytes) -> tuple[tuple[slice, ...], list[tuple[ConvGeometry, _Places]]]:
    """Return the taps to keep, and the settings of the parts with the places of their copies; none for one that is all.

    Parameters
    ----------
    geometry : ConvGeometry
    live : bytes
        Of the array of `live_taps`.
    """
    taps_live = np.frombuffer(live, np.bool_).reshape(geometry.kernel_size)
    taps, axes = [], []
    for axis in range(geometry.ndim):
        others = tuple(other for other in range(geometry.ndim) if other != axis)
        chosen, kinds = _axis_parts(geometry, axis, np.flatnonzero(taps_live.any(axis=others)))
        taps.append(chosen)
        axes.append(kinds)
    size = tuple(len(range(*chosen.indices(k))) for chosen, k in zip(taps, geometry.kernel_size, strict=True))
    found = []
    for combination in itertools.product(*(kinds.items() for kinds in axes)):
        block = [kind for kind, _ in combination]
        if size == geometry.kernel_size and tuple(kind.size for kind in block) == geometry.image_shape:
            return tuple(taps), []
        part = ConvGeometry(
            (*geometry.kernel_shape[:2], *size),
            tuple(axis.size for axis in block),
            padding=tuple(axis.padding for axis in block),
            stride=tuple(axis.stride for axis in block),
            dilation=tuple(axis.dilation for axis in block),
            groups=geometry.groups,
            boundary=geometry.boundary,
        )
        found.append((part, tuple(tuple(copies) for _, copies in combination)))
    return tuple(taps), found


def _axis_parts(geometry: ConvGeometry, axis: int, live: np.ndarray) -> tuple[slice, _Kinds]:
    """Return the taps to keep along one axis, and the classes of its positions, equal ones together."""
    n, outputs, k = geometry.image_shape[axis], geometry.output_shape[axis], geometry.kernel_size[axis]
    s, d, low = geometry.stride[axis], geometry.dilation[axis], geometry.padding[axis][0]
    first, last = int(live[0]), int(live[-1])
    spacing = reduce(math.gcd, (int(place) - first for place in live), 0) or 1
    reads_beyond = first * d - low < 0 or (outputs - 1) * s + last * d - low >= n
    if reads_beyond and geometry.boundary != "zero":
        whole = _AxisPart(n, geometry.padding[axis], s, d)
        return slice(0, k), {whole: [(slice(0, n), slice(0, outputs))]}
    low, d, k = low - d * first, d * spacing, (last - first) // spacing + 1
    if k == 1:
        d = 1
    common = math.gcd(s, d)
    stride, classes = s // common, d // common
    kinds: _Kinds = {}
    for j in range(min(classes, outputs)):
        offset = s * j - low  # of the first position that the class reads, as if there were no edges
        remainder = offset % d
        ours = _Line(len(range(remainder, n, d)), len(range(j, outputs, classes)), offset // d, stride, k)
        for size, padding, start, output, count in ours.patches() if stride >= k else ours.whole():
            if size <= 0:
                continue
            place = remainder + d * start
            # The last of the positions and outputs, plus one: a slice ends there whatever its step.
            image = slice(place, place + d * (size - 1) + 1, d)
            rows = slice(j + classes * output, j + classes * (output + count - 1) + 1, classes)
            kinds.setdefault(_AxisPart(size, padding, stride if count > 1 else 1, 1), []).append((image, rows))
    return slice(first, last + 1, spacing), kinds


@dataclass(frozen=True)
class _Line:
    """Positions 0 to n - 1 on a line, of which output q reads ``start + q stride`` and the next k - 1."""

    n: int
    outputs: int
    start: int
    stride: int
    k: int

    def whole(self) -> list[tuple[int, tuple[int, int], int, int, int]]:
        """Return what the outputs read together: size, padding, first position, first output and their number.

        The size is not positive where they read nothing.
        """
        first = max(0, -((self.start + self.k - 1) // self.stride))
        last = min(self.outputs - 1, (self.n - 1 - self.start) // self.stride)
        return [self._piece(first, last)] if first <= last else []

    def patches(self) -> list[tuple[int, tuple[int, int], int, int, int]]:
        """Return what each output reads, where no two read the same position."""
        return [self._piece(q, q) for q in range(self.outputs)]

    def _piece(self, first: int, last: int) -> tuple[int, tuple[int, int], int, int, int]:
        begin, end = self.start + first * self.stride, self.start + last * self.stride + self.k
        inside, beyond = max(begin, 0), min(end, self.n)
        return beyond - inside, (inside - begin, end - beyond), inside, first, last - first + 1
