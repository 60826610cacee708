"""Hypothesis strategies for kernels and inputs, and running a property over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import convla
from convla.typing import NumPyArray as Array

__all__ = [
    "floats",
    "for_all",
    "integers",
    "layers",
    "matrices",
    "moderate_floats",
    "operators",
    "pairs_and_inputs",
    "targets",
    "without_shrinking",
]

_SHRINK: ContextVar[bool] = ContextVar("shrink", default=True)

LARGE = 1e60
"""Products of four entries up to this size stay finite."""


def for_all(examples: int, strategy: st.SearchStrategy[Any], check: Callable[..., None]) -> str:
    """Assert `check` on `examples` draws, shrinking a failure; the draws are the same on every run.

    `check` is called with the drawn tuple's entries.
    """
    phases = [Phase.generate, Phase.shrink] if _SHRINK.get() else [Phase.generate]

    @settings(
        max_examples=examples,
        phases=phases,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn: tuple[Any, ...]) -> None:
        check(*drawn)

    run()
    return f"{examples} random inputs"


@contextmanager
def without_shrinking() -> Iterator[None]:
    """Report the first failure as it was drawn: quicker, for mutations."""
    token = _SHRINK.set(False)
    try:
        yield
    finally:
        _SHRINK.reset(token)


def integers(shape: Sequence[int], bound: int = 9) -> st.SearchStrategy[Array]:
    """Draw integer arrays with entries up to `bound`, many of them 0."""
    entries = st.one_of(st.just(0), st.integers(-bound, bound))
    count = math.prod(shape)
    return st.lists(entries, min_size=count, max_size=count).map(lambda v: np.array(v, np.int64).reshape(shape))


def floats(shape: Sequence[int]) -> st.SearchStrategy[Array]:
    """Draw float64 arrays: plain, ill-scaled over 60 orders of magnitude, subnormal, constant, or mostly zero."""
    count = math.prod(shape)
    kinds = [
        st.floats(-1, 1, allow_nan=False),
        st.floats(-LARGE, LARGE, allow_nan=False),
        st.builds(math.ldexp, st.floats(-1, 1, allow_nan=False), st.integers(-150, 150)),
        st.sampled_from([0.0, 5e-324, -5e-324, 1e-310, 1.0]),
        st.sampled_from([-1.0, 1.0]),
    ]
    plain = st.one_of(*(st.lists(kind, min_size=count, max_size=count) for kind in kinds))
    constant = st.floats(-1, 1, allow_nan=False).map(lambda value: [value] * count)
    return st.one_of(plain, constant).map(lambda v: np.array(v, np.float64).reshape(shape))


def moderate_floats(shape: Sequence[int]) -> st.SearchStrategy[Array]:
    """Draw float64 arrays whose squares stay in range: normal, plain, small integers, ill-scaled, constant, 0.

    Small integers and constants bring repeated and vanishing singular values, normal ones none.
    """
    count = math.prod(shape)
    kinds = [
        st.floats(-1, 1, allow_nan=False).map(lambda value: value if abs(value) > 1e-30 else 0.0),
        st.integers(-2, 2).map(float),
        st.builds(math.ldexp, st.sampled_from([-1.0, -0.5, 0.75, 1.0]), st.integers(-30, 30)),
    ]
    mixed = st.one_of(*(st.lists(kind, min_size=count, max_size=count) for kind in kinds))
    constant = st.sampled_from([0.0, 1.0, -0.3]).map(lambda value: [value] * count)
    normal = st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).standard_normal(count))
    scale = st.sampled_from([1.0, 1.0, 2.0**-90, 2.0**90])
    return st.builds(
        lambda entries, factor: factor * np.array(entries, np.float64).reshape(shape),
        st.one_of(mixed, normal, constant),
        scale,
    )


@st.composite
def matrices(
    draw: st.DrawFn,
    rows: int,
    columns: int,
    *,
    wide: bool = False,
    entries: Callable[..., st.SearchStrategy[Array]] = moderate_floats,
) -> Array:
    """Draw float64 matrices up to this size; with `wide` none has more rows than columns."""
    n = draw(st.integers(1, columns))
    m = draw(st.integers(1, min(rows, n) if wide else rows))
    return draw(entries((m, n)))


@st.composite
def operators(
    draw: st.DrawFn, entries: Callable[..., st.SearchStrategy[Array]] = moderate_floats, *, wide: bool = False
) -> convla.ConvOperator:
    """Draw same-padded operators of one or two axes, even and size-1 kernels among them; wide: more inputs."""
    ndim = draw(st.integers(1, 2))
    largest = (5, 3)[ndim - 1]
    kernel = [draw(st.integers(1, largest)) for _ in range(ndim)]
    image = [n + draw(st.integers(0, 1)) for n in kernel]
    c_out = draw(st.integers(1, 2 if wide else 3))
    c_in = draw(st.integers(c_out + 1, c_out + 2) if wide else st.integers(1, 3))
    return convla.ConvOperator(draw(entries((c_out, c_in, *kernel))), image)


def targets() -> st.SearchStrategy[float]:
    """Draw the ratio of alpha to sigma_max^2, exact ties of the two ends of the spectrum among them."""
    return st.one_of(st.sampled_from([0.5, 1.0, 2.0]), st.floats(-3, 3).map(lambda power: 10.0**power))


@st.composite
def pairs_and_inputs(draw: st.DrawFn, entries: Callable[..., st.SearchStrategy[Array]]) -> tuple[Array, Array, Array]:
    """Draw stacks of kernels k1, k2 (s, c, *kernel) and inputs (b, c, *image): 1 to 3 axes, size 1 and even included.

    The image is at least as large as the kernel along every axis, so that every padding is possible.
    """
    ndim = draw(st.integers(1, 3))
    largest = (5, 3, 2)[ndim - 1]
    kernel = [draw(st.integers(1, largest)) for _ in range(ndim)]
    image = [n + draw(st.integers(0, 3)) for n in kernel]
    channels, s1, s2, batch = (draw(st.integers(1, 2)) for _ in range(4))
    shapes = ((s1, channels, *kernel), (s2, channels, *kernel), (batch, channels, *image))
    k1, k2, x = (draw(entries(shape)) for shape in shapes)
    return k1, k2, x


@st.composite
def layers(
    draw: st.DrawFn, entries: Callable[..., st.SearchStrategy[Array]], *, least: int = 1, axes: int = 3
) -> tuple[Array]:
    """Draw a layer's kernels (c_out, c_in, *kernel), at least `least` of them, with 1 to `axes` kernel axes."""
    ndim = draw(st.integers(1, axes))
    largest = (5, 3, 2)[ndim - 1]
    kernel = [draw(st.integers(1, largest)) for _ in range(ndim)]
    shape = (draw(st.integers(least, 4)), draw(st.integers(1, 3)), *kernel)
    return (draw(entries(shape)),)
