"""Random kernels with orthonormal filters, and kernels whose whole layer is an isometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import scipy

from convla._array import describe, namespace, on_device_of
from convla._products import product
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer, check_real, check_rng
from convla.errors import ShapeError
from convla.typing import AnyArray, Array, Seed

__all__ = ["delta_orthogonal_kernel", "orthogonal_kernel"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# Cholesky's factor is taken from this many rows on where the sides differ by this ratio. The condition number of such a
# Gaussian matrix is below (sqrt(2) + 1) / (sqrt(2) - 1) < 6, but for draws that are exponentially rare in the number of
# rows, and its square in the Gram matrix costs no accuracy that shows.
CHOLESKY_ROWS = 32
CHOLESKY_RATIO = 2

KernelMethod = Literal["haar", "svd"]


@blas_on_one_thread()
def orthogonal_kernel(
    shape: Sequence[int],
    *,
    gain: float = 1.0,
    method: KernelMethod = "haar",
    rng: Seed = None,
    dtype: Any = np.float64,
    like: Array | None = None,
) -> AnyArray:
    """Return a random kernel whose filters, as vectors of taps, are orthonormal times a gain.

    Parameters
    ----------
    shape : sequence of int
        (c_out, c_in, *kernel), or (c_out, c_in) for a dense layer; seen as a matrix of c_out rows.
    gain : float, default 1
        Positive; every singular value of the matrix.
    method : {"haar", "svd"}
        "haar" is uniform over the matrices with orthonormal rows: the triangular factor of a Gaussian matrix, with a
        positive diagonal, divided out. "svd" is the recipe of the source: the right (or left) singular vectors of a
        Gaussian matrix, with LAPACK's choice of signs.
    rng : numpy.random.Generator or seed
        Of the Gaussian matrix; drawn by NumPy on the host, so a seed gives the same kernel for every library.
    dtype : dtype, default float64
        float32 or float64.
    like : array, optional
        Whose library and device the kernel is for; NumPy by default.

    Returns
    -------
    array of shape `shape`
        With more rows than taps, orthonormal columns in place of rows.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the shape has fewer than two axes or an empty one, the gain is not positive, or the method or dtype unknown.

    Notes
    -----
    The matrix preserves norms; the convolutional layer does not. With stride 1 its singular values are at most ``gain``
    times the square root of the number of taps, which is attained, and come close to 0; see `delta_orthogonal_kernel`
    for a layer that is an isometry.

    References
    ----------
    Orthogonal Initialization in Convolutional Layers (OIC). A. M. Saxe et al., arXiv:1312.6120. F. Mezzadri, How to
    generate random matrices from the classical compact groups, Notices of the AMS 54 (2007), Section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import orthogonal_kernel
    >>> rows = orthogonal_kernel((64, 32, 3, 3), rng=0).reshape(64, -1)
    >>> bool(np.allclose(rows @ rows.T, np.eye(64)))
    True
    """
    size = _check_shape(shape, 2, "(c_out, c_in, *kernel)")
    gain = check_real("gain", gain, positive=True)
    check_choice("method", method, get_args(KernelMethod))
    rows, columns = size[0], math.prod(size[1:])
    short, long = sorted((rows, columns))
    kind = _check_dtype(dtype)
    gaussian = check_rng(rng).standard_normal((short, long))
    frame = _haar_rows(gaussian, kind) if method == "haar" else np.linalg.svd(gaussian, full_matrices=False)[2]
    return _as_kernel(gain * (frame if rows <= columns else frame.T), size, kind, like)


@blas_on_one_thread()
def delta_orthogonal_kernel(
    shape: Sequence[int],
    *,
    gain: float = 1.0,
    rng: Seed = None,
    dtype: Any = np.float64,
    like: Array | None = None,
) -> AnyArray:
    """Return a kernel that is a random orthonormal matrix of channels at its centre tap, and zero elsewhere.

    Parameters
    ----------
    shape : sequence of int
        (c_out, c_in, *kernel), with one to three kernel axes.
    gain : float, default 1
        Positive.
    rng : numpy.random.Generator or seed
    dtype : dtype, default float64
        float32 or float64.
    like : array, optional
        Whose library and device the kernel is for; NumPy by default.

    Returns
    -------
    array of shape `shape`

    Raises
    ------
    TypeError, ShapeError, ValueError
        As for `orthogonal_kernel`.

    Notes
    -----
    With stride 1 and same padding, of any boundary, the layer maps each position's channels by one matrix, and all its
    singular values are the gain (those of min(c_out, c_in) channels; the others are 0). It preserves norms where
    c_out >= c_in, as Xiao et al. require; with fewer outputs, its transpose does.

    References
    ----------
    L. Xiao et al., Dynamical Isometry and a Mean Field Theory of CNNs, ICML 2018, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, delta_orthogonal_kernel
    >>> layer = ConvOperator(delta_orthogonal_kernel((3, 2, 3, 3), rng=0), (4, 5))
    >>> bool(np.allclose(np.linalg.svd(layer.to_dense(), compute_uv=False), 1.0))
    True
    """
    size = _check_shape(shape, 3, "(c_out, c_in, *kernel)")
    if len(size) > 5:
        raise ShapeError(f"shape must have 1 to 3 axes after its channels, got {size}")
    kernel = np.zeros(size)
    # The tap that same padding lays on the output's own position.
    centre: tuple[Any, ...] = (..., *((k - 1) // 2 for k in size[2:]))
    kernel[centre] = orthogonal_kernel(size[:2], gain=gain, rng=rng)
    return _as_kernel(kernel, size, _check_dtype(dtype), like)


def _haar_rows(gaussian: FloatArray, kind: Any) -> FloatArray:
    """Return the Q of the factorisation gaussian = L Q with L lower triangular, its diagonal positive.

    That Q is unique, and uniform because the Gaussian's distribution is invariant under rotations from the right; the
    two ways to compute it give the same numbers but for rounding.
    """
    short, long = gaussian.shape
    if short >= CHOLESKY_ROWS and long >= CHOLESKY_RATIO * short:
        # At such a condition number, working in the kernel's own dtype costs little more than rounding to it.
        rows = gaussian.astype(kind, copy=False)
        gram: Any = product(rows, rows.T)
        factor = np.linalg.cholesky(gram)
        return np.asarray(scipy.linalg.solve_triangular(factor, rows, lower=True, check_finite=False))
    q, r = np.linalg.qr(gaussian.T)
    return np.ascontiguousarray((q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).T)


def _check_shape(shape: Sequence[int], least: int, wanted: str) -> tuple[int, ...]:
    try:
        size = tuple(check_integer("every entry of shape", length) for length in shape)
    except TypeError:
        raise TypeError(f"shape must be a sequence of integers {wanted}, got {shape!r}") from None
    if len(size) < least or min(size) < 1:
        raise ShapeError(f"shape must be {wanted}, {least} or more positive integers, got {size}")
    return size


def _check_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        kind: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}") from None
    if kind not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {kind}")
    return kind


def _as_kernel(values: FloatArray, shape: tuple[int, ...], kind: np.dtype[Any], like: Array | None) -> Array:
    kernel = values.reshape(shape).astype(kind, copy=False)
    if like is None:
        return kernel
    if not hasattr(like, "dtype"):
        raise TypeError(f"like must be an array, got {describe(like)}")
    xp = namespace(like)
    return on_device_of(kernel, like, xp, dtype=getattr(xp, kind.name))
