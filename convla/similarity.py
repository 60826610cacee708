"""Similarity of kernels and of their feature maps: inner products, convolutional similarity, and their gradients.

Every function here is a polynomial in its arguments, so exact inputs (integers, object arrays of exact numbers) give
exact values.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convla._array import namespace, on_device_of
from convla._boundary import extend
from convla._checks import check_kernel
from convla._validate import check_array, check_choice, check_same_shape
from convla.conv import cross_correlate
from convla.errors import ShapeError
from convla.geometry import ConvGeometry
from convla.typing import Array, ArrayLike, Namespace, Padding

__all__ = [
    "convolutional_similarity",
    "convolutional_similarity_gradient",
    "feature_map_gram",
    "feature_map_similarity",
    "feature_map_similarity_gradient",
    "kernel_similarity",
    "kernel_similarity_gradient",
]


def kernel_similarity(k1: ArrayLike, k2: ArrayLike) -> Array:
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
    return xp.sum(k1 * k2)


def kernel_similarity_gradient(k1: ArrayLike, k2: ArrayLike) -> tuple[Array, Array]:
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
) -> Array:
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
    f1, f2 = (cross_correlate(x, k[None, ...], padding=padding) for k in (k1, k2))
    return xp.sum(f1 * f2)


def feature_map_similarity_gradient(
    k1: ArrayLike, k2: ArrayLike, x: ArrayLike, *, padding: Padding, channels: bool = False
) -> tuple[Array, Array]:
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
    kernel_shape = tuple(k1.shape)[1:] if channels else tuple(k1.shape)
    gram = feature_map_gram(x if channels else x[None, ...], kernel_shape, padding=padding)
    g1, g2 = (xp.reshape(gram @ xp.reshape(k, (-1,)), tuple(k1.shape)) for k in (k2, k1))
    return g1, g2


def feature_map_gram(x: ArrayLike, kernel_shape: Sequence[int], *, padding: Padding) -> Array:
    """Return the Gram matrix T of the input's windows: <F1, F2> = K1^T T K2 for any two kernels.

    ``T[(c, a), (d, b)]`` is the sum over output positions i of ``X[c, i + a] X[d, i + b]``, X extended by its padding.
    For full padding it is the Toeplitz matrix of the autocorrelation of X (CSM Eq. 6).

    Parameters
    ----------
    x : array of shape (..., c_in, *image)
        One input or a batch.
    kernel_shape : sequence of int
        The kernels' sizes without channels, one for each image axis.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)
        Of the cross-correlation.

    Returns
    -------
    array of shape (..., c_in * taps, c_in * taps)
        Symmetric; rows and columns in the order of a flattened kernel (c_in, *kernel).

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is no array of finite real numbers, or the shapes do not fit each other.

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
    size = tuple(kernel_shape)
    x = check_array("x", x, xp, min_ndim=len(size) + 1, axes=f"(..., c_in, *image) with {len(size)} image axes")
    split = x.ndim - len(size) - 1
    shape = tuple(x.shape)
    geometry = ConvGeometry((1, shape[split], *size), shape[split + 1 :], padding=padding)
    extended = extend(x, geometry, xp)
    windows = xp.stack([extended[(..., *window)] for _, window in geometry.windows()], axis=split + 1)
    rows = xp.reshape(windows, (*shape[:split], shape[split] * math.prod(size), math.prod(geometry.output_shape)))
    return rows @ xp.matrix_transpose(rows)


def convolutional_similarity(kernels: ArrayLike, *, method: str = "auto") -> Array:
    """Return the convolutional similarity of a layer's kernels, over unordered pairs.

    The sum over pairs of kernels i < j, and over all pairs of their channels c1, c2, of the squared norm of the full
    cross-correlation of K_i[c1] with K_j[c2]. It is the same for convolution, and twice this over ordered pairs
    (CSM Eq. 17).

    Parameters
    ----------
    kernels : array of shape (c_out, c_in, *kernel)
        One to three kernel axes; float32, float64, integers, or an object array of exact numbers.
    method : {"auto", "autocorrelation", "pairwise"}
        "pairwise" is the definition, of cost c_out^2 c_in^2 taps^2. "autocorrelation" uses the identity in the Notes,
        of cost c_out c_in taps^2, and is what "auto" takes.

    Returns
    -------
    array of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernels` is no array of finite real numbers of that shape, or the method is unknown.

    Notes
    -----
    With A_i the sum over c of the autocorrelation of K_i[c], the sum over c1 and c2 of |K_i[c1] (x) K_j[c2]|^2 is
    <A_i, A_j>, because both are the sum over c1, c2 and all a, b, a', b' with b - a = b' - a' of
    K_i[c1][a] K_i[c1][a'] K_j[c2][b] K_j[c2][b'], and b - a = b' - a' says a' - a = b' - b. So the sum over pairs is
    one over kernels: with S_j = A_1 + ... + A_{j-1}, it is the sum over j of <A_j, S_j>.

    References
    ----------
    CSM, Eqs. (16), (19), (20).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import convolutional_similarity
    >>> int(convolutional_similarity(np.array([[[1, 2]], [[3, -1]]])))
    38
    """
    xp = namespace(kernels)
    kernels = check_kernel(kernels, xp)
    check_choice("method", method, ("auto", "autocorrelation", "pairwise"))
    if method == "pairwise":
        return _pairwise(kernels, xp)
    lags = _summed_autocorrelations(kernels, xp)
    before = xp.cumulative_sum(lags, axis=0, include_initial=True)[:-1, ...]
    return xp.sum(lags * before)


