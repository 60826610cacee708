"""What is computed on a device for all layers of a network at once: few launches, few waits, any sizes together."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convla import initialize_network, network_similarity, orthonormal, orthonormalize, orthonormalize_layers
from convla._array import is_cupy
from convla.engines import cupy_filters
from convla.errors import ShapeError
from tests.cuda.agreement import assert_agrees
from tests.cuda.stand_in import COUNTS
from tests.geometries import integers
from tests.kernel_examples import EXAMPLES


def test_filters_that_do_not_fit_a_block(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_filters, "TILE", 8)
    for operation in ("summed_autocorrelations", "correlate_lags"):
        arguments, _ = list(EXAMPLES[operation].arguments())[7]
        got = EXAMPLES[operation].operation(*map(cupy.asarray, arguments), engine="cuda")
        assert_agrees(got, EXAMPLES[operation].operation.reference(*arguments), 0)
    assert COUNTS["launches"] == 0


@pytest.mark.command
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


def test_products_give_what_eigenvectors_give(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leave to these what is all but of less rank."""
    rng = np.random.default_rng(10)
    u = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    v = np.linalg.qr(rng.standard_normal((14, 6)))[0]
    left: list[int] = []
    run = orthonormal._exact
    monkeypatch.setattr(orthonormal, "_exact", lambda m, *rest: left.append(m.shape[0]) or run(m, *rest))
    for conditions, by_eigenvectors in (((1, 30, 3e3), []), ((2, 1e7, 1e3, np.inf), [2]), ((np.inf,), [1])):
        stack = np.stack([u * np.append(np.geomspace(1e-3, 1e-3 / min(c, 1e9), 5), 1e-3 / c) @ v.T for c in conditions])
        single = stack.astype(np.float32)
        found = orthonormalize(cupy.asarray(single), batch_axes=1)
        assert left == by_eigenvectors
        left.clear()
        wanted = orthonormalize(single, batch_axes=1)
        left.clear()
        distance = np.linalg.norm(found.get().astype(float) - wanted, axis=(1, 2)) / np.linalg.norm(wanted, axis=(1, 2))
        assert distance.max() < 1e-6  # as is promised


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


@pytest.mark.command
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


@pytest.mark.command
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


@pytest.mark.command
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
