"""Rows for weights that come without a graph: what each layer is, by names and shapes, and what has to be assumed."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from convla._validate import check_integer
from convla.errors import ShapeError
from convla.networks.kernels import split_kernels
from convla.networks.layers import Layer, dense_layer, normalization_layer
from convla.networks.naming import named_as_kernel, neighbour, parts_of, why_no_matrix
from convla.networks.parametrizations import assemble
from convla.networks.rows import Task
from convla.networks.settings import LayerSettings, doubts, make_layer, settings_for
from convla.networks.weights import Weights

__all__ = ["tasks_of_weights"]

_VARIANCES = {
    "running_var": ("weight", "running_mean", 1e-5),
    "moving_variance": ("gamma", "moving_mean", 1e-3),
    "var": ("scale", "mean", 1e-5),
}
"""What holds the variances of a normalisation, its factors, its means, and the usual epsilon of the library."""


def tasks_of_weights(
    weights: Weights,
    image: Sequence[int] | None,
    *,
    default: LayerSettings,
    settings: Sequence[tuple[str, LayerSettings]] = (),
    only: str | None = None,
) -> tuple[list[Task], dict[str, str]]:
    """Return the layers of a model, each checked before the first is measured, and why its other arrays are none.

    Parameters
    ----------
    weights : Weights
    image : sequence of int, optional
        The image that each convolution is given, where its settings do not say. For kernels of more axes its last size
        is repeated, for kernels of fewer axes all its sizes must be equal.
    default : LayerSettings
        For layers that no pattern matches.
    settings : sequence of (pattern, LayerSettings)
        The last that matches a layer's name is taken.
    only : str, optional
        A pattern of names: settings and image need not fit any other convolution, and there are no other layers.

    Raises
    ------
    ShapeError, TypeError, ValueError
        If settings do not fit a kernel or a pattern matches nothing; the message begins with the layer's name. If a
        kernel has no image.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.checkpoints import tasks_of_weights
    >>> from convla.networks.settings import LayerSettings
    >>> from convla.networks.weights import Weights
    >>> weights = Weights({"conv.weight": np.ones((2, 1, 3)), "fc.weight": np.ones((2, 4)), "fc.bias": np.ones(2)})
    >>> tasks, others = tasks_of_weights(weights, (8,), default=LayerSettings())
    >>> [(task.name, task.layers[0].kind) for task in tasks], list(others)
    ([('conv.weight', 'convolution'), ('fc.weight', 'linear')], ['fc.bias'])
    """
    kernels, others = split_kernels(weights.arrays)
    for pattern, _ in settings:
        if not fnmatch.filter([*weights.arrays, *kernels], pattern):
            raise ValueError(f"settings for {pattern!r} match none of the {len(weights.arrays)} arrays")
    sizes = None if image is None else _checked_image(image, kernels)
    made = assemble(weights.arrays)
    names = {part: name for name, weight in made.items() for part in weight.parts}
    whole = {**weights.arrays, **{name: weight.array for name, weight in made.items()}}
    tasks: dict[str, Task] = {}
    for stored in weights.arrays:
        name = names.get(stored, stored)
        if name in tasks:
            continue
        chosen = settings_for(name, default, settings)
        if weights.layout is not None and "layout" not in chosen.said:
            chosen = replace(chosen, layout=weights.layout)  # type: ignore[arg-type]  # a word of the reader's
        if "depthwise" in name and chosen.layout == "hwio" and "groups" not in chosen.said:
            chosen = replace(chosen, groups="depthwise")
        found = None
        if name in kernels:
            if only is not None and not fnmatch.fnmatchcase(name, only):
                continue
            found = name, _convolution(name, kernels[name], chosen, sizes), doubts(name, kernels[name], chosen)
        elif named_as_kernel(name) and why_no_matrix(name, whole) is None:
            matrix = whole[name]
            found = name, dense_layer(matrix.T if chosen.layout == "hwio" else matrix), []
        elif parts_of(name)[-1] in _VARIANCES:
            found = _normalization(name, whole)
        if found is None:
            continue
        row, layer, notes = found
        if name in made:
            notes = [made[name].note, *notes]
        else:
            others.pop(stored, None)
        dtype = weights.dtypes.get(stored, str(whole[name].dtype))
        if dtype in ("float16", "bfloat16"):
            notes = [*notes, f"stored as {dtype}, taken as float32"]
        tasks[row] = Task(row, (layer,), whole[name].shape, dtype, tuple(notes))
    wanted = [task for row, task in tasks.items() if only is None or fnmatch.fnmatchcase(row, only)]
    return wanted, {**others, **weights.unread}


def _checked_image(image: Sequence[int], kernels: Mapping[str, Any]) -> tuple[int, ...]:
    sizes = tuple(check_integer("image", size, minimum=1) for size in image)
    rank = max((kernel.ndim - 2 for kernel in kernels.values()), default=len(sizes))
    if len(sizes) > rank:
        raise ShapeError(
            f"image must have at most {rank} sizes, as many as the kernels have axes behind their channels, got "
            f"{'x'.join(map(str, sizes))}: give it without the channels"
        )
    return sizes


def _convolution(name: str, kernel: Any, chosen: LayerSettings, sizes: tuple[int, ...] | None) -> Layer:
    if chosen.image is None and sizes is None:
        raise ValueError(
            f"layer {name}: image must be given, without the channels: weights alone do not say on what images a layer "
            "works"
        )
    return make_layer(name, kernel, chosen, sizes or ())


def _normalization(name: str, arrays: Mapping[str, Any]) -> tuple[str, Layer, list[str]] | None:
    """Return the name of a normalisation, its layer, and what is assumed; None where its parts are not there."""
    factors, means, epsilon = _VARIANCES[parts_of(name)[-1]]
    # Flax keeps what is learnt and what is averaged in two trees of the same names.
    learnt = name.replace("batch_stats", "params", 1)
    variance, weight = arrays[name], arrays.get(neighbour(learnt, factors))
    parts = [one for one in (variance, weight) if one is not None]
    if neighbour(name, means) not in arrays or any(
        one.ndim != 1 or one.size == 0 or one.dtype.kind != "f" or not np.isfinite(one).all() for one in parts
    ):
        return None
    if variance.min() < 0 or any(one.shape != variance.shape for one in parts):
        return None
    row = neighbour(name, "").rstrip("./") or name
    return row, normalization_layer(variance, weight, epsilon), [f"epsilon is assumed to be {epsilon:g}"]
