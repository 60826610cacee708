"""convla in a JAX training script: the layer and its adjoints, losses, singular values, transforms, initialisers.

Needs the extra ``jax``. Everything runs under ``jax.jit``, ``jax.grad`` and ``jax.vmap``, in the dtype of its
arguments, float32 or float64, and in any device's memory: shapes and options are checked while JAX traces, values are
not. Kernels are (c_out, c_in, *kernel) and images (..., c_in, *image), as everywhere in convla.
"""

from convla.errors import install_line

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError(f"convla.frameworks.jax needs JAX: {install_line('jax')}") from error

from convla.frameworks.jax.convolutions import cross_correlate, image_adjoint, kernel_adjoint
from convla.frameworks.jax.initializers import delta_orthogonal, orthogonal
from convla.frameworks.jax.losses import convolutional_similarity_loss, kernel_orthogonality_loss, ocnn_loss
from convla.frameworks.jax.spectrum import largest_singular_value, penalty
from convla.frameworks.jax.transforms import (
    laplacian_smoothing,
    orthonormalize,
    reweighted_gradient,
    sobolev_gradient,
    transform_gradients,
)

__all__ = [
    "convolutional_similarity_loss",
    "cross_correlate",
    "delta_orthogonal",
    "image_adjoint",
    "kernel_adjoint",
    "kernel_orthogonality_loss",
    "laplacian_smoothing",
    "largest_singular_value",
    "ocnn_loss",
    "orthogonal",
    "orthonormalize",
    "penalty",
    "reweighted_gradient",
    "sobolev_gradient",
    "transform_gradients",
]
