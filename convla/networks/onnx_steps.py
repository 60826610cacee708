"""What the operators of ONNX do to a tensor: a step as a node, with its layer or its Lipschitz constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convla.networks import gains
from convla.networks.graph import Node
from convla.networks.layers import convolution_layer, dense_layer, normalization_layer

__all__ = ["STEPS", "WORDS", "Padded", "Step"]

Array = np.ndarray[Any, Any]


class Padded(NamedTuple):
    """A tensor before it was padded, and how much on the sides of each image axis, by which boundary."""

    before: str
    amounts: tuple[tuple[int, int], ...]
    boundary: str


@dataclass(frozen=True)
class Step:
    """A node of the file, with what is known of the tensors around it.

    Attributes
    ----------
    name, kind : str
    inputs, outputs : tuple of str
        Names of tensors; "" for an input that is left out.
    attributes : mapping of str to any
    constants : mapping of str to numpy.ndarray
        The tensors that no input changes.
    sizes : mapping of str to tuple of int
    values : mapping of str to str
        The nodes behind the other tensors.
    nodes : mapping of str to Node
    paddings : dict of str to Padded
    evaluate : callable
        Runs the step on arrays by name.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[str, Array]
    sizes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, str]
    nodes: Mapping[str, Node]
    paddings: dict[str, Padded]
    evaluate: Callable[[Mapping[str, Array]], list[Array]]

    def constant(self, place: int) -> Array | None:
        """Return a constant input; None where it is left out."""
        if place >= len(self.inputs) or not self.inputs[place]:
            return None
        if self.inputs[place] not in self.constants:
            raise ValueError("its parameters depend on the input")
        return self.constants[self.inputs[place]]

    def weight(self, place: int) -> Array:
        """Return a constant input of floating-point numbers."""
        found = self.constant(place)
        if found is None or found.dtype not in (np.float32, np.float64):
            raise ValueError("a quantised weight, or none: only float16, bfloat16, float32 and float64 are read")
        return found

    def is_tracked(self, place: int) -> bool:
        """Tell whether an input depends on the network's."""
        return place < len(self.inputs) and self.inputs[place] in self.values

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the first input."""
        return self.sizes[self.inputs[0]]

    @property
    def output_size(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.sizes[self.outputs[0]]

    def node_behind(self, place: int) -> str:
        """Return the node that an input comes from."""
        return self.values[self.inputs[place]]


def _map(what: str, gain: float) -> Node:
    return Node("", "map", (), what, gain=gain)


def _unknown(step: Step, reason: str) -> Node:
    return Node("", "unknown", what=f"{step.kind}: {reason}")


# Layers.


def _layer_name(step: Step, place: int) -> str:
    """Return the name of a weight, which says more than that of a node, where it has one."""
    name = step.inputs[place].removesuffix(".weight")
    return step.name if name.isdecimal() or not name else name


def _axes(step: Step, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (
        tuple(step.attributes.get("strides", (1,) * rank)),
        tuple(step.attributes.get("dilations", (1,) * rank)),
    )


def _pads(step: Step, taps: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the padding before and after each axis."""
    rank = len(taps)
    strides, dilations = _axes(step, rank)
    automatic = step.attributes.get("auto_pad", b"NOTSET")
    automatic = automatic.decode() if isinstance(automatic, bytes) else automatic
    if automatic == "VALID":
        return [(0, 0)] * rank
    if automatic == "NOTSET":
        pads = step.attributes.get("pads", (0,) * (2 * rank))
        return list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for tap, n, stride, dilation in zip(taps, size, strides, dilations, strict=True):
        total = max((-(-n // stride) - 1) * stride + (tap - 1) * dilation + 1 - n, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return found


def _convolution(step: Step) -> Node:
    kernel = step.weight(1)
    rank = kernel.ndim - 2
    strides, dilations = _axes(step, rank)
    size = step.size[2:]
    amounts, boundary = _pads(step, kernel.shape[2:], size), "zero"
    inputs: tuple[str, ...] = ()
    padded = step.paddings.get(step.inputs[0])
    if padded is not None and (padded.boundary == "zero" or not any(map(any, amounts))):
        amounts = [(a + c, b + d) for (a, b), (c, d) in zip(amounts, padded.amounts, strict=True)]
        size, boundary = step.sizes[padded.before][2:], padded.boundary
        inputs = (step.values[padded.before],)
    layer = convolution_layer(
        kernel,
        size,
        padding=amounts,
        stride=strides,
        dilation=dilations,
        groups=step.attributes.get("group", 1),
        boundary=boundary,  # type: ignore[arg-type]
    )
    return Node(_layer_name(step, 1), "layer", inputs, "Conv", layer=layer)


def _transposed_convolution(step: Step) -> Node:
    kernel = step.weight(1)
    rank = kernel.ndim - 2
    strides, dilations = _axes(step, rank)
    if step.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET") or "output_shape" in step.attributes:
        return _unknown(step, "an automatic padding, which is not read")
    layer = convolution_layer(
        kernel,
        step.output_size[2:],
        padding=_pads(step, kernel.shape[2:], step.output_size[2:]),
        stride=strides,
        dilation=dilations,
        groups=step.attributes.get("group", 1),
        transposed=True,
    )
    if layer.image != step.size[2:]:
        return _unknown(step, "its output padding is more than its stride covers")
    return Node(_layer_name(step, 1), "layer", (), "ConvTranspose", layer=layer)


def _general_product(step: Step) -> Node:
    if not step.is_tracked(0) or step.is_tracked(1) or step.is_tracked(2) or step.attributes.get("transA", 0):
        return _unknown(step, "more than a matrix times a tensor")
    matrix = step.weight(1)
    matrix = matrix if step.attributes.get("transB", 0) else matrix.T
    alpha = float(step.attributes.get("alpha", 1.0))
    if alpha != 1.0:
        return _unknown(step, "a factor alpha, which is not read")
    return Node(_layer_name(step, 1), "layer", (), "Gemm", layer=dense_layer(matrix))


def _product(step: Step) -> Node:
    if step.is_tracked(0) and step.is_tracked(1):
        return _unknown(step, _ATTENTION)
    place = 1 if step.is_tracked(0) else 0
    matrix = step.weight(place)
    if matrix.ndim != 2 or (place == 0 and len(step.sizes[step.inputs[1]]) != 2):
        return _unknown(step, "a product of stacked matrices, which is not read")
    positions = math.prod(step.size[1:-1]) if place else 1
    notes = (f"one matrix, applied at {positions} positions alike",) if positions > 1 else ()
    layer = dense_layer(matrix.T if place else matrix)
    return Node(_layer_name(step, place), "layer", (), "MatMul", layer=layer, from_left=place == 0, notes=notes)


def _batch_normalization(step: Step) -> Node:
    if step.attributes.get("training_mode", 0):
        return _unknown(step, "a normalisation by the batch, whose examples then depend on each other")
    layer = normalization_layer(step.weight(4), step.weight(1), float(step.attributes.get("epsilon", 1e-5)))
    return Node(_layer_name(step, 1), "layer", (), "BatchNormalization", layer=layer)


# Maps without weights.


def _activation(name: str, **parameters: tuple[str, float]) -> Callable[[Step], Node]:
    """Return the rule of an activation; of each parameter the attribute that holds it, and its default."""

    def rule(step: Step) -> Node:
        given = {key: float(step.attributes.get(*found)) for key, found in parameters.items()}
        return _map(name, gains.activation_gain(name, **given))

    return rule


def _prelu(step: Step) -> Node:
    return _map("prelu", gains.activation_gain("prelu", slope=step.weight(1)))


def _gelu(step: Step) -> Node:
    name = "gelu by tanh" if step.attributes.get("approximate", b"none") in (b"tanh", "tanh") else "gelu"
    return _map(name, gains.activation_gain(name))


def _selu(step: Step) -> Node:
    alpha, scale = step.attributes.get("alpha"), step.attributes.get("gamma")
    if alpha is None and scale is None:
        return _map("selu", gains.activation_gain("selu"))
    alpha, scale = 1.6732633 if alpha is None else abs(alpha), 1.0507010 if scale is None else abs(scale)
    return _map("selu", gains.outward(scale * max(1.0, alpha)))


def _log_softmax(step: Step) -> Node:
    # Before version 13 of the operators the axes from this one on were taken together.
    count = math.prod(step.size[int(step.attributes.get("axis", -1)) :])
    return _map("log softmax", gains.activation_gain("log softmax", count=count))


def _as_it_is(step: Step) -> Node:
    if any(step.is_tracked(place) for place in range(1, len(step.inputs))):
        return _unknown(step, "its parameters depend on the input")
    return _map(step.kind, 1.0)


def _cast(step: Step) -> Node:
    # ONNX numbers its types: 1 is float32, 11 float64.
    return _map("Cast", 1.0) if step.attributes.get("to") in (1, 11) else _unknown(step, "to a coarser type")


def _rearrangement(step: Step) -> Node:
    """Count how often each entry is copied, by sending the entries' numbers through the same step."""
    if any(step.is_tracked(place) for place in range(1, len(step.inputs))):
        return _unknown(step, "its parameters depend on the input")
    size = step.size
    numbers = np.arange(1, math.prod(size) + 1, dtype=np.float64).reshape(size)
    feeds = {name: step.constants[name] for name in step.inputs[1:] if name}
    if step.kind == "Pad":
        _note_padding(step)
        if len(step.inputs) > 2 and step.inputs[2]:
            feeds[step.inputs[2]] = np.zeros((), np.float64)  # what is padded with is no matter
    found = step.evaluate({step.inputs[0]: numbers, **feeds})
    sources = np.concatenate([np.asarray(part).reshape(-1) for part in found]).astype(np.int64) - 1
    return _map(step.kind, gains.copies_gain(sources))


def _note_padding(step: Step) -> None:
    """Keep how a tensor was padded: a convolution behind it takes that as its own boundary."""
    mode = step.attributes.get("mode", b"constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    boundary = {"constant": "zero", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    amounts, value = step.constant(1), step.constant(2)
    if amounts is None or len(step.inputs) > 3 or (value is not None and np.any(value != 0)):
        return
    rank = len(step.size)
    sides = [(int(amounts[axis]), int(amounts[axis + rank])) for axis in range(rank)]
    if rank > 2 and not any(map(any, sides[:2])) and all(min(side) >= 0 for side in sides):
        step.paddings[step.outputs[0]] = Padded(step.inputs[0], tuple(sides[2:]), boundary)


def _max_pooling(step: Step) -> Node:
    taps = tuple(step.attributes["kernel_shape"])
    strides, dilations = _axes(step, len(taps))
    size, outputs = step.size[2:], step.output_size[2:]
    pads = [low for low, _ in _pads(step, taps, size)]
    windows = [gains.windows(*axis) for axis in zip(outputs, taps, strides, pads, dilations, strict=True)]
    return _map(f"max pooling {'x'.join(map(str, taps))}", gains.overlap_gain(size, windows))


def _average_pooling(step: Step) -> Node:
    taps = tuple(step.attributes["kernel_shape"])
    strides, dilations = _axes(step, len(taps))
    size, outputs = step.size[2:], step.output_size[2:]
    matrices = []
    pads = _pads(step, taps, size)
    for n, count, tap, stride, (low, high), dilation in zip(size, outputs, taps, strides, pads, dilations, strict=True):
        windows = gains.windows(count, tap, stride, low, dilation)
        counted = range(-low, n + high) if step.attributes.get("count_include_pad", 0) else range(n)
        matrices.append(gains.average_matrix(n, windows, counted))
    return _map(f"average pooling {'x'.join(map(str, taps))}", gains.average_gain(matrices))


def _shrinkage(step: Step) -> int:
    """Return how many entries are put together in each of a reduction."""
    return math.prod(step.size) // math.prod(step.output_size)


def _mean(step: Step) -> Node:
    return _map("mean", gains.outward(1.0 / math.sqrt(_shrinkage(step)), 2))


def _sum_over_axes(step: Step) -> Node:
    return _map("sum over axes", gains.outward(math.sqrt(_shrinkage(step))))


def _normalization(place: int) -> Callable[[Step], Node]:
    """Return the rule of a normalisation whose factors are the input at a place."""

    def rule(step: Step) -> Node:
        gain = gains.normalization_gain(step.weight(place), float(step.attributes.get("epsilon", 1e-5)))
        return _map(f"{step.kind}, at most max|weight| / sqrt(eps)", gain)

    return rule


# Several tensors.


def _spread(step: Step, place: int) -> float:
    """Return the norm of the copying that makes an input as large as the value."""
    copies = math.prod(step.output_size) // math.prod(step.sizes[step.inputs[place]])
    return 1.0 if copies == 1 else gains.outward(math.sqrt(copies))


def _sum(step: Step) -> Node:
    places = [place for place in range(len(step.inputs)) if step.is_tracked(place)]
    names = tuple(step.node_behind(place) for place in places)
    return Node("", "sum", names, "sum", weights=tuple(_spread(step, place) for place in places))


def _scaling(step: Step) -> Node:
    if step.is_tracked(0) and step.is_tracked(1):
        return _gated(step)
    place = 0 if step.is_tracked(0) else 1
    if step.kind == "Div" and place == 1:
        return _unknown(step, "a division by what depends on the input")
    factor = step.constant(1 - place)
    moduli = np.abs(np.asarray(factor, dtype=np.float64))
    with np.errstate(divide="ignore"):
        largest = float((1.0 / moduli if step.kind == "Div" else moduli).max())
    if not math.isfinite(largest):
        return _unknown(step, "a factor that is not finite")
    return _map("scaling", gains.outward(largest, 2) * _spread(step, place) if largest != 1.0 else _spread(step, place))


def _gated(step: Step) -> Node:
    """Return the node of x times sigmoid(x), which is how the SiLU is written out; other products have no bound."""
    for gate, other in ((0, 1), (1, 0)):
        node = step.nodes[step.node_behind(gate)]
        if node.what == "sigmoid" and node.inputs == (step.node_behind(other),) and step.kind == "Mul":
            return Node("", "map", node.inputs, "silu", gain=gains.activation_gain("silu"))
    return _unknown(step, "a product of two values that both depend on the input, as in a gate")


def _concatenation(step: Step) -> Node:
    names = tuple(step.node_behind(place) for place in range(len(step.inputs)) if step.is_tracked(place))
    return Node("", "concatenation", names, "concatenation")


def _larger(step: Step) -> Node:
    if any(step.is_tracked(place) and _spread(step, place) != 1.0 for place in range(len(step.inputs))):
        return _unknown(step, "of tensors of different shapes")
    return _concatenation(step)  # |max(a, b) - max(c, d)|^2 <= |a - c|^2 + |b - d|^2


_ATTENTION = "attention: a product of what depends on the input, which has no Lipschitz constant on the whole space"
WORDS = {
    "LSTM": "a recurrent layer, which is not read",
    "GRU": "a recurrent layer, which is not read",
    "Attention": _ATTENTION,
    "Einsum": "not read",
    "ConvInteger": "quantised weights are not read",
    "QLinearConv": "quantised weights are not read",
    "QLinearMatMul": "quantised weights are not read",
    "MatMulInteger": "quantised weights are not read",
    "DequantizeLinear": "quantised weights are not read",
    "QuantizeLinear": "quantised weights are not read",
}

STEPS: dict[str, Callable[[Step], Node]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _general_product,
    "MatMul": _product,
    "BatchNormalization": _batch_normalization,
    **{
        kind: _activation(kind.lower())
        for kind in ("Abs", "Celu", "Cos", "HardSwish", "Mish", "Neg", "Relu", "Sigmoid", "Sin", "Softmax", "Softplus",
                     "Softsign", "Tanh")
    },
    "Atan": _activation("arctan"),
    "LeakyRelu": _activation("leaky relu", slope=("alpha", 0.01)),
    "Elu": _activation("elu", alpha=("alpha", 1.0)),
    "HardSigmoid": _activation("hardsigmoid", slope=("alpha", 0.2)),
    "PRelu": _prelu,
    "Gelu": _gelu,
    "Selu": _selu,
    "LogSoftmax": _log_softmax,
    "Clip": _as_it_is,
    "Identity": _as_it_is,
    "Dropout": _as_it_is,
    "Cast": _cast,
    # No entry twice.
    **dict.fromkeys(
        ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "DepthToSpace", "SpaceToDepth"),
        _as_it_is,
    ),
    **dict.fromkeys(("Gather", "Expand", "Tile", "Pad"), _rearrangement),
    "MaxPool": _max_pooling,
    "AveragePool": _average_pooling,
    "GlobalAveragePool": _mean,
    "GlobalMaxPool": _activation("identity"),
    "ReduceMean": _mean,
    "ReduceSum": _sum_over_axes,
    "ReduceMax": _activation("identity"),
    "ReduceMin": _activation("identity"),
    "LayerNormalization": _normalization(1),
    "InstanceNormalization": _normalization(1),
    "GroupNormalization": _normalization(1),
    **dict.fromkeys(("Add", "Sub", "Sum"), _sum),
    **dict.fromkeys(("Mul", "Div"), _scaling),
    "Concat": _concatenation,
    **dict.fromkeys(("Max", "Min"), _larger),
}  # fmt: skip
"""The rule of each operator; every other is unknown."""
