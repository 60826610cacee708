"""Trackers against LAPACK, and the trap they are for: a single vector that stays on the second singular vector."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

from convla import ConvOperator, block_diagonal, identity
from convla.errors import ConvergenceWarning
from convla.linear_map import LinearMap
from convla.penalties import Block, Power, Tracker, shifted
from convla.spectra.block_iteration import iterate
from convla.spectra.carrier import Carrier
from convla.spectra.result import End, SingularValues
from convla.spectra.tracking import BlockTracker


def draw(shape: tuple[int, ...], image: tuple[int, ...], seed: int = 0, dtype: type = np.float64) -> ConvOperator:
    kernel = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return ConvOperator(kernel.astype(dtype), image)


def find(operator: LinearMap, count: int, end: str = "largest", rtol: float = 1e-6) -> SingularValues:
    """Triplets from nothing."""
    tracker = BlockTracker(block=count, end=end, rtol=rtol)
    return tracker.step(operator, tracker.initial(operator))[0]


def assert_triplets(operator: LinearMap, found: SingularValues, expected: np.ndarray, rtol: float) -> None:
    """Values within rtol sigma_max^2 of the squares, unit vectors, images and residuals that are what they say."""
    norm = np.linalg.norm(operator.to_dense(), 2)
    count = len(expected)
    np.testing.assert_allclose(found.values**2, expected**2, rtol=0, atol=rtol * norm**2)
    rounding = 100 * max(operator.shape) * np.finfo(operator.dtype).eps * norm**2
    vectors, left = found.right.reshape(count, -1), found.left.reshape(count, -1)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(count), atol=rounding)
    images = found.values[:, None] * left
    np.testing.assert_allclose(images, operator.apply(found.right).reshape(count, -1), atol=rounding)
    products = operator.adjoint(images.astype(operator.dtype).reshape(found.left.shape)).reshape(count, -1)
    residual = products - found.values[:, None] ** 2 * vectors
    np.testing.assert_allclose(np.linalg.norm(residual, axis=1), found.residuals * found.values, atol=rounding)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("end", ["largest", "smallest"])
@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (1, 3, 3, 3), (3, 1, 3, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_triplets_from_nothing_against_lapack(
    shape: tuple[int, ...], end: str, whole: bool, dtype: type, rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = draw(shape, (6, 5), dtype=dtype)
    exact = np.zeros(operator.shape[1])
    values = np.linalg.svd(np.asarray(operator.to_dense(), float), compute_uv=False)
    exact[: values.size] = values
    if not whole:
        monkeypatch.setattr("convla.spectra.tracked_search.EXACT_ENTRIES", 0)
    found = find(operator, 3, end, rtol)
    assert found.matvecs >= 2  # a part of one entry takes one product
    assert_triplets(operator, found, exact[:3] if end == "largest" else exact[::-1][:3], rtol)


def test_the_transpose_is_a_map_too() -> None:
    operator = draw((1, 3, 3, 3), (6, 5))
    found = find(operator.T, 2, "smallest")
    exact = np.linalg.svd(operator.to_dense(), compute_uv=False)[::-1][:2]
    np.testing.assert_allclose(found.values**2, exact**2, atol=1e-13)


def test_the_iteration_reaches_rounding_and_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = draw((2, 2, 3, 3), (8, 8))
    exact = np.linalg.svd(operator.to_dense(), compute_uv=False)[:2]
    monkeypatch.setattr("convla.spectra.tracked_search.EXACT_ENTRIES", 0)
    assert_triplets(operator, find(operator, 2, rtol=1e-15), exact, 1e-13)


def crossing(weight: float) -> ConvOperator:
    """Two channels, almost uncoupled, the second `weight` times the first: sigma_max changes channel at 1."""
    tap = np.array([[0.1, 0.3, 0.1], [0.3, 1.0, 0.3], [0.1, 0.3, 0.1]])
    mixing = np.array([[1.0, 1e-6], [1e-6, weight]])
    return ConvOperator(mixing[:, :, None, None] * tap, (16, 16))


@pytest.mark.parametrize("iterations", [1, 3, 10, 30])
def test_a_single_vector_stays_on_the_second_singular_vector_after_a_change_of_one_percent(iterations: int) -> None:
    before, after = crossing(0.995), crossing(1.005)
    exact = np.linalg.svd(after.to_dense(), compute_uv=False)[0]
    single = Power(iterations=iterations, triplets=1)
    alpha = 1e-300  # the power method for sigma_max^2 itself
    target = shifted(before, alpha, "input")
    _, state = single.step(target, single.initial(target))
    followed = float(np.linalg.norm(single.step(shifted(after, alpha, "input"), state)[0].images))
    # The old vector is an eigenvector of the changed Gram matrix up to the coupling of 1e-6, and grows slower than the
    # new one by (1 / 1.005)^2 only: it would take log(1e6) / log(1.01), more than a thousand, iterations to leave it.
    assert followed / exact == pytest.approx(1 / 1.005, abs=1e-4)


@pytest.mark.parametrize("block", [2, 4])
def test_a_block_does_not(block: int) -> None:
    before, after = crossing(0.995), crossing(1.005)
    exact = np.linalg.svd(after.to_dense(), compute_uv=False)[0]
    tracker = BlockTracker(block=block, steps=1)
    _, state = tracker.step(before, tracker.initial(before))
    assert tracker.step(after, state)[0].value == pytest.approx(exact, rel=1e-6)


def test_fresh_vectors_find_a_triplet_that_rises_from_outside_the_block() -> None:
    # Uncoupled one-pixel channels: nothing in the basis points at the third, which is the largest.
    operator = ConvOperator(np.diag([3.0, 2.0, 4.0, 1.0])[:, :, None], (1,))
    batch = Carrier(operator).batch(0, [0])
    options = {"settled": 1, "end": "largest", "rtol": 1e-10, "steps": 3}
    block, converged, _ = iterate(batch, np.eye(4)[None, :2], count=2, **options)
    assert converged
    assert float(block.squares[0, 0]) == pytest.approx(9.0)
    basis = np.linalg.qr(np.eye(4)[:, :3] + np.random.default_rng(0).standard_normal((4, 1)) * [0, 0, 1])[0].T
    block, converged, _ = iterate(batch, basis[None], count=3, probes=1, probe_steps=3, **options)
    assert converged
    assert float(block.squares[0, 0]) == pytest.approx(16.0)


def test_a_block_follows_both_ends_along_a_path() -> None:
    rng = np.random.default_rng(0)
    start, change = draw((3, 2, 3, 3), (6, 6)), 0.02 * rng.standard_normal((3, 2, 3, 3))
    trackers = {end: BlockTracker(block=4, steps=2, end=end, rtol=1e-2) for end in ("largest", "smallest")}
    states = {end: tracker.step(start, tracker.initial(start))[1] for end, tracker in trackers.items()}
    for step in range(1, 11):
        operator = start.with_kernel(start.kernel + step * change)
        values = np.linalg.svd(operator.to_dense(), compute_uv=False)
        for end, exact in (("largest", values[0]), ("smallest", values[-1])):
            result, states[end] = trackers[end].step(operator, states[end])
            # A Ritz value lies inside the spectrum; a change of 2 % at a time keeps it within 1 % of the norm.
            assert abs(result.value - exact) <= 0.01 * values[0]
            assert (result.value <= exact + 1e-12) if end == "largest" else (result.value >= exact - 1e-12)


@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_the_blocks_of_a_map_have_vectors_of_their_own(end: str) -> None:
    rng = np.random.default_rng(3)
    first, second = draw((3, 2, 3), (30,), seed=1), draw((2, 2, 3), (30,), seed=2)
    tracker = BlockTracker(block=2, end=end, rtol=1e-8)
    operator = block_diagonal([first, identity((1, 30)), second])
    state = tracker.initial(operator)
    for _ in range(4):
        found, state = tracker.step(operator, state)
        exact = np.linalg.svd(operator.to_dense(), compute_uv=False)
        outermost = exact[:1] if end == "largest" else exact[::-1][:1]
        np.testing.assert_allclose(found.values[:1] ** 2, outermost**2, atol=1e-8 * exact[0] ** 2)
        np.testing.assert_allclose(operator.apply(found.right), found.values[:, None, None] * found.left, atol=1e-12)
        # One block overtakes the others.
        operator = operator.with_kernels([k * s for k, s in zip(operator.kernels, (0.9, 1.15), strict=True)])
        operator = operator.with_kernels([k + 0.01 * rng.standard_normal(k.shape) for k in operator.kernels])


@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_groups_that_cannot_matter_are_left_alone_and_none_is_missed(end: str) -> None:
    rng = np.random.default_rng(2)
    kernel = rng.standard_normal((24, 1, 3, 3)) + 4.0 * (np.arange(9).reshape(3, 3) == 4)
    kernel *= np.linspace(1.0, 3.0, 24)[:, None, None, None]
    operator = ConvOperator(kernel, (10, 10), groups=24)
    tracker = BlockTracker(block=4, end=end, rtol=1e-4)
    _, state = tracker.step(operator, tracker.initial(operator))
    looked_at = []
    for _ in range(12):
        # Every group moves, by so much that the order of the groups changes in the long run.
        kernel = kernel * (1 + 0.03 * rng.standard_normal((24, 1, 1, 1))) + 0.01 * rng.standard_normal(kernel.shape)
        operator, before = operator.with_kernel(kernel), state["kernel"]
        found, state = tracker.step(operator, state)
        looked_at.append(int(np.sum(np.any(state["kernel"] != before, axis=1))))
        blocks = [ConvOperator(kernel[group : group + 1], (10, 10)).to_dense() for group in range(24)]
        exact = np.sort(np.linalg.svd(np.stack(blocks), compute_uv=False), axis=None)[::-1]
        outermost = exact[:2] if end == "largest" else exact[::-1][:2]
        # The residuals of the first half of the block bound the error of their squares.
        np.testing.assert_allclose(found.values[:2] ** 2, outermost**2, rtol=0, atol=1e-4 * exact[0] ** 2)
    assert sum(looked_at) < 12 * 24 / 2, "all groups were searched"


def test_the_power_rule_starts_from_the_two_leading_triplets_of_the_shifted_matrix() -> None:
    operator = draw((2, 2, 3, 3), (6, 6))
    matrix = operator.to_dense()
    for alpha in (0.01, 1.0, 30.0):
        eigenvalues = np.linalg.eigvalsh(matrix.T @ matrix) - alpha
        order = np.argsort(-np.abs(eigenvalues))[:2]
        values, signs, _, _ = Power()._leading(shifted(operator, alpha, "input"))
        np.testing.assert_allclose(values, np.abs(eigenvalues[order]), atol=1e-12)
        np.testing.assert_array_equal(signs, np.sign(eigenvalues[order]))


def test_the_power_rule_is_two_multiplications_of_each_vector() -> None:
    operator, changed = draw((2, 2, 3, 3), (5, 5)), draw((2, 2, 3, 3), (5, 5), seed=1)
    tracker = Power(iterations=2)
    target = shifted(operator, 1.0, "input")
    _, state = tracker.step(target, tracker.initial(target))
    vectors = state["shifted"].T
    matrix = changed.to_dense()
    gram = matrix.T @ matrix - np.eye(50)
    expected = np.linalg.norm(gram @ gram @ vectors, axis=0) / np.linalg.norm(gram @ vectors, axis=0)
    found, after = tracker.step(shifted(changed, 1.0, "input"), state)
    assert found.value == pytest.approx(expected.max(), rel=1e-12)
    product = gram @ gram @ vectors
    np.testing.assert_allclose(after["shifted"].T, product / np.linalg.norm(product, axis=0), atol=1e-12)


TRACKERS = [Power(), Block(vectors=3, steps=2)]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_step_is_a_pure_function(tracker: Tracker) -> None:
    targets = [shifted(draw((2, 2, 3, 3), (5, 5), seed=seed), 4.0, "input") for seed in range(3)]
    state = tracker.initial(targets[0])
    for target in targets:
        before = {name: np.array(array) for name, array in state.items()}
        pairs, after = tracker.step(target, state)
        again, same = tracker.step(target, before)
        assert pairs.value == again.value
        np.testing.assert_array_equal(pairs.vectors, again.vectors)
        for name, array in state.items():
            np.testing.assert_array_equal(array, before[name])
            np.testing.assert_array_equal(after[name], same[name])
            assert (after[name].shape, after[name].dtype) == (array.shape, array.dtype)
        state = after


@pytest.mark.parametrize("tracker", [Power(), Block()])
@pytest.mark.parametrize(
    "operator",
    [
        ConvOperator(np.zeros((2, 2, 3)), (4,)),
        ConvOperator(np.ones((1, 1, 1)), (1,)),
        ConvOperator(np.ones((1, 1, 1)), (3,)),
    ],
    ids=["zero", "one entry", "identity"],
)
def test_degenerate_maps_give_finite_numbers(tracker: Tracker, operator: ConvOperator) -> None:
    target = shifted(operator, 1.0, "input")
    state = tracker.initial(target)
    for _ in range(3):
        found, state = tracker.step(target, state)
        assert np.isfinite(found.vectors).all()
        np.testing.assert_allclose(np.linalg.norm(found.vectors.reshape(found.vectors.shape[0], -1), axis=1), 1.0)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_other_array_libraries_stay_themselves(tracker: Tracker) -> None:
    device = array_api_strict.Device("device1")
    kernel = array_api_strict.asarray(draw((2, 1, 3), (6,)).kernel.tolist(), device=device)
    operators = [ConvOperator(kernel, (6,), groups=2), ConvOperator(1.01 * kernel, (6,), groups=2)]
    state = tracker.initial(shifted(operators[0], 1.0, "input"))
    for operator in operators:
        pairs, state = tracker.step(shifted(operator, 1.0, "input"), state)
        assert pairs.vectors.device == device
        assert all(array.device == device for array in state.values())
        there = np.array(operator.kernel.to_device(array_api_strict.Device("CPU_DEVICE")))
        exact = np.linalg.svd(ConvOperator(there, (6,), groups=2).to_dense(), compute_uv=False)
        assert pairs.value == pytest.approx(max(exact[0] ** 2 - 1, 1 - exact[-1] ** 2), rel=1e-2)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="end must be one of 'largest', 'smallest', got 'middle'"):
        BlockTracker(end="middle")
    with pytest.raises(ValueError, match="reseed must be between 0 and 1, got 2"):
        BlockTracker(block=2, reseed=2)
    tracker, operator = BlockTracker(), ConvOperator(np.array([[[1, 2]]]), (4,))
    with pytest.raises(TypeError, match="the map must have a kernel of float32 or float64, got dtype int64"):
        tracker.step(operator, tracker.initial(operator))


def test_a_block_that_did_not_converge_is_said_to_have_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convla.spectra.tracked_search.EXACT_ENTRIES", 0)
    monkeypatch.setattr("convla.spectra.tracked_search.COLD_STEPS", 1)
    with pytest.warns(ConvergenceWarning, match="1 largest singular values of a 50x50 map: residual .* after 1 steps"):
        assert find(draw((2, 2, 3, 3), (5, 5)), 1, rtol=1e-12).status == "not converged"


def test_the_power_method_leaves_a_vector_that_the_map_takes_to_zero() -> None:
    # Channel 1 is cut off: its vector stays, and the other's image does not depend on it.
    target = shifted(ConvOperator(np.diag([2.0, 0.0])[:, :, None], (1,)), 1e-300, "input")
    state = {"shifted": np.eye(2), "shifted_updates": np.array(1)}
    pairs, after = Power().step(target, state)
    assert pairs.value == 4.0
    np.testing.assert_array_equal(after["shifted"][0], np.eye(2)[0])
    np.testing.assert_allclose(abs(after["shifted"][1]), np.eye(2)[1])


def test_a_start_of_modest_accuracy_iterates_and_finds_the_same() -> None:
    kernel = np.random.default_rng(2).standard_normal((40, 40, 3, 3)) / 20
    operator = ConvOperator(kernel, (4, 4))
    exact = np.linalg.svd(operator.to_dense(), compute_uv=False)
    found = find(operator, 4, rtol=1e-3)
    # A Ritz value is no larger than the singular value, and within the residual of one.
    assert np.all(found.values <= exact[:4] * (1 + 1e-12))
    assert abs(found.value**2 - exact[0] ** 2) <= 1e-3 * exact[0] ** 2
    assert float(found.residuals[0]) > 1e-12 * exact[0] ** 2, "this was a decomposition"
    np.testing.assert_allclose(find(operator, 4).values, exact[:4], rtol=1e-12)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_the_scale_of_a_kernel_changes_no_digit(end: End, groups: int, turned: bool) -> None:
    # Of 784 entries: a Krylov space at first, then the block iteration. The squares of residuals are fourth powers.
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4, 4 // groups, 3, 3))
    kernel[..., 1, 1] += 6 * np.eye(4, 4 // groups)
    tracker = BlockTracker(end=end, outermost=True, rtol=1e-3)

    def followed(dtype: type, exponent: int) -> list[np.ndarray]:
        state, numbers = None, []
        for step in range(3):
            scaled = np.ldexp((kernel * (1 + 0.003 * step)).astype(dtype), exponent)
            operator = ConvOperator(scaled, (14, 14), groups=groups)
            linear_map = operator.T if turned else operator
            found, state = tracker.step(linear_map, state or tracker.initial(linear_map))
            low, high = tracker.range(Carrier(linear_map), state)
            numbers.append(np.ldexp([*found.values, *found.residuals, *found.errors, low, high], -exponent))
            numbers.append(np.concatenate([found.left, found.right], axis=None))
        return numbers

    for dtype, exponents in ((np.float32, (-100, -40, 40, 90)), (np.float64, (-900, -531, 531, 997))):
        right = followed(dtype, 0)
        assert right[0][4] > 0  # the residual of the first
        for exponent in exponents:
            for found, wanted in zip(followed(dtype, exponent), right, strict=True):
                np.testing.assert_array_equal(found, wanted)
