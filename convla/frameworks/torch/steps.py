"""What PyTorch's functions do to a tensor: a call as a node of a network, with its layer or its Lipschitz constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from convla.errors import ConvlaError
from convla.frameworks.torch.pooling import POOLINGS
from convla.geometry import ConvGeometry
from convla.networks import gains
from convla.networks.graph import Node
from convla.networks.layers import convolution_layer, dense_layer, normalization_layer

__all__ = ["STEPS", "Call", "Padded", "Watcher", "interpret", "plain_name"]

Tensor = Any


class Watcher(Protocol):
    """What a call asks of the recorder."""

    def is_tracked(self, value: Any) -> bool:
        """Tell whether a value depends on the inputs."""

    def inputs_of(self, tensors: Sequence[Tensor]) -> tuple[str, ...]:
        """Return the nodes of tensors."""

    def name_of_weight(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter or buffer."""

    @property
    def module_name(self) -> str:
        """The name of the innermost module that runs."""

    @property
    def paddings(self) -> dict[int, Padded]:
        """What padded tensors were before, by the identity of the tensor."""


@dataclass(frozen=True)
class Padded:
    """A tensor before it was padded, and how much on the sides of each image axis, by which boundary."""

    before: Tensor
    amounts: tuple[tuple[int, int], ...]
    boundary: str


@dataclass(frozen=True)
class Call:
    """A call of one of PyTorch's functions.

    Attributes
    ----------
    function : callable
    args, kwargs
    value
        What it returned.
    watcher : Watcher
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    value: Any
    watcher: Watcher

    @property
    def name(self) -> str:
        """The function's name, in place or as an operator too: "add" for add, add_, __add__ and __iadd__."""
        # An operator of an exported program is called "conv2d.default".
        return plain_name(str(getattr(self.function, "__name__", self.function)).partition(".")[0])

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument, by its position or its name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def arguments(self, *names: str) -> Iterator[Any]:
        """Give arguments in the order of the function's signature, None for those left out."""
        return (self.argument(position, name) for position, name in enumerate(names))

    @property
    def input(self) -> Tensor:
        """The first argument."""
        return self.argument(0, "input")

    def follows_only_first(self) -> bool:
        """Tell whether the first argument alone depends on the inputs."""
        others = [*self.args[1:], *(value for key, value in self.kwargs.items() if key != "input")]
        return self.watcher.is_tracked(self.input) and not any(map(self.watcher.is_tracked, others))


_ALIASES = {
    "iadd": "add", "radd": "add", "isub": "sub", "subtract": "sub", "rsub": "rsub", "imul": "mul", "rmul": "mul",
    "multiply": "mul", "truediv": "div", "itruediv": "div", "true_divide": "div", "divide": "div", "negative": "neg",
    "concat": "cat",
    "log_sigmoid": "logsigmoid", "concatenate": "cat", "maximum": "maximum", "absolute": "abs", "clip": "clamp",
    "clamp_min": "clamp", "clamp_max": "clamp", "rmatmul": "matmul", "mm": "matmul",
}  # fmt: skip


def plain_name(name: str) -> str:
    """Return the name that `STEPS` has for a function: that of "add" for "add_" and "__iadd__" too."""
    return _ALIASES.get(name.strip("_"), name.strip("_"))


def interpret(call: Call) -> Node:
    """Return what a call does, as a node whose name may be empty, and whose inputs are empty where all are meant."""
    outputs = call.value if isinstance(call.value, (tuple, list)) else (call.value,)
    tensors = [value for value in outputs if isinstance(value, torch.Tensor)]
    if not tensors or not all(tensor.is_floating_point() for tensor in tensors[:1]):
        return _unknown(call, "its value holds no floating-point numbers")
    step = STEPS.get(call.name)
    if step is None:
        return _unknown(call, _WORDS.get(call.name, "no Lipschitz constant is known of it"))
    try:
        return step(call)
    except (ConvlaError, TypeError, ValueError, RuntimeError) as error:  # a use that no rule here foresees
        return _unknown(call, str(error))


def _unknown(call: Call, reason: str) -> Node:
    return Node("", "unknown", what=f"{call.name}: {reason}")


_ATTENTION = "attention: a product of what depends on the input, which has no Lipschitz constant on the whole space"
_WORDS = {
    "scaled_dot_product_attention": _ATTENTION,
    "multi_head_attention_forward": _ATTENTION,
    "bmm": _ATTENTION,
    "einsum": "not read",
    "lstm": "a recurrent layer, which is not read",
    "gru": "a recurrent layer, which is not read",
    "embedding": "a table that is read at integers",
}


