"""The compiled convolution on random larger geometries: many blocks, both drivers, tile boundaries, guarded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convla import ConvGeometry, _windows
from convla._threads import at_most
from convla.engines import numba_conv
from convla.engines._parallel import run_jobs
from convla.errors import ShapeError
from convla.geometry import BOUNDARIES
from tests.geometries import integers

GUARD = 4096
SENTINEL = 12345.0


def random_geometry(rng: np.random.Generator) -> ConvGeometry:
    """Of up to some 1e5 positions, so that an image is many blocks, and of every number of rows that a tile has."""
    while True:
        ndim = int(rng.integers(1, 4))
        groups = int(rng.choice([1, 1, 2, 3]))
        image = tuple(int(rng.integers(1, {1: 30_000, 2: 200, 3: 28}[ndim])) for _ in range(ndim))
        kernel = tuple(int(rng.integers(1, 5)) for _ in range(ndim))
        dilation = tuple(int(rng.choice([1, 1, 2, 3, 8])) for _ in range(ndim))
        try:
            geometry = ConvGeometry(
                (groups * int(rng.integers(1, 18)), int(rng.integers(1, 7)), *kernel),
                image,
                padding=tuple((int(rng.integers(0, 6)), int(rng.integers(0, 6))) for _ in range(ndim)),
                stride=tuple(int(rng.choice([1, 1, 2, 3])) for _ in range(ndim)),
                dilation=dilation,
                groups=groups,
                boundary=str(rng.choice(BOUNDARIES)),
            )
        except ShapeError:
            continue
        if np.prod(geometry.range_shape) * np.prod(geometry.kernel_shape[1:]) < 2e7:
            return geometry


def guarded(array: Any, guard: float) -> tuple[Any, Any]:
    """A copy of an array amid a margin of `guard`, and the whole of the memory."""
    memory = np.full(array.size + 2 * GUARD, guard, array.dtype)
    inside = memory[GUARD:-GUARD]
    inside[:] = array.reshape(-1)
    return inside, memory


def run_guarded(plan: Any, image: Any, kernel: Any, batch: tuple[int, ...]) -> Any:
    """As `numba_conv._run`, alone and shared, each read surrounded by NaN and each write by sentinels."""
    results = []
    packed = numba_conv._pack(guarded(kernel, np.nan)[0], plan)
    assert np.isfinite(packed).all()
    for shared in (False, True):
        out, memory = guarded(np.full((*batch, *plan.out_shape), np.nan, image.dtype), SENTINEL)
        operands = guarded(image, np.nan)[0], guarded(packed, np.nan)[0], plan.tables, plan.sizes
        run_jobs(numba_conv.correlate_jobs, *operands, out, shared=shared)
        assert (memory[:GUARD] == SENTINEL).all()
        assert (memory[-GUARD:] == SENTINEL).all()
        results.append(out.reshape(*batch, *plan.out_shape))
    np.testing.assert_array_equal(results[0], results[1])
    return results[1]


def check(seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Compare one random geometry with the reference, exactly; return the number of its blocks."""
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    dtype = [np.float32, np.float64][seed % 2]
    batch = [(), (1,), (2,), (5, 3)][seed % 4]
    kernel = integers(rng, geometry.kernel_shape, dtype)
    for name, shape in (("correlate", geometry.domain_shape), ("correlate_image_adjoint", geometry.range_shape)):
        compiled, operation = getattr(numba_conv, name), getattr(_windows, name)
        signal = integers(rng, (*batch, *shape), dtype)
        floats = rng.standard_normal(signal.shape).astype(dtype)
        weights = rng.standard_normal(kernel.shape).astype(dtype)
        expected = operation.reference(signal, kernel, geometry)
        runs = []
        with monkeypatch.context() as patch:
            patch.setattr(numba_conv, "_run", run_guarded)
            np.testing.assert_array_equal(compiled(signal, kernel, geometry), expected, err_msg=repr(geometry))
        for threads in (1, 2):
            with at_most(threads):
                runs.append(compiled(floats, weights, geometry))
        prepared = numba_conv.PreparedKernel(weights, geometry)
        runs += [compiled(floats, prepared, geometry) for _ in range(2)]
        runs.append(np.reshape([compiled(one, weights, geometry) for one in floats.reshape(-1, *shape)], runs[0].shape))
        for run in runs:
            np.testing.assert_array_equal(run, runs[0], err_msg=repr(geometry))
    return int(numba_conv._forward_plan(geometry, kernel.itemsize, 1).sizes[0]["blocks"])


@pytest.mark.command
def test_random_larger_geometries(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [check(seed, monkeypatch) for seed in range(25)]
    assert max(blocks) > 10
    assert min(blocks) == 1


@pytest.mark.slow
def test_many_random_larger_geometries(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1000, 2000):
        check(seed, monkeypatch)


@pytest.mark.parametrize(
    ("kernel_shape", "image_shape", "dilation"),
    [((4, 4, 3, 3, 3), (4, 512, 512), 1), ((1, 64, 3, 3), (224, 224), 16), ((64, 1, 3, 3), (224, 224), 16)],
)
def test_taps_that_reach_far_are_not_copied_over_and_over(
    kernel_shape: tuple[int, ...], image_shape: tuple[int, ...], dilation: int
) -> None:
    geometry = ConvGeometry(kernel_shape, image_shape, padding="same", dilation=dilation)
    forward = numba_conv._forward_plan(geometry, 4, 1)
    _, phases = numba_conv._adjoint_plans(geometry, 4, 1)
    for plan in (forward, *(phase.plan for phase in phases)):
        assert plan is not None
        sizes = plan.sizes[0]
        copied = int(sizes["blocks"]) * int(sizes["window"])
        assert copied < 3 * (sizes["total"] + sizes["window"])
