"""convla: the numerical linear algebra of convolutional layers."""

__version__ = "0.1.0"

__all__ = ["__version__"]
