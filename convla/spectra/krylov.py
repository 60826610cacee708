"""A search from one random vector of a map, for what is known of either end of its spectrum to a few digits.

All that is asked for here is how large an end's outermost squared singular value is, so that the iteration need not
wait until its vectors have settled. A square is never below 0: at the lower end a Rayleigh quotient that is small enough
is an answer, whatever its residual. And where the upper end is too low to matter, how low it is does not matter either.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla._array import row_dots, to_numpy
from convla.spectra.block_iteration import Block, SearchSpace
from convla.spectra.result import End

__all__ = ["ceiling", "extended"]

_SHARE = 1e-4
"""A random vector holds less than this part of what it holds of an eigenvector in the mean with a chance of 0.8 %."""

_ENOUGH = 1e100  # of a sum that would overflow

_CHECKED = 4  # every so many steps a residual is looked at, which costs about as much as a step


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
        Of the Ritz vectors that are returned, at most: fewer where the space has not as many.
    rtol : float
    rows : int
        Up to which the space may grow.
    bar : float
        A squared singular value below which the upper end is of no interest.

    Returns
    -------
    block : Block
    known : bool
        Whether the outermost Ritz vector has a residual below ``rtol sigma_max^2``; at the lower end, whether its
        square is below that; at the upper end, whether no square comes near the bar.
    tolerance : float
        ``rtol sigma_max^2``.
    above : float
        A square that the upper end does not exceed, should that be known; see `ceiling`.
    """
    xp, above, rtol = space.xp, math.inf, max(rtol, space.rounding)
    while True:
        values, ritz = space.ritz(end)
        squares = np.asarray(to_numpy(values[0, ...]), np.float64)
        tolerance = rtol * float(np.max(squares))
        if end == "smallest":
            known = bool(squares[0] <= tolerance)
        else:
            # With room for several steps of a descent.
            above = ceiling(space) if squares[0] < bar else math.inf
            known = above <= squares[0] + 0.25 * (bar - squares[0])
        full = space.rows >= min(rows, space.order)
        if not known and (full or space.rows % _CHECKED == 0):
            first = ritz[:, :, :1]
            remainder = space.products(first) - values[:, :1, None] * space.vectors(first)
            known = float(row_dots(remainder, remainder, xp)[0, 0]) <= tolerance**2
        if known or full:
            break
        new, alive = space.beside(space.last_products)
        if not new.shape[1]:  # the space is invariant, which the residual shows, or is said to show too little
            break
        space.add(new, alive)
    return space.block(ritz[:, :, :count]), known, tolerance, above


def ceiling(space: SearchSpace) -> float:
    """Return from where on a Krylov space's random vector has next to no part of any eigenvector: infinity if unknown.

    Notes
    -----
    Let p_j be the orthonormal polynomials of the vector's spectral measure; their recurrence is the tridiagonal matrix
    of the Lanczos method. The squared part of the vector in an eigenvector, of an eigenvalue from x on, is at most
    ``1 / sum_j p_j(x)^2`` where x is beyond the Ritz values: that is the least ``|q(G) v|^2`` of all polynomials q of
    lower degree with ``q(x) = 1``, and the zeros of the one that attains it are below x, from where on it grows. Of a
    random vector of n entries the squared part is ``1 / n`` in the mean.

    References
    ----------
    G. Szego, Orthogonal Polynomials, 4th ed., AMS 1975, Sections 3.1 and 3.41.
    """
    gram = np.asarray(to_numpy(space.gram[0, ...]), np.float64)
    diagonal, beside = np.diagonal(gram), abs(np.diagonal(gram, 1))
    low = float(np.linalg.eigvalsh(gram)[-1])
    found, high = math.inf, 4.0 * low
    for _ in range(20):
        if _largest_share(high, diagonal, beside) > _SHARE / space.order:
            if not math.isfinite(found):
                return found
            low = high
        else:
            found = high
        high = 0.5 * (low + found)
    return found


def _largest_share(x: float, diagonal: np.ndarray[Any, Any], beside: np.ndarray[Any, Any]) -> float:
    """Return ``1 / sum_j p_j(x)^2`` of a tridiagonal matrix, whose eigenvalues are below x."""
    before, now, total, coupling = 0.0, 1.0, 1.0, 0.0
    for entry, following in zip(diagonal[:-1].tolist(), beside.tolist(), strict=True):
        if following == 0:  # the space was invariant here
            return 1.0
        if total > _ENOUGH:
            break
        before, now = now, ((x - entry) * now - coupling * before) / following
        coupling, total = following, total + now * now
    return 1.0 / total
