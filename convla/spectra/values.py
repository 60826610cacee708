"""Singular values of the matrix of a convolution: exact where that is affordable, by Lanczos elsewhere."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from convla._array import device_of, namespace, on_device_of
from convla._validate import check_array, check_choice, check_integer, check_real
from convla.errors import ConvergenceWarning, ShapeError
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.inertia import confirm_largest, factorisation_is_cheap
from convla.spectra.inverse import factorisation_work, smallest_by_inverse
from convla.spectra.scaling import scaled_to_unit
from convla.spectra.torus import circular_lattice
from convla.spectra.triplets import (
    SingularValues,
    dense_triplets,
    fourier_triplets,
    lanczos_triplets,
    structured_start,
)
from convla.toeplitz import unvec
from convla.typing import Array, ArrayLike, Seed

__all__ = [
    "METHODS",
    "SMALLEST_METHODS",
    "condition_number",
    "convolution_of",
    "largest_singular_value",
    "singular_values",
    "smallest_singular_value",
]

METHODS = ("auto", "dense", "fourier", "lanczos")
SMALLEST_METHODS = ("auto", "dense", "fourier", "inverse", "lanczos")

Method = Literal["auto", "dense", "fourier", "lanczos"]
SmallestMethod = Literal["auto", "dense", "fourier", "inverse", "lanczos"]

_DENSE_SIDE = 256  # up to this many rows or columns the dense decomposition is faster than the iteration
_FOURIER_CHANNELS_PER_TAP = 16  # above, the c^3 work at all frequencies costs more than the iteration's convolutions
_FACTORISATION_LIMIT = 2e12  # by `factorisation_work`: about 20 s


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
    operator : ConvOperator or its transpose
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
        The iteration gives up, with a warning, after this many applications of the operator and its transpose.
    rng : numpy.random.Generator or seed

    Returns
    -------
    SingularValues

    Raises
    ------
    TypeError
        If `operator` is not a `ConvOperator` or its transpose, or its kernel holds exact objects.
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
    operator : ConvOperator or its transpose
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
    The iteration stops on the error estimate of the value, which is of second order in the residual where the leading
    singular values are separated from the others; see `convla.spectra.lanczos`. Where the Gram matrix has a narrow
    band, as for long signals and small images with zeros around them, a Cholesky factorisation confirms the value, or
    finds the right one; see `convla.spectra.inertia`. An enclosure that is proved to hold for every layer is
    `singular_value_bounds`.

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
    operator : ConvOperator or its transpose
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
        If `operator` is not a `ConvOperator` or its transpose, its kernel holds exact objects, or "inverse" is asked
        for on arrays without sparse matrices.
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
    convolution, transposed = convolution_of(operator)
    check_choice("method", method, SMALLEST_METHODS)
    check_integer("max_matvecs", max_matvecs, minimum=2)
    tolerance = _tolerance(convolution, rtol, default=(1e-6, 1e-10))
    xp = namespace(convolution.kernel)
    single = convolution.dtype == xp.float32
    scaled, exponent = scaled_to_unit(convolution)
    precise = scaled.with_kernel(xp.astype(scaled.kernel, xp.float64))
    result = _smallest(precise, tolerance, method, max_matvecs, np.random.default_rng(rng))
    if result.status == "not converged":
        what = f"the smallest singular value was not found to a relative accuracy of {tolerance:.1e}"
        _warn(what, result, stacklevel=3)
    floor = max(operator.shape) * float(np.finfo(np.float64).eps) * _norm_bound(precise)
    if result.status == "converged" and result.value <= floor:
        result = replace(result, status="rank deficient")
    if single:
        result = _in_single(result)
    return _finished(result, exponent, operator, transposed)


def condition_number(operator: LinearMap, *, rtol: float | None = None, rng: Seed = 0) -> float:
    """Return the condition number of an operator: its largest over its smallest singular value.

    Parameters
    ----------
    operator : ConvOperator or its transpose
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
    smallest = smallest_singular_value(operator, rtol=rtol, rng=rng)
    if smallest.status == "rank deficient":
        return math.inf
    return largest_singular_value(operator, rtol=rtol, rng=rng).value / smallest.value


