"""TOML files that people write: what is wrong with one is said in a line, with its name."""

from __future__ import annotations

import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

__all__ = ["read_toml"]


def read_toml(source: Path | Traversable, name: str, error: type[Exception]) -> dict[str, Any]:
    """Return what a TOML file holds; raise `error`, with the name that it goes by, if it is not there or is none."""
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as found:
        raise error(f"{name}: cannot be read: {found.strerror or found}") from found
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as found:
        raise error(f"{name}: not a TOML file: {found}") from found
