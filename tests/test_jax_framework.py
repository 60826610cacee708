"""The JAX adapter under jit, grad and vmap, against the core's own functions and dense matrices."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import convla
from convla import ConvGeometry, ConvOperator
from convla.errors import ShapeError
from convla.similarity import orthogonality

jax = pytest.importorskip("jax", reason="JAX is not installed")
from convla.frameworks import jax as adapter  # noqa: E402

pytestmark = pytest.mark.jax

SETTINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "zeros, stride, groups": (
        (4, 1, 3, 2),
        (5, 4),
        {"padding": ((1, 0), (2, 1)), "stride": (2, 1), "dilation": (1, 2), "groups": 2},
    ),
    "circular": ((2, 3, 3), (5,), {"padding": "same", "boundary": "circular"}),
    "reflect": ((2, 2, 3), (4,), {"padding": 2, "boundary": "reflect"}),
    "cropped": ((2, 2, 3), (6,), {"padding": ((-1, 2),)}),
}


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compile as JAX does unless it is told otherwise, where contracted products or flushed numbers would show."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.quick
@pytest.mark.parametrize(
    "function",
    [adapter.kernel_orthogonality_loss, adapter.orthonormalize, lambda kernel: adapter.penalty(kernel, (6,), 1.0)],
)
def test_products_are_of_the_dtypes_own_precision(function: Any) -> None:
    # By default a GPU rounds the factors of float32 products to 10 bits; on a CPU only the program tells.
    slope = jax.grad(lambda kernel: jax.numpy.sum(function(kernel)))
    program = str(jax.make_jaxpr(slope)(np.ones((4, 3, 3), np.float32)))
    assert "dot_general" in program
    assert "precision=None" not in program


def _in(*dtypes: Any) -> Any:
    """Few of them: JAX compiles each function for each dtype and shape."""
    return pytest.mark.parametrize("dtype", dtypes, indirect=True)


def _drawn(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _close(got: Any, expected: Any, dtype: str, factor: float = 100) -> bool:
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    return bool(np.abs(got - expected).max() <= factor * np.finfo(dtype).eps * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("zeros, stride, groups", "float32"), ("circular", "float64"), ("reflect", "float64"), ("cropped", "float32")],
    indirect=["dtype"],
)
def test_the_layer_and_its_adjoints(name: str, dtype: str) -> None:
    shape, image_shape, settings = SETTINGS[name]
    geometry = ConvGeometry(shape, image_shape, **settings)
    kernel, image = _drawn(shape, dtype), _drawn((2, *geometry.domain_shape), dtype, 1)
    features = _drawn((2, *geometry.range_shape), dtype, 2)

    def all_three(kernel: Any, image: Any, features: Any) -> Any:
        return (
            adapter.cross_correlate(image, kernel, **settings),
            adapter.image_adjoint(features, kernel, image_shape=image_shape, **settings),
            adapter.kernel_adjoint(features, image, kernel_size=shape[2:], **settings),
        )

    found = jax.jit(all_three)(kernel, image, features)
    operator = ConvOperator(kernel, image_shape, **settings)
    expected = operator.apply(image), operator.adjoint(features), operator.kernel_adjoint(features, image)
    assert all(_close(a, b, dtype) and a.dtype == dtype for a, b in zip(found, expected, strict=True))


LOSSES: dict[str, tuple[Any, Any]] = {
    "similarity": (
        functools.partial(adapter.convolutional_similarity_loss, pairs="ordered", normalized=True),
        functools.partial(convla.convolutional_similarity_and_gradient, pairs="ordered", normalized=True),
    ),
    "plain similarity": (adapter.convolutional_similarity_loss, convla.convolutional_similarity_and_gradient),
    "orthogonality": (
        functools.partial(adapter.kernel_orthogonality_loss, groups=2),
        functools.partial(orthogonality.kernel_orthogonality_and_gradient, groups=2),
    ),
    "ocnn": (
        functools.partial(adapter.ocnn_loss, groups=2, stride=(2, 1)),
        functools.partial(orthogonality.ocnn_residual_and_gradient, groups=2, stride=(2, 1)),
    ),
}


@_in("float32", pytest.param("float64", marks=pytest.mark.slow))
def test_losses_and_their_gradients_in_a_batch(dtype: str) -> None:
    kernels = _drawn((2, 6, 2, 3, 2), dtype)

    def all_of_them(kernel: Any) -> Any:
        return {name: jax.value_and_grad(loss)(kernel) for name, (loss, _) in LOSSES.items()}

    found = jax.jit(jax.vmap(all_of_them))(kernels)
    for name, (_, core) in LOSSES.items():
        for place, kernel in enumerate(kernels):
            assert all(_close(got[place], wanted, dtype) for got, wanted in zip(found[name], core(kernel), strict=True))


@pytest.mark.parametrize(
    ("name", "dtype"), [("zeros, stride, groups", "float32"), ("reflect", "float64")], indirect=["dtype"]
)
def test_singular_values_of_layers_that_the_steps_exhaust(name: str, dtype: str) -> None:
    shape, image_shape, settings = SETTINGS[name]
    kernel = _drawn(shape, dtype)
    operator = ConvOperator(kernel.astype(float), image_shape, **settings)
    wanted = convla.largest_singular_value_and_gradient(operator)
    alphas = 0.3 * wanted.value**2, 3 * wanted.value**2

    @jax.jit
    def everything(kernel: Any) -> Any:
        options = {"steps": 20, **settings}
        penalty = functools.partial(adapter.penalty, image_shape=image_shape, gram="smaller", **options)
        return [
            jax.value_and_grad(lambda k: adapter.largest_singular_value(k, image_shape, **options))(kernel),
            *(jax.value_and_grad(lambda k, a=alpha: penalty(k, alpha=a))(kernel) for alpha in alphas),
        ]

    largest, *penalties = everything(kernel)
    assert _close(largest[0], wanted.value, dtype)
    assert _close(largest[1], wanted.gradient, dtype, 1e4)
    for alpha, (value, gradient) in zip(alphas, penalties, strict=True):
        assert _close(value, convla.penalty(operator, alpha, gram="smaller"), dtype)
        assert _close(gradient, convla.penalty_gradient(operator, alpha, gram="smaller"), dtype, 1e4)


def test_few_steps_give_a_lower_bound_close_to_the_value() -> None:
    kernel = _drawn((4, 4, 3, 3), "float32")
    found = float(jax.jit(lambda k: adapter.largest_singular_value(k, (16, 16), steps=10, block=2))(kernel))
    true = convla.largest_singular_value(ConvOperator(kernel, (16, 16))).value
    assert 0.98 * true <= found <= true * (1 + 1e-5)
    # All singular values are 1, and the first step has nothing left to find.
    delta = convla.delta_orthogonal_kernel((2, 2, 3), rng=0, dtype=np.float32)
    both = jax.jit(jax.value_and_grad(lambda k: adapter.largest_singular_value(k, (6,), steps=3)))
    value, gradient = both(delta)
    assert abs(float(value) - 1) < 1e-5
    assert abs(float((np.asarray(gradient) * delta).sum()) - 1) < 1e-5
    assert not np.asarray(both(0 * delta)[1]).any()


@pytest.mark.usefixtures("optimized")
@_in("float32", "float64")
def test_values_and_gradients_of_any_size(dtype: str) -> None:
    """Scaled by a power of two, all is scaled exactly, as far as the dtype goes; beyond it is infinite, not NaN."""
    kernel = _drawn((3, 2, 2), dtype)
    info = np.finfo(dtype)
    huge, tiny = 2.0 ** (info.maxexp - 20), 2.0 ** (info.minexp + 20)
    functions = {
        "value": (lambda k: adapter.largest_singular_value(k, (3,), steps=2), 1),
        "normalized": (lambda k: adapter.convolutional_similarity_loss(k, normalized=True), 0),
    }
    for function, degree in functions.values():
        both = jax.jit(jax.value_and_grad(function))
        value, gradient = map(np.asarray, both(kernel))
        for scale in (huge, tiny):
            scaled, slope = map(np.asarray, both((kernel * scale).astype(dtype)))
            assert np.isclose(scaled, value * scale**degree, rtol=8 * info.eps, atol=0)
            assert np.allclose(slope * scale ** (1 - degree), gradient, rtol=1e-4, atol=64 * info.eps)
    losses = {
        "similarity": (adapter.convolutional_similarity_loss, convla.convolutional_similarity_gradient),
        "filters": (adapter.kernel_orthogonality_loss, orthogonality.kernel_orthogonality_gradient),
        "layer": (adapter.ocnn_loss, orthogonality.ocnn_residual_gradient),
    }
    middle = 2.0 ** (info.maxexp // 3 - 4)  # whose third power is in range, and whose fourth is not
    for loss, expected in losses.values():
        both = jax.jit(jax.value_and_grad(loss))
        value, gradient = map(np.asarray, both((kernel * middle).astype(dtype)))
        assert np.isinf(value)
        assert _close(gradient / middle**3, expected((kernel * middle).astype(dtype)) / middle**3, dtype, 1000)
        value, gradient = map(np.asarray, both((kernel * huge).astype(dtype)))
        assert np.isinf(value)
        assert np.isinf(gradient).any()
        assert not np.isnan(gradient).any()


def test_a_second_derivative_is_refused_in_words() -> None:
    kernel = _drawn((1, 1, 2), "float32")
    for function in (
        lambda k: adapter.largest_singular_value(k, (3,), steps=2),
        lambda k: adapter.penalty(k, (3,), 1.0, steps=2),
    ):
        with pytest.raises(TypeError, match="can be differentiated once, not twice"):
            jax.grad(lambda k, f=function: jax.grad(f)(k).sum())(kernel)


TRANSFORMS: dict[str, tuple[Any, Any]] = {
    "reweighted": (adapter.reweighted_gradient, convla.reweighted_gradient),
    "sobolev": (adapter.sobolev_gradient, convla.sobolev_gradient),
    "laplacian": (adapter.laplacian_smoothing, convla.laplacian_smoothing),
}


@_in("float64", pytest.param("float32", marks=pytest.mark.slow))
def test_transforms_are_those_of_the_core(dtype: str) -> None:
    gradient = _drawn((4, 2, 3), dtype)

    @jax.jit
    def all_of_them(gradient: Any) -> Any:
        along = {(name, axis): f(gradient, 0.7, axis=axis) for name, (f, _) in TRANSFORMS.items() for axis in (0, 1)}
        return along, [adapter.orthonormalize(gradient, groups=groups) for groups in (1, 2)]

    along, orthonormal = all_of_them(gradient)
    for (name, axis), got in along.items():
        assert _close(got, TRANSFORMS[name][1](gradient, 0.7, axis=axis), dtype)
        assert got.dtype == dtype
    for groups, got in zip((1, 2), orthonormal, strict=True):
        assert _close(got, convla.orthonormalize(gradient, groups=groups), dtype, 1e3)
    low = np.outer([1.0, 2.0, 0.0, 1.0], np.arange(6)).reshape(gradient.shape).astype(dtype)
    assert _close(all_of_them(low)[1][0], convla.orthonormalize(low), dtype, 1e3)
    assert not np.asarray(all_of_them(0 * gradient)[1][0]).any()


def test_an_optimizer_of_optax_steps_along_transformed_gradients() -> None:
    optax = pytest.importorskip("optax", reason="optax is not installed")
    gradients = {"kernel": _drawn((3, 2, 4, 5), "float32"), "bias": _drawn((5,), "float32")}
    chain = optax.chain(adapter.transform_gradients("sobolev", layout="HWIO", lam=0.5), optax.sgd(1.0))
    updates, _ = chain.update(gradients, chain.init(gradients))
    expected = convla.sobolev_gradient(np.moveaxis(gradients["kernel"], (-1, -2), (0, 1)), 0.5)
    assert _close(-updates["kernel"], np.moveaxis(expected, (0, 1), (-1, -2)), "float32")
    assert np.array_equal(-updates["bias"], gradients["bias"])
    with pytest.raises(TypeError, match="options of the transform 'sobolev'"):
        adapter.transform_gradients("sobolev", sigma=1.0)
    with pytest.raises(ValueError, match="layout must be one of"):
        adapter.transform_gradients("sobolev", lam=1.0, layout="NCHW")


@pytest.mark.parametrize(("shape", "dtype"), [((6, 2, 3), "float32"), ((2, 3, 3, 3), "float64")], indirect=["dtype"])
def test_initialisers_make_isometries(shape: tuple[int, ...], dtype: str) -> None:
    def both(key: Any) -> Any:
        last = (*shape[2:], shape[1], shape[0])
        return (
            adapter.orthogonal(2.0)(key, shape, dtype),
            adapter.delta_orthogonal()(key, shape, dtype),
            adapter.delta_orthogonal(layout="HWIO")(key, last, dtype),
        )

    rows, delta, last = map(np.asarray, jax.jit(both)(jax.random.key(0)))
    values = np.linalg.svd(rows.reshape(shape[0], -1), compute_uv=False)
    assert _close(values, 2.0 * np.ones(values.size), dtype)
    values = np.linalg.svd(ConvOperator(delta, (4,) * (len(shape) - 2)).to_dense(), compute_uv=False)
    assert _close(values, np.ones(values.size), dtype)
    assert np.array_equal(np.moveaxis(last, (-1, -2), (0, 1)), delta)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: adapter.cross_correlate(k[:, :1], k, padding="same"), ShapeError, "image must have shape"),
        (lambda k: adapter.largest_singular_value(k, (2, 2)), ShapeError, "image_shape must have 1 axes"),
        (lambda k: adapter.largest_singular_value(k, (5,), steps=0), ValueError, "steps must be at least 1"),
        (lambda k: adapter.penalty(k, (5,), -1.0), ValueError, "alpha must be positive"),
        (lambda k: adapter.ocnn_loss(k, groups=2), ShapeError, "groups must divide"),
        (lambda k: adapter.kernel_orthogonality_loss(k[0]), ShapeError, "kernels must have shape"),
        (lambda k: adapter.convolutional_similarity_loss(k > 0), TypeError, "must hold float32 or float64"),
    ],
)
def test_errors_come_while_jax_traces(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        jax.jit(call)(np.ones((3, 2, 3), np.float32))
