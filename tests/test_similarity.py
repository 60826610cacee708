"""Similarities against their definitions, exactly on integers, and their gradients against exact differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convla
from convla.errors import ShapeError
from tests.similarity_oracles import exactly

Shape = tuple[int, ...]


def _integers(shape: Shape, seed: int, bound: int = 9) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-bound, bound + 1, shape)


def _feature_maps_by_definition(k: np.ndarray[Any, Any], x: np.ndarray[Any, Any], padding: int) -> list[int]:
    """CSM Eq. (25), one sum at a time: F[i] = sum over n of K[n] X[i + n - N + 1], X zero outside its range."""
    n, m = len(k), len(x)

    def at(i: int) -> int:
        return int(x[i]) if 0 <= i < m else 0

    return [sum(int(k[a]) * at(i + a - n + 1) for a in range(n)) for i in range(n - 1 - padding, m + padding)]


@given(n=st.integers(1, 7), extra=st.integers(0, 9), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_feature_map_similarity_is_its_definition(n: int, extra: int, share: float, seed: int) -> None:
    padding = round(share * (n - 1))
    k1, k2, x = _integers((n,), seed), _integers((n,), seed + 1), _integers((n + extra,), seed + 2)
    f1, f2 = (_feature_maps_by_definition(k, x, padding) for k in (k1, k2))
    assert int(convla.feature_map_similarity(k1, k2, x, padding=padding)) == sum(
        a * b for a, b in zip(f1, f2, strict=True)
    )


@pytest.mark.parametrize(("name", "amount"), [("full", 4), ("same", 2), ("valid", 0)])
def test_padding_names_are_their_amounts(name: str, amount: int) -> None:
    k1, k2, x = _integers((5,), 0), _integers((5,), 1), _integers((12,), 2)
    values = {int(convla.feature_map_similarity(k1, k2, x, padding=p)) for p in (name, amount)}
    assert len(values) == 1


@pytest.mark.parametrize(("kernel", "image"), [((3,), (8,)), ((2, 3), (4, 5)), ((2, 1, 3), (3, 2, 4))])
@pytest.mark.parametrize("padding", ["full", "same", "valid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gram_matrix_gives_every_similarity(kernel: Shape, image: Shape, padding: Any, channels: int) -> None:
    k1, k2, x = (_integers((channels, *shape), seed) for seed, shape in enumerate((kernel, kernel, image)))
    gram = convla.feature_map_gram(x, kernel, padding=padding)
    assert np.array_equal(gram, gram.T)
    expected = convla.feature_map_similarity(k1, k2, x, padding=padding, channels=True)
    assert k1.ravel() @ gram @ k2.ravel() == expected


def test_the_gram_matrix_of_a_batch_is_that_of_each_input() -> None:
    x = _integers((2, 3, 1, 9), 5)
    batch = convla.feature_map_gram(x, (4,), padding=1)
    for i, j in itertools.product(range(2), range(3)):
        assert np.array_equal(batch[i, j], convla.feature_map_gram(x[i, j], (4,), padding=1))


def test_full_padding_gives_a_toeplitz_gram_matrix() -> None:
    gram = convla.feature_map_gram(_integers((1, 12), 3), (5,), padding="full")
    assert all(np.unique(np.diagonal(gram, offset)).size == 1 for offset in range(-4, 5))


def _pairs_by_definition(kernels: np.ndarray[Any, Any]) -> int:
    """CSM Eq. (19) for one-dimensional kernels, by NumPy's correlation on Python integers."""
    total = 0
    for i, j in itertools.combinations(range(kernels.shape[0]), 2):
        for c1, c2 in itertools.product(range(kernels.shape[1]), repeat=2):
            full = np.correlate(kernels[j, c2].astype(object), kernels[i, c1].astype(object), "full")
            total += int((full * full).sum())
    return total


@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6)), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("method", ["auto", "pairwise", "autocorrelation"])
def test_convolutional_similarity_is_its_definition(method: str, shape: Shape, seed: int) -> None:
    kernels = _integers(shape, seed)
    assert int(convla.convolutional_similarity(kernels, method=method)) == _pairs_by_definition(kernels)


@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (2, 2, 2, 1, 2), (4, 1, 3, 3)])
def test_the_methods_agree_in_more_dimensions(shape: Shape) -> None:
    kernels = _integers(shape, 1)
    values = {int(convla.convolutional_similarity(kernels, method=m)) for m in ("pairwise", "autocorrelation")}
    assert len(values) == 1


