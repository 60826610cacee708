"""Every CUDA kernel's source run on the CPU, called through the public dispatch with arrays of a stand-in for CuPy."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convla import (
    ConvOperator,
    _windows,
    convolutional_similarity_and_gradient,
    initialize_network,
    laplacian_smoothing,
    largest_singular_value,
    network_similarity,
    orthonormal,
    orthonormalize,
    orthonormalize_layers,
    reweighted_gradient,
    singular_value_bounds,
    smallest_singular_value,
    sobolev_gradient,
)
from convla._array import is_cupy, to_numpy
from convla._cuda import WORKSPACE, cuda_trouble
from convla._dispatch import KERNELS
from convla.engines import cupy_convolution, cupy_filters, cupy_gradients
from convla.errors import EngineError, ShapeError, install_line
from convla.experiments.csm.settings import Readings, table_settings
from convla.experiments.descents import pairs_cuda
from convla.experiments.descents.outcome import run_setting
from convla.experiments.descents.pairs import LOSSES, OPTIMIZERS, SIMILARITIES
from convla.geometry import ConvGeometry
from tests.cuda.stand_in import COUNTS
from tests.geometries import integers, name_of, product
from tests.kernel_examples import EXAMPLES

OPERATIONS = sorted(operation for operation, engine in KERNELS if engine == "cuda")


def _no_driver() -> int:
    raise RuntimeError("cudaErrorInsufficientDriver")


def on_device(cupy: ModuleType, value: Any) -> Any:
    return cupy.asarray(value) if isinstance(value, np.ndarray) else value


def assert_agrees(got: Any, wanted: Any, epsilons: int) -> None:
    assert is_cupy(got)
    got = to_numpy(got)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    bound = epsilons * np.finfo(wanted.dtype).eps * np.abs(wanted).max() if epsilons else 0.0
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_kernel_agrees_with_its_reference(
    operation: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cupy_convolution, "_THREADS", 32)  # more blocks, and quicker on one processor
    examples = EXAMPLES[operation]
    for arguments, keywords in examples.arguments():
        expected = examples.operation.reference(*arguments, **keywords)
        given = [on_device(cupy, value) for value in arguments]
        before = [to_numpy(value) if is_cupy(value) else value for value in given]
        got = examples.operation(*given, engine="cuda", **keywords)
        parts = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        for value, wanted in parts:
            assert_agrees(value, wanted, examples.epsilons)
        for value, old in zip(given, before, strict=True):
            if is_cupy(value):
                np.testing.assert_array_equal(to_numpy(value), old)  # inputs stay as they are
    assert COUNTS["launches"] > 0


def of_map(geometry: ConvGeometry, dtype: Any, images: tuple[int, ...] = (2,)) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    shapes = {"image": geometry.domain_shape, "features": geometry.range_shape}
    arrays = {name: integers(rng, (*images, *shape), dtype) for name, shape in shapes.items()}
    return {**arrays, "kernel": integers(rng, geometry.kernel_shape, dtype)}


MAPS = (
    (_windows.correlate, ("image", "kernel")),
    (_windows.correlate_image_adjoint, ("features", "kernel")),
    (_windows.correlate_kernel_adjoint, ("features", "image")),
)


@pytest.mark.parametrize("geometry", product(seed=5, every=41), ids=name_of)
def test_products_of_matrices(geometry: ConvGeometry, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "FEW_CHANNELS", 0)
    arrays = of_map(geometry, np.float64)
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        for room in (2**28, 3000, 1):
            monkeypatch.setattr(cupy_convolution, "WORKSPACE", room)
            got = operation(*(cupy.asarray(array) for array in given), geometry, engine="cuda")
            assert_agrees(got, operation.reference(*given, geometry), 0)
    assert COUNTS["launches"] == 0


@pytest.mark.parametrize("more", [0, 500])
@pytest.mark.parametrize("room", [2**28, 40000, 9000, 1])
def test_pieces_cover_all_and_fit_in_the_workspace(room: int, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "WORKSPACE", room)
    geometry = ConvGeometry((4, 3, 3, 2), (9, 8), padding="full", stride=(2, 1))
    covered = np.zeros((7, geometry.output_shape[0]), int)
    for some, parts in cupy_convolution._pieces(np.empty((7, 1), np.float32), geometry, more):
        for rows in parts:
            covered[some, rows] += 1
            count, height = some.stop - some.start, rows.stop - rows.start
            windows = 18 * height * geometry.output_shape[1]  # of 3 channels and 3x2 taps
            taken = 4 * count * (2 * 3 * 13 * 10 + windows + 4 * height * geometry.output_shape[1] + more)
            assert taken <= room or (count, height) == (1, 1)
    assert np.all(covered == 1)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_direct_sums_with_the_threads_of_a_device(dtype: Any, cupy: ModuleType) -> None:
    geometry = ConvGeometry((6, 2, 3, 2), (13, 14), padding="same", groups=2, stride=(1, 2), boundary="reflect")
    arrays = of_map(geometry, dtype, images=(2, 3))
    if dtype == np.int8:
        arrays = {name: array // 9 for name, array in arrays.items()}  # sums that fit
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        got = operation(*(cupy.asarray(array) for array in given), geometry)  # "auto" takes it
        assert_agrees(got, operation.reference(*given, geometry), 0)
        assert COUNTS[operation.operation] == 1
    assert COUNTS["waits"] == 3  # for what this test reads


def test_images_beyond_one_grid(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "_THREADS", 32)
    monkeypatch.setattr(cupy_convolution, "LARGEST_GRID", 70)
    geometry = ConvGeometry((10, 1, 3), (100,), padding="same", groups=1)
    arrays = of_map(geometry, np.float64, images=(5, 2))
    operation, names = MAPS[0]
    given = [arrays[name] for name in names]
    got = operation(*(cupy.asarray(array) for array in given), geometry)
    assert_agrees(got, operation.reference(*given, geometry), 0)
    assert COUNTS["correlate"] == 2  # 12 blocks an image, 5 images at a time


def test_long_tables_are_left_to_products(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "_LARGEST_TABLE", 50)
    geometry = ConvGeometry((2, 1, 3), (20,), padding="same")
    arrays = of_map(geometry, np.float64)
    for operation, names in MAPS:
        given = [arrays[name] for name in names]
        got = operation(*(cupy.asarray(array) for array in given), geometry)
        assert_agrees(got, operation.reference(*given, geometry), 0)
    assert COUNTS["launches"] == 0


@pytest.mark.parametrize("size", [2**31 - 2**7, 2**31 - 1])
def test_positions_that_the_last_block_would_count_beyond_32_bits(size: int) -> None:
    small = np.empty(0, np.float32)
    assert not cupy_convolution._sums_directly(small, ConvGeometry((1, 1, 1), (size,), padding="valid", stride=2**30))
    assert not cupy_convolution._sums_directly(small, ConvGeometry((size, 1, 1), (1,), padding="valid", groups=size))


@pytest.mark.parametrize("stride", [1, 3000])
def test_tables_that_are_kept_are_no_longer_than_said(stride: int) -> None:
    # A long signal has as many first entries as pixels, however few of them are read.
    geometry = ConvGeometry((1, 1, 3), (10**5,), padding="valid", stride=stride)
    tables = [make(geometry).size for make in (cupy_convolution.reads, cupy_convolution.readers)]
    counted = 10**5 + 2 * 3 * geometry.output_shape[0]
    assert counted < max(tables) <= counted + 100
    assert cupy_convolution._sums_directly(np.empty(0, np.float32), geometry)
    far = ConvGeometry((1, 1, 3), (2**21,), padding="valid", stride=stride)
    assert not cupy_convolution._sums_directly(np.empty(0, np.float32), far)


def test_the_image_adjoint_extends_a_few_images_at_a_time(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "FEW_CHANNELS", 0)
    monkeypatch.setattr(cupy_convolution, "WORKSPACE", 4 * 8 * (2 * 2 * 14 + (2 * 5 + 3) * 10))  # four images
    seen: list[int] = []
    run = cupy_convolution.fold
    monkeypatch.setattr(cupy_convolution, "fold", lambda array, *rest: seen.append(array.shape[0]) or run(array, *rest))
    geometry = ConvGeometry((3, 2, 5), (10,), padding="same", boundary="circular")
    arrays = of_map(geometry, np.float64, images=(3, 3))
    operation, names = MAPS[1]
    given = [arrays[name] for name in names]
    got = operation(*(cupy.asarray(array) for array in given), geometry)
    assert_agrees(got, operation.reference(*given, geometry), 0)
    assert seen == [4, 4, 1]


def test_integers_of_many_channels_are_summed_directly(cupy: ModuleType) -> None:
    geometry = ConvGeometry((40, 40, 1), (3,), padding="valid")
    arrays = of_map(geometry, np.int64)
    got = _windows.correlate(cupy.asarray(arrays["image"] * 2**40), cupy.asarray(arrays["kernel"]), geometry)
    assert_agrees(got, _windows.correlate.reference(arrays["image"] * 2**40, arrays["kernel"], geometry), 0)


def test_a_sum_in_several_splits(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_convolution, "_LEAST_TERMS", 100)
    monkeypatch.setattr(cupy_convolution, "_THREADS", 32)
    geometry = ConvGeometry((2, 1, 2, 2), (9, 10), padding="full")
    arrays = of_map(geometry, np.float64, images=(7,))
    given = (arrays["features"], arrays["image"])
    got = _windows.correlate_kernel_adjoint(*map(cupy.asarray, given), geometry)
    assert_agrees(got, _windows.correlate_kernel_adjoint.reference(*given, geometry), 0)


@pytest.mark.parametrize("terms", [1, 4095, 4097, 10**5, 10**9])
@pytest.mark.parametrize("entries", [1, 9, 2304, 10**7])
def test_splits_cover_all_terms_and_none_is_empty(terms: int, entries: int) -> None:
    count, each = cupy_convolution.splits(terms, entries)
    assert (count - 1) * each < terms <= count * each
    assert count == 1 or (8 * count * entries <= WORKSPACE and each >= 2048)


@pytest.mark.parametrize("geometry", product(seed=9, every=67), ids=name_of)
def test_the_tables_hold_every_reading_once(geometry: ConvGeometry) -> None:
    # Both say the same: who reads what, once from the output's side and once from the pixel's.
    lead, head = 3 - geometry.ndim, 12
    table, other = cupy_convolution.reads(geometry), cupy_convolution.readers(geometry)
    np.testing.assert_array_equal(table[:head], other[:head])
    outputs, taps, pixels = table[3:6], table[6:9], table[9:12]
    at, there = head, head
    for axis in range(3):
        sources = table[at : at + outputs[axis] * taps[axis]].reshape(outputs[axis], taps[axis])
        at += sources.size
        first = other[there : there + pixels[axis] + 1]
        there += first.size
        pairs = other[there : there + 2 * first[-1]].reshape(-1, 2)
        there += pairs.size
        if axis >= lead:
            np.testing.assert_array_equal(sources, geometry.axis_map(axis - lead))
        listed = [(p, t, q) for q in range(pixels[axis]) for p, t in pairs[first[q] : first[q + 1]]]
        wanted = [(p, t, q) for (p, t), q in np.ndenumerate(sources) if q >= 0]
        assert sorted(listed) == sorted(wanted)
    assert (at, there) == (table.size, other.size)


def test_lines_in_chunks_and_of_any_length(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = EXAMPLES["laplacian_smoothing"].operation
    rng = np.random.default_rng(0)
    monkeypatch.setattr(cupy_gradients, "WORKSPACE", 8 * 20 * 40)
    for shape, sigma in (((5, 20, 33), 1e3), ((1, 9, 70), 0.3), ((2, 1, 5), 2.0), ((3, 17, 1), 0.0)):
        blocks = rng.standard_normal(shape)
        wanted = smooth.reference(blocks, sigma)
        assert_agrees(smooth(cupy.asarray(blocks), sigma, engine="cuda"), wanted, 200)


def test_filters_that_do_not_fit_a_block(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_filters, "TILE", 8)
    for operation in ("summed_autocorrelations", "correlate_lags"):
        arguments, _ = list(EXAMPLES[operation].arguments())[7]
        got = EXAMPLES[operation].operation(*map(cupy.asarray, arguments), engine="cuda")
        assert_agrees(got, EXAMPLES[operation].operation.reference(*arguments), 0)
    assert COUNTS["launches"] == 0


@pytest.mark.parametrize("shape", [(3, 11, 3, 3), (2, 9, 2, 2, 3), (2, 70, 1)])
def test_filters_in_several_tiles(shape: tuple[int, ...], cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_filters, "TILE", 30)
    monkeypatch.setattr(cupy_filters, "_THREADS", 32)
    rng = np.random.default_rng(7)
    kernels = integers(rng, shape, np.float32)
    lags = integers(rng, (shape[0], int(np.prod([2 * k - 1 for k in shape[2:]]))), np.float64)
    for operation, given in (
        ("summed_autocorrelations", (kernels,)),
        ("correlate_lags", (kernels, lags + lags[:, ::-1])),
    ):
        got = EXAMPLES[operation].operation(*map(cupy.asarray, given))
        assert_agrees(got, EXAMPLES[operation].operation.reference(*given), 0)
    assert COUNTS["launches"] == 2


@pytest.mark.parametrize("taps", [1, 2, 9])
@pytest.mark.parametrize("toeplitz", [True, False])
def test_descents_give_the_bits_of_the_reference(taps: int, toeplitz: bool, cupy: ModuleType) -> None:
    rng = np.random.default_rng(3)
    k1, k2, gram = (rng.standard_normal(shape) for shape in ((70, taps), (70, taps), (70, taps, taps)))
    gram = gram @ gram.transpose(0, 2, 1)
    descend = EXAMPLES["descend_pairs"].operation
    for loss, similarity, optimizer, both in itertools.product(LOSSES, SIMILARITIES, OPTIMIZERS, (True, False)):
        keywords = {
            "loss": loss,
            "normalized": loss != "shrinkage",
            "toeplitz": toeplitz,
            "similarity": similarity,
            "optimizer": optimizer,
            "learning_rate": 0.01,
            "iterations": 3,
            "both": both,
        }
        got = descend(*map(cupy.asarray, (k1, k2, gram)), engine="cuda", **keywords)
        with np.errstate(all="ignore"):
            wanted = descend.reference(k1, k2, gram, **keywords)
        for value, right in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(to_numpy(value), right)


def test_long_kernels_are_left_to_the_reference(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, keywords = next(EXAMPLES["descend_pairs"].arguments())
    monkeypatch.setattr(pairs_cuda, "MOST_TAPS", arguments[0].shape[1] - 1)
    descend = EXAMPLES["descend_pairs"].operation
    got = descend(*map(cupy.asarray, arguments), engine="cuda", **keywords)
    for value, right in zip(got, descend.reference(*arguments, **keywords), strict=True):
        np.testing.assert_array_equal(to_numpy(value), right)
    assert COUNTS["launches"] == 0


@pytest.mark.usefixtures("cupy")
def test_a_setting_of_the_tables_is_one_launch_and_gives_the_same_numbers() -> None:
    setting = table_settings(["table3"])[0].descent(Readings())
    setting = dataclasses.replace(setting, iterations=10)
    device, host = (run_setting(setting, repetitions=130, seed=0, engine=engine) for engine in ("cuda", "numba"))
    assert COUNTS["descend_pairs"] == COUNTS["launches"] == 1
    for name in ("correlation", "loss", "similarity", "norms", "cosine"):
        np.testing.assert_allclose(getattr(device, name), getattr(host, name), rtol=1e-12, atol=1e-12)


def test_kernels_run_on_the_device_of_their_arrays(cupy: ModuleType) -> None:
    for operation in OPERATIONS:
        arguments, keywords = next(EXAMPLES[operation].arguments())
        with cupy.cuda.Device(1):
            given = [on_device(cupy, value) for value in arguments]
        got = EXAMPLES[operation].operation(*given, engine="cuda", **keywords)
        for value in got if isinstance(got, tuple) else (got,):
            assert value.device.id == 1
            value.get()


def test_the_library_on_the_device(cupy: ModuleType) -> None:
    rng = np.random.default_rng(6)
    kernel, image = rng.standard_normal((3, 2, 3, 3)), rng.standard_normal((2, 5, 5))
    given = cupy.asarray(kernel)
    ours, theirs = (ConvOperator(array, (5, 5)) for array in (given, kernel))
    np.testing.assert_allclose(ours.apply(cupy.asarray(image)).get(), theirs.apply(image), rtol=1e-12, atol=1e-12)
    for function in (largest_singular_value, smallest_singular_value):
        assert function(ours).value == pytest.approx(function(theirs).value, rel=1e-9)
    bounds, wanted = singular_value_bounds(ours), singular_value_bounds(theirs)
    assert bounds.lower <= largest_singular_value(theirs).value <= bounds.upper
    assert bounds.upper == pytest.approx(wanted.upper, rel=1e-9)
    value, gradient = convolutional_similarity_and_gradient(given)
    right = convolutional_similarity_and_gradient(kernel)
    assert float(value) == pytest.approx(float(right[0]), rel=1e-12)
    np.testing.assert_allclose(gradient.get(), right[1], rtol=1e-10)
    for transform in (
        orthonormalize,
        lambda f: reweighted_gradient(f, 2.0),
        lambda f: sobolev_gradient(f, 1.0, axis=1),
        lambda f: laplacian_smoothing(f, 1.0),
    ):
        np.testing.assert_allclose(transform(given).get(), transform(kernel), rtol=1e-9, atol=1e-12)
    assert {"correlate", "summed_autocorrelations", "correlate_lags", "sobolev_gradient"} <= set(COUNTS)


def test_arrays_on_two_devices_are_refused(cupy: ModuleType) -> None:
    kernel = cupy.asarray(np.ones((2, 1, 3)))
    with cupy.cuda.Device(1):
        image = cupy.asarray(np.ones((1, 5)))
    geometry = ConvGeometry((2, 1, 3), (5,), padding="same")
    with pytest.raises(EngineError, match="must be on one device, got devices 0, 1: copy them to one"):
        _windows.correlate(image, kernel, geometry)


class CUDARuntimeError(RuntimeError):
    """As CuPy names the driver's."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            MemoryError("Out of memory allocating 512 bytes"),
            MemoryError,
            r"memory \(Out of .*\): pass fewer",
        ),
        (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), MemoryError, r"free_all_blocks\(\)"),
        (ImportError("libcublas.so.12: cannot open shared object file"), EngineError, r"cupy-cuda12x\[ctk\]"),
        (
            RuntimeError("CuPy failed to load libcufft.so.11: OSError"),
            EngineError,
            r"cannot be loaded \(Runtime",
        ),
        (CUDARuntimeError("cudaErrorIllegalAddress: ..."), CUDARuntimeError, r"^cudaErrorIllegalAddress: \.\.\.$"),
    ],
)
def test_trouble_on_the_device_names_the_remedy(
    error: Exception, kind: type[Exception], message: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cupy_gradients, "launch_kernel", refuse)
    with pytest.raises(kind, match=message):
        reweighted_gradient(cupy.asarray(np.ones((3, 3))), 2.0)
    np.testing.assert_allclose(reweighted_gradient(np.ones((3, 3)), 2.0), np.ones((3, 3)))  # the CPU does not mind


