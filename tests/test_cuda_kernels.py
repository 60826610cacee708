"""Every CUDA kernel's source run on the CPU, called through the public dispatch with arrays of a stand-in for CuPy."""

from __future__ import annotations

import dataclasses
import itertools
from types import ModuleType

import numpy as np
import pytest

from convla import (
    ConvOperator,
    convolutional_similarity_and_gradient,
    laplacian_smoothing,
    largest_singular_value,
    orthonormalize,
    reweighted_gradient,
    singular_value_bounds,
    smallest_singular_value,
    sobolev_gradient,
)
from convla._array import is_cupy, to_numpy
from convla._dispatch import KERNELS
from convla.engines import cupy_gradients
from convla.experiments.csm.settings import Readings, table_settings
from convla.experiments.descents import pairs_cuda
from convla.experiments.descents.outcome import run_setting
from convla.experiments.descents.pairs import LOSSES, OPTIMIZERS, SIMILARITIES
from tests.cuda.agreement import assert_agrees, on_device
from tests.cuda.stand_in import COUNTS
from tests.kernel_examples import EXAMPLES

OPERATIONS = sorted(operation for operation, engine in KERNELS if engine == "cuda")


@pytest.mark.command
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_kernel_agrees_with_its_reference(operation: str, cupy: ModuleType) -> None:
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


def test_lines_in_chunks_and_of_any_length(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = EXAMPLES["laplacian_smoothing"].operation
    rng = np.random.default_rng(0)
    monkeypatch.setattr(cupy_gradients, "WORKSPACE", 8 * 20 * 40)
    for shape, sigma in (((5, 20, 33), 1e3), ((1, 9, 70), 0.3), ((2, 1, 5), 2.0), ((3, 17, 1), 0.0)):
        blocks = rng.standard_normal(shape)
        wanted = smooth.reference(blocks, sigma)
        assert_agrees(smooth(cupy.asarray(blocks), sigma, engine="cuda"), wanted, 200)


@pytest.mark.command
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


@pytest.mark.command
@pytest.mark.usefixtures("cupy")
def test_a_setting_of_the_tables_is_one_launch_and_gives_the_same_numbers() -> None:
    setting = table_settings(["table3"])[0].descent(Readings())
    setting = dataclasses.replace(setting, iterations=10)
    device, host = (run_setting(setting, repetitions=130, seed=0, engine=engine) for engine in ("cuda", "numba"))
    assert COUNTS["descend_pairs"] == COUNTS["launches"] == 1
    for name in ("correlation", "loss", "similarity", "norms", "cosine"):
        np.testing.assert_allclose(getattr(device, name), getattr(host, name), rtol=1e-12, atol=1e-12)


@pytest.mark.command
def test_kernels_run_on_the_device_of_their_arrays(cupy: ModuleType) -> None:
    for operation in OPERATIONS:
        arguments, keywords = next(EXAMPLES[operation].arguments())
        with cupy.cuda.Device(1):
            given = [on_device(cupy, value) for value in arguments]
        got = EXAMPLES[operation].operation(*given, engine="cuda", **keywords)
        for value in got if isinstance(got, tuple) else (got,):
            assert value.device.id == 1
            value.get()


@pytest.mark.command
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
    assert {"sum_directly", "summed_autocorrelations", "correlate_lags", "sobolev_gradient"} <= set(COUNTS)


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
