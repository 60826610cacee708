"""Singular values of a layer by a fixed number of block steps: what runs under jit, with gradients in closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convla._validate import check_choice, check_integer, check_real
from convla.frameworks.jax._checks import check_floats
from convla.frameworks.jax._scaling import power_of_two
from convla.frameworks.jax.convolutions import correlate, layer_geometry
from convla.geometry import ConvGeometry
from convla.typing import Boundary, Padding

__all__ = ["largest_singular_value", "penalty"]


def largest_singular_value(
    kernel: Array,
    image_shape: Sequence[int],
    *,
    padding: Padding = "same",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    steps: int = 12,
    block: int = 4,
    key: Array | None = None,
) -> Array:
    """Return the largest singular value of a layer, by block Lanczos of a fixed number of steps.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        float32 or float64.
    image_shape : sequence of int
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.
    steps, block : int, default 12 and 4
        Of the iteration; it keeps ``steps * block`` images. Where these span all images, the value is exact.
    key : JAX random key, optional
        Of the random images that it starts from; a constant one by default.

    Returns
    -------
    array of shape ()
        Not above the true value, but for rounding. That it is not far below, nothing proves: see
        `convla.singular_value_bounds`.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is none of that kind. When a second derivative is asked for.

    Notes
    -----
    The gradient is the kernel adjoint of the two singular vectors. A direct sum (groups, for one) is searched in all of
    its parts at once, so that more of them need more steps.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import largest_singular_value
    >>> kernel = jnp.array([[3.0, 0.0], [0.0, 2.0]])[:, :, None]
    >>> value, gradient = jax.jit(jax.value_and_grad(lambda k: largest_singular_value(k, (5,))))(kernel)
    >>> round(float(value), 4), jnp.abs(jnp.round(gradient[:, :, 0], 4)).tolist()
    (3.0, [[1.0, 0.0], [0.0, 0.0]])
    """
    kernel = check_floats("kernel", kernel, 3, "(c_out, c_in // groups, *kernel)")
    geometry = layer_geometry(kernel, image_shape, padding, stride, dilation, groups, boundary)
    start = _start(geometry, steps, block, key, kernel.dtype)
    return _largest(kernel, start, geometry, steps)


def penalty(
    kernel: Array,
    image_shape: Sequence[int],
    alpha: float,
    *,
    gram: str = "input",
    padding: Padding = "same",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    steps: int = 12,
    block: int = 4,
    key: Array | None = None,
) -> Array:
    """Return sigma_max(M^T M - alpha I) of a layer, as `convla.penalty`, both ends by one block Lanczos iteration.

    Parameters
    ----------
    kernel, image_shape, padding, stride, dilation, groups, boundary, steps, block, key
        As in `largest_singular_value`.
    alpha : float
        Positive.
    gram : {"input", "smaller"}
        As in `convla.penalty`.

    Returns
    -------
    array of shape ()
        Not above the true value, but for rounding. A smallest singular value is slower to be found than the largest.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `largest_singular_value`; also if `alpha` is not positive, or `gram` unknown.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from convla.frameworks.jax import penalty
    >>> channels = jnp.array([[1.5, 0.0], [0.0, 0.5]])[:, :, None]
    >>> round(float(penalty(channels, (4,), 1.0)), 5)
    1.25
    """
    kernel = check_floats("kernel", kernel, 3, "(c_out, c_in // groups, *kernel)")
    alpha = check_real("alpha", alpha, positive=True)
    check_choice("gram", gram, ("input", "smaller"))
    geometry = layer_geometry(kernel, image_shape, padding, stride, dilation, groups, boundary)
    rows, columns = geometry.shape
    turned = gram == "smaller" and rows < columns
    start = _start(geometry, steps, block, key, kernel.dtype, turned=turned)
    return _penalty(kernel, start, geometry, steps, alpha, turned)


def _product(a: Array, b: Array) -> Array:
    """Multiply matrices in their own precision: by default a GPU rounds the factors of float32 to 10 bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _start(
    geometry: ConvGeometry, steps: int, block: int, key: Array | None, dtype: Any, *, turned: bool = False
) -> Array:
    """Return random vectors to start from, as many as the domain has dimensions if that is fewer."""
    check_integer("steps", steps, minimum=1)
    shape = geometry.range_shape if turned else geometry.domain_shape
    count = min(check_integer("block", block, minimum=1), math.prod(shape))
    key = jax.random.key(0) if key is None else key
    return jax.random.normal(key, (count, *shape), dtype)


