"""The array-API reference on other array libraries, each result compared with NumPy's."""

import array_api_strict
import numpy as np
import pytest

from convla import (
    ConvOperator,
    convolutional_similarity,
    convolutional_similarity_and_gradient,
    convolve,
    cross_correlate,
    identities,
    image_adjoint,
    kernel_adjoint,
)
from convla._array import device_of, to_numpy
from convla.errors import EngineError
from tests.geometries import integers, keywords_of, name_of, product

GEOMETRIES = product(seed=2, every=53)


class Strict:
    """array-api-strict on one of its devices: it refuses NumPy arrays and mixed devices."""

    def __init__(self, device):
        self.device = array_api_strict.Device(device)

    def asarray(self, values):
        return array_api_strict.asarray(values, device=self.device)

    def asnumpy(self, array):
        assert device_of(array) == self.device
        return np.asarray(array_api_strict.asarray(array, device=array_api_strict.Device("CPU_DEVICE")))


class Torch:
    def asarray(self, values):
        return pytest.importorskip("torch").tensor(values)

    def asnumpy(self, array):
        return array.numpy()


class Cupy:
    def asarray(self, values):
        return pytest.importorskip("cupy").asarray(values)

    def asnumpy(self, array):
        assert type(array).__module__.startswith("cupy")
        return to_numpy(array)


class Jax:
    def asarray(self, values):
        jax = pytest.importorskip("jax")
        jax.config.update("jax_enable_x64", True)
        return jax.numpy.asarray(values)

    def asnumpy(self, array):
        assert type(array).__module__.startswith("jax")
        return np.asarray(array)


LIBRARIES = [
    pytest.param(Strict("CPU_DEVICE"), id="strict"),
    pytest.param(Strict("device1"), id="strict-second-device"),
    pytest.param(Torch(), id="torch", marks=pytest.mark.torch),
    pytest.param(Cupy(), id="cupy", marks=pytest.mark.gpu),
    pytest.param(Jax(), id="jax", marks=pytest.mark.jax),
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=name_of)
def test_every_map_agrees_with_numpy(library, dtype, geometry):
    if isinstance(library, Jax) and (dtype != np.float64 or geometry not in GEOMETRIES[::8]):
        pytest.skip("compiling every operation takes minutes, and the others take the same way")
    rng = np.random.default_rng(1)
    x, k = integers(rng, (2, *geometry.domain_shape), dtype), integers(rng, geometry.kernel_shape, dtype)
    y = integers(rng, (2, *geometry.range_shape), dtype)
    options = keywords_of(geometry)
    ours = [library.asarray(array) for array in (x, k, y)]
    for function, arguments, more in [
        (cross_correlate, (0, 1), {}),
        (convolve, (0, 1), {}),
        (image_adjoint, (2, 1), {"image_shape": geometry.image_shape}),
        (kernel_adjoint, (2, 0), {"kernel_size": geometry.kernel_size}),
    ]:
        expected = function(*((x, k, y)[i] for i in arguments), **more, **options)
        got = library.asnumpy(function(*(ours[i] for i in arguments), **more, **options))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_operator_agrees_with_numpy(library, order):
    if isinstance(library, Jax) and order == "C":
        pytest.skip("compiling every operation takes seconds, and the other order takes more of them")
    rng = np.random.default_rng(2)
    k, x = integers(rng, (3, 2, 3, 2), float), integers(rng, (2 * 4 * 5, 3), float)
    wanted = ConvOperator(k, (4, 5), stride=2, order=order)
    operator = ConvOperator(library.asarray(k), (4, 5), stride=2, order=order)
    y = wanted @ x
    np.testing.assert_array_equal(library.asnumpy(operator @ library.asarray(x)), y)
    np.testing.assert_array_equal(library.asnumpy(operator.T @ library.asarray(y)), wanted.T @ y)
    np.testing.assert_array_equal(library.asnumpy(operator.to_dense()), wanted.to_dense())
    np.testing.assert_array_equal(library.asnumpy(abs(operator).to_dense()), abs(wanted).to_dense())


@pytest.mark.parametrize("library", LIBRARIES)
def test_identities_of_matrices_and_metrics_agree_with_numpy(library):
    rng = np.random.default_rng(4)
    k1, k2 = rng.standard_normal((2, 4, 3))
    ours = [library.asarray(array) for array in (k1, k2)]
    for metric in (identities.reweighted_inner_product, identities.sobolev_inner_product):
        np.testing.assert_allclose(library.asnumpy(metric(*ours, 0.3)), metric(k1, k2, 0.3), rtol=1e-13)
    for gradient in (
        identities.singular_value_gradient,
        lambda matrix: identities.penalty_matrix_gradient(matrix, 1.5),
    ):
        np.testing.assert_allclose(library.asnumpy(gradient(ours[0])), gradient(k1), rtol=0, atol=1e-12)


