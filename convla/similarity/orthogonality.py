"""What convolutional similarity is compared with: four measures of how far a layer's kernels are from orthogonal.

With W the kernels reshaped to rows, (c_out, c_in * taps), three of them look at W W^T alone, at kernels that meet
without a shift; the OCNN residual looks at all shifts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import array_api_extra as xpx
import numpy as np

from convla._array import accumulation_dtype, is_exact, is_numpy, namespace
from convla._products import product
from convla._threads import blas_on_one_thread
from convla._validate import check_array, check_integer, check_per_axis
from convla.errors import ShapeError
from convla.similarity.residuals import correlation_residual, gram_residual, residual_times
from convla.similarity.scaling import power_of, times_power
from convla.typing import AnyArray, Array, ArrayLike, Namespace

__all__ = [
    "kernel_orthogonality",
    "kernel_orthogonality_and_gradient",
    "kernel_orthogonality_gradient",
    "mutual_coherence",
    "mutual_coherence_gradient",
    "ocnn_residual",
    "ocnn_residual_and_gradient",
    "ocnn_residual_gradient",
    "spectral_isometry",
    "spectral_isometry_gradient",
]


_CANCELS = 0.125
"""Of the identity, in Frobenius' norm: a residual that is smaller has lost digits of the Gram matrix."""


def kernel_orthogonality(kernels: ArrayLike, *, groups: int = 1) -> AnyArray:
    """Return the squared Frobenius norm of W W^T - I, W the kernels reshaped to rows.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in // groups, *kernel)
        One to three kernel axes; float32 or float64, integers become float64.
    groups : int, default 1
        The layer's. Kernels of different groups read different channels and are orthogonal as they are, so that the
        groups' values add up.

    Returns
    -------
    array of shape ()
        Of the kernels' dtype; the sums that cancel are kept in float64.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernels` is no array of finite real numbers of that shape, or the groups do not divide c_out.

    Notes
    -----
    It cannot be 0 where c_out > c_in * taps; the least value is then c_out - c_in * taps, in each group, and what is
    above it is the squared norm of W^T W - I, by which it is computed: the smaller Gram matrix is the one formed.

    References
    ----------
    D. Xie, J. Xiong and S. Pu, All You Need is Beyond a Good Init, CVPR 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import kernel_orthogonality
    >>> round(float(kernel_orthogonality(np.array([[[0.6, 0.8]], [[0.8, -0.6]]]))), 12)
    0.0
    """
    return _orthogonality(kernels, groups, gradient=False)[0]


def kernel_orthogonality_gradient(kernels: ArrayLike, *, groups: int = 1) -> AnyArray:
    """Return the gradient of `kernel_orthogonality`, 4 (W W^T - I) W in the kernels' shape and dtype.

    Parameters and errors are those of `kernel_orthogonality`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import kernel_orthogonality_gradient
    >>> kernel_orthogonality_gradient(np.array([[[1.0, 1.0]]]))
    array([[[4., 4.]]])
    """
    return kernel_orthogonality_and_gradient(kernels, groups=groups)[1]


def kernel_orthogonality_and_gradient(kernels: ArrayLike, *, groups: int = 1) -> tuple[AnyArray, AnyArray]:
    """Return `kernel_orthogonality` and its gradient, which share the Gram matrix.

    Parameters and errors are those of `kernel_orthogonality`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import kernel_orthogonality_and_gradient
    >>> value, gradient = kernel_orthogonality_and_gradient(np.array([[[1.0, 1.0]]]))
    >>> float(value), gradient
    (1.0, array([[[4., 4.]]]))
    """
    return _orthogonality(kernels, groups, gradient=True)


