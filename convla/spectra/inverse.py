"""The smallest singular triplet through a sparse factorisation of the matrix: shift-invert at zero.

No norm of a symbol bounds the smallest singular value with zeros around the image: it may decay exponentially with
the image's size while the symbol stays away from zero. So the matrix itself is factorised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.sparse.csgraph import structural_rank

from convla._array import device_of, is_cupy, is_numpy, namespace, on_device_of, sparse_library
from convla.operators import ConvOperator
from convla.spectra.lanczos import golub_kahan_lanczos
from convla.typing import Array

__all__ = ["factorisation_work", "smallest_by_inverse"]

_LARGEST_SOLUTION = 1e100  # from a random vector of entries of order 1
_REGULARISATION = 1e-3  # alpha of the augmented matrix, next to kernel entries of order 1


def factorisation_work(operator: ConvOperator) -> float:
    """Estimate the operations of a sparse LU factorisation; infinity for arrays without sparse matrices.

    They are twice the order of the matrix times its bandwidth squared, with the positions along the longest axis last.
    """
    if not (is_numpy(operator.kernel) or is_cupy(operator.kernel)):
        return math.inf
    geometry = operator.geometry
    longest = geometry.longest_axis
    front = math.prod(n for axis, n in enumerate(geometry.image_shape) if axis != longest)
    reach = (geometry.kernel_size[longest] - 1) * geometry.dilation[longest] + 1
    bandwidth = (geometry.in_channels + geometry.out_channels) * front * reach
    return 2.0 * sum(geometry.shape) * bandwidth**2


def smallest_by_inverse(
    operator: ConvOperator, *, rtol: float, max_matvecs: int, rng: np.random.Generator
) -> tuple[float, Array, Array, float, int, bool] | None:
    """Return the smallest singular triplet of an operator by Lanczos on its pseudo-inverse.

    Parameters
    ----------
    operator : ConvOperator
        On NumPy or CuPy arrays, its kernel scaled to entries of order 1.
    rtol : float
        The relative accuracy of the value.
    max_matvecs : int
        The iteration ends after this many solves.
    rng : numpy.random.Generator

    Returns
    -------
    value : float
        ``norm(M v)``, so that only the accuracy of v depends on the factorisation.
    left, right : array of shape (m,) and (n,)
        In float64, of the vec() of `operator`. The left one is zero where the value is.
    error : float
        An estimate of the error of the value, rounding included.
    matvecs : int
    converged : bool
        Or None for all, where the matrix is structurally singular, a pivot is exactly zero, or the value is below
        about 1e-100.

    Notes
    -----
    With A the tall one of M and M^T, and A square, ``A = L U`` is factorised. Otherwise it is the augmented matrix
    ``[[alpha I, A], [A^T, 0]]``, whose solutions for the right-hand sides (y, 0) and (0, b) hold ``A^+ y`` and
    ``(A^+)^T b`` for every alpha; unlike ``A^T A`` it does not square the condition number.

    References
    ----------
    A. Bjorck, Numerical Methods for Least Squares Problems, SIAM, 1996, Sec. 2.5.
    """
    xp = namespace(operator.kernel)
    sparse = sparse_library(operator.kernel)
    matrix = operator.with_kernel(xp.astype(operator.kernel, xp.float64)).to_sparse("csr")
    wide = matrix.shape[0] < matrix.shape[1]
    tall = (matrix.T if wide else matrix).tocsc()
    rows, columns = tall.shape
    # SuperLU does not notice every structural singularity, and then calls the BLAS with sizes out of range.
    if is_numpy(operator.kernel) and structural_rank(matrix) < columns:
        return None
    try:
        solve, solve_transposed = _solvers(tall, sparse, xp)
    except RuntimeError:  # SuperLU: "Factor is exactly singular"
        return None
    start = on_device_of(rng.standard_normal(columns), operator.kernel, xp, dtype=xp.float64)
    # Squares of such solutions overflow. They come of a smallest singular value that is exponentially small.
    with np.errstate(over="ignore", invalid="ignore"):
        size = float(xp.max(xp.abs(solve_transposed(start))))
    if not size < _LARGEST_SOLUTION:
        return None
    found = golub_kahan_lanczos(
        solve_transposed,
        solve,
        start,
        1,
        rows=rows,
        rtol=rtol,
        criterion="residual",  # a solve is cheap next to the factorisation, and the vectors are worth having
        basis_size=40,
        max_matvecs=max_matvecs,
        rng=rng,
    )
    # One more solve: in norm(M v) every error of v is multiplied by up to the condition number, which this divides out.
    right = solve(found.left[0, :])
    right = right / xp.linalg.vector_norm(right)
    image = tall @ right
    value = float(xp.linalg.vector_norm(image))
    left = image / value if value > 0 else image
    moduli = abs(tall)
    norm = math.sqrt(float(moduli.sum(axis=0).max()) * float(moduli.sum(axis=1).max()))
    relative = float(found.errors[0]) / float(found.values[0])
    error = relative * value + 4 * float(np.finfo(np.float64).eps) * norm
    pair = (right, left) if wide else (left, right)
    return value, *pair, error, found.matvecs, found.converged


def _solvers(tall: Any, sparse: Any, xp: Any) -> tuple[Any, Any]:
    """Return the maps ``y -> A^+ y`` and ``b -> (A^+)^T b``."""
    rows, columns = tall.shape
    if rows == columns:
        factors = sparse.linalg.splu(tall)
        return factors.solve, lambda b: factors.solve(b, "T")
    corner = _REGULARISATION * sparse.eye(rows, format="csc", dtype=xp.float64)
    factors = sparse.linalg.splu(sparse.bmat([[corner, tall], [tall.T, None]], format="csc"))
    zeros = [xp.zeros(size, dtype=xp.float64, device=device_of(tall.data)) for size in (rows, columns)]
    return (
        lambda y: factors.solve(xp.concat((y, zeros[1])))[rows:],
        lambda b: factors.solve(xp.concat((zeros[0], b)))[:rows],
    )
