"""Initialisers in the style of `jax.nn.initializers`: they return functions of a random key, a shape and a dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from convla._validate import check_choice, check_real, check_sizes
from convla.errors import ShapeError

__all__ = ["delta_orthogonal", "orthogonal"]

Layout = Literal["OIHW", "HWIO"]
Initializer = Callable[..., Array]


def orthogonal(gain: float = 1.0, *, layout: Layout = "OIHW") -> Initializer:
    """Return an initialiser whose filters, as vectors of taps, are orthonormal times a gain; see `orthogonal_kernel`.

    Parameters
    ----------
    gain : float, default 1
        Positive.
    layout : {"OIHW", "HWIO"}
        Where the shape has its channels, c_out being "O": first, as in convla, or last, as in Flax.

    Returns
    -------
    callable
        ``initializer(key, shape, dtype=jnp.float32)``. `jax.nn.initializers.orthogonal`, by contrast, takes the last
        axis alone for the columns, whatever the other axes mean.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is none of that kind; the initialiser: if the shape has fewer than two axes.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import orthogonal
    >>> rows = orthogonal()(jax.random.key(0), (4, 2, 3, 3)).reshape(4, -1)
    >>> bool(jnp.allclose(rows @ rows.T, jnp.eye(4), atol=1e-6))
    True
    """
    gain = check_real("gain", gain, positive=True)
    check_choice("layout", layout, get_args(Layout))

    def initializer(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        size = _filters(shape, layout, 2)
        return _in_layout(gain * _frame(key, size[0], math.prod(size[1:]), dtype).reshape(size), layout)

    return initializer


def delta_orthogonal(gain: float = 1.0, *, layout: Layout = "OIHW") -> Initializer:
    """Return an initialiser of a random orthonormal matrix at the centre tap; see `convla.delta_orthogonal_kernel`.

    Parameters
    ----------
    gain : float, default 1
        Positive.
    layout : {"OIHW", "HWIO"}
        As in `orthogonal`.

    Returns
    -------
    callable
        ``initializer(key, shape, dtype=jnp.float32)``; any numbers of channels.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `orthogonal`; the shape has one to three axes beside the channels.

    Examples
    --------
    >>> import jax
    >>> from convla.frameworks.jax import delta_orthogonal
    >>> int((delta_orthogonal()(jax.random.key(0), (4, 2, 3, 3)) != 0).sum())
    8
    """
    gain = check_real("gain", gain, positive=True)
    check_choice("layout", layout, get_args(Layout))

    def initializer(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        size = _filters(shape, layout, 3)
        # The tap that same padding lays on the output's own position.
        centre = tuple((k - 1) // 2 for k in size[2:])
        frame = gain * _frame(key, size[0], size[1], dtype)
        kernel = jnp.zeros(size, dtype).at[(slice(None), slice(None), *centre)].set(frame)
        return _in_layout(kernel, layout)

    return initializer


def _filters(shape: Sequence[int], layout: Layout, least: int) -> tuple[int, ...]:
    """Return the shape with the channels first."""
    size = check_sizes("shape", shape)
    if not least <= len(size) <= 5:
        raise ShapeError(f"shape must have {least} to 5 axes, got {size}")
    return size if layout == "OIHW" else (size[-1], size[-2], *size[:-2])


def _in_layout(kernel: Array, layout: Layout) -> Array:
    return kernel if layout == "OIHW" else jnp.moveaxis(kernel, (0, 1), (-1, -2))


def _frame(key: Array, rows: int, columns: int, dtype: Any) -> Array:
    """Return a uniformly distributed matrix with orthonormal rows, or columns where it has fewer."""
    short, long = sorted((rows, columns))
    # Rounding of a Gaussian's QR factors is of the order of the dtype's: no other precision is needed.
    q, r = jnp.linalg.qr(jax.random.normal(key, (long, short), dtype))
    frame = q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(dtype)
    return frame.T if rows <= columns else frame