def ocnn_residual(kernels: ArrayLike, *, stride: int | Sequence[int] = 1, groups: int = 1) -> AnyArray:
    """Return the squared norm by which correlating the kernels with themselves misses the identity (OCNN).

    With Z[i, j] the full cross-correlation of K_i and K_j, summed over their channels of equal index and taken at the
    lags that are multiples of the stride, it is the sum of squares of Z - D, D[i, i] a 1 at lag 0 and D else 0. It is 0
    exactly where the rows of the layer's matrix are orthonormal, for circular or large enough zero padding.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in // groups, *kernel)
        One to three kernel axes; float32 or float64, integers become float64.
    stride : int or sequence of int, default 1
        The layer's stride, one for all axes or one for each.
    groups : int, default 1
        The layer's. Kernels of different groups read different channels and do not correlate; the groups' values add
        up.

    Returns
    -------
    array of shape ()
        Of the kernels' dtype; sums over lags, or frequencies, and filters are kept in float64, for kernels of 20 taps
        or more all sums.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernels` is no array of finite real numbers of that shape, a stride is no positive integer, or the groups do
        not divide c_out.

    Notes
    -----
    Z at lag -t is the transpose of Z at lag t, so half of the lags are formed, each by one matrix product: c_out^2 c_in
    times half of taps^2 operations at stride 1, with filters and channels exchanged where there are fewer channels.
    Where that is less work, as for 3x3 taps at stride 1, the sum is taken over the frequencies of a transform instead.
    Sums of squares are added up in both: a value near its least is as accurate as the residual Z - D, whose error is a
    few roundings times the kernels' energies.

    References
    ----------
    J. Wang, Y. Chen, R. Chakraborty and S. X. Yu, Orthogonal Convolutional Neural Networks, CVPR 2020.

    Examples
    --------
    Two kernels that are orthonormal where they meet without a shift, and not one tap further:

    >>> import numpy as np
    >>> from convla.similarity.orthogonality import ocnn_residual
    >>> kernels = np.array([[[0.6, 0.8]], [[0.8, -0.6]]])
    >>> round(float(ocnn_residual(kernels)), 12), round(float(ocnn_residual(kernels, stride=2)), 12)
    (2.0, 0.0)
    """
    return _ocnn(kernels, stride, groups, gradient=False)[0]


def ocnn_residual_gradient(kernels: ArrayLike, *, stride: int | Sequence[int] = 1, groups: int = 1) -> AnyArray:
    """Return the gradient of `ocnn_residual`, of the kernels' shape and dtype.

    Parameters and errors are those of `ocnn_residual`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import ocnn_residual_gradient
    >>> ocnn_residual_gradient(np.array([[[1.0, 1.0]]]))
    array([[[8., 8.]]])
    """
    return ocnn_residual_and_gradient(kernels, stride=stride, groups=groups)[1]


def ocnn_residual_and_gradient(
    kernels: ArrayLike, *, stride: int | Sequence[int] = 1, groups: int = 1
) -> tuple[AnyArray, AnyArray]:
    """Return `ocnn_residual` and its gradient, which share the correlations.

    Parameters and errors are those of `ocnn_residual`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import ocnn_residual_and_gradient
    >>> value, gradient = ocnn_residual_and_gradient(np.array([[[1.0, 1.0]]]))
    >>> float(value), gradient
    (3.0, array([[[8., 8.]]]))
    """
    return _ocnn(kernels, stride, groups, gradient=True)


@blas_on_one_thread()
def spectral_isometry(kernels: ArrayLike) -> AnyArray:
    """Return the spectral norm of W W^T - I, W the kernels reshaped to rows (the SRIP penalty).

    Parameters
    ----------
    kernels : array of shape (c_out, c_in, *kernel)
        One to three kernel axes; float32 or float64, integers become float64.

    Returns
    -------
    array of shape ()
        The largest abs(s^2 - 1) over the singular values s of W, those 0 where c_out > c_in * taps among them, by a
        full eigenvalue decomposition in float64, in the kernels' dtype.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernels` is no array of finite real numbers of that shape.

    References
    ----------
    N. Bansal, X. Chen and Z. Wang, Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?, NeurIPS
    2018.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import spectral_isometry
    >>> round(float(spectral_isometry(np.array([[[2.0, 0.0]], [[0.0, 1.0]]]))), 12)
    3.0
    """
    with np.errstate(over="ignore"):
        rows, power, kernels, xp = _scaled_rows(kernels)
        residual, missing = gram_residual(rows, _unit(power), xp)
        worst = xp.max(xp.abs(xp.linalg.eigvalsh(residual)))
        if missing:
            worst = xp.where(worst < _unit(power), xp.ones_like(worst) * _unit(power), worst)
        return xp.astype(times_power(worst, 2 * power, xp), kernels.dtype)


