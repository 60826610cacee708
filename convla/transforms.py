"""The transforms of a gradient by name: the one list that adapters and settings read.

A layer's groups read different channels. A transform that mixes filters has a parameter ``axis`` or ``batch_axes``, by
which adapters keep the groups apart; one without either gets all filters of a layer at once.
"""

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
