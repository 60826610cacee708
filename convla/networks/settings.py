"""How layers use their kernels, where a file of weights does not say: settings by name, and doubts about them."""

from __future__ import annotations

import fnmatch
import math
import os
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convla._validate import check_choice, check_per_axis, check_sizes
from convla.errors import ConvlaError, ShapeError
from convla.geometry import ConvGeometry
from convla.networks.layers import Layer
from convla.networks.naming import parts_of
from convla.typing import Boundary, Padding

__all__ = ["LayerSettings", "doubts", "make_layer", "read_settings", "settings_for"]

LAYOUTS = ("oihw", "hwio")

SAYABLE = ("image", "padding", "stride", "dilation", "groups", "boundary", "transposed")
"""What of a layer's geometry a file of weights does not say."""

_LONG = 11
"""No usual kernel is longer; channels mostly are."""


@dataclass(frozen=True)
class LayerSettings:
    """How a layer uses its kernel; what a file of weights does not say."""

    padding: Padding = "same"
    stride: int | Sequence[int] = 1
    dilation: int | Sequence[int] = 1
    groups: int | Literal["depthwise"] = 1
    """A number, or "depthwise": as many as there are input channels."""
    image: tuple[int, ...] | None = None
    """The image that this layer is given, where it is another than the command's."""
    layout: Literal["oihw", "hwio"] = "oihw"
    """The order of the kernel's axes: PyTorch's, or that of TensorFlow, Keras and Flax, whatever their number."""
    transposed: bool = False
    """Whether it is a transposed convolution, whose kernel is (c_in, c_out // groups, *kernel)."""
    boundary: Boundary = "zero"
    """What stands outside the image, where the padding is."""
    said: frozenset[str] = frozenset()
    """Which of these somebody said; the others are marked as assumed."""


def make_layer(name: str, kernel: np.ndarray[Any, Any], settings: LayerSettings, image: Sequence[int]) -> Layer:
    """Return the layer that a kernel in a file is, used as the settings say.

    Parameters
    ----------
    name : str
    kernel : numpy.ndarray
        In the order of axes of ``settings.layout``.
    settings : LayerSettings
    image : sequence of int
        What it is given, if the settings do not say; for kernels of more axes its last size is repeated, for kernels of
        fewer axes all its sizes must be equal.

    Returns
    -------
    Layer

    Raises
    ------
    ShapeError, TypeError, ValueError
        If settings do not fit the kernel or the image; the message begins with the layer's name.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.settings import LayerSettings, make_layer
    >>> layer = make_layer("up", np.ones((6, 4, 2, 2)), LayerSettings(stride=2, transposed=True), (8, 8))
    >>> layer.geometry.image_shape, layer.geometry.range_shape
    ((16, 16), (6, 8, 8))
    """
    try:
        check_choice("layout", settings.layout, LAYOUTS)
        if not isinstance(settings.transposed, bool):
            raise TypeError(f"transposed must be true or false, got {settings.transposed!r}")
        kernel, groups = _oriented(kernel, settings)
        sizes = settings.image or _sizes(image, kernel.ndim - 2)
        if settings.transposed:
            sizes = _transposed_sizes(sizes, kernel.shape[2:], settings)
        geometry = ConvGeometry(
            kernel.shape,
            sizes,
            padding=settings.padding,
            stride=settings.stride,
            dilation=settings.dilation,
            groups=groups,
            boundary=settings.boundary,
        )
    except (ConvlaError, TypeError, ValueError) as error:
        raise type(error)(f"layer {name}: {error}") from error
    assumed = tuple(name for name in SAYABLE if name not in settings.said)
    return Layer(kernel, geometry, settings.transposed, assumed=assumed)


def _oriented(kernel: np.ndarray[Any, Any], settings: LayerSettings) -> tuple[np.ndarray[Any, Any], int]:
    """Return the kernel in PyTorch's order of axes, and its number of groups."""
    depthwise = settings.groups == "depthwise"
    if settings.layout == "hwio":
        *taps, inputs, outputs = kernel.shape
        if depthwise and inputs > 1:  # Keras keeps (*kernel, c_in, filters of each channel)
            kernel, inputs, outputs = kernel.reshape(*taps, 1, inputs * outputs), 1, inputs * outputs
        kernel = np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1)))
    if not depthwise:
        return kernel, settings.groups  # type: ignore[return-value]  # the geometry checks it
    if kernel.shape[1] != 1:
        raise ShapeError(f"groups = 'depthwise' needs a kernel of one input channel, got shape {kernel.shape}")
    return kernel, kernel.shape[0]


