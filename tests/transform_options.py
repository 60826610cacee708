"""Options for every transform of a gradient: those of a new one are its defaults, until it has a line here."""

from __future__ import annotations

from typing import Any

from convla.transforms import TRANSFORMS

__all__ = ["OPTIONS"]

_GIVEN: dict[str, dict[str, Any]] = {
    "reweighted": {"lam": 3.0},
    "sobolev": {"lam": 0.5, "blend": 0.25},
    "laplacian": {"sigma": 2.0, "axis": 0},
    "normalized": {"per_filter": True},
}

OPTIONS = {name: _GIVEN.get(name, {}) for name in TRANSFORMS}