def test_a_compiler_that_is_not_there_names_the_remedy(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.setattr(cupy.RawKernel, "compile", refuse)
    with pytest.raises(
        EngineError, match=r"cannot be compiled \(ImportError: libnvrtc.*pip install 'cupy-cuda12x\[ctk\]'"
    ):
        reweighted_gradient(cupy.asarray(np.ones((3, 3))), 2.0)
    reweighted_gradient(np.ones((3, 3)), 2.0)  # the CPU does not mind


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (lambda: 2, ""),
        (lambda: 0, "the driver shows no device"),
        (_no_driver, r"no usable driver \(cudaErrorInsufficientDriver\): install or update"),
    ],
)
def test_what_is_amiss_is_said(driver: Any, message: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", driver)
    assert re.search(message, cuda_trouble()) if message else cuda_trouble() == ""


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset it" in cuda_trouble()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert install_line("cuda12") in cuda_trouble()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cannot be imported" in cuda_trouble()


def test_a_few_long_lines_are_for_the_library(cupy: ModuleType) -> None:
    f = np.random.default_rng(2).standard_normal((5000, 2))
    given = cupy.asarray(f)
    for transform in (
        lambda g: reweighted_gradient(g, 3.0),
        lambda g: sobolev_gradient(g, 0.5),
        lambda g: laplacian_smoothing(g, 4.0),
    ):
        np.testing.assert_allclose(transform(given).get(), transform(f), rtol=1e-9, atol=1e-9)
    assert COUNTS["launches"] == 0
    np.testing.assert_allclose(laplacian_smoothing(given, 4.0, method="sweeps").get(), laplacian_smoothing(f, 4.0))
    assert COUNTS["laplacian_smoothing"] == 1


@pytest.mark.parametrize("method", ["exact", "svd", "newton-schulz", "polar-express"])
def test_a_networks_polar_factors_in_few_stacks(method: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    shapes = {"a": (4, 3, 3, 3), "b": (4, 2, 1, 1), "c": (4, 7, 1, 1), "d": (2, 9), "e": (9, 2), "f": (4, 5)}
    gradients = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    gradients["c"][1] = gradients["c"][0]  # of less than full rank: left out, or an arbitrary direction
    seen: list[tuple[int, ...]] = []
    run = orthonormal.METHODS[method]
    monkeypatch.setitem(orthonormal.METHODS, method, lambda m, *rest: seen.append(tuple(m.shape)) or run(m, *rest))
    found = orthonormalize_layers({name: cupy.asarray(f) for name, f in gradients.items()}, method=method)
    assert sorted(seen) == [(3, 2, 9), (3, 4, 27)]
    assert list(found) == list(gradients)
    for name, f in gradients.items():
        assert is_cupy(found[name])
        alone = orthonormalize(f, method=method)
        np.testing.assert_allclose(found[name].get(), alone, atol=2e-6)
        np.testing.assert_array_equal(orthonormalize_layers({name: f}, method=method)[name], alone)


def test_completed_factors_are_orthonormal_within_their_own_columns(cupy: ModuleType) -> None:
    rng = np.random.default_rng(9)
    gradients = {"narrow": np.ones((3, 4)), "wide": rng.standard_normal((3, 9)), "too": np.ones((3, 4))}
    given = {name: cupy.asarray(f) for name, f in gradients.items()}
    for factor in orthonormalize_layers(given, rank_deficient="complete").values():
        np.testing.assert_allclose(factor.get() @ factor.get().T, np.eye(3), atol=1e-12)


def test_a_layer_that_is_wrong_is_named() -> None:
    with pytest.raises(ShapeError, match="layer b: gradient must have at least 2 axes"):
        orthonormalize_layers({"a": np.ones((2, 2)), "b": np.ones(2)})
    with pytest.raises(TypeError, match="gradients must be a mapping of layers by name, got list"):
        orthonormalize_layers([np.ones((2, 2))])  # type: ignore[arg-type]
    assert orthonormalize_layers({}) == {}


NETWORK = {"a": (3, 2, 3), "b": (3, 2, 3), "c": (2, 2, 1), "d": (9, 4, 3, 3), "e": (1, 70, 1, 1), "f": (5, 2, 2, 3, 2)}


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("threads", "dtype"), [(4, np.float32), (32, np.float64)])
def test_a_network_is_five_launches_and_one_wait(
    threads: int, normalized: bool, dtype: Any, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cupy_filters, "_THREADS", threads)
    rng = np.random.default_rng(10)
    kernels = {name: rng.standard_normal(shape).astype(dtype) for name, shape in NETWORK.items()}
    given = {name: cupy.asarray(kernel) for name, kernel in kernels.items()}
    COUNTS.clear()
    ours = network_similarity(given, normalized=normalized, pairs="ordered")
    assert (COUNTS["waits"], COUNTS["launches"]) == (1, 4)  # and a copy of all kernels into one row
    theirs = network_similarity(kernels, normalized=normalized, pairs="ordered")
    eps = 4 * float(np.finfo(dtype).eps) + 1e-14
    assert ours.layers == pytest.approx(theirs.layers, rel=eps)
    for name, gradient in theirs.gradients.items():
        found = ours.gradients[name]
        assert (found.shape, found.dtype) == (gradient.shape, gradient.dtype)
        # Where `normalized`, what is along a filter cancels: beside the largest entry, rounding stays.
        np.testing.assert_allclose(found.get(), gradient, rtol=eps, atol=eps * np.abs(gradient).max())


def test_a_step_of_the_initialisation_waits_twice(cupy: ModuleType) -> None:
    rng = np.random.default_rng(16)
    kernels = {name: rng.standard_normal(shape) for name, shape in NETWORK.items()}
    given = {name: cupy.asarray(kernel) for name, kernel in kernels.items()}
    waits: list[int] = []
    ours = initialize_network(given, iterations=3, progress=lambda _: waits.append(COUNTS["waits"]))
    assert np.diff(waits).tolist() == [2, 2]
    theirs = initialize_network(kernels, iterations=3)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-12)
    given["a"][0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="layer a: kernels must be finite"):
        initialize_network(given, iterations=1)
    given["a"][:] = 1e110
    with pytest.raises(OverflowError, match="the gradient of the similarity overflows"):
        initialize_network(given, iterations=1)


