"""Singular values of a linear map: exact where that is affordable, else by Lanczos, confirmed where that is cheap."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla._threads import blas_on_one_thread
from convla._validate import check_array, check_choice, check_integer
from convla.errors import ConvergenceWarning, ShapeError
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.border import Problem, prepared, tolerance_of
from convla.spectra.dense import (
    among_groups,
    decomposition_is_cheap,
    decomposition_work,
    dense_triplets,
    dense_values,
    group_operators,
)
from convla.spectra.enclosure import upper_bound
from convla.spectra.fourier import fourier_is_exact, fourier_triplets, values_of_symbol
from convla.spectra.inertia import Confirmed, confirm_largest, confirms_smallest, factorisation_is_cheap, vector_of
from convla.spectra.inverse import SmallestTriplet, factorisation_work, smallest_by_inverse
from convla.spectra.merge import all_of_parts, largest_of_parts, smallest_of_parts, values_in
from convla.spectra.parts import direct_sum
from convla.spectra.result import SingularValues, of_zero, smallest_triplet, triplets
from convla.spectra.roundoff import rounding_of_entries
from convla.spectra.search import lanczos_triplets
from convla.spectra.status import Status
from convla.typing import Array, ArrayLike, Seed

__all__ = ["condition_number", "largest_singular_value", "singular_values", "smallest_singular_value"]

Method = Literal["auto", "dense", "fourier", "lanczos"]
SmallestMethod = Literal["auto", "dense", "fourier", "inverse", "lanczos"]
Criterion = Literal["residual", "value"]

_FOURIER_CHANNELS_PER_TAP = 16  # above, the c^3 work at all frequencies costs more than the iteration's convolutions
_DIRECT_LIMIT = 2e12  # operations of a decomposition or factorisation: about 20 s
_MATVECS_BEFORE_FACTORISATION = 120
_ENCLOSURE_RTOL = 3e-4  # below, an enclosure by the symbol seldom closes


def singular_values(
    operator: LinearMap,
    k: int | None = None,
    *,
    rtol: float | None = None,
    method: Method = "auto",
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
    method : {"auto", "dense", "fourier", "lanczos"}
        "dense" writes the matrix out (LAPACK, or the library's own decomposition). "fourier" is exact for circular
        boundaries whose outputs visit the torus evenly. "lanczos" needs k. "auto" takes the cheapest that applies.
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
    method: Method = "auto",
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
    method: SmallestMethod = "auto",
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
    method : {"auto", "dense", "fourier", "inverse", "lanczos"}
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
    problem = prepared(operator)
    check_choice("method", method, get_args(SmallestMethod))
    check_integer("max_matvecs", max_matvecs, minimum=2)
    tolerance = tolerance_of(operator, rtol, (1e-6, 1e-10))
    with blas_on_one_thread():
        result = _smallest(problem, tolerance, method, max_matvecs, np.random.default_rng(rng))
    if result.status == Status.NOT_CONVERGED:
        what = f"the smallest singular value was not found to a relative accuracy of {tolerance:.1e}"
        _warn(what, result, stacklevel=3)
    return problem.finished(result)


def condition_number(operator: LinearMap, *, rtol: float | None = None, rng: Seed = 0) -> float:
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
    float
        Infinity where `smallest_singular_value` has the status "rank deficient". For a wide operator this is the
        condition number of its transpose: of the map restricted to the orthogonal complement of its null space.

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
    >>> round(condition_number(ConvOperator(np.array([[[-1.0, 2.0, -1.0]]]), (9,))), 6)  # cot(pi / 20)^2
    39.863458
    """
    scaled = prepared(operator).operator  # the ratio is there where the values themselves are out of range
    smallest = smallest_singular_value(scaled, rtol=rtol, rng=rng)
    if smallest.status == Status.RANK_DEFICIENT or smallest.value == 0.0:
        return math.inf
    return largest_singular_value(scaled, rtol=rtol, rng=rng).value / smallest.value


