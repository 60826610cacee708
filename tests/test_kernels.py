"""Every entry of the table of faster kernels against its reference."""

import numpy as np
import pytest

from convla._array import to_numpy
from convla._dispatch import ENGINES, KERNELS, load_kernel
from convla.errors import EngineError
from tests.kernel_examples import EXAMPLES


def entries():
    for operation, engine in sorted(KERNELS):
        marks = [pytest.mark.gpu] if engine == "cuda" else []
        yield pytest.param(operation, engine, id=f"{operation}-{engine}", marks=marks)


@pytest.mark.parametrize(("operation", "engine"), list(entries()))
def test_every_kernel_agrees_with_its_reference(operation, engine):
    assert operation in EXAMPLES, f"tests/kernel_examples.py has no example arguments for {operation!r}"
    reference = EXAMPLES[operation].operation.reference
    kernel = load_kernel(operation, engine)
    count = 0
    for arguments, keywords in EXAMPLES[operation].arguments():
        given = [to_device(value, engine) for value in arguments]
        got, expected = kernel(*given, **keywords), reference(*arguments, **keywords)
        for value, wanted in zip(as_tuple(got), as_tuple(expected), strict=True):
            value = to_numpy(value)
            assert value.dtype == wanted.dtype
            if not ENGINES[engine].direct:
                # Cauchy and Schwarz bound every entry; a transform in float64 of so few entries has a small factor.
                size = np.prod([np.linalg.norm(a) for a in arguments if isinstance(a, np.ndarray)])
                bound = 20 * np.finfo(np.float64).eps * size
                assert bound < 1e-9
                np.testing.assert_allclose(value, wanted, rtol=0, atol=bound)
            elif epsilons := EXAMPLES[operation].epsilons:
                bound = epsilons * np.finfo(wanted.dtype).eps * np.abs(wanted).max()
                np.testing.assert_allclose(value, wanted, rtol=0, atol=bound)
            else:
                np.testing.assert_array_equal(value, wanted)
        count += 1
    assert count > 0


def to_device(value, engine):
    if engine == "cuda" and isinstance(value, np.ndarray):
        import cupy

        return cupy.asarray(value)
    return value


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("operation", ["correlate", "correlate_image_adjoint", "correlate_kernel_adjoint"])
def test_the_compiled_kernels_refuse_what_they_cannot_do(operation):
    for (image, kernel, geometry), _ in EXAMPLES[operation].arguments():
        with pytest.raises(EngineError, match="float32 or float64, got numpy"):
            EXAMPLES[operation].operation(image.astype(int), kernel.astype(int), geometry, engine="numba")
        break
