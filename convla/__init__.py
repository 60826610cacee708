"""convla: the numerical linear algebra of convolutional layers."""

from convla.conv import convolve, cross_correlate, image_adjoint, kernel_adjoint
from convla.geometry import ConvGeometry
from convla.gradients import laplacian_smoothing, normalized_gradient, reweighted_gradient, sobolev_gradient
from convla.initializers import delta_orthogonal_kernel, orthogonal_kernel
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.orthonormal import orthonormalize, orthonormalize_operator
from convla.penalties import PenaltyDescent, Trace, minimize_penalty, penalty, penalty_gradient
from convla.projections import ClippedKernel, OrthogonalKernel, clip_singular_values, nearest_orthogonal
from convla.similarity import (
    Initialization,
    NetworkSimilarity,
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    convolutional_similarity_gradient,
    convolutional_similarity_hessian_product,
    feature_map_gram,
    feature_map_similarity,
    feature_map_similarity_gradient,
    initialize_network,
    kernel_similarity,
    kernel_similarity_gradient,
    network_similarity,
)
from convla.spectra import (
    SingularValueBounds,
    SingularValues,
    Status,
    asymptotic_largest_singular_value,
    condition_number,
    largest_singular_value,
    singular_value_bounds,
    singular_values,
    smallest_singular_value,
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
    "ClippedKernel",
    "ConvGeometry",
    "ConvOperator",
    "Initialization",
    "LinearMap",
    "NetworkSimilarity",
    "OrthogonalKernel",
    "PenaltyDescent",
    "SingularValueBounds",
    "SingularValues",
    "Status",
    "Trace",
    "__version__",
    "asymptotic_largest_singular_value",
    "circulant_matrix",
    "clip_singular_values",
    "condition_number",
    "convolution_matrix",
    "convolutional_similarity",
    "convolutional_similarity_and_gradient",
    "convolutional_similarity_gradient",
    "convolutional_similarity_hessian_product",
    "convolve",
    "cross_correlate",
    "delta_orthogonal_kernel",
    "doubly_block_circulant",
    "doubly_block_toeplitz",
    "feature_map_gram",
    "feature_map_similarity",
    "feature_map_similarity_gradient",
    "image_adjoint",
    "initialize_network",
    "kernel_adjoint",
    "kernel_from_hwio",
    "kernel_similarity",
    "kernel_similarity_gradient",
    "laplacian_smoothing",
    "largest_singular_value",
    "minimize_penalty",
    "nearest_orthogonal",
    "network_similarity",
    "normalized_gradient",
    "orthogonal_kernel",
    "orthonormalize",
    "orthonormalize_operator",
    "penalty",
    "penalty_gradient",
    "reweighted_gradient",
    "singular_value_bounds",
    "singular_values",
    "smallest_singular_value",
    "sobolev_gradient",
    "toeplitz_matrix",
    "unvec",
    "vec",
]
