"""The compiled kernel adjoint: every geometry, many blocks and jobs, guarded memory, any number of threads, NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from convla import ConvGeometry, _windows
from convla._threads import at_most
from convla.engines import numba_kernel_adjoint as compiled
from convla.engines._parallel import run_jobs
from tests.geometries import conv_geometries, integers
from tests.naive import NaiveMaps
from tests.test_compiled_convolution import GUARD, SENTINEL, guarded, random_geometry

reference = _windows.correlate_kernel_adjoint.reference
DTYPES = (np.float32, np.float64)


def run_guarded(features: Any, image: Any, geometry: ConvGeometry, images: int) -> list[Any]:
    """The results alone and shared, each read surrounded by NaN and each write by sentinels."""
    plan = compiled.kernel_plan(geometry, image.dtype.itemsize, images)
    results = []
    segments = int(plan.sizes[0]["segments"])
    for shared in (False, True):
        sums, memory = guarded(np.full((segments, *geometry.kernel_shape), np.nan, image.dtype), SENTINEL)
        operands = guarded(features, np.nan)[0], guarded(image, np.nan)[0], plan.tables, plan.sizes
        run_jobs(compiled.kernel_adjoint_jobs, *operands, sums, shared=shared)
        out = np.empty(geometry.kernel_shape, image.dtype)
        compiled.add_up(sums, out.reshape(-1))
        assert (memory[:GUARD] == SENTINEL).all()
        assert (memory[-GUARD:] == SENTINEL).all()
        results.append(out)
    return results


@example(ConvGeometry((1, 1, 1), (1,), padding=((1, 0),), stride=2), 1, np.float32, 0)  # reads nothing but a zero
@given(geometry=conv_geometries(), images=st.integers(1, 5), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_every_geometry_agrees_with_the_sum_of_all_products(
    geometry: ConvGeometry, images: int, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = integers(rng, (images, *geometry.range_shape), dtype)
    image = integers(rng, (images, *geometry.domain_shape), dtype)
    wanted = NaiveMaps(geometry).kernel_adjoint(features, image)
    for got in run_guarded(features, image, geometry, images):
        np.testing.assert_array_equal(got, wanted)


def check(seed: int) -> dict[str, int]:
    """Compare one random larger geometry with the reference, exactly; return the numbers of its plan."""
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    dtype = DTYPES[seed % 2]
    images = (1, 2, 7)[seed % 3]
    batch = () if images == 1 else (images,)
    features = integers(rng, (*batch, *geometry.range_shape), dtype)
    image = integers(rng, (*batch, *geometry.domain_shape), dtype)
    wanted = reference(features, image, geometry)
    for got in run_guarded(features, image, geometry, images):
        np.testing.assert_array_equal(got, wanted, err_msg=repr(geometry))
    noise = [rng.standard_normal(array.shape).astype(dtype) for array in (features, image)]
    runs = run_guarded(*noise, geometry, images)
    for threads in (1, 2):
        with at_most(threads):
            runs.append(compiled.correlate_kernel_adjoint(*noise, geometry))
    for run in runs:
        np.testing.assert_array_equal(run, runs[0], err_msg=repr(geometry))
    sizes = compiled.kernel_plan(geometry, image.dtype.itemsize, images).sizes[0]
    return {name: int(sizes[name]) for name in sizes.dtype.names}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Blocks, chunks and parts so short that moderate geometries have many of each."""
    for name, value in {"LINE_BYTES": 512, "CHUNK_BYTES": 2048, "PART_TERMS": 4}.items():
        monkeypatch.setattr(compiled, name, value)
    compiled.kernel_plan.cache_clear()
    yield
    compiled.kernel_plan.cache_clear()


@pytest.mark.command
def test_random_larger_geometries() -> None:
    plans = [check(seed) for seed in range(40)]
    assert max(plan["segments"] for plan in plans) > 1
    assert max(plan["pieces"] for plan in plans) > 1


@pytest.mark.command
def test_random_larger_geometries_in_many_small_jobs(small_blocks: None) -> None:  # noqa: ARG001
    plans = [check(seed) for seed in range(40, 80)]
    assert max(plan["blocks"] for plan in plans) > 100
    assert max(plan["parts"] for plan in plans) > 1
    assert any(plan["chunk"] * plan["parts"] < plan["channels"] for plan in plans)


