"""Cross-correlation and both adjoints against the written-out matrix, SciPy, PyTorch, and exact polynomials."""

import flint
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given

from convla import ConvGeometry, ConvOperator, convolve, cross_correlate, image_adjoint, kernel_adjoint
from convla.conv import flip_kernel
from convla.errors import ShapeError
from convla.testing import assert_within_rounding
from tests.geometries import conv_geometries, integers, keywords_of, name_of, product
from tests.naive import NaiveMaps, dense_matrix

PRODUCT = product(every=7)
ENGINES = ("reference", "numba")


def three_maps(geometry, x, k, y, engine):
    keywords = {**keywords_of(geometry), "engine": engine}
    return (
        cross_correlate(x, k, **keywords),
        image_adjoint(y, k, image_shape=geometry.image_shape, **keywords),
        kernel_adjoint(y, x, kernel_size=geometry.kernel_size, **keywords),
    )


def expected_maps(geometry, x, k, y):
    M = dense_matrix(k, geometry)
    return (M @ x.ravel()).reshape(geometry.range_shape), (M.T @ y.ravel()).reshape(geometry.domain_shape)


@given(conv_geometries())
def test_integers_agree_with_the_written_out_matrix_exactly(geometry):
    rng = np.random.default_rng(1)
    shapes = geometry.domain_shape, geometry.kernel_shape, geometry.range_shape
    x, k, y = (integers(rng, shape) for shape in shapes)
    expected = expected_maps(geometry, x, k, y)
    for dtype, engine in [(np.int64, "reference"), (np.float32, "reference"), (np.float32, "numba"), (float, "numba")]:
        got = three_maps(geometry, x.astype(dtype), k.astype(dtype), y.astype(dtype), engine)
        for value, wanted in zip(got[:2], expected, strict=True):
            assert value.dtype == dtype
            np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("geometry", PRODUCT[::4], ids=name_of)
def test_the_kernel_adjoint_agrees_with_the_written_out_matrix_exactly(geometry):
    rng = np.random.default_rng(2)
    x, y = integers(rng, geometry.domain_shape), integers(rng, geometry.range_shape)
    got = kernel_adjoint(y, x, kernel_size=geometry.kernel_size, **keywords_of(geometry))
    for _ in range(4):
        entry = tuple(int(rng.integers(size)) for size in geometry.kernel_shape)
        unit = np.zeros(geometry.kernel_shape, int)
        unit[entry] = 1
        assert got[entry] == y.ravel() @ (dense_matrix(unit, geometry) @ x.ravel())


