"""Similarity of kernels and of feature maps: of pairs, of the filters of a layer, of a whole network (CSM)."""

from convla.similarity.layer import (
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    convolutional_similarity_gradient,
    convolutional_similarity_hessian_product,
)
from convla.similarity.network import Initialization, NetworkSimilarity, initialize_network, network_similarity
from convla.similarity.pairs import (
    feature_map_gram,
    feature_map_similarity,
    feature_map_similarity_gradient,
    kernel_similarity,
    kernel_similarity_gradient,
)

__all__ = [
    "Initialization",
    "NetworkSimilarity",
    "convolutional_similarity",
    "convolutional_similarity_and_gradient",
    "convolutional_similarity_gradient",
    "convolutional_similarity_hessian_product",
    "feature_map_gram",
    "feature_map_similarity",
    "feature_map_similarity_gradient",
    "initialize_network",
    "kernel_similarity",
    "kernel_similarity_gradient",
    "network_similarity",
]
