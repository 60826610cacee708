"""The layer as functions of its image and of its kernel, by JAX's own convolution; the adjoints are its transposes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convla.errors import ShapeError
from convla.frameworks.jax._checks import check_floats
from convla.geometry import ConvGeometry
from convla.typing import Boundary, Padding

__all__ = ["correlate", "cross_correlate", "image_adjoint", "kernel_adjoint", "layer_geometry"]


def cross_correlate(
    image: Array,
    kernel: Array,
    *,
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
) -> Array:
    """Slide a kernel over an image and sum the products, as `convla.cross_correlate`.

    Parameters
    ----------
    image : array of shape (..., c_in, *image)
    kernel : array of shape (c_out, c_in // groups, *kernel)
        Of the same dtype, float32 or float64.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.

    Returns
    -------
    array of shape (..., c_out, *output)

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the shapes, dtypes or options do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import cross_correlate
    >>> image, difference = jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([[[-1.0, 0.0, 1.0]]])
    >>> cross_correlate(image, difference, padding="valid").tolist()
    [[2.0, 2.0]]
    """
    kernel = check_floats("kernel", kernel, 3, "(c_out, c_in // groups, *kernel)")
    image = check_floats("image", image, kernel.ndim - 1, "(..., c_in, *image)")
    geometry = layer_geometry(
        kernel, image.shape[image.ndim - kernel.ndim + 2 :], padding, stride, dilation, groups, boundary
    )
    _check_signal("image", image, geometry.domain_shape, kernel)
    return correlate(image, kernel, geometry)


def image_adjoint(
    features: Array,
    kernel: Array,
    *,
    image_shape: Sequence[int],
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
) -> Array:
    """Apply the transpose of cross-correlation as a map of the image, as `convla.image_adjoint`.

    Parameters
    ----------
    features : array of shape (..., c_out, *output)
    kernel : array of shape (c_out, c_in // groups, *kernel)
    image_shape : sequence of int
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.

    Returns
    -------
    array of shape (..., c_in, *image)

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `cross_correlate`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import image_adjoint
    >>> features, difference = jnp.array([[1.0, 0.0]]), jnp.array([[[-1.0, 0.0, 1.0]]])
    >>> image_adjoint(features, difference, image_shape=(4,), padding="valid").tolist()
    [[-1.0, 0.0, 1.0, 0.0]]
    """
    kernel = check_floats("kernel", kernel, 3, "(c_out, c_in // groups, *kernel)")
    geometry = layer_geometry(kernel, image_shape, padding, stride, dilation, groups, boundary)
    features = check_floats("features", features, kernel.ndim - 1, "(..., c_out, *output)")
    _check_signal("features", features, geometry.range_shape, kernel)
    batch = features.shape[: features.ndim - geometry.ndim - 1]
    images = jax.ShapeDtypeStruct((*batch, *geometry.domain_shape), kernel.dtype)
    return _transposed(lambda image: correlate(image, kernel, geometry), images)(features)


def kernel_adjoint(
    features: Array,
    image: Array,
    *,
    kernel_size: Sequence[int],
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
) -> Array:
    """Apply the transpose of ``kernel -> cross_correlate(image, kernel)``, summed over a batch.

    Parameters
    ----------
    features : array of shape (..., c_out, *output)
    image : array of shape (..., c_in, *image)
        With the same leading axes.
    kernel_size : sequence of int
        Of the kernel, without its channels.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.

    Returns
    -------
    array of shape (c_out, c_in // groups, *kernel_size)

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `cross_correlate`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import kernel_adjoint
    >>> features, image = jnp.array([[1.0, 0.0]]), jnp.array([[5.0, 6.0, 7.0]])
    >>> kernel_adjoint(features, image, kernel_size=(2,), padding="valid").tolist()
    [[[5.0, 6.0]]]
    """
    axes = len(tuple(kernel_size)) + 1
    image = check_floats("image", image, axes, "(..., c_in, *image)")
    features = check_floats("features", features, axes, "(..., c_out, *output)")
    inner = image.shape[image.ndim - axes] // groups
    kernels = jax.ShapeDtypeStruct((features.shape[features.ndim - axes], inner, *kernel_size), image.dtype)
    shape = image.shape[image.ndim - axes + 1 :]
    geometry = layer_geometry(kernels, shape, padding, stride, dilation, groups, boundary)
    for name, array, wanted in (("features", features, geometry.range_shape), ("image", image, geometry.domain_shape)):
        _check_signal(name, array, wanted, kernels)
    if features.shape[:-axes] != image.shape[:-axes]:
        raise ShapeError(f"features and image must have the same leading axes, got {features.shape} and {image.shape}")
    return _transposed(lambda kernel: correlate(image, kernel, geometry), kernels)(features)


def correlate(image: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Cross-correlate images with a kernel of a geometry: what `cross_correlate` does once all is checked."""
    batch = image.shape[: image.ndim - geometry.ndim - 1]
    flat = image.reshape(math.prod(batch), *geometry.domain_shape)
    pads = geometry.padding
    if geometry.boundary != "zero":
        for axis, pad in enumerate(pads):
            if pad != (0, 0):
                flat = jnp.take(flat, geometry.sources(axis), axis=2 + axis)
        pads = ((0, 0),) * geometry.ndim
    features = jax.lax.conv_general_dilated(
        flat,
        kernel,
        window_strides=geometry.stride,
        padding=pads,
        rhs_dilation=geometry.dilation,
        feature_group_count=geometry.groups,
        precision=jax.lax.Precision.HIGHEST,
    )
    return features.reshape(*batch, *geometry.range_shape)


def layer_geometry(
    kernel: Any,
    image_shape: Sequence[int],
    padding: Padding,
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    boundary: Boundary,
) -> ConvGeometry:
    """Return the geometry of a kernel, of which only the shape is read."""
    settings: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "boundary": boundary}
    return ConvGeometry(kernel.shape, image_shape, padding=padding, **settings)


def _transposed(function: Callable[[Array], Array], argument: Any) -> Callable[[Array], Array]:
    transpose = jax.linear_transpose(function, argument)
    return lambda cotangent: transpose(cotangent)[0]


def _check_signal(name: str, array: Array, wanted: tuple[int, ...], kernel: Any) -> None:
    if array.shape[array.ndim - len(wanted) :] != wanted:
        raise ShapeError(f"{name} must have shape (..., {', '.join(map(str, wanted))}), got {array.shape}")
    if array.dtype != kernel.dtype:
        raise TypeError(f"{name} and kernel must have the same dtype, got {array.dtype} and {kernel.dtype}")
