"""Checks of images, features and kernels against each other, shared by the functions and the operator."""

from __future__ import annotations

from typing import Any

from convla._array import describe, is_exact, is_followed, is_traced, namespace
from convla._validate import check_array
from convla.errors import ShapeError
from convla.geometry import ConvGeometry
from convla.typing import Array, ArrayLike, Namespace

__all__ = [
    "check_integer_range",
    "check_integer_sums",
    "check_kernel",
    "check_not_followed",
    "check_signal",
    "match_dtypes",
]


def check_kernel(kernel: ArrayLike, xp: Namespace) -> Array:
    """Return `kernel` as an array (c_out, c_in // groups, *kernel) with one to three kernel axes."""
    array = check_array("kernel", kernel, xp, min_ndim=3, axes="(c_out, c_in // groups, *kernel)")
    if array.ndim > 5:
        raise ShapeError(f"kernel must have 1 to 3 axes after its channels, got shape {tuple(array.shape)}")
    return array


def check_not_followed(name: str, array: Array, what: str) -> None:
    """Raise `TypeError` where a framework would take `what`, which reads values, for something it can differentiate.

    Under ``torch.no_grad()`` nobody expects it to.
    """
    if is_traced(array):
        raise TypeError(f"{what} reads the values of {name}, which JAX only traces here: call it outside jit and grad")
    if is_followed(array):
        raise TypeError(
            f"{what} is not differentiated, and {name} requires a gradient: pass {name}.detach(), or take "
            "convla.frameworks.torch.SpectralPenalty or another of its functions"
        )


def check_signal(name: str, array: Array, wanted: tuple[int, ...], geometry: ConvGeometry) -> None:
    """Raise `ShapeError` unless `array` is one, or a batch, of the arrays of shape `wanted`."""
    shape = tuple(array.shape)
    if shape[-len(wanted) :] != wanted:
        axes = ", ".join(map(str, wanted))
        raise ShapeError(
            f"{name} must have shape (..., {axes}) for a kernel of shape {geometry.kernel_shape} in {geometry.groups} "
            f"group(s) on images of shape {geometry.image_shape}, got {shape}"
        )


def match_dtypes(first: str, a: Array, second: str, b: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return both arrays in one dtype: integers follow a floating partner; unequal dtypes of one kind are refused."""
    for name, array in ((first, a), (second, b)):
        if not is_exact(array) and array.dtype not in (xp.float32, xp.float64):
            raise TypeError(f"{name} must hold float32, float64, integers or exact objects, got dtype {array.dtype}")
    if a.dtype == b.dtype:
        return a, b
    if object in (a.dtype, b.dtype) and is_exact(a) and is_exact(b):
        return xp.astype(a, object), xp.astype(b, object)
    if object in (a.dtype, b.dtype):
        raise TypeError(
            f"{first} and {second} must both hold exact numbers or both floats, got dtypes {a.dtype} and {b.dtype}: "
            "convert one of them"
        )
    if is_exact(a) and not is_exact(b):
        return xp.astype(a, b.dtype), b
    if is_exact(b) and not is_exact(a):
        return a, xp.astype(b, a.dtype)
    raise TypeError(
        f"{first} and {second} must have the same dtype, got {a.dtype} and {b.dtype} ({describe(a)}, {describe(b)})"
    )


def check_integer_range(a: Array, b: Array, terms: int) -> None:
    """Raise `OverflowError` if a sum of `terms` products of entries of `a` and `b` could leave their integer dtype."""
    if a.dtype == object or not is_exact(a) or is_traced(a) or is_traced(b):
        return
    xp = namespace(a)
    limit: Any = xp.iinfo(a.dtype).max
    largest = terms * _largest(a, xp) * _largest(b, xp)
    if largest > limit:
        raise OverflowError(
            f"sums of {terms} products can reach {largest}, beyond the largest {a.dtype}, {limit}: pass floating-point "
            "arrays, or object arrays of Python integers"
        )


def check_integer_sums(name: str, array: Array, terms: int) -> None:
    """Raise `OverflowError` if a sum of `terms` moduli of entries could leave the integer dtype of `array`."""
    if array.dtype == object or not is_exact(array) or is_traced(array):
        return
    xp = namespace(array)
    limit: Any = xp.iinfo(array.dtype).max
    largest = terms * _largest(array, xp)
    if largest > limit:
        raise OverflowError(
            f"sums of {terms} entries of {name} can reach {largest} in modulus, beyond the largest {array.dtype}, "
            f"{limit}: pass floating-point arrays, or object arrays of Python integers"
        )


def _largest(array: Array, xp: Namespace) -> int:
    """Return the largest modulus of an integer array, as a Python integer (the modulus of the least int64 is none)."""
    return max(int(xp.max(array)), -int(xp.min(array)))
