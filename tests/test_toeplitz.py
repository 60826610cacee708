"""The written-out matrices against the definition, the printed example of Guo and Ye, SciPy, and each other."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given

import convla._array
from convla import (
    ConvGeometry,
    circulant_matrix,
    convolution_matrix,
    cross_correlate,
    doubly_block_circulant,
    doubly_block_toeplitz,
    kernel_from_hwio,
    toeplitz_matrix,
    unvec,
    vec,
)
from convla.errors import ShapeError
from tests.geometries import conv_geometries, integers, name_of, product
from tests.naive import dense_matrix

ORDERS = ("C", "F")
SPARSE = ("csr", "csc", "coo")


@pytest.mark.parametrize("order", ORDERS)
@given(geometry=conv_geometries())
def test_every_form_is_the_written_out_matrix(order, geometry):
    kernel = integers(np.random.default_rng(1), geometry.kernel_shape)
    kernel[kernel == 0] = 1
    expected = dense_matrix(kernel, geometry, order)
    np.testing.assert_array_equal(convolution_matrix(kernel, geometry, order=order, format="dense"), expected)
    for form in SPARSE:
        matrix = convolution_matrix(kernel, geometry, order=order, format=form)
        assert matrix.format == form
        assert matrix.dtype == kernel.dtype
        np.testing.assert_array_equal(matrix.toarray(), expected)
    csr = convolution_matrix(kernel, geometry, order=order, format="csr")
    assert csr.has_canonical_format
    assert csr.nnz == np.count_nonzero(dense_matrix(np.ones_like(kernel), geometry, order))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, object])
def test_the_dtype_of_the_kernel_is_kept(dtype):
    kernel = integers(np.random.default_rng(2), (2, 1, 3, 2)).astype(dtype)
    geometry = ConvGeometry(kernel.shape, (4, 5), padding="same", boundary="reflect")
    assert convolution_matrix(kernel, geometry, format="dense").dtype == dtype
    if dtype is not object:
        assert convolution_matrix(kernel, geometry, format="csr").dtype == dtype


def printed_matrix(kernel, size):
    """Eq. (2.1) of Guo and Ye as printed: block diagonals A_1, A_0, A_-1, each a tridiagonal Toeplitz matrix."""
    blocks = {}
    for offset, row in zip((1, 0, -1), kernel, strict=True):
        # First column k_2, k_1, 0, ...; first row k_2, k_3, 0, ...
        column = np.concatenate(([row[1], row[0]], np.zeros(size - 2, kernel.dtype)))
        blocks[offset] = scipy.linalg.toeplitz(column, np.concatenate(([row[1], row[2]], column[2:])))
    zero = np.zeros((size, size), kernel.dtype)
    return np.block([[blocks.get(i - j, zero) for j in range(size)] for i in range(size)])


@pytest.mark.parametrize("size", [3, 4, 7])
def test_guo_and_ye_equation_2_1_entry_by_entry(size):
    kernel = np.arange(11, 20).reshape(3, 3)
    image = integers(np.random.default_rng(3), (size, size))
    features = cross_correlate(image[None], kernel[None, None], padding="same")[0]
    rows = doubly_block_toeplitz(kernel, (size, size), "same", order="C")
    columns = doubly_block_toeplitz(kernel, (size, size), "same", order="F")
    np.testing.assert_array_equal(rows @ image.ravel(), features.ravel())
    np.testing.assert_array_equal(columns @ image.T.ravel(), features.T.ravel())
    # The printed blocks fit row stacking; under the column stacking of the text, the transposed kernel.
    np.testing.assert_array_equal(rows, printed_matrix(kernel, size))
    np.testing.assert_array_equal(columns, printed_matrix(kernel.T, size))
    assert not np.array_equal(columns, rows)
    # One is the other with image and features transposed, a permutation: the singular values agree.
    swap = np.arange(size * size).reshape(size, size).T.ravel()
    np.testing.assert_array_equal(columns, rows[np.ix_(swap, swap)])


def test_guo_and_ye_equation_2_4_block_by_block():
    rng = np.random.default_rng(4)
    hwio = integers(rng, (3, 3, 2, 4))
    kernel = kernel_from_hwio(hwio)
    for order in ORDERS:
        matrix = convolution_matrix(
            kernel, ConvGeometry(kernel.shape, (5, 5), padding="same"), order=order, format="dense"
        )
        for c in range(4):
            for d in range(2):
                block = matrix[25 * c : 25 * (c + 1), 25 * d : 25 * (d + 1)]
                np.testing.assert_array_equal(
                    block, doubly_block_toeplitz(hwio[:, :, d, c], (5, 5), "same", order=order)
                )


@given(geometry=conv_geometries())
def test_vec_and_unvec_are_inverse_and_fit_the_matrix(geometry):
    rng = np.random.default_rng(5)
    image, kernel = integers(rng, (2, *geometry.domain_shape)), integers(rng, geometry.kernel_shape)
    names = ("padding", "stride", "dilation", "groups", "boundary")
    features = cross_correlate(image, kernel, **{name: getattr(geometry, name) for name in names})
    for order in ORDERS:
        matrix = convolution_matrix(kernel, geometry, order=order)
        vectors = vec(image, geometry.ndim, order=order)
        np.testing.assert_array_equal(unvec(vectors, geometry.domain_shape, order=order), image)
        np.testing.assert_array_equal((matrix @ vectors.T).T, vec(features, geometry.ndim, order=order))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_toeplitz_and_circulant_agree_with_scipy(size):
    kernel = np.arange(1, size + 1)
    n = 7
    full = scipy.linalg.toeplitz(np.r_[kernel[::-1], np.zeros(n - 1, int)], np.r_[kernel[-1], np.zeros(n - 1, int)])
    np.testing.assert_array_equal(toeplitz_matrix(kernel, n, "full"), full)
    np.testing.assert_array_equal(toeplitz_matrix(kernel, n, "valid"), full[size - 1 : n])
    first = np.zeros(n, int)
    first[:size] = kernel[::-1]
    circulant = scipy.linalg.circulant(np.roll(first, -(size - 1) + (size - 1) // 2))
    np.testing.assert_array_equal(circulant_matrix(kernel, n), circulant)
    np.testing.assert_array_equal(circulant_matrix(kernel, n, format="csr").toarray(), circulant)
    np.testing.assert_array_equal(
        doubly_block_circulant(np.outer(kernel, kernel), (n, n)), np.kron(circulant, circulant)
    )


def test_a_kernel_longer_than_the_period_wraps_around():
    # Sample r reads 1, ..., 5 at r - 2, ..., r + 2, modulo 3: 1 and 4 at r + 1, 2 and 5 at r - 1.
    np.testing.assert_array_equal(circulant_matrix([1, 2, 3, 4, 5], 3), [[3, 5, 7], [7, 3, 5], [5, 7, 3]])


def test_sparse_memory_is_proportional_to_the_entries():
    kernel = np.ones((4, 4, 3, 3))
    matrix = convolution_matrix(kernel, ConvGeometry(kernel.shape, (64, 64), padding="same"), format="csr")
    stored = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    assert matrix.nnz == 16 * (3 * 64 - 2) ** 2
    # One float64 and one int32 for each entry, one int32 for each row.
    assert stored == 12 * matrix.nnz + 4 * (matrix.shape[0] + 1)


def test_a_dense_matrix_that_does_not_fit_is_refused(monkeypatch):
    kernel = np.ones((64, 64, 3, 3), np.float32)
    geometry = ConvGeometry(kernel.shape, (224, 224), padding="same")
    with pytest.raises(MemoryError) as caught:
        convolution_matrix(kernel, geometry, format="dense")
    for word in ("(3211264, 3211264)", "38416.0 GiB", "'csr'", "ConvOperator"):
        assert word in str(caught.value)
    monkeypatch.setattr("convla.toeplitz.available_memory", lambda _: 799)
    with pytest.raises(MemoryError):
        toeplitz_matrix(np.ones(3), 10)
    monkeypatch.setattr("convla.toeplitz.available_memory", lambda _: None)
    assert toeplitz_matrix(np.ones(3), 10).shape == (10, 10)
    assert convla._array.available_memory(kernel) > 0


K1, K2, K4 = np.ones(3), np.ones((3, 3)), np.ones((4, 2, 3, 3))
G4 = ConvGeometry(K4.shape, (5, 5), padding="same")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: toeplitz_matrix(K2, 5, "same"), ShapeError, ["kernel", "(3, 3)"]),
        (lambda: toeplitz_matrix("k", 5, "same"), TypeError, ["kernel", "real"]),
        (lambda: toeplitz_matrix(K1, 0, "same"), ValueError, ["length", "0"]),
        (lambda: toeplitz_matrix(K1, 5.0, "same"), TypeError, ["length", "5.0"]),
        (lambda: toeplitz_matrix(K1, 5, "none"), ValueError, ["padding", "'none'"]),
        (lambda: toeplitz_matrix(K1, 2, "valid"), ShapeError, ["kernel", "(3,)", "(2,)"]),
        (lambda: toeplitz_matrix(K1, 5, "same", format="bsr"), ValueError, ["format", "'bsr'", "'csr'"]),
        (lambda: circulant_matrix(K2, 5), ShapeError, ["kernel"]),
        (lambda: circulant_matrix(K1, -1), ValueError, ["length", "-1"]),
        (lambda: doubly_block_toeplitz(K1, (5, 5), "same"), ShapeError, ["kernel", "(3,)"]),
        (lambda: doubly_block_toeplitz(K2, (5,), "same"), ShapeError, ["image_shape", "(5,)"]),
        (lambda: doubly_block_toeplitz(K2 * np.nan, (5, 5), "same"), ValueError, ["kernel", "finite"]),
        (lambda: doubly_block_toeplitz(K2, (5, 5), "same", order="A"), ValueError, ["order", "'A'"]),
        (lambda: doubly_block_circulant(K1, (5, 5)), ShapeError, ["kernel"]),
        (lambda: convolution_matrix(K2, G4), ShapeError, ["kernel", "(3, 3)"]),
        (lambda: convolution_matrix(K4[:3], G4), ShapeError, ["kernel", "(4, 2, 3, 3)", "(3, 2, 3, 3)"]),
        (lambda: convolution_matrix(K4, G4, format="dia"), ValueError, ["format", "'dia'"]),
        (lambda: convolution_matrix(K4, G4, order="K"), ValueError, ["order", "'K'"]),
        (lambda: kernel_from_hwio(K2), ShapeError, ["kernel", "(3, 3)"]),
        (lambda: kernel_from_hwio(np.ones((1,) * 6)), ShapeError, ["kernel", "1 to 3"]),
        (lambda: vec(K4, 4), ValueError, ["ndim", "4"]),
        (lambda: vec(K2, 2), ShapeError, ["array", "(3, 3)"]),
        (lambda: vec(K4, 2, order="X"), ValueError, ["order", "'X'"]),
        (lambda: unvec(K1, (1, 2, 2)), ShapeError, ["vector", "4", "(3,)"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("geometry", product(seed=6, every=61), ids=name_of)
def test_a_larger_product_of_geometries(geometry):
    kernel = integers(np.random.default_rng(7), geometry.kernel_shape)
    for order in ORDERS:
        expected = dense_matrix(kernel, geometry, order)
        np.testing.assert_array_equal(
            convolution_matrix(kernel, geometry, order=order, format="csr").toarray(), expected
        )
        np.testing.assert_array_equal(convolution_matrix(kernel, geometry, order=order, format="dense"), expected)


@pytest.mark.parametrize("format", ["dense", "csr", "coo"])
def test_integers_that_meet_in_one_entry_may_not_overflow(format):  # noqa: A002
    kernel = np.array([100, 20, 30], np.int8)
    with pytest.raises(OverflowError, match=r"sums of 3 entries of kernel can reach 300 .* int8, 127"):
        circulant_matrix(kernel, 1, format=format)
    with pytest.raises(OverflowError, match="sums of 2 entries"):
        circulant_matrix(kernel, 2, format=format)
    geometry = ConvGeometry((1, 1, 2, 3), (2, 3), padding=2, boundary="replicate")
    with pytest.raises(OverflowError, match="sums of 6 entries"):
        convolution_matrix(np.full((1, 1, 2, 3), 60, np.int8), geometry, format=format)
    # One tap an entry: any integer can stand there, the least of all too.
    least = np.array([-128, 127, -128], np.int8)
    for matrix in (circulant_matrix(least, 4, format=format), toeplitz_matrix(least, 4, format=format)):
        assert (matrix if format == "dense" else matrix.toarray()).min() == -128
    assert circulant_matrix(kernel.astype(object), 1)[0, 0] == 150


@given(conv_geometries())
def test_the_taps_that_meet_in_one_entry_are_counted(geometry):
    ones = dense_matrix(np.ones(geometry.kernel_shape, int), geometry)
    assert geometry.largest_entry_count == max(ones.max(initial=0), 1)


def test_bad_shapes_and_geometries_are_named():
    for shape, error, words in [
        ((2, 2.5), TypeError, r"shape\[1\] must be an integer, got 2.5"),
        ((0, 4), ValueError, r"shape\[0\] must be at least 1, got 0"),
        (4, TypeError, "shape must be a sequence of integers, got 4"),
        ((4,), ShapeError, r"shape must be .*, got \(4,\)"),
    ]:
        with pytest.raises(error, match=words):
            unvec(np.ones(4), shape)
    with pytest.raises(TypeError, match="geometry must be a ConvGeometry, got str"):
        convolution_matrix(np.ones((1, 1, 3)), "x")
