"""Columns A-D and their standard errors, against direct computation and against distributions that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from convla.experiments.csm.columns import compare, estimate
from convla.experiments.csm.published import QUANTITIES, TABLES, PublishedCell, published_cells, published_tables
from convla.experiments.csm.settings import Readings, table_settings
from convla.experiments.descents.outcome import Outcome, run_setting
from convla.experiments.statistics import Estimate

ROOT2 = math.sqrt(2.0)
BOTH = 0.3 / math.sqrt(1000.0)  # the error of a mean of 1000 with the standard deviation 0.3


def _outcome(similarity: np.ndarray, correlation: np.ndarray | None = None) -> Outcome:
    size = similarity.shape[0]
    ones, norms = np.ones((size, 2)), np.ones((size, 2, 2))
    return Outcome(np.zeros(size) if correlation is None else correlation, ones, similarity, norms, ones)


def _cell(quantity: str, value: float, half_unit: float = 0.0, std: float = 1.0, count: int = 1000) -> PublishedCell:
    return PublishedCell(1, 3, "SGD", quantity, value, half_unit, std, count, "")


def test_columns_are_their_definitions() -> None:
    similarity = np.array([[4.0, 1.0], [2.0, 1.0], [1.0, 3.0], [1.0, 2.0], [5.0, 5.0]])
    columns = estimate(_outcome(similarity, np.array([0.1, 0.2, 0.3, 0.4, 0.5])))
    expected = {
        "corr_mean": 0.3,
        "corr_std": np.std([0.1, 0.2, 0.3, 0.4, 0.5], ddof=1),
        "B_reduction_frequency_pct": 40.0,
        "C_decrease_mean_pct": 62.5,
        "C_decrease_std_pct": np.std([75.0, 50.0], ddof=1),
        "D_increase_mean_pct": 150.0,
        "D_increase_std_pct": np.std([200.0, 100.0], ddof=1),
    }
    assert set(columns) == set(QUANTITIES)
    for name, value in expected.items():
        assert columns[name].value == pytest.approx(value, rel=1e-13), name


def test_diverged_repetitions_enter_nothing() -> None:
    similarity = np.array([[4.0, 1.0], [2.0, np.nan], [1.0, np.inf], [4.0, 3.0]])
    outcome = _outcome(similarity, np.array([0.5, np.nan, np.nan, 0.7]))
    columns = estimate(outcome)
    assert outcome.diverged == 2
    assert columns["B_reduction_frequency_pct"].value == 100.0
    assert columns["corr_mean"] == Estimate(pytest.approx(0.6), pytest.approx(columns["corr_mean"].stderr), 2)
    assert columns["D_increase_mean_pct"].count == 0


def test_a_column_without_entries_is_zero_as_in_print_and_has_no_error() -> None:
    columns = estimate(_outcome(np.array([[2.0, 1.0], [3.0, 1.0], [1.0, 2.0]])))
    assert columns["D_increase_std_pct"].value == 0.0
    assert math.isnan(columns["D_increase_mean_pct"].stderr)


def test_all_repetitions_diverged() -> None:
    columns = estimate(_outcome(np.full((3, 2), np.nan), np.full(3, np.nan)))
    assert math.isnan(columns["B_reduction_frequency_pct"].value)
    assert columns["corr_mean"].count == 0
    assert {
        compare(cell, columns[cell.quantity]).verdict for cell in published_cells(2) if cell.quantity[0] != "D"
    } == {"undecided"}


def test_bootstrap_errors_are_those_of_a_normal_sample() -> None:
    size = 4000
    columns = estimate(_outcome(np.tile([2.0, 1.0], (size, 1)), np.random.default_rng(0).normal(size=size)))
    # The error of a bootstrap error from 400 resamples is 1 / sqrt(800) of it: four of those.
    tolerance = 4 / math.sqrt(800)
    assert columns["corr_mean"].stderr == pytest.approx(1 / math.sqrt(size), rel=tolerance)
    assert columns["corr_std"].stderr == pytest.approx(1 / math.sqrt(2 * size), rel=tolerance)


def test_the_bootstrap_follows_its_seed() -> None:
    outcome = _outcome(np.tile([2.0, 1.0], (50, 1)), np.random.default_rng(0).normal(size=50))
    once = estimate(outcome)
    assert once == estimate(outcome)
    assert once != estimate(outcome, seed=1)


def test_the_error_of_a_frequency_is_binomial_and_positive_at_its_ends() -> None:
    half = estimate(_outcome(np.array([[2.0, 1.0], [1.0, 2.0]] * 500)))["B_reduction_frequency_pct"]
    assert half.stderr == pytest.approx(100 * math.sqrt(0.25 / 1000), rel=2e-3)
    assert estimate(_outcome(np.tile([2.0, 1.0], (1000, 1))))["B_reduction_frequency_pct"].stderr > 0.0


@pytest.mark.parametrize(
    ("cell", "ours", "z", "verdict"),
    [
        # Means: half a printed unit is free; the errors of both runs add in quadrature.
        (_cell("corr_mean", 0.5, 0.005, std=0.3), Estimate(0.504, BOTH, 1000), 0.0, "reproduced"),
        (_cell("corr_mean", 0.5, 0.005, std=0.3), Estimate(0.535, BOTH, 1000), 0.03 / BOTH / ROOT2, "reproduced"),
        (_cell("corr_mean", 0.5, 0.005, std=0.3), Estimate(0.45, BOTH, 1000), -0.045 / BOTH / ROOT2, "not reproduced"),
        # Standard deviations: the larger of the two estimates of the printed one's error.
        (_cell("corr_std", 0.2), Estimate(0.1, 0.02, 1000), -0.1 / math.hypot(0.02, 0.04), "reproduced"),
        # Frequencies: the pooled two-sample score.
        (_cell("B_reduction_frequency_pct", 50.0), Estimate(50.0, 1.0, 1000), 0.0, "reproduced"),
        (_cell("B_reduction_frequency_pct", 40.0), Estimate(60.0, 1.0, 1000), 0.2 / math.sqrt(5e-4), "not reproduced"),
        (_cell("B_reduction_frequency_pct", 100.0), Estimate(100.0, 0.1, 1000), 0.0, "reproduced"),
    ],
)
def test_verdicts_on_columns_a_to_c(cell: PublishedCell, ours: Estimate, z: float, verdict: str) -> None:
    result = compare(cell, ours)
    assert result.z == pytest.approx(z, rel=1e-12, abs=1e-12)
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("quantity", "published", "ours", "verdict"),
    [
        ("mean", (0.0, 0), (0.0, 0), "reproduced"),
        ("mean", (0.0, 0), (5.0, 1), "not reproduced"),
        ("std", (0.0, 0), (0.0, 1), "not reproduced"),
        ("mean", (5.0, 1), (0.0, 0), "not reproduced"),
        ("mean", (5.0, 4), (49.0, 4), "order of magnitude only"),
        ("mean", (5.0, 4), (51.0, 4), "not reproduced"),
        ("mean", (5.0, 4), (5.0, 4), "order of magnitude only"),
        ("std", (0.0, 1), (200.0, 4), "order of magnitude only"),
    ],
)
def test_column_d_is_never_more_than_an_order_of_magnitude(
    quantity: str, published: tuple[float, int], ours: tuple[float, int], verdict: str
) -> None:
    cell = _cell(f"D_increase_{quantity}_pct", published[0], count=published[1])
    result = compare(cell, Estimate(ours[0], math.nan, ours[1]))
    assert result.verdict == verdict
    assert math.isnan(result.z)


def test_z_scores_of_two_runs_of_one_distribution_are_standard() -> None:
    """The scores are what they claim: over many pairs of runs of 1000 their mean square is 1."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(200):
        theirs, ours = rng.uniform(0, 1, (2, 1000))
        cell = _cell("corr_mean", theirs.mean(), std=theirs.std(ddof=1))
        scores.append(compare(cell, Estimate(ours.mean(), ours.std(ddof=1) / math.sqrt(1000), 1000)).z)
    assert np.mean(np.square(scores)) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 200))