def convolutional_similarity_gradient(kernels: ArrayLike) -> Array:
    """Return the gradient of `convolutional_similarity`, of the kernels' shape.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in, *kernel)

    Returns
    -------
    array of shape (c_out, c_in, *kernel)

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernels` is no array of finite real numbers of that shape.

    Notes
    -----
    dL/dK_i[c][q] is 2 times the sum over lags t of (T - A_i)[t] K_i[c][q + t], with A_i as in
    `convolutional_similarity` and T their sum: a cost linear in the number of kernels.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import convolutional_similarity_gradient
    >>> convolutional_similarity_gradient(np.array([[[1, 2]], [[3, -1]]]))
    array([[[ 8, 34]],
    <BLANKLINE>
           [[26,  2]]])
    """
    xp = namespace(kernels)
    kernels = check_kernel(kernels, xp)
    shape = tuple(kernels.shape)
    lags = _summed_autocorrelations(kernels, xp)
    others = xp.sum(lags, axis=0, keepdims=True) - lags
    table = on_device_of(_lag_table(shape[2:]), kernels, xp, dtype=kernels.dtype)
    taps = table.shape[0]
    toeplitz = xp.reshape(others @ xp.matrix_transpose(xp.reshape(table, (taps * taps, -1))), (-1, taps, taps))
    rows = xp.reshape(kernels, (*shape[:2], taps))
    return xp.reshape(2 * (rows @ toeplitz), shape)


def _summed_autocorrelations(kernels: Array, xp: Namespace) -> Array:
    """Return the A_i, shape (c_out, lags): each kernel's autocorrelation summed over its channels."""
    shape = tuple(kernels.shape)
    table = on_device_of(_lag_table(shape[2:]), kernels, xp, dtype=kernels.dtype)
    taps = table.shape[0]
    rows = xp.reshape(kernels, (*shape[:2], taps))
    gram = xp.matrix_transpose(rows) @ rows
    return xp.reshape(gram, (shape[0], taps * taps)) @ xp.reshape(table, (taps * taps, -1))


@functools.lru_cache(maxsize=32)
def _lag_table(size: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the 0/1 array (taps, taps, lags) that is 1 where two taps of a kernel differ by a lag."""
    taps = np.array(list(itertools.product(*map(range, size))))
    difference = taps[None, :, :] - taps[:, None, :] + (np.array(size) - 1)
    lags = tuple(2 * k - 1 for k in size)
    flat = np.ravel_multi_index(tuple(np.moveaxis(difference, -1, 0)), lags)
    table: np.ndarray[Any, np.dtype[np.int64]] = (flat[..., None] == np.arange(math.prod(lags))).astype(np.int64)
    return table


def _pairwise(kernels: Array, xp: Namespace) -> Array:
    # One kernel at a time against those after it: memory for one row of pairs.
    total = xp.sum(kernels[:0, ...])
    shape = tuple(kernels.shape)
    for i in range(shape[0] - 1):
        later = xp.reshape(kernels[i + 1 :, ...], (-1, 1, *shape[2:]))
        products = cross_correlate(kernels[i, :, None, ...], later, padding="full")
        total = total + xp.sum(products * products)
    return total


def _check_pair(k1: ArrayLike, k2: ArrayLike, xp: Namespace) -> tuple[Array, Array]:
    k1 = check_array("k1", k1, xp, min_ndim=1)
    k2 = check_array("k2", k2, xp, min_ndim=1)
    check_same_shape("k1", k1, "k2", k2)
    return k1, k2


def _check_input(x: ArrayLike, kernel: Array, xp: Namespace) -> Array:
    x = check_array("x", x, xp)
    if x.ndim != kernel.ndim:
        raise ShapeError(
            f"x must have as many axes as k1 and k2, {kernel.ndim}, got shape {tuple(x.shape)} "
            f"with kernels of shape {tuple(kernel.shape)}"
        )
    return x