@blas_on_one_thread()
def spectral_isometry_gradient(kernels: ArrayLike) -> AnyArray:
    """Return a subgradient of `spectral_isometry`, of the kernels' shape and dtype.

    It is 2 sign(e) v v^T W for an eigenvalue e of W W^T - I of largest modulus and its unit eigenvector v: the gradient
    where that eigenvalue is simple and the only one of its modulus, one of many subgradients elsewhere.

    Parameters and errors are those of `spectral_isometry`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import spectral_isometry_gradient
    >>> spectral_isometry_gradient(np.array([[[2.0, 0.0]], [[0.0, 1.0]]]))
    array([[[4., 0.]],
    <BLANKLINE>
           [[0., 0.]]])
    """
    with np.errstate(over="ignore"):
        rows, power, kernels, xp = _scaled_rows(kernels)
        residual, missing = gram_residual(rows, _unit(power), xp)
        values, vectors = xp.linalg.eigh(residual)
        worst = int(xp.argmax(xp.abs(values)))
        if missing and bool(xp.abs(values[worst]) < _unit(power)):
            return xp.zeros_like(kernels)  # at an eigenvector with W^T v = 0
        vector = vectors[:, worst : worst + 1]
        slope = residual_times(vector @ xp.matrix_transpose(vector), rows)
        return _like(times_power(2.0 * xp.sign(values[worst]) * slope, power, xp), kernels, xp)


def mutual_coherence(kernels: ArrayLike) -> AnyArray:
    """Return the largest modulus of the cosine between two different kernels.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in, *kernel)
        At least two kernels that are not 0; float32 or float64, integers become float64.

    Returns
    -------
    array of shape ()
        Of the kernels' dtype; the sums are kept in float64.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernels` is no array of finite real numbers of that shape, has one kernel only, or a kernel is 0.

    References
    ----------
    D. L. Donoho and X. Huo, Uncertainty Principles and Ideal Atomic Decomposition, IEEE Trans. Inf. Theory 47 (2001).

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import mutual_coherence
    >>> round(float(mutual_coherence(np.array([[[1.0, 0.0]], [[3.0, 4.0]]]))), 12)
    0.6
    """
    _, _, cosine, _, kernels, xp = _most_coherent(kernels)
    return xp.astype(xp.abs(cosine), kernels.dtype)


def mutual_coherence_gradient(kernels: ArrayLike) -> AnyArray:
    """Return a subgradient of `mutual_coherence`, of the kernels' shape and dtype.

    It is the gradient of abs(cos) of the pair that attains the maximum, 0 for all other kernels; where several pairs
    attain it, of the first of them. At orthogonal kernels, where abs(cos) is not differentiable, it is 0.

    Parameters and errors are those of `mutual_coherence`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.similarity.orthogonality import mutual_coherence_gradient
    >>> mutual_coherence_gradient(np.array([[[1.0, 0.0]], [[3.0, 4.0]]])).round(6)
    array([[[ 0.   ,  0.8  ]],
    <BLANKLINE>
           [[ 0.128, -0.096]]])
    """
    i, j, cosine, (norms, units), kernels, xp = _most_coherent(kernels)
    gradient = xp.zeros_like(units)
    sign = xp.sign(cosine)
    for here, there in ((i, j), (j, i)):
        slope = sign * (units[there, :] - cosine * units[here, :]) / norms[here, 0]
        gradient = xpx.at(gradient)[here, :].set(slope)
    return _like(gradient, kernels, xp)


@blas_on_one_thread()
def _orthogonality(kernels: ArrayLike, groups: int, *, gradient: bool) -> tuple[Array, Array]:
    """Return the value and, where asked for, the gradient (else a dummy) of `kernel_orthogonality`."""
    with np.errstate(over="ignore"):
        kernels, xp = _check(kernels)
        scaled, power = _scaled(kernels, xp)
        blocks = _blocks(xp.reshape(scaled, (scaled.shape[0], -1)), groups, xp)
        residual, missing, value = _gram_residual(blocks, _unit(power), xp)
        value = value + blocks.shape[0] * missing * _unit(power) ** 2
        value = xp.astype(times_power(value, 4 * power, xp), kernels.dtype)
        if not gradient:
            return value, value
        # Only the residual cancels: what it is multiplied by is as accurate in the kernels' dtype, at half the cost.
        slope = 4.0 * residual_times(xp.astype(residual, kernels.dtype, copy=False), blocks)
        return value, _like(times_power(slope, 3 * power, xp), kernels, xp)


def _gram_residual(blocks: Array, unit: float, xp: Namespace) -> tuple[Array, int, Array]:
    """Return what `gram_residual` does, and the residual's sum of squares in float64.

    In host memory float32 is enough for a residual that is not small beside the Gram matrix; what cancels is formed in
    float64.
    """
    wide = accumulation_dtype(blocks, xp)
    for dtype in (blocks.dtype, wide) if is_numpy(blocks) else (wide,):
        residual, missing = gram_residual(xp.astype(blocks, dtype, copy=False), unit, xp)
        square = xp.sum(residual * residual, dtype=wide)
        if dtype == wide or float(square) >= _CANCELS**2 * unit**2 * math.prod(residual.shape[:-1]):
            break
    return residual, missing, square