def _largest(
    operator: LinearMap,
    k: int | None,
    rtol: float | None,
    default: tuple[float, float],
    criterion: Criterion,
    method: Method,
    start: SingularValues | ArrayLike | None,
    max_matvecs: int,
    rng: Seed,
) -> SingularValues:
    """Do the work of `singular_values` and `largest_singular_value`."""
    problem = prepared(operator)
    if k is not None:
        k = check_integer("k", k, minimum=1, maximum=min(operator.shape))
    check_choice("method", method, get_args(Method))
    if method == "lanczos" and k is None:
        raise ValueError("method 'lanczos' needs the number k of singular values, got None")
    search = _Search(
        tolerance_of(operator, rtol, default),
        criterion,
        method,
        check_integer("max_matvecs", max_matvecs, minimum=2),
        np.random.default_rng(rng),
    )
    first = None if start is None else _given_start(problem, start)
    convolution = problem.convolution
    with blas_on_one_thread():
        if convolution is None:
            result = dense_values(problem.operator) if k is None else search.largest(problem.operator, k, first)
        elif search.method == "fourier" or (method == "auto" and _fourier_is_best(convolution, k)):
            result = fourier_triplets(convolution, k)
        else:
            result = _largest_in_parts(convolution, k, search, first)
    if result.status == Status.NOT_CONVERGED:
        what = f"the {k} largest singular value(s) were not found to a relative accuracy of {search.rtol:.1e}"
        _warn(what, result, stacklevel=4)
    return problem.finished(result)


def _largest_in_parts(operator: ConvOperator, k: int | None, search: _Search, start: Array | None) -> SingularValues:
    parts = direct_sum(operator)
    if k is None:
        if not parts:
            return replace(of_zero(operator, min(operator.shape)), left=None, right=None, residuals=None)
        return all_of_parts(operator, parts, [dense_values(part.operator) for part in parts])
    if values_in(parts) < k:  # zeros are wanted, with vectors
        return dense_triplets(operator, k) if parts else of_zero(operator, k)
    found = []
    for part in parts:
        ours = None if start is None else start[(..., *part.image())]
        found.append(search.largest(part.operator, min(k, *part.operator.shape), ours))
    return found[0] if parts[0].operator is operator else largest_of_parts(operator, parts, found, k)


def _fourier_is_best(operator: ConvOperator, k: int | None) -> bool:
    """Tell whether decomposing the symbol at all frequencies costs less than the iteration's convolutions."""
    geometry = operator.geometry
    if not fourier_is_exact(geometry):
        return False
    symbol_side = min(geometry.out_channels, geometry.in_channels) // geometry.groups
    return k is None or (k == 1 and symbol_side <= _FOURIER_CHANNELS_PER_TAP * math.prod(geometry.kernel_size))


