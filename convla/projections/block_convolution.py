"""Kernels whose circular layer is orthogonal, as products of orthogonal two-tap convolutions (BCOP)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from convla._validate import check_sizes
from convla.errors import ShapeError
from convla.typing import Seed

__all__ = ["block_convolution_kernel"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def block_convolution_kernel(shape: Sequence[int], *, rng: Seed = None) -> FloatArray:
    """Return a random kernel with all taps in use whose circular layer of stride 1 has orthonormal rows or columns.

    Parameters
    ----------
    shape : sequence of int
        (c_out, c_in, *kernel), with one to three kernel axes.
    rng : numpy.random.Generator or seed

    Returns
    -------
    numpy.ndarray of float64

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the shape is none of that kind.

    Notes
    -----
    A symmetric projector P gives a convolution with the taps P and I - P, whose symbol ``P + (I - P) exp(i theta)`` is
    unitary. k - 1 of them along each axis, each with a projector of its own of half the rank, and an orthogonal matrix
    of the channels make a kernel of k taps along each axis, whose symbol is unitary as a product of unitary matrices.
    Where the numbers of channels differ, the rows or the columns of a square one are left out.

    References
    ----------
    Q. Li, S. Haque, C. Anil, J. Lucas, R. Grosse and J.-H. Jacobsen, Preventing Gradient Attenuation in Lipschitz
    Constrained Convolutional Networks, NeurIPS 2019; L. Xiao et al., ICML 2018, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.projections import block_convolution_kernel
    >>> kernel = block_convolution_kernel((4, 3, 3, 3), rng=0)
    >>> layer = ConvOperator(kernel, (5, 4), boundary="circular")
    >>> bool(np.allclose(np.linalg.svd(layer.to_dense(), compute_uv=False), 1.0))
    True
    """
    out, inner, *size = check_sizes("shape", shape)
    if len(size) not in (1, 2, 3):
        raise ShapeError(f"shape must be (c_out, c_in, *kernel) with 1 to 3 kernel axes, got {tuple(shape)}")
    generator = np.random.default_rng(rng)
    channels = max(out, inner)
    pairs = [(axis, _projector(channels, generator)) for axis, count in enumerate(size) for _ in range(count - 1)]
    start = _orthogonal(channels, generator).reshape(channels, channels, *(1,) * len(size))
    kernel = functools.reduce(_times_pair, pairs, start)
    return np.ascontiguousarray(kernel[:out, :inner])


def _times_pair(kernel: FloatArray, pair: tuple[int, FloatArray]) -> FloatArray:
    """Return the kernel of a convolution after the one with the taps P and I - P along an axis."""
    axis, projector = pair
    first, second = (
        np.einsum("oi...,ij->oj...", kernel, tap) for tap in (projector, np.eye(len(projector)) - projector)
    )
    none = [(0, 0)] * kernel.ndim
    after, before = none.copy(), none.copy()
    after[2 + axis], before[2 + axis] = (0, 1), (1, 0)
    return np.asarray(np.pad(first, after) + np.pad(second, before))


def _projector(channels: int, rng: np.random.Generator) -> FloatArray:
    frame = _orthogonal(channels, rng)[:, : max(1, channels // 2)]
    return frame @ frame.T


def _orthogonal(channels: int, rng: np.random.Generator) -> FloatArray:
    q, r = np.linalg.qr(rng.standard_normal((channels, channels)))
    return np.asarray(q * np.sign(np.diagonal(r)))
