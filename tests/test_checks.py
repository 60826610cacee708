"""What is no array of real numbers is refused in words, whichever function meets it; traced arrays are let through."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import scipy.sparse

from convla import (
    ConvOperator,
    convolutional_similarity,
    cross_correlate,
    largest_singular_value,
    minimize_penalty,
    penalties,
    penalty,
    penalty_gradient,
    spectra,
)
from convla.penalties.steps import StepName
from convla.penalties.tracker import TrackerName
from convla.spectra.method import MethodName, SmallestMethodName
from convla.spectra.tracking import BlockTracker

IMAGE = np.ones((1, 5))


@pytest.mark.parametrize(
    ("package", "family", "names", "beside"),
    [
        (spectra, spectra.Method, MethodName, {"inverse"}),  # which is for the smallest value alone
        (spectra, spectra.Method, SmallestMethodName, set()),
        (penalties, penalties.Tracker, TrackerName, set()),
        (penalties, penalties.Step, StepName, set()),
    ],
)
def test_the_names_of_a_type_are_the_options_that_are_public(
    package: ModuleType, family: type, names: Any, beside: set[str]
) -> None:
    public = [getattr(package, name) for name in package.__all__]
    options = {one.name for one in public if isinstance(one, type) and issubclass(one, family) and one is not family}
    assert set(get_args(names)) == options - beside
    assert beside < options


def objects(value: object) -> Any:
    array = np.full((1, 1, 3), 1, dtype=object)
    array[0, 0, 1] = value
    return array


@pytest.mark.parametrize(
    ("kernel", "got"),
    [
        (objects(1.5), "float"),
        (objects(float("nan")), "float"),
        (objects(np.float64(1.0)), "numpy.float64"),
        (objects(1j), "complex"),
        (objects(Decimal(1)), "decimal.Decimal"),
        (objects(True), "bool"),
        (objects("1"), "str"),
        (objects(None), "NoneType"),
        (objects([1]), "list"),
        (objects(np.eye(2)), "numpy.ndarray"),
        (np.ma.masked_array(np.ones((1, 1, 3)), mask=[[[0, 1, 0]]]), "a masked one"),
        ([np.ma.masked_array(np.ones((1, 3)), mask=[[0, 1, 0]])], "a masked one"),
        (scipy.sparse.csr_array(np.eye(3)), "scipy"),
        (np.ones((1, 1, 3), complex), "complex128"),
        (np.ones((1, 1, 3), bool), "bool"),
        (np.ones((1, 1, 3), np.float16), "float16"),
        ([[["a", "b"]]], "str|<U1"),
    ],
)
def test_what_holds_no_real_numbers_is_named(kernel: Any, got: str) -> None:
    with pytest.raises(TypeError, match=got):
        cross_correlate(IMAGE, kernel, padding=1)
    with pytest.raises(TypeError, match=got):
        ConvOperator(kernel, (5,))


def test_symbols_are_exact_and_sympys_floats_are_not() -> None:
    sympy = pytest.importorskip("sympy")
    exact = cross_correlate(IMAGE.astype(int), objects(sympy.sqrt(2) + sympy.Symbol("x")), padding=1)
    assert exact[0, 2] == 2 + sympy.sqrt(2) + sympy.Symbol("x")
    for value in (sympy.Float(1.5), sympy.Symbol("x") + 0.5, sympy.I, sympy.nan, sympy.oo):
        with pytest.raises(TypeError, match="exact ones"):
            ConvOperator(objects(value), (5,))


def test_exact_numbers_meet_no_floats() -> None:
    with pytest.raises(TypeError, match="must both hold exact numbers or both floats"):
        cross_correlate(IMAGE, objects(Fraction(1, 3)), padding=1)
    assert cross_correlate(IMAGE.astype(int), objects(Fraction(1, 3)), padding=1)[0, 2] == Fraction(7, 3)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_matrix_is_read_as_an_array() -> None:
    image, kernel = np.arange(5.0)[None, :], np.array([[[1.0, 2.0, 3.0]]])
    found = cross_correlate(np.asmatrix(image), kernel, padding=1)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, cross_correlate(image, kernel, padding=1))


@pytest.mark.torch
def test_a_kernel_that_requires_a_gradient_is_not_detached_in_silence() -> None:
    torch = pytest.importorskip("torch")
    kernel = torch.ones(1, 1, 3, dtype=torch.float64, requires_grad=True)
    operator = ConvOperator(kernel, (5,))
    for call in (
        lambda: penalty(operator, 1.0),
        lambda: penalty_gradient(operator, 1.0),
        lambda: minimize_penalty(operator, iterations=1),
        lambda: BlockTracker().step(operator, {}),
    ):
        with pytest.raises(TypeError, match=r"is not differentiated, .* pass kernel\.detach\(\)"):
            call()
    with torch.no_grad():
        assert float(penalty(operator, 1.0)) == pytest.approx(float(penalty(ConvOperator(kernel, (5,)), 1.0)))
    with pytest.raises(TypeError, match=r"dense array, got a tensor of layout torch\.sparse_coo"):
        ConvOperator(kernel.detach().to_sparse(), (5,))


@pytest.mark.torch
def test_a_layer_where_its_kernel_or_its_map_is_meant() -> None:
    torch = pytest.importorskip("torch")

    class Own(torch.nn.Conv2d):  # type: ignore[name-defined, misc]
        pass

    for call in (convolutional_similarity, largest_singular_value, lambda layer: ConvOperator(layer, (8, 8))):
        with pytest.raises(TypeError, match=r"got .*Own: convla\.frameworks\.torch\.operator\(layer, image_shape\)"):
            call(Own(3, 4, 3))


@pytest.mark.torch
def test_initialisers_fill_weights_only() -> None:
    torch = pytest.importorskip("torch")
    from convla.frameworks.torch import delta_orthogonal_, orthogonal_

    for fill in (orthogonal_, delta_orthogonal_):
        with pytest.raises(TypeError, match=r"tensor must be of a floating-point dtype, got torch\.int64"):
            fill(torch.zeros(4, 2, 3, dtype=torch.int64))
        layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv1d(2, 4, 3))
        with pytest.raises(ValueError, match="tensor must be a weight, got one that is computed from others"):
            fill(layer.weight)
        fill(torch.nn.ConvTranspose1d(2, 4, 3).weight.transpose(0, 1))


@pytest.fixture
def jax() -> Iterator[Any]:
    library = pytest.importorskip("jax")
    before = library.config.jax_enable_x64
    library.config.update("jax_enable_x64", True)
    yield library
    library.config.update("jax_enable_x64", before)


@pytest.mark.command
def test_convolutions_run_where_jax_traces_them(jax: Any) -> None:
    image = jax.numpy.asarray(np.random.default_rng(0).standard_normal((2, 7)))
    kernel = jax.numpy.asarray(np.random.default_rng(1).standard_normal((3, 2, 3)))

    def layer(kernel: Any, image: Any) -> Any:
        return cross_correlate(image, kernel, padding=1)

    expected = np.asarray(layer(kernel, image))
    np.testing.assert_allclose(np.asarray(jax.jit(layer)(kernel, image)), expected, atol=1e-14)
    batch = jax.vmap(layer, in_axes=(None, 0))(kernel, jax.numpy.stack([image, 2 * image]))
    np.testing.assert_allclose(np.asarray(batch[1]), 2 * expected, atol=1e-13)
    matrix = jax.jit(lambda k: ConvOperator(k, (7,)).to_dense())(kernel)
    np.testing.assert_allclose(np.asarray(matrix), np.asarray(ConvOperator(kernel, (7,)).to_dense()), atol=1e-14)
    whole = jax.jit(layer)(jax.numpy.ones((1, 2, 3), int), jax.numpy.ones((2, 7), int))
    assert int(whole[0, 3]) == 6
    with pytest.raises(TypeError, match="a penalty reads the values of kernel, which JAX only traces here"):
        jax.jit(lambda k: penalty(ConvOperator(k, (7,)), 1.0))(kernel)
