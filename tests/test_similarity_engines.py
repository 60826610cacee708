"""The compiled kernels of convolutional similarity against their references, on one list of example inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convla._dispatch import KERNELS, load_kernel
from convla.autocorrelation import BATCH_NUMBERS, correlate_lags, filter_batches, summed_autocorrelations

OPERATIONS = {"summed_autocorrelations": summed_autocorrelations, "correlate_lags": correlate_lags}
SHAPES = [
    (4, 3, 5),
    (3, 2, 1),
    (4, 3, 3, 3),
    (3, 2, 2, 4),
    (5, 4, 1, 1),
    (1, 1, 7, 7),
    (3, 2, 2, 3, 2),
    (40, 33, 3, 3),
    (130, 101, 3, 3),
]


def examples(operation: str, shape: tuple[int, ...], dtype: str) -> tuple[Any, ...]:
    """Return arguments for an operation: kernels, and for its partner weights that are even in the lag."""
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal(shape).astype(dtype)
    if operation == "summed_autocorrelations":
        return (kernels,)
    lags = rng.standard_normal((shape[0], int(np.prod([2 * k - 1 for k in shape[2:]]))))
    return kernels, lags + lags[:, ::-1]


def assert_close(got: Any, operation: str, arguments: tuple[Any, ...]) -> None:
    reference = OPERATIONS[operation].reference
    expected = reference(*arguments)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    # Both sums are within terms * u of the exact one, relative to the sum of the moduli, and rounded once more.
    moduli = reference(*(np.abs(argument).astype(np.float64) for argument in arguments))
    terms = int(np.prod(arguments[0].shape[1:])) + 2
    unit = 2 * terms * 2.0**-53 + float(np.finfo(expected.dtype).eps)
    assert np.all(np.abs(got - expected) <= unit * moduli)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", OPERATIONS)
class TestKernels:
    def test_numba(self, operation: str, shape: tuple[int, ...], dtype: str) -> None:
        arguments = examples(operation, shape, dtype)
        assert_close(load_kernel(operation, "numba")(*arguments), operation, arguments)

    @pytest.mark.gpu
    def test_cuda(self, operation: str, shape: tuple[int, ...], dtype: str) -> None:
        import cupy

        arguments = examples(operation, shape, dtype)
        device = tuple(cupy.asarray(array) for array in arguments)
        assert_close(load_kernel(operation, "cuda")(*device).get(), operation, arguments)

    def test_cuda_on_the_cpu(self, operation: str, shape: tuple[int, ...], dtype: str, cupy: Any) -> None:
        arguments = examples(operation, shape, dtype)
        device = tuple(cupy.asarray(array) for array in arguments)
        assert_close(load_kernel(operation, "cuda")(*device).get(), operation, arguments)


def test_both_operations_have_both_kernels() -> None:
    for operation in OPERATIONS:
        assert {engine for name, engine in KERNELS if name == operation} == {"numba", "cuda"}


@pytest.mark.parametrize("shape", [(512, 512, 3, 3), (7, 2, 3), (3, 4096, 31, 31)])
def test_batches_cover_all_filters_and_stay_small(shape: tuple[int, ...]) -> None:
    batches = filter_batches(shape)
    assert [i for batch in batches for i in range(batch.start, batch.stop)] == list(range(shape[0]))
    numbers = int(np.prod(shape[1:]))
    assert all((batch.stop - batch.start) * numbers <= max(BATCH_NUMBERS, numbers) for batch in batches)


def test_extra_memory_of_the_compiled_kernels() -> None:
    import tracemalloc

    from convla import convolutional_similarity_and_gradient

    kernels = np.random.default_rng(0).standard_normal((256, 256, 3, 3)).astype(np.float32)
    convolutional_similarity_and_gradient(kernels, engine="numba")
    tracemalloc.start()
    convolutional_similarity_and_gradient(kernels, engine="numba")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The gradient is once the kernels; signatures and rows of one filter per thread are the rest.
    assert peak <= 2 * kernels.nbytes
