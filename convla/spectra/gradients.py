"""Gradients of singular values in the kernels: outer products of singular vectors, through the kernel adjoints.

For a simple singular value, ``d sigma = u^T dM v``. As M is linear in the kernel of a convolution, this is the inner
product of the kernel's change with the kernel adjoint of u and v; in a map that is made of several convolutions the
chain rule leads u and v to each of them. Values that are equal, or so close that their vectors are not
determined, share the average of their gradients, which does not depend on the basis of the vectors.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from convla._array import is_exact, namespace, on_device_of, to_numpy
from convla._validate import check_integer, check_real
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.border import check_map, prepared
from convla.spectra.dense import decomposition_is_cheap, dense_triplets
from convla.spectra.result import SingularValues, weakest
from convla.spectra.status import Status
from convla.spectra.values import largest_singular_value, singular_values, smallest_singular_value
from convla.typing import Array, ArrayLike, Seed

__all__ = [
    "SpectralGradient",
    "condition_number_and_gradient",
    "largest_singular_value_and_gradient",
    "singular_values_and_gradients",
    "smallest_singular_value_and_gradient",
]

_BEYOND = 3  # triplets that are asked for beyond those wanted, to see where the cluster ends
_MOST = 64  # triplets of a cluster


class SpectralGradient(NamedTuple):
    """A function of the singular values, and its gradient in the kernel.

    Attributes
    ----------
    value : float, or array of shape (k,)
    gradient : array of shape (c_out, c_in // groups, *kernel), or (k, ...) for k values; or tuple of such arrays
        Of the kernel's library and dtype; for a map that is made of several convolutions one for each of its
        `kernels`, for a convolution, or its transpose, the one. Where `multiplicity` is 1, the gradient; where it is
        more, an average over the cluster: of the largest value of a convolution a subgradient, and what the mean of the
        cluster has for its gradient.
    multiplicity : int, or tuple of k int
        How many singular values are within the tolerance of the value, or of each, it being one of them; for a
        condition number the larger one of its two ends.
    status : Status
        Of the singular values. That a cluster has no other member is known where it is "exact".
    """

    value: Any
    gradient: Any
    multiplicity: Any
    status: Status


def singular_values_and_gradients(
    operator: LinearMap,
    k: int,
    *,
    log: bool = False,
    cluster_rtol: float | None = None,
    rtol: float | None = None,
    start: SingularValues | ArrayLike | None = None,
    max_matvecs: int = 10_000,
    rng: Seed = 0,
) -> SpectralGradient:
    """Return the k largest singular values of a map and the gradient of each in its kernel, or kernels.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map that has `kernels`.
    k : int
    log : bool, default False
        Of the logarithms of the values instead.
    cluster_rtol : float, optional
        Singular values count as one cluster that are within this times the largest of the value. The root of the
        machine epsilon by default: across a smaller gap vectors are not determined to half the digits, whereas their
        average is.
    rtol, start, max_matvecs, rng
        As in `convla.singular_values`.

    Returns
    -------
    SpectralGradient
        With arrays of k values and gradients.

    Raises
    ------
    TypeError, ValueError
        As `convla.singular_values`; also if the map has no kernels, or one of the values cannot be told from 0,
        where it has no gradient.

    Notes
    -----
    With ``M right = sigma left`` the gradients are ``operator.kernel_gradients(left, right)``. Equal singular values
    are no differentiable functions one by one; the mean of a cluster that stays apart from the others is, and the
    average is its gradient. The k-th value's cluster is followed beyond k.

    References
    ----------
    A. S. Lewis and M. L. Overton, Eigenvalue optimization, Acta Numerica 5 (1996) 149-190, Section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.gradients import singular_values_and_gradients
    >>> channels = ConvOperator(np.array([[3.0, 0.0], [0.0, 2.0]])[:, :, None], (1,))
    >>> values, gradients, multiplicities, _ = singular_values_and_gradients(channels, 2)
    >>> values, abs(gradients[1, :, :, 0]).round(12), multiplicities
    (array([3., 2.]), array([[0., 0.],
           [0., 1.]]), (1, 1))
    """
    operator = _with_kernels(operator)
    k = check_integer("k", k, minimum=1, maximum=min(operator.shape))
    tolerance = _cluster_tolerance(operator, cluster_rtol)
    options = {"rtol": rtol, "start": start, "max_matvecs": max_matvecs, "rng": rng}
    found = _leading(operator, k, tolerance, options)
    values = np.asarray(to_numpy(found.values), np.float64)
    floor = max(operator.shape) * float(np.finfo(np.float64).eps) * values[0]
    if (rank := int(np.count_nonzero(values[:k] > floor))) < k:
        raise ValueError(
            f"k must be at most {rank} for this operator, got {k}: the other singular values cannot be told from 0, "
            "where they have slopes to either side and no gradient"
        )
    members = [_members(values, place, tolerance * values[0]) for place in range(k)]
    xp = namespace(operator.like)
    averages = zip(*(_average(operator, found, chosen) for chosen in members), strict=True)
    gradients = tuple(xp.stack(of_one_kernel) for of_one_kernel in averages)
    counts = tuple(len(chosen) for chosen in members)
    wanted = found.values[:k]
    if log:
        scales = (xp.reshape(1 / wanted, (k, *(1,) * (gradient.ndim - 1))) for gradient in gradients)
        gradients = tuple(xp.astype(s, g.dtype) * g for s, g in zip(scales, gradients, strict=True))
        wanted = xp.log(wanted)
    return _told(operator, SpectralGradient(wanted, gradients, counts, found.status))


def largest_singular_value_and_gradient(
    operator: LinearMap,
    *,
    log: bool = False,
    cluster_rtol: float | None = None,
    rtol: float | None = None,
    start: SingularValues | ArrayLike | None = None,
    max_matvecs: int = 10_000,
    rng: Seed = 0,
) -> SpectralGradient:
    """Return the largest singular value of a map and its gradient in the kernel, or kernels.

    Parameters and errors are those of `singular_values_and_gradients`.

    Returns
    -------
    SpectralGradient
        Where the value is not simple, the average over its cluster: for a convolution a subgradient, as the value is
        convex in the kernel. A map of zeros is given the gradient 0.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.gradients import largest_singular_value_and_gradient
    >>> mean = ConvOperator(np.array([[[0.5, 0.5]]]), (4,), boundary="circular")
    >>> value, gradient, multiplicity, status = largest_singular_value_and_gradient(mean)
    >>> round(value, 12), gradient.round(12), multiplicity
    (1.0, array([[[1., 1.]]]), 1)
    """
    options = {"rtol": rtol, "start": start, "max_matvecs": max_matvecs, "rng": rng}
    operator = _with_kernels(operator)
    return _end(operator, _largest_end(operator, cluster_rtol, options), log=log)


def smallest_singular_value_and_gradient(
    operator: LinearMap,
    *,
    log: bool = False,
    cluster_rtol: float | None = None,
    rtol: float | None = None,
    max_matvecs: int = 10_000,
    rng: Seed = 0,
) -> SpectralGradient:
    """Return the smallest singular value of a map, the last of min(m, n), and its gradient in the kernel, or kernels.

    Parameters
    ----------
    operator : LinearMap
        As in `singular_values_and_gradients`.
    log, cluster_rtol
        As in `singular_values_and_gradients`. The cluster is looked for in small matrices, which are decomposed; in
        others one triplet is found, and `multiplicity` is 1.
    rtol, max_matvecs, rng
        As in `convla.smallest_singular_value`.

    Returns
    -------
    SpectralGradient

    Raises
    ------
    TypeError, ValueError
        As `convla.smallest_singular_value`; also if the map has no kernels, or the value cannot be told from 0, where
        it has no gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.gradients import smallest_singular_value_and_gradient
    >>> channels = ConvOperator(np.array([[3.0, 0.0], [0.0, 2.0]])[:, :, None], (1,))
    >>> value, gradient, *_ = smallest_singular_value_and_gradient(channels)
    >>> round(value, 12), abs(gradient[:, :, 0]).round(12)
    (2.0, array([[0., 0.],
           [0., 1.]]))
    """
    options = {"rtol": rtol, "max_matvecs": max_matvecs, "rng": rng}
    operator = _with_kernels(operator)
    return _end(operator, _smallest_end(operator, cluster_rtol, options), log=log)


def condition_number_and_gradient(
    operator: LinearMap,
    *,
    log: bool = False,
    cluster_rtol: float | None = None,
    rtol: float | None = None,
    rng: Seed = 0,
) -> SpectralGradient:
    """Return the condition number of a map and its gradient in the kernel, or kernels.

    Parameters
    ----------
    operator : LinearMap
        As in `singular_values_and_gradients`.
    log, cluster_rtol
        As in `singular_values_and_gradients`.
    rtol, rng
        As in `convla.condition_number`.

    Returns
    -------
    SpectralGradient

    Raises
    ------
    TypeError, ValueError
        As `smallest_singular_value_and_gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.gradients import condition_number_and_gradient
    >>> channels = ConvOperator(np.array([[3.0, 0.0], [0.0, 2.0]])[:, :, None], (1,))
    >>> value, gradient, *_ = condition_number_and_gradient(channels)
    >>> value, gradient[:, :, 0].round(12) + 0.0
    (1.5, array([[ 0.5 ,  0.  ],
           [ 0.  , -0.75]]))
    """
    operator = _with_kernels(operator)
    options = {"rtol": rtol, "rng": rng}
    ends = _largest_end(operator, cluster_rtol, options), _smallest_end(operator, cluster_rtol, options)
    top, bottom = (end.value for end in ends)
    value = top / bottom
    scale = 1.0 if log else value
    gradients = tuple(
        scale * (up / top - down / bottom) for up, down in zip(*(end.gradient for end in ends), strict=True)
    )
    multiplicity = max(end.multiplicity for end in ends)
    status = weakest([end.status for end in ends])
    return _told(operator, SpectralGradient(math.log(value) if log else value, gradients, multiplicity, status))


def _told(operator: LinearMap, found: SpectralGradient) -> SpectralGradient:
    """Return what is told of a map: of a convolution, or its transpose, the gradient in its one kernel."""
    single = isinstance(operator, ConvOperator) or isinstance(operator.T, ConvOperator)
    return found._replace(gradient=found.gradient[0]) if single else found


def _end(operator: LinearMap, found: SpectralGradient, *, log: bool) -> SpectralGradient:
    if log:
        _refuse_log_of_zero(found.value)
        slopes = tuple(gradient / found.value for gradient in found.gradient)
        found = found._replace(value=math.log(found.value), gradient=slopes)
    return _told(operator, found)


def _largest_end(operator: LinearMap, cluster_rtol: float | None, options: dict[str, Any]) -> SpectralGradient:
    tolerance = _cluster_tolerance(operator, cluster_rtol)
    found = _leading(operator, 1, tolerance, options)
    values = np.asarray(to_numpy(found.values), np.float64)
    if values[0] == 0.0:
        zeros = tuple(namespace(kernel).zeros_like(kernel) for kernel in operator.kernels)
        return SpectralGradient(0.0, zeros, min(operator.shape), found.status)
    chosen = _members(values, 0, tolerance * values[0])
    return SpectralGradient(float(values[0]), _average(operator, found, chosen), len(chosen), found.status)


def _smallest_end(operator: LinearMap, cluster_rtol: float | None, options: dict[str, Any]) -> SpectralGradient:
    tolerance = _cluster_tolerance(operator, cluster_rtol)
    found = smallest_singular_value(operator, **options)
    if found.status == Status.RANK_DEFICIENT or found.value == 0.0:
        raise ValueError(
            f"operator must have full rank for the smallest singular value to have a gradient, got {found.value:.3g}, "
            "which cannot be told from 0"
        )
    cluster = _smallest_cluster(operator, found, tolerance)
    count = cluster.values.shape[0]
    return SpectralGradient(found.value, _average(operator, cluster, list(range(count))), count, found.status)


def _leading(operator: LinearMap, k: int, tolerance: float, options: dict[str, Any]) -> SingularValues:
    """Return the k largest triplets and as many more as belong to the last one's cluster, or show where it ends."""
    most = min(operator.shape)
    count = min(k + _BEYOND, most)
    while True:
        found = singular_values(operator, count, **options)
        values = to_numpy(found.values)
        apart = float(values[k - 1] - values[-1]) > tolerance * float(values[0])
        if apart or count == most or count >= k + _MOST:
            return found
        count = min(2 * count, most)


def _smallest_cluster(operator: LinearMap, found: SingularValues, tolerance: float) -> SingularValues:
    """Return the triplets of the smallest value's cluster, where the matrix is small enough to be decomposed."""
    problem = prepared(operator)
    if not decomposition_is_cheap(problem.operator):
        return found
    most = min(operator.shape)
    count = min(1 + _BEYOND, most)
    gap = tolerance * largest_singular_value(problem.operator).value
    while True:
        smallest = dense_triplets(problem.operator, count, "smallest")
        values = to_numpy(smallest.values)
        within = int(np.count_nonzero(np.abs(values - values.min()) <= gap))
        if within < count or count == most or count >= _MOST:
            triplets = problem.finished(smallest, tolerance, "smallest")
            order = np.argsort(to_numpy(triplets.values), kind="stable")[:within]
            return _chosen(triplets, order.tolist())
        count = min(2 * count, most)


def _chosen(found: SingularValues, places: list[int]) -> SingularValues:
    xp = namespace(found.values)
    index = on_device_of(np.array(places), found.values, xp)
    assert found.left is not None
    assert found.right is not None
    values, left, right = (xp.take(each, index, axis=0) for each in (found.values, found.left, found.right))
    return replace(found, values=values, left=left, right=right)


def _members(values: np.ndarray[Any, Any], place: int, gap: float) -> list[int]:
    return np.flatnonzero(np.abs(values - values[place]) <= gap).tolist()


def _average(operator: LinearMap, found: SingularValues, places: list[int]) -> tuple[Array, ...]:
    """Return the mean of the gradients of some singular values, by one adjoint for each kernel."""
    chosen = _chosen(found, places)
    assert chosen.left is not None
    assert chosen.right is not None
    return tuple(total / len(places) for total in operator.kernel_gradients(chosen.left, chosen.right))


def _with_kernels(operator: LinearMap) -> LinearMap:
    """Return a map that has a gradient, of floats.

    Raises
    ------
    TypeError
        If it is no `LinearMap`, has no kernels, or autograd follows them.
    """
    check_map(operator)
    if not operator.kernels:
        raise TypeError(f"operator must be made of convolutions to have a gradient, got {type(operator).__name__}")
    return operator.astype(namespace(operator.like).float64) if is_exact(operator.like) else operator


def _cluster_tolerance(operator: LinearMap, cluster_rtol: float | None) -> float:
    if cluster_rtol is not None:
        return check_real("cluster_rtol", cluster_rtol, minimum=0.0)
    single = operator.dtype == namespace(operator.like).float32
    return math.sqrt(np.finfo(np.float32 if single else np.float64).eps)


def _refuse_log_of_zero(value: float) -> None:
    if value <= 0.0:
        raise ValueError("log needs singular values that are not 0, got 0")
