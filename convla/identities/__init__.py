"""Both sides, and the error terms, of the identities of the ledger, as functions of kernels and inputs."""

from convla.identities.channel_metrics import (
    reweighted_inner_product,
    sobolev_greens_function,
    sobolev_inner_product,
)
from convla.identities.failures import (
    crossing_probability,
    orthogonality_fails,
    orthogonality_failure_limit,
    orthogonalized_pair,
    similarity_failure_limit,
)
from convla.identities.inner_products import (
    autocorrelation,
    correlation_inner_product,
    feature_inner_product,
    input_energy,
    kernel_correlation,
    off_centre_inner_product,
    padding_error_energy,
    padding_error_terms,
)
from convla.identities.kernel_similarity import ordered_pair_similarity, same_channel_similarity
from convla.identities.least_similarity import (
    CATALAN,
    half_circle_pair,
    least_similar_pair,
    least_similarity_enclosure,
    similarity_lower_bound,
    similarity_upper_bound,
)
from convla.identities.matrices import (
    adjoint_kernel,
    gram_kernel,
    penalty_matrix_gradient,
    penalty_of_singular_values,
    scaled_penalty_minimum,
    singular_value_enclosure,
    singular_value_gradient,
)
from convla.identities.normalized_maps import (
    activated_cosine,
    even_similarity,
    map_correlation,
    window_covariance,
)
from convla.identities.orthogonality import boundary_defect, shared_taps

__all__ = [
    "CATALAN",
    "activated_cosine",
    "adjoint_kernel",
    "autocorrelation",
    "boundary_defect",
    "correlation_inner_product",
    "crossing_probability",
    "even_similarity",
    "feature_inner_product",
    "gram_kernel",
    "half_circle_pair",
    "input_energy",
    "kernel_correlation",
    "least_similar_pair",
    "least_similarity_enclosure",
    "map_correlation",
    "off_centre_inner_product",
    "ordered_pair_similarity",
    "orthogonality_fails",
    "orthogonality_failure_limit",
    "orthogonalized_pair",
    "padding_error_energy",
    "padding_error_terms",
    "penalty_matrix_gradient",
    "penalty_of_singular_values",
    "reweighted_inner_product",
    "same_channel_similarity",
    "scaled_penalty_minimum",
    "shared_taps",
    "similarity_failure_limit",
    "similarity_lower_bound",
    "similarity_upper_bound",
    "singular_value_enclosure",
    "singular_value_gradient",
    "sobolev_greens_function",
    "sobolev_inner_product",
    "window_covariance",
]
