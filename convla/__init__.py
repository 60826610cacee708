"""convla: the numerical linear algebra of convolutional layers."""

from convla.conv import convolve, cross_correlate, image_adjoint, kernel_adjoint
from convla.geometry import ConvGeometry
from convla.gradients import laplacian_smoothing, normalized_gradient, reweighted_gradient, sobolev_gradient
from convla.initializers import delta_orthogonal_kernel, orthogonal_kernel
from convla.operators import ConvOperator
from convla.orthonormal import orthonormalize, orthonormalize_operator
from convla.similarity import (
    convolutional_similarity,
    convolutional_similarity_gradient,
    feature_map_gram,
    feature_map_similarity,
    feature_map_similarity_gradient,
    kernel_similarity,
    kernel_similarity_gradient,
)
from convla.toeplitz import (
    circulant_matrix,
    convolution_matrix,
    doubly_block_circulant,
    doubly_block_toeplitz,
    kernel_from_hwio,
    toeplitz_matrix,
    unvec,
    vec,
)

__version__ = "0.1.0"

__all__ = [
    "ConvGeometry",
    "ConvOperator",
    "__version__",
    "circulant_matrix",
    "convolution_matrix",
    "convolutional_similarity",
    "convolutional_similarity_gradient",
    "convolve",
    "cross_correlate",
    "delta_orthogonal_kernel",
    "doubly_block_circulant",
    "doubly_block_toeplitz",
    "feature_map_gram",
    "feature_map_similarity",
    "feature_map_similarity_gradient",
    "image_adjoint",
    "kernel_adjoint",
    "kernel_from_hwio",
    "kernel_similarity",
    "kernel_similarity_gradient",
    "laplacian_smoothing",
    "normalized_gradient",
    "orthogonal_kernel",
    "orthonormalize",
    "orthonormalize_operator",
    "reweighted_gradient",
    "sobolev_gradient",
    "toeplitz_matrix",
    "unvec",
    "vec",
]