@pytest.mark.gpu
def test_cupy_solvers_and_sparse_matrices():
    import cupy

    rng = np.random.default_rng(3)
    k = rng.standard_normal((2, 2, 3, 3))
    operator = ConvOperator(cupy.asarray(k), (6, 6))
    wanted = ConvOperator(k, (6, 6))
    np.testing.assert_array_equal(operator.to_sparse("csr").toarray().get(), wanted.to_dense())
    x = rng.standard_normal(72)
    expected = wanted @ x
    np.testing.assert_allclose((operator.as_linear_operator() @ cupy.asarray(x)).get(), expected, rtol=1e-12)


def test_libraries_do_not_mix_and_engines_keep_to_their_arrays():
    strict = array_api_strict.asarray(np.ones((1, 4)))
    kernel = np.ones((1, 1, 2))
    with pytest.raises(TypeError, match="one library"):
        cross_correlate(strict, kernel, padding="same")
    with pytest.raises(TypeError, match="one library"):
        ConvOperator(kernel, (4,)).apply(strict)
    strict_kernel = array_api_strict.asarray(kernel)
    with pytest.raises(EngineError, match="numba"):
        cross_correlate(strict, strict_kernel, padding="same", engine="numba")
    operator = ConvOperator(strict_kernel, (4,))
    for call in (operator.to_sparse, operator.as_linear_operator):
        with pytest.raises(TypeError, match="array_api_strict"):
            call()


@pytest.mark.torch
def test_tensors_of_half_precision_are_refused_and_followed_ones_bring_no_warning():
    torch = pytest.importorskip("torch")
    image, kernel = torch.ones((1, 5)), torch.ones((1, 1, 3))
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="image must hold float32"):
            cross_correlate(image.to(dtype), kernel.to(dtype), padding="same")
        with pytest.raises(TypeError, match="kernel must hold float32"):
            ConvOperator(kernel.to(dtype), (5,))
    kernel.requires_grad_()
    ConvOperator(kernel, (5,)).apply(image).sum().backward()
    assert kernel.grad.tolist() == [[[4, 5, 4]]]


@pytest.mark.jax
@pytest.mark.parametrize(
    ("method", "normalized"),
    [
        ("autocorrelation", True),
        ("spectral", False),
        ("pairwise", True),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (("autocorrelation", False), ("spectral", True), ("pairwise", False))
        ),
    ],
)
def test_similarity_of_jax_arrays(method, normalized):
    jax = pytest.importorskip("jax")
    kernels = np.random.default_rng(5).standard_normal((3, 2, 2, 2))
    ours = Jax().asarray(kernels)
    options = {"method": method, "normalized": normalized}
    value, gradient = convolutional_similarity_and_gradient(ours, **options)
    expected = convolutional_similarity_and_gradient(kernels, engine="reference", **options)
    assert value.dtype == gradient.dtype == np.float64
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-13)
    size = abs(expected[1]).max()
    assert np.asarray(gradient) == pytest.approx(expected[1], rel=1e-11, abs=1e-13 * size)
    if method != "pairwise":  # whose convolutions look at the values, which an array being traced has not
        slope = jax.grad(lambda k: convolutional_similarity(k, **options))(ours)
        assert np.asarray(slope) == pytest.approx(expected[1], rel=1e-11, abs=1e-12 * size)


@pytest.mark.jax
def test_jax_that_rounds_what_it_multiplies_is_refused(monkeypatch):
    jax = pytest.importorskip("jax")
    kernels = Jax().asarray(np.ones((2, 1, 3)))

    def trace(dtype):
        jax.make_jaxpr(lambda k: cross_correlate(k[0], k, padding="same"))(kernels.astype(dtype))

    trace(np.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    trace(np.float64)
    with pytest.raises(TypeError, match="'jax_default_matmul_precision', 'highest'"):
        trace(np.float32)
    with jax.default_matmul_precision("highest"):
        trace(np.float32)


@pytest.mark.jax
def test_jax_without_64_bit_numbers_is_refused():
    jax = pytest.importorskip("jax")
    kernels = Jax().asarray(np.ones((2, 1, 3)))
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(TypeError, match="jax_enable_x64"):
            convolutional_similarity(kernels)
    finally:
        jax.config.update("jax_enable_x64", True)
