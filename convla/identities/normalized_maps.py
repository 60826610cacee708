"""What is left of the similarity of feature maps after batch normalisation and an activation."""

from __future__ import annotations

import math

from convla._array import is_exact, namespace
from convla._validate import check_array, check_real
from convla.conv import cross_correlate
from convla.errors import ShapeError
from convla.identities.inner_products import kernel_correlation
from convla.similarity.pairs import feature_map_gram
from convla.typing import AnyArray, ArrayLike, Padding

__all__ = ["activated_cosine", "even_similarity", "map_correlation", "window_covariance"]


def even_similarity(k1: ArrayLike, k2: ArrayLike) -> AnyArray:
    """Return the squared norm of the even part of the cross-correlation of two kernels: what an input can see of it.

    Parameters
    ----------
    k1, k2 : array of shape (*kernel)
        One to three axes.

    Returns
    -------
    array of shape ()
        The sum over all lags t of ``((C[t] + C[-t]) / 2)^2``, C the full cross-correlation; of integers a float64.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the kernels are no arrays of finite real numbers of these shapes.

    Notes
    -----
    An autocorrelation is even, so that ``<F1, F2>^2 <= E(K1, K2) |X (x) X|^2`` with full padding, and ``E <= CS``.
    Unlike CS it can vanish: for a symmetric and an antisymmetric kernel.

    Examples
    --------
    >>> from convla.identities import even_similarity
    >>> float(even_similarity([1.0, 2.0, 1.0], [1.0, 0.0, -1.0])), float(even_similarity([1.0, 0.0], [0.0, 1.0]))
    (0.0, 0.5)
    """
    products = kernel_correlation(k1, k2)
    xp = namespace(products)
    doubled = products + xp.flip(products)
    total = xp.sum(doubled * doubled, dtype=doubled.dtype)
    return (xp.astype(total, xp.float64) if is_exact(total) else total) / 4


def window_covariance(x: ArrayLike, kernel_shape: tuple[int, ...], *, padding: Padding = "full") -> AnyArray:
    """Return the covariance of the windows of some inputs that a kernel's taps see, over all inputs and outputs.

    Parameters
    ----------
    x : array of shape (batch, c_in, *image)
    kernel_shape : tuple of int
        The numbers of taps (*kernel).
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)

    Returns
    -------
    array of shape (c_in * taps, c_in * taps)
        S, with which ``K1^T S K2`` is the covariance of the two feature maps, each as one channel of a batch: what
        batch normalisation leaves of their product, before it divides by the deviations.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `x` is no array of finite real numbers of that shape, or the padding is unknown.

    Examples
    --------
    >>> from convla.identities import window_covariance
    >>> window_covariance([[[1.0, -1.0, 1.0, -1.0]]], (2,), padding="valid").round(3)
    array([[ 0.889, -0.889],
           [-0.889,  0.889]])
    """
    xp = namespace(x)
    size = tuple(kernel_shape)
    x = check_array("x", x, xp, ndim=len(size) + 2, axes="(batch, c_in, *image)")
    channels, taps = x.shape[1], math.prod(size)
    units = xp.reshape(xp.eye(channels * taps, dtype=x.dtype), (channels * taps, channels, *size))
    windows = cross_correlate(x, units, padding=padding)
    count = x.shape[0] * math.prod(windows.shape[2:])
    mean = xp.sum(windows, axis=(0, *range(2, windows.ndim))) / count
    second = xp.sum(feature_map_gram(x, size, padding=padding), axis=0) / count
    return second - mean[:, None] * mean[None, :]


def map_correlation(kernels: ArrayLike, covariance: ArrayLike) -> AnyArray:
    """Return the correlations of the feature maps of kernels over a batch: what batch normalisation makes of cosines.

    Parameters
    ----------
    kernels : array of shape (s, c_in, *kernel)
    covariance : array of shape (c_in * taps, c_in * taps)
        `window_covariance` of the inputs.

    Returns
    -------
    array of shape (s, s)

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the arguments are no arrays of finite real numbers of these shapes, or a map does not vary.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.identities import map_correlation
    >>> map_correlation(np.array([[[1.0, 0.0]], [[3.0, 4.0]]]), np.eye(2))
    array([[1. , 0.6],
           [0.6, 1. ]])
    """
    xp = namespace(kernels, covariance)
    kernels = check_array("kernels", kernels, xp, min_ndim=3, axes="(s, c_in, *kernel)")
    covariance = check_array("covariance", covariance, xp, ndim=2, axes="(c_in * taps, c_in * taps)")
    rows = xp.reshape(kernels, (kernels.shape[0], -1))
    if tuple(covariance.shape) != (rows.shape[1], rows.shape[1]):
        wanted = (rows.shape[1], rows.shape[1])
        raise ShapeError(f"covariance must have shape {wanted} to go with kernels, got {tuple(covariance.shape)}")
    products = rows @ covariance @ xp.matrix_transpose(rows)
    variances = xp.linalg.diagonal(products)
    if not bool(xp.all(variances > 0.0)):
        raise ValueError("covariance must give every kernel's map a positive variance")
    deviations = xp.sqrt(variances)
    return products / (deviations[:, None] * deviations[None, :])


def activated_cosine(correlation: ArrayLike, slope: float = 0.0) -> AnyArray:
    """Return the cosine of two jointly normal maps of mean 0 after a leaky ReLU.

    Parameters
    ----------
    correlation : array
        Of the maps before it, in [-1, 1].
    slope : float, default 0.0
        Of the activation left of 0: 0 for ReLU, in [0, 1].

    Returns
    -------
    array of the same shape

    Raises
    ------
    TypeError, ValueError
        If an argument is no finite real number, or out of its range.

    Notes
    -----
    The activation is ``(1 + a)/2 z + (1 - a)/2 |z|``, and the two parts do not correlate. The cosine increases with the
    correlation and is convex: so over S maps the mean over pairs is at least its value at ``-1 / (S - 1)``, the least
    mean correlation.

    References
    ----------
    Y. Cho and L. K. Saul, Kernel Methods for Deep Learning, NIPS 2009, Eq. (6), for ReLU.

    Examples
    --------
    >>> from convla.identities import activated_cosine
    >>> [round(float(activated_cosine(r, 0.2)), 4) for r in (-1.0, 0.0, 0.5, 1.0)]
    [-0.3846, 0.1959, 0.5671, 1.0]
    """
    xp = namespace(correlation)
    r = check_array("correlation", correlation, xp)
    a = check_real("slope", slope, minimum=0.0)
    if a > 1.0:
        raise ValueError(f"slope must be at most 1, got {slope}")
    if not bool(xp.all(xp.abs(r) <= 1.0)):
        raise ValueError("correlation must lie in [-1, 1]")
    odd, even = (1.0 + a) ** 2 / 4.0, (1.0 - a) ** 2 / 4.0
    moduli = (xp.sqrt((1.0 - r) * (1.0 + r)) + r * xp.asin(r)) * (2.0 / math.pi)
    return (odd * r + even * moduli) / (odd + even)