def _sizes(image: Sequence[int], rank: int) -> tuple[int, ...]:
    if len(image) > rank and len(set(image)) > 1:
        raise ShapeError(
            f"an image of {len(image)} sizes, {'x'.join(map(str, image))}, does not fit a kernel of {rank} axes: give "
            "the sizes without the channels, or the layer an image of its own"
        )
    return (*image, *(image[-1],) * rank)[:rank]


def _transposed_sizes(image: Sequence[int], taps: Sequence[int], settings: LayerSettings) -> tuple[int, ...]:
    """Return the sizes of what a transposed layer gives: the image of the convolution that it is the transpose of."""
    rank = len(taps)
    strides = check_per_axis("stride", settings.stride, rank)
    extents = [
        step * (size - 1) + 1
        for size, step in zip(taps, check_per_axis("dilation", settings.dilation, rank), strict=True)
    ]
    if len(image) != rank:
        raise ShapeError(f"image must have {rank} sizes, got {tuple(image)}")
    if settings.padding == "same":
        return tuple(size * stride for size, stride in zip(image, strides, strict=True))
    # What the padding takes away, as the geometry of any large image resolves it.
    large = ConvGeometry((1, 1, *taps), tuple(extents), padding=settings.padding, dilation=settings.dilation)
    return tuple(
        (size - 1) * stride + extent - low - high
        for size, stride, extent, (low, high) in zip(image, strides, extents, large.padding, strict=True)
    )


def settings_for(name: str, default: LayerSettings, settings: Sequence[tuple[str, LayerSettings]]) -> LayerSettings:
    """Return the last settings whose pattern matches a layer's name, or the default."""
    matches = [chosen for pattern, chosen in settings if fnmatch.fnmatchcase(name, pattern)]
    return matches[-1] if matches else default


def read_settings(path: str | os.PathLike[str], default: LayerSettings) -> list[tuple[str, LayerSettings]]:
    r"""Read how layers use their kernels from a TOML file.

    Each table is for the layers that its name matches, ``*`` standing for anything; a later one goes before an earlier
    one. Its keys are those of `LayerSettings`; what it leaves out is as in `default`.

    Parameters
    ----------
    path : path
        Such as a file of ``["layer2.*"]`` and ``stride = 2`` on two lines.
    default : LayerSettings

    Returns
    -------
    list of (pattern, LayerSettings)

    Raises
    ------
    ValueError
        If the file is not TOML, or has an unknown key.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from convla.networks.settings import LayerSettings, read_settings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "layers.toml"
    ...     _ = path.write_text('["layer2.*"]\nstride = 2\n')
    ...     read_settings(path, LayerSettings())[0][1].stride
    2
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    known = set(asdict(default)) - {"said"}
    settings = []
    for pattern, table in tables.items():
        if not isinstance(table, dict) or not set(table) <= known:
            raise ValueError(f"{path}: [{pattern}] must be a table with the keys {', '.join(sorted(known))}")
        if "image" in table:
            table["image"] = check_sizes(f"{path}: [{pattern}] image", table["image"])
        settings.append((pattern, replace(default, **table, said=default.said | set(table))))
    return settings


def doubts(name: str, kernel: np.ndarray[Any, Any], settings: LayerSettings) -> list[str]:
    """Return what speaks against a kernel being used as the settings say, in sentences."""
    found = []
    if settings.layout == "oihw" and _looks_channels_last(name, kernel.shape):
        found.append(f"the shape {_shown(kernel.shape)} looks like (*kernel, c_in, c_out): layout = 'hwio' reads it so")
    last = " ".join(parts_of(name)[-2:]).lower()
    if not settings.transposed and any(word in last for word in ("transpose", "deconv", "upconv", "up_conv")):
        found.append("its name is that of a transposed convolution: transposed = true reads it so")
    outputs, inputs = kernel.shape[:2] if settings.layout == "oihw" else (kernel.shape[-1], kernel.shape[-2])
    if settings.groups == 1 and inputs == 1 < outputs:
        found.append(
            f"one input channel and {outputs} filters: a depthwise layer has groups = {outputs}, or 'depthwise'"
        )
    return found


def _looks_channels_last(name: str, shape: Sequence[int]) -> bool:
    *taps, inputs, outputs = shape
    if parts_of(name)[-1] in ("kernel", "depthwise_kernel", "kernel:0"):  # as Keras and Flax call it
        return True
    small = len(set(taps)) == 1 and taps[0] <= _LONG
    return small and (max(inputs, outputs) > _LONG or (len(taps) > 1 and inputs * outputs > math.prod(taps)))


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
