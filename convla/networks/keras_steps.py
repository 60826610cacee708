"""What the layers of Keras do to a tensor, as nodes of a network; its channels stand last, those of nodes first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla.networks import gains
from convla.networks.graph import Node
from convla.networks.layers import Layer, convolution_layer, dense_layer, normalization_layer

__all__ = ["STEPS", "Step"]

Array = np.ndarray[Any, Any]
Made = list[Node]


@dataclass(frozen=True)
class Step:
    """A layer of a configuration.

    Attributes
    ----------
    kind, name : str
    config : mapping
    stored : sequence or mapping of numpy.ndarray
        Its weights, in order or by name.
    befores : tuple of Node
        Whose values it takes; their shapes have the channels behind the batch.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    stored: Sequence[Array] | Mapping[str, Array]
    befores: tuple[Node, ...]

    def weight(self, place: int, *names: str) -> Array:
        """Return a weight, by its place or by one of its names."""
        if isinstance(self.stored, Mapping):
            name = next((name for name in names if name in self.stored), names[0])
            found = self.stored[name]
        else:
            found = self.stored[place]
        if found.dtype not in (np.float32, np.float64):
            raise ValueError(f"a weight of {found.dtype}: quantised weights are not read")
        return found

    @property
    def image(self) -> tuple[int, ...]:
        """The sizes of what it takes, without channels."""
        if self.config.get("data_format", "channels_last") != "channels_last":
            raise ValueError("channels in front, which are not read")
        return self.befores[0].shape[2:]

    def sizes(self, name: str, rank: int, default: int = 1) -> tuple[int, ...]:
        """Return a setting for every axis."""
        value = self.config.get(name, default)
        value = default if value is None else value
        return (int(value),) * rank if isinstance(value, int) else tuple(int(one) for one in value)

    def node(self, kind: Any, what: str, shape: Sequence[int], name: str = "", before: str = "", **more: Any) -> Node:
        """Return a node behind those before, or behind one of this layer's own."""
        inputs = (before,) if before else tuple(one.name for one in self.befores)
        return Node(name or self.name, kind, inputs, what, tuple(int(size) for size in shape), **more)


def _activated(step: Step, made: Made) -> Made:
    """Add the activation that a layer ends with."""
    name = step.config.get("activation", "linear")
    if isinstance(name, dict):
        name = name.get("config") if isinstance(name.get("config"), str) else name.get("class_name")
    if name in (None, "linear"):
        return made
    return [*made, _activation(step, str(name).lower(), made[-1].shape, f"{step.name} {name}", made[-1].name)]


_NAMES = {
    "leaky_relu": ("leaky relu", {"slope": 0.2}),
    "leakyrelu": ("leaky relu", {"slope": 0.2}),
    "hard_sigmoid": ("hardsigmoid", {}),
    "hard_silu": ("hardswish", {}),
    "hard_swish": ("hardswish", {}),
    "swish": ("silu", {}),
    "hard_tanh": ("hardtanh", {}),
    "log_sigmoid": ("logsigmoid", {}),
    "tanh_shrink": ("tanhshrink", {}),
    "soft_shrink": ("softshrink", {}),
}


def _activation(step: Step, name: str, shape: Sequence[int], node: str = "", before: str = "") -> Node:
    known, parameters = _NAMES.get(name, (name, {}))
    if name == "log_softmax":
        known, parameters = "log softmax", {"count": shape[1]}
    if known not in gains.ACTIVATIONS or known == "prelu":
        return step.node("unknown", f"{name}: no Lipschitz constant is known of it", shape, node, before)
    return step.node("map", known, shape, node, before, gain=gains.activation_gain(known, **parameters))


