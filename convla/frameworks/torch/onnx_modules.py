"""ONNX graphs as modules of PyTorch, so that their Jacobians can be taken: each operator by a function of PyTorch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from convla.errors import ConvlaError, WeightsError, install_line

__all__ = ["OnnxModule", "open_onnx"]

Attributes = Mapping[str, Any]


def open_onnx(path: Path, image: Sequence[int] | None = None) -> tuple[OnnxModule, None]:  # noqa: ARG001 - as others
    """Return the graph of an ONNX file as a module.

    Parameters
    ----------
    path : path
    image : sequence of int, optional
        Of no account: a module takes tensors of any sizes that its operators take.

    Raises
    ------
    WeightsError
        If the file is no ONNX model, or the extra ``onnx`` is not installed.
    OSError
        If it cannot be read.
    """
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise WeightsError(f"{path}: .onnx files need the extra onnx: {install_line('onnx')}") from error
    try:
        return OnnxModule(onnx, onnx.load(str(path))), None
    except (OSError, ConvlaError):
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is the file's fault
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: not a readable .onnx file: {words}") from error


class OnnxModule(nn.Module):  # type: ignore[misc]
    """A graph, run step by step; floating-point constants are buffers, and follow the module's dtype.

    Parameters
    ----------
    onnx : module
    model : onnx.ModelProto
    """

    def __init__(self, onnx: Any, model: Any) -> None:
        super().__init__()
        self._model, graph = model, model.graph
        self._outputs = [one.name for one in graph.output]
        stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        self._steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        for node in graph.node:
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type == "Constant" and "value" in attributes:
                stored[node.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
                continue
            self._steps.append((node.op_type, list(node.input), list(node.output), attributes))
        self._inputs = [one.name for one in graph.input if one.name not in stored]
        for name, array in stored.items():
            self._buffers[name] = torch.from_numpy(np.array(array))  # a name may hold dots, and that of any attribute

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the graph's outputs.

        Raises
        ------
        NotImplementedError
            If an operator is not differentiated here.
        """
        known: dict[str, Any] = {**self._buffers, **dict(zip(self._inputs, inputs, strict=True)), "": None}
        for kind, names, outputs, attributes in self._steps:
            function = FUNCTIONS.get(kind)
            if function is None:
                raise NotImplementedError(f"the Jacobian of the operator {kind} of ONNX is not known")
            value = function(attributes, *(known[name] for name in names))
            known.update(zip(outputs, value if isinstance(value, tuple) else (value,), strict=False))
        return tuple(known[name] for name in self._outputs)

    def check_values(self, *inputs: Tensor) -> None:
        """Raise `NotImplementedError` if the values are not those of ONNX's own evaluator, which has no Jacobians."""
        evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(self._model)
        wanted = evaluator.run(None, dict(zip(self._inputs, (one.numpy() for one in inputs), strict=True)))
        for found, value in zip(self(*inputs), wanted, strict=True):
            numbers = found.double().numpy()
            far = float(np.abs(numbers - value).max(initial=0.0)) if numbers.shape == value.shape else math.inf
            # Half of the digits: the same sums in another order differ by far less, another function by more.
            if not far <= math.sqrt(torch.finfo(found.dtype).eps) * float(np.abs(value).max(initial=0.0)):
                raise NotImplementedError("PyTorch's values of the graph are not those of ONNX's evaluator")


def _word(attributes: Attributes, name: str, default: str) -> str:
    found = attributes.get(name, default)
    return found.decode() if isinstance(found, bytes) else str(found)


def _settings(a: Attributes, rank: int) -> tuple[list[int], list[int]]:
    return list(a.get("strides", (1,) * rank)), list(a.get("dilations", (1,) * rank))


