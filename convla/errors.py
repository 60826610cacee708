"""The exceptions and warnings that convla raises itself, and the line that installs what is missing."""

from pathlib import Path

__all__ = ["ConvergenceWarning", "ConvlaError", "EngineError", "ShapeError", "WeightsError", "install_line"]


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


def install_line(extra: str) -> str:
    """Return the command that installs an extra, from here where convla runs from a checkout.

    Parameters
    ----------
    extra : str
        Of those in pyproject.toml.

    Examples
    --------
    >>> from convla.errors import install_line
    >>> install_line("verify") in ("pip install 'convla[verify]'", "pip install -e '.[verify]'")
    True
    """
    checkout = (Path(__file__).parent.parent / "pyproject.toml").exists()
    return f"pip install -e '.[{extra}]'" if checkout else f"pip install 'convla[{extra}]'"
