"""The inner product of two feature maps, read off the input and off its autocorrelation, and what padding changes.

All functions take two kernels of shape (*kernel) and an input of shape (*image) with one to three axes. With
``stacks=True`` they take stacks of kernels (s1, c_in, *kernel) and (s2, c_in, *kernel) and inputs (..., c_in, *image),
and return (..., s1, s2): the value for every pair of kernels. All are polynomials in their arguments, so exact inputs
give exact values.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

from convla._array import namespace
from convla._boundary import extend
from convla._validate import check_array, check_choice
from convla.conv import convolve, cross_correlate
from convla.errors import ShapeError
from convla.geometry import ConvGeometry
from convla.similarity.pairs import feature_map_gram
from convla.typing import AnyArray, Array, ArrayLike, Namespace, Padding

__all__ = [
    "autocorrelation",
    "correlation_inner_product",
    "feature_inner_product",
    "input_energy",
    "kernel_correlation",
    "off_centre_inner_product",
    "padding_error_energy",
    "padding_error_terms",
]


def kernel_correlation(k1: ArrayLike, k2: ArrayLike, *, stacks: bool = False) -> AnyArray:
    """Return the full cross-correlation of two kernels, at every lag from 1-N to N-1 along each axis.

    Parameters
    ----------
    k1, k2 : array of shape (*kernel), or (s1, c_in, *kernel) and (s2, c_in, *kernel) with `stacks`

    Returns
    -------
    array of shape (*lags), or (s1, s2, c_in, c_in, *lags) with `stacks`
        ``(K1 (x) K2)[t] = sum over n of K1[n] K2[n + t]``; entry ``t + N - 1`` along each axis holds lag t.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the arguments are no arrays of finite real numbers of these shapes.

    References
    ----------
    CSM, Eqs. (13), (15).

    Examples
    --------
    >>> from convla.identities import kernel_correlation
    >>> kernel_correlation([1, 2], [3, -1])
    array([ 6,  1, -1])
    """
    xp = namespace(k1, k2)
    k1, k2 = _kernels(k1, k2, stacks, xp)
    (s1, channels, *size), s2 = k1.shape, k2.shape[0]
    # As an image K2 is read at n + t, as a kernel K1 at n: the roles of X and K in CSM Eq. (3).
    images, kernels = (xp.reshape(k, (-1, 1, *size)) for k in (k2, k1))
    products = cross_correlate(images, kernels, padding="full")
    lags = tuple(products.shape[2:])
    products = xp.reshape(products, (s2, channels, s1, channels, *lags))
    products = xp.permute_dims(products, (2, 0, 3, 1, *range(4, 4 + len(lags))))
    return products if stacks else products[0, 0, 0, 0, ...]


def autocorrelation(x: ArrayLike, reach: tuple[int, ...], *, channels: bool = False) -> AnyArray:
    """Return the autocorrelation of an input, clipped to the lags from -reach to reach along each axis.

    Parameters
    ----------
    x : array of shape (*image), or (..., c_in, *image) with `channels`
    reach : tuple of int
        The largest lag along each axis; N - 1 for a kernel of N taps.

    Returns
    -------
    array of shape (*lags), or (..., c_in, c_in, *lags) with `channels`
        ``(X (x) X)[t] = sum over p of X[p] X[p + t]``, for every pair of channels.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `x` is no array of finite real numbers with len(reach) image axes, or a reach is negative.

    References
    ----------
    CSM, Eqs. (6), (14).

    Examples
    --------
    >>> from convla.identities import autocorrelation
    >>> autocorrelation([1, 2, 4], (1,))
    array([10, 21, 10])
    """
    xp = namespace(x)
    ndim = len(reach)
    x = check_array("x", x, xp, min_ndim=ndim + channels, axes=f"(*image) with {ndim} image axes")
    if not channels:
        x = x[None, ...]
    split = x.ndim - ndim
    batch, size = tuple(x.shape[: split - 1]), tuple(x.shape[split:])
    window = (1, x.shape[split - 1], *(2 * r + 1 for r in reach))
    geometry = ConvGeometry(window, size, padding=[(r, r) for r in reach])
    extended = extend(x, geometry, xp)
    rows = xp.reshape(x, (*batch, -1, math.prod(size)))
    shifted = (xp.reshape(extended[(..., *place)], (*batch, -1, math.prod(size))) for _, place in geometry.windows())
    lags = xp.stack([rows @ xp.matrix_transpose(other) for other in shifted], axis=-1)
    lags = xp.reshape(lags, (*lags.shape[:-1], *window[2:]))
    return lags if channels else lags[0, 0, ...]


def feature_inner_product(
    k1: ArrayLike,
    k2: ArrayLike,
    x: ArrayLike,
    *,
    padding: Padding = "full",
    operation: Literal["cross-correlation", "convolution"] = "cross-correlation",
    stacks: bool = False,
) -> AnyArray:
    """Return <F1, F2> of the feature maps of two kernels, from the feature maps themselves.

    Parameters
    ----------
    k1, k2, x
        Two kernels and an input; see the module.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)
        An integer is CSM's P.
    operation : {"cross-correlation", "convolution"}

    Returns
    -------
    array of shape (), or (..., s1, s2) with `stacks`

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the arguments are no arrays of finite real numbers of these shapes, or an option is unknown.

    References
    ----------
    CSM, Eqs. (7), (21), (28).

    Examples
    --------
    >>> from convla.identities import feature_inner_product
    >>> int(feature_inner_product([1, 1], [1, -1], [1, 2, 4], padding="valid"))
    -15
    """
    xp = namespace(k1, k2, x)
    k1, k2 = _kernels(k1, k2, stacks, xp)
    x = _input(x, k1, stacks, xp)
    check_choice("operation", operation, ("cross-correlation", "convolution"))
    layer = convolve if operation == "convolution" else cross_correlate
    f1, f2 = (layer(x, k, padding=padding) for k in (k1, k2))
    rows1, rows2 = (xp.reshape(f, (*f.shape[: x.ndim - k1.ndim + 2], -1)) for f in (f1, f2))
    return _scalar(rows1 @ xp.matrix_transpose(rows2), stacks)


def correlation_inner_product(k1: ArrayLike, k2: ArrayLike, x: ArrayLike, *, stacks: bool = False) -> AnyArray:
    """Return <K1 (x) K2, (X (x) X)[1-N, N-1]>: the inner product of the fully padded feature maps, without them.

    Parameters
    ----------
    k1, k2, x
        Two kernels and an input; see the module. With channels it is the sum over all pairs of channels c, d of
        ``<K1[c] (x) K2[d], X[c] (x) X[d]>``.

    Returns
    -------
    array of shape (), or (..., s1, s2) with `stacks`

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the arguments are no arrays of finite real numbers of these shapes.

    References
    ----------
    CSM, Eqs. (6), (13), (14).

    Examples
    --------
    >>> from convla.identities import correlation_inner_product
    >>> int(correlation_inner_product([1, 2], [3, -1], [1, 2, 4]))
    71
    """
    return _lag_sum(k1, k2, x, stacks, skip_centre=False)


def off_centre_inner_product(k1: ArrayLike, k2: ArrayLike, x: ArrayLike, *, stacks: bool = False) -> AnyArray:
    """Return the part of `correlation_inner_product` from lags other than 0: what orthogonal kernels leave of <F1, F2>.

    Parameters, result and errors are those of `correlation_inner_product`.

    References
    ----------
    CSM, Eq. (23).

    Examples
    --------
    >>> from convla.identities import correlation_inner_product, off_centre_inner_product
    >>> k1, k2, x = [1, 2, 3], [3, 0, -1], [1, 2, 4, 8]
    >>> int(off_centre_inner_product(k1, k2, x)), int(correlation_inner_product(k1, k2, x))
    (328, 328)
    """
    return _lag_sum(k1, k2, x, stacks, skip_centre=True)


def input_energy(x: ArrayLike, reach: tuple[int, ...], *, channels: bool = False) -> AnyArray:
    """Return the squared norm of the clipped autocorrelation of an input.

    By Cauchy and Schwarz ``<F1, F2>^2 <= CS(K1, K2) * input_energy``: the factor of the bound that no kernel changes.
    Parameters and errors are those of `autocorrelation`; the sum runs over all pairs of channels.

    Returns
    -------
    array of shape (), or (...,) with `channels`

    Examples
    --------
    >>> from convla.identities import input_energy
    >>> int(input_energy([1, 2, 4], (1,)))
    641
    """
    lags = autocorrelation(x, reach, channels=channels)
    xp = namespace(lags)
    axes = tuple(range(-len(reach) - 2 * channels, 0))
    return xp.sum(lags * lags, axis=axes, dtype=lags.dtype)


def padding_error_terms(
    k1: ArrayLike, k2: ArrayLike, x: ArrayLike, padding: Padding, *, stacks: bool = False
) -> tuple[AnyArray, AnyArray]:
    """Return A and B: what the fully padded <F1, F2> has from output positions that a smaller padding leaves out.

    So ``<F1, F2>`` with this padding is `correlation_inner_product` minus A minus B.

    Parameters
    ----------
    k1, k2, x
        Two kernels and an input; see the module.
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)
        An integer is CSM's P. Padding beyond N - 1 adds outputs that are zero, and leaves A = B = 0.

    Returns
    -------
    A, B : array of shape (), or (..., s1, s2) with `stacks`
        A is the part from positions below the kept range, B from those above it, along the first axis on which a
        position lies outside.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the arguments are no arrays of finite real numbers of these shapes, or the padding is unknown.

    References
    ----------
    CSM, Eqs. (31), (32), with X[i + n2 - n1] where X[i + n2 - n2] is printed.

    Examples
    --------
    >>> from convla.identities import correlation_inner_product, feature_inner_product, padding_error_terms
    >>> k1, k2, x = [1, 1], [1, -1], [1, 2, 4]
    >>> a, b = padding_error_terms(k1, k2, x, "valid")
    >>> int(a), int(b)
    (-1, 16)
    >>> int(correlation_inner_product(k1, k2, x) - a - b), int(feature_inner_product(k1, k2, x, padding="valid"))
    (-15, -15)
    """
    xp = namespace(k1, k2, x)
    k1, k2 = _kernels(k1, k2, stacks, xp)
    x = _input(x, k1, stacks, xp)
    size, image = tuple(k1.shape[2:]), tuple(x.shape[x.ndim - k1.ndim + 2 :])
    full = ConvGeometry((1, k1.shape[1], *size), image, padding="full")
    kept = [
        range(n - 1 - low, m + high)
        for n, m, (low, high) in zip(
            size, image, ConvGeometry((1, 1, *size), image, padding=padding).padding, strict=True
        )
    ]
    windows = xp.stack([extend(x, full, xp)[(..., *place)] for _, place in full.windows()], axis=x.ndim - k1.ndim + 2)
    windows = xp.reshape(windows, (*x.shape[: x.ndim - k1.ndim + 1], -1, *full.output_shape))
    rows1, rows2 = (xp.reshape(k, (k.shape[0], -1)) for k in (k1, k2))
    a, b = (
        _scalar(rows1 @ _gram_outside(windows, kept, side, xp) @ xp.matrix_transpose(rows2), stacks)
        for side in ("low", "high")
    )
    return a, b


def padding_error_energy(
    x: ArrayLike, kernel_shape: tuple[int, ...], padding: Padding, *, channels: bool = False
) -> tuple[AnyArray, AnyArray]:
    """Return the mean squares of A + B and of the fully padded <F1, F2> over random kernels, for a given input.

    The kernels are independent of each other, their entries uncorrelated, of mean 0 and variance 1; with variance s^2
    both values are s^4 times these, and the root of their quotient is the size of A + B relative to the whole.

    Parameters
    ----------
    x : array of shape (*image), or (..., c_in, *image) with `channels`
    kernel_shape : tuple of int
        The numbers of taps (*kernel).
    padding : {"full", "same", "valid"}, int, or sequence of (int, int)
        An integer is CSM's P.

    Returns
    -------
    left_out, whole : array of shape (), or (...,) with `channels`

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `x` is no array of finite real numbers with these axes, or the padding is unknown.

    Notes
    -----
    ``A + B = K1^T G K2`` with G the Gram matrix of the input's windows at the outputs that the padding leaves out, so
    its mean square is the squared Frobenius norm of G. With more padding G loses positive semidefinite terms, and its
    norm falls: for every input.

    References
    ----------
    CSM, Eqs. (31)-(36).

    Examples
    --------
    >>> from convla.identities import padding_error_energy
    >>> [tuple(map(int, padding_error_energy([1, 2, 4], (2,), p))) for p in (0, 1)]
    [(257, 1082), (0, 1082)]
    """
    xp = namespace(x)
    size = tuple(kernel_shape)
    x = check_array("x", x, xp, min_ndim=len(size) + channels, axes=f"(*image) with {len(size)} image axes")
    if not channels:
        x = x[None, ...]
    whole = feature_map_gram(x, size, padding="full")
    grams = (whole - feature_map_gram(x, size, padding=padding), whole)
    left_out, energy = (xp.sum(gram * gram, axis=(-2, -1), dtype=gram.dtype) for gram in grams)
    return left_out, energy


def _gram_outside(windows: Array, kept: list[range], side: str, xp: Namespace) -> Array:
    """Return the Gram matrix of windows (..., taps, *outputs) over the outputs that leave `kept` on one side first.

    The outputs that leave it first along an axis form a block: kept along the axes before, beyond on this one, any
    along those after.
    """
    gram = xp.zeros((), dtype=windows.dtype)
    for axis, own in enumerate(kept):
        beyond = slice(0, max(own.start, 0)) if side == "low" else slice(own.stop, None)
        before = (slice(max(r.start, 0), r.stop) for r in kept[:axis])
        rows = windows[(..., *before, beyond, *itertools.repeat(slice(None), len(kept) - axis - 1))]
        rows = xp.reshape(rows, (*windows.shape[: windows.ndim - len(kept)], math.prod(rows.shape[-len(kept) :])))
        gram = gram + rows @ xp.matrix_transpose(rows)
    return gram


def _lag_sum(k1: ArrayLike, k2: ArrayLike, x: ArrayLike, stacks: bool, *, skip_centre: bool) -> Array:
    xp = namespace(k1, k2, x)
    k1, k2 = _kernels(k1, k2, stacks, xp)
    x = _input(x, k1, stacks, xp)
    products = kernel_correlation(k1, k2, stacks=True)
    lags = autocorrelation(x, tuple(n - 1 for n in k1.shape[2:]), channels=True)
    channels, taps = k1.shape[1], math.prod(products.shape[4:])
    products = xp.reshape(products, (k1.shape[0], k2.shape[0], channels**2, taps))
    lags = xp.reshape(lags, (*lags.shape[: x.ndim - k1.ndim + 1], channels**2, taps))
    if skip_centre:
        keep = [*range(taps // 2), *range(taps // 2 + 1, taps)]
        if not keep:
            return _scalar(xp.zeros((*lags.shape[:-2], *products.shape[:2]), dtype=lags.dtype), stacks)
        products, lags = products[..., keep], lags[..., keep]
    rows = xp.reshape(products, (k1.shape[0] * k2.shape[0], -1))
    values = xp.reshape(lags, (*lags.shape[:-2], -1)) @ xp.matrix_transpose(rows)
    return _scalar(xp.reshape(values, (*values.shape[:-1], k1.shape[0], k2.shape[0])), stacks)


def _kernels(k1: ArrayLike, k2: ArrayLike, stacks: bool, xp: Namespace) -> tuple[Array, Array]:
    axes = "(s, c_in, *kernel)" if stacks else "(*kernel)"
    k1, k2 = (check_array(name, k, xp, min_ndim=3 if stacks else 1, axes=axes) for name, k in (("k1", k1), ("k2", k2)))
    skip = 1 if stacks else 0
    if k1.shape[skip:] != k2.shape[skip:]:
        raise ShapeError(
            f"k1 and k2 must have the same {axes[4:] if stacks else 'shape'}, got {tuple(k1.shape)} and "
            f"{tuple(k2.shape)}"
        )
    return (k1, k2) if stacks else (k1[None, None, ...], k2[None, None, ...])


def _input(x: ArrayLike, kernels: Array, stacks: bool, xp: Namespace) -> Array:
    x = check_array("x", x, xp)
    if not stacks:
        x = x[None, ...]
    fits = x.ndim == kernels.ndim - 1 if not stacks else x.ndim >= kernels.ndim - 1
    if not fits or x.shape[x.ndim - kernels.ndim + 1] != kernels.shape[1]:
        wanted = f"(..., {kernels.shape[1]}, *image)" if stacks else "(*image)"
        raise ShapeError(
            f"x must have shape {wanted} with {kernels.ndim - 2} image axes, got {tuple(x.shape[not stacks :])}"
        )
    return x


def _scalar(value: Array, stacks: bool) -> Array:
    return value if stacks else value[0, 0]