def _derivative(function: Callable[[Fraction], Fraction], degree: int) -> Fraction:
    """The derivative at 0 of a polynomial of at most this degree, exactly, from degree + 1 of its values."""
    points = [Fraction(p) for p in range(degree + 1)]
    slope = Fraction(0)
    for i, p in enumerate(points):
        others = points[:i] + points[i + 1 :]
        weight = Fraction(0)
        for skip in range(degree):
            product = Fraction(1)
            for o in others[:skip] + others[skip + 1 :]:
                product *= -o
            weight += product
        for o in others:
            weight /= p - o
        slope += weight * function(p)
    return slope


def _assert_gradient(
    value: Callable[[np.ndarray[Any, Any]], Any],
    gradient: np.ndarray[Any, Any],
    at: np.ndarray[Any, Any],
    degree: int,
) -> None:
    for index in np.ndindex(at.shape):
        step = np.zeros(at.shape, dtype=object)
        step[index] = 1

        def along(t: Fraction, step: np.ndarray[Any, Any] = step) -> Fraction:
            return Fraction(int(value(at + int(t) * step)))

        assert _derivative(along, degree) == int(gradient[index])


@pytest.mark.parametrize("shape", [(3, 2, 3), (2, 2, 2, 2), (3, 1, 1)])
def test_the_gradient_of_convolutional_similarity_is_exact(shape: Shape) -> None:
    kernels = _integers(shape, 2, bound=3).astype(object)
    gradient = convla.convolutional_similarity_gradient(kernels)
    _assert_gradient(convla.convolutional_similarity, gradient, kernels, degree=4)


@pytest.mark.parametrize("padding", ["full", "same", "valid", 1])
@pytest.mark.parametrize(("channels", "kernel", "image"), [(False, (3,), (7,)), (True, (2, 3), (2, 6))])
def test_the_gradients_of_the_inner_products_are_exact(
    padding: Any, channels: bool, kernel: Shape, image: Shape
) -> None:
    k1, k2, x = (_integers(shape, seed).astype(object) for seed, shape in enumerate((kernel, kernel, image)))
    maps = convla.feature_map_similarity_gradient(k1, k2, x, padding=padding, channels=channels)

    def value(a: Any, b: Any) -> Any:
        return convla.feature_map_similarity(a, b, x, padding=padding, channels=channels)

    _assert_gradient(lambda k: value(k, k2), maps[0], k1, degree=1)
    _assert_gradient(lambda k: value(k1, k), maps[1], k2, degree=1)
    kernels = convla.kernel_similarity_gradient(k1, k2)
    _assert_gradient(lambda k: convla.kernel_similarity(k, k2), kernels[0], k1, degree=1)
    _assert_gradient(lambda k: convla.kernel_similarity(k1, k), kernels[1], k2, degree=1)


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
def test_the_array_standard_is_enough(device: str) -> None:
    place = array_api_strict.Device(device)
    host = np.random.default_rng(0).uniform(-1, 1, (3, 2, 4))
    kernels = array_api_strict.asarray(host, device=place)
    x = array_api_strict.asarray(np.random.default_rng(1).uniform(0, 1, (2, 9)), device=place)
    value = convla.convolutional_similarity(kernels)
    gradient = convla.convolutional_similarity_gradient(kernels)
    similarity = convla.feature_map_similarity(kernels[0, ...], kernels[1, ...], x, padding="same", channels=True)
    assert {value.device, gradient.device, similarity.device} == {place}
    # The same operations in the same order on the same numbers.
    assert float(value) == pytest.approx(float(convla.convolutional_similarity(host)), rel=1e-15 * host.size)


