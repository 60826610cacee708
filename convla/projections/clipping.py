"""Clipping the singular values of a layer: the nearest kernel of its size that obeys limits, or one near, provably."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from convla._array import device_of, is_array, is_cupy, is_exact, namespace, on_device_of, to_numpy
from convla._checks import check_not_followed
from convla._convergence import unheard, warn
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer, check_real
from convla.operators import ConvOperator
from convla.projections.blocks import BlockMethod, Blocks, FloatArray, blocks_of
from convla.projections.following import FEW_ITERATIONS, FollowedKernel
from convla.projections.nearest import Found, alternating, dykstra
from convla.projections.scaling import scaled_below
from convla.projections.units import distance_between, from_units, in_units, unit_of, with_kernel
from convla.spectra.bounds import singular_value_bounds
from convla.spectra.status import Status
from convla.spectra.values import smallest_singular_value
from convla.typing import AnyArray, Array, ArrayLike, Boundary, Padding

__all__ = ["ClippedKernel", "clip_singular_values", "host_operator", "returned"]

_MOST_ITERATIONS = 500
_ROUNDS = 4  # of the torus's limit, moved until the layer's own norm is the one asked for
_CLOSE = 2e-3  # of the limit: a norm that is nearer needs no other round


@dataclass(frozen=True)
class ClippedKernel:
    """A kernel whose layer obeys limits, and how it was come by.

    Attributes
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        Of the library and dtype of the kernel given.
    upper : float
        The proved bound of the largest singular value, at most the maximum asked for: of the nearest kernel that of
        `singular_value_bounds`.
    smallest : float or None
        The smallest singular value, where a minimum was asked for; as `smallest_singular_value` gives it.
    distance : float
        The Frobenius norm of what the kernel was moved by.
    least_distance : float
        What any kernel that obeys the maximum has to be moved by, to rounding in float64; 0 where that is not known.
        Known where the layer's matrix is written out, or its torus is the image's own.
    status : Status
        "exact" where the kernel given obeys the limits, and is returned as it is. "confirmed" where no kernel that
        obeys the maximum is closer, to the wanted accuracy. "estimated" where the maximum is proved, and any minimum
        met, but not that no kernel is closer. "not converged" where a minimum is not met, or the iteration was cut off.
    iterations : int
        Projections of either kind.
    """

    kernel: AnyArray = field(repr=False)
    upper: float
    smallest: float | None
    distance: float
    least_distance: float
    status: Status
    iterations: int


@blas_on_one_thread()
def clip_singular_values(
    kernel: ArrayLike,
    image_shape: Sequence[int],
    *,
    maximum: float,
    minimum: float = 0.0,
    padding: Padding = "same",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    nearest: bool = True,
    method: BlockMethod = "auto",
    rtol: float = 1e-2,
    max_iterations: int | None = None,
) -> ClippedKernel:
    """Return the nearest kernel of the same size whose layer has its singular values within limits, or a near one.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64, in host memory; integers become float64.
    image_shape : sequence of int
    maximum : float
        Of the largest singular value, positive. That it is kept is proved.
    minimum : float, default 0
        Of the smallest singular value, the last of the min(m, n) of an m x n matrix; at most `maximum`.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.
    nearest : bool, default True
        False for a kernel that is near, found in far less time: see Notes. Has no effect beside a minimum.
    method : {"auto", "matrix", "torus"}
        On what the projections work: on the layer's matrix, or on its symbol at the frequencies of a torus, whose limit
        is moved until the layer's own norm is right. "auto" writes small matrices out.
    rtol : float, default 0.01
        How much farther than the nearest kernel the one returned may be, relatively, where that is looked for; and how
        far below `minimum` a singular value may be.
    max_iterations : int, optional
        By default 500, or 5 where `nearest` is False. Of each search; with a torus there are up to four.

    Returns
    -------
    ClippedKernel

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is wrong in type or value, the kernel is not in host memory, or requires a gradient.

    Warns
    -----
    ConvergenceWarning
        If the status is "not converged".

    Notes
    -----
    The kernels of one size whose layer has a norm of at most `maximum` are a convex set, and Dykstra's alternating
    projections find its nearest point; see `convla.projections.nearest`. A last scaling, by about the relative width of
    the enclosure, makes `singular_value_bounds` prove the maximum of the kernel as its dtype holds it. With a boundary
    of "reflect" or "replicate" and a matrix with more than 256 rows and columns that enclosure is wide, and the kernel
    is made smaller than it would need to be.

    What people do instead is to clip the singular values of the circular layer and to crop the kernels that come out,
    which are as large as the image, to the size wanted; the result exceeds the maximum, see the notebook "Clipping is
    not what you think".

    A near kernel is found by a few extrapolated projections, `convla.projections.nearest.extrapolated`. The kernel
    given, scaled down by its proved norm, is a candidate too: none that is returned is farther, but for rounding.

    A minimum makes the problem non-convex, and alternating projections find a kernel that is close, not the closest.
    With zeros around the image a kernel need not exist that obeys it: see `nearest_orthogonal`.

    References
    ----------
    H. Sedghi, V. Gupta and P. M. Long, The singular values of convolutional layers, ICLR 2019, whose operation this
    corrects; J. P. Boyle and R. L. Dykstra, A method for finding projections onto the intersection of convex sets in
    Hilbert spaces, 1986.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import clip_singular_values
    >>> clipped = clip_singular_values(np.array([[[1.0, 2.0, 1.0]]]), (16,), maximum=1.0)
    >>> clipped.kernel.round(3), clipped.upper <= 1.0, clipped.status.value
    (array([[[0.067, 0.867, 0.067]]]), True, 'confirmed')
    """
    check_choice("method", method, get_args(BlockMethod))
    maximum = check_real("maximum", maximum, positive=True)
    minimum = check_real("minimum", minimum, minimum=0.0, maximum=maximum)
    rtol = check_real("rtol", rtol, positive=True)
    if max_iterations is None:
        max_iterations = _MOST_ITERATIONS if nearest or minimum else FEW_ITERATIONS
    check_integer("max_iterations", max_iterations, minimum=1)
    settings: dict[str, Any] = {
        "padding": padding,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "boundary": boundary,
    }
    operator = host_operator(kernel, image_shape, settings)
    before = singular_value_bounds(operator).upper
    smallest = None if minimum == 0.0 else _smallest(operator)
    if before <= maximum and (smallest is None or smallest >= minimum):
        return ClippedKernel(returned(operator, kernel), before, smallest, 0.0, 0.0, Status.EXACT, 0)
    if smallest is None and not nearest:
        kept = FollowedKernel(maximum, method=method, max_iterations=max_iterations).kept(operator, upper=before)
        distance = distance_between(kept.operator, operator)
        status = Status.EXACT if kept.operator is operator else Status.ESTIMATED
        return ClippedKernel(returned(kept.operator, kernel), kept.upper, None, distance, 0.0, status, kept.iterations)
    blocks = blocks_of(operator, method)
    unit = unit_of(operator, minimum)
    given = np.ldexp(np.asarray(operator.kernel, np.float64), -unit).reshape(blocks.shape)
    low, high = (in_units(limit, unit) for limit in (minimum, maximum))
    if smallest is None:
        found = _below(with_kernel(operator, given), blocks, given, high, rtol, max_iterations)
    else:
        found = alternating(blocks, given, low, high, rtol=rtol, max_iterations=max_iterations)
    settled = scaled_below(with_kernel(operator, np.ldexp(found.kernel, unit)), maximum)
    distance, least = distance_between(settled.operator, operator), 0.0
    if blocks.exact:
        least = from_units(found.least_distance, unit)
    smallest = None if smallest is None else _smallest(settled.operator)
    status = _status(found, distance, least, smallest, minimum, rtol)
    if status == Status.NOT_CONVERGED:
        warn(_shortfall(found, smallest, minimum), stacklevel=2)
    result = returned(settled.operator, kernel)
    return ClippedKernel(result, settled.upper, smallest, distance, least, status, found.iterations)


def _below(
    operator: ConvOperator,
    blocks: Blocks,
    given: FloatArray,
    maximum: float,
    rtol: float,
    max_iterations: int,
) -> Found:
    """Return the nearest kernel of a norm of at most `maximum`, where need be by moving the limit of the blocks.

    The norm of the torus's blocks is above that of a layer with zeros around its image, by a share of the order of
    1 / n^2, and below it by as much between its frequencies, or by what another boundary adds.
    """
    if blocks.exact:
        return dykstra(blocks, given, maximum, rtol=rtol, max_iterations=max_iterations)
    limit, dual, iterations = maximum, None, 0
    # To scale the kernel given is a candidate too: hard to beat where the enclosure is wide.
    best = Found(given * (maximum / _upper(operator)), 0.0, 0, True, None)
    for _ in range(_ROUNDS):
        found = dykstra(blocks, given, limit, rtol=rtol, max_iterations=max_iterations, dual=dual)
        iterations += found.iterations
        upper = _upper(with_kernel(operator, found.kernel))
        scaled = found.kernel * min(1.0, maximum / upper)
        if np.linalg.norm(scaled - given) < np.linalg.norm(best.kernel - given):
            best = found._replace(kernel=scaled)
        if abs(upper - maximum) <= _CLOSE * maximum:
            break
        limit, dual = limit * maximum / upper, found.dual
    return best._replace(iterations=iterations)


def _upper(operator: ConvOperator) -> float:
    return max(singular_value_bounds(operator).upper, math.ulp(0.0))


def _smallest(operator: ConvOperator) -> float:
    with unheard():  # then the value is above the true one, and so said
        found = smallest_singular_value(operator)
    return found.value if found.status != Status.NOT_CONVERGED else math.nan


def _status(found: Found, distance: float, least: float, smallest: float | None, minimum: float, rtol: float) -> Status:
    if smallest is not None:
        return Status.ESTIMATED if smallest >= minimum * (1 - 2 * rtol) else Status.NOT_CONVERGED
    if not found.converged:
        return Status.NOT_CONVERGED
    closest = least > 0.0 and distance - least <= 2 * rtol * distance
    return Status.CONFIRMED if closest else Status.ESTIMATED


def _shortfall(found: Found, smallest: float | None, minimum: float) -> str:
    if smallest is None:
        return f"the nearest kernel was not found in {found.iterations} iterations; its layer obeys the maximum"
    return f"the smallest singular value is {smallest:.6g}, below the minimum {minimum:.6g}, or is not known"


def host_operator(kernel: ArrayLike, image_shape: Sequence[int], settings: dict[str, Any]) -> ConvOperator:
    """Return the operator of a kernel as a NumPy array over the same numbers: what the projections work on.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If it is not in host memory, requires a gradient, or is none for a `ConvOperator`.
    """
    operator = ConvOperator(kernel, image_shape, **settings)
    check_not_followed("kernel", operator.kernel, "a projection")
    if operator.dtype == object:
        raise TypeError("kernel must hold float32, float64 or integers, got dtype object")
    place = device_of(operator.kernel)
    # "cpu" of NumPy, "CPU_DEVICE" of array_api_strict; PyTorch's devices have a type, JAX's a platform.
    if is_cupy(operator.kernel) or "cpu" not in str(getattr(place, "type", getattr(place, "platform", place))).lower():
        raise TypeError(f"kernel must be in host memory, where the projections work, got one on {place}: move it there")
    host = to_numpy(operator.kernel)
    return ConvOperator(host.astype(np.float64) if is_exact(host) else host, image_shape, **settings)


def returned(operator: ConvOperator, like: ArrayLike) -> Array:
    """Return an operator's kernel, in NumPy, as an array of the library of what was given, in memory of its own."""
    xp = namespace(like)
    kernel = to_numpy(operator.kernel).copy()
    if not is_array(like) or xp is namespace(kernel):
        return kernel
    return on_device_of(kernel, like, xp, dtype=getattr(xp, kernel.dtype.name))
