"""Gradients in other metrics on CuPy arrays: one launch each, which goes along all lines at once."""

from __future__ import annotations

import math
from typing import Any

from convla._array import namespace
from convla._cuda import WORKSPACE, blocks_for, c_type, chunks, contiguous, launch_kernel, on_its_device
from convla.typing import Array

__all__ = ["laplacian_smoothing", "macros", "reweighted_gradient", "sobolev_gradient"]

_LINES, _PARTS = 32, 8


@on_its_device
def reweighted_gradient(blocks: Array, lam: float) -> Array:
    """Run the operation; see `convla.gradients.reweighted_gradient`."""
    return _along_lines("reweighted_gradient", blocks, float(lam))


@on_its_device
def sobolev_gradient(blocks: Array, lam: float, blend: float) -> Array:
    """Run the operation; see `convla.gradients.sobolev_gradient`."""
    return _along_lines("sobolev_gradient", blocks, float(lam), float(blend))


def _along_lines(name: str, blocks: Array, *weights: float) -> Array:
    xp = namespace(blocks)
    outer, n, inner = blocks.shape
    given = contiguous(blocks)
    out = xp.empty_like(given)
    arguments = (given, out, outer * inner, n, inner, *weights)
    launch_kernel(
        "convla.engines:lines", name, blocks_for(outer * inner, _LINES), (_LINES, _PARTS), arguments, **macros(blocks)
    )
    return out


@on_its_device
def laplacian_smoothing(blocks: Array, sigma: float) -> Array:
    """Run the operation; see `convla.gradients.laplacian_smoothing`."""
    xp = namespace(blocks)
    outer, n, inner = blocks.shape
    root = 2 * math.sqrt(0.25 + sigma)
    decay, complement = (root - 1) / (root + 1), 2 / (root + 1)
    # 1 - decay^n, accurate where decay is all but 1.
    period = -math.expm1(n * math.log1p(-complement)) if decay else 1.0
    part = blocks_for(n, _PARTS)
    powers = (decay, complement**2, decay**part, decay ** (n % part), period)
    given = contiguous(blocks)
    out = xp.empty_like(given)
    for some in chunks(outer * inner, 8 * n, WORKSPACE):
        lines = some.stop - some.start
        forward = xp.empty((n, lines), dtype=xp.float64)
        arguments = (given, out, forward, some.start, lines, n, inner, *powers)
        grid = blocks_for(lines, _LINES)
        launch_kernel(
            "convla.engines:lines", "laplacian_smoothing", grid, (_LINES, _PARTS), arguments, **macros(blocks)
        )
    return out


def macros(blocks: Array) -> dict[str, Any]:
    """Return what the build for these arrays defines."""
    return {"REAL": c_type(blocks), "LINES": _LINES, "PARTS": _PARTS}