def _largest(
    operator: LinearMap,
    k: int | None,
    rtol: float | None,
    default: tuple[float, float],
    criterion: Literal["residual", "value"],
    method: Method,
    start: SingularValues | ArrayLike | None,
    max_matvecs: int,
    rng: Seed,
) -> SingularValues:
    """Do the work of `singular_values` and `largest_singular_value`."""
    convolution, transposed = convolution_of(operator)
    if k is not None:
        k = check_integer("k", k, minimum=1, maximum=min(operator.shape))
    tolerance = _tolerance(convolution, rtol, default)
    check_choice("method", method, METHODS)
    check_integer("max_matvecs", max_matvecs, minimum=2)
    scaled, exponent = scaled_to_unit(convolution)
    chosen = _choose(scaled, k) if method == "auto" else method
    if chosen == "dense":
        result = dense_triplets(scaled, k)
    elif chosen == "fourier":
        result = fourier_triplets(scaled, k)
    elif k is None:
        raise ValueError("method 'lanczos' needs the number k of singular values, got None")
    else:
        generator = np.random.default_rng(rng)
        first = structured_start(scaled, generator) if start is None else _given_start(scaled, start, transposed)
        result = lanczos_triplets(scaled, k, tolerance, criterion, first, max_matvecs, generator)
        estimated = criterion == "value" and result.status == "converged" and result.value > 0
        if estimated and factorisation_is_cheap(scaled.geometry):
            result = confirm_largest(scaled, result, tolerance, max_matvecs=max_matvecs, rng=generator)
    if result.status != "converged":
        what = f"the {k} largest singular value(s) were not found to a relative accuracy of {tolerance:.1e}"
        _warn(what, result, stacklevel=4)
    return _finished(result, exponent, operator, transposed)


def _choose(operator: ConvOperator, k: int | None) -> str:
    """Return the cheapest method that applies."""
    geometry = operator.geometry
    symbol_side = min(geometry.out_channels, geometry.in_channels) // geometry.groups
    taps = math.prod(geometry.kernel_size)
    circular = geometry.boundary == "circular" and circular_lattice(geometry).exact
    if circular and (k is None or (k == 1 and symbol_side <= _FOURIER_CHANNELS_PER_TAP * taps)):
        return "fourier"
    return "dense" if k is None or min(operator.shape) <= max(_DENSE_SIDE, 4 * k) else "lanczos"