def _only_first(rule: Callable[[Call], Node]) -> Callable[[Call], Node]:
    """Apply a rule for one tensor where no other argument depends on the input."""

    def checked(call: Call) -> Node:
        return rule(call) if call.follows_only_first() else _unknown(call, "its parameters depend on the input")

    return checked


# Layers.


def _array(tensor: Tensor) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
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
    kernel, notes = _array(weight)
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
    kernel, notes = _array(weight)
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
        return _unknown(call, "its output padding is more than its stride covers")
    return Node(_name(call, weight), "layer", (), call.name, layer=layer, notes=notes)


def _dense(call: Call, weight: Tensor, matrix: Tensor, tensor: Tensor) -> Node:
    array, notes = _array(matrix)
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
        return _unknown(call, _ATTENTION)
    if tracked[0] and right.ndim == 2:
        return _dense(call, right, right.T, left)
    if tracked[1] and left.ndim == 2 and right.ndim == 2:
        return replace(_dense(call, left, left, right), from_left=True)
    return _unknown(call, "a product of stacked matrices, which is not read")


def _sum_and_product(call: Call) -> Node:
    bias, left, right = call.arguments("input", "mat1", "mat2")
    if call.watcher.is_tracked(bias) or call.watcher.is_tracked(right) or set(call.kwargs) & {"alpha", "beta"}:
        return _unknown(call, "more than a matrix times a tensor")
    return _dense(call, right, right.T, left)


def _batch_norm(call: Call) -> Node:
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    if isinstance(call.function, torch._ops.OpOverload):  # whose arguments stand in another order
        names = ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
    found = dict(zip(names, list(call.arguments("input", *names))[1:], strict=True))
    mean, variance, weight = (found[name] for name in ("running_mean", "running_var", "weight"))
    training, epsilon = found["training"], found["eps"]
    if training or mean is None or variance is None:
        return _unknown(call, "a normalisation by the batch, whose examples then depend on each other")
    kernels = [None if tensor is None else _array(tensor)[0] for tensor in (variance, weight)]
    assert kernels[0] is not None
    layer = normalization_layer(kernels[0], kernels[1], 1e-5 if epsilon is None else epsilon)
    return Node(_name(call, variance).removesuffix(".running_var"), "layer", (), call.name, layer=layer)


# Maps without weights.


def _map(what: str, gain: float, notes: tuple[str, ...] = ()) -> Node:
    return Node("", "map", (), what, gain=gain, notes=notes)


def _normalization(names: tuple[str, ...], default: float | None = 1e-5) -> Callable[[Call], Node]:
    def rule(call: Call) -> Node:
        found = dict(zip(names, call.arguments(*names), strict=True))
        epsilon = found["eps"]
        if epsilon is None:
            epsilon = default if default is not None else torch.finfo(call.input.dtype).eps
        if found.get("use_input_stats") is False:
            return _unknown(call, "an instance normalisation with fixed statistics, which is not read")
        scale = found["weight"]
        gain = gains.normalization_gain(None if scale is None else _array(scale)[0], float(epsilon))
        return _map(f"{call.name}, at most max|weight| / sqrt(eps)", gain)

    return _only_first(rule)


def _activation(name: str, *parameters: str, defaults: Mapping[str, Any] | None = None) -> Callable[[Call], Node]:
    """Return the rule of an activation, some of whose arguments, by position, are parameters of its constant."""

    def rule(call: Call) -> Node:
        given = {}
        for position, parameter in enumerate(parameters, 1):
            value = call.argument(position, {"slope": "negative_slope"}.get(parameter, parameter))
            if value is not None:
                given[parameter] = _array(value)[0] if isinstance(value, torch.Tensor) else value
        return _map(name, gains.activation_gain(name, **{**(defaults or {}), **given}))

    return _only_first(rule)


def _prelu(call: Call) -> Node:
    return _map("prelu", gains.activation_gain("prelu", slope=_array(call.argument(1, "weight"))[0]))


def _elu(call: Call) -> Node:
    # The operation below PyTorch's function has two factors more, which that leaves at 1.
    if call.kwargs.keys() & {"scale", "input_scale"} or (len(call.args) > 2 and not isinstance(call.args[2], bool)):
        return _unknown(call, "with factors of its own, which are not read")
    return _activation("elu", "alpha")(call)


