"""What PyTorch's functions with a weight do to a tensor: a call as a node of a network with its layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convla.frameworks.torch.calls import ATTENTION, Call, only_first, unknown
from convla.geometry import ConvGeometry
from convla.networks.graph import Node
from convla.networks.layers import convolution_layer, dense_layer, normalization_layer

__all__ = ["LAYER_STEPS", "weight_array"]


def weight_array(tensor: Tensor) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Return a weight as a NumPy array of float32 or float64, and what is to be said of that."""
    if tensor.is_quantized or not tensor.is_floating_point():
        raise ValueError(f"a weight of {tensor.dtype}: quantised weights are not read")
    notes = []
    if tensor.device.type != "cpu":
        notes.append(f"its weight was copied from {tensor.device} to the memory of the host")
    if tensor.dtype not in (torch.float32, torch.float64):
        notes.append(f"its weight of {str(tensor.dtype).removeprefix('torch.')} is taken as float32")
        tensor = tensor.float()
    return tensor.detach().cpu().numpy(), tuple(notes)


def _name(call: Call, weight: Tensor) -> str:
    stored = call.watcher.name_of_weight(weight)
    if stored is not None and "." in stored:
        return stored.removesuffix(".weight")
    return call.watcher.module_name or stored or call.name


def _pairs(value: Any, count: int) -> tuple[int, ...]:
    return (
        (int(value),) * count
        if isinstance(value, int)
        else tuple(int(one) for one in value) * (count if len(value) == 1 < count else 1)
    )


def _convolution(call: Call) -> Node:
    tensor, weight, _, stride, padding, dilation, groups = call.arguments(
        "input", "weight", "bias", "stride", "padding", "dilation", "groups"
    )
    kernel, notes = weight_array(weight)
    rank = kernel.ndim - 2
    steps, spread = _pairs(1 if stride is None else stride, rank), _pairs(1 if dilation is None else dilation, rank)
    if padding == "same":
        amounts = ConvGeometry(kernel.shape, tuple(tensor.shape[-rank:]), padding="same", dilation=spread).padding
    else:
        amounts = tuple((one, one) for one in _pairs(0 if padding in (None, "valid") else padding, rank))
    padded, boundary = call.watcher.paddings.get(id(tensor)), "zero"
    inputs: tuple[str, ...] = ()
    if padded is not None and len(padded.amounts) == rank and (padded.boundary == "zero" or not any(map(any, amounts))):
        amounts = tuple((a + c, b + d) for (a, b), (c, d) in zip(amounts, padded.amounts, strict=True))
        boundary, tensor = padded.boundary, padded.before
        inputs = call.watcher.inputs_of([tensor])
    layer = convolution_layer(
        kernel,
        tuple(tensor.shape[-rank:]),
        padding=amounts,
        stride=steps,
        dilation=spread,
        groups=groups or 1,
        boundary=boundary,  # type: ignore[arg-type]
    )
    return Node(_name(call, weight), "layer", inputs, call.name, layer=layer, notes=notes)


def _transposed_convolution(call: Call) -> Node:
    tensor, weight, _, stride, padding, _, groups, dilation = call.arguments(
        "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
    )
    kernel, notes = weight_array(weight)
    rank = kernel.ndim - 2
    layer = convolution_layer(
        kernel,
        tuple(call.value.shape[-rank:]),
        padding=[(one, one) for one in _pairs(padding or 0, rank)],
        stride=_pairs(1 if stride is None else stride, rank),
        dilation=_pairs(1 if dilation is None else dilation, rank),
        groups=groups or 1,
        transposed=True,
    )
    if layer.image != tuple(tensor.shape[-rank:]):
        return unknown(call, "its output padding is more than its stride covers")
    return Node(_name(call, weight), "layer", (), call.name, layer=layer, notes=notes)


def _dense(call: Call, weight: Tensor, matrix: Tensor, tensor: Tensor) -> Node:
    array, notes = weight_array(matrix)
    positions = math.prod(tensor.shape[1:-1])
    if positions > 1:
        notes = (*notes, f"one matrix, applied at {positions} positions alike")
    return Node(_name(call, weight), "layer", (), "linear", layer=dense_layer(array), notes=notes)


def _linear(call: Call) -> Node:
    tensor, weight = call.arguments("input", "weight")
    return _dense(call, weight, weight if weight.ndim == 2 else weight[None, :], tensor)


def _product(call: Call) -> Node:
    left, right = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    tracked = call.watcher.is_tracked(left), call.watcher.is_tracked(right)
    if all(tracked):
        return unknown(call, ATTENTION)
    if tracked[0] and right.ndim == 2:
        return _dense(call, right, right.T, left)
    if tracked[1] and left.ndim == 2 and right.ndim == 2:
        return replace(_dense(call, left, left, right), from_left=True)
    return unknown(call, "a product of stacked matrices, which is not read")


def _sum_and_product(call: Call) -> Node:
    bias, left, right = call.arguments("input", "mat1", "mat2")
    if call.watcher.is_tracked(bias) or call.watcher.is_tracked(right) or set(call.kwargs) & {"alpha", "beta"}:
        return unknown(call, "more than a matrix times a tensor")
    return _dense(call, right, right.T, left)


def _batch_norm(call: Call) -> Node:
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    if isinstance(call.function, torch._ops.OpOverload):  # whose arguments stand in another order
        names = ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
    found = dict(zip(names, list(call.arguments("input", *names))[1:], strict=True))
    mean, variance, weight = (found[name] for name in ("running_mean", "running_var", "weight"))
    training, epsilon = found["training"], found["eps"]
    if training or mean is None or variance is None:
        return unknown(call, "a normalisation by the batch, whose examples then depend on each other")
    kernels = [None if tensor is None else weight_array(tensor)[0] for tensor in (variance, weight)]
    assert kernels[0] is not None
    layer = normalization_layer(kernels[0], kernels[1], 1e-5 if epsilon is None else epsilon)
    return Node(_name(call, variance).removesuffix(".running_var"), "layer", (), call.name, layer=layer)


LAYER_STEPS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), only_first(_convolution)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), only_first(_transposed_convolution)),
    "linear": only_first(_linear),
    "matmul": _product,
    "addmm": _sum_and_product,
    "batch_norm": only_first(_batch_norm),
}
"""The rule of each function by its name."""
