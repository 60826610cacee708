"""The exceptions and warnings that convla raises itself."""

__all__ = ["ConvergenceWarning", "ConvlaError", "EngineError", "ShapeError", "WeightsError"]


class ConvlaError(Exception):
    """Base class of every exception that convla defines."""


class ShapeError(ConvlaError, ValueError):
    """An array has the wrong number of axes, or its shape does not fit another's."""


class EngineError(ConvlaError, RuntimeError):
    """An engine was asked for that is not there, or that does not take this type of array."""


class WeightsError(ConvlaError, ValueError):
    """A file of weights cannot be read or written: malformed, truncated, hostile, or of an unknown format."""


class ConvergenceWarning(UserWarning):
    """An iterative method stopped before it reached the accuracy it was asked for."""