def _softplus(call: Call) -> Node:
    # (1 / beta) log(1 + exp(beta x)) has the derivative sigmoid(beta x), whatever beta. Beyond the threshold x itself
    # is taken for it, a jump by exp(-threshold) / beta: a matter of rounding at PyTorch's 20, not below.
    if call.argument(2, "threshold", 20) < 20:
        return _unknown(call, "not continuous where it passes its threshold")
    return _activation("softplus")(call)


def _gelu(call: Call) -> Node:
    name = "gelu by tanh" if call.kwargs.get("approximate") == "tanh" else "gelu"
    return _map(name, gains.activation_gain(name))


def _log_softmax(call: Call) -> Node:
    axis = call.argument(1, "dim", -1)
    count = call.input.shape[axis if axis is not None else -1]
    return _map("log softmax", gains.activation_gain("log softmax", count=count))


def _threshold(call: Call) -> Node:
    threshold, value = call.argument(1, "threshold"), call.argument(2, "value")
    if threshold != value:
        return _unknown(call, "not continuous")
    return _map("threshold", 1.0)


def _dropout(call: Call) -> Node:
    share, training = call.argument(1, "p", 0.5), call.argument(2, "training", True)
    if not training or share == 0.0:
        return _map("dropout, which is off", 1.0)
    return _unknown(call, "on though the network is evaluated: its value is drawn anew each time")


def _rearrangement(call: Call) -> Node:
    """Count how often each entry is copied, by sending the entries' numbers through the same call."""
    tensor = call.input
    numbers = torch.arange(1, tensor.numel() + 1, dtype=torch.float64).reshape(tensor.shape)
    if tensor.device.type != "cpu":
        numbers = numbers.to(tensor.device)
    kwargs = {key: value for key, value in call.kwargs.items() if key not in ("input", "value")}
    if any(isinstance(value, torch.dtype) for value in (*call.args, *call.kwargs.values())):
        return _unknown(call, "the same bits as numbers of another kind")
    args = call.args[1:3] if call.name == "pad" else call.args[1:]  # what is padded with is no matter
    if call.name == "pad":
        _note_padding(call)
    with torch._C.DisableTorchFunction():
        found = call.function(numbers, *args, **kwargs)
    parts = found if isinstance(found, (tuple, list)) else (found,)
    gain = gains.copies_gain(np.concatenate([part.cpu().numpy().reshape(-1) for part in parts]).astype(np.int64) - 1)
    return _map(call.name, gain)


def _note_padding(call: Call) -> None:
    """Keep how a tensor was padded: a convolution behind it takes that as its own boundary."""
    amounts, mode, value = call.argument(1, "pad"), call.argument(2, "mode", "constant"), call.argument(3, "value")
    boundary = {"constant": "zero"}.get(mode, mode)
    sides = [(int(amounts[i]), int(amounts[i + 1])) for i in range(0, len(amounts), 2)][::-1]
    rank = call.input.ndim - 2
    while len(sides) > rank > 0 and sides[0] == (0, 0):  # channels and batch are not padded
        sides.pop(0)
    sides = [(0, 0)] * (rank - len(sides)) + sides
    if not value and len(sides) == rank and all(min(side) >= 0 for side in sides):
        call.watcher.paddings[id(call.value)] = Padded(call.input, tuple(sides), boundary)


def _as_it_is(call: Call) -> Node:
    return _map(call.name, 1.0)


