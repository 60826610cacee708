"""Geometries to test on: a drawn product of every option, and Hypothesis strategies for the same."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from convla import ConvGeometry
from convla.errors import ShapeError
from convla.geometry import BOUNDARIES

PAD_KINDS = ("full", "same", "valid", 2, "pairs")


def options(padding: Any, stride: int, dilation: int, groups: int, boundary: str, ndim: int) -> dict[str, Any]:
    """The keyword arguments of one geometry; a stride above 1 differs between the axes."""
    pairs = tuple((axis, 2 - axis % 2) for axis in range(ndim))
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


@st.composite
def conv_geometries(draw: st.DrawFn) -> ConvGeometry:
    """Any geometry of small size, one-entry axes, wide padding and many output channels among them."""
    ndim = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    axes = st.integers(1, {1: 16, 2: 7, 3: 4}[ndim])
    image = tuple(draw(axes) for _ in range(ndim))
    kernel = tuple(draw(st.integers(1, {1: 5, 2: 4, 3: 3}[ndim])) for _ in range(ndim))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(ndim))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    # At least what makes the kernel fit.
    pads = [max(0, e - n) for e, n in zip(extents, image, strict=True)]
    padding = tuple((pad + draw(st.integers(0, 3)), draw(st.integers(0, 3))) for pad in pads)
    return ConvGeometry(
        (groups * draw(st.sampled_from([1, 2, 3, 4, 5, 9])), draw(st.integers(1, 2)), *kernel),
        image,
        padding=padding,
        stride=tuple(draw(st.integers(1, 3)) for _ in range(ndim)),
        dilation=dilation,
        groups=groups,
        boundary=draw(st.sampled_from(BOUNDARIES)),
    )


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
