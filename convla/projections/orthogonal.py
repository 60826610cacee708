"""The nearest orthogonal layer: how close to 1 all singular values can come with a kernel of the same size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import numpy as np

from convla._convergence import unheard
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer, check_real, check_rng
from convla.operators import ConvOperator
from convla.projections.block_convolution import block_convolution_kernel
from convla.projections.blocks import BlockMethod, Blocks, FloatArray, blocks_of
from convla.projections.clipping import host_operator, returned
from convla.projections.nearest import alternating
from convla.projections.units import FAR, distance_between
from convla.spectra.result import weakest
from convla.spectra.status import Status
from convla.spectra.values import largest_singular_value, smallest_singular_value
from convla.typing import AnyArray, ArrayLike, Boundary, Padding, Seed

__all__ = ["Candidate", "OrthogonalKernel", "nearest_orthogonal"]


class Candidate(NamedTuple):
    """What one start of the search came to.

    Attributes
    ----------
    start : {"kernel", "polar", "delta", "block convolution"}
        The kernel given; the polar factor of its filters as rows; that of its centre tap, and zeros elsewhere; an
        orthogonal convolution of random projectors.
    delta : float
        The largest ``abs(sigma - 1)``.
    distance : float
        The Frobenius norm of the difference from the kernel given.
    """

    start: str
    delta: float
    distance: float


@dataclass(frozen=True)
class OrthogonalKernel:
    """A kernel whose layer is nearly orthogonal, and how it was come by.

    Attributes
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        Of the library and dtype of the kernel given.
    delta : float
        The largest ``abs(sigma - 1)`` over the min(m, n) singular values of its m x n matrix.
    distance : float
        The Frobenius norm of the difference from the kernel given.
    start : str
        What the search started from; see `Candidate`.
    candidates : tuple of Candidate
        All of them.
    status : Status
        Of the two singular values that delta is made of, the weaker one. It does not say that no kernel has a smaller
        delta.
    iterations : int
    """

    kernel: AnyArray = field(repr=False)
    delta: float
    distance: float
    start: str
    candidates: tuple[Candidate, ...] = field(repr=False)
    status: Status
    iterations: int


@blas_on_one_thread()
def nearest_orthogonal(
    kernel: ArrayLike,
    image_shape: Sequence[int],
    *,
    delta: float = 1e-6,
    padding: Padding = "same",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    method: BlockMethod = "auto",
    max_iterations: int = 500,
    rng: Seed = 0,
) -> OrthogonalKernel:
    """Return a kernel of the same size near a given one whose layer is orthogonal, as far as such a kernel is found.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64, in host memory; integers become float64.
    image_shape : sequence of int
    delta : float, default 1e-6
        How far from 1 the singular values may be. Of the starts that come to this the one is returned that ends nearest
        to the kernel given; where none does, the one of the least delta.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.
    method : {"auto", "matrix", "torus"}
        As in `clip_singular_values`.
    max_iterations : int, default 500
        Of the alternating projections from each start.
    rng : numpy.random.Generator or seed
        Of the projectors of the block convolution.

    Returns
    -------
    OrthogonalKernel

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `clip_singular_values`.

    Notes
    -----
    Alternating projections between the stacks of matrices with orthonormal rows or columns and those that come of a
    kernel of this size, from four starts. The problem is not convex: what is found is a local solution.

    Which delta can be reached depends on the boundary more than on the sizes. With a circular one kernels abound that
    are orthogonal with all their taps. With zeros around an image that is as large as the kernel, and "same" padding,
    ``M^T M = I`` holds for kernels of one tap in use only; others are at some distance from it, and a small delta means
    that they are close to those.

    References
    ----------
    E. M. Achour, F. Malgouyres and F. Mamalet, Existence, Stability and Scalability of Orthogonal Convolutional Neural
    Networks, JMLR 23 (2022), for what exists.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import nearest_orthogonal
    >>> from convla.projections import block_convolution_kernel
    >>> noise = np.random.default_rng(0).standard_normal((4, 4, 3))
    >>> kernel = block_convolution_kernel((4, 4, 3), rng=0) + 0.05 * noise
    >>> circular = nearest_orthogonal(kernel, (8,), boundary="circular")
    >>> circular.delta < 1e-6, circular.start
    (True, 'kernel')
    >>> zero = nearest_orthogonal(kernel, (8,))
    >>> zero.delta < 1e-6, zero.start, int(np.count_nonzero(zero.kernel))
    (True, 'delta', 16)
    """
    check_choice("method", method, get_args(BlockMethod))
    delta = check_real("delta", delta, minimum=0.0)
    check_integer("max_iterations", max_iterations, minimum=1)
    settings: dict[str, Any] = {
        "padding": padding,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "boundary": boundary,
    }
    operator = host_operator(kernel, image_shape, settings)
    blocks = blocks_of(operator, method)
    given = np.asarray(operator.kernel, np.float64).reshape(blocks.shape)
    found: list[tuple[Candidate, ConvOperator, Status]] = []
    iterations = 0
    for start, first in _starts(operator, blocks, given, check_rng(rng)).items():
        ended = alternating(blocks, first, 1.0, 1.0, rtol=delta / 2, max_iterations=max_iterations)
        iterations += ended.iterations
        candidate = operator.with_kernel(ended.kernel.reshape(operator.kernel.shape).astype(operator.dtype))
        reached, status = _delta(candidate)
        found.append((Candidate(start, reached, distance_between(candidate, operator)), candidate, status))
    good = [entry for entry in found if entry[0].delta <= delta]
    best = min(good, key=lambda e: e[0].distance) if good else min(found, key=lambda e: e[0].delta)
    return OrthogonalKernel(
        returned(best[1], kernel),
        best[0].delta,
        best[0].distance,
        best[0].start,
        tuple(entry[0] for entry in found),
        best[2],
        iterations,
    )


def _starts(
    operator: ConvOperator, blocks: Blocks, given: FloatArray, rng: np.random.Generator
) -> dict[str, FloatArray]:
    """Return the kernels to start from, of shape ``blocks.shape``."""
    groups, out, inner, _ = blocks.shape
    size = operator.geometry.kernel_size
    polar = _polar(given.reshape(groups, out, -1)).reshape(blocks.shape)
    centre = np.ravel_multi_index(tuple((k - 1) // 2 for k in size), size)
    delta = np.zeros(blocks.shape)
    delta[..., centre] = _polar(given[..., centre])
    exponent = math.frexp(float(np.max(np.abs(given))))[1]
    woven = np.stack([block_convolution_kernel((out, inner, *size), rng=rng) for _ in range(groups)])
    return {
        # What is so large or small has the polar factors of a multiple whose squares are in range.
        "kernel": given if abs(exponent) <= FAR else np.ldexp(given, -exponent),
        "polar": polar,
        "delta": delta,
        "block convolution": woven.reshape(blocks.shape),
    }


def _polar(matrices: FloatArray) -> FloatArray:
    left, _, right = np.linalg.svd(matrices, full_matrices=False)
    return np.asarray(left @ right)


def _delta(operator: ConvOperator) -> tuple[float, Status]:
    """Return the largest distance of a singular value from 1, and what supports it."""
    with unheard():  # the status says so
        ends = largest_singular_value(operator), smallest_singular_value(operator)
    return max(abs(end.value - 1) for end in ends), weakest([end.status for end in ends])