@dataclass(frozen=True)
class _Search:
    """How the largest singular values of a part are looked for."""

    rtol: float
    criterion: Criterion
    method: Method
    max_matvecs: int
    rng: np.random.Generator

    def largest(self, operator: LinearMap, k: int, start: Array | None) -> SingularValues:
        """Return the k largest singular triplets of a map that is not known to fall into parts."""
        small = decomposition_is_cheap(operator) or 4 * k >= min(operator.shape)
        if self.method == "dense" or (self.method == "auto" and small):
            return dense_triplets(operator, k)
        banded = self.criterion == "value" and isinstance(operator, ConvOperator) and factorisation_is_cheap(operator)
        found = lanczos_triplets(
            operator,
            k,
            rtol=self.rtol,
            criterion=self.criterion,
            # Where a factorisation follows, the iteration only has to come near.
            max_matvecs=min(self.max_matvecs, _MATVECS_BEFORE_FACTORISATION) if banded else self.max_matvecs,
            rng=self.rng,
            start=start,
        )
        if banded and found.value > 0 and isinstance(operator, ConvOperator):
            return self._confirmed(operator, found)
        wide_enough = self.criterion == "value" and self.rtol >= _ENCLOSURE_RTOL
        if wide_enough and found.status == Status.ESTIMATED and isinstance(operator, ConvOperator):
            return self._enclosed(operator, found)
        return found

    def _enclosed(self, operator: ConvOperator, found: SingularValues) -> SingularValues:
        """Return the largest triplet with what its enclosure says of it, if this closes within the tolerance."""
        upper = upper_bound(operator, guess=found.value, rng=self.rng)
        if upper > found.value * (1 + self.rtol):
            return found
        upper = max(upper, found.value * (1 + 16 * float(np.finfo(float).eps)))
        return replace(found, errors=np.array([upper - found.value]), upper=upper, status=Status.CONFIRMED)

    def _confirmed(self, operator: ConvOperator, found: SingularValues) -> SingularValues:
        """Return the largest triplet with what a factorisation says of it."""
        budget = self.max_matvecs - found.matvecs
        shown = confirm_largest(operator, found.value, self.rtol, max_matvecs=budget, rng=self.rng)
        matvecs = found.matvecs + shown.matvecs
        if shown.vector is None and not shown.proved:  # something is above the value, and was not found
            return replace(found, matvecs=matvecs, status=Status.NOT_CONVERGED)
        if shown.vector is not None:
            vector = vector_of(shown, operator)
            xp = namespace(vector)
            values, left, right, residuals = triplets(operator, vector, wide=shown.wide)
            found = replace(
                found,
                values=on_device_of(values, operator.kernel, xp, dtype=xp.float64),
                left=xp.astype(left, operator.dtype),
                right=xp.astype(right, operator.dtype),
                residuals=residuals,
            )
        # Of the matrix that is factorised every entry is rounded.
        upper = max(shown.upper, found.value) + rounding_of_entries(operator)
        return replace(
            found,
            errors=np.array([upper - found.value]),
            upper=upper,
            matvecs=matvecs,
            status=self._status_of(shown, upper, found.value),
        )

    def _status_of(self, shown: Confirmed, upper: float, value: float) -> Status:
        """Return what a factorisation says of a value: for a tolerance below its own rounding errors, nothing."""
        if not shown.proved:
            return Status.NOT_CONVERGED
        return Status.CONFIRMED if upper - value <= self.rtol * value else Status.ESTIMATED


