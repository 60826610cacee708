"""Cross-correlation and its two adjoints on CuPy arrays, by kernels of our own: `convolution.cu`.

With few channels, and for integers, each thread sums directly. Else the sums are an implicit product of matrices: a
block has a tile of the result, channels by places of all images, and gathers what it multiplies as it goes; the windows
of all taps are never written down. What depends on the sizes alone, tables and grids, is kept
(`convla.engines._cuda_plans`), so that a call is little more than its launch.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any, cast

from convla._cuda import WORKSPACE, chunks, contiguous, on_its_device, one_device
from convla._dispatch import prepares
from convla.engines._cuda_maps import is_folded
from convla.engines._cuda_plans import LARGEST, Layout, Plan, folding, kernel_plan, map_plan
from convla.geometry import ConvGeometry
from convla.typing import Array

__all__ = ["Weights", "correlate", "correlate_image_adjoint", "correlate_kernel_adjoint"]


class Weights:
    """A kernel that does not change, and its layouts, each made when it is first used, for each stream anew."""

    def __init__(self, kernel: Array, _geometry: ConvGeometry) -> None:
        self.kernel = kernel
        self._laid: dict[tuple[Layout, int], tuple[Array, Any]] = {}

    def laid(self, plan: Plan) -> Array:
        """Return the weights in the order that a plan reads."""
        cupy = importlib.import_module("cupy")
        stream = cupy.cuda.get_current_stream()
        key = (plan.layout, stream.ptr)
        if key not in self._laid:
            weights = cupy.empty(plan.laid, self.kernel.dtype)
            plan.lay_out(contiguous(self.kernel), weights)
            self._laid[key] = weights, stream  # held, so that no other stream has its number meanwhile
        return self._laid[key][0]


@prepares(Weights)
@on_its_device
def correlate(image: Array, kernel: Array | Weights, geometry: ConvGeometry) -> Array:
    """Cross-correlate; see the reference of the same name."""
    return _map(image, kernel, geometry, adjoint=False)


@prepares(Weights)
@on_its_device
def correlate_image_adjoint(features: Array, kernel: Array | Weights, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``image -> correlate(image, kernel)``; see the reference of the same name."""
    return _map(features, kernel, geometry, adjoint=True)


@on_its_device
def correlate_kernel_adjoint(features: Array, image: Array, geometry: ConvGeometry) -> Array:
    """Apply the transpose of ``kernel -> correlate(image, kernel)``; see the reference of the same name."""
    cupy = importlib.import_module("cupy")
    images = math.prod(image.shape[: -geometry.ndim - 1])
    if not images:
        zeros: Array = cupy.zeros(geometry.kernel_shape, image.dtype)
        return zeros
    plan = kernel_plan(geometry, images, image.dtype.char)
    kernel: Array = cupy.empty(geometry.kernel_shape, image.dtype)
    if plan.add is None:
        plan.run(contiguous(features), contiguous(image), plan.table, kernel)
    else:
        partial = cupy.empty(plan.partial, image.dtype)
        plan.run(contiguous(features), contiguous(image), plan.table, partial)
        plan.add(partial, plan.table, kernel)
    return kernel


def _map(given: Array, kernel: Array | Weights, geometry: ConvGeometry, *, adjoint: bool) -> Array:
    weights = kernel if isinstance(kernel, Weights) else Weights(kernel, geometry)
    one_device((given, weights.kernel))
    batch = given.shape[: -geometry.ndim - 1]
    shape = geometry.domain_shape if adjoint else geometry.range_shape
    result: Array = importlib.import_module("cupy").empty((*batch, *shape), given.dtype)
    ordered = contiguous(given)
    images = math.prod(batch)
    most = _most_images(geometry, adjoint, given.dtype.itemsize)
    if images <= most:
        _run(ordered, weights, geometry, images, result, adjoint)
    else:
        flat, out = (array.reshape(images, -1) for array in cast(Any, (ordered, result)))
        for some in chunks(images, 1, most):
            _run(flat[some], weights, geometry, some.stop - some.start, out[some], adjoint)
    return result


def _run(given: Array, weights: Weights, geometry: ConvGeometry, images: int, result: Array, adjoint: bool) -> None:
    if not images:
        return
    plan = map_plan(geometry, images, given.dtype.char, adjoint)
    empty = importlib.import_module("cupy").empty
    summed = result if plan.fold is None else empty(plan.extended, given.dtype)
    if plan.add is None:
        plan.run(given, weights.laid(plan), plan.table, summed)
    else:
        partial = empty(plan.partial, given.dtype)
        plan.run(given, weights.laid(plan), plan.table, partial)
        plan.add(partial, plan.table, summed)
    if plan.fold is not None:
        plan.fold(summed, folding(geometry), result)


@functools.lru_cache(maxsize=256)
def _most_images(geometry: ConvGeometry, adjoint: bool, itemsize: int) -> int:
    """Return how many images a map takes at a time: 32 bits count their results, half the workspace extends them."""
    most = LARGEST // math.prod(geometry.domain_shape if adjoint else geometry.range_shape)
    if adjoint and is_folded(geometry):
        most = min(most, WORKSPACE // 2 // (itemsize * geometry.in_channels * math.prod(geometry.padded_shape)))
    return max(1, most)