def test_layers_that_a_launch_for_all_cannot_take_run_by_themselves(
    cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cupy_filters, "TILE", 12)
    monkeypatch.setattr(cupy_filters, "_THREADS", 32)
    rng = np.random.default_rng(11)
    kernels = {name: rng.standard_normal(shape) for name, shape in NETWORK.items()}
    kernels |= {"tiny": 1e-70 * kernels["a"], "integers": rng.integers(-4, 5, (3, 2, 3)), "large": np.ones((2, 1, 13))}
    kernels |= {"single": kernels["b"].astype(np.float32), "pruned": np.array([[[1.0, 2.0]], [[0.0, 0.0]]])}
    ours = network_similarity({name: cupy.asarray(kernel) for name, kernel in kernels.items()})
    theirs = network_similarity(kernels)
    assert list(ours.gradients) == list(kernels)
    assert ours.layers == pytest.approx(theirs.layers, rel=1e-6)
    assert ours.layers["tiny"] > 0
    for name, gradient in theirs.gradients.items():
        rtol = 1e-6 if name == "single" else 1e-12
        np.testing.assert_allclose(ours.gradients[name].get(), gradient, rtol=rtol, atol=rtol * np.abs(gradient).max())
    with pytest.raises(ValueError, match="layer pruned: normalized similarity needs kernels that are not 0"):
        network_similarity({name: cupy.asarray(kernels[name]) for name in ("a", "pruned")}, normalized=True)
    with pytest.raises(ValueError, match="layer b: kernels must be finite"):
        network_similarity({"a": cupy.asarray(np.ones((2, 1, 1))), "b": cupy.asarray(np.full((2, 1, 1), np.nan))})