def _smallest(
    problem: Problem, rtol: float, method: SmallestMethod, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    """Return the smallest triplet of a scaled map, in float64."""
    operator = problem.operator
    xp = namespace(operator.like)
    if problem.convolution is None:
        return _smallest_of(operator, rtol, method, max_matvecs, rng)
    precise = problem.convolution.astype(xp.float64)
    if method == "fourier" or (method == "auto" and fourier_is_exact(precise.geometry)):
        return _smallest_by_fourier(precise)
    parts = direct_sum(precise)
    if values_in(parts) < min(precise.shape):
        return _exactly_singular(precise, method if method != "auto" else "dense")
    found = [_smallest_of(part.operator, rtol, method, max_matvecs, rng) for part in parts]
    result = found[0] if parts[0].operator is precise else smallest_of_parts(precise, parts, found)
    in_dtype = {
        side: xp.astype(vectors, operator.dtype)
        for side in ("left", "right")
        if (vectors := getattr(result, side)) is not None
    }
    return replace(result, **in_dtype)


def _smallest_of(
    operator: LinearMap, rtol: float, method: SmallestMethod, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    """Return the smallest triplet of a map that is not known to fall into parts."""
    if method == "auto":
        method = _cheapest_for_smallest(operator)
    if method == "dense":
        return dense_triplets(operator, 1, "smallest")
    if method == "inverse":
        if not isinstance(operator, ConvOperator):
            raise ValueError(f"method 'inverse' needs a convolution, got {type(operator).__name__}")
        return _smallest_by_inverse(operator, rtol, max_matvecs, rng)
    return lanczos_triplets(operator, 1, rtol=rtol, criterion="value", max_matvecs=max_matvecs, rng=rng, end="smallest")


def _cheapest_for_smallest(operator: LinearMap) -> SmallestMethod:
    if decomposition_is_cheap(operator):
        return "dense"
    dense = decomposition_work(operator) if decomposition_is_cheap(operator, limit=_DIRECT_LIMIT) else math.inf
    sparse = factorisation_work(operator) if isinstance(operator, ConvOperator) else math.inf
    if min(dense, sparse) > _DIRECT_LIMIT:
        return "lanczos"
    return "dense" if dense <= sparse else "inverse"


def _smallest_by_inverse(
    operator: ConvOperator, rtol: float, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    xp = namespace(operator.kernel)
    best: SmallestTriplet | None = None
    where = matvecs = 0
    for number, group in enumerate(group_operators(operator)):
        found = smallest_by_inverse(group, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
        if found is None:
            return _exactly_singular(operator, "inverse")
        matvecs += found.matvecs
        # A group that cannot be told from a singular one comes first, whatever smaller value another has.
        if best is None or (found.value > found.floor, found.value) < (best.value > best.floor, best.value):
            best, where = found, number
    assert best is not None
    wide = operator.shape[0] < operator.shape[1]
    side, place, groups = operator.T if wide else operator, np.array([where]), operator.geometry.groups
    right = among_groups(best.right[None, :], place, side, groups)
    left = among_groups(best.left[None, :], place, side.T, groups)
    left, right = (right, left) if wide else (left, right)
    values, left, right, residuals = smallest_triplet(operator, left, right, wide=wide)
    status = Status.ESTIMATED if best.converged else Status.NOT_CONVERGED
    entries = rounding_of_entries(operator)
    error = best.error + entries
    if min(float(values[0]), best.value) <= max(best.floor, entries):
        status = Status.RANK_DEFICIENT
    elif (
        entries <= 0.25 * rtol * float(values[0])
        and factorisation_is_cheap(operator)
        and confirms_smallest(operator, float(values[0]), best.norm, rtol)
    ):
        status, error = Status.CONFIRMED, rtol * float(values[0])
    return SingularValues(
        values=on_device_of(values, operator.kernel, xp, dtype=xp.float64),
        left=left,
        right=right,
        residuals=residuals,
        errors=np.array([error]),
        upper=math.inf,
        matvecs=matvecs + 3,
        status=status,
        method="inverse",
    )


def _smallest_by_fourier(operator: ConvOperator) -> SingularValues:
    # Repeated outputs, and phases that no tap reads, add singular values 0 to those of the symbol.
    if fourier_is_exact(operator.geometry) and values_of_symbol(operator) < min(operator.shape):
        return _exactly_singular(operator, "fourier")
    return fourier_triplets(operator, 1, smallest=True)


def _exactly_singular(operator: ConvOperator, method: str) -> SingularValues:
    xp = namespace(operator.kernel)
    zero = on_device_of(np.zeros(1), operator.kernel, xp, dtype=xp.float64)
    return SingularValues(zero, None, None, None, np.zeros(1), math.inf, 0, Status.RANK_DEFICIENT, method)


def _warn(what: str, result: SingularValues, *, stacklevel: int) -> None:
    worst = float(np.max(result.errors)) / max(result.value, np.finfo(float).tiny)
    warnings.warn(
        f"{what} in {result.matvecs} applications of the operator: the error estimate is {worst:.1e}",
        ConvergenceWarning,
        stacklevel=stacklevel,
    )


def _given_start(problem: Problem, start: SingularValues | ArrayLike) -> Array:
    """Return the sum of the right singular vectors, or images, to start from, as an image of the problem's map."""
    given, operator = problem.given, problem.operator
    shape = given.domain_shape
    xp = namespace(given.like)
    vectors = start.right if isinstance(start, SingularValues) else start
    array = check_array("start", vectors, xp, min_ndim=len(shape), axes=f"(..., {', '.join(map(str, shape))})")
    if tuple(array.shape[-len(shape) :]) != shape:
        raise ShapeError(f"start must have shape (..., {', '.join(map(str, shape))}), got {tuple(array.shape)}")
    if namespace(operator.like) is not xp:
        array, xp = to_numpy(array), namespace(operator.like)
    array = xp.sum(xp.reshape(xp.astype(array, operator.dtype), (-1, *shape)), axis=0, keepdims=True)
    array = operator.adjoint(array) if problem.transposed else array
    if not bool(xp.any(array != 0)):
        raise ValueError("start must not be zero, nor sum to zero over its leading axes")
    return array
