"""The sources of the CUDA kernels, compiled for devices by the compiler that a device would use."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convla
from convla._cuda import C_TYPES, kernel_options, source_text
from convla._dispatch import KERNELS
from convla.engines import _cuda_plans, cupy_filters, cupy_gradients
from convla.errors import install_line
from convla.experiments.descents import pairs  # noqa: F401 - adds its operation
from tests.cuda import nvrtc

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLOATS = ("float32", "float64")
INTEGERS = tuple(dtype for dtype in C_TYPES if dtype not in FLOATS)
ADDED = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to the options of every kernel."""


def _of_floats(source: str) -> list[dict[str, Any]]:
    """Return all builds for floats, those for different dtypes in turn, and one that counts with 64 bits."""
    parts = [_cuda_plans.builds(dtype)[source] for dtype in FLOATS]
    found = [build for pair in itertools.zip_longest(*parts) for build in pair if build]
    return [*found, found[0] | {"COUNT": "long long"}]


BUILDS: dict[str, list[dict[str, Any]]] = {
    _cuda_plans.SUMS: [
        *_of_floats(_cuda_plans.SUMS),
        *(_cuda_plans.builds(dtype)[_cuda_plans.SUMS][0] for dtype in INTEGERS),
    ],
    _cuda_plans.PRODUCTS: _of_floats(_cuda_plans.PRODUCTS),
    "convla.engines:filters": [
        cupy_filters.macros(np.empty((1, 1, taps), dtype))
        for taps, dtype in ((3, "float32"), (99, "float64"), (999, "int64"))
    ],
    "convla.engines:lines": [cupy_gradients.macros(np.empty(1, dtype)) for dtype in FLOATS],
    "convla.experiments.descents:pairs": [{"fused": False, "TAPS": taps} for taps in (3, 9)],
}
"""Each source with the macros of its builds."""


def cases() -> list[object]:
    found = []
    for source, builds in BUILDS.items():
        for at, macros in enumerate(builds):
            for place, architecture in enumerate(ARCHITECTURES):
                # Each source for each of the devices; all of its builds for all of them in the slow tests.
                quick = at < 3 and (place == at or (at == 0 and place >= len(builds)))
                marks = [] if quick else [pytest.mark.slow]
                found.append(pytest.param(source, macros, architecture, marks=marks))
    return found


def test_every_source_is_here() -> None:
    root = Path(convla.__file__).parent
    found = {".".join(path.relative_to(root.parent).parts[:-1]) + f":{path.stem}" for path in root.rglob("*.cu")}
    assert found == set(BUILDS)


@pytest.mark.command
@pytest.mark.parametrize(("source", "macros", "architecture"), cases())
def test_sources_compile_without_a_complaint(source: str, macros: dict[str, Any], architecture: str) -> None:
    if nvrtc.library() is None:
        required = os.environ.get("CONVLA_REQUIRE_NVRTC") == "1"
        (pytest.fail if required else pytest.skip)(f"no NVRTC: {install_line('test-cuda')}")
    assert nvrtc.compile_source(source_text(source), (*kernel_options(**macros), *ADDED), architecture) == ""


def test_the_compiler_is_one_that_complains() -> None:
    if nvrtc.library() is None:
        pytest.skip(f"no NVRTC: {install_line('test-cuda')}")
    complaint = nvrtc.compile_source('extern "C" __global__ void f(int *a) { a[0] = b; }', kernel_options(), "sm_90")
    assert 'identifier "b" is undefined' in complaint


@pytest.mark.parametrize("source", BUILDS)
def test_shared_memory_fits_every_device(source: str) -> None:
    # 48 KiB of a block's static shared memory is what every device has; the widest entries have 8 bytes.
    # Tiles of vectors say so themselves, by an assertion.
    for kernel in re.split(r"__global__", source_text(source))[1:]:
        sizes = re.findall(r"__shared__ (?!Vector)\w+ \w+((?:\[\w+\])+);", kernel)
        for macros in BUILDS[source]:
            count = sum(np.prod([int(str(macros[name])) for name in re.findall(r"\w+", dims)]) for dims in sizes)
            assert 8 * count <= 48 * 1024


def test_the_table_of_the_page_is_that_of_the_registry() -> None:
    operations = sorted({operation for operation, _ in KERNELS})
    rows = [
        f"| `{operation}` | {places[0]} | {places[1]} |"
        for operation in operations
        for places in [
            [
                f"`{KERNELS[operation, engine].partition(':')[0]}`"
                if (operation, engine) in KERNELS
                else "the reference"
                for engine in ("numba", "cuda")
            ]
        ]
    ]
    page = (Path(__file__).parents[1] / "docs" / "performance-gpu.md").read_text(encoding="utf-8")
    assert "\n".join(['| operation | "numba" | "cuda" |', "|---|---|---|", *rows, ""]) in page
