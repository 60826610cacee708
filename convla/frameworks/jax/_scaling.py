"""Powers of two that are split off kernels, so that squares and fourth powers of their entries stay in their dtype."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["of_fourth_powers", "power_of_two"]


def power_of_two(array: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Return the power of two at the largest modulus, or at those along some axes; 1 for zeros.

    It is no function to be differentiated, and not subnormal, which JAX may flush to zero.
    """
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(array)), axis=axes, keepdims=axes is not None)
    _, exponent = jnp.frexp(largest)
    least = jnp.finfo(array.dtype).minexp
    return jnp.where(
        largest > 0, jnp.ldexp(jnp.ones_like(largest), jnp.maximum(exponent - 1, least)), jnp.ones_like(largest)
    )


def of_fourth_powers(function: Callable[[Array, Array], Array], kernels: Array) -> Array:
    """Return a sum of fourth powers of kernels, of squares and of constants.

    Parameters
    ----------
    function : callable
        Of ``(kernels, unit)``, homogeneous of degree 4 in the kernels and the root of the unit, which stands for 1.
    kernels : array

    Returns
    -------
    array of shape ()
        ``function(kernels, 1)``, infinite where it is beyond the dtype, not NaN; its gradient too.
    """
    scale = power_of_two(kernels)
    # Only where fourth powers are near the end of the range: a power below would flush the unit's square.
    scale = jnp.where(scale > 2.0 ** (jnp.finfo(kernels.dtype).maxexp // 8), scale, jnp.ones_like(scale))

    @jax.custom_jvp
    def value(kernels: Array) -> Array:
        return _times(function(kernels / scale, scale**-2.0), scale, 4)

    @value.defjvp
    def slope(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (kernels,), (tangent,) = primals, tangents
        found, gradient = jax.value_and_grad(function)(kernels / scale, scale**-2.0)
        return _times(found, scale, 4), jnp.sum(_times(gradient, scale, 3) * tangent)

    return value(kernels)


def _times(array: Array, scale: Array, power: int) -> Array:
    for _ in range(power):  # one by one: 0 times a power that overflows is NaN
        array = array * scale
    return array
