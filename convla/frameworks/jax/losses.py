"""Losses on a layer's kernels: convolutional similarity, kernel orthogonality, OCNN. Differentiated by JAX itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import Array

from convla._validate import check_choice, check_integer, check_per_axis
from convla.errors import ShapeError
from convla.frameworks.jax._checks import check_floats
from convla.frameworks.jax._scaling import of_fourth_powers, power_of_two
from convla.similarity.layer import Pairs

__all__ = ["convolutional_similarity_loss", "kernel_orthogonality_loss", "ocnn_loss"]


def convolutional_similarity_loss(kernels: Array, *, pairs: Pairs = "unordered", normalized: bool = False) -> Array:
    """Return the convolutional similarity of a layer's kernels, as `convla.convolutional_similarity`.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64; the sums are kept in it.
    pairs : {"unordered", "ordered"}
    normalized : bool, default False
        The scale-invariant form; of a kernel of zeros it is NaN.

    Returns
    -------
    array of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the kernels are none of that kind, or an option is unknown.

    Notes
    -----
    By Parseval's theorem, with P_i the power spectrum of kernel i, summed over its channels, at the frequencies of a
    grid of 2 k - 1 points along each axis, it is the mean over these of ``((sum P_i)^2 - sum P_i^2) / 2`` times their
    number.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import convolutional_similarity_loss
    >>> round(float(convolutional_similarity_loss(jnp.array([[[1.0, 2.0]], [[3.0, -1.0]]]))), 3)
    38.0
    """
    kernels = _kernels(kernels)
    check_choice("pairs", pairs, get_args(Pairs))
    axes = tuple(range(2, kernels.ndim))
    if normalized:
        filters = tuple(range(1, kernels.ndim))
        kernels = kernels / power_of_two(kernels, filters)  # squares of entries of order 1 are in range
        kernels = kernels / jnp.sqrt(jnp.sum(kernels**2, axis=filters, keepdims=True))
    grid = [2 * k - 1 for k in kernels.shape[2:]]

    def similarity(kernels: Array, unit: Array) -> Array:  # noqa: ARG001
        power = jnp.sum(jnp.abs(jnp.fft.fftn(kernels, grid, axes)) ** 2, axis=1)
        return jnp.sum(jnp.sum(power, axis=0) ** 2 - jnp.sum(power**2, axis=0)) / math.prod(grid)

    ordered = of_fourth_powers(similarity, kernels)
    return ordered if pairs == "ordered" else ordered / 2


def kernel_orthogonality_loss(kernels: Array, *, groups: int = 1) -> Array:
    """Return the squared Frobenius norm of W W^T - I, W the kernels as rows.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64.
    groups : int, default 1
        The layer's, whose values add up.

    Returns
    -------
    array of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the kernels are none of that kind, or the groups do not divide their number.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import kernel_orthogonality_loss
    >>> float(kernel_orthogonality_loss(jnp.array([[[1.0, 1.0]]])))
    1.0
    """
    blocks = _blocks(_kernels(kernels), groups)

    def orthogonality(blocks: Array, unit: Array) -> Array:
        rows = blocks.reshape(*blocks.shape[:2], -1)
        missing = max(0, rows.shape[1] - rows.shape[2])
        turned = jnp.swapaxes(rows, 1, 2)
        factors = (turned, rows) if missing else (rows, turned)  # of the smaller one; it lacks 1 for each missing value
        gram = jnp.matmul(*factors, precision=jax.lax.Precision.HIGHEST)
        residual = gram - unit * jnp.eye(gram.shape[1], dtype=gram.dtype)
        return jnp.sum(residual**2) + rows.shape[0] * missing * unit**2

    return of_fourth_powers(orthogonality, blocks)


def ocnn_loss(kernels: Array, *, stride: int | Sequence[int] = 1, groups: int = 1) -> Array:
    """Return the OCNN residual of a layer's kernels, as `convla.similarity.orthogonality.ocnn_residual`.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64.
    stride : int or sequence of int, default 1
    groups : int, default 1

    Returns
    -------
    array of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the kernels are none of that kind, or an option is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import ocnn_loss
    >>> float(ocnn_loss(jnp.array([[[1.0, 1.0]]])))
    3.0
    """
    kernels = _kernels(kernels)
    strides = check_per_axis("stride", stride, kernels.ndim - 2)
    blocks = _blocks(kernels, groups)
    # Lags from -p to p in steps of the stride, 0 among them.
    pads = [((k - 1) // s * s,) * 2 for k, s in zip(kernels.shape[2:], strides, strict=True)]

    def residual(block: Array, unit: Array) -> Array:
        found = jax.lax.conv_general_dilated(block, block, strides, pads, precision=jax.lax.Precision.HIGHEST)
        centre = tuple(n // 2 for n in found.shape[2:])
        identity = (
            jnp.zeros_like(found)
            .at[(slice(None), slice(None), *centre)]
            .set(unit * jnp.eye(block.shape[0], dtype=found.dtype))
        )
        return jnp.sum((found - identity) ** 2)

    return of_fourth_powers(lambda blocks, unit: jnp.sum(jax.vmap(residual, (0, None))(blocks, unit)), blocks)


def _kernels(kernels: Any) -> Array:
    array = check_floats("kernels", kernels, 3, "(c_out, c_in // groups, *kernel)")
    if array.ndim > 5:
        raise ShapeError(f"kernels must have 1 to 3 axes after its channels, got shape {array.shape}")
    return array


def _blocks(kernels: Array, groups: int) -> Array:
    groups = check_integer("groups", groups, minimum=1)
    if kernels.shape[0] % groups:
        raise ShapeError(f"groups must divide the number of kernels {kernels.shape[0]}, got {groups}")
    return kernels.reshape(groups, kernels.shape[0] // groups, *kernels.shape[1:])