def _pads(step: Step, sizes: Sequence[int], taps: Sequence[int], strides: Sequence[int], spread: Sequence[int]) -> Any:
    """Return the padding before and after each axis: TensorFlow puts the smaller half before."""
    kind = step.config.get("padding", "valid")
    found = []
    for size, tap, stride, dilation in zip(sizes, taps, strides, spread, strict=True):
        extent = (tap - 1) * dilation + 1
        if kind == "same":
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            found.append((total // 2, total - total // 2))
        elif kind == "causal":
            found.append((extent - 1, 0))
        elif kind == "valid":
            found.append((0, 0))
        else:
            raise ValueError(f"the padding {kind!r}, which is not read")
    return found


def _layer_of(step: Step, kernel: Array, strides: Sequence[int], groups: int) -> Layer:
    rank = kernel.ndim - 2
    spread = step.sizes("dilation_rate", rank)
    return convolution_layer(
        kernel,
        step.image,
        padding=_pads(step, step.image, kernel.shape[2:], strides, spread),
        stride=strides,
        dilation=spread,
        groups=groups,
    )


def _convolved(step: Step, layer: Layer, name: str = "", before: str = "") -> Node:
    shape = (step.befores[0].shape[0], layer.channels[1], *layer.output)
    return step.node("layer", step.kind, shape, name, before, layer=layer)


def _convolution(step: Step) -> Made:
    kernel = _oihw(step.weight(0, "kernel"))
    layer = _layer_of(step, kernel, step.sizes("strides", kernel.ndim - 2), int(step.config.get("groups", 1)))
    return _activated(step, [_convolved(step, layer)])


def _oihw(kernel: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1)))


def _depthwise_kernel(kernel: Array) -> Array:
    """Turn (*kernel, c_in, filters of each channel) into (c_in * filters, 1, *kernel)."""
    *taps, channels, filters = kernel.shape
    return _oihw(kernel.reshape(*taps, 1, channels * filters))


def _depthwise(step: Step) -> Made:
    kernel = step.weight(0, "depthwise_kernel", "kernel")
    layer = _layer_of(step, _depthwise_kernel(kernel), step.sizes("strides", kernel.ndim - 2), kernel.shape[-2])
    return _activated(step, [_convolved(step, layer)])


def _separable(step: Step) -> Made:
    kernel, mixing = step.weight(0, "depthwise_kernel"), step.weight(1, "pointwise_kernel")
    first = _layer_of(step, _depthwise_kernel(kernel), step.sizes("strides", kernel.ndim - 2), kernel.shape[-2])
    one = _convolved(step, first, f"{step.name} depthwise")
    second = convolution_layer(_oihw(mixing), first.output, padding="valid")
    return _activated(step, [one, _convolved(step, second, before=one.name)])


def _transposed(step: Step) -> Made:
    kernel = _oihw(step.weight(0, "kernel"))  # (*kernel, c_out, c_in) in the file
    rank = kernel.ndim - 2
    strides, spread = step.sizes("strides", rank), step.sizes("dilation_rate", rank)
    if step.config.get("output_padding") is not None:
        raise ValueError("an output padding, which is not read")
    extents = [(tap - 1) * dilation + 1 for tap, dilation in zip(kernel.shape[2:], spread, strict=True)]
    outputs = [size * stride for size, stride in zip(step.image, strides, strict=True)]
    if step.config.get("padding", "valid") == "valid":
        outputs = [size + max(e - stride, 0) for size, stride, e in zip(outputs, strides, extents, strict=True)]
    layer = convolution_layer(
        kernel,
        outputs,
        padding=_pads(step, outputs, kernel.shape[2:], strides, spread),
        stride=strides,
        dilation=spread,
        transposed=True,
    )
    if layer.image != step.image:
        raise ValueError(f"a transposed layer that gives {tuple(outputs)} of {step.image}, which is not read")
    return _activated(step, [_convolved(step, layer)])


def _dense(step: Step) -> Made:
    matrix = step.weight(0, "kernel")
    before = step.befores[0].shape
    positions = math.prod(before[2:])
    notes = (f"one matrix, applied at {positions} positions alike",) if positions > 1 else ()
    shape = (before[0], matrix.shape[1], *before[2:])
    return _activated(step, [step.node("layer", "Dense", shape, layer=dense_layer(matrix.T), notes=notes)])


