"""The exceptions and warnings that convla raises itself, and the line that installs what is missing."""

import importlib.util
import sys
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
    """Return the command that installs an extra into the environment that runs convla, from where convla came.

    Parameters
    ----------
    extra : str
        Of those in pyproject.toml.

    Examples
    --------
    >>> from convla.errors import install_line
    >>> install_line("verify").endswith("[verify]'")
    True
    """
    pip = "pip" if importlib.util.find_spec("pip") else f"python3 -m pip --python '{sys.prefix}'"
    checkout = Path(__file__).parent.parent
    if (checkout / "pyproject.toml").exists():
        return f"{pip} install -e '{'.' if checkout == Path.cwd() else checkout}[{extra}]'"
    return f"{pip} install '{_origin()}[{extra}]'"


def _origin() -> str:
    """Return the folder or file that convla was installed from where it is still there, else its name in an index."""
    import importlib.metadata  # what only a message needs
    import json
    from urllib.parse import unquote, urlparse

    try:
        text = importlib.metadata.distribution("convla").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        text = None
    place = Path(unquote(urlparse(json.loads(text or "{}").get("url", "")).path))
    return str(place) if place.is_absolute() and place.exists() else "convla"