@pytest.fixture(scope="module")
def naive_maps():
    return [NaiveMaps(geometry) for geometry in product(seed=4, every=31)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("engine", ENGINES)
def test_floats_stay_within_the_forward_error_bound(dtype, engine, naive_maps):
    rng = np.random.default_rng(3)
    for naive in naive_maps:
        geometry = naive.geometry
        shapes = geometry.domain_shape, geometry.kernel_shape, geometry.range_shape
        # Magnitudes over nine decades, and a batch.
        x, k, y = (
            (rng.standard_normal((2, *shape)) * 10.0 ** rng.integers(-4, 5, (2, *shape))).astype(dtype)
            for shape in shapes
        )
        got = three_maps(geometry, x, k[0], y, engine)
        for value, bilinear, a, b in [
            (got[0], naive.apply, x, k[0]),
            (got[1], naive.image_adjoint, y, k[0]),
            (got[2], naive.kernel_adjoint, y, x),
        ]:
            assert value.dtype == dtype
            expected = bilinear(a.astype(np.longdouble), b.astype(np.longdouble))
            assert_within_rounding(value, bilinear, a, b, expected)


def random_polynomials(rng, shape):
    values = np.empty(shape, object)
    for index in np.ndindex(*shape):
        values[index] = flint.fmpz_poly([int(c) for c in rng.integers(-5, 6, 3)])
    return values


@pytest.mark.parametrize("geometry", PRODUCT[::5], ids=name_of)
def test_adjoint_identities_hold_exactly_on_polynomials(geometry):
    rng = np.random.default_rng(5)
    shapes = geometry.domain_shape, geometry.kernel_shape, geometry.range_shape
    x, k, y = (random_polynomials(rng, shape) for shape in shapes)
    features, back, gradient = three_maps(geometry, x, k, y, "auto")
    inner = (features * y).sum()
    assert isinstance(inner, flint.fmpz_poly)
    assert inner == (x * back).sum()
    assert inner == (k * gradient).sum()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_full_and_valid_agree_with_scipy_exactly(ndim, size):
    rng = np.random.default_rng(6)
    x, k = integers(rng, (7, 6, 5)[:ndim]), integers(rng, (size,) * ndim)
    for mode in ("full", "valid"):
        got = cross_correlate(x[None], k[None, None], padding=mode)[0]
        np.testing.assert_array_equal(got, scipy.signal.correlate(x, k, mode=mode, method="direct"))
        got = convolve(x[None], k[None, None], padding=mode)[0]
        np.testing.assert_array_equal(got, scipy.signal.convolve(x, k, mode=mode, method="direct"))


@pytest.mark.parametrize("size", [2, 4])
def test_same_for_even_kernels_stands_one_place_before_that_of_numpy_and_scipy(size):
    rng = np.random.default_rng(13)
    x, k = integers(rng, (9,)), integers(rng, (size,))
    got = cross_correlate(x[None], k[None, None], padding="same")[0]
    for theirs in (
        np.correlate(x, k, mode="same"),
        scipy.signal.correlate(x, k, mode="same", method="direct"),
        scipy.ndimage.correlate(x, k, mode="constant"),
    ):
        np.testing.assert_array_equal(got[:-1], theirs[1:])
        assert (got != theirs).any()


@pytest.mark.parametrize(
    ("boundary", "mode"),
    [("circular", "grid-wrap"), ("reflect", "mirror"), ("replicate", "nearest"), ("symmetric", "reflect")],
)
@pytest.mark.parametrize("size", [3, 5])
def test_boundaries_agree_with_scipy_ndimage_exactly(boundary, mode, size):
    rng = np.random.default_rng(7)
    x, k = integers(rng, (6, 7)), integers(rng, (size, size))
    got = cross_correlate(x[None], k[None, None], padding="same", boundary=boundary)[0]
    np.testing.assert_array_equal(got, scipy.ndimage.correlate(x, k, mode=mode))


@pytest.mark.torch
@pytest.mark.parametrize("geometry", [g for g in PRODUCT if g.boundary == "zero"], ids=name_of)
def test_pytorch_agrees_exactly_on_integers_in_float64(geometry):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    n = geometry.ndim
    shapes = (2, *geometry.domain_shape), geometry.kernel_shape, (2, *geometry.range_shape)
    x, k, y = (integers(rng, shape, float) for shape in shapes)
    pads = [amount for pair in reversed(geometry.padding) for amount in pair]
    options = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": geometry.groups}
    image = torch.tensor(x, requires_grad=True)
    kernel = torch.tensor(k, requires_grad=True)
    convolution = (torch.conv1d, torch.conv2d, torch.conv3d)[n - 1]
    features = convolution(torch.nn.functional.pad(image, pads), kernel, **options)
    features.backward(torch.tensor(y))
    expected = features.detach(), image.grad, kernel.grad
    for engine in ENGINES:
        for got, wanted in zip(three_maps(geometry, x, k, y, engine), expected, strict=True):
            np.testing.assert_array_equal(got, wanted.numpy())
    # conv_transpose knows symmetric padding only, and the images that its output_padding can name.
    if all(low == high for low, high in geometry.padding):
        rest = [
            (p - (e - 1) * d - 1) % s
            for p, e, d, s in zip(
                geometry.padded_shape, geometry.kernel_size, geometry.dilation, geometry.stride, strict=True
            )
        ]
        transposed = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[n - 1]
        wanted = transposed(
            torch.tensor(y),
            kernel.detach(),
            padding=[low for low, _ in geometry.padding],
            output_padding=rest,
            **options,
        )
        for engine in ENGINES:
            got = image_adjoint(y, k, image_shape=geometry.image_shape, **{**keywords_of(geometry), "engine": engine})
            np.testing.assert_array_equal(got, wanted.numpy())


def test_leading_axes_are_a_batch():
    rng = np.random.default_rng(9)
    x, k = integers(rng, (2, 3, 2, 6)), integers(rng, (4, 2, 3))
    got = cross_correlate(x, k, padding="same")
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(got[index], cross_correlate(x[index], k, padding="same"))


@pytest.mark.parametrize("engine", ENGINES)
def test_any_memory_layout_and_read_only_arrays_are_taken(engine):
    rng = np.random.default_rng(10)
    k = integers(rng, (5, 4, 3, 2), float)
    x = integers(rng, (4, 8, 9), float)
    wanted = cross_correlate(x, k, padding="same")
    layouts = [np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[:, ::-1][:, ::-1]]
    frozen = x.copy()
    frozen.setflags(write=False)
    frozen_kernel = k.copy()
    frozen_kernel.setflags(write=False)
    for image in [*layouts, frozen]:
        np.testing.assert_array_equal(cross_correlate(image, frozen_kernel, padding="same", engine=engine), wanted)
    np.testing.assert_array_equal(
        image_adjoint(frozen[:1].repeat(5, 0), frozen_kernel, image_shape=(8, 9), padding="same", engine=engine),
        image_adjoint(x[:1].repeat(5, 0), k, image_shape=(8, 9), padding="same"),
    )
    np.testing.assert_array_equal(
        kernel_adjoint(wanted[:, ::-1][:, ::-1], frozen, kernel_size=(3, 2), padding="same", engine=engine),
        kernel_adjoint(wanted, x, kernel_size=(3, 2), padding="same", engine="reference"),
    )
    for image in layouts:
        np.testing.assert_array_equal(
            kernel_adjoint(np.asfortranarray(wanted), image, kernel_size=(3, 2), padding="same", engine=engine),
            kernel_adjoint(wanted, x, kernel_size=(3, 2), padding="same", engine="reference"),
        )


def test_the_flipped_kernel_makes_the_convolution():
    rng = np.random.default_rng(11)
    x, k = integers(rng, (2, 6, 7)), integers(rng, (3, 2, 2, 3))
    np.testing.assert_array_equal(convolve(x, k, padding="same"), cross_correlate(x, flip_kernel(k), padding="same"))
    # A polynomial product, which knows nothing of arrays.
    p, q = flint.fmpz_poly([1, 2, 3]), flint.fmpz_poly([4, 0, 5, 6])
    got = convolve(np.array([[1, 2, 3]]), np.array([[[4, 0, 5, 6]]]), padding="full")
    assert got[0].tolist() == [int(c) for c in (p * q).coeffs()]


X = np.ones((2, 5, 5))
K = np.ones((4, 2, 3, 3))
Y = np.ones((4, 5, 5))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cross_correlate("x", K, padding=1), TypeError, ["image", "real"]),
        (lambda: cross_correlate(X, None, padding=1), TypeError, ["kernel", "real", "NoneType"]),
        (lambda: cross_correlate(X * 1j, K, padding=1), TypeError, ["image", "complex128"]),
        (lambda: cross_correlate(X > 0, K, padding=1), TypeError, ["image", "bool"]),
        (lambda: cross_correlate(X[0], K, padding=1), ShapeError, ["image", "(5, 5)"]),
        (lambda: cross_correlate(X[:1], K, padding=1), ShapeError, ["image", "(..., 2, 5, 5)", "(1, 5, 5)"]),
        (lambda: cross_correlate(X[:, :0], K, padding=1), ShapeError, ["image", "empty", "(2, 0, 5)"]),
        (lambda: cross_correlate(X * np.nan, K, padding=1), ValueError, ["image", "finite"]),
        (lambda: cross_correlate(X, K * np.inf, padding=1), ValueError, ["kernel", "finite"]),
        (lambda: cross_correlate(X, K[0, 0], padding=1), ShapeError, ["kernel", "(3, 3)"]),
        (lambda: cross_correlate(X, K[:, :, :, :, None, None], padding=1), ShapeError, ["kernel", "1 to 3"]),
        (lambda: cross_correlate(X.astype("f4"), K, padding=1), TypeError, ["image", "kernel", "float32", "float64"]),
        (lambda: cross_correlate(X.astype("f2"), K, padding=1), TypeError, ["image", "float16"]),
        (lambda: cross_correlate(X, K, padding="no"), ValueError, ["padding", "'no'"]),
        (lambda: cross_correlate(X, K, padding=1, groups=2), ShapeError, ["image", "(..., 4, 5, 5)", "2 group"]),
        (lambda: cross_correlate(X, K, padding=1, engine="fast"), ValueError, ["engine", "'fast'", "'numba'"]),
        (lambda: cross_correlate(X[:, :2], K, padding="valid"), ShapeError, ["kernel", "(3, 3)"]),
        (lambda: image_adjoint(Y[:3], K, image_shape=(5, 5), padding=1), ShapeError, ["features", "(3, 5, 5)"]),
        (lambda: image_adjoint(Y, K, image_shape=(6, 5), padding=1), ShapeError, ["features", "(..., 4, 6, 5)"]),
        (lambda: image_adjoint(Y, K, image_shape=5, padding=1), TypeError, ["image_shape", "5"]),
        (lambda: image_adjoint(Y * np.nan, K, image_shape=(5, 5), padding=1), ValueError, ["features", "finite"]),
        (lambda: image_adjoint([["a"]], K, image_shape=(5, 5), padding=1), TypeError, ["features", "real"]),
        (lambda: kernel_adjoint(Y, X, kernel_size=3, padding=1), TypeError, ["kernel_size", "3"]),
        (lambda: kernel_adjoint(Y, X, kernel_size=(3, 0), padding=1), ValueError, ["kernel_size[1]", "0"]),
        (lambda: kernel_adjoint(Y, X, kernel_size=(), padding=1), ShapeError, ["kernel_size", "()"]),
        (lambda: kernel_adjoint(Y, X, kernel_size=(3, 1.5), padding=1), TypeError, ["kernel_size[1]", "1.5"]),
        (lambda: kernel_adjoint(Y, X, kernel_size=(3, 2), padding=1), ShapeError, ["features", "(..., 4, 5, 6)"]),
        (lambda: kernel_adjoint(Y, X, kernel_size=(3, 3), padding=1, groups=3), ShapeError, ["groups", "2", "3"]),
        (lambda: kernel_adjoint(Y[None], X, kernel_size=(3, 3), padding=1), ShapeError, ["same leading axes"]),
        (lambda: kernel_adjoint(Y, X * np.inf, kernel_size=(3, 3), padding=1), ValueError, ["image", "finite"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_integers_that_could_overflow_are_refused():
    big = np.full((1, 4), 2**40)
    kernel = np.full((1, 1, 2), 2**22)
    with pytest.raises(OverflowError, match="sums of 2 products can reach"):
        cross_correlate(big, kernel, padding="valid")
    exact = cross_correlate(big.astype(object), kernel.astype(object), padding="valid")
    assert exact[0, 0] == 2**63
    with pytest.raises(OverflowError, match="int8"):
        image_adjoint(np.full((1, 3), 100, np.int8), np.ones((1, 1, 2), np.int8), image_shape=(4,), padding="valid")
    with pytest.raises(OverflowError):
        kernel_adjoint(big[:, :3], big, kernel_size=(2,), padding="valid")


def test_integers_follow_a_floating_partner():
    x, k = np.arange(6, dtype=np.float32)[None], np.array([[[1, 2]]])
    assert cross_correlate(x, k, padding="valid").dtype == np.float32
    assert cross_correlate([[1, 2, 3]], k.astype(float), padding="valid").dtype == np.float64


def test_the_geometry_of_a_call_is_its_own():
    # float 1.0 equals 1 as a dictionary key: a remembered geometry must not let it through.
    cross_correlate(X, K, padding=1, stride=1)
    with pytest.raises(TypeError, match="stride"):
        cross_correlate(X, K, padding=1, stride=1.0)
    assert ConvGeometry(K.shape, (5, 5), padding=1).stride == (1, 1)


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "i8"])
def test_arrays_of_either_byte_order_are_taken(kind):
    rng = np.random.default_rng(12)
    geometry = ConvGeometry((3, 2, 3, 2), (6, 5), padding="same")
    shapes = geometry.domain_shape, geometry.kernel_shape, geometry.range_shape
    native = [integers(rng, shape, kind) for shape in shapes]
    expected = three_maps(geometry, *native, "auto")
    for order in "<>":
        swapped = [array.astype(order + kind) for array in native]
        operator = ConvOperator(swapped[1], (6, 5))
        got = [*three_maps(geometry, *swapped, "auto"), operator.apply(swapped[0]), operator.adjoint(swapped[2])]
        for value, wanted in zip(got, [*expected, *expected[:2]], strict=True):
            assert value.dtype.isnative
            np.testing.assert_array_equal(value, wanted)