def _batch_normalization(step: Step) -> Made:
    scaled, shifted = step.config.get("scale", True), step.config.get("center", True)
    weight = step.weight(0, "gamma") if scaled else None
    variance = step.weight(int(scaled) + int(shifted) + 1, "moving_variance")
    layer = normalization_layer(variance, weight, float(step.config.get("epsilon", 1e-3)))
    if step.config.get("axis", -1) not in (-1, len(step.befores[0].shape) - 1, [len(step.befores[0].shape) - 1], [-1]):
        raise ValueError("a normalisation of another axis than the channels, which is not read")
    return [step.node("layer", "BatchNormalization", step.befores[0].shape, layer=layer)]


def _layer_normalization(step: Step) -> Made:
    weight = step.weight(0, "gamma") if step.config.get("scale", True) else None
    gain = gains.normalization_gain(weight, float(step.config.get("epsilon", 1e-3)))
    what = f"{step.kind}, at most max|gamma| / sqrt(eps)"
    return [step.node("map", what, step.befores[0].shape, gain=gain)]


def _as_it_is(step: Step) -> Made:
    return [step.node("map", step.kind, step.befores[0].shape)]


def _named_activation(step: Step) -> Made:
    made = [step.node("map", "linear", step.befores[0].shape)]
    return _activated(step, made)


def _own_activation(name: str, **settings: tuple[str, ...]) -> Callable[[Step], Made]:
    """Return the rule of an activation that is a layer; of each parameter the names that hold it."""

    def rule(step: Step) -> Made:
        found = {}
        for parameter, names in settings.items():
            value = next((step.config[one] for one in names if step.config.get(one) is not None), None)
            if value is not None:
                found[parameter] = float(value)
        gain = gains.activation_gain(name, **found)
        return [step.node("map", name, step.befores[0].shape, gain=gain)]

    return rule


def _prelu(step: Step) -> Made:
    gain = gains.activation_gain("prelu", slope=step.weight(0, "alpha"))
    return [step.node("map", "prelu", step.befores[0].shape, gain=gain)]


def _relu(step: Step) -> Made:
    if float(step.config.get("threshold") or 0.0) != 0.0:
        raise ValueError("a threshold other than 0, where it is not continuous")
    gain = gains.activation_gain("leaky relu", slope=float(step.config.get("negative_slope") or 0.0))
    return [step.node("map", "relu", step.befores[0].shape, gain=gain)]