@pytest.mark.slow
def test_many_random_larger_geometries() -> None:
    for seed in range(1000, 2000):
        check(seed)


@pytest.mark.parametrize("out", range(1, 10))
@pytest.mark.parametrize("taps", range(1, 10))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_shape_of_a_tile(out: int, taps: int, dtype: type) -> None:
    rng = np.random.default_rng(out)
    geometry = ConvGeometry((out, 1, taps), (37,), padding="same")
    features, image = integers(rng, geometry.range_shape, dtype), integers(rng, geometry.domain_shape, dtype)
    for got in run_guarded(features, image, geometry, 1):
        np.testing.assert_array_equal(got, reference(features, image, geometry))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernel_shape", "image_shape", "images"), [((1, 1, 3, 3), (224, 224), 1), ((5, 4, 3, 3), (9, 9), 400)]
)
def test_long_sums_round_no_more_than_sums_in_a_row_of_blocks(
    kernel_shape: tuple[int, ...], image_shape: tuple[int, ...], images: int, dtype: type
) -> None:
    # A product is rounded at most once in its lane's sum for every later vector of the block, in each folding of the
    # lanes, and in each sum over blocks and segments.
    rng = np.random.default_rng(0)
    geometry = ConvGeometry(kernel_shape, image_shape, padding="same")
    features = rng.standard_normal((images, *geometry.range_shape)).astype(dtype)
    image = rng.standard_normal((images, *geometry.domain_shape)).astype(dtype)
    sizes = compiled.kernel_plan(geometry, image.dtype.itemsize, images).sizes[0]
    lanes = compiled.VECTOR_BYTES // image.dtype.itemsize
    roundings = (
        int(sizes["line"]) // lanes + 6 + int(sizes["blocks"]) // int(sizes["segments"]) + int(sizes["segments"])
    )
    unit = np.finfo(dtype).eps / 2
    exact = np.longdouble
    wanted = reference(features.astype(exact), image.astype(exact), geometry)
    magnitude = reference(abs(features).astype(exact), abs(image).astype(exact), geometry)
    error = abs(compiled.correlate_kernel_adjoint(features, image, geometry) - wanted)
    assert (error <= roundings * unit / (1 - roundings * unit) * magnitude).all()
    assert roundings < images * np.prod(geometry.output_shape) / 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_batch_gives_zeros(dtype: type) -> None:
    geometry = ConvGeometry((2, 3, 3, 3), (5, 5), padding="same")
    got = compiled.correlate_kernel_adjoint(
        np.ones((4, 0, *geometry.range_shape), dtype), np.ones((4, 0, *geometry.domain_shape), dtype), geometry
    )
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.zeros(geometry.kernel_shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("boundary", ["zero", "reflect"])
def test_no_invalid_value_is_lost_and_none_leaves_its_channels(bad: float, boundary: str) -> None:
    rng = np.random.default_rng(4)
    geometry = ConvGeometry((6, 2, 3, 3), (7, 8), padding=((0, 1), (2, 0)), groups=2, boundary=boundary)
    clean = [rng.standard_normal((3, *shape)) for shape in (geometry.range_shape, geometry.domain_shape)]
    finite = reference(*clean, geometry)
    for which, channel, entries in ((0, 4, np.s_[4]), (1, 3, np.s_[3:, 1])):
        features, image = (array.copy() for array in clean)
        (features, image)[which][1, channel, 2, 5] = bad
        with np.errstate(invalid="ignore"):
            wanted = reference(features, image, geometry)
        got = compiled.correlate_kernel_adjoint(features, image, geometry)
        assert not np.isfinite(got[~np.isfinite(wanted)]).any()
        touched = np.zeros(geometry.kernel_shape, bool)
        touched[entries] = True
        np.testing.assert_allclose(got[~touched], finite[~touched], rtol=0, atol=1e-13)


def test_far_reaching_taps_are_not_copied_over_and_over() -> None:
    for kernel_shape, image_shape, dilation in (((4, 4, 3, 3, 3), (4, 512, 512), 1), ((1, 64, 3, 3), (224, 224), 16)):
        geometry = ConvGeometry(kernel_shape, image_shape, padding="same", dilation=dilation)
        sizes = compiled.kernel_plan(geometry, 4, 1).sizes[0]
        assert int(sizes["blocks"]) * int(sizes["window"]) < 3 * (sizes["total"] + sizes["window"])
