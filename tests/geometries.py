"""Geometries to test on: one way to draw any of them, by Hypothesis or by a seed, and a product of all options.

A new boundary or padding of `convla.geometry` is drawn as soon as it stands in the lists there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from hypothesis import strategies as st

from convla import ConvGeometry
from convla.errors import ShapeError
from convla.geometry import BOUNDARIES, PADDINGS

PAD_KINDS = (*PADDINGS, 2, "pairs")

T = TypeVar("T")


class Chooser(Protocol):
    """Whoever takes the choices of a draw."""

    def integer(self, low: int, high: int) -> int:
        """An integer of low to high, both included."""

    def one_of(self, options: Sequence[T]) -> T:
        """One of the options."""


class Seeded:
    """Choices by a NumPy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


class Drawn:
    """Choices by Hypothesis, which shrinks them towards the first and the least."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one_of(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(list(options)))


class Setting(NamedTuple):
    """All of a convolution but its numbers, as a caller writes it: padding by name where it has one."""

    kernel_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    options: dict[str, Any]

    @property
    def geometry(self) -> ConvGeometry:
        return ConvGeometry(self.kernel_shape, self.image_shape, **self.options)


def any_setting(
    choose: Chooser,
    *,
    axes: Sequence[int] = (1, 2, 3),
    images: Sequence[int] = (16, 7, 4),
    taps: Sequence[int] = (5, 4, 3),
    outs: Sequence[int] = (1, 2, 3, 4, 5, 9),
    inner: Sequence[int] = (1, 2),
    groups: Sequence[int] = (1, 2),
    strides: Sequence[int] = (1, 2, 3),
    dilations: Sequence[int] = (1, 2),
    paddings: Sequence[Any] = PAD_KINDS,
    boundaries: Sequence[str] = BOUNDARIES,
) -> Setting:
    """Any convolution of small size, one-entry axes among them.

    `images` and `taps` are the largest sizes by the number of axes; `outs` and `inner` count the channels of one group.
    An image in which the kernel would not fit is made just large enough.
    """
    ndim = choose.one_of(axes)
    kernel = tuple(choose.integer(1, taps[ndim - 1]) for _ in range(ndim))
    image = [choose.integer(1, images[ndim - 1]) for _ in range(ndim)]
    dilation = tuple(choose.one_of(dilations) for _ in range(ndim))
    padding = choose.one_of(paddings)
    if padding == "pairs":
        padding = tuple((choose.integer(-2, 3), choose.integer(-2, 3)) for _ in range(ndim))
    if not isinstance(padding, str) or padding == "valid":
        pads = padding if isinstance(padding, tuple) else ((0 if padding == "valid" else padding,) * 2,) * ndim
        image = [
            max(n, (k - 1) * d + 1 - low - high)
            for n, k, d, (low, high) in zip(image, kernel, dilation, pads, strict=True)
        ]
    parts = choose.one_of(groups)
    return Setting(
        (parts * choose.one_of(outs), choose.one_of(inner), *kernel),
        tuple(image),
        {
            "padding": padding,
            "stride": tuple(choose.one_of(strides) for _ in range(ndim)),
            "dilation": dilation,
            "groups": parts,
            "boundary": choose.one_of(boundaries),
        },
    )


@st.composite
def conv_geometries(draw: st.DrawFn) -> ConvGeometry:
    """Any geometry of small size, many output channels among them."""
    return any_setting(Drawn(draw)).geometry


def options(padding: Any, stride: int, dilation: int, groups: int, boundary: str, ndim: int) -> dict[str, Any]:
    """The keyword arguments of one geometry; a stride above 1 differs between the axes."""
    pairs = tuple((axis - (ndim > 1), 2 - axis % 2) for axis in range(ndim))  # with more than one, cropped
    return {
        "padding": pairs if padding == "pairs" else padding,
        "stride": tuple(stride + axis % 2 for axis in range(ndim)) if stride > 1 else 1,
        "dilation": dilation,
        "groups": groups,
        "boundary": boundary,
    }


def product(seed: int = 0, every: int = 1) -> list[ConvGeometry]:
    """One geometry for each combination of the options, with drawn channels and sizes; every `every`-th of them."""
    rng = np.random.default_rng(seed)
    geometries = []
    combinations = itertools.product((1, 2, 3), (2, 3), PAD_KINDS, (1, 2), (1, 2), (1, 2), BOUNDARIES)
    for ndim, extent, padding, stride, dilation, groups, boundary in combinations:
        largest = {1: 12, 2: 8, 3: 6}[ndim]
        image = tuple(map(int, rng.integers(5, largest + 1, ndim)))
        kernel = tuple(extent + int(rng.integers(0, 2)) * (axis > 0) for axis in range(ndim))
        out, inner = map(int, rng.integers(1, 4, 2))
        keywords = options(padding, stride, dilation, groups, boundary, ndim)
        try:
            geometries.append(ConvGeometry((groups * out, inner, *kernel), image, **keywords))
        except ShapeError:  # a dilated kernel larger than an unpadded image
            continue
    return geometries[::every]


def keywords_of(geometry: ConvGeometry) -> dict[str, Any]:
    """The keyword arguments that rebuild a geometry."""
    names = ("padding", "stride", "dilation", "groups", "boundary")
    return {name: getattr(geometry, name) for name in names}


def name_of(geometry: ConvGeometry) -> str:
    """A short test identifier."""
    parts = (geometry.kernel_shape, geometry.image_shape, geometry.padding, geometry.stride, geometry.dilation)
    return f"{parts}-{geometry.groups}-{geometry.boundary}".replace(" ", "")


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.int64) -> Any:
    """Small integers: every sum of products of them is exact in any dtype."""
    return rng.integers(-9, 10, shape).astype(dtype)
