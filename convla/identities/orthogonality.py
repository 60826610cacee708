"""Which taps of a kernel a zero-padded convolution with orthonormal columns can have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from convla._array import namespace
from convla._checks import check_kernel
from convla.geometry import ConvGeometry
from convla.typing import AnyArray, ArrayLike, Padding

__all__ = ["boundary_defect", "shared_taps"]


def shared_taps(kernel_shape: Sequence[int], padding: Padding = "same") -> tuple[range, ...]:
    """Return the taps through which every sample of a zero-padded image reaches an output, along each axis.

    A sample on the rim of the image reaches no output through the other taps.

    Parameters
    ----------
    kernel_shape : sequence of int
        The numbers of taps (*kernel), one to three axes.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int), default "same"

    Returns
    -------
    tuple of range
        ``k - 1 - high, ..., low`` along an axis of k taps padded by (low, high): the centre for "same", every tap for
        "full", none for "valid" unless k = 1.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the kernel has no one to three positive sizes, or the padding is unknown.

    Examples
    --------
    >>> from convla.identities import shared_taps
    >>> shared_taps((4, 3)), shared_taps((2,), "full"), list(shared_taps((2,), "valid")[0])
    ((range(1, 2), range(1, 2)), (range(0, 2),), [])
    """
    size = tuple(kernel_shape)
    sides = ConvGeometry((1, 1, *size), tuple(2 * k for k in size), padding=padding).padding
    return tuple(range(k - 1 - high, low + 1) for k, (low, high) in zip(size, sides, strict=True))


def boundary_defect(kernel: ArrayLike, padding: Padding = "same") -> AnyArray:
    """Return the sum of W^T W over the matrices W of all taps that some sample of a zero-padded image misses.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in, *kernel)
        Its taps are matrices of channels (c_out, c_in). Exact numbers give an exact result.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int), default "same"

    Returns
    -------
    array of shape (c_in, c_in)
        Positive semidefinite. It vanishes exactly where all but the `shared_taps` do.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernel` is no array of finite real numbers of that shape, or the padding is unknown.

    Notes
    -----
    The diagonal block of M^T M at a sample is the sum of W^T W over the taps through which it reaches an output. It is
    the sum over all taps at an inner sample, which exists where an axis of k taps padded by (low, high) has at least
    ``2k - 1 - low - high`` samples, and leaves out at the first and at the last corner taps that together are all but
    the shared ones. So this matrix is at most twice the inner block less both corners' blocks, and its largest
    eigenvalue at most ``4 sigma_max(M^T M - alpha I)`` for every alpha. Where M^T M = I it vanishes.

    Examples
    --------
    >>> from convla.identities import boundary_defect
    >>> int(boundary_defect([[[1, 2, 3]]])[0, 0]), int(boundary_defect([[[1, 2, 3]]], "full")[0, 0])
    (10, 0)
    """
    xp = namespace(kernel)
    kernel = check_kernel(kernel, xp)
    shared = shared_taps(tuple(kernel.shape[2:]), padding)
    defect = xp.zeros((kernel.shape[1], kernel.shape[1]), dtype=kernel.dtype)
    for tap in itertools.product(*map(range, kernel.shape[2:])):
        if not all(n in kept for n, kept in zip(tap, shared, strict=True)):
            channels = kernel[(..., *tap)]
            defect = defect + xp.matrix_transpose(channels) @ channels
    return defect