@pytest.mark.command
def test_read_only_inputs_are_taken() -> None:
    kernels = np.random.default_rng(0).uniform(-1, 1, (3, 2, 4))
    kernels.setflags(write=False)
    convla.convolutional_similarity(kernels)
    convla.convolutional_similarity_gradient(kernels)
    convla.feature_map_similarity(kernels[0, 0], kernels[0, 1], kernels[0, 0], padding="full")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: convla.kernel_similarity([1, 2], [1]), ShapeError, r"k1 and k2 .* got \(2,\) and \(1,\)"),
        (lambda: convla.kernel_similarity([], []), ShapeError, "k1 must have no empty axis"),
        (lambda: convla.kernel_similarity([1j], [1j]), TypeError, "k1 must hold real numbers, got dtype complex128"),
        (lambda: convla.kernel_similarity([np.nan], [1.0]), ValueError, "k1 must be finite"),
        (lambda: convla.kernel_similarity("ab", [1]), TypeError, "k1 must hold real numbers"),
        (
            lambda: convla.feature_map_similarity([1], [1], [[1]], padding=0),
            ShapeError,
            "x must have as many axes as k1 and k2, 1",
        ),
        (
            lambda: convla.feature_map_similarity([1, 1], [1, 1], [1], padding="valid"),
            ShapeError,
            "the kernel must fit in the padded image",
        ),
        (lambda: convla.feature_map_similarity([1], [1], [1], padding="half"), ValueError, "padding must be one of"),
        (lambda: convla.feature_map_similarity([1], [1], [1], padding=-1), ValueError, "padding must be at least 0"),
        (lambda: convla.convolutional_similarity([[1.0]]), ShapeError, "kernels must have at least 3 axes"),
        (
            lambda: convla.convolutional_similarity([[[1.0]]], method="fast"),
            ValueError,
            "method must be one of .*got 'fast'",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_integers_that_could_overflow_are_refused() -> None:
    k, big = np.array([100, 100], np.int8), np.array([2**40, 2**40])
    for call in (
        lambda: convla.kernel_similarity(k, k),
        lambda: convla.kernel_similarity(big, big),
        lambda: convla.feature_map_similarity([1, 1], [1, 1], [2**31, 2**31], padding="full"),
        lambda: convla.feature_map_gram(k[None], (2,), padding="full"),
        lambda: convla.feature_map_similarity_gradient(big, big, [2**20, 1, 1], padding="valid"),
    ):
        with pytest.raises(OverflowError, match="sums of"):
            call()
    assert convla.kernel_similarity(k, np.array([1000, 1000])) == 200_000
    assert convla.kernel_similarity(k, np.array([0.5, 0.5])) == 100
    assert convla.kernel_similarity(big.astype(object), big) == 2**81


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_pairs_of_any_scale_against_exact_arithmetic(dtype: str, channels: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reach = 290 if dtype == "float64" else 36
    lead = (2,) if channels else ()
    k1, k2, x = (
        (rng.standard_normal((*lead, n)) * 10.0 ** rng.integers(-reach, reach + 1)).astype(dtype) for n in (3, 3, 8)
    )
    if seed % 3 == 0:
        k2 = k1[..., ::-1]
    exact = [exactly(array) for array in (k1, k2, x)]
    eps = np.finfo(dtype).eps

    def close(found: Any, arguments: list[Any], function: Any) -> None:
        assert found.dtype == dtype
        expected, moduli = function(*arguments), function(*(abs(a) for a in arguments))
        for f, e, m in zip(*(np.ravel(np.asarray(v, dtype=object)) for v in (found, expected, moduli)), strict=True):
            largest = Fraction(float(np.finfo(dtype).max))
            if abs(e) > largest:
                assert np.isinf(f)
                assert (f > 0) == (e > 0)
            else:
                assert abs(Fraction(float(f)) - e) <= Fraction(float(eps)) * abs(e) + Fraction(
                    float(100 * 2.0**-53)
                ) * m + Fraction(float(np.finfo(dtype).smallest_subnormal))

    close(convla.kernel_similarity(k1, k2), exact[:2], lambda a, b: (a * b).sum())
    options: dict[str, Any] = {"padding": "valid", "channels": channels}
    close(
        convla.feature_map_similarity(k1, k2, x, **options),
        exact,
        lambda *a: convla.feature_map_similarity(*a, **options),
    )
    for index in (0, 1):
        close(
            convla.feature_map_similarity_gradient(k1, k2, x, **options)[index],
            exact,
            lambda *a, index=index: convla.feature_map_similarity_gradient(*a, **options)[index],
        )
    image = x if channels else x[None]
    close(
        convla.feature_map_gram(image, (3,), padding="valid"),
        [exactly(image)],
        lambda a: convla.feature_map_gram(a, (3,), padding="valid"),
    )


def test_sums_of_float32_are_kept_in_float64() -> None:
    ones = np.concatenate([[2.0**24], np.ones(1000), [-(2.0**24)]]).astype(np.float32)
    assert convla.kernel_similarity(ones, np.ones_like(ones)) == 1000
    assert convla.feature_map_similarity(np.ones(1, np.float32), np.ones(1, np.float32), ones[1:-1], padding=0) == 1000


def test_half_precision_is_refused() -> None:
    half = np.ones(3, np.float16)
    with pytest.raises(TypeError, match="k1 must hold float32, float64, integers or exact objects, got dtype float16"):
        convla.kernel_similarity(half, half)
    with pytest.raises(TypeError, match=r"x must hold float32, .* got dtype float16"):
        convla.feature_map_gram(half[None], (2,), padding="valid")
