"""Algorithm 2.1 against itself written out on dense matrices, the better descents, saving, divergence, bad input."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from convla import ConvOperator, PenaltyDescent, identity, minimize_penalty, penalty
from convla.errors import ConvergenceWarning, ConvlaError
from convla.penalties import Backtracking, Block, Exact, FixedStep, Power, Settled, Tracker, minimize
from convla.penalties.value import penalty_gradient_by_entries
from tests.interrupts import interrupted
from tests.test_operators import run_page

IMAGE = (7, 7)
SETTLING = {"tracker": Block(cluster_rtol=0.01), "step": "backtracking"}


def uniform(out: int, inner: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((out, inner, 3, 3))


def algorithm_2_1(kernel: np.ndarray, alpha: float, rate: float, steps: int) -> tuple[np.ndarray, list[float]]:
    """Algorithm 2.1 on dense matrices, with Eq. (2.5) entry by entry."""

    def shifted(kernel: np.ndarray) -> np.ndarray:
        matrix = ConvOperator(kernel, IMAGE).to_dense()
        return matrix.T @ matrix - alpha * np.eye(matrix.shape[1])

    values, vectors = np.linalg.eigh(shifted(kernel))
    order = np.argsort(-np.abs(values))[:2]
    carried, reported = [vectors[:, i] for i in order], [float(np.abs(values[order[0]]))]
    sign, v = np.sign(values[order[0]]), carried[0]
    for _ in range(steps):
        kernel = kernel - rate * penalty_gradient_by_entries(ConvOperator(kernel, IMAGE), sign * v, v)
        a, found = shifted(kernel), []
        for index in range(2):
            for _ in range(2):
                v = carried[index]
                product = a @ v
                carried[index] = product / np.linalg.norm(product)
            found.append((np.linalg.norm(product), np.sign(v @ product), v))
        value, sign, v = found[0] if found[0][0] >= found[1][0] else found[1]
        reported.append(float(value))
    return kernel, reported


@pytest.mark.parametrize(("out", "inner", "alpha"), [(3, 1, 1.0), (1, 3, 5.0), (2, 2, 0.1)])
def test_the_defaults_are_algorithm_2_1(out: int, inner: int, alpha: float) -> None:
    kernel = uniform(out, inner)
    expected, reported = algorithm_2_1(kernel, alpha, 0.01, 12)
    descent = minimize_penalty(ConvOperator(kernel, IMAGE), alpha=alpha, iterations=12)
    # The same arithmetic in another order: rounding, amplified where the power method separates close values.
    np.testing.assert_allclose(descent.trace.reported, reported, rtol=1e-9)
    np.testing.assert_allclose(descent.kernel, expected, rtol=0, atol=1e-9)


def test_the_trace_holds_the_true_values() -> None:
    descent = minimize_penalty(ConvOperator(uniform(2, 1), IMAGE), iterations=3)
    values = np.linalg.svd(ConvOperator(descent.kernel, IMAGE).to_dense(), compute_uv=False)
    trace = descent.trace
    assert trace.true[-1] == pytest.approx(float(penalty(descent.operator, 1.0)), rel=1e-12)
    assert trace.sigma_max[-1] == pytest.approx(values[0], rel=1e-12)
    assert trace.sigma_min[-1] == pytest.approx(values[-1], rel=1e-12)
    assert trace.condition[-1] == pytest.approx(values[0] / values[-1], rel=1e-12)
    assert trace.reported.shape == trace.step.shape == (4,)
    assert np.isnan(trace.step[0])
    np.testing.assert_array_equal(trace.step[1:], 0.01)


def test_the_dip_below_alpha_is_reported_but_not_true() -> None:
    trace = minimize_penalty(ConvOperator(uniform(1, 3), (15, 15)), alpha=10.0, iterations=8).trace
    assert trace.reported.min() < 5.0
    assert trace.true.min() >= 10.0


@pytest.mark.command
def test_the_barrier_and_its_remedy_side_by_side() -> None:
    kernel = uniform(1, 3)
    ends = {
        gram: minimize_penalty(ConvOperator(kernel, (15, 15)), iterations=60, gram=gram, **SETTLING)
        for gram in ("input", "smaller")
    }
    barred, freed = (ends[gram].trace for gram in ("input", "smaller"))
    assert ends["input"].status == "stationary"
    assert barred.true[-1] == pytest.approx(1.0, abs=1e-12)
    assert freed.true[-1] < 0.5
    assert freed.sigma_min[-1] > 2 * barred.sigma_min[-1]
    assert freed.condition[-1] < barred.condition[-1] / 2


@pytest.mark.command
@pytest.mark.parametrize("seed", [6, 15, 32, 34, 38])
def test_a_value_from_beside_the_block_is_reported_when_all_of_the_block_are_pushed_below_it(seed: int) -> None:
    groups = 1 + seed % 2
    kernel = np.random.default_rng(seed).standard_normal((2 * groups, 2, 4)) / 3
    operator = ConvOperator(kernel, (44,), padding="full", groups=groups)
    alpha = 0.2 * np.linalg.norm(operator.to_dense(), 2) ** 2
    options = {"tracker": Block(cluster_rtol=0.01), "step": FixedStep(0.01)}
    kernels = [kernel]
    descent = minimize_penalty(
        operator, alpha, iterations=20, **options, callback=lambda at: kernels.append(np.array(at.kernel))
    )
    for kernel, reported in zip(kernels, descent.trace.reported, strict=True):
        true = float(penalty(operator.with_kernel(kernel), alpha))
        assert abs(reported - true) <= 2e-3 * max(true + alpha, alpha)


def test_at_the_end_of_a_settled_descent_both_ends_balance() -> None:
    trace = minimize_penalty(ConvOperator(uniform(3, 1), (15, 15)), iterations=60, **SETTLING).trace
    upper, lower = trace.sigma_max[-1] ** 2 - 1.0, 1.0 - trace.sigma_min[-1] ** 2
    # Both within the cluster's width, a hundredth of sigma_max^2.
    assert abs(upper - lower) <= 0.01 * trace.sigma_max[-1] ** 2


@pytest.mark.parametrize("tracker", [Block(cluster_rtol=0.01), Exact(cluster_rtol=0.01)])
def test_backtracking_never_goes_up(tracker: Tracker) -> None:
    descent = minimize_penalty(
        ConvOperator(uniform(2, 1), IMAGE), iterations=30, tracker=tracker, step=Backtracking(learning_rate=1.0)
    )
    assert (np.diff(descent.trace.reported) < 0).all()
    assert descent.trace.true[-1] < 0.05 * descent.trace.true[0]


def test_it_stops_when_the_penalty_no_longer_decreases() -> None:
    descent = minimize_penalty(
        ConvOperator(uniform(1, 2), IMAGE), iterations=500, stop=Settled(tolerance=1e-3, patience=5)
    )
    assert descent.status == "converged"
    least = np.minimum.accumulate(descent.trace.reported)
    assert least[-6] - least[-1] <= 1e-3 * least[-1]
    assert descent.iteration < 500


@pytest.mark.parametrize("options", [{}, SETTLING, {"tracker": "exact"}, {"tracker": "block", "gram": "smaller"}])
def test_a_saved_descent_goes_on_with_the_same_numbers(tmp_path: pathlib.Path, options: dict) -> None:
    whole = minimize_penalty(ConvOperator(uniform(2, 3), IMAGE, padding="valid"), iterations=10, **options)
    minimize_penalty(ConvOperator(uniform(2, 3), IMAGE, padding="valid"), iterations=4, **options).save(
        tmp_path / "part.npz"
    )
    resumed = PenaltyDescent.load(tmp_path / "part.npz").run(6)
    np.testing.assert_array_equal(resumed.kernel, whole.kernel)
    for name in ("reported", "true", "step"):
        np.testing.assert_array_equal(getattr(resumed.trace, name), getattr(whole.trace, name))
    assert (resumed.status, resumed.iteration) == (whole.status, whole.iteration)
    assert [path.name for path in tmp_path.iterdir()] == ["part.npz"]


def test_a_descent_interrupted_in_the_middle_goes_on_from_what_its_callback_saved(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "part.npz"

    def interrupt(descent: PenaltyDescent) -> None:
        if descent.iteration == 5:
            raise KeyboardInterrupt
        descent.save(path)

    whole = minimize_penalty(ConvOperator(uniform(2, 3), IMAGE), iterations=10, **SETTLING)
    with pytest.raises(KeyboardInterrupt):
        minimize_penalty(ConvOperator(uniform(2, 3), IMAGE), iterations=10, callback=interrupt, **SETTLING)
    part = PenaltyDescent.load(path)
    assert part.iteration == 4
    resumed = part.run(6)
    np.testing.assert_array_equal(resumed.kernel, whole.kernel)
    np.testing.assert_array_equal(resumed.trace.true, whole.trace.true)


def test_a_file_that_is_no_descent_is_refused(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "other.npz", kernel=np.ones(3))
    with pytest.raises(ConvlaError, match=r"other\.npz is not a saved descent"):
        PenaltyDescent.load(tmp_path / "other.npz")


def test_the_callback_sees_every_step_and_can_stop() -> None:
    seen: list[int] = []
    descent = minimize_penalty(
        ConvOperator(uniform(1, 1), IMAGE),
        iterations=10,
        callback=lambda d: seen.append(d.iteration) or d.iteration == 4,
    )
    assert seen == [1, 2, 3, 4]
    assert descent.status == "stopped"


def test_an_interrupt_leaves_the_last_whole_step_to_go_on_from() -> None:
    def interrupt(descent: PenaltyDescent[ConvOperator]) -> None:
        if descent.iteration == 2:
            raise KeyboardInterrupt

    operator = ConvOperator(uniform(1, 1), IMAGE)
    descent = PenaltyDescent(operator)
    with pytest.raises(KeyboardInterrupt):
        descent.run(5, interrupt)
    assert (descent.status, descent.iteration, len(descent.trace.reported)) == ("interrupted", 2, 3)
    whole = minimize_penalty(operator, iterations=5)
    np.testing.assert_array_equal(descent.run(3).kernel, whole.kernel)
    assert descent.status == "iterations"
    came, moment = True, 0
    while came:
        moment += 1
        descent = PenaltyDescent(operator)
        came = interrupted(moment, lambda descent=descent: descent.run(2), minimize)  # type: ignore[misc]
        assert len(descent.trace.reported) in (descent.iteration + 1, 0)
        np.testing.assert_array_equal(descent.run(5 - descent.iteration).kernel, whole.kernel)
        assert len(descent.trace.reported) == 6
    assert moment > 30


@pytest.mark.parametrize("rate", [1.0, 1e300])
def test_divergence_is_reported_with_its_iteration(rate: float) -> None:
    with pytest.warns(ConvergenceWarning, match=r"iteration \d+: diverged"):
        descent = minimize_penalty(ConvOperator(uniform(2, 2), IMAGE), iterations=200, step=FixedStep(rate))
    assert descent.status == "diverged"
    assert descent.iteration == descent.trace.reported.size
    assert f"iteration {descent.iteration}:" in descent.message
    assert np.isfinite(descent.kernel).all()
    assert np.isfinite(descent.trace.reported).all()
    assert descent.run(5).iteration == descent.iteration


def test_backtracking_comes_back_from_a_first_step_of_any_length() -> None:
    descent = minimize_penalty(
        ConvOperator(uniform(2, 2), IMAGE), iterations=5, **{**SETTLING, "step": Backtracking(1e300)}
    )
    assert descent.iteration == 5
    assert descent.trace.true[-1] < descent.trace.true[0]


@pytest.mark.parametrize("options", [{}, SETTLING, {"tracker": "exact"}])
@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e200), (np.float64, 1e80), (np.float32, 1e12)])
def test_a_kernel_whose_fourth_powers_overflow_is_refused(dtype: type, scale: float, options: dict) -> None:
    with pytest.raises(OverflowError, match=f"kernel is too large for a descent in {np.dtype(dtype)}"):
        minimize_penalty(ConvOperator((uniform(1, 1) * scale).astype(dtype), IMAGE), iterations=1, **options)


@pytest.mark.parametrize("tracker", ["power", "block", "exact"])
def test_a_descent_that_leaves_the_dtype_has_diverged(tracker: str) -> None:
    kernel = (uniform(1, 1) * 1e6).astype(np.float32)
    with pytest.warns(ConvergenceWarning, match=r"iteration \d+: diverged"):
        descent = minimize_penalty(ConvOperator(kernel, IMAGE), iterations=50, step=FixedStep(1.0), tracker=tracker)
    assert np.isfinite(descent.kernel).all()
    assert np.isfinite(descent.trace.reported).all()
    assert descent.iteration == descent.trace.reported.size


def test_a_large_kernel_is_not_called_stationary() -> None:
    # Scaled with the root of alpha, a descent is the same descent.
    kernel = uniform(1, 1).astype(np.float32)
    scale = 2.0**24
    descent = minimize_penalty(ConvOperator(kernel * np.float32(scale), IMAGE), iterations=5, alpha=scale**2)
    same = minimize_penalty(ConvOperator(kernel, IMAGE), iterations=5, alpha=1.0)
    assert descent.status == "iterations"
    np.testing.assert_array_equal(descent.kernel / np.float32(scale), same.kernel)


@pytest.mark.parametrize("options", [{}, SETTLING, {"tracker": "exact"}])
def test_exact_integers_are_taken_as_float64(options: dict) -> None:
    kernel = np.array([[[1, 2, -1]]], dtype=object)
    exact = minimize_penalty(ConvOperator(kernel, (9,)), iterations=3, **options)
    same = minimize_penalty(ConvOperator(kernel.astype(np.float64), (9,)), iterations=3, **options)
    np.testing.assert_array_equal(exact.kernel, same.kernel)


@pytest.mark.parametrize("options", [{}, SETTLING, {"tracker": "exact"}])
@pytest.mark.parametrize(
    ("kernel", "image"),
    [(np.zeros((2, 2, 3)), (5,)), (np.ones((1, 1, 3, 3)), (1, 1)), (np.ones((1, 1, 1)), (1,)), (uniform(1, 4), (3, 3))],
    ids=["zero", "one pixel", "one entry", "one output channel"],
)
def test_degenerate_kernels_give_finite_numbers(kernel: np.ndarray, image: tuple[int, ...], options: dict) -> None:
    descent = minimize_penalty(ConvOperator(kernel, image), iterations=30, **options)
    assert np.isfinite(descent.kernel).all()
    assert np.isfinite(descent.trace.reported).all()
    assert np.isfinite(descent.trace.true).all()


def test_float32_stays_float32_and_close() -> None:
    kernel = uniform(2, 1)
    single = minimize_penalty(ConvOperator(kernel.astype(np.float32), IMAGE), iterations=5)
    double = minimize_penalty(ConvOperator(kernel, IMAGE), iterations=5)
    assert single.kernel.dtype == np.float32
    # Five contracting steps on values of order 10, each with a few hundred roundings.
    np.testing.assert_allclose(single.trace.reported, double.trace.reported, rtol=1e3 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, "alpha must be positive, got 0"),
        ({"iterations": -1}, ValueError, "iterations must be at least 0, got -1"),
        ({"tracker": "lanczos"}, ValueError, "tracker must be one of 'block', 'exact', 'power'.*, got 'lanczos'"),
        (
            {"tracker": FixedStep()},
            TypeError,
            "tracker must be one of .* a Block, Exact, Power.* object, got convla",
        ),
        ({"step": 0.1}, TypeError, "step must be one of 'fixed', 'backtracking', or a FixedStep, .* got float"),
        ({"gram": "output"}, ValueError, "gram must be one of 'input', 'smaller', got 'output'"),
        ({"step": "backtracking"}, ValueError, "step 'backtracking' needs a penalty that can be trusted"),
        ({"stop": 1e-3}, TypeError, r"stop must be a Settled object or None, got 0\.001"),
        ({"measure": "yes"}, TypeError, "measure must be True, False or None, got 'yes'"),
        ({"callback": 3}, TypeError, "callback must be callable, got 3"),
    ],
)
def test_bad_arguments(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        minimize_penalty(ConvOperator(uniform(1, 1), IMAGE), **{"iterations": 1, **options})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FixedStep(0.0), ValueError, "learning_rate must be positive, got 0"),
        (lambda: FixedStep(float("nan")), ValueError, "learning_rate must be finite, got nan"),
        (lambda: Backtracking(learning_rate=-1.0), ValueError, "learning_rate must be positive, got -1"),
        (lambda: Power(iterations=0), ValueError, "iterations must be at least 1, got 0"),
        (lambda: Block(vectors=0), ValueError, "vectors must be at least 1, got 0"),
        (lambda: Exact(cluster_rtol=-1.0), ValueError, r"cluster_rtol must be at least 0\.0, got -1"),
        (lambda: Settled(tolerance=0.0), ValueError, "tolerance must be positive, got 0"),
    ],
)
def test_bad_settings(make: Callable[[], object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_examples_of_the_page_and_a_tracker_of_ones_own() -> None:
    names = run_page("penalty")
    layer, tracker = names["layer"], names["UpperEnd"](rtol=1e-8)
    descent = minimize_penalty(layer, iterations=3, tracker=tracker)
    exact = minimize_penalty(layer, iterations=3, tracker="exact")
    np.testing.assert_allclose(descent.trace.reported, exact.trace.reported, rtol=1e-10)


def test_a_map_without_kernels_is_refused() -> None:
    with pytest.raises(TypeError, match="operator must be made of convolutions to descend on, got Identity"):
        minimize_penalty(identity((1, 4)), iterations=1)
    with pytest.raises(TypeError, match="operator must be a LinearMap, such as a ConvOperator, got ndarray"):
        minimize_penalty(uniform(1, 1), iterations=1)
