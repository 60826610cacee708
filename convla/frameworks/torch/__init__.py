"""convla in a PyTorch training script: losses with closed-form backward, transformed gradients, initialisers.

Needs the extra ``torch``. Losses run on the tensors themselves, on any device. What has compiled kernels for NumPy
arrays gets CPU tensors as NumPy arrays over the same memory; nothing is moved between devices.
"""

from convla.errors import install_line

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"convla.frameworks.torch needs PyTorch: {install_line('torch')}") from error

from convla.frameworks.torch.descent import OrthonormalSGD
from convla.frameworks.torch.initializers import delta_orthogonal_, orthogonal_
from convla.frameworks.torch.layers import convolutions, image_shapes
from convla.frameworks.torch.losses import (
    convolutional_similarity_loss,
    kernel_orthogonality_loss,
    layer_losses,
    ocnn_loss,
)
from convla.frameworks.torch.maps import operator, operators
from convla.frameworks.torch.normalization import spectral_norm
from convla.frameworks.torch.optimizers import GradientTransform
from convla.frameworks.torch.projection import SpectralProjection
from convla.frameworks.torch.similarity import minimize_similarity_, network_similarity_loss, similarity_losses
from convla.frameworks.torch.spectral import NetworkSpectralPenalty, SpectralPenalty
from convla.frameworks.torch.spectrum import (
    condition_number,
    largest_singular_value,
    penalty,
    singular_values,
    smallest_singular_value,
)
from convla.transforms import TRANSFORMS

__all__ = [
    "TRANSFORMS",
    "GradientTransform",
    "NetworkSpectralPenalty",
    "OrthonormalSGD",
    "SpectralPenalty",
    "SpectralProjection",
    "condition_number",
    "convolutional_similarity_loss",
    "convolutions",
    "delta_orthogonal_",
    "image_shapes",
    "kernel_orthogonality_loss",
    "largest_singular_value",
    "layer_losses",
    "minimize_similarity_",
    "network_similarity_loss",
    "ocnn_loss",
    "operator",
    "operators",
    "orthogonal_",
    "penalty",
    "similarity_losses",
    "singular_values",
    "smallest_singular_value",
    "spectral_norm",
]