@blas_on_one_thread()
def _ocnn(kernels: ArrayLike, stride: int | Sequence[int], groups: int, *, gradient: bool) -> tuple[Array, Array]:
    """Return the value and, where asked for, the gradient (else a dummy) of `ocnn_residual`."""
    with np.errstate(over="ignore"):
        kernels, xp = _check(kernels)
        scaled, power = _scaled(kernels, xp)
        strides = check_per_axis("stride", stride, kernels.ndim - 2)
        value, slope = correlation_residual(_blocks(scaled, groups, xp), strides, _unit(power), xp, gradient=gradient)
        value = xp.astype(times_power(value, 4 * power, xp), kernels.dtype)
        return value, _like(times_power(slope, 3 * power, xp), kernels, xp)


def _check(kernels: ArrayLike) -> tuple[Array, Namespace]:
    """Return the kernels as a floating-point array, and their namespace."""
    xp = namespace(kernels)
    kernels = check_array("kernels", kernels, xp, min_ndim=3, axes="(c_out, c_in, *kernel)")
    if kernels.ndim > 5:
        raise ShapeError(f"kernels must have 1 to 3 axes after its channels, got shape {tuple(kernels.shape)}")
    if is_exact(kernels):
        kernels = xp.astype(kernels, xp.float64)
    if kernels.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"kernels must be float32, float64 or integers, got dtype {kernels.dtype}")
    return kernels, xp


def _rows(kernels: Array, xp: Namespace) -> Array:
    """Return the kernels as rows in float64."""
    rows = xp.reshape(kernels, (kernels.shape[0], -1))
    return xp.astype(rows, accumulation_dtype(kernels, xp), copy=False)


def _scaled(kernels: Array, xp: Namespace) -> tuple[Array, int]:
    """Return kernels whose fourth powers stay in their dtype, and the power of two that was split off."""
    power = power_of(kernels, xp)
    if power <= (16 if kernels.dtype == xp.float32 else 128):
        return kernels, 0
    return times_power(kernels, -power, xp), power


def _scaled_rows(kernels: ArrayLike) -> tuple[Array, int, Array, Namespace]:
    """Return the scaled kernels as rows in float64 and their power of two; the kernels and their namespace."""
    kernels, xp = _check(kernels)
    rows, power = _scaled(_rows(kernels, xp), xp)
    return rows, power, kernels, xp


def _unit(power: int) -> float:
    """Return what is 1 for the kernels' squares, for those of the scaled kernels."""
    return 2.0 ** (-2 * power)


def _blocks(kernels: Array, groups: int, xp: Namespace) -> Array:
    """Return kernels (c_out, ...) as (groups, c_out // groups, ...)."""
    groups = check_integer("groups", groups, minimum=1)
    shape = tuple(kernels.shape)
    if shape[0] % groups:
        raise ShapeError(f"groups must divide the number of kernels {shape[0]}, got {groups}")
    return xp.reshape(kernels, (groups, shape[0] // groups, *shape[1:]))


def _like(rows: Array, kernels: Array, xp: Namespace) -> Array:
    return xp.astype(xp.reshape(rows, tuple(kernels.shape)), kernels.dtype, copy=False)


@blas_on_one_thread()
def _most_coherent(kernels: ArrayLike) -> tuple[int, int, Array, tuple[Array, Array], Array, Namespace]:
    """Return the first pair of largest abs(cosine), that cosine, and the norms and unit rows."""
    kernels, xp = _check(kernels)
    rows = _rows(kernels, xp)
    count = rows.shape[0]
    if count < 2:
        raise ShapeError(f"mutual coherence needs at least two kernels, got shape {tuple(kernels.shape)}")
    # Divided by their largest entries first, so that no square leaves the range of float64.
    largest = xp.max(xp.abs(rows), axis=1, keepdims=True)
    if bool(xp.any(largest == 0)):
        zero = int(xp.argmin(xp.reshape(largest, (-1,))))
        raise ValueError(f"mutual coherence needs kernels that are not 0, got kernels[{zero}] = 0")
    rows = rows / largest
    norms = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    units = rows / norms
    cosines = xp.triu(product(units, xp.matrix_transpose(units)), k=1)
    i, j = divmod(int(xp.argmax(xp.reshape(xp.abs(cosines), (-1,)))), count)
    if i == j:  # every cosine is 0
        i, j = 0, 1
    return i, j, cosines[i, j], (norms * largest, units), kernels, xp