def test_the_data_file_is_complete() -> None:
    assert [len(published_cells(table)) for table in TABLES] == [12, 30, 12, 30, 12, 30]
    assert len(published_tables()["flags"]) == 13
    flagged = [cell for table in TABLES for cell in published_cells(table) if cell.flag]
    assert {(cell.table, cell.n, cell.optimizer) for cell in flagged} >= {(2, 9, "SGD"), (6, 16, "SGD"), (1, 16, "SGD")}


@pytest.mark.parametrize(
    ("table", "n", "optimizer", "quantity", "value", "half_unit", "count"),
    [
        (1, 3, "Adam", "corr_mean", 0.67, 0.005, 1000),
        (3, 3, "SGD", "corr_mean", 0.9, 0.005, 1000),
        (5, 3, "Adam", "corr_mean", 0.798, 0.0005, 1000),
        (2, 9, "Adam", "B_reduction_frequency_pct", 82.0, 0.0, 1000),
        (2, 3, "Adam", "C_decrease_mean_pct", 92.95, 0.005, 918),
        (2, 3, "Adam", "D_increase_mean_pct", 14120.0, 0.0, 82),
        (4, 3, "Adam", "C_decrease_mean_pct", 100.0, 0.5, 1000),
        (4, 3, "Adam", "C_decrease_std_pct", 0.0, 0.05, 1000),
        (6, 16, "SGD", "C_decrease_std_pct", 8.2, 0.005, 986),
    ],
)
def test_printed_precision(
    table: int, n: int, optimizer: str, quantity: str, value: float, half_unit: float, count: int
) -> None:
    (cell,) = [c for c in published_cells(table) if (c.n, c.optimizer, c.quantity) == (n, optimizer, quantity)]
    assert (cell.value, cell.half_unit, cell.count) == (value, pytest.approx(half_unit), count)


@pytest.mark.slow
def test_runs_of_one_experiment_seldom_contradict_each_other() -> None:
    """Blocks of 1000 repetitions, each taken as printed against the others, by column: the rates that `LIMIT` names."""
    outside: dict[str, list[bool]] = {}
    for setting in table_settings():
        whole = run_setting(setting.descent(Readings()), repetitions=12_000, seed=5)
        blocks = [
            Outcome(**{name: values[1000 * b : 1000 * (b + 1)] for name, values in vars(whole).items()})
            for b in range(12)
        ]
        columns = [estimate(block) for block in blocks]
        for quantity in ("corr_mean", "corr_std", "B_reduction_frequency_pct", "C_decrease_mean_pct"):
            for printed, ours in itertools.permutations(columns, 2):
                theirs = printed[quantity]
                std = printed.get(quantity.replace("_mean", "_std"), theirs).value
                cell = _cell(quantity, theirs.value, std=std, count=theirs.count)
                outside.setdefault(quantity, []).append(compare(cell, ours[quantity]).verdict == "not reproduced")
    # Twice the measured 0.24 %, plus four standard deviations of a frequency from 18 x 12 independent blocks.
    limit = 0.0048 + 4 * math.sqrt(0.0048 / (18 * 12))
    assert {quantity: np.mean(found) for quantity, found in outside.items() if np.mean(found) > limit} == {}
