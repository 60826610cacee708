"""The penalty sigma_max(M^T M - alpha I) on the singular values of a convolution, and its gradient in the kernel.

``M^T M - alpha I`` is symmetric with eigenvalues ``sigma^2 - alpha``, so its norm is attained at an end of the
spectrum: ``max(sigma_max^2 - alpha, alpha - sigma_min^2)``. Where M has more columns than rows, ``M^T M`` is singular,
zero is the lower end, and the penalty is at least alpha whatever the kernel; ``gram="smaller"`` asks for the smaller of
``M^T M`` and ``M M^T``, whose lower end is the smallest of the min(m, n) singular values.
"""

from __future__ import annotations

import itertools
from typing import overload

from convla._array import is_exact, namespace, on_device_of
from convla._threads import blas_on_one_thread
from convla._validate import check_array, check_real
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.penalties.pairs import Gram, active_pairs, pair_gradients, shifted
from convla.typing import AnyArray, ArrayLike

__all__ = ["penalty", "penalty_gradient", "penalty_gradient_by_entries"]


@blas_on_one_thread()
def penalty(operator: LinearMap, alpha: float, *, gram: Gram = "input") -> AnyArray:
    """Compute sigma_max(M^T M - alpha I) of a map's matrix M.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator` of any geometry, its transpose, or any other map; integer kernels are taken as float64.
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
    target = shifted(operator, alpha, gram)
    like = target.operator.like
    return on_device_of(active_pairs(target).value, like, namespace(like), dtype=target.operator.dtype)


@overload
def penalty_gradient(
    operator: ConvOperator, alpha: float, *, gram: Gram = ..., cluster_rtol: float | None = ...
) -> AnyArray: ...


@overload
def penalty_gradient(
    operator: LinearMap, alpha: float, *, gram: Gram = ..., cluster_rtol: float | None = ...
) -> AnyArray | tuple[AnyArray, ...]: ...


@blas_on_one_thread()
def penalty_gradient(
    operator: LinearMap, alpha: float, *, gram: Gram = "input", cluster_rtol: float | None = None
) -> AnyArray | tuple[AnyArray, ...]:
    """Compute the gradient of `penalty` with respect to the kernel, by the kernel adjoint; no matrix is formed for it.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map that has `kernels`.
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
    array of shape (c_out, c_in // groups, *kernel), or tuple of such arrays
        For a map that is made of several convolutions one for each of its `kernels`; for a convolution, or its
        transpose, the one. Where the largest singular value of ``M^T M - alpha I`` is simple, the gradient
        ``+-2 (dM -> v^T M^T dM v)``. Where it is not, the penalty has no gradient, and this is the average of that
        expression over an orthonormal basis of the active eigenspaces, both ends together: a subgradient in the sense
        of Clarke, which does not depend on the basis. It is zero where the null space of a wide M is active alone.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `penalty`; also if `cluster_rtol` is negative, or the map has no kernels.

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
    target = shifted(operator, alpha, gram)
    if cluster_rtol is not None:
        check_real("cluster_rtol", cluster_rtol, minimum=0.0)
    if not target.operator.kernels:
        raise TypeError(f"operator must be made of convolutions to have a gradient, got {type(operator).__name__}")
    gradients = pair_gradients(target, active_pairs(target, cluster_rtol=cluster_rtol))
    single = isinstance(target.operator, ConvOperator) or isinstance(target.operator.T, ConvOperator)
    return gradients[0] if single else gradients


def penalty_gradient_by_entries(operator: ConvOperator, left: ArrayLike, right: ArrayLike) -> AnyArray:
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
    if not isinstance(operator, ConvOperator):
        raise TypeError(f"operator must be a ConvOperator, got {type(operator).__name__}")
    xp = namespace(operator.kernel, left, right)
    operator = operator.astype(xp.float64) if is_exact(operator.kernel) else operator
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
