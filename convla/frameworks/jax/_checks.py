"""Checks that are made while JAX traces: of shapes and dtypes, not of values."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from convla._array import describe
from convla.errors import ShapeError

__all__ = ["check_floats"]


def check_floats(name: str, value: Any, least_axes: int, axes: str) -> Array:
    """Return a value as a JAX array of float32 or float64 with enough axes and no empty one.

    Raises
    ------
    TypeError, ShapeError
        If it is none.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {describe(value)}") from error
    if array.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{name} must hold float32 or float64, got dtype {array.dtype}")
    if array.ndim < least_axes or 0 in array.shape:
        raise ShapeError(f"{name} must have shape {axes} with no empty axis, got {array.shape}")
    return array
