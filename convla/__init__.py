"""convla: the numerical linear algebra of convolutional layers."""

from convla.conv import convolve, cross_correlate
from convla.geometry import ConvGeometry
from convla.layer_similarity import (
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    convolutional_similarity_gradient,
    convolutional_similarity_hessian_product,
)
from convla.similarity import (
    feature_map_gram,
    feature_map_similarity,
    feature_map_similarity_gradient,
    kernel_similarity,
    kernel_similarity_gradient,
)

__version__ = "0.1.0"

__all__ = [
    "ConvGeometry",
    "__version__",
    "convolutional_similarity",
    "convolutional_similarity_and_gradient",
    "convolutional_similarity_gradient",
    "convolutional_similarity_hessian_product",
    "convolve",
    "cross_correlate",
    "feature_map_gram",
    "feature_map_similarity",
    "feature_map_similarity_gradient",
    "kernel_similarity",
    "kernel_similarity_gradient",
]
