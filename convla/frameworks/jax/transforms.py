"""Gradients of a layer in other metrics, and orthonormalised, as functions and as a transformation of optax."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from convla._validate import check_choice, check_integer, check_real
from convla.errors import install_line
from convla.frameworks.jax._checks import check_floats

__all__ = ["laplacian_smoothing", "orthonormalize", "reweighted_gradient", "sobolev_gradient", "transform_gradients"]

Layout = Literal["OIHW", "HWIO"]


def reweighted_gradient(gradient: Array, lam: float, *, axis: int = 0) -> Array:
    """Return the gradient in the re-weighted H0 metric along one axis, as `convla.reweighted_gradient`.

    Parameters
    ----------
    gradient : array of float32 or float64
    lam : float
        Positive.
    axis : int, default 0

    Returns
    -------
    array of the shape and dtype of `gradient`

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is none of that kind.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import reweighted_gradient
    >>> reweighted_gradient(jnp.array([[1.0], [3.0], [8.0]]), 2.0)[:, 0].tolist()
    [2.5, 3.5, 6.0]
    """
    gradient = _gradient(gradient, axis)
    lam = check_real("lam", lam, positive=True)
    mean = jnp.mean(gradient, axis=axis, keepdims=True)
    return mean + (gradient - mean) / lam


def sobolev_gradient(gradient: Array, lam: float, *, axis: int = 0, blend: float = 0.0) -> Array:
    """Return the gradient in the channel-directed Sobolev metric along one axis, as `convla.sobolev_gradient`.

    Parameters
    ----------
    gradient : array of float32 or float64
    lam : float
        Positive.
    axis : int, default 0
    blend : float, default 0
        How much of the gradient itself is added.

    Returns
    -------
    array of the shape and dtype of `gradient`

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is none of that kind.

    References
    ----------
    Channel-Directed Gradients for Optimization of Convolutional Neural Networks (CDG), Eq. (8).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import sobolev_gradient
    >>> [round(v, 4) for v in sobolev_gradient(jnp.array([[1.0], [3.0], [8.0]]), 1.0)[:, 0].tolist()]
    [3.8889, 3.963, 4.1481]
    """
    gradient = _gradient(gradient, axis)
    lam = check_real("lam", lam, positive=True)
    blend = check_real("blend", blend, minimum=0.0)
    mean = functools.partial(jnp.mean, axis=axis, keepdims=True)
    n = gradient.shape[axis]
    bends = jnp.cumsum(gradient - mean(gradient), axis=axis)
    slopes = mean(bends) - bends
    values = jnp.cumsum(slopes, axis=axis) - slopes
    return mean(gradient) + (values - mean(values)) / (lam * n * n) + blend * gradient


def laplacian_smoothing(gradient: Array, sigma: float, *, axis: int = 0) -> Array:
    """Return the gradient smoothed by ``(I - sigma L)^-1`` along one axis, as `convla.laplacian_smoothing`.

    Parameters
    ----------
    gradient : array of float32 or float64
    sigma : float
        At least 0.
    axis : int, default 0

    Returns
    -------
    array of the shape and dtype of `gradient`

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is none of that kind.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import laplacian_smoothing
    >>> [round(v, 4) for v in laplacian_smoothing(jnp.array([[1.0], [3.0], [8.0]]), 1.0)[:, 0].tolist()]
    [3.25, 3.75, 5.0]
    """
    gradient = _gradient(gradient, axis)
    sigma = check_real("sigma", sigma, minimum=0.0)
    n = gradient.shape[axis]
    waves = 1 + 2 * sigma * (1 - jnp.cos(2 * math.pi * jnp.arange(n // 2 + 1) / n))
    shape = [1] * gradient.ndim
    shape[axis] = -1
    spectrum = jnp.fft.rfft(gradient, axis=axis) / waves.reshape(shape)
    return jnp.fft.irfft(spectrum, n, axis=axis).astype(gradient.dtype)


def orthonormalize(gradient: Array, *, groups: int = 1) -> Array:
    """Return the orthonormal polar factor of a layer's gradient as a matrix of filters, as `convla.orthonormalize`.

    Parameters
    ----------
    gradient : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64.
    groups : int, default 1
        Of the layer, each taken by itself.

    Returns
    -------
    array of the shape and dtype of `gradient`
        Directions whose singular values count as zero, beside the largest, are left out.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is none of that kind.

    Notes
    -----
    By a singular value decomposition in the gradient's dtype. It is no function to be differentiated where singular
    values coincide.

    Examples
    --------
    >>> import numpy as np
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import orthonormalize
    >>> np.asarray(orthonormalize(jnp.array([[[3.0, 4.0]], [[-8.0, 6.0]]])), float)[:, 0].round(4)
    array([[ 0.6,  0.8],
           [-0.8,  0.6]])
    """
    gradient = check_floats("gradient", gradient, 2, "(c_out, c_in // groups, *kernel)")
    groups = check_integer("groups", groups, minimum=1)
    if gradient.shape[0] % groups:
        raise ValueError(f"groups must divide the number of filters {gradient.shape[0]}, got {groups}")
    rows = gradient.reshape(groups, gradient.shape[0] // groups, -1)
    left, values, right = jnp.linalg.svd(rows, full_matrices=False)
    cut = max(rows.shape[1:]) * jnp.finfo(gradient.dtype).eps * values[:, :1]
    factor = jnp.matmul(left * (values > cut)[:, None, :], right, precision=jax.lax.Precision.HIGHEST)
    return factor.reshape(gradient.shape)


TRANSFORMS: dict[str, Callable[..., Array]] = {
    "reweighted": reweighted_gradient,
    "sobolev": sobolev_gradient,
    "laplacian": laplacian_smoothing,
    "orthonormal": orthonormalize,
}


def transform_gradients(transform: str, *, layout: Layout = "OIHW", **options: Any) -> Any:
    """Return an optax transformation of the gradients of convolution kernels; other parameters' are left as they are.

    Parameters
    ----------
    transform : {"reweighted", "sobolev", "laplacian", "orthonormal"}
    layout : {"OIHW", "HWIO"}
        Where the parameters have their channels: first, as here, or last, as in Flax and Haiku. Parameters of three
        axes or more count as kernels; to choose others, wrap it in ``optax.masked``.
    **options
        Of the transform: ``lam=1.0``, ``blend=0.5``, ...

    Returns
    -------
    optax.GradientTransformation
        Without a state. Chain it before an optimizer, or after its momentum: ``optax.chain(optax.trace(0.9), ...)``.

    Raises
    ------
    ImportError
        If optax is not installed.
    TypeError, ValueError
        If the transform has no such name or options.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import transform_gradients
    >>> transformation = transform_gradients("reweighted", lam=2.0)
    >>> gradients = {"kernel": jnp.array([[[1.0]], [[3.0]], [[8.0]]]), "bias": jnp.array([1.0])}
    >>> updates, _ = transformation.update(gradients, transformation.init(gradients))
    >>> updates["kernel"][:, 0, 0].tolist(), updates["bias"].tolist()
    ([2.5, 3.5, 6.0], [1.0])
    """
    try:
        import optax
    except ImportError as error:
        raise ImportError(f"transform_gradients needs optax: {install_line('jax')}") from error
    function = TRANSFORMS[check_choice("transform", transform, tuple(TRANSFORMS))]
    check_choice("layout", layout, get_args(Layout))
    try:
        inspect.signature(function).bind(None, **options)
    except TypeError as error:
        raise TypeError(f"options of the transform {transform!r}: {error}") from None

    def one(gradient: Array) -> Array:
        if gradient.ndim < 3:
            return gradient
        if layout == "OIHW":
            return function(gradient, **options)
        filters = jnp.moveaxis(gradient, (-1, -2), (0, 1))
        return jnp.moveaxis(function(filters, **options), (0, 1), (-1, -2))

    return optax.stateless(lambda updates, _: jax.tree.map(one, updates))


def _gradient(gradient: Any, axis: int) -> Array:
    array = check_floats("gradient", gradient, 1, "(c_out, c_in, *kernel)")
    check_integer("axis", axis, minimum=-array.ndim, maximum=array.ndim - 1)
    return array