def _pooling(step: Step) -> Made:
    before, rank = step.befores[0].shape, len(step.image)
    taps = step.sizes("pool_size", rank, 2)
    strides = taps if step.config.get("strides") is None else step.sizes("strides", rank)
    pads = _pads(step, step.image, taps, strides, (1,) * rank)
    outputs = [(n + a + b - tap) // s + 1 for n, (a, b), tap, s in zip(step.image, pads, taps, strides, strict=True)]
    windows = [gains.windows(*one) for one in zip(outputs, taps, strides, [low for low, _ in pads], strict=True)]
    if step.kind.startswith("Max"):
        gain = gains.overlap_gain(step.image, windows)
    else:  # the padding is not counted
        gain = gains.average_gain(
            [gains.average_matrix(n, axis, range(n)) for n, axis in zip(step.image, windows, strict=True)]
        )
    return [step.node("map", f"{step.kind} {'x'.join(map(str, taps))}", (*before[:2], *outputs), gain=gain)]


def _global_pooling(step: Step) -> Made:
    before = step.befores[0].shape
    gain = 1.0 if "Max" in step.kind else gains.outward(1.0 / math.sqrt(math.prod(step.image)), 2)
    shape = (*before[:2], *(1,) * len(step.image)) if step.config.get("keepdims") else before[:2]
    return [step.node("map", step.kind, shape, gain=gain)]


def _padding(step: Step) -> Made:
    before, amounts = step.befores[0].shape, step.config["padding"]
    sides = [amounts] if len(step.image) == 1 else amounts
    sizes = [n + int(low) + int(high) for n, (low, high) in zip(step.image, sides, strict=True)]
    return [step.node("map", step.kind, (*before[:2], *sizes))]


def _cropping(step: Step) -> Made:
    before, amounts = step.befores[0].shape, step.config["cropping"]
    sides = [amounts] if len(step.image) == 1 else amounts
    sizes = [n - int(low) - int(high) for n, (low, high) in zip(step.image, sides, strict=True)]
    return [step.node("map", step.kind, (*before[:2], *sizes))]


def _upsampling(step: Step) -> Made:
    if step.config.get("interpolation", "nearest") != "nearest":
        raise ValueError("a resampling that is not read")
    factors = step.sizes("size", len(step.image), 2)
    sizes = [n * factor for n, factor in zip(step.image, factors, strict=True)]
    gain = gains.copies_gain(np.zeros(math.prod(factors), dtype=int))
    return [step.node("map", step.kind, (*step.befores[0].shape[:2], *sizes), gain=gain)]


def _flattening(step: Step) -> Made:
    before = step.befores[0].shape
    return [step.node("map", step.kind, (before[0], math.prod(before[1:])))]


def _reshaping(step: Step) -> Made:
    before, target = step.befores[0].shape, [int(size) for size in step.config["target_shape"]]
    known = math.prod(size for size in target if size > 0)
    target = [size if size > 0 else math.prod(before[1:]) // known for size in target]
    sizes = (target[-1], *target[:-1]) if len(target) > 1 else tuple(target)
    return [step.node("map", step.kind, (before[0], *sizes))]


def _rescaling(step: Step) -> Made:
    gain = gains.outward(abs(float(step.config["scale"])))
    return [step.node("map", step.kind, step.befores[0].shape, gain=gain)]


def _sum(step: Step) -> Made:
    weight = gains.outward(1.0 / len(step.befores)) if step.kind == "Average" else 1.0
    if len({one.shape for one in step.befores}) != 1:
        raise ValueError("of tensors of different shapes, which is not read")
    return [step.node("sum", "sum", step.befores[0].shape, weights=(weight,) * len(step.befores))]


def _larger(step: Step) -> Made:
    if len({one.shape for one in step.befores}) != 1:
        raise ValueError("of tensors of different shapes, which is not read")
    return [step.node("concatenation", step.kind, step.befores[0].shape)]


def _concatenation(step: Step) -> Made:
    shapes = [one.shape for one in step.befores]
    rank, axis = len(shapes[0]), int(step.config.get("axis", -1))
    axis = axis % rank
    place = 1 if axis == rank - 1 else axis if axis == 0 else axis + 1  # where that axis stands here
    sizes = list(shapes[0])
    sizes[place] = sum(shape[place] for shape in shapes)
    return [step.node("concatenation", "concatenation", sizes)]


_RANKS = ("1D", "2D", "3D")

STEPS: dict[str, Callable[[Step], Made]] = {
    **{f"Conv{rank}": _convolution for rank in _RANKS},
    **{f"DepthwiseConv{rank}": _depthwise for rank in _RANKS},
    **{f"SeparableConv{rank}": _separable for rank in _RANKS},
    **{f"Conv{rank}Transpose": _transposed for rank in _RANKS},
    "Dense": _dense,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "Activation": _named_activation,
    "ReLU": _relu,
    "LeakyReLU": _own_activation("leaky relu", slope=("negative_slope", "alpha")),
    "ELU": _own_activation("elu", alpha=("alpha",)),
    "PReLU": _prelu,
    "Softmax": _own_activation("softmax"),
    **{f"{kind}Pooling{rank}": _pooling for kind in ("Max", "Average") for rank in _RANKS},
    **{f"Global{kind}Pooling{rank}": _global_pooling for kind in ("Max", "Average") for rank in _RANKS},
    **{f"ZeroPadding{rank}": _padding for rank in _RANKS},
    **{f"Cropping{rank}": _cropping for rank in _RANKS},
    **{f"UpSampling{rank}": _upsampling for rank in _RANKS},
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout",
         "AlphaDropout", "ActivityRegularization", "Identity"),
        _as_it_is,
    ),
    "Flatten": _flattening,
    "Reshape": _reshaping,
    "Rescaling": _rescaling,
    **dict.fromkeys(("Add", "Average", "Subtract"), _sum),
    **dict.fromkeys(("Maximum", "Minimum"), _larger),
    "Concatenate": _concatenation,
}  # fmt: skip
"""The rule of each layer by its class; every other is unknown."""
