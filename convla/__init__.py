"""convla: the numerical linear algebra of convolutional layers."""

from convla.asymptotics import asymptotic_largest_singular_value
from convla.bounds import SingularValueBounds, singular_value_bounds
from convla.conv import convolve, cross_correlate, image_adjoint, kernel_adjoint
from convla.geometry import ConvGeometry
from convla.gradients import laplacian_smoothing, normalized_gradient, reweighted_gradient, sobolev_gradient
from convla.initializers import delta_orthogonal_kernel, orthogonal_kernel
from convla.layer_similarity import (
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    convolutional_similarity_gradient,
    convolutional_similarity_hessian_product,
)
from convla.network import Initialization, NetworkSimilarity, initialize_network, network_similarity
from convla.operators import ConvOperator
from convla.orthonormal import orthonormalize, orthonormalize_operator
from convla.penalties import penalty, penalty_gradient
from convla.penalty_descent import PenaltyDescent, Trace, minimize_penalty
from convla.similarity import (
    feature_map_gram,
    feature_map_similarity,
    feature_map_similarity_gradient,
    kernel_similarity,
    kernel_similarity_gradient,
)
from convla.spectra import condition_number, largest_singular_value, singular_values, smallest_singular_value
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
from convla.triplets import SingularValues

__version__ = "0.1.0"

__all__ = [
    "ConvGeometry",
    "ConvOperator",
    "Initialization",
    "NetworkSimilarity",
    "PenaltyDescent",
    "SingularValueBounds",
    "SingularValues",
    "Trace",
    "__version__",
    "asymptotic_largest_singular_value",
    "circulant_matrix",
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
