"""convla in a PyTorch training script: losses with closed-form backward, transformed gradients, initialisers, networks.

Needs the extra ``torch``. Nothing is copied between PyTorch and NumPy: what runs on CPU tensors through NumPy works on
a view of the same memory.
"""

from convla.frameworks.torch.initializers import delta_orthogonal_, orthogonal_
from convla.frameworks.torch.losses import convolutional_similarity_loss, kernel_orthogonality_loss, ocnn_loss
from convla.frameworks.torch.networks import NETWORKS, basic_cnn, cdg_cnn, cifar_resnet, csm_cnn, resnet18
from convla.frameworks.torch.optimizers import TRANSFORMS, GradientTransform

__all__ = [
    "NETWORKS",
    "TRANSFORMS",
    "GradientTransform",
    "basic_cnn",
    "cdg_cnn",
    "cifar_resnet",
    "convolutional_similarity_loss",
    "csm_cnn",
    "delta_orthogonal_",
    "kernel_orthogonality_loss",
    "ocnn_loss",
    "orthogonal_",
    "resnet18",
]
