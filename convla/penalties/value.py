"""The penalty sigma_max(M^T M - alpha I) on the singular values of a convolution, and its gradient in the kernel.

``M^T M - alpha I`` is symmetric with eigenvalues ``sigma^2 - alpha``, so its norm is attained at an end of the
spectrum: ``max(sigma_max^2 - alpha, alpha - sigma_min^2)``. Where M has more columns than rows, ``M^T M`` is singular,
zero is the lower end, and the penalty is at least alpha whatever the kernel; ``gram="smaller"`` asks for the smaller of
``M^T M`` and ``M M^T``, whose lower end is the smallest of the min(m, n) singular values.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla._array import as_float_array, namespace, on_device_of
from convla._checks import check_not_followed
from convla._validate import check_array, check_choice, check_real
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.status import Status
from convla.spectra.tracking import DENSE_ENTRIES
from convla.spectra.triplets import SingularValues
from convla.spectra.values import singular_values, smallest_singular_value
from convla.toeplitz import unvec, vec
from convla.typing import Array, ArrayLike

__all__ = [
    "GRAMS",
    "ActivePairs",
    "active_pairs",
    "check_alpha",
    "cluster",
    "floating",
    "gram_map",
    "pair_gradient",
    "penalty",
    "penalty_gradient",
    "penalty_gradient_by_entries",
]

GRAMS = ("input", "smaller")


@dataclass(frozen=True)
class ActivePairs:
    """The value of a penalty, and the eigenvectors of the Gram map that attain it.

    Attributes
    ----------
    value : float
    signs : array of shape (k,)
        1 for an eigenvector of the upper end, -1 for one of the lower end.
    vectors : array of shape (k, *domain_shape of the Gram map's factor)
    images : array of shape (k, *range_shape of the factor)
        The factor times the vectors.
    nulls : int
        How many null vectors of the factor are active besides; their part of every gradient is zero.
    error : float
        How much larger the penalty can be if no triplet was missed.
    status : Status
        What supports the value.
    """

    value: float
    signs: Array
    vectors: Array
    images: Array
    nulls: int = 0
    error: float = 0.0
    status: Status = Status.ESTIMATED


def penalty(operator: ConvOperator, alpha: float, *, gram: str = "input") -> Array:
    """Compute sigma_max(M^T M - alpha I) of a convolution's matrix M.

    Parameters
    ----------
    operator : ConvOperator
        Of any geometry; integer kernels are taken as float64.
    alpha : float
        The wanted square of every singular value, positive.
    gram : {"input", "smaller"}
        Of ``M^T M``, as printed, or of the smaller of ``M^T M`` and ``M M^T``. They differ where M has more columns
        than rows: the first is then at least alpha, and says nothing of sigma_min.

    Returns
    -------
    array of shape ()
        ``max(sigma_max^2 - alpha, alpha - sigma_min^2)``, of the kernel's library and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong in type, the kernel requires a gradient, or alpha is not positive and finite.
    OverflowError
        If the penalty is beyond the kernel's dtype: where sigma_max is above 1e154 in float64, 1e19 in float32.

    Warns
    -----
    ConvergenceWarning
        If the matrix is too large for LAPACK and the iteration for an end of its spectrum did not converge.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Theorem 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, penalty
    >>> channels = ConvOperator(np.array([[1.5, 0.0], [0.0, 0.5]])[:, :, None], (4,))
    >>> float(penalty(channels, 1.0))
    1.25
    >>> wide = ConvOperator(np.array([[0.6, 0.8]])[:, :, None], (4,))
    >>> float(penalty(wide, 1.0)), round(float(penalty(wide, 1.0, gram="smaller")), 12)
    (1.0, 0.0)
    """
    operator, alpha = _checked(operator, alpha, gram)
    pairs = active_pairs(gram_map(operator, gram), alpha)
    xp = namespace(operator.kernel)
    return on_device_of(pairs.value, operator.kernel, xp, dtype=operator.dtype)


def penalty_gradient(
    operator: ConvOperator, alpha: float, *, gram: str = "input", cluster_rtol: float | None = None
) -> Array:
    """Compute the gradient of `penalty` with respect to the kernel, by the kernel adjoint; no matrix is formed for it.

    Parameters
    ----------
    operator : ConvOperator
    alpha : float
        Positive.
    gram : {"input", "smaller"}
        As for `penalty`.
    cluster_rtol : float, optional
        Eigenvalues ``sigma^2`` belong to the active cluster when ``|sigma^2 - alpha|`` is within this times
        ``max(sigma_max^2, alpha)`` of the penalty. The root of the machine epsilon by default: across a smaller gap
        eigenvectors are not determined to half the digits, whereas their average is.

    Returns
    -------
    array of shape (c_out, c_in // groups, *kernel)
        Where the largest singular value of ``M^T M - alpha I`` is simple, the gradient
        ``+-2 (dM -> v^T M^T dM v)``. Where it is not, the penalty has no gradient, and this is the average of that
        expression over an orthonormal basis of the active eigenspaces, both ends together: a subgradient in the sense
        of Clarke, which does not depend on the basis. It is zero where the null space of a wide M is active alone.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `penalty`; also if `cluster_rtol` is negative.

    Warns
    -----
    ConvergenceWarning
        As `penalty`.

    Notes
    -----
    For a matrix too large for LAPACK four eigenvectors of the upper and one of the lower end are found, and an active
    cluster that is larger is averaged over these: still a subgradient, but one that depends on which they are.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Theorems 2.2 and 2.3; the set of
    subgradients is that of A. S. Lewis and M. L. Overton, Eigenvalue optimization, Acta Numerica 5 (1996), Section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, penalty_gradient
    >>> channels = ConvOperator(np.array([[3.0, 0.0], [0.0, 2.0]])[:, :, None], (1,))
    >>> penalty_gradient(channels, 1.0)[:, :, 0].round(12) + 0.0
    array([[6., 0.],
           [0., 0.]])
    """
    operator, alpha = _checked(operator, alpha, gram)
    if cluster_rtol is not None:
        check_real("cluster_rtol", cluster_rtol, minimum=0.0)
    pairs = active_pairs(gram_map(operator, gram), alpha, cluster_rtol=cluster_rtol)
    return pair_gradient(operator, gram, pairs)


def penalty_gradient_by_entries(operator: ConvOperator, left: ArrayLike, right: ArrayLike) -> Array:
    """Evaluate Eq. (2.5) literally, kernel entry by kernel entry: the reference for `penalty_gradient`.

    Parameters
    ----------
    operator : ConvOperator
        Small: its matrix is written out.
    left, right : array of shape (columns,)
        Singular vectors u, v of ``M^T M - alpha I``, through the operator's vec().

    Returns
    -------
    array of shape (c_out, c_in // groups, *kernel)
        At each entry the sum over (i, j) in Omega of ``u(j) (M v)(i) + v(j) (M u)(i)``.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If a vector is not of that shape.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Eq. (2.5).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.penalties.value import penalty_gradient_by_entries
    >>> channels = ConvOperator(np.array([[3.0, 0.0], [0.0, 2.0]])[:, :, None], (1,))
    >>> penalty_gradient_by_entries(channels, np.array([1.0, 0.0]), np.array([1.0, 0.0]))[:, :, 0]
    array([[6., 0.],
           [0., 0.]])
    """
    operator = floating(operator)
    xp = namespace(operator.kernel, left, right)
    u = check_array("left", left, xp, ndim=1, axes="(columns,)")
    v = check_array("right", right, xp, ndim=1, axes="(columns,)")
    matrix = operator.to_dense()
    mu, mv = matrix @ u, matrix @ v
    entries = []
    for index in itertools.product(*map(range, operator.geometry.kernel_shape)):
        rows, columns = (on_device_of(place, mu, xp) for place in operator.geometry.omega(index, operator.order))
        entries.append(
            xp.sum(xp.take(u, columns) * xp.take(mv, rows) + xp.take(v, columns) * xp.take(mu, rows))
            if rows.shape[0]
            else xp.zeros_like(mu[0])
        )
    return xp.reshape(xp.stack(entries), operator.geometry.kernel_shape)


def gram_map(operator: ConvOperator, gram: str) -> LinearMap:
    """Return the factor B of the Gram matrix ``B^T B`` that a penalty is taken of: M, or its transpose."""
    check_choice("gram", gram, GRAMS)
    rows, columns = operator.shape
    return operator.T if gram == "smaller" and rows < columns else operator


def active_pairs(factor: LinearMap, alpha: float, *, cluster_rtol: float | None = None) -> ActivePairs:
    """Find the eigenpairs of ``B^T B`` farthest from alpha, exactly: by LAPACK where B is small enough."""
    xp = namespace(factor.kernel)
    rows, columns = factor.shape
    nulls = max(0, columns - rows)
    if rows * columns <= DENSE_ENTRIES:
        _, values, right = xp.linalg.svd(factor.to_dense(), full_matrices=False)
        squares, status = _squares(values), Status.EXACT
    else:
        upper = singular_values(factor, min(4, rows, columns))
        status = _status(upper)
        squares, right = _squares(upper.values), _flat(upper.right, factor)
        # The lower end attains alpha at most: beyond that it need not be known.
        if not nulls and float(squares[0]) <= 2.0 * alpha:
            lower = smallest_singular_value(factor)
            status = max(status, _status(lower), key=tuple(Status).index)
            if lower.right is None:
                nulls = 1
            else:
                squares = xp.concat([squares, lower.values**2])
                right = xp.concat([right, _flat(lower.right, factor)])
    value, signs, chosen, nulls = cluster(squares, alpha, nulls, cluster_rtol)
    if not chosen.shape[0]:  # only null vectors are active
        empty = [xp.reshape(right[:0, 0], (0, *shape)) for shape in (factor.domain_shape, factor.range_shape)]
        return ActivePairs(value, signs, empty[0], empty[1], nulls, status=status)
    vectors = unvec(xp.take(right, chosen, axis=0), factor.domain_shape, order=factor.order)
    return ActivePairs(value, signs, vectors, factor.apply(vectors), nulls, status=status)


def _status(found: SingularValues) -> Status:
    return Status.NOT_CONVERGED if str(found.status) == Status.NOT_CONVERGED else Status.ESTIMATED


def _squares(values: Array) -> Array:
    """Square singular values, the largest first.

    Raises
    ------
    OverflowError
        If a square is beyond the dtype. That the least may underflow to zero is within the rounding of the penalty.
    """
    with np.errstate(over="ignore", under="ignore"):
        squares = values * values
    if not math.isfinite(float(squares[0])):
        raise OverflowError(
            f"the penalty is beyond {values.dtype}: the square of sigma_max = {float(values[0]):.3g}; scale the kernel"
        )
    return squares


def pair_gradient(operator: ConvOperator, gram: str, pairs: ActivePairs) -> Array:
    """Return the average gradient of ``+-|B v|^2`` over the active pairs, by one kernel adjoint."""
    xp = namespace(operator.kernel)
    count = pairs.signs.shape[0]
    if not count:
        return xp.zeros_like(operator.kernel)
    weights = xp.astype(2.0 * pairs.signs / (count + pairs.nulls), operator.dtype)
    scaled = xp.reshape(weights, (count,) + (1,) * (pairs.images.ndim - 1)) * pairs.images
    # d|M v|^2 = 2 <M v, dM v> and d|M^T u|^2 = 2 <u, dM M^T u>: the features come first in both.
    if gram_map(operator, gram) is operator:
        return operator.kernel_adjoint(scaled, pairs.vectors)
    return operator.kernel_adjoint(pairs.vectors, scaled)


def _flat(vectors: Array, factor: LinearMap) -> Array:
    return vec(vectors, len(factor.domain_shape) - 1, order=factor.order)


def cluster(squares: Array, alpha: float, nulls: int, rtol: float | None) -> tuple[float, Array, Array, int]:
    """Return the penalty, the signs and places of the active squared singular values, and the active null vectors."""
    xp = namespace(squares)
    if rtol is None:
        rtol = float(xp.finfo(squares.dtype).eps) ** 0.5
    distances = xp.abs(squares - alpha)
    largest = max(float(xp.max(distances)), alpha if nulls else 0.0)
    floor = largest - rtol * max(float(xp.max(squares)), alpha)
    (chosen,) = xp.nonzero(distances >= floor)
    kept = xp.take(squares, chosen)
    signs = xp.where(kept < alpha, -xp.ones_like(kept), xp.ones_like(kept))
    return largest, signs, chosen, nulls if alpha >= floor else 0


def _checked(operator: ConvOperator, alpha: float, gram: str) -> tuple[ConvOperator, float]:
    check_choice("gram", gram, GRAMS)
    operator = floating(operator)
    check_not_followed("kernel", operator.kernel, "a penalty")
    return operator, check_alpha(alpha, operator)


def check_alpha(alpha: float, operator: ConvOperator) -> float:
    """Return alpha as a float, positive and within the range of the operator's dtype."""
    alpha = check_real("alpha", alpha, positive=True)
    limit = float(namespace(operator.kernel).finfo(operator.dtype).max)
    if alpha > limit:
        raise ValueError(f"alpha must be at most {limit:.3g} for a kernel of {operator.dtype}, got {alpha}")
    return alpha


def floating(operator: ConvOperator) -> ConvOperator:
    """Return an operator whose kernel is of a floating dtype: integers, exact ones too, become float64."""
    if not isinstance(operator, ConvOperator):
        raise TypeError(f"operator must be a ConvOperator, got {type(operator).__name__}")
    xp = namespace(operator.kernel)
    kernel: Any = as_float_array(operator.kernel, xp)
    if kernel.dtype == object:
        kernel = xp.astype(kernel, xp.float64)
    return operator if kernel is operator.kernel else operator.with_kernel(kernel)
