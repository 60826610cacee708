"""`ConvOperator` as a matrix: products, transposes, solvers, and the public adjoint test."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given

from convla import ConvGeometry, ConvOperator
from convla.errors import EngineError, ShapeError
from convla.testing import assert_adjoint, assert_within_rounding, gamma, rounding_bound
from tests.geometries import conv_geometries, integers, keywords_of, name_of, product
from tests.naive import dense_matrix


def operator_of(geometry, kernel, **options):
    return ConvOperator(kernel, geometry.image_shape, **keywords_of(geometry), **options)


@pytest.mark.parametrize("order", ["C", "F"])
@given(geometry=conv_geometries())
def test_products_are_those_of_the_written_out_matrix(order, geometry):
    rng = np.random.default_rng(1)
    kernel = integers(rng, geometry.kernel_shape)
    M = dense_matrix(kernel, geometry, order)
    operator = operator_of(geometry, kernel, order=order)
    assert operator.shape == M.shape
    assert operator.T.shape == operator.H.shape == M.T.shape
    x, y = integers(rng, (M.shape[1], 3)), integers(rng, (M.shape[0], 2))
    for got, expected in [
        (operator @ x[:, 0], M @ x[:, 0]),
        (operator @ x, M @ x),
        (operator.matmat(x), M @ x),
        (operator.rmatmat(y), M.T @ y),
        (operator.rmatvec(y[:, 0]), M.T @ y[:, 0]),
        (operator.T @ y, M.T @ y),
        (operator.T.T @ x, M @ x),
        (y.T @ operator, y.T @ M),
        (y[:, 0] @ operator, y[:, 0] @ M),
        (x.T @ operator.T, x.T @ M.T),
        (operator.to_dense(), M),
        (operator.T.to_dense(), M.T),
        (operator.to_sparse("csc").toarray(), M),
        (operator.T.to_sparse("coo").toarray(), M.T),
        (abs(operator).to_dense(), dense_matrix(abs(kernel), geometry, order)),
        (abs(operator.T).to_dense(), dense_matrix(abs(kernel), geometry, order).T),
    ]:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("geometry", product(seed=3, every=37), ids=name_of)
def test_adjoint(geometry, dtype):
    rng = np.random.default_rng(2)
    kernel = rng.standard_normal(geometry.kernel_shape) if dtype != np.int64 else integers(rng, geometry.kernel_shape)
    terms = max(geometry.largest_row_count, geometry.largest_column_count)
    for engine in ("reference", "numba") if dtype != np.int64 else ("reference",):
        operator = operator_of(geometry, kernel.astype(dtype), engine=engine)
        assert_adjoint(operator, terms=terms, batch=(2,), rng=rng)
        assert_adjoint(operator.T, terms=terms, rng=rng)


def test_the_kernel_adjoint_is_the_transpose_in_the_kernel():
    rng = np.random.default_rng(3)
    kernel, x = integers(rng, (4, 3, 3, 2)), integers(rng, (2, 3, 6, 5))
    operator = ConvOperator(kernel, (6, 5), stride=2, boundary="circular")
    y = integers(rng, (2, *operator.range_shape))
    assert (operator.apply(x) * y).sum() == (kernel * operator.kernel_adjoint(y, x)).sum()


def test_scipy_solvers_run_on_the_operator():
    rng = np.random.default_rng(4)
    kernel = rng.standard_normal((2, 2, 3, 3))
    kernel[[0, 1], [0, 1], 1, 1] += 20  # diagonally dominant, so every solver converges
    operator = ConvOperator(kernel, (8, 8))
    linear, dense = operator.as_linear_operator(), operator.to_dense()
    wanted = np.linalg.svd(dense, compute_uv=False)
    start = rng.standard_normal(min(operator.shape))
    got = scipy.sparse.linalg.svds(linear, k=2, return_singular_vectors=False, v0=start)
    np.testing.assert_allclose(np.sort(got), wanted[1::-1], rtol=1e3 * np.finfo(float).eps)
    b = rng.standard_normal(operator.shape[0])
    x, status = scipy.sparse.linalg.gmres(linear, b, rtol=1e-10)
    assert status == 0
    assert np.linalg.norm(dense @ x - b) <= 2e-10 * np.linalg.norm(b)
    least_squares = scipy.sparse.linalg.lsqr(linear, b, atol=1e-12, btol=1e-12)[0]
    assert np.linalg.norm(dense.T @ (dense @ least_squares - b)) <= 1e-10 * wanted[0] * np.linalg.norm(b)
    np.testing.assert_array_equal(linear.T @ b, operator.T @ b)
    column = linear @ rng.standard_normal((operator.shape[1], 1))
    assert column.shape == (operator.shape[0], 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_scipy_solvers_take_every_dtype_of_kernel(dtype):
    rng = np.random.default_rng(7)
    kernel = integers(rng, (2, 2, 3, 3), dtype)
    kernel[[0, 1], [0, 1], 1, 1] += 200  # diagonally dominant, so every solver converges
    operator = ConvOperator(kernel, (6, 6))
    linear, dense = operator.as_linear_operator(), operator.to_dense().astype(float)
    assert linear.dtype == (np.float64 if dtype == np.int64 else dtype)
    b = rng.standard_normal(operator.shape[0])
    # Float64 vectors give float64 products, as they do with a sparse matrix, and float64 accuracy.
    for got, wanted in [(linear @ b, dense @ b), (linear.rmatvec(b), dense.T @ b), (linear.T @ b, dense.T @ b)]:
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-10)
    assert (linear @ b.astype(np.float32)).dtype == linear.dtype
    linalg = scipy.sparse.linalg
    solutions = [
        linalg.gmres(linear, b, rtol=1e-11)[0],
        linalg.lsqr(linear, b, atol=1e-13, btol=1e-13)[0],
        linalg.lsmr(linear, b, atol=1e-13, btol=1e-13)[0],
        linalg.cg(linear.T @ linear, dense.T @ b, rtol=1e-12)[0],
        linalg.gmres(operator.T.as_linear_operator().T, b, rtol=1e-11)[0],
    ]
    for x in solutions:
        np.testing.assert_allclose(dense @ x, b, rtol=0, atol=1e-9 * np.linalg.norm(b))
    wanted = np.linalg.svd(dense, compute_uv=False)[0]
    start = np.random.default_rng(0).standard_normal(min(operator.shape))
    for solver in ("arpack", "lobpcg"):
        got = linalg.svds(linear, k=1, solver=solver, v0=start, maxiter=500, return_singular_vectors=False)
        np.testing.assert_allclose(got[0], wanted, rtol=1e-4)


def test_exact_objects_have_no_linear_operator():
    with pytest.raises(TypeError, match="object"):
        ConvOperator(np.ones((1, 1, 3), object), (4,)).as_linear_operator()


def test_arguments_are_in_the_kernel_dtype():
    operator = ConvOperator(np.ones((1, 1, 3), np.float32), (4,))
    assert operator.apply(np.ones((1, 4), np.float32)).dtype == np.float32
    assert operator.apply([[1, 2, 3, 4]]).dtype == np.float32
    assert operator.dtype == np.float32
    assert "4x4 ConvOperator of float32" in repr(operator)
    assert "4x4 TransposedConvOperator of float32" in repr(operator.T)


K = np.ones((4, 2, 3, 3))
OPERATOR = ConvOperator(K, (5, 6))
X, Y = np.ones((2, 5, 6)), np.ones((4, 5, 6))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ConvOperator("k", (5, 6)), TypeError, ["kernel"]),
        (lambda: ConvOperator(K[0, 0], (5,)), ShapeError, ["kernel", "(3, 3)"]),
        (lambda: ConvOperator(K.astype(np.float16), (5, 6)), TypeError, ["kernel", "float16"]),
        (lambda: ConvOperator(K * np.nan, (5, 6)), ValueError, ["kernel", "finite"]),
        (lambda: ConvOperator(K, (5,)), ShapeError, ["image_shape", "(5,)"]),
        (lambda: ConvOperator(K, (5, 6), padding="x"), ValueError, ["padding", "'x'"]),
        (lambda: ConvOperator(K, (5, 6), order="K"), ValueError, ["order", "'K'"]),
        (lambda: ConvOperator(K, (5, 6), engine="gpu"), ValueError, ["engine", "'gpu'"]),
        (lambda: ConvOperator(K, (5, 6), engine="cuda"), EngineError, ["cuda"]),
        (lambda: OPERATOR.apply(X[:1]), ShapeError, ["image", "(..., 2, 5, 6)", "(1, 5, 6)"]),
        (lambda: OPERATOR.apply(X * np.inf), ValueError, ["image", "finite"]),
        (lambda: OPERATOR.apply(np.ones((0, 2, 5, 6))), ShapeError, ["image", "empty"]),
        (lambda: OPERATOR.apply(X.astype(np.float32)), TypeError, ["image", "kernel", "float32"]),
        (lambda: ConvOperator(K.astype(int), (5, 6)).apply(X), TypeError, ["image", "int64", "float64"]),
        (lambda: OPERATOR.adjoint(X), ShapeError, ["features", "(..., 4, 5, 6)"]),
        (lambda: OPERATOR.adjoint(Y * np.nan), ValueError, ["features", "finite"]),
        (lambda: OPERATOR.kernel_adjoint(Y[None], X), ShapeError, ["same leading axes"]),
        (lambda: OPERATOR.kernel_adjoint(Y, X[0]), ShapeError, ["image"]),
        (lambda: OPERATOR @ X, ShapeError, ["@", "(60,)", "(2, 5, 6)"]),
        (lambda: OPERATOR @ np.ones(61), ShapeError, ["@", "(60,)", "(61,)"]),
        (lambda: OPERATOR @ 3, TypeError, ["right operand of @", "dense", "int"]),
        (lambda: 3.0 @ OPERATOR, TypeError, ["left operand of @", "dense", "float"]),
        (lambda: OPERATOR @ scipy.sparse.eye_array(60), TypeError, ["right operand of @", "dense", "scipy"]),
        (lambda: OPERATOR.T @ np.ones(60), ShapeError, ["(120,)", "(60,)"]),
        (lambda: OPERATOR.matmat(np.ones(60)), ShapeError, ["2 axes", "(60,)"]),
        (lambda: np.ones(7) @ OPERATOR, ShapeError, ["(120,)", "(7,)"]),
        (lambda: OPERATOR.to_sparse("dense"), ValueError, ["format", "'dense'"]),
        (lambda: OPERATOR.T.to_sparse("lil"), ValueError, ["format", "'lil'"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


class Wrong:
    """An operator whose adjoint is off by a part in 1e5 in one entry."""

    def __init__(self, operator):
        self._operator = operator
        self.dtype, self.domain_shape, self.range_shape = operator.dtype, operator.domain_shape, operator.range_shape

    def apply(self, x):
        return self._operator.apply(x)

    def adjoint(self, y):
        image = self._operator.adjoint(y)
        slip = np.abs(image).max() * (1e-5 if image.dtype.kind == "f" else 1)
        image[..., 0] += slip.astype(image.dtype)
        return image

    def __abs__(self):
        return abs(self._operator)


def test_the_test_helpers_can_fail():
    rng = np.random.default_rng(5)
    for kernel in (rng.standard_normal((2, 2, 3)), integers(rng, (2, 2, 3))):
        operator = ConvOperator(kernel, (9,))
        assert_adjoint(operator)
        with pytest.raises(AssertionError, match=r"but|differ"):
            assert_adjoint(Wrong(operator))
    with pytest.raises(ValueError, match="terms must be below"):
        gamma(2**24, np.float32)

    def product_of(a, b):
        return a * b

    a, b = rng.standard_normal(5), rng.standard_normal(5)
    bound = rounding_bound(product_of, a, b)
    assert_within_rounding(a * b, product_of, a, b)
    with pytest.raises(AssertionError, match="entry"):
        assert_within_rounding(a * b + 4 * bound, product_of, a, b)
    with pytest.raises(AssertionError):
        assert_within_rounding(np.array([1, 3]), product_of, np.array([1, 2]), np.array([1, 1]))


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_operators_and_their_transposes_survive_pickling(engine):
    rng = np.random.default_rng(6)
    options = {"stride": 2, "dilation": (1, 2), "groups": 2, "boundary": "circular", "order": "F"}
    operator = ConvOperator(rng.standard_normal((4, 2, 3, 2)), (7, 6), padding=1, engine=engine, **options)
    operator.apply(np.ones(operator.domain_shape))
    x = rng.standard_normal(operator.shape[1])
    again = pickle.loads(pickle.dumps(operator))
    assert repr(again) == repr(operator)
    assert (again.geometry, again.order, again.engine) == (operator.geometry, operator.order, engine)
    np.testing.assert_array_equal(again @ x, operator @ x)
    transpose = pickle.loads(pickle.dumps(operator.T))
    y = rng.standard_normal(operator.shape[0])
    np.testing.assert_array_equal(transpose @ y, operator.T @ y)
    np.testing.assert_array_equal(transpose.T.kernel, operator.kernel)


def test_a_geometry_from_another_process_is_found_in_a_dictionary():
    # The hash of a string differs between processes, so a hash that travelled would hide the geometry.
    make = "ConvGeometry((1, 1, 3), (5,), padding='same', boundary='circular')"
    dump = f"import pickle, sys; from convla import ConvGeometry; g = {make}; hash(g); g.shape\n"
    dump += "sys.stdout.buffer.write(pickle.dumps(g))"
    load = f"import pickle, sys; from convla import ConvGeometry; g = pickle.load(sys.stdin.buffer); h = {make}\n"
    load += "assert set(g.__dict__) <= set(h.__dict__), g.__dict__\nassert g == h and hash(g) == hash(h) and {h: 1}[g]"
    written = _python(dump, "1", b"")
    _python(load, "2", written)


def _python(code, seed, stdin):
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    return subprocess.run(
        [sys.executable, "-c", code], input=stdin, env=environment, check=True, capture_output=True
    ).stdout


def test_the_least_integer_has_no_modulus():
    kernel = np.array([[[-128, 1]]], np.int8)
    with pytest.raises(OverflowError, match="int8, 127"):
        abs(ConvOperator(kernel, (3,)))
    assert abs(ConvOperator(kernel + np.int8(1), (3,))).kernel.max() == 127


def test_the_kernel_of_an_operator_is_its_own():
    kernel = np.ones((1, 1, 3))
    operator = ConvOperator(kernel, (4,))
    kernel[:] = np.nan
    np.testing.assert_array_equal(operator @ np.ones(4), [2, 3, 3, 2])


def run_page(name):
    """Run the examples of a page one after the other, and return what they define."""
    page = (Path(__file__).parent.parent / "docs" / f"{name}.md").read_text()
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    return names


def test_the_page_on_composition_works(capsys):
    names = run_page("operators-that-compose")
    assert capsys.readouterr().out == "sum of bounds of the terms\n"
    assert len(names["longer"].kernels) == 2


def test_the_operator_of_the_guide_works():
    names = run_page("adding-an-operator")
    operator = names["operator"]
    x = np.arange(operator.shape[1], dtype=float)
    dense = operator.to_dense()
    for got in (operator @ x, x @ operator, operator.as_linear_operator() @ x, operator.rmatvec(x)):
        np.testing.assert_array_equal(got, dense @ x)
    np.testing.assert_array_equal(abs(operator).to_dense(), abs(dense))


def test_another_kernel_of_the_same_shape_leaves_nothing_of_the_first():
    rng = np.random.default_rng(21)
    first, second = rng.integers(-5, 6, (2, 3, 2, 3, 3)).astype(float)
    image = rng.integers(-5, 6, (2, 6, 7)).astype(float)
    operator = ConvOperator(first, (6, 7), padding=2, stride=2, order="F")
    other = operator.with_kernel(second)
    fresh = ConvOperator(second.copy(), (6, 7), padding=2, stride=2, order="F")
    second[:] = 0  # the operator has a copy
    np.testing.assert_array_equal(other.apply(image), fresh.apply(image))
    np.testing.assert_array_equal(other.to_dense(), fresh.to_dense())
    np.testing.assert_array_equal(operator.kernel, first)
    with pytest.raises(ValueError, match="finite"):
        operator.with_kernel(first * np.nan)
    assert operator.with_kernel(first.astype(np.float32)).dtype == np.float32
    assert operator.with_kernel(first[:, :, :2]).geometry.kernel_size == (2, 3)


def test_the_operator_in_float64_is_made_once_for_each_kernel():
    first, second = np.random.default_rng(0).standard_normal((2, 3, 2, 3, 3)).astype(np.float32)
    operator = ConvOperator(first, (6, 7))
    double = operator.astype(np.float64)
    assert double.dtype == np.float64
    assert operator.astype(np.float64) is double
    assert double.astype(np.float64) is double
    assert operator.T.astype(np.float64).T is double
    np.testing.assert_array_equal(operator.with_kernel(second).astype(np.float64).kernel, second)
    assert operator.with_engine("auto") is operator
    assert operator._sums_directly
    assert not operator.with_engine("fft")._sums_directly


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(60))
def test_transposed_convolutions_are_those_of_pytorch(seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    ndim, groups = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    channels = groups * int(rng.integers(1, 3)), int(rng.integers(1, 3))
    taps, image, stride, dilation = (tuple(map(int, rng.integers(1, high, ndim))) for high in (4, 5, 4, 3))
    padding = tuple(int(rng.integers(0, (k - 1) * d + 1)) for k, d in zip(taps, dilation, strict=True))
    more = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
    options = {"stride": stride, "padding": padding, "output_padding": more, "dilation": dilation, "groups": groups}
    kernel, x = integers(rng, (*channels, *taps), float), integers(rng, (2, channels[0], *image), float)
    function = getattr(torch.nn.functional, f"conv_transpose{ndim}d")
    try:
        wanted = function(torch.tensor(x), torch.tensor(kernel), **options).numpy()
    except RuntimeError:  # nothing is left
        with pytest.raises(ShapeError, match="nothing is left"):
            ConvOperator.transposed(kernel, image, **options)
        return
    operator = ConvOperator.transposed(kernel, image, **options)
    np.testing.assert_array_equal(operator.apply(x), wanted)
    np.testing.assert_array_equal(operator.kernel, kernel)
    assert (operator.domain_shape, operator.range_shape) == (x.shape[1:], wanted.shape[1:])
    assert_adjoint(operator, batch=(2,))
    moved = operator.with_kernel(2 * kernel)
    assert type(moved) is type(operator)
    np.testing.assert_array_equal(moved.apply(x), 2 * wanted)


def test_transposed_convolutions_refuse_what_pytorch_does():
    kernel = np.ones((2, 1, 3))
    for options, error, message in [
        ({"output_padding": 2, "stride": 2}, ValueError, "output_padding must be less than the stride or the dilation"),
        ({"padding": 5}, ShapeError, "nothing is left along axis 0 of the output"),
        ({"padding": -1}, ValueError, "padding must be at least 0"),
        ({"groups": 3}, ShapeError, "groups"),
        ({"stride": (1, 2)}, ShapeError, "stride must be an integer or 1 integers"),
    ]:
        with pytest.raises(error, match=message):
            ConvOperator.transposed(kernel, (4,), **options)


def test_an_operator_of_a_kernel_and_a_geometry():
    geometry = ConvGeometry((2, 1, 3), (7,), padding=1, stride=2, dilation=2, groups=2, boundary="reflect")
    kernel = np.arange(6.0).reshape(2, 1, 3)
    operator = ConvOperator(kernel, geometry, order="F")
    assert (operator.geometry, operator.order) == (geometry, "F")
    np.testing.assert_array_equal(operator.to_dense(), operator_of(geometry, kernel, order="F").to_dense())
    with pytest.raises(TypeError, match="are the geometry's"):
        ConvOperator(kernel, geometry, stride=3)
    with pytest.raises(ShapeError, match=r"kernel_shape \(2, 1, 3\), got \(2, 1, 2\)"):
        ConvOperator(kernel[..., 1:], geometry)
    moved = geometry.replace(image_shape=(9,), boundary="zero", padding="same")
    assert moved == ConvGeometry((2, 1, 3), (9,), padding="same", stride=2, dilation=2, groups=2)
    with pytest.raises(TypeError, match=r"a geometry has the parameters kernel_shape, .*, got padded_shape"):
        geometry.replace(padded_shape=(9,))
