"""The smallest singular triplet through a sparse factorisation of the matrix: shift-invert at zero.

No norm of a symbol bounds the smallest singular value with zeros around the image: it may decay exponentially with
the image's size while the symbol stays away from zero. So the matrix itself is factorised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from convla._array import device_of, is_cupy, is_numpy, namespace, on_device_of, sparse_library
from convla.operators import ConvOperator
from convla.spectra.lanczos import block_lanczos
from convla.typing import Array, Namespace

__all__ = ["SmallestTriplet", "factorisation_work", "smallest_by_inverse"]

_LARGEST_SOLUTION = 1e100  # from a random vector of entries of order 1
_REGULARISATION = 1e-3  # the first alpha of the augmented matrix, relative to the matrix's norm
_FALL = 0.5  # of the value in a further factorisation, above which it has settled
_ROUNDS = 4
_VECTORS_RTOL = 1e-10
_MORE_SOLVES = 3


def factorisation_work(operator: ConvOperator) -> float:
    """Estimate the operations of a sparse LU factorisation; infinity for arrays without sparse matrices.

    They are twice the order of the matrix times its bandwidth squared, with the positions along the longest axis last,
    and as many times more, as was measured, as the matrix is taller than wide: the factors of its equations fill up.
    """
    if not (is_numpy(operator.kernel) or is_cupy(operator.kernel)):
        return math.inf
    geometry = operator.geometry
    longest = geometry.longest_axis
    front = math.prod(n for axis, n in enumerate(geometry.image_shape) if axis != longest)
    reach = (geometry.kernel_size[longest] - 1) * geometry.dilation[longest] + 1
    bandwidth = (geometry.in_channels + geometry.out_channels) * front * reach
    small, large = sorted(geometry.shape)
    return 2.0 * sum(geometry.shape) * bandwidth**2 * large / small


@dataclass(frozen=True)
class SmallestTriplet:
    """What `smallest_by_inverse` found.

    Attributes
    ----------
    value : float
        ``norm(M v)``, so that only the accuracy of v depends on the factorisation.
    left, right : array of shape (rows,) and (columns,)
        The vectors of the tall one of M and its transpose, of norm 1, through the vec() of the operator.
    error : float
        An estimate of the error of the value, rounding included.
    floor : float
        What rounding alone makes of zero: a value below it cannot be told from it.
    matvecs : int
    converged : bool
    """

    value: float
    left: Array
    right: Array
    error: float
    floor: float
    matvecs: int
    converged: bool


def smallest_by_inverse(
    operator: ConvOperator, *, rtol: float, max_matvecs: int, rng: np.random.Generator
) -> SmallestTriplet | None:
    """Return the smallest singular triplet of an operator by Lanczos on its pseudo-inverse.

    Parameters
    ----------
    operator : ConvOperator
        On NumPy or CuPy arrays, its kernel scaled to entries of order 1, with one group.
    rtol : float
        The relative accuracy of the value.
    max_matvecs : int
        The iteration ends after this many solves.
    rng : numpy.random.Generator

    Returns
    -------
    SmallestTriplet or None
        None where the matrix is structurally singular, a pivot is exactly zero, or the value is below about 1e-100.

    Notes
    -----
    With A the tall one of M and M^T, and A square, ``A = L U`` is factorised. Otherwise it is the augmented matrix
    ``[[alpha I, A], [A^T, 0]]``, whose solutions for the right-hand sides (y, 0) and (0, b) hold ``A^+ y`` and
    ``(A^+)^T b`` for every alpha. Its condition number is that of A where alpha is about the smallest singular value,
    and squared where alpha is large (Bjorck). So a first value found with a large alpha gives the alpha of a second
    factorisation, until the value no longer falls.

    References
    ----------
    A. Bjorck, Numerical Methods for Least Squares Problems, SIAM, 1996, Sec. 2.5 and Theorem 2.5.1.
    """
    xp = namespace(operator.kernel)
    sparse = sparse_library(operator.kernel)
    matrix = operator.astype(xp.float64).to_sparse("csr")
    wide = matrix.shape[0] < matrix.shape[1]
    tall = (matrix.T if wide else matrix).tocsc()
    rows, columns = tall.shape
    # SuperLU does not notice every structural singularity, and then calls the BLAS with sizes out of range.
    if is_numpy(operator.kernel) and scipy.sparse.csgraph.structural_rank(matrix) < columns:
        return None
    moduli = abs(tall)
    norm = math.sqrt(float(moduli.sum(axis=0).max()) * float(moduli.sum(axis=1).max()))
    floor = max(rows, columns) * float(np.finfo(np.float64).eps) * norm
    alpha, matvecs = _REGULARISATION * norm, 0
    found: SmallestTriplet | None = None
    for _ in range(_ROUNDS):
        tried = _with_regularisation(tall, alpha, rtol, max_matvecs - matvecs, rng, sparse, xp)
        if tried is None:
            return None
        matvecs += tried.matvecs
        settled = found is not None and tried.value > _FALL * found.value
        if found is None or tried.value < found.value:
            found = tried
        if rows == columns or settled or found.value <= floor or matvecs >= max_matvecs:
            break
        alpha = max(found.value, 1e-3 * floor)
    assert found is not None
    error = found.error + 4 * float(np.finfo(np.float64).eps) * norm
    return replace(found, floor=floor, error=error, matvecs=matvecs)


def _with_regularisation(
    tall: Any, alpha: float, rtol: float, max_matvecs: int, rng: np.random.Generator, sparse: Any, xp: Namespace
) -> SmallestTriplet | None:
    try:
        solve, solve_transposed = _solvers(tall, alpha, sparse, xp)
    except RuntimeError:  # SuperLU: "Factor is exactly singular"
        return None
    columns = tall.shape[1]
    start = on_device_of(rng.standard_normal(columns), tall.data, xp, dtype=xp.float64)
    # Squares of such solutions overflow. They come of a smallest singular value that is exponentially small.
    with np.errstate(over="ignore", invalid="ignore"):
        first = solve_transposed(start)
        size = float(xp.max(xp.abs(first)))
        if not size < _LARGEST_SOLUTION:
            return None
        second = solve(first)
        size = float(xp.max(xp.abs(second)))
    # Solutions of the size of the inverse's square: scaled, so that their squares stay in range.
    scale = math.frexp(math.sqrt(max(size, 1.0)))[1]

    def gram(block: Array) -> Array:
        return xp.stack(
            [solve(solve_transposed(row) * 2.0**-scale) * 2.0**-scale for row in xp.unstack(block[0, ...])]
        )[None, ...]

    if not math.isfinite(size):
        return None
    found = block_lanczos(
        gram,
        start[None, None, :],
        1,
        rtol=min(rtol, _VECTORS_RTOL),
        criterion="residual",  # a solve is cheap next to the factorisation, and the vectors are worth having
        basis_size=40,
        max_products=max(1, max_matvecs // 2),
        rng=rng,
    )
    # More solves: in norm(M v) every error of v is multiplied by up to the condition number, which these divide out.
    right = found.vectors[0, :]
    for _ in range(_MORE_SOLVES):
        right = gram(right[None, None, :])[0, 0, :]
        right = right / xp.linalg.vector_norm(right)
    left = solve_transposed(right) * 2.0**-scale
    left = left / xp.linalg.vector_norm(left)
    value = float(xp.linalg.vector_norm(tall @ right))
    # Values that are equal but for less than the residual hide from a space that was grown from one vector.
    off = max(float(found.errors[0]), float(found.residuals[0]))
    relative = off / max(float(found.values[0]), float(np.finfo(np.float64).tiny))
    return SmallestTriplet(
        value, left, right, relative * value, 0.0, 2 * (found.products + _MORE_SOLVES) + 2, found.converged
    )


def _solvers(tall: Any, alpha: float, sparse: Any, xp: Any) -> tuple[Any, Any]:
    """Return the maps ``y -> A^+ y`` and ``b -> (A^+)^T b``."""
    rows, columns = tall.shape
    if rows == columns:
        factors = sparse.linalg.splu(tall)
        return factors.solve, lambda b: factors.solve(b, "T")
    corner = alpha * sparse.eye(rows, format="csc", dtype=xp.float64)
    factors = sparse.linalg.splu(sparse.bmat([[corner, tall], [tall.T, None]], format="csc"))
    zeros = [xp.zeros(size, dtype=xp.float64, device=device_of(tall.data)) for size in (rows, columns)]
    return (
        lambda y: factors.solve(xp.concat((y, zeros[1])))[rows:],
        lambda b: factors.solve(xp.concat((zeros[0], b)))[:rows],
    )