@pytest.mark.parametrize("room", [2**28, 3000, 1])
def test_layers_in_batches(room: int, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_filters, "WORKSPACE", room)
    monkeypatch.setattr(cupy_filters, "_THREADS", 32)
    shapes = list(NETWORK.values())
    batches = list(cupy_filters._batches(shapes, 8))
    assert [i for some in batches for i in range(some.start, some.stop)] == list(range(len(shapes)))
    for some in batches:
        lags = sum(shape[0] * np.prod([2 * k - 1 for k in shape[2:]]) for shape in shapes[some])
        taken = sum(8 * np.prod(shape) for shape in shapes[some]) + 16 * lags
        assert taken <= room or some.stop - some.start == 1
    rng = np.random.default_rng(12)
    kernels = {name: integers(rng, shape, np.float64) for name, shape in NETWORK.items()}
    ours = network_similarity({name: cupy.asarray(kernel) for name, kernel in kernels.items()})
    assert ours.layers == network_similarity(kernels).layers
    assert COUNTS["launches"] == 4 * len(batches)


def test_the_records_of_layers() -> None:
    shapes = [(3, 2, 2), (4, 1, 3, 1), (5, 2, 2)]
    records = cupy_filters._layers(shapes, ((2,), (3, 1))).reshape(3, 10)
    np.testing.assert_array_equal(
        records[:, :8],
        # first, filters, channels, taps, middle, and where entries, lags and blocks begin
        [[0, 3, 2, 2, 1, 0, 0, 0], [3, 4, 1, 3, 2, 12, 9, 2], [7, 5, 2, 2, 1, 24, 29, 5]],
    )
    tables = cupy_filters._tables(((2,), (3, 1)))
    for (_, _, *size), readers, offsets in zip(shapes, records[:, 8], records[:, 9], strict=True):
        taps, middle = math.prod(size), math.prod(2 * k - 1 for k in size) // 2
        lag = np.subtract.outer(tables[offsets : offsets + taps], tables[offsets : offsets + taps]).T
        first = tables[readers : readers + middle + 2]
        pairs = tables[readers + middle + 2 : offsets].reshape(-1, 2)
        for h in range(middle + 1):
            assert all(lag[p, q] == h for p, q in pairs[first[h] : first[h + 1]])
        assert len(pairs) == first[-1] == taps * (taps + 1) // 2
