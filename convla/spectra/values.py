"""Singular values of a linear map: exact where that is affordable, else by Lanczos, confirmed where that is cheap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convla._array import namespace, to_numpy
from convla._convergence import warn
from convla._threads import blas_on_one_thread
from convla._validate import check_integer, check_rng
from convla.algebra import BlockDiagonal, Diagonal, Identity, Zero
from convla.linear_map import LinearMap
from convla.spectra.border import Problem, check_map, finished, given_vectors, prepared, tolerance_of, without_factor
from convla.spectra.diagonals import diagonal_triplets
from convla.spectra.largest import largest_in_parts
from convla.spectra.merge import all_of_parts, largest_of_parts, smallest_of_parts, values_in
from convla.spectra.method import Criterion, Method, MethodName, Search, SmallestMethodName
from convla.spectra.parts import blocks_of
from convla.spectra.result import SingularValues, weakest
from convla.spectra.smallest import exactly_singular, smallest_of_problem
from convla.spectra.status import Status
from convla.typing import Array, ArrayLike, Seed

__all__ = [
    "ConditionNumber",
    "condition_number",
    "largest_singular_value",
    "singular_values",
    "smallest_singular_value",
]


def singular_values(
    operator: LinearMap,
    k: int | None = None,
    *,
    rtol: float | None = None,
    method: Method | MethodName = "auto",
    start: SingularValues | ArrayLike | None = None,
    max_matvecs: int = 10_000,
    rng: Seed = 0,
) -> SingularValues:
    """Return all, or the k largest, singular values of an operator.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map.
    k : int, optional
        How many of the largest, with their vectors; all, without vectors, by default.
    rtol : float, optional
        The largest residual that ``method="lanczos"`` accepts, relative to the largest singular value; 1e-10 for
        float64, 1e-5 for float32 by default.
    method : {"auto", "dense", "fourier", "lanczos"} or Method
        "dense" writes the matrix out (LAPACK, or the library's own decomposition). "fourier" is exact for circular
        boundaries whose outputs visit the torus evenly. "lanczos" needs k. "auto" takes the cheapest that applies.
        A name stands for an object with settings, such as `convla.spectra.Lanczos`; to write one, see
        `convla.spectra.Method`.
    start : SingularValues or array of shape (..., *domain_shape), optional
        A previous result, or images, to start the iteration from; by default the symbol's plane waves.
    max_matvecs : int
        The iteration gives up, with a warning, after this many applications of the operator and its transpose; to read
        the values off takes two or four more.
    rng : numpy.random.Generator or seed

    Returns
    -------
    SingularValues

    Raises
    ------
    TypeError
        If `operator` is no `LinearMap`, its kernel holds exact objects, or it is a tensor that requires a gradient.
    ValueError
        If an option is out of range, or the method does not apply.
    MemoryError
        If all values are asked for and the dense matrix would not fit in memory.

    Warns
    -----
    ConvergenceWarning
        If the residuals are not below the tolerance; the result's `status` says so too.

    References
    ----------
    H. Sedghi, V. Gupta and P. M. Long, The singular values of convolutional layers, ICLR 2019, for "fourier".
    J. Baglama and L. Reichel, SIAM J. Sci. Comput. 27 (2005) 19-42, for "lanczos".

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, singular_values
    >>> difference = ConvOperator(np.array([[[1.0, 0.0, -1.0]]]), (6,))
    >>> singular_values(difference).values.round(6)
    array([1.801938, 1.801938, 1.24698 , 1.24698 , 0.445042, 0.445042])
    >>> largest = singular_values(difference, 1)
    >>> bool(np.allclose(difference.apply(largest.right), largest.value * largest.left))
    True
    """
    return _largest(operator, k, rtol, (1e-5, 1e-10), "residual", method, start, max_matvecs, rng)


def largest_singular_value(
    operator: LinearMap,
    *,
    rtol: float | None = None,
    method: Method | MethodName = "auto",
    start: SingularValues | ArrayLike | None = None,
    max_matvecs: int = 10_000,
    rng: Seed = 0,
) -> SingularValues:
    """Return the largest singular value of an operator: the Lipschitz constant of the layer.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map.
    rtol : float, optional
        The wanted relative accuracy of the value; 1e-10 for float64, 1e-6 for float32 by default.
    method, start, max_matvecs, rng
        See `singular_values`.

    Returns
    -------
    SingularValues
        With k = 1; ``float(result)`` is the value.

    Raises
    ------
    TypeError, ValueError
        As `singular_values`.

    Warns
    -----
    ConvergenceWarning
        If the error estimate is not below the tolerance.

    Notes
    -----
    A matrix that falls into blocks that share no entry is searched block by block (`convla.spectra.parts`), and small
    blocks are decomposed: then the status is "exact". The iteration for the others stops on the error estimate of the
    value, which is of second order in the residual where the leading singular values are separated from the rest; the
    value itself is read off in float64. Where the Gram matrix has a narrow band, as for long signals and small images,
    a Cholesky factorisation confirms the value, or finds the right one (`convla.spectra.inertia`): "confirmed". Else
    it is "estimated", and its `upper` holds but for a probability of 1e-10 over the random start. A narrower enclosure,
    proved for every layer, is `singular_value_bounds`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, largest_singular_value
    >>> layer = ConvOperator(np.array([[[1.0, 1.0]]]), (3,), padding="full")
    >>> bool(np.isclose(float(largest_singular_value(layer)), 2 * np.cos(np.pi / 8)))
    True
    """
    return _largest(operator, 1, rtol, (1e-6, 1e-10), "value", method, start, max_matvecs, rng)


def smallest_singular_value(
    operator: LinearMap,
    *,
    rtol: float | None = None,
    method: Method | SmallestMethodName = "auto",
    max_matvecs: int = 10_000,
    rng: Seed = 0,
) -> SingularValues:
    """Return the smallest singular value of an operator: the last of the min(m, n) that an m x n matrix has.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map.
    rtol : float, optional
        The wanted relative accuracy of the value; 1e-10 for float64, 1e-6 for float32 by default. What rounding in
        float64 does to the matrix, about 1e-16 times the largest singular value, stays as an absolute error.
    method : {"auto", "dense", "fourier", "inverse", "lanczos"} or Method
        "inverse" runs Lanczos on the pseudo-inverse through a sparse LU factorisation, for NumPy and CuPy arrays.
        "lanczos" runs it on the operator, which seldom converges; it is the last resort of "auto" for matrices that
        are too large to factorise. For the others see `singular_values`.
    max_matvecs : int
        The iteration gives up, with a warning, after this many applications or solves.
    rng : numpy.random.Generator or seed

    Returns
    -------
    SingularValues
        With k = 1. Its `status` is "rank deficient" where the value cannot be told from 0 in float64 arithmetic;
        then the vectors are None if the factorisation met an exact zero or a value below 1e-100, and the value is 0.
        Its `nullity` is positive for a wide operator, which maps some images to 0 whatever its smallest singular value.

    Raises
    ------
    TypeError
        If `operator` is no `LinearMap`, its kernel holds exact objects, it is a tensor that requires a gradient, or
        "inverse" is asked for on arrays without sparse matrices.
    ValueError
        If an option is out of range, or the method does not apply.

    Warns
    -----
    ConvergenceWarning
        If the error estimate is not below the tolerance. The value is then above the true one.

    Notes
    -----
    All methods work in float64. With zeros around the image the symbol, and so any formula for circular boundaries,
    says nothing about this value: with kernel [1, 1/2, 0] the symbol stays above 1/2, the value decays like 2^-n.

    References
    ----------
    A. Boettcher and S. Grudsky, Electron. J. Linear Algebra 5 (1999) 104-125, for the decay.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, smallest_singular_value
    >>> float(smallest_singular_value(ConvOperator(np.array([[[1.0, 0.5, 0.0]]]), (32,)))) < 1e-9
    True
    """
    check_map(operator)
    chosen = Method.of("method", method)
    most = check_integer("max_matvecs", max_matvecs, minimum=2)
    search = Search(tolerance_of(operator, rtol, (1e-6, 1e-10)), "value", most, check_rng(rng))
    with blas_on_one_thread():
        result = _smallest(operator, chosen, search)
    if result.status == Status.NOT_CONVERGED:
        what = f"the smallest singular value was not found to a relative accuracy of {search.rtol:.1e}"
        _warn(what, result, stacklevel=3)
    return result


@dataclass(frozen=True)
class ConditionNumber:
    """The condition number of an operator, with what supports it; ``float(result)`` is the value.

    Attributes
    ----------
    value : float
        Infinite where the status is "rank deficient".
    error : float
        What the value may be off, by the errors of the two singular values.
    status : Status
        The weaker of theirs; ``status.sentence`` says what it means.
    """

    value: float
    error: float
    status: Status

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"<ConditionNumber {self.value:.6g}: {self.status}>"


def condition_number(operator: LinearMap, *, rtol: float | None = None, rng: Seed = 0) -> ConditionNumber:
    """Return the condition number of an operator: its largest over its smallest singular value.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map.
    rtol : float, optional
        The wanted relative accuracy of either value.
    rng : numpy.random.Generator or seed

    Returns
    -------
    ConditionNumber
        With value, error and status. The value is infinite where `smallest_singular_value` has the status "rank
        deficient". For a wide operator it is the condition number of its transpose: of the map restricted to the
        orthogonal complement of its null space.

    Raises
    ------
    TypeError, ValueError
        As `smallest_singular_value`.

    Warns
    -----
    ConvergenceWarning
        If one of the two values was not found to that accuracy.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, condition_number
    >>> found = condition_number(ConvOperator(np.array([[[-1.0, 2.0, -1.0]]]), (9,)))
    >>> round(float(found), 6)  # cot(pi / 20)^2
    39.863458
    >>> str(found.status)
    'exact'
    """
    problem = prepared(operator)
    scaled = problem.operator  # the ratio is there where the values themselves are out of range
    smallest = smallest_singular_value(scaled, rtol=rtol, rng=rng)
    if smallest.status == Status.RANK_DEFICIENT or smallest.value <= problem.slack:
        return ConditionNumber(math.inf, 0.0, Status.RANK_DEFICIENT)
    largest = largest_singular_value(scaled, rtol=rtol, rng=rng)
    value = largest.value / smallest.value
    least = smallest.value - float(smallest.errors[0])
    upper = (largest.value + float(largest.errors[0])) / least if least > 0 else math.inf
    return ConditionNumber(value, upper - value, weakest([largest.status, smallest.status]))


def _largest(
    operator: LinearMap,
    k: int | None,
    rtol: float | None,
    default: tuple[float, float],
    criterion: Criterion,
    method: Method | MethodName,
    start: SingularValues | ArrayLike | None,
    max_matvecs: int,
    rng: Seed,
) -> SingularValues:
    """Do the work of `singular_values` and `largest_singular_value`."""
    check_map(operator)
    if k is not None:
        k = check_integer("k", k, minimum=1, maximum=min(operator.shape))
    chosen = Method.of("method", method)
    if k is None and not chosen.complete:
        raise ValueError(f"method {chosen.name!r} needs the number k of singular values, got None")
    most = check_integer("max_matvecs", max_matvecs, minimum=2)
    search = Search(tolerance_of(operator, rtol, default), criterion, most, check_rng(rng))
    first = None if start is None else _given_start(operator, start)
    with blas_on_one_thread():
        result = _largest_triplets(operator, k, chosen, search, first)
    if result.status == Status.NOT_CONVERGED:
        what = f"the {k} largest singular value(s) were not found to a relative accuracy of {search.rtol:.1e}"
        _warn(what, result, stacklevel=4)
    return result


def _largest_triplets(
    operator: LinearMap, k: int | None, method: Method, search: Search, start: Array | None
) -> SingularValues:
    """Return the k largest triplets, or all values, of a map: of a direct sum, from those of its blocks."""
    unscaled, factor = without_factor(operator)
    if isinstance(unscaled, (Diagonal, Identity, Zero)) and not method.whole:
        return finished(diagonal_triplets(unscaled, k), factor, operator)
    blocks = blocks_of(unscaled) if isinstance(unscaled, BlockDiagonal) else []
    if blocks and (k is None or values_in(blocks) >= k):  # else zeros are wanted, with vectors
        found = []
        for block in blocks:
            most = None if k is None else min(k, *block.operator.shape)
            piece = None if start is None else start[:, block.inputs, ...]
            found.append(_largest_triplets(block.operator, most, method, search, piece))
        if k is None:
            return finished(all_of_parts(unscaled, blocks, found), factor, operator)
        return finished(largest_of_parts(unscaled, blocks, found, k), factor, operator)
    problem = prepared(operator)
    convolution = problem.convolution
    first = None if start is None else _for_problem(problem, start)
    method = method.chosen(problem.operator, k, "largest")
    if convolution is not None and not method.whole:
        result = largest_in_parts(convolution, k, method, search, first)
    elif k is None:
        result = method.all(problem.operator)
    else:
        result = method.largest(problem.operator, k, search, first)
    return problem.finished(result, search.rtol)


def _smallest(operator: LinearMap, method: Method, search: Search) -> SingularValues:
    """Return the smallest triplet of a map: of a direct sum, from those of its blocks."""
    unscaled, factor = without_factor(operator)
    if isinstance(unscaled, (Diagonal, Identity, Zero)) and not method.whole:
        return finished(diagonal_triplets(unscaled, 1, "smallest"), factor, operator)
    if isinstance(unscaled, BlockDiagonal):
        blocks = blocks_of(unscaled)
        if values_in(blocks) < min(operator.shape):
            return finished(exactly_singular(unscaled, method.name), factor, operator)
        found = [_smallest(block.operator, method, search) for block in blocks]
        return finished(smallest_of_parts(unscaled, blocks, found), factor, operator)
    problem = prepared(operator)
    return problem.finished(smallest_of_problem(problem, method, search), search.rtol, "smallest")


def _warn(what: str, result: SingularValues, *, stacklevel: int) -> None:
    worst = float(np.max(result.errors)) / max(result.value, np.finfo(float).tiny)
    warn(
        f"{what} in {result.matvecs} applications of the operator: the error estimate is {worst:.1e}",
        stacklevel=stacklevel,
    )


def _given_start(operator: LinearMap, start: SingularValues | ArrayLike) -> Array:
    """Return the sum of the right singular vectors, or images, to start from: (1, *domain_shape)."""
    vectors = given_vectors(operator, start)
    xp = namespace(vectors)
    array = xp.sum(vectors, axis=0, keepdims=True)
    if not bool(xp.any(array != 0)):
        raise ValueError("start must not be zero, nor sum to zero over its leading axes")
    return array


def _for_problem(problem: Problem, start: Array) -> Array | None:
    """Return an image to start from as one of the problem's map; None where it says nothing of it."""
    operator = problem.operator
    xp = namespace(operator.like)
    if namespace(start) is not xp:
        start = to_numpy(start)
    start = xp.astype(start, operator.dtype)
    start = operator._adjoint(start) if problem.transposed else start
    return start if bool(xp.any(start != 0)) else None
