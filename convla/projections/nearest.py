"""Kernels whose blocks have singular values within limits: Dykstra's algorithm, and alternating projections.

With A the linear map from kernels to blocks (`convla.projections.blocks`) and c the upper limit, the nearest kernel

    minimises  norm(K - K_0)^2 / 2  over  norm(A K) <= c,

a convex problem. Its dual maximises ``<K_0, A* Y> - norm(A* Y)^2 / 2 - c norm(Y)_*`` over stacks Y, and ``K_0 - A* Y``
is the nearest kernel at the maximum. Dykstra's alternating projections between the stacks of that norm and those that
come of a kernel are the proximal gradient method on the dual, so that Nesterov's momentum makes them quicker, and the
dual's value tells how far any kernel that obeys the limit has to be.

A kernel that obeys the limit, and is near, takes a few steps: those of alternating projections, extrapolated.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from convla.projections.blocks import BlockArray, Blocks, FloatArray
from convla.projections.excess import Follower, largest_of

__all__ = ["Found", "Near", "alternating", "dykstra", "extrapolated", "largest_value"]

_ROOM = 1e-3  # of the limit: between it and what an extrapolated step aims at
_CHECK = 5  # steps between two looks at the gap, which cost as much as a step


class Found(NamedTuple):
    """A kernel that an iteration ends with.

    Attributes
    ----------
    kernel : numpy.ndarray of shape ``blocks.shape``
    least_distance : float
        From the kernel given, of any kernel whose blocks obey the limits; 0 where nothing is known.
    iterations : int
    converged : bool
    dual : array or None
        Where to go on from.
    """

    kernel: FloatArray
    least_distance: float
    iterations: int
    converged: bool
    dual: BlockArray | None


class Near(NamedTuple):
    """A kernel near the one given whose blocks obey a limit.

    Attributes
    ----------
    kernel : numpy.ndarray of shape ``blocks.shape``
    norm : float
        Of its blocks.
    before : float
        What that of the kernel given is at least, rounding included.
    iterations : int
    """

    kernel: FloatArray
    norm: float
    before: float
    iterations: int


def dykstra(
    blocks: Blocks,
    given: FloatArray,
    limit: float,
    *,
    rtol: float,
    max_iterations: int,
    dual: BlockArray | None = None,
) -> Found:
    """Return the kernel nearest to a given one whose blocks have norms of at most `limit`, to a relative accuracy.

    Parameters
    ----------
    blocks : Blocks
    given : numpy.ndarray of shape ``blocks.shape``
    limit : float
        Positive.
    rtol : float
        The iteration ends when the distance is within this, relatively, of the least possible.
    max_iterations : int
    dual : array, optional
        Of an earlier call, whose limit was another one.

    Returns
    -------
    Found
        Its kernel obeys the limit to rounding: the last iterate is scaled down to it.

    References
    ----------
    R. L. Dykstra, An algorithm for restricted least squares regression, JASA 78 (1983) 837-842; A. Beck and
    M. Teboulle, A fast iterative shrinkage-thresholding algorithm, SIAM J. Imaging Sci. 2 (2009) 183-202;
    B. O'Donoghue and E. Candes, Adaptive restart for accelerated gradient schemes, Found. Comput. Math. 15 (2015)
    715-732.
    """
    step = 1.0 / blocks.bound
    ahead = blocks.of(np.zeros(blocks.shape)) if dual is None else dual
    before, momentum = ahead, 1.0
    best, least, iterations, converged = given, 0.0, 0, False
    best_distance, follower = math.inf, Follower()
    while not converged and iterations < max_iterations:
        iterations += 1
        kernel = given - blocks.adjoint(ahead)
        excess = follower.excess(ahead + step * blocks.of(kernel), step * limit)
        dual, nuclear = excess.stack, excess.sums
        if _inner(blocks, ahead - dual, dual - before) > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        ahead, before, momentum = dual + (momentum - 1) / following * (dual - before), dual, following
        if iterations % _CHECK and iterations < max_iterations:
            continue
        moved = blocks.adjoint(dual)
        value = float(np.sum(given * moved) - np.sum(moved * moved) / 2) - limit * blocks.total(nuclear)
        least = max(least, math.sqrt(max(0.0, 2 * value)))
        kernel = given - moved
        kernel = kernel * min(1.0, limit / max(largest_value(blocks, kernel), math.ulp(0.0)))
        distance = float(np.linalg.norm(kernel - given))
        if distance < best_distance:
            best, best_distance = kernel, distance
        converged = best_distance - least <= rtol * best_distance
    return Found(best, least, iterations, converged, dual)


def alternating(
    blocks: Blocks,
    given: FloatArray,
    minimum: float,
    maximum: float,
    *,
    rtol: float,
    max_iterations: int,
) -> Found:
    """Return a kernel near a given one whose blocks have all singular values between two limits, where it is found.

    The stacks with singular values of at least some number are no convex set, so that what is found depends on where
    the search starts, and may not obey the limits where kernels that do exist.

    Parameters
    ----------
    blocks : Blocks
    given : numpy.ndarray of shape ``blocks.shape``
    minimum, maximum : float
    rtol : float
        The iteration ends when no singular value is farther beyond the limits than this times `maximum`; or when a
        step changes the kernel by less than a hundredth of that, relatively.
    max_iterations : int

    Returns
    -------
    Found
    """
    inverse = np.linalg.pinv(blocks.gram, hermitian=True)
    # What lies well within the limits is there sooner than what has to touch them.
    margin = min(rtol * maximum, (maximum - minimum) / 2) / 2
    kernel, iterations, converged = given, 0, False
    while not converged and iterations < max_iterations:
        iterations += 1
        left, values, right = np.linalg.svd(blocks.of(kernel), full_matrices=False)
        outside = float(max(values.max() - maximum, minimum - values.min()))
        converged = outside <= rtol * maximum
        if converged:
            break
        clipped = left * np.clip(values, minimum + margin, maximum - margin)[..., None, :] @ right
        moved = blocks.adjoint(clipped) @ inverse - kernel
        kernel = kernel + moved
        if float(np.linalg.norm(moved)) <= 0.01 * rtol * float(np.linalg.norm(kernel)):
            break
    return Found(kernel, 0.0, iterations, converged, None)


def extrapolated(
    blocks: Blocks,
    given: FloatArray,
    limit: float,
    *,
    max_iterations: int,
    enough: float = 0.0,
    follower: Follower | None = None,
) -> Near:
    """Return a kernel near a given one whose blocks have norms of at most `limit`, in a few steps.

    Parameters
    ----------
    blocks : Blocks
    given : numpy.ndarray of shape ``blocks.shape``
    limit : float
        Positive.
    max_iterations : int
    enough : float
        A norm that a kernel given may have without being moved, where that is above the limit.
    follower : Follower, optional
        Of an earlier call: what it remembers of the singular vectors saves decompositions.

    Returns
    -------
    Near
        Its kernel obeys the limit, to rounding and to what `follower` misses: where the steps do not lead there, the
        last iterate is scaled down. One that obeyed it before is returned as it is; another has some room left below
        the limit, a thousandth of it or less.

    Notes
    -----
    Let E be what the singular values of A K have above a limit. A K - E is the projection onto the stacks of that norm,
    so that for every kernel K' that obeys it ``<E, A K - E - A K'> >= 0``: a half space, and the step
    ``K - A* E norm(E)^2 / norm(A* E)^2`` ends on its boundary, nearer to all those kernels. The step of plain
    alternating projections is shorter, where the taps are few by almost the number of frequencies for each tap.

    References
    ----------
    G. Pierra, Decomposition through formalization in a product space, Math. Programming 28 (1984) 96-115.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvGeometry
    >>> from convla.projections.blocks import TorusBlocks
    >>> from convla.projections.nearest import extrapolated
    >>> blocks = TorusBlocks(ConvGeometry((1, 1, 3), (16,), padding="same"))
    >>> near = extrapolated(blocks, np.array([[[[1.0, 2.0, 1.0]]]]), 1.0, max_iterations=5)
    >>> near.kernel.round(2), near.norm <= 1.0
    (array([[[[0.14, 0.72, 0.14]]]]), True)
    """
    follower = Follower() if follower is None else follower
    kernel, wanted, before = given, (1 - _ROOM) * limit, 0.0
    for iterations in range(max_iterations):
        stack = blocks.of(kernel)
        excess = follower.excess(stack, wanted, enough=limit)
        before = before or excess.largest * (1 - min(stack.shape[-2:]) * float(np.finfo(stack.dtype).eps))
        if excess.largest <= (limit if iterations else max(limit, enough)):
            return Near(kernel, excess.largest, before, iterations)
        move = blocks.adjoint(excess.stack)
        kernel = kernel - blocks.total(excess.squares) / float(np.sum(move * move)) * move
    largest = follower.largest(blocks.of(kernel))
    factor = min(1.0, limit / max(largest, math.ulp(0.0)))
    return Near(kernel * factor, largest * factor, before, max_iterations)


def largest_value(blocks: Blocks, kernel: FloatArray) -> float:
    """Return the norm of a kernel's blocks."""
    return largest_of(blocks.of(kernel))


def _inner(blocks: Blocks, a: BlockArray, b: BlockArray) -> float:
    products: Any = np.sum((a.conj() * b).real, axis=(-2, -1))
    return blocks.total(products)
