"""convla: the numerical linear algebra of convolutional layers."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# What is public stands in the stub alone, which type checkers read as well. A name's module is imported when the name
# is asked for: `import convla` loads neither SciPy nor NumPy.
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: home for home, name in re.findall(r"^from (\S+) import (\w+) as \2$", _STUB, re.MULTILINE)}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"convla.{name}") is not None:
        value = importlib.import_module(f"convla.{name}")
    else:
        raise AttributeError(f"module 'convla' has no attribute {name!r}", name=name)
    globals()[name] = value  # the next time it is found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