def _smallest(
    operator: ConvOperator, rtol: float, method: str, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    """Return the smallest triplet of a scaled operator in float64."""
    xp = namespace(operator.kernel)
    if method == "auto":
        geometry = operator.geometry
        if geometry.boundary == "circular" and circular_lattice(geometry).exact:
            method = "fourier"
        elif min(operator.shape) <= _DENSE_SIDE:
            method = "dense"
        else:
            method = "inverse" if factorisation_work(operator) <= _FACTORISATION_LIMIT else "lanczos"
    if method == "dense":
        return _last(dense_triplets(operator, min(operator.shape)))
    if method == "fourier":
        every = _last(fourier_triplets(operator, None))
        found = fourier_triplets(operator, 1, smallest=True)
        # Values that do not come from the symbol are 0; their vectors are not sought.
        return found if found.value <= every.value + float(every.errors[0]) else every
    if method == "inverse":
        return _inverse(operator, rtol, max_matvecs, rng)
    start = on_device_of(rng.standard_normal(operator.domain_shape), operator.kernel, xp, dtype=xp.float64)
    return lanczos_triplets(operator, 1, rtol, "value", start, max_matvecs, rng, which="smallest")


def _inverse(operator: ConvOperator, rtol: float, max_matvecs: int, rng: np.random.Generator) -> SingularValues:
    xp = namespace(operator.kernel)
    found = smallest_by_inverse(operator, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
    if found is None:
        zero = xp.zeros(1, dtype=xp.float64, device=device_of(operator.kernel))
        return SingularValues(zero, None, None, None, np.zeros(1), 0, "rank deficient", "inverse")
    value, left, right, error, matvecs, converged = found
    left, right = (
        unvec(vector[None, :], shape, order=operator.order)
        for vector, shape in ((left, operator.range_shape), (right, operator.domain_shape))
    )
    residual = xp.linalg.vector_norm(xp.reshape(operator.adjoint(left) - value * right, (-1,)))
    return SingularValues(
        values=on_device_of([value], operator.kernel, xp, dtype=xp.float64),
        left=left,
        right=right,
        residuals=np.array([float(residual)]),
        errors=np.array([error]),
        matvecs=matvecs,
        status="converged" if converged else "not converged",
        method="inverse",
    )


def _last(result: SingularValues) -> SingularValues:
    """Return the last triplet of a result."""
    last = slice(-1, None)
    return replace(
        result,
        values=result.values[last],
        left=None if result.left is None else result.left[last, ...],
        right=None if result.right is None else result.right[last, ...],
        residuals=None if result.residuals is None else result.residuals[last],
        errors=result.errors[last],
    )


def _norm_bound(operator: ConvOperator) -> float:
    """Bound the largest singular value by the Frobenius norm of the matrix, from the kernel alone."""
    xp = namespace(operator.kernel)
    squares = float(xp.sum(operator.kernel * operator.kernel))
    return math.sqrt(squares * operator.geometry.largest_row_count)


def _in_single(result: SingularValues) -> SingularValues:
    xp = namespace(result.values)
    values = xp.astype(result.values, xp.float32)
    if result.left is None or result.right is None:
        return replace(result, values=values)
    left, right = (xp.astype(vectors, xp.float32) for vectors in (result.left, result.right))
    return replace(result, values=values, left=left, right=right)


def _warn(what: str, result: SingularValues, *, stacklevel: int) -> None:
    worst = float(np.max(result.errors)) / max(result.value, np.finfo(float).tiny)
    warnings.warn(
        f"{what} in {result.matvecs} applications of the operator: the error estimate is {worst:.1e}",
        ConvergenceWarning,
        stacklevel=stacklevel,
    )


def _given_start(operator: ConvOperator, start: SingularValues | ArrayLike, transposed: bool) -> Array:
    """Return the sum of the right singular vectors, or images, to start from, as an image of the convolution."""
    shape = operator.range_shape if transposed else operator.domain_shape
    xp = namespace(operator.kernel)
    vectors = start.right if isinstance(start, SingularValues) else start
    array = check_array("start", vectors, xp, min_ndim=len(shape), axes=f"(..., {', '.join(map(str, shape))})")
    if tuple(array.shape[-len(shape) :]) != shape:
        raise ShapeError(f"start must have shape (..., {', '.join(map(str, shape))}), got {tuple(array.shape)}")
    array = xp.sum(xp.reshape(xp.astype(array, operator.dtype), (-1, *shape)), axis=0)
    array = operator.adjoint(array) if transposed else array
    if not bool(xp.any(array != 0)):
        raise ValueError("start must not be zero, nor sum to zero over its leading axes")
    return array


def convolution_of(operator: LinearMap) -> tuple[ConvOperator, bool]:
    """Return the `ConvOperator` behind an argument, and whether the argument is its transpose."""
    if isinstance(operator, ConvOperator):
        return operator, False
    if isinstance(operator, LinearMap) and isinstance(operator.T, ConvOperator):
        return operator.T, True
    raise TypeError(f"operator must be a ConvOperator or its transpose, got {type(operator).__name__}")


def _tolerance(operator: ConvOperator, rtol: float | None, default: tuple[float, float]) -> float:
    xp = namespace(operator.kernel)
    single = operator.dtype == xp.float32
    if rtol is None:
        return default[0] if single else default[1]
    floor = 4 * float(np.finfo(np.float32 if single else np.float64).eps)
    value = check_real("rtol", rtol, positive=True)
    if value < floor:
        raise ValueError(f"rtol must be at least {floor:.1e} for a kernel of {operator.dtype}, got {value}")
    return value


def _finished(result: SingularValues, exponent: int, operator: LinearMap, transposed: bool) -> SingularValues:
    """Undo the scaling of the kernel, and say what the operator's shape implies."""
    half = exponent // 2

    def rescale(quantity: Any) -> Any:
        return quantity * 2.0**half * 2.0 ** (exponent - half)

    with np.errstate(over="ignore", under="ignore"):
        values = rescale(result.values)
        residuals = None if result.residuals is None else rescale(result.residuals)
        errors = rescale(result.errors)
    if not math.isfinite(float(values[0])):
        raise OverflowError(
            f"the largest singular value, {result.value:.3g} * 2**{exponent}, is beyond {values.dtype}: "
            "scale the kernel"
        )
    rows, columns = operator.shape
    nullity = max(0, columns - rows) + (result.status == "rank deficient")
    result = replace(result, values=values, residuals=residuals, errors=errors, nullity=nullity)
    return result.transposed if transposed else result
