"""Convolutional similarity of object arrays: numbers and polynomials as their libraries make them, nothing wrapped."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from convla import (
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    convolutional_similarity_gradient,
    convolutional_similarity_hessian_product,
    network_similarity,
)
from proofs_checks.polynomials import symbolic_kernels
from tests.similarity_oracles import exactly, quadratic_gradient, similarity

flint = pytest.importorskip("flint")

SHAPES = [(3, 2, 4), (3, 2, 2, 2), (2, 1, 2, 2, 2), (3, 1, 1)]
NUMBERS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "Fraction": lambda n: Fraction(n, 7),
    "fmpz": flint.fmpz,
    "fmpq": lambda n: flint.fmpq(n, 7),
    "fmpz_poly": lambda n: flint.fmpz_poly([n, 1, -n]),
    "arb": flint.arb,
}


def objects(values: Any, make: Callable[[Any], Any]) -> Any:
    """Return an object array, filled one by one: NumPy takes a polynomial in a list for a sequence."""
    return np.fromiter((make(value) for value in values.flat), dtype=object, count=values.size).reshape(values.shape)


def integers(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-5, 6, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NUMBERS)
def test_every_kind_of_number(kind: str, shape: tuple[int, ...]) -> None:
    make = NUMBERS[kind]
    kernels = objects(integers(shape), lambda n: make(int(n)))
    value, gradient = convolutional_similarity_and_gradient(kernels)
    assert type(value) is type(kernels.flat[0])
    assert {type(entry) for entry in gradient.flat} == {type(kernels.flat[0])}
    assert value == similarity(kernels)
    assert value == convolutional_similarity(kernels, method="pairwise")
    assert np.all(gradient == convolutional_similarity_gradient(kernels, method="pairwise"))
    # The gradient is homogeneous of degree 3.
    assert np.all(convolutional_similarity_hessian_product(kernels, kernels) == 3 * gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_polynomials_in_every_entry(shape: tuple[int, ...]) -> None:
    kernels = symbolic_kernels(shape)
    value, gradient = convolutional_similarity_and_gradient(kernels)
    assert value == similarity(kernels)
    assert [value.derivative(i) for i in range(kernels.size)] == list(gradient.flat)
    direction = objects(integers(shape), int)
    directed = sum(value.derivative(i) * step for i, step in enumerate(direction.flat))
    product = convolutional_similarity_hessian_product(kernels, direction)
    assert [directed.derivative(i) for i in range(kernels.size)] == list(product.flat)


def test_symbols_of_sympy() -> None:
    sympy = pytest.importorskip("sympy")
    kernels = np.array(sympy.symbols("a:4"), dtype=object).reshape(2, 1, 2)
    value, gradient = convolutional_similarity_and_gradient(kernels)
    for entry, slope in zip(kernels.flat, gradient.flat, strict=True):
        assert sympy.expand(sympy.diff(value, entry) - slope) == 0


@pytest.mark.parametrize("bits", [15, 16, 20, 31, 32, 62, 63, 64, 200])
def test_python_integers_of_any_size(bits: int) -> None:
    # Their squares, sums and products each pass the end of int64 at another size.
    kernels = objects(integers((3, 2, 3)), lambda n: int(n) * 2**bits + 1)
    value, gradient = convolutional_similarity_and_gradient(kernels)
    assert value == similarity(kernels)
    assert np.all(gradient == quadratic_gradient(similarity, kernels))
    assert np.all(convolutional_similarity_hessian_product(kernels, kernels) == 3 * gradient)


@pytest.mark.parametrize("method", ["autocorrelation", "spectral", "pairwise"])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (6, 5, 7), (3, 2, 2, 3, 2)])
def test_floats_against_fifty_digits(shape: tuple[int, ...], method: Any) -> None:
    kernels = np.random.default_rng(1).standard_normal(shape)
    digits = flint.ctx.dps
    flint.ctx.dps = 50
    try:
        balls = objects(kernels, lambda x: flint.arb(float(x)))
        value, gradient = convolutional_similarity_and_gradient(balls)
        moduli = [convolutional_similarity_and_gradient(abs(balls))[i] for i in (0, 1)]
        assert value.contains(flint.arb(flint.fmpq(*similarity(exactly(kernels)).as_integer_ratio())))
        assert float(value.rad()) <= 1e-45 * float(abs(value))
        got, slope = convolutional_similarity_and_gradient(kernels, method=method)
        unit = 4 * (shape[0] + int(np.prod(shape[1:])) + 10) * 2.0**-53
        assert float(abs(flint.arb(float(got)) - value)) <= unit * float(moduli[0])
        errors = objects(objects(slope, lambda x: flint.arb(float(x))) - gradient, lambda ball: float(abs(ball)))
        bounds = unit * objects(moduli[1], float)
        # The transform mixes entries: a bound of the largest for all.
        assert np.all(errors <= (4 * bounds.max() if method == "spectral" else bounds))
    finally:
        flint.ctx.dps = digits


def test_a_network_wants_numbers() -> None:
    kernels = objects(integers((2, 1, 3)), lambda n: flint.fmpz(int(n)))
    assert network_similarity({"a": kernels}).total == float(similarity(kernels))
    with pytest.raises(TypeError, match="layer a: "):
        network_similarity({"a": symbolic_kernels((2, 1, 2))})
    with pytest.raises(OverflowError, match="layer a: "):
        network_similarity({"a": objects(integers((2, 1, 3)), lambda n: int(n) * 2**300 + 1)})
