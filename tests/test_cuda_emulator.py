"""The processors that run CUDA sources on the CPU notice what a device would pass over in silence."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convla._cuda import blocks_for, chunks, kernel_options

REVERSE = """
extern "C" __global__ void reverse(const double *a, double *b, long long n) {
    __shared__ double shared[8];
    shared[threadIdx.x] = a[blockIdx.x * 8 + threadIdx.x];
    BARRIER
    if (blockIdx.x * 8 + threadIdx.x < n) b[blockIdx.x * 8 + threadIdx.x] = shared[7 - threadIdx.x];
}
"""


def run(cupy: ModuleType, source: str, *arguments: Any, blocks: int = 2, threads: int = 8, **macros: object) -> None:
    name = source.partition("void ")[2].partition("(")[0]
    cupy.RawKernel(source, name, options=kernel_options(**macros))((blocks,), (threads,), arguments)


def test_barriers_and_shared_memory(cupy: ModuleType) -> None:
    a, b = cupy.asarray(np.arange(16.0)), cupy.zeros(16)
    run(cupy, REVERSE, a, b, np.int64(16), BARRIER="__syncthreads();")
    assert b.get().tolist() == [*range(7, -1, -1), *range(15, 7, -1)]


def test_a_missing_barrier_shows(cupy: ModuleType) -> None:
    b = cupy.zeros(16)
    run(cupy, REVERSE, cupy.asarray(np.arange(16.0)), b, np.int64(16), BARRIER="")
    assert np.isnan(b.get()).any()


def test_threads_that_miss_a_barrier(cupy: ModuleType) -> None:
    with pytest.raises(AssertionError, match="some threads of a block wait at a barrier"):
        run(cupy, REVERSE, cupy.zeros(16), cupy.zeros(16), np.int64(16), BARRIER="if (threadIdx.x) __syncthreads();")


@pytest.mark.parametrize("sizes", [(16, 12), (12, 16)])
def test_entries_beyond_an_array(sizes: tuple[int, int], cupy: ModuleType) -> None:
    barrier = {"BARRIER": "__syncthreads();"}
    with pytest.raises(AssertionError, match="reverse: an entry beyond the end of an array was read or written"):
        run(cupy, REVERSE, *map(cupy.zeros, sizes), np.int64(16), **barrier)
    b = cupy.zeros(16)
    run(cupy, REVERSE, cupy.asarray(np.arange(16.0)), b, np.int64(16), **barrier)  # nothing is left of the failure
    assert b.get()[:3].tolist() == [7, 6, 5]


@pytest.mark.command
@pytest.mark.parametrize(
    "what",
    [
        "__shared__ double shared[8]; shared[n + 2] = 1.0; b[0] = shared[0];",
        "double local[4] = {0}; b[0] = local[n];",
        "b[0] = (double)(7 / (6 - n));",
    ],
)
def test_what_has_no_meaning(what: str, cupy: ModuleType) -> None:
    source = """extern "C" __global__ void odd(double *b, int n) { WHAT }"""
    b = cupy.zeros(1)
    for n in (6, 0):
        given = source.replace("WHAT", what)
        if n:
            with pytest.raises(AssertionError, match="odd: an operation without a meaning"):
                run(cupy, given, b, np.int32(n), blocks=1, threads=1)
        else:
            run(cupy, given, b, np.int32(n), blocks=1, threads=1)


@pytest.mark.command
def test_entries_before_an_array(cupy: ModuleType) -> None:
    source = 'extern "C" __global__ void before(double *a, const double *b, double *c) { WHAT }'
    a, b, c = cupy.zeros(4), cupy.zeros(4), cupy.zeros(1)
    with pytest.raises(AssertionError, match="before wrote before the beginning of an array"):
        run(cupy, source, a, b, c, blocks=1, threads=1, WHAT="a[-1] = b[0]; c[0] = 0;")
    run(cupy, source, a, b, c, blocks=1, threads=1, WHAT="c[0] = a[0] + b[-1];")
    assert np.isnan(float(c[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(16), np.zeros(16, np.float32), np.int64(16)), "argument 1 is float32, and declared float64"),
        ((np.zeros(16), np.zeros(16), np.int32(16)), "argument 2 is int32, and declared int64"),
        ((np.zeros(16), np.zeros((16, 2))[:, 0], np.int64(16)), "argument 1 is not contiguous"),
        ((np.zeros(16), np.zeros(16), 16), "16 has no dtype"),
        ((np.zeros(16), np.zeros(16)), "takes 3 arguments"),
    ],
)
def test_arguments_that_are_not_what_is_declared(cupy: ModuleType, arguments: Any, message: str) -> None:
    given = [cupy.asarray(value) if isinstance(value, np.ndarray) else value for value in arguments]
    if "contiguous" in message:
        given[1] = cupy.zeros((16, 2))[:, 0]
    with pytest.raises(AssertionError, match=message):
        run(cupy, REVERSE, *given, BARRIER="__syncthreads();")


def test_the_stand_in_is_as_strict_as_the_library(cupy: ModuleType) -> None:
    a = cupy.asarray(np.arange(3.0))
    for wrong in (lambda: a + np.ones(3), lambda: np.asarray(a), lambda: cupy.sum(np.ones(3))):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError):
        cupy.zeros(3, device=cupy.cuda.Device(0))
    with cupy.cuda.Device(1), pytest.raises(ValueError, match="an array of device 0, and the current device is 1"):
        a + 1


def test_grids_and_chunks_cover_everything_once() -> None:
    assert [blocks_for(count, 4) for count in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    for count, each, room in ((7, 3, 7), (7, 3, 2), (5, 1, 100), (0, 4, 8), (3, 0, 8)):
        parts = list(chunks(count, each, room))
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
        assert all((part.stop - part.start) * each <= room or part.stop - part.start == 1 for part in parts)
