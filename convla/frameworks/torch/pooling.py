"""Lipschitz constants of PyTorch's poolings and resamplings, from the windows that they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from convla.networks import gains
from convla.networks.graph import Node

__all__ = ["POOLINGS"]

Call = Any


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(int(one) for one in value) * (rank if len(value) == 1 else 1)


def _adaptive_windows(size: int, outputs: int) -> list[range]:
    """Return the windows of PyTorch's adaptive poolings: from floor(q n / m) to ceil((q + 1) n / m)."""
    return [range(q * size // outputs, -(-(q + 1) * size // outputs)) for q in range(outputs)]


def _sizes(call: Call, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    value = call.value[0] if isinstance(call.value, (tuple, list)) else call.value
    return tuple(call.input.shape[-rank:]), tuple(value.shape[-rank:])


def _max_pooling(rank: int) -> Callable[[Call], Node]:
    def rule(call: Call) -> Node:
        _, kernel, stride, padding, dilation = call.arguments("input", "kernel_size", "stride", "padding", "dilation")
        taps = _per_axis(kernel, rank)
        steps = taps if stride is None or stride == [] else _per_axis(stride, rank)
        pads, spread = _per_axis(padding or 0, rank), _per_axis(dilation or 1, rank)
        sizes, outputs = _sizes(call, rank)
        windows = [gains.windows(*axis) for axis in zip(outputs, taps, steps, pads, spread, strict=True)]
        shown = "x".join(map(str, taps))
        return Node("", "map", what=f"max pooling {shown}", gain=gains.overlap_gain(sizes, windows))

    return rule


def _average_pooling(rank: int) -> Callable[[Call], Node]:
    def rule(call: Call) -> Node:
        _, kernel, stride, padding, _, counted, divisor = call.arguments(
            "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
        )
        if divisor is not None:
            raise ValueError("an average with a divisor of its own, which is not read")
        taps = _per_axis(kernel, rank)
        steps = taps if stride is None or stride == [] else _per_axis(stride, rank)
        pads = _per_axis(padding or 0, rank)
        matrices = []
        for size, outputs, tap, step, pad in zip(*_sizes(call, rank), taps, steps, pads, strict=True):
            windows = gains.windows(outputs, tap, step, pad)
            # With the padding counted, a window ends where the padding does.
            counted_in = range(size) if counted is False else range(-pad, size + pad)
            matrices.append(gains.average_matrix(size, windows, counted_in))
        shown = "x".join(map(str, taps))
        return Node("", "map", what=f"average pooling {shown}", gain=gains.average_gain(matrices))

    return rule


def _adaptive_average(rank: int) -> Callable[[Call], Node]:
    def rule(call: Call) -> Node:
        matrices = []
        for size, outputs in zip(*_sizes(call, rank), strict=True):
            windows = _adaptive_windows(size, outputs)
            matrices.append(gains.average_matrix(size, windows, range(size)))
        return Node("", "map", what="adaptive average pooling", gain=gains.average_gain(matrices))

    return rule


def _adaptive_maximum(rank: int) -> Callable[[Call], Node]:
    def rule(call: Call) -> Node:
        sizes, outputs = _sizes(call, rank)
        windows = [_adaptive_windows(size, count) for size, count in zip(sizes, outputs, strict=True)]
        return Node("", "map", what="adaptive max pooling", gain=gains.overlap_gain(sizes, windows))

    return rule


def _interpolation(call: Call) -> Node:
    mode = call.argument(3, "mode", "nearest")
    rank = call.input.ndim - 2
    sizes, outputs = _sizes(call, rank)
    if mode in ("nearest", "nearest-exact"):
        axis_mode = mode
    elif mode in ("linear", "bilinear", "trilinear") and not call.argument(6, "antialias", False):
        axis_mode = "linear"
    else:
        raise ValueError(f"resampling by {mode!r}, which is not read")
    align = call.argument(4, "align_corners") if axis_mode == "linear" else None
    scales = call.argument(2, "scale_factor")
    matrices = []
    for axis, (size, count) in enumerate(zip(sizes, outputs, strict=True)):
        unit = torch.eye(size, dtype=torch.float64)[None]
        scale = scales[axis] if isinstance(scales, Sequence) else scales
        # Each axis is resampled by itself, as a signal of that length is.
        sized = (
            {"size": count} if scale is None or call.argument(5, "recompute_scale_factor") else {"scale_factor": scale}
        )
        with torch._C.DisableTorchFunction():
            rows = torch.nn.functional.interpolate(unit, mode=axis_mode, align_corners=align, **sized)
        matrices.append(np.asarray(rows[0].T.numpy()))
    return Node("", "map", what=f"resampling ({mode})", gain=gains.average_gain(matrices))


POOLINGS: dict[str, Callable[[Call], Node]] = {
    **{f"max_pool{rank}d{end}": _max_pooling(rank) for rank in (1, 2, 3) for end in ("", "_with_indices")},
    **{f"avg_pool{rank}d": _average_pooling(rank) for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": _adaptive_average(rank) for rank in (1, 2, 3)},
    **{
        f"adaptive_max_pool{rank}d{end}": _adaptive_maximum(rank) for rank in (1, 2, 3) for end in ("", "_with_indices")
    },
    "interpolate": _interpolation,
    "upsample": _interpolation,
}
"""The rule of each function by its name."""
