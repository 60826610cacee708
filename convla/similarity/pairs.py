"""Similarity of two kernels and of their feature maps: inner products and their gradients.

Every function here is a polynomial in its arguments, so exact inputs (integers, object arrays of exact numbers) give
exact values. Floating-point numbers are multiplied and added in float64, their powers of two apart: a value beyond the
dtype's range is returned as infinity, one below it as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convla._array import is_exact, namespace
from convla._boundary import extend
from convla._checks import check_integer_range
from convla._validate import check_array, check_same_shape
from convla.conv import cross_correlate
from convla.errors import ShapeError
from convla.geometry import ConvGeometry
from convla.similarity.scaling import power_of, times_power
from convla.typing import AnyArray, Array, ArrayLike, Namespace, Padding

__all__ = [
    "feature_map_gram",
    "feature_map_similarity",
    "feature_map_similarity_gradient",
    "kernel_similarity",
    "kernel_similarity_gradient",
]

_SAFE_POWER = 100
"""Up to this power of two and down to its inverse, no product of degree 4 comes near the ends of float64."""


def kernel_similarity(k1: ArrayLike, k2: ArrayLike) -> AnyArray:
    """Return the inner product <K1, K2> of two kernels.

    Parameters
    ----------
    k1, k2 : array of any one shape

    Returns
    -------
    array of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is no array of finite real numbers, or the shapes differ.
    OverflowError
        If sums of integers could leave their dtype.

    References
    ----------
    CSM, Section 4.1.

    Examples
    --------
    >>> from convla import kernel_similarity
    >>> int(kernel_similarity([1, 2, 3], [3, 0, -1]))
    0
    """
    xp = namespace(k1, k2)
    k1, k2 = _check_pair(k1, k2, xp)
    _check_range(k1, k2, math.prod(k1.shape))
    (k1, k2), power, dtype = _prepare((k1, k2), (1, 1), xp)
    return _restore(xp.sum(k1 * k2), power, dtype, xp)


def kernel_similarity_gradient(k1: ArrayLike, k2: ArrayLike) -> tuple[AnyArray, AnyArray]:
    """Return the gradients of <K1, K2> with respect to K1 and K2, which are K2 and K1.

    Parameters, errors and references are those of `kernel_similarity`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import kernel_similarity_gradient
    >>> kernel_similarity_gradient(np.array([1, 2]), np.array([3, 4]))
    (array([3, 4]), array([1, 2]))
    """
    xp = namespace(k1, k2)
    k1, k2 = _check_pair(k1, k2, xp)
    return k2, k1


def feature_map_similarity(
    k1: ArrayLike, k2: ArrayLike, x: ArrayLike, *, padding: Padding, channels: bool = False
) -> AnyArray:
    """Return the inner product <F1, F2> of the feature maps F_i = X (x) K_i of two kernels.

    Parameters
    ----------
    k1, k2 : array of shape (*kernel), or (c_in, *kernel) with `channels`
        Two kernels of one shape, with one to three kernel axes.
    x : array of shape (*image), or (c_in, *image) with `channels`
        The input.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)
        Of the cross-correlation; an integer is CSM's P.
    channels : bool, default False
        Whether the first axis of all three counts input channels, over which a feature map is summed.

    Returns
    -------
    array of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is no array of finite real numbers, or the shapes do not fit each other.
    OverflowError
        If sums of integers could leave their dtype.

    See Also
    --------
    feature_map_gram : the matrix T with <F1, F2> = K1^T T K2, for many kernels on one input.

    References
    ----------
    CSM, Eqs. (7), (28).

    Examples
    --------
    Orthogonal kernels whose feature maps are not (CSM Section 4.2.1):

    >>> from convla import feature_map_similarity, kernel_similarity
    >>> k1, k2, x = [1, 1], [1, -1], [1, 2, 4]
    >>> int(kernel_similarity(k1, k2)), int(feature_map_similarity(k1, k2, x, padding="valid"))
    (0, -15)
    """
    xp = namespace(k1, k2, x)
    k1, k2 = _check_pair(k1, k2, xp)
    x = _check_input(x, k1, xp)
    if not channels:
        k1, k2, x = k1[None, ...], k2[None, ...], x[None, ...]
    (k1, k2, x), power, dtype = _prepare((k1, k2, x), (1, 1, 2), xp)
    f1, f2 = (cross_correlate(x, k[None, ...], padding=padding) for k in (k1, k2))
    _check_range(f1, f2, math.prod(f1.shape))
    return _restore(xp.sum(f1 * f2), power, dtype, xp)


def feature_map_similarity_gradient(
    k1: ArrayLike, k2: ArrayLike, x: ArrayLike, *, padding: Padding, channels: bool = False
) -> tuple[AnyArray, AnyArray]:
    """Return the gradients of <F1, F2> with respect to K1 and K2: T K2 and T K1.

    Parameters and errors are those of `feature_map_similarity`; each gradient has the kernels' shape.

    Examples
    --------
    >>> from convla import feature_map_similarity_gradient
    >>> feature_map_similarity_gradient([1, 1], [1, -1], [1, 2, 4], padding="valid")
    (array([ -5, -10]), array([15, 30]))
    """
    xp = namespace(k1, k2, x)
    k1, k2 = _check_pair(k1, k2, xp)
    x = _check_input(x, k1, xp)
    kernel_size = tuple(k1.shape)[1:] if channels else tuple(k1.shape)
    slopes = []
    for k in (k2, k1):
        (kernel, image), power, dtype = _prepare((k, x), (1, 2), xp)
        gram = _gram(image if channels else image[None, ...], kernel_size, padding, 1, xp)
        _check_range(gram, kernel, math.prod(k1.shape))
        slope = xp.reshape(gram @ xp.reshape(kernel, (-1,)), tuple(k1.shape))
        slopes.append(_restore(slope, power, dtype, xp))
    return slopes[0], slopes[1]


def feature_map_gram(
    x: ArrayLike, kernel_size: Sequence[int], *, padding: Padding, stride: int | Sequence[int] = 1
) -> AnyArray:
    """Return the Gram matrix T of the input's windows: <F1, F2> = K1^T T K2 for any two kernels.

    ``T[(c, a), (d, b)]`` is the sum over output positions i of ``X[c, i + a] X[d, i + b]``, X extended by its padding;
    with a stride s, over i that are multiples of s. For full padding and stride 1 it is the Toeplitz matrix of the
    autocorrelation of X (CSM Eq. 6).

    Parameters
    ----------
    x : array of shape (..., c_in, *image)
        One input or a batch.
    kernel_size : sequence of int
        The kernels' sizes without channels, one for each image axis.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)
        Of the cross-correlation.
    stride : int or sequence of int, default 1
        Of the cross-correlation, one for all image axes or one for each.

    Returns
    -------
    array of shape (..., c_in * taps, c_in * taps)
        Symmetric; rows and columns in the order of a flattened kernel (c_in, *kernel).

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is no array of finite real numbers, or the shapes do not fit each other.
    OverflowError
        If sums of integers could leave their dtype.

    References
    ----------
    CSM, Eqs. (8), (29).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import feature_map_gram
    >>> feature_map_gram(np.array([[1, 2, 4]]), (2,), padding="full")
    array([[21, 10],
           [10, 21]])
    >>> feature_map_gram(np.array([[1, 2, 4]]), (2,), padding="valid")
    array([[ 5, 10],
           [10, 20]])
    """
    xp = namespace(x)
    size = tuple(kernel_size)
    x = check_array("x", x, xp, min_ndim=len(size) + 1, axes=f"(..., c_in, *image) with {len(size)} image axes")
    _check_dtype("x", x, xp)
    (x,), power, dtype = _prepare((x,), (2,), xp)
    return _restore(_gram(x, size, padding, stride, xp), power, dtype, xp)


def _gram(x: Array, size: tuple[int, ...], padding: Padding, stride: int | Sequence[int], xp: Namespace) -> Array:
    split = x.ndim - len(size) - 1
    shape = tuple(x.shape)
    geometry = ConvGeometry((1, shape[split], *size), shape[split + 1 :], stride=stride, padding=padding)
    extended = extend(x, geometry, xp)
    windows = xp.stack([extended[(..., *window)] for _, window in geometry.windows()], axis=split + 1)
    rows = xp.reshape(windows, (*shape[:split], shape[split] * math.prod(size), math.prod(geometry.output_shape)))
    _check_range(rows, rows, math.prod(geometry.output_shape))
    return rows @ xp.matrix_transpose(rows)


def _check_pair(k1: ArrayLike, k2: ArrayLike, xp: Namespace) -> tuple[Array, Array]:
    k1 = check_array("k1", k1, xp, min_ndim=1)
    k2 = check_array("k2", k2, xp, min_ndim=1)
    check_same_shape("k1", k1, "k2", k2)
    _check_dtype("k1", k1, xp)
    _check_dtype("k2", k2, xp)
    return k1, k2


def _check_input(x: ArrayLike, kernel: Array, xp: Namespace) -> Array:
    x = check_array("x", x, xp)
    _check_dtype("x", x, xp)
    if x.ndim != kernel.ndim:
        raise ShapeError(
            f"x must have as many axes as k1 and k2, {kernel.ndim}, got shape {tuple(x.shape)} "
            f"with kernels of shape {tuple(kernel.shape)}"
        )
    return x


def _check_range(a: Array, b: Array, terms: int) -> None:
    """Raise `OverflowError` if sums of `terms` products could leave the integer dtype that `a` and `b` promote to."""
    if object in (a.dtype, b.dtype):
        return
    xp = namespace(a, b)
    dtype = xp.result_type(a, b)
    if xp.isdtype(dtype, "integral"):
        check_integer_range(xp.astype(a, dtype), xp.astype(b, dtype), terms)


def _check_dtype(name: str, array: Array, xp: Namespace) -> None:
    if not is_exact(array) and array.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"{name} must hold float32, float64, integers or exact objects, got dtype {array.dtype}")


def _prepare(arrays: tuple[Array, ...], degrees: tuple[int, ...], xp: Namespace) -> tuple[tuple[Array, ...], int, Any]:
    """Return arrays to multiply, each by its degree, the power of two they lack, and the dtype of the result.

    Floating-point numbers come in float64; where products of them could leave it, with entries of modulus up to 1.
    """
    if any(is_exact(array) and array.dtype == object for array in arrays) or all(map(is_exact, arrays)):
        return arrays, 0, None
    dtype = xp.result_type(*(xp.float64 if is_exact(array) else array.dtype for array in arrays))
    arrays = tuple(xp.astype(array, xp.float64, copy=False) for array in arrays)
    powers = [power_of(array, xp) for array in arrays]
    if max(map(abs, powers)) <= _SAFE_POWER:
        return arrays, 0, dtype
    arrays = tuple(times_power(array, -power, xp) for array, power in zip(arrays, powers, strict=True))
    return arrays, sum(power * degree for power, degree in zip(powers, degrees, strict=True)), dtype


def _restore(product: Array, power: int, dtype: Any, xp: Namespace) -> Array:
    if dtype is None:
        return product
    with np.errstate(over="ignore"):
        return xp.astype(times_power(product, power, xp), dtype, copy=False)
