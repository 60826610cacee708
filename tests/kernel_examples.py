"""Example arguments for every accelerated operation, for the test that compares each faster kernel with its reference.

To add an operation, decorate a function that yields (arguments, keywords) in NumPy with `examples`. A table entry that
has none fails the test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from convla import _windows, autocorrelation, gradients
from convla._dispatch import Accelerated
from convla.experiments.descents import pairs
from convla.geometry import ConvGeometry
from convla.similarity import layer
from convla.similarity.signatures import SAFE_ENERGY
from convla.spectra import certificate
from tests.geometries import integers, product

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Examples(NamedTuple):
    """An operation and its example calls.

    The results of a faster kernel have to equal the reference's exactly, or, where a recursion or a transform cannot be
    made exact, to within so many epsilons of the dtype times the largest entry, or the largest possible one.
    """

    operation: Accelerated[Any, Any]
    arguments: Callable[[], Iterator[Call]]
    epsilons: int = 0


EXAMPLES: dict[str, Examples] = {}

ARRAYS: dict[str, Callable[[Any], Any]] = {"cuda": lambda array: importlib.import_module("cupy").asarray(array)}
"""How an engine that takes no NumPy arrays is given one, by its name."""


def examples(operation: Accelerated[Any, Any], *, epsilons: int = 0) -> Callable[..., Any]:
    """Register the decorated function as the examples of `operation`."""

    def register(arguments: Callable[[], Iterator[Call]]) -> Any:
        EXAMPLES[operation.operation] = Examples(operation, arguments, epsilons)
        return arguments

    return register


MANY_CHANNELS = (
    ConvGeometry((72, 35, 3, 2), (9, 7), padding="same", stride=(1, 2), boundary="reflect"),
    ConvGeometry((2 * 16, 20, 3), (40,), padding="same", groups=2, boundary="circular"),
)
"""Layers for which an engine may sum in another way than for few channels."""


def _arrays(first: str, second: str) -> Iterator[Call]:
    rng = np.random.default_rng(0)
    for geometry in (*product(seed=1, every=23), *MANY_CHANNELS):
        shapes = {
            "image": (3, *geometry.domain_shape),
            "features": (3, *geometry.range_shape),
            "kernel": geometry.kernel_shape,
        }
        for dtype in (np.float32, np.float64):
            # Integers held in floats: every order of summation gives the same numbers.
            yield (integers(rng, shapes[first], dtype), integers(rng, shapes[second], dtype), geometry), {}


@examples(_windows.correlate)
def _correlate() -> Iterator[Call]:
    yield from _arrays("image", "kernel")


@examples(_windows.correlate_image_adjoint)
def _correlate_image_adjoint() -> Iterator[Call]:
    yield from _arrays("features", "kernel")


@examples(_windows.correlate_kernel_adjoint)
def _correlate_kernel_adjoint() -> Iterator[Call]:
    yield from _arrays("features", "image")


def _kernels() -> Iterator[Any]:
    rng = np.random.default_rng(2)
    for shape in ((4, 3, 5), (3, 2, 1), (3, 2, 2, 4), (40, 33, 3, 3), (3, 2, 2, 3, 2)):
        for dtype in (np.float32, np.float64):
            yield integers(rng, shape, dtype)


@examples(autocorrelation.summed_autocorrelations)
def _summed_autocorrelations() -> Iterator[Call]:
    for kernels in _kernels():
        yield (kernels,), {}


@examples(autocorrelation.correlate_lags)
def _correlate_lags() -> Iterator[Call]:
    rng = np.random.default_rng(3)
    for kernels in _kernels():
        lags = integers(rng, (kernels.shape[0], int(np.prod([2 * k - 1 for k in kernels.shape[2:]]))), np.float64)
        yield (kernels, lags + lags[:, ::-1]), {}


@examples(layer.layer_similarities)
def _layer_similarities() -> Iterator[Call]:
    rng = np.random.default_rng(4)
    shapes = ((40, 3, 3, 3), (3, 4, 5), (1, 2, 1), (5, 33, 3, 3), (2, 2, 2, 3, 2))
    for dtype in (np.float32, np.float64):
        layers = [integers(rng, shape, dtype) // 4 for shape in shapes]
        for ways in ("unordered", "ordered"):
            yield tuple(layers), {"pairs": ways, "normalized": False, "safe": SAFE_ENERGY}


@examples(pairs._descend_pairs)
def _descend_pairs() -> Iterator[Call]:
    rng = np.random.default_rng(1)
    k1, k2 = rng.standard_normal((2, 3, 5))
    lags = np.abs(np.arange(5)[:, None] - np.arange(5))
    gram = rng.standard_normal((3, 5))[:, lags] + 9 * np.eye(5)
    for loss, similarity, optimizer in zip(pairs.LOSSES, pairs.SIMILARITIES, ("SGD", "Adam", "SGD"), strict=False):
        yield (
            (k1, k2, gram),
            {
                "loss": loss,
                "normalized": loss == "kernel",
                "toeplitz": True,
                "similarity": similarity,
                "optimizer": optimizer,
                "learning_rate": 0.01,
                "iterations": 20,
                "both": True,
            },
        )


def _lines(*weights: float) -> Iterator[Call]:
    rng = np.random.default_rng(2)
    for shape in ((1, 1, 1), (1, 7, 40), (3, 64, 9), (2, 33, 1), (1, 130, 700)):
        for dtype in (np.float32, np.float64):
            yield (rng.standard_normal(shape).astype(dtype), *weights), {}


@examples(gradients._reweight, epsilons=8)
def _reweight() -> Iterator[Call]:
    yield from _lines(3.0)


@examples(gradients._sobolev, epsilons=200)
def _sobolev() -> Iterator[Call]:
    yield from _lines(0.7, 0.25)


@examples(gradients._smooth, epsilons=20)
def _smooth() -> Iterator[Call]:
    yield from _lines(5.0)
    yield from _lines(0.0)


@examples(certificate.shown_below)
def _shown_below() -> Iterator[Call]:
    rng = np.random.default_rng(5)
    for lines, terms, groups, order in ((3, 1, 3, 1), (2, 5, 2, 3), (1, 3, 1, 20), (4, 1, 5, 64)):
        matrices = rng.standard_normal((lines, terms, groups, order, order))
        matrices *= rng.uniform(0.1, 2, (lines, 1, groups, 1, 1))
        real = matrices.swapaxes(-1, -2) @ matrices
        real = (real + real.swapaxes(-1, -2)) / 2
        weights = rng.uniform(0, 1, (4, terms)) if terms > 1 else np.ones((1, 1))
        angles = np.subtract.outer(np.arange(order), np.arange(order))
        for coefficients in (real, real * (np.cos(angles) + np.sin(angles))):
            grams = certificate.Combinations(coefficients, weights)
            numbers = np.arange(np.prod(grams.shape))
            largest = np.linalg.eigvalsh(certificate.hermitian(grams.at(numbers)))[:, -1]
            for square in np.quantile(largest, (0.1, 0.5, 0.9)) * 1.001:
                for some in (numbers, numbers[::-2]):
                    yield (coefficients, weights, square, 1e-9, square, 1 + 1e-9), {"numbers": some}
        yield (real, weights, 1.0, 2.0, -1.0, 1.0), {"numbers": numbers}
