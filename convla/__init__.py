"""convla: the numerical linear algebra of convolutional layers."""

from convla.conv import convolve, cross_correlate
from convla.geometry import ConvGeometry

__version__ = "0.1.0"

__all__ = ["ConvGeometry", "__version__", "convolve", "cross_correlate"]
