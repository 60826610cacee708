"""Counts of parameters and sizes of feature maps in the networks that the sources describe."""

from __future__ import annotations

import convla

__all__ = ["batch_norm_parameters", "conv_parameters", "linear_parameters", "side_after"]


def conv_parameters(c_in: int, c_out: int, side: int) -> int:
    """Count the weights and biases of a convolutional layer with square kernels."""
    return c_out * (c_in * side * side + 1)


def batch_norm_parameters(channels: int) -> int:
    """Count the scales and shifts of a batch normalisation."""
    return 2 * channels


def linear_parameters(inputs: int, outputs: int) -> int:
    """Count the weights and biases of a dense layer."""
    return outputs * (inputs + 1)


def side_after(side: int, kernel: int, *, stride: int = 1, padding: int = 0) -> int:
    """Return the side of the feature maps of a square image."""
    geometry = convla.ConvGeometry((1, 1, kernel, kernel), (side, side), stride=stride, padding=padding)
    return geometry.output_shape[0]
