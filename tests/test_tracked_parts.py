"""The penalty that a block tracker reports against LAPACK, on matrices that fall into parts, along changing kernels."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, minimize_penalty
from convla.errors import ConvergenceWarning, ShapeError
from convla.geometry import BOUNDARIES
from convla.penalties import Block, shifted
from convla.penalties.iterate import Course
from convla.spectra.carrier import Carrier
from convla.spectra.status import Status
from convla.spectra.tracked_search import Search
from convla.spectra.tracking import BlockTracker

SETTLING: dict[str, Any] = {"tracker": Block(cluster_rtol=0.01), "step": "backtracking"}


def squares(operator: ConvOperator, gram: str = "input") -> np.ndarray:
    """All eigenvalues of the Gram matrix, the largest first."""
    matrix = np.asarray(operator.to_dense(), np.float64)
    if gram == "smaller" and matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    found = np.zeros(matrix.shape[1])
    values = np.linalg.svd(matrix, compute_uv=False)
    found[: values.size] = values**2
    return found


def draw_kernel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A kernel of one of the kinds that block iterations have failed on."""
    kernel = rng.standard_normal(shape)
    alive = np.zeros(shape)
    alive[(..., *(k // 2 for k in shape[2:]))] = 1.0
    kinds = [
        kernel,
        kernel[:1] + 1e-3 * kernel,
        1.0 + 1e-4 * kernel,
        rng.integers(-4, 5, shape).astype(float),
        kernel * alive,
        np.broadcast_to(kernel[:1], shape).copy(),
        kernel * (rng.random(shape) < 0.3),
        abs(kernel),
    ]
    return kinds[rng.integers(len(kinds))]


def draw_operator(rng: np.random.Generator) -> ConvOperator:
    while True:
        ndim = int(rng.integers(1, 4))
        image = tuple(map(int, rng.integers(1, {1: 40, 2: 9, 3: 5}[ndim], ndim)))
        taps = tuple(map(int, rng.integers(1, {1: 6, 2: 5, 3: 3}[ndim], ndim)))
        groups = int(rng.choice([1, 2, 3, 8]))
        out, inner = (1, 1) if rng.random() < 0.3 else map(int, rng.integers(1, 4, 2))
        kernel = draw_kernel(rng, (groups * out, inner, *taps))
        try:
            operator = ConvOperator(
                kernel.astype(np.float32 if rng.random() < 0.3 else np.float64),
                image,
                groups=groups,
                stride=int(rng.integers(1, 4)),
                dilation=int(rng.integers(1, 4)),
                padding=("same", "full", "valid", 1)[rng.integers(4)],
                boundary=BOUNDARIES[rng.integers(len(BOUNDARIES))],
            )
        except ShapeError:  # the kernel does not fit
            continue
        if np.prod(operator.shape) < 1e5:
            return operator


def changed(rng: np.random.Generator, kernel: np.ndarray, how: int) -> np.ndarray:
    kernel = kernel.astype(np.float64)
    if how == 0:
        return kernel + 0.02 * np.abs(kernel).max() * rng.standard_normal(kernel.shape)
    if how == 1:
        kernel[rng.integers(kernel.shape[0])] *= rng.choice([4.0, 0.25, 1.1])
    elif how == 2:
        kernel[tuple(map(rng.integers, kernel.shape))] *= 0.5
        kernel[tuple(map(rng.integers, kernel.shape))] *= 1.7
    else:
        kernel = draw_kernel(rng, kernel.shape) * np.abs(kernel).max()
    return kernel


@pytest.mark.parametrize("seed", range(40))
def test_a_tracked_penalty_is_within_its_tolerance_of_the_true_one(seed: int) -> None:
    rng = np.random.default_rng([11, seed])
    operator = draw_operator(rng)
    gram, alpha, how = ("input", "smaller")[rng.integers(2)], float(rng.choice([0.1, 1.0, 10.0])), rng.integers(4)
    tracker = Block()
    target = shifted(operator, alpha, gram)
    _, state = tracker.step(target, tracker.initial(target))
    for _ in range(5):
        operator = operator.with_kernel(changed(rng, operator.kernel, int(how)).astype(operator.dtype))
        found, state = tracker.step(shifted(operator, alpha, gram), state)
        exact = squares(operator, gram)
        # The residuals of the block are at most a thousandth of sigma_max^2. A matrix of channels is decomposed,
        # and nothing is carried.
        rtol = 1e-3 if state else 100 * float(np.finfo(operator.dtype).eps)
        tolerance = rtol * max(exact[0], alpha)
        assert abs(found.value - max(exact[0] - alpha, alpha - exact[-1])) <= tolerance
        assert found.status == (Status.ESTIMATED if state else Status.EXACT)


def test_each_group_has_vectors_of_its_own() -> None:
    kernel = np.random.default_rng(0).standard_normal((6, 1, 3, 3))
    operator = ConvOperator(kernel, (12, 12), groups=6)
    tracker = BlockTracker(block=2, steps=20, rtol=1e-6)
    _, state = tracker.step(operator, tracker.initial(operator))
    for group in range(6):
        kernel = kernel.copy()
        kernel[group] *= 1.5  # one filter after another takes the lead or catches up
        operator = operator.with_kernel(kernel)
        found, state = tracker.step(operator, state)
        np.testing.assert_allclose(found.values**2, squares(operator)[:2], rtol=1e-6)


def test_vectors_of_equal_parts_are_all_given() -> None:
    # One tap: every position is a part, and all nine are equal. The stride leaves positions that nothing reads.
    operator = ConvOperator(np.array([[2.0, 0.0], [0.0, 1.0]])[:, :, None], (9,), stride=2)
    exact = squares(operator)
    for end, expected in (("largest", exact[:7]), ("smallest", exact[::-1][:9])):
        tracker = BlockTracker(block=len(expected), end=end)
        state = tracker.initial(operator)
        for _ in range(2):
            found, state = tracker.step(operator, state)
            np.testing.assert_allclose(found.values**2, expected, atol=1e-14)
            vectors = found.right.reshape(len(expected), -1)
            np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(expected)), atol=1e-14)
            images = found.values[:, None, None] * found.left
            np.testing.assert_allclose(operator.apply(found.right), images, atol=1e-14)


@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_triplets_of_many_parts_by_iteration(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    operator = ConvOperator(rng.standard_normal((4, 1, 3)), (23,), groups=2, dilation=2)
    exact = squares(operator) if end == "largest" else squares(operator)[::-1]
    monkeypatch.setattr("convla.spectra.tracked_search.EXACT_ENTRIES", 0)
    tracker = BlockTracker(block=5, end=end, rtol=1e-10)
    found, _ = tracker.step(operator, tracker.initial(operator))
    np.testing.assert_allclose(found.values**2, exact[:5], atol=1e-8 * squares(operator)[0])


def test_random_vectors_find_what_a_zero_tap_cuts_off() -> None:
    # Two channels that only the kernel's zeros keep apart; the second grows until it leads.
    rng = np.random.default_rng(0)
    taps = rng.standard_normal((2, 3, 3))
    mixing = np.eye(2)[:, :, None, None]
    operator = ConvOperator(mixing * taps[:, None], (14, 14))
    tracker = BlockTracker(block=2, steps=20, rtol=1e-4)
    _, state = tracker.step(operator, tracker.initial(operator))
    state = {**state, "vectors": np.zeros((3, operator.shape[1]))}
    state["vectors"][:, :196] = rng.standard_normal((3, 196))  # nothing points at the second channel
    for _ in range(12):
        taps[1] *= 1.1
        operator = operator.with_kernel(mixing * taps[:, None])
        found, state = tracker.step(operator, state)
    np.testing.assert_allclose(found.value**2, squares(operator)[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("seed", "shape", "groups", "image", "options"),
    [
        (0, (8, 1, 3, 3), 8, (6, 6), {}),
        (1, (4, 2, 3, 3), 2, (5, 5), {"gram": "smaller"}),
        (2, (3, 1, 1, 4), 1, (9, 2), {"boundary": "reflect"}),
        (3, (2, 2, 3), 1, (21,), {"dilation": 2}),
        (4, (4, 2, 2), 1, (30,), {"stride": 3}),
    ],
)
def test_no_accepted_step_raises_the_true_penalty(
    seed: int, shape: tuple[int, ...], groups: int, image: tuple[int, ...], options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.integers(-4, 5, shape) if shape[2] == 1 else rng.standard_normal(shape)
    gram = options.pop("gram", "input")
    operator = ConvOperator(kernel, image, groups=groups, **options)
    descent = minimize_penalty(operator, iterations=25, gram=gram, **SETTLING)
    trace = descent.trace
    assert (np.diff(trace.true) < 0).all()
    np.testing.assert_array_equal(trace.reported, trace.true)
    assert descent.accuracy == Status.EXACT


def test_a_large_matrix_is_challenged_by_another_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convla.penalties.iterate.DENSE_ENTRIES", 0)
    operator = ConvOperator(np.random.default_rng(5).standard_normal((4, 1, 3, 3)), (9, 9), groups=2)
    descent = minimize_penalty(operator, iterations=15, measure=True, **SETTLING)
    assert descent.accuracy == Status.ESTIMATED
    assert (np.diff(descent.trace.true) < 0).all()
    # What random vectors refute is found anew; what they cannot is left as it is.
    course = Course.of(operator, 1.0, "input", SETTLING["tracker"])
    found = course.begin(descent.operator, confirmed=False)
    assert course.confirmed(found) == found
    missed = dataclasses.replace(found, pairs=dataclasses.replace(found.pairs, value=0.9 * found.pairs.value))
    assert course.confirmed(missed).pairs.value == pytest.approx(found.pairs.value, rel=1e-3)


def test_a_saved_descent_keeps_its_accuracy(tmp_path: Any) -> None:
    operator = ConvOperator(np.random.default_rng(0).standard_normal((2, 1, 3)), (9,))
    for options, expected in ((SETTLING, Status.EXACT), ({"tracker": "block"}, Status.ESTIMATED)):
        descent = minimize_penalty(operator, iterations=3, **options)
        descent.save(tmp_path / "descent.npz")
        assert type(descent).load(tmp_path / "descent.npz").accuracy == descent.accuracy == expected


def test_an_update_that_does_not_converge_ends_in_a_new_search() -> None:
    rng = np.random.default_rng(1)
    operator = ConvOperator(rng.standard_normal((3, 3, 3, 3)), (10, 10))
    tracker = BlockTracker(block=2, steps=1, rtol=1e-8)
    _, state = tracker.step(operator, tracker.initial(operator))
    moved = operator.with_kernel(operator.kernel + 0.02 * rng.standard_normal(operator.kernel.shape))
    search = Search(tracker, Carrier(moved), state)
    followed, anew, bar = search.choice()
    assert (followed, anew) == ([0], [])
    assert not search.follow(followed, bar)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        found, _ = tracker.step(moved, state)
    assert found.status == Status.ESTIMATED
    np.testing.assert_allclose(found.values**2, squares(moved)[:2], rtol=1e-8)


@pytest.mark.parametrize("padding", [(1, -1), (-1, 1), (-1, 2), (2, -2), (0, 0)])
def test_a_tap_that_reads_beyond_the_only_position_is_zero(padding: tuple[int, int]) -> None:
    operator = ConvOperator(np.random.default_rng(2).standard_normal((5, 8, 1)), (1,), padding=(padding,), stride=2)
    tracker = Block()
    target = shifted(operator, 0.25, "smaller")
    found, _ = tracker.step(target, tracker.initial(target))
    distances = squares(operator, "smaller")[:5] - 0.25
    assert found.value == pytest.approx(np.abs(distances).max(), rel=1e-3)
