"""Checks of arguments, made before any work: each message names the argument, what it got and what it wants."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

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
    "check_rng",
    "check_same_shape",
    "check_sizes",
    "layer_advice",
]

_FLINT = {"fmpz", "fmpq", "fmpz_poly", "fmpq_poly", "fmpz_mpoly", "fmpq_mpoly", "fmpz_mod", "nmod", "arb"}
"""What of python-flint can be an entry: integers, rationals, polynomials of them, and balls around what is exact."""

_INEXACT = {"Float", "NaN", "Infinity", "NegativeInfinity", "ComplexInfinity", "ImaginaryUnit"}
"""What SymPy calls its numbers that are not exact, not finite or not real."""


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
        If the value is not a dense array of real numbers, has a mask, or holds objects that are no exact numbers.
    ShapeError
        If it has the wrong number of axes, or an axis of length 0.
    ValueError
        If it holds NaN or infinity.
    """
    _refuse_masks(name, value)
    if advice := layer_advice(value):
        raise TypeError(f"{name} must be an array of real numbers, got {describe(value)}{advice}")
    try:
        array = as_array(value, xp)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {describe(value)}") from error
    layout = getattr(array, "layout", None)
    if layout is not None and str(layout) != "torch.strided":
        raise TypeError(f"{name} must be a dense array, got a tensor of layout {layout}: pass {name}.to_dense()")
    if is_numpy(array) and type(array) is not np.ndarray:
        array = array.view(np.ndarray)  # a numpy.matrix takes * for the product of matrices
    if is_numpy(array) and not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))  # compiled code and the BLAS read native bytes only
    shape = tuple(array.shape)
    wanted = f" of shape {axes}" if axes else ""
    exact_objects = is_numpy(array) and array.dtype == object
    if is_numpy(array) and array.dtype.kind not in "iufO":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if exact_objects:
        _check_exact(name, array)
    if not exact_objects and not xp.isdtype(array.dtype, ("integral", "real floating")):
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if (ndim is not None and len(shape) != ndim) or len(shape) < min_ndim:
        count = f"{ndim}" if ndim is not None else f"at least {min_ndim}"
        raise ShapeError(f"{name} must have {count} axes{wanted and ','}{wanted}, got shape {shape}")
    if 0 in shape:
        raise ShapeError(f"{name} must have no empty axis{wanted and ','}{wanted}, got shape {shape}")
    if finite and not all_finite(array):
        raise ValueError(f"{name} must be finite, got NaN or infinity in an array of shape {shape}")
    return array


def _refuse_masks(name: str, value: object) -> None:
    parts = value if isinstance(value, (list, tuple)) else (value,)
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise TypeError(f"{name} must be a plain array, got a masked one: masks are not read, pass {name}.filled(0)")


def layer_advice(value: object) -> str:
    """Return what leads from a layer of PyTorch to its map and its kernel, for a message; "" for anything else."""
    if not any(base.__module__ == "torch.nn.modules.module" for base in type(value).__mro__):
        return ""
    return ": convla.frameworks.torch.operator(layer, image_shape) is the map of a layer, layer.weight its kernel"


def _check_exact(name: str, array: Array) -> None:
    """Raise `TypeError` unless an object array holds exact numbers, with which all arithmetic is exact."""
    for value in np.asarray(array).flat:
        if type(value) is not int and not _is_exact_number(value):
            raise TypeError(
                f"{name} must hold real numbers, and exact ones (int, Fraction, python-flint's, SymPy's) where its "
                f"dtype is object, got {describe(value)}"
            )


def _is_exact_number(value: Any) -> bool:
    if isinstance(value, numbers.Number):
        return isinstance(value, numbers.Rational) and not isinstance(value, bool)
    library, kind = type(value).__module__.partition(".")[0], type(value).__name__
    if library == "flint":
        return kind in _FLINT and (kind != "arb" or bool(value.is_finite()))
    # An expression of SymPy is as exact as what it is made of. Elements of its polynomial rings have no atoms.
    return library == "sympy" and not _INEXACT.intersection(
        type(atom).__name__ for atom in getattr(value, "atoms", tuple)()
    )


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
    if isinstance(value, np.ndarray) and value.dtype == object:
        raise TypeError(f"{name} must hold float32, float64 or integers, got dtype object")
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


def check_per_axis(name: str, value: int | Sequence[int], ndim: int, *, minimum: int = 1) -> tuple[int, ...]:
    """Return `value`, an integer for all image axes or one for each, as a tuple of `ndim` integers."""
    if not isinstance(value, Sequence):
        return (check_integer(name, value, minimum=minimum),) * ndim
    if len(value) != ndim:
        raise ShapeError(f"{name} must be an integer or {ndim} integers, one for each image axis, got {value!r}")
    return tuple(check_integer(f"{name}[{axis}]", step, minimum=minimum) for axis, step in enumerate(value))


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


def check_rng(rng: Any) -> np.random.Generator:
    """Return the generator of a seed.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            "rng must be a numpy.random.Generator, a seed (an integer of at least 0, a SeedSequence) or None, "
            f"got {rng!r}"
        ) from error


def check_choice(name: str, value: object, choices: Sequence[str] | Collection[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        wanted = ", ".join(repr(choice) for choice in choices)
        near = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
        meant = f": did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {wanted}, got {value!r}{meant}")
    return value


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f"between {minimum} and {maximum}"
    return f"at least {minimum}" if minimum is not None else f"at most {maximum}"
