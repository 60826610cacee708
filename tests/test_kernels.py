"""Every entry of the table of faster kernels against its reference."""

import array_api_strict
import numpy as np
import pytest

from convla._array import to_numpy
from convla._dispatch import ENGINES, KERNELS, EngineEntry
from convla.errors import EngineError
from tests.kernel_examples import ARRAYS, EXAMPLES


def entries():
    for operation, engine in sorted(KERNELS):
        marks = [pytest.mark.gpu] if engine == "cuda" else []
        yield pytest.param(operation, engine, id=f"{operation}-{engine}", marks=marks)


@pytest.mark.parametrize(("operation", "engine"), list(entries()))
def test_every_kernel_agrees_with_its_reference(operation, engine):
    assert operation in EXAMPLES, f"tests/kernel_examples.py has no example arguments for {operation!r}"
    run = EXAMPLES[operation].operation
    count = 0
    for arguments, keywords in EXAMPLES[operation].arguments():
        give = ARRAYS.get(engine, lambda array: array)
        given = [give(value) if isinstance(value, np.ndarray) else value for value in arguments]
        got, expected = run(*given, engine=engine, **keywords), run.reference(*arguments, **keywords)
        for value, wanted in zip(as_tuple(got), as_tuple(expected), strict=True):
            value = to_numpy(value)
            assert value.dtype == wanted.dtype
            if not ENGINES[engine].direct:
                # Cauchy and Schwarz bound every entry; a transform in float64 of so few entries has a small factor.
                size = np.prod([np.linalg.norm(a) for a in arguments if isinstance(a, np.ndarray)])
                bound = 20 * np.finfo(np.float64).eps * size
                assert bound < 1e-10 * np.abs(wanted).max()
                np.testing.assert_allclose(value, wanted, rtol=0, atol=bound)
            elif epsilons := EXAMPLES[operation].epsilons:
                bound = epsilons * np.finfo(wanted.dtype).eps * np.abs(wanted).max()
                np.testing.assert_allclose(value, wanted, rtol=0, atol=bound)
            else:
                np.testing.assert_array_equal(value, wanted)
        count += 1
    assert count > 0


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def strict_reweighted(blocks, lam):
    return EXAMPLES["reweighted_gradient"].operation.reference(blocks, lam)


def strict_and_wrong(blocks, lam, blend):
    return blocks * lam * blend


def test_the_kernels_of_a_new_engine_are_compared_on_its_own_arrays(monkeypatch):
    monkeypatch.setitem(ENGINES, "strict", EngineEntry(is_strict, "arrays of array_api_strict"))
    monkeypatch.setitem(ARRAYS, "strict", array_api_strict.asarray)
    monkeypatch.setitem(KERNELS, ("reweighted_gradient", "strict"), f"{__name__}:strict_reweighted")
    monkeypatch.setitem(KERNELS, ("sobolev_gradient", "strict"), f"{__name__}:strict_and_wrong")
    assert {("reweighted_gradient", "strict"), ("sobolev_gradient", "strict")} <= {entry.values for entry in entries()}
    test_every_kernel_agrees_with_its_reference("reweighted_gradient", "strict")
    with pytest.raises(AssertionError):
        test_every_kernel_agrees_with_its_reference("sobolev_gradient", "strict")
    monkeypatch.delitem(ARRAYS, "strict")
    with pytest.raises(EngineError, match="'strict' takes arrays of array_api_strict, got numpy"):
        test_every_kernel_agrees_with_its_reference("reweighted_gradient", "strict")


def is_strict(array):
    return type(array).__module__.startswith("array_api_strict")


@pytest.mark.parametrize("operation", ["correlate", "correlate_image_adjoint", "correlate_kernel_adjoint"])
def test_the_compiled_kernels_refuse_what_they_cannot_do(operation):
    for (image, kernel, geometry), _ in EXAMPLES[operation].arguments():
        with pytest.raises(EngineError, match="float32 or float64, got numpy"):
            EXAMPLES[operation].operation(image.astype(int), kernel.astype(int), geometry, engine="numba")
        break
