"""Projections: kernels of the same size, nearest or near, whose layers have their singular values where wanted."""

from convla.projections.block_convolution import block_convolution_kernel
from convla.projections.clipping import ClippedKernel, clip_singular_values
from convla.projections.orthogonal import Candidate, OrthogonalKernel, nearest_orthogonal

__all__ = [
    "Candidate",
    "ClippedKernel",
    "OrthogonalKernel",
    "block_convolution_kernel",
    "clip_singular_values",
    "nearest_orthogonal",
]
