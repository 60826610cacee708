"""What PyTorch's functions do to a tensor: a call as a node of a network, with its layer or its Lipschitz constant.

Those with a weight are in `convla.frameworks.torch.layer_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convla.errors import ConvlaError
from convla.frameworks.torch.calls import ATTENTION, Call, Padded, only_first, unknown
from convla.frameworks.torch.layer_steps import LAYER_STEPS, weight_array
from convla.frameworks.torch.pooling import POOLINGS
from convla.networks import gains
from convla.networks.graph import Node

__all__ = ["STEPS", "interpret"]

_WORDS = {
    "scaled_dot_product_attention": ATTENTION,
    "multi_head_attention_forward": ATTENTION,
    "bmm": ATTENTION,
    "einsum": "not read",
    "lstm": "a recurrent layer, which is not read",
    "gru": "a recurrent layer, which is not read",
    "embedding": "a table that is read at integers",
}


def interpret(call: Call) -> Node:
    """Return what a call does, as a node whose name may be empty, and whose inputs are empty where all are meant."""
    outputs = call.value if isinstance(call.value, (tuple, list)) else (call.value,)
    tensors = [value for value in outputs if isinstance(value, torch.Tensor)]
    if not tensors or not all(tensor.is_floating_point() for tensor in tensors[:1]):
        return unknown(call, "its value holds no floating-point numbers")
    step = STEPS.get(call.name)
    if step is None:
        return unknown(call, _WORDS.get(call.name, "no Lipschitz constant is known of it"))
    try:
        return step(call)
    except (ConvlaError, TypeError, ValueError, RuntimeError) as error:  # a use that no rule here foresees
        return unknown(call, str(error))


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
            return unknown(call, "an instance normalisation with fixed statistics, which is not read")
        scale = found["weight"]
        gain = gains.normalization_gain(None if scale is None else weight_array(scale)[0], float(epsilon))
        return _map(f"{call.name}, at most max|weight| / sqrt(eps)", gain)

    return only_first(rule)


def _activation(name: str, *parameters: str, defaults: Mapping[str, Any] | None = None) -> Callable[[Call], Node]:
    """Return the rule of an activation, some of whose arguments, by position, are parameters of its constant."""

    def rule(call: Call) -> Node:
        given = {}
        for position, parameter in enumerate(parameters, 1):
            value = call.argument(position, {"slope": "negative_slope"}.get(parameter, parameter))
            if value is not None:
                given[parameter] = weight_array(value)[0] if isinstance(value, torch.Tensor) else value
        return _map(name, gains.activation_gain(name, **{**(defaults or {}), **given}))

    return only_first(rule)


def _prelu(call: Call) -> Node:
    return _map("prelu", gains.activation_gain("prelu", slope=weight_array(call.argument(1, "weight"))[0]))


def _elu(call: Call) -> Node:
    # The operation below PyTorch's function has two factors more, which that leaves at 1.
    if call.kwargs.keys() & {"scale", "input_scale"} or (len(call.args) > 2 and not isinstance(call.args[2], bool)):
        return unknown(call, "with factors of its own, which are not read")
    return _activation("elu", "alpha")(call)


def _softplus(call: Call) -> Node:
    # (1 / beta) log(1 + exp(beta x)) has the derivative sigmoid(beta x), whatever beta. Beyond the threshold x itself
    # is taken for it, a jump by exp(-threshold) / beta: a matter of rounding at PyTorch's 20, not below.
    if call.argument(2, "threshold", 20) < 20:
        return unknown(call, "not continuous where it passes its threshold")
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
        return unknown(call, "not continuous")
    return _map("threshold", 1.0)


def _dropout(call: Call) -> Node:
    share, training = call.argument(1, "p", 0.5), call.argument(2, "training", True)
    if not training or share == 0.0:
        return _map("dropout, which is off", 1.0)
    return unknown(call, "on though the network is evaluated: its value is drawn anew each time")


def _rearrangement(call: Call) -> Node:
    """Count how often each entry is copied, by sending the entries' numbers through the same call."""
    tensor = call.input
    numbers = torch.arange(1, tensor.numel() + 1, dtype=torch.float64).reshape(tensor.shape)
    if tensor.device.type != "cpu":
        numbers = numbers.to(tensor.device)
    kwargs = {key: value for key, value in call.kwargs.items() if key not in ("input", "value")}
    if any(isinstance(value, torch.dtype) for value in (*call.args, *call.kwargs.values())):
        return unknown(call, "the same bits as numbers of another kind")
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
        return unknown(call, "a product of two values that both depend on the input, as in a gate")
    if call.name == "div" and (tracked[1] or call.kwargs.get("rounding_mode")):
        return unknown(call, "a division by what depends on the input, or one that rounds")
    tensor, factor = (left, right) if tracked[0] else (right, left)
    moduli = (factor.detach() if isinstance(factor, torch.Tensor) else torch.as_tensor(float(factor))).double().abs()
    largest = float((1.0 / moduli if call.name == "div" else moduli).max()) if moduli.numel() else 0.0
    if not math.isfinite(largest):
        return unknown(call, "a factor that is not finite")
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
        return unknown(call, "of tensors of different shapes")
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
    **LAYER_STEPS,
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
    "prelu": only_first(_prelu),
    "gelu": _gelu,
    "log_softmax": _log_softmax,
    "softplus": _softplus,
    "threshold": _threshold,
    "arctan": _activation("arctan"),
    "atan": _activation("arctan"),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
    **dict.fromkeys(_REARRANGEMENTS, only_first(_rearrangement)),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "float", "double", "type", "type_as", "cpu"), _as_it_is),
    **POOLINGS,
    "mean": only_first(_mean),
    "sum": only_first(_sum),
    **dict.fromkeys(("amax", "amin", "max", "min"), _maximum),
    **dict.fromkeys(("maximum", "minimum"), _larger_of_two),
    **dict.fromkeys(("add", "sub", "rsub"), _sum_of_terms),
    **dict.fromkeys(("mul", "div"), _scaling),
    **dict.fromkeys(("cat", "stack", "hstack", "vstack"), _joined),
}  # fmt: skip
"""The rule of each function by its name; every other is unknown."""