def _ritz(
    kernel: Array, start: Array, geometry: ConvGeometry, steps: int, *, turned: bool
) -> tuple[Array, Array, Array]:
    """Return Ritz values, decreasing, their vectors and these vectors' images, as rows.

    Block Lanczos for ``B^T B``, with full orthogonalisation, B being the layer's map or its transpose.
    """
    scale = power_of_two(kernel)  # squares of entries of order 1 are in range
    forward = functools.partial(correlate, kernel=kernel / scale, geometry=geometry)
    count, *shape = start.shape
    back: Callable[[Array], Array] = lambda y: jax.linear_transpose(  # noqa: E731
        forward, jax.ShapeDtypeStruct((y.shape[0], *geometry.domain_shape), kernel.dtype)
    )(y)[0]
    there, here = (back, forward) if turned else (forward, back)
    size = math.prod(shape)
    most = min(steps, -(-size // count))  # a basis of more vectors than dimensions holds no more

    def orthonormal(rows: Array) -> Array:
        return jnp.linalg.qr(rows.T)[0].T

    def advance(basis: Array, place: Array) -> tuple[Array, None]:
        last = jax.lax.dynamic_slice(basis, (place * count, 0), (count, size))
        rows = here(there(last.reshape(count, *shape))).reshape(count, size)
        for _ in range(2):  # after the second time, what little was left is orthogonal too
            rows = orthonormal(rows - _product(_product(rows, basis.T), basis))
        return jax.lax.dynamic_update_slice(basis, rows, ((place + 1) * count, 0)), None

    basis = jnp.zeros((most * count, size), kernel.dtype).at[:count].set(orthonormal(start.reshape(count, size)))
    if most > 1:
        basis, _ = jax.lax.scan(advance, basis, jnp.arange(most - 1))
    # Whatever rounding has done to them: the Ritz values of an orthonormal basis are between the ends of the spectrum.
    basis = orthonormal(basis)
    images = there(basis.reshape(-1, *shape)).reshape(basis.shape[0], -1)
    x, values, _ = jnp.linalg.svd(images, full_matrices=False)
    vectors = _product(x.T, basis)
    return scale * values, vectors, scale * _product(x.T, images)


def _largest_with_gradient(kernel: Array, start: Array, geometry: ConvGeometry, steps: int) -> tuple[Array, Array]:
    values, vectors, images = _ritz(kernel, start, geometry, steps, turned=False)
    # Of a kernel of zeros the value has the subgradient 0.
    left = images[0] / jnp.where(values[0] > 0, values[0], 1)
    return values[0], _outer(left, vectors[0], kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _largest(kernel: Array, start: Array, geometry: ConvGeometry, steps: int) -> Array:
    return _ritz(kernel, start, geometry, steps, turned=False)[0][0]


def _largest_forward(
    kernel: Array, start: Array, geometry: ConvGeometry, steps: int
) -> tuple[Array, tuple[Array, Array]]:
    value, gradient = _largest_with_gradient(_once(kernel), start, geometry, steps)
    return value, (gradient, start)


def _largest_backward(
    geometry: ConvGeometry,  # noqa: ARG001
    steps: int,  # noqa: ARG001
    kept: tuple[Array, Array],
    outer: Array,
) -> tuple[Array, Array]:
    gradient, start = kept
    return outer * gradient, jnp.zeros_like(start)


_largest.defvjp(_largest_forward, _largest_backward)


def _penalty_with_gradient(
    kernel: Array, start: Array, geometry: ConvGeometry, steps: int, alpha: float, turned: bool
) -> tuple[Array, Array]:
    values, vectors, images = _ritz(kernel, start, geometry, steps, turned=turned)
    rows, columns = geometry.shape[::-1] if turned else geometry.shape
    upper, lower = values[0] ** 2 - alpha, alpha - values[-1] ** 2
    above = upper >= lower
    image = jnp.where(above, images[0], -images[-1])
    vector = jnp.where(above, vectors[0], vectors[-1])
    slope = 2 * (_outer(vector, image, kernel, geometry) if turned else _outer(image, vector, kernel, geometry))
    if rows < columns:  # a null vector attains alpha, and its part of the gradient is zero
        return jnp.maximum(upper, alpha), jnp.where(upper >= alpha, slope, 0)
    return jnp.maximum(upper, lower), slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _penalty(kernel: Array, start: Array, geometry: ConvGeometry, steps: int, alpha: float, turned: bool) -> Array:
    return _penalty_with_gradient(kernel, start, geometry, steps, alpha, turned)[0]


def _penalty_forward(
    kernel: Array, start: Array, geometry: ConvGeometry, steps: int, alpha: float, turned: bool
) -> tuple[Array, tuple[Array, Array]]:
    value, gradient = _penalty_with_gradient(_once(kernel), start, geometry, steps, alpha, turned)
    return value, (gradient, start)


def _penalty_backward(
    geometry: ConvGeometry,
    steps: int,
    alpha: float,  # noqa: ARG001
    turned: bool,  # noqa: ARG001
    kept: tuple[Array, Array],
    outer: Array,
) -> tuple[Array, Array]:
    return _largest_backward(geometry, steps, kept, outer)


_penalty.defvjp(_penalty_forward, _penalty_backward)


def _outer(features: Array, image: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Return the kernel adjoint of one pair of vectors."""
    one = image.reshape(geometry.domain_shape)
    transpose = jax.linear_transpose(
        lambda k: correlate(one, k, geometry), jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
    )
    kernels: tuple[Array] = transpose(features.reshape(geometry.range_shape))
    return kernels[0]


@jax.custom_jvp
def _once(kernel: Array) -> Array:
    return kernel


@_once.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:  # noqa: ARG001
    raise TypeError(
        "what is made of singular vectors can be differentiated once, not twice: their change is not followed"
    )
