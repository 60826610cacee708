"""Trackers against LAPACK, and the trap they are for: a single vector that stays on the second singular vector."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

from convla import ConvOperator
from convla.errors import ConvergenceWarning
from convla.spectra.power import PowerTracker
from convla.spectra.tracking import BlockTracker, SingularTriplets, extreme_triplets


def draw(shape: tuple[int, ...], image: tuple[int, ...], seed: int = 0, dtype: type = np.float64) -> ConvOperator:
    kernel = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return ConvOperator(kernel.astype(dtype), image)


def assert_triplets(operator: ConvOperator, found: SingularTriplets, expected: np.ndarray, rtol: float) -> None:
    """Values within rtol sigma_max^2 of the squares, unit vectors, images and residuals that are what they say."""
    norm = np.linalg.norm(operator.to_dense(), 2)
    count = len(expected)
    np.testing.assert_allclose(found.singular_values**2, expected**2, rtol=0, atol=rtol * norm**2)
    rounding = 100 * max(operator.shape) * np.finfo(operator.dtype).eps * norm**2
    vectors, images = found.vectors.reshape(count, -1), found.images.reshape(count, -1)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(count), atol=rounding)
    np.testing.assert_allclose(images, operator.apply(found.vectors).reshape(count, -1), atol=rounding)
    residual = operator.adjoint(found.images).reshape(count, -1) - found.singular_values[:, None] ** 2 * vectors
    np.testing.assert_allclose(np.linalg.norm(residual, axis=1), found.residuals, atol=rounding)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("end", ["largest", "smallest"])
@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (1, 3, 3, 3), (3, 1, 3, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_extreme_triplets_against_lapack(
    shape: tuple[int, ...], end: str, dense: bool, dtype: type, rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = draw(shape, (6, 5), dtype=dtype)
    exact = np.zeros(operator.shape[1])
    values = np.linalg.svd(np.asarray(operator.to_dense(), float), compute_uv=False)
    exact[: values.size] = values
    if not dense:
        monkeypatch.setattr("convla.spectra.tracking.DENSE_ENTRIES", 0)
    found = extreme_triplets(operator, 3, end, rtol=rtol)
    assert_triplets(operator, found, exact[:3] if end == "largest" else exact[::-1][:3], rtol)


def test_the_transpose_is_a_map_too() -> None:
    operator = draw((1, 3, 3, 3), (6, 5))
    found = extreme_triplets(operator.T, 2, "smallest")
    np.testing.assert_allclose(
        found.singular_values, np.linalg.svd(operator.to_dense(), compute_uv=False)[::-1][:2], atol=1e-13
    )


def test_the_iteration_reaches_rounding_and_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = draw((2, 2, 3, 3), (8, 8))
    exact = np.linalg.svd(operator.to_dense(), compute_uv=False)[:2]
    monkeypatch.setattr("convla.spectra.tracking.DENSE_ENTRIES", 0)
    found = extreme_triplets(operator, 2, rtol=1e-15)
    assert_triplets(operator, found, exact, 1e-13)


def crossing(weight: float) -> ConvOperator:
    """Two channels, almost uncoupled, the second `weight` times the first: sigma_max changes channel at 1."""
    tap = np.array([[0.1, 0.3, 0.1], [0.3, 1.0, 0.3], [0.1, 0.3, 0.1]])
    mixing = np.array([[1.0, 1e-6], [1e-6, weight]])
    return ConvOperator(mixing[:, :, None, None] * tap, (16, 16))


@pytest.mark.parametrize("iterations", [1, 3, 10, 30])
def test_a_single_vector_stays_on_the_second_singular_vector_after_a_change_of_one_percent(iterations: int) -> None:
    before, after = crossing(0.995), crossing(1.005)
    exact = np.linalg.svd(after.to_dense(), compute_uv=False)[0]
    single = PowerTracker(0.0, iterations=iterations, triplets=1)
    single.start(before)
    followed = float(np.linalg.norm(single.update(after).images))
    # The old vector is an eigenvector of the changed Gram matrix up to the coupling of 1e-6, and grows slower than the
    # new one by (1 / 1.005)^2 only: it would take log(1e6) / log(1.01), more than a thousand, iterations to leave it.
    assert followed / exact == pytest.approx(1 / 1.005, abs=1e-4)


@pytest.mark.parametrize("block", [2, 4])
def test_a_block_does_not(block: int) -> None:
    before, after = crossing(0.995), crossing(1.005)
    exact = np.linalg.svd(after.to_dense(), compute_uv=False)[0]
    tracker = BlockTracker(block=block, steps=1)
    tracker.start(before)
    assert float(tracker.update(after).singular_values[0]) == pytest.approx(exact, rel=1e-6)


def test_fresh_vectors_find_a_triplet_that_rises_from_outside_the_block() -> None:
    # Uncoupled one-pixel channels: nothing in the block ever points at the third.
    before, after = (ConvOperator(np.diag([3.0, 2.0, last])[:, :, None], (1,)) for last in (1.0, 4.0))
    closed = BlockTracker(block=2, steps=3, reseed=0)
    closed.start(before)
    assert float(closed.update(after).singular_values[0]) == pytest.approx(3.0)
    open_ = BlockTracker(block=2, steps=3, reseed=1)
    open_.start(before)
    assert float(open_.update(after).singular_values[0]) == pytest.approx(4.0)


def test_a_block_follows_both_ends_along_a_path() -> None:
    rng = np.random.default_rng(0)
    start, change = draw((3, 2, 3, 3), (6, 6)), 0.02 * rng.standard_normal((3, 2, 3, 3))
    trackers = {end: BlockTracker(block=4, steps=2, end=end) for end in ("largest", "smallest")}
    for tracker in trackers.values():
        tracker.start(start)
    for step in range(1, 11):
        operator = start.with_kernel(start.kernel + step * change)
        values = np.linalg.svd(operator.to_dense(), compute_uv=False)
        for end, exact in (("largest", values[0]), ("smallest", values[-1])):
            found = float(trackers[end].update(operator).singular_values[0])
            # A Ritz value lies inside the spectrum; a change of 2 % at a time keeps it within 1 % of the norm.
            assert abs(found - exact) <= 0.01 * values[0]
            assert (found <= exact + 1e-12) if end == "largest" else (found >= exact - 1e-12)


def test_the_power_rule_starts_from_the_two_leading_triplets_of_the_shifted_matrix() -> None:
    operator = draw((2, 2, 3, 3), (6, 6))
    matrix = operator.to_dense()
    for alpha in (0.01, 1.0, 30.0):
        shifted = np.linalg.eigvalsh(matrix.T @ matrix) - alpha
        order = np.argsort(-np.abs(shifted))[:2]
        found = PowerTracker(alpha).start(operator)
        np.testing.assert_allclose(found.values, np.abs(shifted[order]), atol=1e-12)
        np.testing.assert_array_equal(found.signs, np.sign(shifted[order]))


def test_the_power_rule_is_two_multiplications_of_each_vector() -> None:
    operator, changed = draw((2, 2, 3, 3), (5, 5)), draw((2, 2, 3, 3), (5, 5), seed=1)
    tracker = PowerTracker(1.0, iterations=2)
    vectors = tracker.start(operator).vectors.reshape(2, -1).T
    matrix = changed.to_dense()
    shifted = matrix.T @ matrix - np.eye(50)
    expected = np.linalg.norm(shifted @ shifted @ vectors, axis=0) / np.linalg.norm(shifted @ vectors, axis=0)
    np.testing.assert_allclose(tracker.update(changed).values, expected, rtol=1e-12)


@pytest.mark.parametrize("make", [lambda: PowerTracker(1.0), lambda: BlockTracker(block=3, steps=2, reseed=1, seed=5)])
def test_a_restored_tracker_goes_on_with_the_same_numbers(make: object) -> None:
    operators = [draw((2, 2, 3, 3), (5, 5), seed=seed) for seed in range(4)]
    tracker, other = make(), make()
    tracker.start(operators[0])
    tracker.update(operators[1])
    other.restore(tracker.state(), operators[0].kernel)
    for operator in operators[2:]:
        np.testing.assert_array_equal(tracker.update(operator).vectors, other.update(operator).vectors)


@pytest.mark.parametrize("make", [lambda: PowerTracker(1.0), lambda: BlockTracker(block=4)])
@pytest.mark.parametrize(
    "operator",
    [
        ConvOperator(np.zeros((2, 2, 3)), (4,)),
        ConvOperator(np.ones((1, 1, 1)), (1,)),
        ConvOperator(np.ones((1, 1, 1)), (3,)),
    ],
    ids=["zero", "one entry", "identity"],
)
def test_degenerate_maps_give_finite_numbers(make: object, operator: ConvOperator) -> None:
    tracker = make()
    for found in (tracker.start(operator), tracker.update(operator), tracker.update(operator)):
        assert np.isfinite(found.vectors).all()
        np.testing.assert_allclose(np.linalg.norm(found.vectors.reshape(found.vectors.shape[0], -1), axis=1), 1.0)


def test_other_array_libraries_stay_themselves() -> None:
    device = array_api_strict.Device("device1")
    kernel = array_api_strict.asarray(draw((2, 2, 3), (6,)).kernel.tolist(), device=device)
    operator = ConvOperator(kernel, (6,))
    for tracker in (PowerTracker(1.0), BlockTracker(block=2, reseed=1)):
        tracker.start(operator)
        assert tracker.update(operator).vectors.device == device


def test_bad_arguments() -> None:
    operator = draw((1, 2, 3), (4,))
    with pytest.raises(ValueError, match="count must be between 1 and 8, got 9"):
        extreme_triplets(operator, 9)
    with pytest.raises(ValueError, match="end must be one of 'largest', 'smallest', got 'middle'"):
        extreme_triplets(operator, 1, "middle")
    with pytest.raises(ValueError, match="reseed must be between 0 and 1, got 2"):
        BlockTracker(block=2, reseed=2)
    with pytest.raises(ValueError, match=r"alpha must be at least 0\.0, got -1\.0"):
        PowerTracker(-1.0)
    with pytest.raises(TypeError, match="the map must have a kernel of float32 or float64, got dtype int64"):
        extreme_triplets(ConvOperator(np.array([[[1, 2]]]), (4,)), 1)


def test_a_block_that_did_not_converge_is_said_to_have_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convla.spectra.tracking.DENSE_ENTRIES", 0)
    with pytest.warns(
        ConvergenceWarning, match="1 largest singular triplets of a 50x50 map: residual .* after 1 steps"
    ):
        extreme_triplets(draw((2, 2, 3, 3), (5, 5)), 1, rtol=1e-12, max_steps=1)


def test_the_power_method_leaves_a_vector_that_the_map_takes_to_zero() -> None:
    # Channel 1 is cut off: its vector stays, and the other's image does not depend on it.
    operator = ConvOperator(np.diag([2.0, 0.0])[:, :, None], (1,))
    tracker = PowerTracker(0.0)
    vectors = np.eye(2)
    tracker.restore({"vectors": vectors}, operator.kernel)
    pairs = tracker.update(operator)
    assert pairs.values.tolist() == [4.0, 0.0]
    assert pairs.signs.tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(tracker.state()["vectors"], vectors)


def test_a_start_of_modest_accuracy_iterates_and_finds_the_same() -> None:
    kernel = np.random.default_rng(2).standard_normal((40, 40, 3, 3)) / 20
    operator = ConvOperator(kernel, (4, 4))
    assert operator.shape[0] * operator.shape[1] > 2**18
    exact = np.linalg.svd(operator.to_dense(), compute_uv=False)
    tracker = BlockTracker(block=4, rtol=1e-3)
    found = tracker.start(operator)
    # A Ritz value is no larger than the singular value, and within the residual of one.
    assert np.all(found.singular_values <= exact[:4] * (1 + 1e-12))
    assert abs(float(found.singular_values[0]) ** 2 - exact[0] ** 2) <= 1e-3 * exact[0] ** 2
    assert float(found.residuals[0]) > 1e-12 * exact[0] ** 2, "this was a decomposition"
    np.testing.assert_allclose(BlockTracker(block=4).start(operator).singular_values, exact[:4], rtol=1e-12)
