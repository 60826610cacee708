"""Checks of arguments, made before any work: each message names the argument, what it got and what it wants."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any

from convla._array import all_finite, as_array, as_float_array, describe, is_numpy
from convla.errors import ShapeError
from convla.typing import Array, ArrayLike, Namespace

__all__ = [
    "check_array",
    "check_choice",
    "check_floating",
    "check_integer",
    "check_per_axis",
    "check_real",
    "check_same_shape",
    "check_sizes",
]


def check_array(
    name: str,
    value: ArrayLike,
    xp: Namespace,
    *,
    ndim: int | None = None,
    min_ndim: int = 0,
    axes: str = "",
    finite: bool = True,
) -> Array:
    """Return `value` as a real array of `xp` with the wanted number of axes and no empty axis.

    Parameters
    ----------
    name : str
        The argument's name in the caller's signature.
    value : array_like
        What was passed.
    xp : namespace
        The array-API namespace to read it in.
    ndim, min_ndim : int, optional
        The exact, or the least, number of axes.
    axes : str, optional
        The wanted shape in words, such as ``"(c_out, c_in, *kernel)"``, for the message.
    finite : bool, optional
        Refuse NaN and infinity.

    Raises
    ------
    TypeError
        If the value is not an array of real numbers.
    ShapeError
        If it has the wrong number of axes, or an axis of length 0.
    ValueError
        If it holds NaN or infinity.
    """
    try:
        array = as_array(value, xp)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {describe(value)}") from error
    if is_numpy(array) and not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))  # compiled code and the BLAS read native bytes only
    shape = tuple(array.shape)
    wanted = f" of shape {axes}" if axes else ""
    exact_objects = is_numpy(array) and array.dtype == object
    if is_numpy(array) and array.dtype.kind not in "iufO":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if exact_objects and any(value is None or isinstance(value, (str, bytes)) for value in array.flat):
        raise TypeError(f"{name} must hold real numbers, got {describe(value)} of text or None")
    if not exact_objects and not xp.isdtype(array.dtype, ("integral", "real floating")):
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if (ndim is not None and len(shape) != ndim) or len(shape) < min_ndim:
        count = f"{ndim}" if ndim is not None else f"at least {min_ndim}"
        raise ShapeError(f"{name} must have {count} axes{wanted and ','}{wanted}, got shape {shape}")
    if 0 in shape:
        raise ShapeError(f"{name} must have no empty axis{wanted and ','}{wanted}, got shape {shape}")
    if finite and not all_finite(array, xp):
        raise ValueError(f"{name} must be finite, got NaN or infinity in an array of shape {shape}")
    return array


def check_floating(
    name: str, value: ArrayLike, xp: Namespace, *, min_ndim: int = 0, axes: str = "", finite: bool = True
) -> Array:
    """Return `value` as a float32 or float64 array, checked as by `check_array`; integers become float64.

    Half precision is refused, not promoted in silence: its sums would need a result of another dtype.

    Raises
    ------
    TypeError
        If the value is no array of real numbers, or one of half or extended precision.
    ShapeError, ValueError
        As for `check_array`.
    """
    array = as_float_array(check_array(name, value, xp, min_ndim=min_ndim, axes=axes, finite=finite), xp)
    if array.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"{name} must hold float32, float64 or integers, got dtype {array.dtype}")
    return array


def check_same_shape(first: str, a: Array, second: str, b: Array) -> None:
    """Raise `ShapeError` unless `a` and `b` have equal shapes."""
    if tuple(a.shape) != tuple(b.shape):
        raise ShapeError(f"{first} and {second} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def check_integer(name: str, value: object, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` as an int in [minimum, maximum]; booleans and floats are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {_range(minimum, maximum)}, got {number}")
    return number


def check_per_axis(name: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return `value`, a positive integer for all image axes or one for each, as a tuple of `ndim` integers."""
    if not isinstance(value, Sequence):
        return (check_integer(name, value, minimum=1),) * ndim
    if len(value) != ndim:
        raise ShapeError(f"{name} must be an integer or {ndim} integers, one for each image axis, got {value!r}")
    return tuple(check_integer(f"{name}[{axis}]", step, minimum=1) for axis, step in enumerate(value))


def check_sizes(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Return `value` as a tuple of positive integers."""
    try:
        sizes = tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, got {value!r}") from None
    return tuple(check_integer(f"{name}[{axis}]", size, minimum=1) for axis, size in enumerate(sizes))


def check_real(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    positive: bool = False,
) -> float:
    """Return `value` as a finite float in [minimum, maximum], or above 0 where `positive`."""
    if isinstance(value, (bool, str)):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    if positive and number <= 0:
        raise ValueError(f"{name} must be positive, got {number}")
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {_range(minimum, maximum)}, got {number}")
    return number


def check_choice(name: str, value: object, choices: Sequence[str] | Collection[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        wanted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {wanted}, got {value!r}")
    return value


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f"between {minimum} and {maximum}"
    return f"at least {minimum}" if minimum is not None else f"at most {maximum}"
