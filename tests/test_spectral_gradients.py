"""Gradients of singular values against finite differences of LAPACK's, at simple values and at clusters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import convla
from convla import ConvOperator
from convla.spectra.curvature import hessian_product
from convla.spectra.gradients import (
    condition_number_and_gradient,
    largest_singular_value_and_gradient,
    singular_values_and_gradients,
    smallest_singular_value_and_gradient,
)

SETTINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "tall": ((3, 2, 3), (5,), {}),
    "wide": ((2, 3, 2), (5,), {"padding": "valid"}),
    "stride and groups": ((4, 2, 3, 2), (6, 5), {"padding": 1, "stride": (2, 1), "groups": 2}),
    "dilation": ((2, 2, 3), (7,), {"dilation": 2}),
    "circular": ((2, 2, 3), (6,), {"boundary": "circular"}),
    "reflect": ((2, 1, 3, 3), (4, 3), {"boundary": "reflect"}),
    "replicate": ((2, 2, 3), (6,), {"boundary": "replicate", "stride": 2}),
    "symmetric": ((3, 2, 3), (5,), {"boundary": "symmetric"}),
}

Function = Callable[[Any], float]


def _operator(name: str, *, transposed: bool = False) -> tuple[Any, ConvOperator]:
    shape, image_shape, settings = SETTINGS[name]
    operator = ConvOperator(np.random.default_rng(3).standard_normal(shape), image_shape, **settings)
    return (operator.T if transposed else operator), operator


def _differences(function: Function, kernel: Any, step: float = 1e-6) -> Any:
    gradient = np.zeros(kernel.shape)
    for index in np.ndindex(kernel.shape):
        change = np.zeros(kernel.shape)
        change[index] = step
        gradient[index] = (function(kernel + change) - function(kernel - change)) / (2 * step)
    return gradient


def _values(operator: ConvOperator, kernel: Any) -> Any:
    return np.linalg.svd(operator.with_kernel(kernel).to_dense(), compute_uv=False)


FUNCTIONS: dict[str, tuple[Any, Callable[[Any], float]]] = {
    "largest": (largest_singular_value_and_gradient, lambda values: values[0]),
    "smallest": (smallest_singular_value_and_gradient, lambda values: values[-1]),
    "condition": (condition_number_and_gradient, lambda values: values[0] / values[-1]),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_finite_differences(name: str, function: str, transposed: bool) -> None:
    given, operator = _operator(name, transposed=transposed)
    analytic, of_values = FUNCTIONS[function]
    value, gradient, *_ = analytic(given)
    assert math.isclose(value, of_values(_values(operator, operator.kernel)), rel_tol=1e-9)
    expected = _differences(lambda kernel: of_values(_values(operator, kernel)), operator.kernel)
    assert np.allclose(gradient, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    if not transposed:
        logarithm, slope, *_ = analytic(given, log=True)
        assert math.isclose(logarithm, math.log(value), abs_tol=1e-12)
        assert np.allclose(slope, gradient / value, rtol=1e-9)


@pytest.mark.parametrize("name", ["tall", "stride and groups", "reflect"])
def test_gradients_of_the_k_largest(name: str) -> None:
    _, operator = _operator(name)
    values, gradients, counts, status = singular_values_and_gradients(operator, 3)
    assert status == "exact"
    assert np.allclose(values, _values(operator, operator.kernel)[:3], rtol=1e-12)
    for place in np.flatnonzero(np.array(counts) == 1):
        expected = _differences(lambda kernel, at=place: _values(operator, kernel)[at], operator.kernel)
        assert np.allclose(gradients[place], expected, atol=3e-6)
    logarithms, slopes, *_ = singular_values_and_gradients(operator, 3, log=True)
    assert np.allclose(logarithms, np.log(values))
    assert np.allclose(slopes[1], gradients[1] / values[1])


def test_a_cluster_has_the_gradient_of_its_mean() -> None:
    """Two groups of the same kernel: every singular value is double, and its two copies move apart."""
    kernel = np.tile(np.random.default_rng(0).standard_normal((2, 2, 3)), (2, 1, 1))
    operator = ConvOperator(kernel, (5,), groups=2)
    for function, places in (
        (largest_singular_value_and_gradient, slice(0, 2)),
        (smallest_singular_value_and_gradient, slice(-2, None)),
    ):
        _, gradient, multiplicity, _ = function(operator)
        assert multiplicity == 2
        expected = _differences(lambda k, at=places: float(np.mean(_values(operator, k)[at])), operator.kernel)
        assert np.allclose(gradient, expected, atol=1e-7)
    counts = singular_values_and_gradients(operator, 3).multiplicity
    assert counts == (2, 2, 2)


def test_a_subgradient_bounds_the_largest_value_from_below() -> None:
    """Of a delta kernel all singular values are 1, and the norm is convex."""
    kernel = np.zeros((2, 2, 3))
    kernel[:, :, 1] = np.eye(2)
    operator = ConvOperator(kernel, (6,))
    value, gradient, multiplicity, _ = largest_singular_value_and_gradient(operator)
    assert (round(value, 12), multiplicity) == (1.0, 12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        change = rng.standard_normal(kernel.shape)
        assert _values(operator, kernel + change)[0] >= value + np.sum(gradient * change) - 1e-12


def test_what_has_no_gradient_is_refused() -> None:
    shift = ConvOperator(np.array([[[0.0, 0.0, 1.0]]]), (5,))
    with pytest.raises(ValueError, match="must have full rank"):
        smallest_singular_value_and_gradient(shift)
    with pytest.raises(ValueError, match="must have full rank"):
        condition_number_and_gradient(shift)
    zero = ConvOperator(np.zeros((1, 1, 3)), (5,))
    value, gradient, *_ = largest_singular_value_and_gradient(zero)
    assert value == 0.0
    assert not gradient.any()
    with pytest.raises(ValueError, match="log needs singular values that are not 0"):
        largest_singular_value_and_gradient(zero, log=True)
    with pytest.raises(TypeError, match="must be a LinearMap"):
        largest_singular_value_and_gradient(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be made of convolutions"):
        largest_singular_value_and_gradient(convla.identity((1, 5)))
    with pytest.raises(ValueError, match="cluster_rtol"):
        largest_singular_value_and_gradient(shift, cluster_rtol=-1.0)


def test_large_layers_are_differentiated_through_the_iteration() -> None:
    kernel = np.random.default_rng(0).standard_normal((8, 8, 3, 3))
    operator = ConvOperator(kernel, (20, 20))
    value, gradient, multiplicity, _ = largest_singular_value_and_gradient(operator)
    direction = np.random.default_rng(1).standard_normal(kernel.shape)
    ahead, behind = (
        convla.largest_singular_value(operator.with_kernel(kernel + s * 1e-5 * direction)).value for s in (1, -1)
    )
    assert multiplicity == 1
    assert math.isclose(float(np.sum(gradient * direction)), (ahead - behind) / 2e-5, rel_tol=1e-5)
    # Homogeneous of degree 1.
    assert math.isclose(float(np.sum(gradient * kernel)), value, rel_tol=1e-9)


COMPOSED: dict[str, Callable[[ConvOperator, ConvOperator], convla.LinearMap]] = {
    "a residual block": lambda a, b: convla.identity((2, 4)) + a.T @ b,
    "a square, and a transpose": lambda a, b: a @ a - 0.5 * b.T,
    "a stack": lambda a, b: convla.vstack([a, b, a]),
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_map_of_several_convolutions_has_a_gradient_in_each_kernel(name: str, function: str) -> None:
    kernels = np.random.default_rng(5).standard_normal((2, 2, 2, 3))
    composed = COMPOSED[name](*(ConvOperator(kernel, (4,)) for kernel in kernels))
    analytic, of_values = FUNCTIONS[function]
    value, gradients, multiplicity, _ = analytic(composed)
    assert multiplicity == 1
    assert isinstance(gradients, tuple)

    def changed(kernel: Any, place: int) -> float:
        new = [kernel if i == place else other for i, other in enumerate(composed.kernels)]
        return of_values(np.linalg.svd(composed.with_kernels(new).to_dense(), compute_uv=False))

    for place, gradient in enumerate(gradients):
        expected = _differences(lambda kernel, at=place: changed(kernel, at), composed.kernels[place])
        assert np.allclose(gradient, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    of_logarithm = analytic(composed, log=True).gradient
    assert np.allclose(of_logarithm[1], gradients[1] / value, rtol=1e-9)
    if function == "largest":
        several = singular_values_and_gradients(composed, 2).gradient
        assert np.allclose(several[1][0], gradients[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 2.0**500, 2.0**-500])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_products_with_the_hessian_are_differences_of_gradients(name: str, transposed: bool, scale: float) -> None:
    """Of the largest value, an inner one and the smallest; the Hessian is homogeneous of degree -1."""
    given, operator = _operator(name, transposed=transposed)
    direction = np.random.default_rng(7).standard_normal(operator.kernel.shape)
    values, count = _values(operator, operator.kernel), min(operator.shape)
    scaled = given.with_kernels([scale * operator.kernel])
    found = convla.singular_values(scaled, count)

    def gradients(step: float) -> Any:
        moved = ConvOperator(operator.kernel + step * direction, operator.geometry)
        left, _, right = np.linalg.svd(moved.to_dense(), full_matrices=False)
        pairs = zip(left.T, right, strict=True)
        shapes = moved.range_shape, moved.domain_shape
        return [moved.kernel_adjoint(u.reshape(shapes[0]), v.reshape(shapes[1])) for u, v in pairs]

    ahead, behind = gradients(1e-6), gradients(-1e-6)
    gaps = np.abs(np.subtract.outer(values, values)) + np.diag(np.full(count, np.inf))
    for place in (0, 2, count - 1):
        if gaps[place].min() > 1e-3 * values[0] and values[place] > 1e-3 * values[0]:
            expected = (ahead[place] - behind[place]) / 2e-6
            product = scale * hessian_product(scaled, found, place, direction)
            assert np.allclose(product, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_integers_and_single_precision() -> None:
    integers = ConvOperator(np.array([[[1, 2, 1]]]), (6,))
    _, gradient, *_ = largest_singular_value_and_gradient(integers)
    assert gradient.dtype == np.float64
    single = ConvOperator(np.array([[[1, 2, 1]]], np.float32), (6,))
    value, other, *_ = largest_singular_value_and_gradient(single)
    assert other.dtype == np.float32
    assert math.isclose(value, 2 + 2 * math.cos(math.pi / 7), rel_tol=1e-7)
    assert np.allclose(other, gradient, atol=1e-6)


def test_values_that_are_zero_have_no_gradients() -> None:
    for kernel, rank, size in ((np.outer([1.0, 2.0], [3.0, 1.0])[:, :, None], 1, 1), (np.ones((2, 1, 3)), 4, 5)):
        operator = ConvOperator(kernel, (size,))
        assert singular_values_and_gradients(operator, rank).gradient.shape == (rank, *kernel.shape)
        with pytest.raises(ValueError, match=f"k must be at most {rank} for this operator, got {rank + 1}"):
            singular_values_and_gradients(operator, rank + 1)
