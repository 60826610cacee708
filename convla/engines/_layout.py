"""How the compiled convolutions see an extended image: three-dimensional, flattened, split into phases by a stride.

Flattened, the window of each tap is a contiguous piece at a fixed offset, its shift. With a stride s, every s-th entry
of the extended image makes one of s phases, and each tap reads one phase at unit stride.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from convla.geometry import ConvGeometry

__all__ = ["Layout", "lay_out", "tap_positions", "three", "three_pairs", "three_sources"]

IntArray = np.ndarray[Any, np.dtype[np.int64]]


class Layout(NamedTuple):
    """The flattened phases of an extended image.

    Attributes
    ----------
    padded : tuple of int
        The sizes of a phase.
    total : int
        From the first to the last output in a flattened phase, the unused entries between them included.
    shift, phase : numpy.ndarray of int64
        For each tap the offset of its window in its phase, and the number of the phase.
    tables : numpy.ndarray of int64
        For each phase (begin, end, source) of the longest run of the last axis whose sources grow in steps of the
        stride; then the image index behind each of its positions, axis after axis, -1 for a zero.
    """

    padded: tuple[int, ...]
    total: int
    shift: IntArray
    phase: IntArray
    tables: IntArray


def lay_out(
    sources: Sequence[np.ndarray[Any, Any]], stride: tuple[int, ...], output: tuple[int, ...], reach: IntArray
) -> Layout:
    """Lay out an extended image.

    Parameters
    ----------
    sources : three arrays of int
        The image index behind each position of each extended axis, -1 for a zero.
    stride, output : three int
    reach : numpy.ndarray of int64, shape (taps, 3)
        The extended position that each tap adds, per axis.
    """
    padded = tuple(-(-len(source) // s) for source, s in zip(sources, stride, strict=True))
    tables: list[Any] = []
    for phase in itertools.product(*map(range, stride)):
        parts = [
            np.pad(source, (0, q * s - len(source)), constant_values=-1)[first::s]
            for source, q, s, first in zip(sources, padded, stride, phase, strict=True)
        ]
        tables += [_longest_run(parts[2], stride[2]), *parts]
    return Layout(
        padded=padded,
        total=((output[0] - 1) * padded[1] + output[1] - 1) * padded[2] + output[2],
        shift=reach // stride @ (padded[1] * padded[2], padded[2], 1),
        phase=reach % stride @ (stride[1] * stride[2], stride[2], 1),
        tables=np.concatenate(tables).astype(np.int64),
    )


def tap_positions(geometry: ConvGeometry) -> IntArray:
    """Return the extended position that each tap adds, per axis: (taps, 3), taps in row-major order."""
    steps = [np.arange(k) * d for k, d in zip(three(geometry.kernel_size), three(geometry.dilation), strict=True)]
    return np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(math.prod(geometry.kernel_size), 3)


def three_sources(geometry: ConvGeometry) -> list[np.ndarray[Any, Any]]:
    """Return the sources of all axes, leading axes of length 1 included."""
    return [np.zeros(1, np.int64)] * (3 - geometry.ndim) + [geometry.sources(a) for a in range(geometry.ndim)]


def three(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return one to three sizes as three, with leading ones."""
    return (1,) * (3 - len(sizes)) + sizes


def three_pairs(pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Return one to three pairs of padding as three, with leading zeros."""
    return ((0, 0),) * (3 - len(pairs)) + pairs


def _longest_run(source: np.ndarray[Any, Any], step: int) -> tuple[int, int, int]:
    """Return (begin, end, first source) of the longest stretch of sources inside the image that grow by `step`."""
    breaks = np.flatnonzero((np.diff(source) != step) | (source[:-1] < 0)) + 1
    bounds = [0, *breaks.tolist(), len(source)]
    begin, end = max(itertools.pairwise(bounds), key=lambda pair: pair[1] - pair[0])
    return (begin, end, int(source[begin])) if source[begin] >= 0 else (0, 0, 0)
