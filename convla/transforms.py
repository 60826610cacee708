"""The transforms of a gradient by name: the one list that adapters and settings read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convla.gradients import laplacian_smoothing, normalized_gradient, reweighted_gradient, sobolev_gradient
from convla.orthonormal import orthonormalize

__all__ = ["TRANSFORMS"]

TRANSFORMS: dict[str, Callable[..., Any]] = {
    "reweighted": reweighted_gradient,
    "sobolev": sobolev_gradient,
    "laplacian": laplacian_smoothing,
    "orthonormal": orthonormalize,
    "normalized": normalized_gradient,
}
"""What each name stands for."""
