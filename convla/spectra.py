"""Singular values of the matrix of a convolution: exact where that is affordable, by Lanczos elsewhere."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from convla._array import namespace
from convla._scaling import scaled_to_unit
from convla._validate import check_array, check_choice, check_integer, check_real
from convla.errors import ConvergenceWarning, ShapeError
from convla.operators import ConvOperator, LinearMap
from convla.torus import circular_lattice
from convla.triplets import (
    SingularValues,
    dense_triplets,
    fourier_triplets,
    lanczos_triplets,
    structured_start,
)
from convla.typing import Array, ArrayLike, Seed

__all__ = ["METHODS", "convolution_of", "largest_singular_value", "singular_values"]

METHODS = ("auto", "dense", "fourier", "lanczos")

Method = Literal["auto", "dense", "fourier", "lanczos"]

_DENSE_SIDE = 256  # up to this many rows or columns the dense decomposition is faster than the iteration
_FOURIER_CHANNELS_PER_TAP = 16  # above, the c^3 work at all frequencies costs more than the iteration's convolutions


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
    convolution, transposed = convolution_of(operator)
    if k is not None:
        k = check_integer("k", k, minimum=1, maximum=min(operator.shape))
    tolerance = _tolerance(convolution, rtol, default=(1e-5, 1e-10))
    result = _largest(convolution, k, tolerance, "residual", method, _start_of(start, transposed), max_matvecs, rng)
    return result.transposed if transposed else result


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
    singular values are separated from the others; see `convla.lanczos`. An enclosure that is proved to hold is
    `singular_value_bounds`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, largest_singular_value
    >>> layer = ConvOperator(np.array([[[1.0, 1.0]]]), (3,), padding="full")
    >>> bool(np.isclose(float(largest_singular_value(layer)), 2 * np.cos(np.pi / 8)))
    True
    """
    convolution, transposed = convolution_of(operator)
    tolerance = _tolerance(convolution, rtol, default=(1e-6, 1e-10))
    result = _largest(convolution, 1, tolerance, "value", method, _start_of(start, transposed), max_matvecs, rng)
    return result.transposed if transposed else result


def _largest(
    operator: ConvOperator,
    k: int | None,
    rtol: float,
    criterion: Literal["residual", "value"],
    method: Method,
    start: Array | None,
    max_matvecs: int,
    rng: Seed,
) -> SingularValues:
    """Do the work of `singular_values` and `largest_singular_value` on a scaled kernel."""
    check_choice("method", method, METHODS)
    check_integer("max_matvecs", max_matvecs, minimum=2)
    scaled, exponent = scaled_to_unit(operator)
    chosen = _choose(scaled, k) if method == "auto" else method
    if chosen == "dense":
        result = dense_triplets(scaled, k)
    elif chosen == "fourier":
        result = fourier_triplets(scaled, k)
    elif k is None:
        raise ValueError("method 'lanczos' needs the number k of singular values, got None")
    else:
        generator = np.random.default_rng(rng)
        first = structured_start(scaled, generator) if start is None else _given_start(scaled, start)
        result = lanczos_triplets(scaled, k, rtol, criterion, first, max_matvecs, generator)
    if result.status != "converged":
        worst = float(np.max(result.errors)) / max(result.value, np.finfo(float).tiny)
        warnings.warn(
            f"the {k} largest singular values were not found to a relative accuracy of {rtol:.1e} in "
            f"{result.matvecs} applications of the operator: the error estimate is {worst:.1e}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return _unscaled(result, exponent)


def _choose(operator: ConvOperator, k: int | None) -> str:
    """Return the cheapest method that applies."""
    geometry = operator.geometry
    symbol_side = min(geometry.out_channels, geometry.in_channels) // geometry.groups
    taps = math.prod(geometry.kernel_size)
    circular = geometry.boundary == "circular" and circular_lattice(geometry).exact
    if circular and (k is None or symbol_side <= _FOURIER_CHANNELS_PER_TAP * taps):
        return "fourier"
    return "dense" if k is None or min(operator.shape) <= max(_DENSE_SIDE, 4 * k) else "lanczos"


def _given_start(operator: ConvOperator, start: Array) -> Array:
    xp = namespace(operator.kernel)
    shape = operator.domain_shape
    array = check_array("start", start, xp, min_ndim=len(shape), axes=f"(..., {', '.join(map(str, shape))})")
    if tuple(array.shape[-len(shape) :]) != shape:
        raise ShapeError(f"start must have shape (..., {', '.join(map(str, shape))}), got {tuple(array.shape)}")
    array = xp.sum(xp.reshape(xp.astype(array, operator.dtype), (-1, *shape)), axis=0)
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


def _start_of(start: SingularValues | ArrayLike | None, transposed: bool) -> Array | None:
    if isinstance(start, SingularValues):
        start = start.left if transposed else start.right
    elif transposed and start is not None:
        raise ValueError("start must be a previous result, or None, for a transposed operator, got an array")
    return start


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


def _unscaled(result: SingularValues, exponent: int) -> SingularValues:
    """Undo `scaled_to_unit` on what scales with the operator."""
    half = exponent // 2

    def rescale(quantity: Any) -> Any:
        return quantity * 2.0**half * 2.0 ** (exponent - half)

    with np.errstate(over="ignore", under="ignore"):
        values = rescale(result.values)
    if not math.isfinite(float(values[0])):
        raise OverflowError(
            f"the largest singular value, {result.value:.3g} * 2**{exponent}, is beyond {values.dtype}: "
            "scale the kernel"
        )
    residuals = None if result.residuals is None else rescale(result.residuals)
    return replace(result, values=values, residuals=residuals, errors=rescale(result.errors))
