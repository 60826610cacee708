"""Kernels whose matrices are products and transposes of another's, and the penalty as a function of a plain matrix."""

from __future__ import annotations

import math

from convla._array import as_float_array, device_of, namespace
from convla._checks import check_kernel
from convla._validate import check_array, check_real
from convla.conv import flip_kernel
from convla.identities.inner_products import kernel_correlation
from convla.typing import AnyArray, ArrayLike

__all__ = [
    "adjoint_kernel",
    "gram_kernel",
    "penalty_matrix_gradient",
    "penalty_of_singular_values",
    "scaled_penalty_minimum",
    "singular_value_enclosure",
    "singular_value_gradient",
]


def adjoint_kernel(kernel: ArrayLike) -> AnyArray:
    """Return the kernel with channels swapped and taps flipped: its matrix is the transpose of the kernel's.

    With low and high padding of each axis exchanged for N - 1 less them; so "full" and "valid" change places, and
    "same" stays "same" for odd N.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in, *kernel)

    Returns
    -------
    array of shape (c_in, c_out, *kernel)

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernel` is no array of finite real numbers of that shape.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.identities import adjoint_kernel
    >>> kernel = np.array([[[1, 2, 3]], [[4, 5, 6]]])
    >>> transpose = ConvOperator(adjoint_kernel(kernel), (4,)).to_dense()
    >>> bool((transpose == ConvOperator(kernel, (4,)).to_dense().T).all())
    True
    """
    xp = namespace(kernel)
    kernel = check_kernel(kernel, xp)
    return flip_kernel(xp.permute_dims(kernel, (1, 0, *range(2, kernel.ndim))))


def gram_kernel(kernel: ArrayLike) -> AnyArray:
    """Return the kernel whose matrix, "same" padded, is M^T M for the fully padded matrix M of `kernel`.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in, *kernel)

    Returns
    -------
    array of shape (c_in, c_in, *lags)
        The autocorrelation ``sum over o, n of K[o, c, n] K[o, d, n + t]``, at lags from 1-N to N-1.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernel` is no array of finite real numbers of that shape.

    Examples
    --------
    >>> from convla.identities import gram_kernel
    >>> gram_kernel([[[1, 2, 3]]])
    array([[[ 3,  8, 14,  8,  3]]])
    """
    xp = namespace(kernel)
    kernel = check_kernel(kernel, xp)
    own = [
        kernel_correlation(filter_[None, ...], filter_[None, ...], stacks=True)[0, 0, ...]
        for filter_ in xp.unstack(kernel)
    ]
    return sum(own[1:], start=own[0])


def penalty_of_singular_values(values: ArrayLike, alpha: float, columns: int) -> float:
    """Return sigma_max(M^T M - alpha I) from the singular values of M.

    Parameters
    ----------
    values : array of shape (min(m, n),)
        The singular values of an m x n matrix M.
    alpha : float
        Positive.
    columns : int
        n: where it is larger than m, M^T M has the eigenvalue 0 as well.

    Returns
    -------
    float

    References
    ----------
    RCK, the proof of Theorem 2.1.

    Examples
    --------
    >>> from convla.identities import penalty_of_singular_values
    >>> penalty_of_singular_values([1.5, 1.0], 1.0, 2), penalty_of_singular_values([1.5, 1.0], 2.0, 3)
    (1.25, 2.0)
    """
    xp = namespace(values)
    values = check_array("values", values, xp, ndim=1)
    squares = [float(value) ** 2 for value in xp.unstack(values)] + [0.0] * (columns > values.shape[0])
    return max(abs(square - check_real("alpha", alpha, positive=True)) for square in squares)


def singular_value_enclosure(alpha: float, t: float) -> tuple[float, float, float]:
    """Return what R_alpha < t alpha implies: bounds of sigma_min, of sigma_max, and of the condition number.

    Parameters
    ----------
    alpha : float
        Positive.
    t : float
        In (0, 1]. At 1 nothing is known of sigma_min, and the last bound is infinite.

    Returns
    -------
    lower, upper, condition : float
        ``sqrt((1-t) alpha) < sigma_min``, ``sigma_max < sqrt((1+t) alpha)``, ``kappa < sqrt((1+t)/(1-t))``.

    References
    ----------
    RCK, Theorem 2.1.

    Examples
    --------
    >>> from convla.identities import singular_value_enclosure
    >>> singular_value_enclosure(1.0, 0.5625)[:2]
    (0.6614378277661477, 1.25)
    """
    alpha, t = check_real("alpha", alpha, positive=True), check_real("t", t, positive=True, maximum=1.0)
    condition = math.sqrt((1 + t) / (1 - t)) if t < 1 else math.inf
    return math.sqrt((1 - t) * alpha), math.sqrt((1 + t) * alpha), condition


def scaled_penalty_minimum(condition: float, alpha: float) -> float:
    """Return the least R_alpha of all multiples of a matrix with at least as many rows as columns.

    Parameters
    ----------
    condition : float
        Its condition number kappa, at least 1.
    alpha : float
        Positive.

    Returns
    -------
    float
        ``alpha (kappa^2 - 1) / (kappa^2 + 1)``, attained where sigma_max^2 - alpha = alpha - sigma_min^2.

    Examples
    --------
    >>> from convla.identities import scaled_penalty_minimum
    >>> scaled_penalty_minimum(3.0, 1.0)
    0.8
    """
    square = check_real("condition", condition, minimum=1.0) ** 2
    return check_real("alpha", alpha, positive=True) * (square - 1) / (square + 1)


def singular_value_gradient(matrix: ArrayLike, index: int = 0) -> AnyArray:
    """Return the derivative of a simple singular value by every entry of the matrix: u v^T.

    Parameters
    ----------
    matrix : array of shape (m, n)
    index : int, default 0
        Which singular value, the largest first.

    Returns
    -------
    array of shape (m, n)

    References
    ----------
    RCK, Lemma 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.identities import singular_value_gradient
    >>> abs(singular_value_gradient(np.diag([2.0, 1.0]))).round(12)
    array([[1., 0.],
           [0., 0.]])
    """
    xp = namespace(matrix)
    left, _, right = xp.linalg.svd(as_float_array(check_array("matrix", matrix, xp, ndim=2), xp), full_matrices=False)
    return left[:, index, None] * right[index, :]


def penalty_matrix_gradient(matrix: ArrayLike, alpha: float) -> AnyArray:
    """Return the derivative of sigma_max(M^T M - alpha I) by every entry of M, where that value is simple.

    Parameters
    ----------
    matrix : array of shape (m, n)
    alpha : float
        Positive.

    Returns
    -------
    array of shape (m, n)
        ``(M u) v^T + (M v) u^T`` with the left and right singular vectors of M^T M - alpha I.

    References
    ----------
    RCK, Lemma 2.2, Eq. (2.2).

    Examples
    --------
    >>> import numpy as np
    >>> from convla.identities import penalty_matrix_gradient
    >>> penalty_matrix_gradient(np.diag([2.0, 1.0]), 1.0)
    array([[4., 0.],
           [0., 0.]])
    """
    xp = namespace(matrix)
    matrix = xp.astype(check_array("matrix", matrix, xp, ndim=2), xp.float64)
    unit = xp.eye(matrix.shape[1], dtype=xp.float64, device=device_of(matrix))
    gram = xp.matrix_transpose(matrix) @ matrix - check_real("alpha", alpha, positive=True) * unit
    left, _, right = xp.linalg.svd(gram)
    u, v = left[:, 0], right[0, :]
    return (matrix @ u)[:, None] * v + (matrix @ v)[:, None] * u