def _along(call: Call) -> int:
    """Return how many entries are put together in each of a reduction."""
    value = call.value[0] if isinstance(call.value, (tuple, list)) else call.value
    return int(max(1, call.input.numel() // max(1, value.numel())))


def _mean(call: Call) -> Node:
    return _map("mean", gains.outward(1.0 / math.sqrt(_along(call)), 2))


def _sum(call: Call) -> Node:
    return _map("sum", gains.outward(math.sqrt(_along(call))))


# Several tensors.


def _sum_of_terms(call: Call) -> Node:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    factor = float(call.kwargs.get("alpha", 1.0))
    signs = (1.0, abs(factor)) if call.name != "rsub" else (abs(factor), 1.0)
    terms = [
        (tensor, weight * _spread(tensor, call.value))
        for tensor, weight in zip((left, right), signs, strict=True)
        if call.watcher.is_tracked(tensor)
    ]
    names = [call.watcher.inputs_of([tensor])[0] for tensor, _ in terms]
    what = "sum" if len(terms) > 1 else "sum with a constant"
    return Node("", "sum", tuple(names), what, weights=tuple(weight for _, weight in terms))


def _spread(tensor: Tensor, value: Tensor) -> float:
    """Return the norm of the copying that makes a tensor as large as the value."""
    copies = value.numel() // max(1, tensor.numel())
    return 1.0 if copies <= 1 else gains.outward(math.sqrt(copies))


def _scaling(call: Call) -> Node:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    tracked = call.watcher.is_tracked(left), call.watcher.is_tracked(right)
    if all(tracked):
        return _unknown(call, "a product of two values that both depend on the input, as in a gate")
    if call.name == "div" and (tracked[1] or call.kwargs.get("rounding_mode")):
        return _unknown(call, "a division by what depends on the input, or one that rounds")
    tensor, factor = (left, right) if tracked[0] else (right, left)
    moduli = (factor.detach() if isinstance(factor, torch.Tensor) else torch.as_tensor(float(factor))).double().abs()
    largest = float((1.0 / moduli if call.name == "div" else moduli).max()) if moduli.numel() else 0.0
    if not math.isfinite(largest):
        return _unknown(call, "a factor that is not finite")
    exact = 1.0 if largest in (0.0, 1.0) else gains.outward(1.0, 2)
    return _map("scaling", largest * exact * _spread(tensor, call.value))


def _joined(call: Call) -> Node:
    tensors = [one for one in call.argument(0, "tensors") if call.watcher.is_tracked(one)]
    names = tuple(call.watcher.inputs_of([one])[0] for one in tensors)
    return Node("", "concatenation", names, "concatenation")


def _larger_of_two(call: Call) -> Node:
    pair = call.argument(0, "input"), call.argument(1, "other")
    tensors = [one for one in pair if call.watcher.is_tracked(one)]
    if any(one.shape != call.value.shape for one in tensors):
        return _unknown(call, "of tensors of different shapes")
    # |max(a, b) - max(c, d)|^2 <= |a - c|^2 + |b - d|^2
    return Node("", "concatenation", tuple(call.watcher.inputs_of([one])[0] for one in tensors), call.name)


def _maximum(call: Call) -> Node:
    if isinstance(call.argument(1, "other"), torch.Tensor):
        return _larger_of_two(call)
    return _map(f"{call.name} over an axis", 1.0)


_REARRANGEMENTS = (
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "movedim",
    "moveaxis", "swapaxes", "swapdims", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "flip", "roll",
    "getitem", "narrow", "select", "index_select", "chunk", "split", "unbind", "tensor_split", "expand", "expand_as",
    "repeat", "tile", "repeat_interleave", "pad", "unfold", "view_as", "reshape_as", "rot90", "ravel",
    "split_with_sizes", "get", "slice",
)  # fmt: skip

STEPS: dict[str, Callable[[Call], Node]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _only_first(_convolution)),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _only_first(_transposed_convolution)
    ),
    "linear": _only_first(_linear),
    "matmul": _product,
    "addmm": _sum_and_product,
    "batch_norm": _only_first(_batch_norm),
    "layer_norm": _normalization(("input", "normalized_shape", "weight", "bias", "eps")),
    "group_norm": _normalization(("input", "num_groups", "weight", "bias", "eps")),
    "instance_norm": _normalization(
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    ),
    "rms_norm": _normalization(("input", "normalized_shape", "weight", "eps"), default=None),
    **{
        name: _activation(name)
        for name in ("relu", "relu6", "hardtanh", "tanh", "abs", "neg", "tanhshrink", "softsign", "softshrink",
                     "sigmoid", "hardswish", "silu", "mish", "selu", "logsigmoid", "clamp", "sin", "cos", "softmax",
                     "hardsigmoid")
    },
    "leaky_relu": _activation("leaky relu", "slope"),
    "elu": _elu,
    "celu": _activation("celu"),
    "prelu": _only_first(_prelu),
    "gelu": _gelu,
    "log_softmax": _log_softmax,
    "softplus": _softplus,
    "threshold": _threshold,
    "arctan": _activation("arctan"),
    "atan": _activation("arctan"),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
    **dict.fromkeys(_REARRANGEMENTS, _only_first(_rearrangement)),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "float", "double", "type", "type_as", "cpu"), _as_it_is),
    **POOLINGS,
    "mean": _only_first(_mean),
    "sum": _only_first(_sum),
    **dict.fromkeys(("amax", "amin", "max", "min"), _maximum),
    **dict.fromkeys(("maximum", "minimum"), _larger_of_two),
    **dict.fromkeys(("add", "sub", "rsub"), _sum_of_terms),
    **dict.fromkeys(("mul", "div"), _scaling),
    **dict.fromkeys(("cat", "stack", "hstack", "vstack"), _joined),
}  # fmt: skip
"""The rule of each function by its name; every other is unknown."""
