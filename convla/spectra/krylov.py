"""A search from one random vector of a map, for what is known of either end of its spectrum to a few digits.

All that is asked for here is how large an end's outermost squared singular value is, so that the iteration need not
wait until its vectors have settled. A square is never below 0: at the lower end a small enough Rayleigh quotient is an
answer, whatever its residual. And where the upper end is too low to matter, how low it is does not matter either.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla._array import on_device_of, to_numpy
from convla.spectra.block_iteration import Block, SearchSpace
from convla.spectra.result import End

__all__ = ["FAR", "extended"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_SHARE = 1e-4
"""A random vector holds less than this part of what it holds of an eigenvector in the mean with a chance of 0.8 %."""

_SMALL = 0.01

FAR = 0.9
"""Of the singular value from which on the upper end is of interest: what is below is searched anew, not followed."""

_ENOUGH = 1e100  # of a sum that would overflow


def extended(
    space: SearchSpace, *, end: End, count: int, rtol: float, rows: int, bar: float
) -> tuple[Block, bool, float, float]:
    """Extend a Krylov space of one map until the outermost square at one end is known.

    Parameters
    ----------
    space : SearchSpace
        That of one random vector, or what an earlier call made of it.
    end : {"largest", "smallest"}
    count : int
        Of the Ritz vectors that are returned, at most: fewer where the space has not as many, and one where the upper
        end is far below the bar.
    rtol : float
    rows : int
        Up to which the space may grow.
    bar : float
        A squared singular value below which the upper end is of no interest.

    Returns
    -------
    block : Block
    known : bool
        Whether the outermost Ritz vector has a residual below ``rtol sigma_max^2``, or the random vector shows nothing
        that far beyond its square; at the lower end, whether its square is below that; at the upper end, whether no
        square comes near the bar.
    tolerance : float
        ``rtol sigma_max^2``.
    above : float
        A square that the upper end does not exceed, should that be known but for a chance of about 1 %.
    """
    rtol, order, residual = max(rtol, space.rounding), space.order, math.inf
    while True:
        gram = np.asarray(to_numpy(space.gram[0, ...]), np.float64)
        squares, ritz = np.linalg.eigh(gram)
        tolerance, width = rtol * float(squares[-1]), float(squares[-1] - squares[0])
        if end == "largest":
            squares, ritz = squares[::-1], ritz[:, ::-1]
            room = max(tolerance, 0.25 * (bar - squares[0]))  # below the bar, for several steps of a descent
            known = _share_beyond(squares[0] + room, gram) <= _SHARE / order
        else:
            known = bool(squares[0] <= tolerance) or _share_beyond(tolerance - squares[0], -gram) <= _SHARE / order
        # The residual of the Ritz vector before the last row is what the last row adds to it. In a narrow spectrum each
        # is small: one that is not small beside the spectrum's width says nothing of its end.
        residual = residual * abs(float(gram[-2, -1])) if space.rows > 1 else math.inf
        known = known or residual <= min(tolerance, _SMALL * width)
        residual = abs(float(ritz[-1, 0]))
        if known or space.rows >= min(rows, order):
            break
        new, alive = space.beside(space.last_remainder)
        if not new.shape[1] or not bool(space.xp.all(alive != 0)):  # the space is invariant, or all but
            break
        space.add(new, alive)
    above = _ceiling(gram, order) if end == "largest" and squares[0] < bar else math.inf
    if end == "largest" and squares[0] < FAR**2 * bar:
        count = 1
    chosen = on_device_of(ritz[None, :, :count], space.gram, space.xp, dtype=space.gram.dtype)
    return space.block(chosen), known, tolerance, above


def _ceiling(gram: FloatArray, order: int) -> float:
    """Return from where on a Krylov space's random vector has next to no part of any eigenvector, or infinity."""
    low = float(np.linalg.eigvalsh(gram)[-1])
    high = 4.0 * low
    if _share_beyond(high, gram) > _SHARE / order:
        return math.inf
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _share_beyond(middle, gram) > _SHARE / order else (low, middle)
    return high


def _share_beyond(x: float, gram: FloatArray) -> float:
    """Bound the squared part of a Krylov space's vector in any eigenvector of an eigenvalue that is at least x.

    Notes
    -----
    Let p_j be the orthonormal polynomials of the vector's spectral measure; their recurrence is the tridiagonal matrix
    of the Lanczos method. The part is at most ``1 / sum_j p_j(x)^2`` where x is beyond the Ritz values: that is the
    least ``|q(G) v|^2`` of all polynomials q of lower degree with ``q(x) = 1``, and the zeros of the one that attains
    it are below x, from where on it grows. Of a random vector of n entries the part is ``1 / n`` in the mean.

    References
    ----------
    G. Szego, Orthogonal Polynomials, 4th ed., AMS 1975, Sections 3.1 and 3.41.
    """
    before, now, total, coupling = 0.0, 1.0, 1.0, 0.0
    for entry, following in zip(np.diagonal(gram)[:-1].tolist(), abs(np.diagonal(gram, 1)).tolist(), strict=True):
        if following == 0:  # the space was invariant here
            return 1.0
        if total > _ENOUGH:
            break
        before, now = now, ((x - entry) * now - coupling * before) / following
        coupling, total = following, total + now * now
    return 1.0 / total