def _padded(a: Attributes, x: Tensor, taps: Sequence[int], value: float = 0.0) -> Tensor:
    """Return an image with the padding of a window operator around it."""
    rank = len(taps)
    strides, dilations = _settings(a, rank)
    automatic = _word(a, "auto_pad", "NOTSET")
    pads = list(a.get("pads", (0,) * (2 * rank)))
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (tap - 1) * d + 1 - n, 0)
            for n, tap, s, d in zip(x.shape[2:], taps, strides, dilations, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = less + more if automatic == "SAME_UPPER" else more + less
    sides = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
    return functional.pad(x, sides, value=value) if any(sides) else x


def _convolution(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor = None) -> Tensor:
    rank = weight.ndim - 2
    strides, dilations = _settings(a, rank)
    function = getattr(functional, f"conv{rank}d")
    x = _padded(a, x, weight.shape[2:])
    return function(x, weight, bias, strides, 0, dilations, a.get("group", 1))


def _transposed_convolution(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor = None) -> Tensor:
    rank = weight.ndim - 2
    if _word(a, "auto_pad", "NOTSET") != "NOTSET" or "output_shape" in a:
        raise NotImplementedError("the Jacobian of a ConvTranspose with an automatic padding is not known")
    strides, dilations = _settings(a, rank)
    pads, extra = list(a.get("pads", (0,) * (2 * rank))), list(a.get("output_padding", (0,) * rank))
    if pads[:rank] != pads[rank:]:
        raise NotImplementedError("the Jacobian of a ConvTranspose with different paddings is not known")
    function = getattr(functional, f"conv_transpose{rank}d")
    return function(x, weight, bias, strides, pads[:rank], extra, a.get("group", 1), dilations)


def _general_product(a: Attributes, left: Tensor, right: Tensor, more: Tensor = None) -> Tensor:
    left, right = (one.mT if a.get(name, 0) else one for one, name in ((left, "transA"), (right, "transB")))
    value = a.get("alpha", 1.0) * (left @ right)
    return value if more is None else value + a.get("beta", 1.0) * more


def _batch_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def _max_pooling(a: Attributes, x: Tensor) -> Tensor:
    taps = list(a["kernel_shape"])
    strides, dilations = _settings(a, len(taps))
    function = getattr(functional, f"max_pool{len(taps)}d")
    x = _padded(a, x, taps, -math.inf)
    return function(x, taps, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def _average_pooling(a: Attributes, x: Tensor) -> Tensor:
    taps = list(a["kernel_shape"])
    strides, dilations = _settings(a, len(taps))
    if any(one != 1 for one in dilations) or a.get("ceil_mode", 0):
        raise NotImplementedError("the Jacobian of an AveragePool with dilations or rounded up is not known")
    function = getattr(functional, f"avg_pool{len(taps)}d")
    sums = function(_padded(a, x, taps), taps, strides)
    if a.get("count_include_pad", 0):
        return sums
    return sums / function(_padded(a, torch.ones_like(x), taps), taps, strides)


def _axes(a: Attributes, x: Tensor, given: Tensor, default: Sequence[int]) -> list[int]:
    axes = a.get("axes") if given is None else given.tolist()
    return [axis % x.ndim for axis in (default if axes is None else axes)]


def _reduced(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(a: Attributes, x: Tensor, axes: Tensor = None) -> Tensor:
        return reduce(x, dim=_axes(a, x, axes, range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))

    return function


def _over_image(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda _, x: reduce(x, dim=list(range(2, x.ndim)), keepdim=True)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = [int(size) for size in shape]
    if not a.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1)


def _squeeze(a: Attributes, x: Tensor, axes: Tensor = None) -> Tensor:
    return x.squeeze(_axes(a, x, axes, [axis for axis, size in enumerate(x.shape) if size == 1]))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor = None) -> Tensor:
    places = a["axes"] if axes is None else axes.tolist()
    for place in sorted(axis % (x.ndim + len(places)) for axis in places):
        x = x.unsqueeze(place)
    return x


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor = None, axes: Tensor = None) -> Tensor:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        _word(a, "mode", "constant")
    ]
    if axes is not None:
        raise NotImplementedError("the Jacobian of a Pad along some axes is not known")
    amounts = pads.tolist()
    first = 0 if mode == "constant" else 2
    if any(amounts[axis] or amounts[axis + x.ndim] for axis in range(first)):
        raise NotImplementedError("the Jacobian of a Pad of channels by their own is not known")
    sides = [side for axis in reversed(range(first, x.ndim)) for side in (amounts[axis], amounts[axis + x.ndim])]
    if mode != "constant":
        return functional.pad(x, sides, mode)
    return functional.pad(x, sides, value=0.0 if value is None else float(value))


def _clip(a: Attributes, x: Tensor, low: Tensor = None, high: Tensor = None) -> Tensor:
    low = a.get("min", -math.inf) if low is None else low.to(x.dtype)
    high = a.get("max", math.inf) if high is None else high.to(x.dtype)
    return torch.minimum(torch.maximum(x, torch.as_tensor(low, dtype=x.dtype)), torch.as_tensor(high, dtype=x.dtype))


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _hard_sigmoid(a: Attributes, x: Tensor) -> Tensor:
    return (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0.0, 1.0)


def _total(_: Attributes, *terms: Tensor) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _general_product,
    "MatMul": lambda _, x, y: x @ y,
    "BatchNormalization": _batch_normalization,
    "Relu": lambda _, x: functional.relu(x),
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "Elu": lambda a, x: functional.elu(x, a.get("alpha", 1.0)),
    "Celu": lambda a, x: functional.celu(x, a.get("alpha", 1.0)),
    "PRelu": _prelu,
    "Gelu": lambda a, x: functional.gelu(x, approximate=_word(a, "approximate", "none")),
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Tanh": lambda _, x: torch.tanh(x),
    "Softplus": lambda _, x: functional.softplus(x),
    "Softsign": lambda _, x: functional.softsign(x),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: functional.hardswish(x),
    "Mish": lambda _, x: functional.mish(x),
    "Abs": lambda _, x: torch.abs(x),
    "Neg": lambda _, x: -x,
    "Sin": lambda _, x: torch.sin(x),
    "Cos": lambda _, x: torch.cos(x),
    "Atan": lambda _, x: torch.atan(x),
    "Clip": _clip,
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "LogSoftmax": lambda a, x: torch.log_softmax(x, a.get("axis", -1)),
    "Identity": lambda _, x: x,
    "Dropout": lambda _, x, *__: x,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda a, x: x.permute(a.get("perm") or list(reversed(range(x.ndim)))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Pad": _pad,
    "MaxPool": _max_pooling,
    "AveragePool": _average_pooling,
    "GlobalAveragePool": _over_image(torch.mean),
    "GlobalMaxPool": _over_image(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "ReduceMax": _reduced(torch.amax),
    "Add": lambda _, x, y: x + y,
    "Sub": lambda _, x, y: x - y,
    "Mul": lambda _, x, y: x * y,
    "Div": lambda _, x, y: x / y,
    "Sum": _total,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
}
"""By operator, of its attributes and inputs; what is not here is not differentiated."""
