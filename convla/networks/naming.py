"""Which arrays of a model are convolution kernels: what their shapes, names and neighbours say, and the rule in words.

A file of weights is a list of names and arrays; nothing in it says what a layer is. The rules here are conservative,
and whatever they leave out is named with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["named_as_kernel", "neighbour", "parts_of", "why_no_kernel", "why_no_matrix"]

_MOMENTS = frozenset(
    ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta")
)
_OPTIMIZER = re.compile(r"^(optim|optims|optimizers?)(_|$)|_(optim|optimizers?)$|^opt_state$", re.IGNORECASE)
_OPTIMIZER_SLOT = re.compile(r"(^|[./])state[./]\d+[./][^./]+$")
_NORM = re.compile(r"(norm|^ln|^bn|^gn)(_?\w?\d*)$", re.IGNORECASE)
_POSITION = re.compile(r"pos(ition(al)?s?)?_?(emb|enc|bias|table)|rel(ative)?_(pos|coords)|_?tokens?$", re.IGNORECASE)
_TABLE = re.compile(r"(^|_)(embed(ding)?s?|quer(y|ies)|table|codebook|mask|index|grid|anchors?)$", re.IGNORECASE)
_SCALE = re.compile(
    r"^(bias|bias_\w+|gamma|beta|alpha|tau|layer_?scale|ls\d|lambda_?\d*|logit_scale|running_\w+|mean|std|var)$|"
    r"(^|_)(scale|zero_point)s?$",
    re.IGNORECASE,
)
_BILINEAR = re.compile(r"bilinear$", re.IGNORECASE)
_AVERAGE = re.compile(r"(^|_)(ema|swa|shadow|averaged?)(_|$)", re.IGNORECASE)
_KERNEL = re.compile(r"^(weights?|w)$|kernel|filter|conv", re.IGNORECASE)


def parts_of(name: str) -> list[str]:
    """Return the parts of a name, which dots or slashes join."""
    return re.split(r"[./]", name)


def neighbour(name: str, last: str) -> str:
    """Return the name of what stands beside an array in the same layer.

    Examples
    --------
    >>> from convla.networks.naming import neighbour
    >>> neighbour("layer1.conv.weight", "bias")
    'layer1.conv.bias'
    """
    return name[: len(name) - len(parts_of(name)[-1])] + last


def why_no_kernel(name: str, arrays: Mapping[str, Any]) -> str | None:
    """Return why an array is no convolution kernel, or None where nothing speaks against it.

    Parameters
    ----------
    name : str
    arrays : mapping of str to numpy.ndarray
        All of the model, this one among them.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.naming import why_no_kernel
    >>> arrays = {"norm.weight": np.ones((4, 8, 8)), "norm.bias": np.ones((4, 8, 8))}
    >>> why_no_kernel("norm.weight", arrays)
    'a scale, such as that of a LayerNorm: its bias has the same shape'
    """
    array = arrays[name]
    return _why_not_by_shape(array) or _why_not_by_name(name, arrays) or _why_not_by_content(array)


def why_no_matrix(name: str, arrays: Mapping[str, Any]) -> str | None:
    """Return why an array is not the matrix of a linear layer, or None where nothing speaks against it.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.naming import why_no_matrix
    >>> arrays = {"fc.weight": np.ones((4, 8)), "embedding.weight": np.ones((4, 8))}
    >>> why_no_matrix("fc.weight", arrays), why_no_matrix("embedding.weight", arrays)
    (None, 'a table, such as one of positions, by its name')
    """
    array = arrays[name]
    if array.ndim != 2:
        return f"{array.ndim} axes: the matrix of a linear layer has 2, (outputs, inputs)"
    return _why_not_by_numbers(array) or _why_not_by_name(name, arrays) or _why_not_by_content(array)


def named_as_kernel(name: str) -> bool:
    """Whether the last part of a name says that an array is the weight of a layer."""
    return _KERNEL.search(parts_of(name)[-1]) is not None


def _why_not_by_shape(array: Any) -> str | None:
    if not 3 <= array.ndim <= 5:
        return f"{array.ndim} axes: a convolution kernel has 3 to 5, (c_out, c_in, *kernel)"
    return _why_not_by_numbers(array)


def _why_not_by_numbers(array: Any) -> str | None:
    if array.dtype not in (np.float32, np.float64):
        return f"dtype {array.dtype}: a convolution kernel holds floating-point numbers"
    if array.size == 0:
        return f"an empty axis in shape {array.shape}"
    return None


def _why_not_by_content(array: Any) -> str | None:
    return None if np.isfinite(array).all() else "NaN or infinity in it"


def _why_not_by_name(name: str, arrays: Mapping[str, Any]) -> str | None:
    *path, last = parts_of(name)
    if last in _MOMENTS or _OPTIMIZER_SLOT.search(name) or any(map(_OPTIMIZER.search, path)):
        return "part of an optimizer's state"
    array, bias = arrays[name], arrays.get(neighbour(name, "bias"))
    if last != "bias" and bias is not None and bias.shape == array.shape:
        return "a scale, such as that of a LayerNorm: its bias has the same shape"
    layer = path[-1] if path and named_as_kernel(name) else last
    if _POSITION.search(layer) or _TABLE.search(last) or (array.ndim == 2 and _TABLE.search(layer)):
        return "a table, such as one of positions, by its name"
    if _NORM.search(layer) or _SCALE.search(last):
        return "a scale or a bias, by its name"
    if _BILINEAR.search(layer):
        return "the weight of a bilinear layer, by its name"
    return _why_not_average(name, arrays)


def _why_not_average(name: str, arrays: Mapping[str, Any]) -> str | None:
    """Return the reason if this is the running average of another array, of which one row is enough."""
    path = parts_of(name)
    places = [i for i, part in enumerate(path[:-1]) if _AVERAGE.search(part)]
    if not places:
        return None
    rest = path[places[-1] + 1 :]
    for _ in range(2):
        for other, array in arrays.items():
            parts = parts_of(other)
            if (
                parts[-len(rest) :] == rest
                and array.shape == arrays[name].shape
                and not any(map(_AVERAGE.search, parts))
            ):
                return f"an average of {other}"
        if rest[0] != "module":  # the averaging module of PyTorch has the network as an attribute
            return None
        rest = rest[1:]
    return None
