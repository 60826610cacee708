"""A layer as a stack of small matrices that are linear in its kernel: what a projection works on.

The matrix itself, one block for each group, or the symbol at the frequencies of a torus, one block for each frequency
and group. Both are linear maps A of the kernel. The norm of a stack is the largest of its blocks', and its inner
product is weighted so that a torus whose taps are distinct has ``A* A = I``.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np

from convla.geometry import ConvGeometry
from convla.operators import ConvOperator
from convla.spectra.enclosure import envelope
from convla.spectra.symbol import Symbol, torus_frequencies
from convla.spectra.torus import circular_lattice

__all__ = ["BlockMethod", "Blocks", "MatrixBlocks", "TorusBlocks", "blocks_of", "matrix_is_small"]

BlockMethod = Literal["auto", "matrix", "torus"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
BlockArray = np.ndarray[Any, Any]

_SIDE, _ENTRIES = 256, 2**18  # of a group's matrix that is written out: its decomposition takes milliseconds
_NODES_PER_DEGREE = 8  # of a torus more than twice as large: finer ones change the nearest kernel by little


class Blocks(ABC):
    """A linear map A from kernels to stacks of matrices.

    Attributes
    ----------
    gram : numpy.ndarray of float64, shape (taps, taps)
        ``A* A``, which acts on the taps alone.
    weights : numpy.ndarray of float64
        Of the blocks in the inner product; their leading axes, or such that they broadcast to them.
    exact : bool
        Whether the norm of the stack is that of the layer.
    bounding : bool
        Whether it is an upper bound of that.
    """

    gram: FloatArray
    weights: FloatArray
    exact: bool
    bounding: bool

    def __init__(self, geometry: ConvGeometry) -> None:
        self.geometry = geometry
        out, inner, *size = geometry.kernel_shape
        self.shape = (geometry.groups, out // geometry.groups, inner, math.prod(size))

    @abstractmethod
    def of(self, kernel: FloatArray) -> BlockArray:
        """Return A applied to a kernel of shape ``shape``: (..., rows, columns)."""

    @abstractmethod
    def adjoint(self, blocks: BlockArray) -> FloatArray:
        """Return A* applied to a stack: a kernel of shape ``shape``."""

    @property
    def bound(self) -> float:
        """The largest eigenvalue of ``A* A``."""
        return float(np.linalg.eigvalsh(self.gram)[-1])

    def total(self, blocks: BlockArray) -> float:
        """Return the weighted sum of what stands for each block."""
        return float(np.sum(self.weights * blocks))


class MatrixBlocks(Blocks):
    """The matrix of each group, written out: blocks (groups, rows, columns).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvGeometry
    >>> from convla.projections.blocks import MatrixBlocks
    >>> blocks = MatrixBlocks(ConvGeometry((1, 1, 3), (3,), padding="same"))
    >>> blocks.of(np.array([[[[1.0, 2.0, 3.0]]]]))
    array([[[2., 3., 0.],
            [1., 2., 3.],
            [0., 1., 2.]]])
    >>> np.diag(blocks.gram)
    array([2., 3., 2.])
    """

    exact = bounding = True

    def __init__(self, geometry: ConvGeometry) -> None:
        super().__init__(geometry)
        self._read = geometry.position_map().T.astype(np.intp)  # (taps, outputs); -1 is the entry after the last
        self._rows = np.arange(self._read.shape[1])
        self._places = math.prod(geometry.image_shape)
        live = self._read >= 0
        self.gram = np.array(
            [[np.count_nonzero((a == b) & seen) for b in self._read] for a, seen in zip(self._read, live, strict=True)],
            dtype=np.float64,
        )
        self.weights = np.ones(1)

    def of(self, kernel: FloatArray) -> BlockArray:
        """Return the matrix of each group."""
        groups, out, inner, _ = self.shape
        matrix = np.zeros((groups, out, inner, len(self._rows), self._places + 1))
        for tap, read in enumerate(self._read):
            matrix[..., self._rows, read] += kernel[..., tap, None]
        return matrix[..., :-1].transpose(0, 1, 3, 2, 4).reshape(groups, out * len(self._rows), inner * self._places)

    def adjoint(self, blocks: BlockArray) -> FloatArray:
        """Return the sum over the entries that each tap stands in."""
        groups, out, inner, _ = self.shape
        matrix = np.zeros((groups, out, inner, len(self._rows), self._places + 1))
        entries = blocks.reshape(groups, out, len(self._rows), inner, self._places)
        matrix[..., :-1] = entries.transpose(0, 1, 3, 2, 4)
        return np.stack([matrix[..., self._rows, read].sum(axis=-1) for read in self._read], axis=-1)


class TorusBlocks(Blocks):
    """The symbol at a torus's frequencies, one of each conjugate pair: blocks (frequencies, groups, rows, columns).

    With a circular boundary it is the image's own torus, whose norm is the layer's where every position that the stride
    allows is an output, and else a bound; with zeros around the image one that the padded image fits
    into; then the norm of the stack bounds the layer's from above, but for its frequencies. Long axes have fewer
    frequencies. With other boundaries the norm is that of the layer away from the edges of its image.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvGeometry
    >>> from convla.projections.blocks import TorusBlocks
    >>> blocks = TorusBlocks(ConvGeometry((1, 1, 3), (4,), padding="same", boundary="circular"))
    >>> blocks.of(np.array([[[[0.0, 1.0, 1.0]]]])).ravel().round(12) + 0.0  # at 0, pi / 2 and pi
    array([2.+0.j, 1.+1.j, 0.+0.j])
    >>> blocks.gram.round(12) + 0.0
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """

    def __init__(self, geometry: ConvGeometry, dtype: Any = np.float64) -> None:
        super().__init__(geometry)
        surround = envelope(geometry)
        # Of any kernel: what is needed is where its taps stand.
        symbol = Symbol(np.zeros(geometry.kernel_shape), surround.geometry, stride=surround.stride)
        most = [max(_NODES_PER_DEGREE * degree, 1) for degree in symbol.degrees]
        sizes = [size if size <= 2 * limit + 1 else limit for size, limit in zip(surround.sizes, most, strict=True)]
        frequencies, counts = torus_frequencies(sizes)
        self.bounding = tuple(sizes) == tuple(surround.sizes) and surround.factor == 1.0
        # Else some of the torus's rows are not the layer's.
        self.exact = self.bounding and geometry.boundary == "circular" and circular_lattice(geometry).exact
        self.weights = (counts / math.prod(sizes))[:, None]
        waves = np.exp(1j * (frequencies @ symbol.lags.T))  # (frequencies, taps)
        phase_of = _phases_of_taps(surround.geometry, symbol)
        self._phases = len(symbol.phases)
        every: list[Any] = [np.flatnonzero(phase_of == phase) for phase in range(self._phases)]
        self._taps_of_phases = every if self._phases > 1 else [slice(None)]  # of all no copy is taken
        overlap = (waves.conj() * self.weights).T @ waves
        self.gram = overlap.real * (phase_of[:, None] == phase_of[None, :])
        self._dtype = np.dtype(np.float64 if self.exact else dtype)
        self._waves = waves.astype(np.result_type(self._dtype, np.complex64))

    def of(self, kernel: FloatArray) -> BlockArray:
        """Return the symbol at the frequencies."""
        groups, out, inner, taps = self.shape
        flat = kernel.reshape(-1, taps).astype(self._dtype)
        stack = np.empty((self._phases, len(self._waves), groups * out, inner), self._waves.dtype)
        for chosen, symbol in zip(self._taps_of_phases, stack, strict=True):
            # In the dtype of the waves and to where it belongs: what NumPy converts or copies costs as much again.
            coefficients = flat[:, chosen].T.astype(stack.dtype)
            np.matmul(self._waves[:, chosen], coefficients, out=symbol.reshape(len(self._waves), -1))
        return stack.transpose(1, 2, 0, 3).reshape(-1, groups, out, self._phases * inner)

    def adjoint(self, blocks: BlockArray) -> FloatArray:
        """Return the Fourier coefficients at the taps."""
        groups, out, inner, taps = self.shape
        stack = blocks.reshape(len(self._waves), groups * out, self._phases, inner)
        flat = np.empty((taps, groups * out * inner))
        for phase, chosen in enumerate(self._taps_of_phases):
            waves = self._waves[:, chosen].conj() * self.weights.astype(self._dtype)
            flat[chosen] = (waves.T @ stack[:, :, phase].reshape(len(waves), -1)).real
        return flat.T.reshape(self.shape)


def _phases_of_taps(geometry: ConvGeometry, symbol: Symbol) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return for every tap, row-major, which of the symbol's phases it reads."""
    places = {tuple(phase): place for place, phase in enumerate(symbol.phases.tolist())}
    steps = symbol.stride.tolist()
    axes = [
        [(tap * d - low) % s for tap in range(k)]
        for k, d, (low, _), s in zip(geometry.kernel_size, geometry.dilation, geometry.padding, steps, strict=True)
    ]
    return np.array([places[phase] for phase in itertools.product(*axes)])


def matrix_is_small(geometry: ConvGeometry) -> bool:
    """Tell whether the matrices of the groups are quickly decomposed again and again."""
    rows, columns = (size // geometry.groups for size in geometry.shape)
    return min(rows, columns) <= _SIDE and rows * columns * geometry.groups <= _ENTRIES


def blocks_of(operator: ConvOperator, method: BlockMethod) -> Blocks:
    """Return the blocks that a projection works on: "matrix", "torus", or "auto" for what is exact and affordable."""
    if method == "auto":
        method = "matrix" if matrix_is_small(operator.geometry) else "torus"
    return MatrixBlocks(operator.geometry) if method == "matrix" else TorusBlocks(operator.geometry, operator.dtype)
