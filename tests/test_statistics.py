"""Columns A-D, their errors and what they say of print, against direct computation and distributions that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from convla.experiments.csm.agreement import LEAST, Verdict, carriers, compare, decide
from convla.experiments.csm.columns import columns_of, estimate, resampled
from convla.experiments.csm.coverage import measure_coverage
from convla.experiments.csm.published import (
    PUBLISHED_REPETITIONS,
    QUANTITIES,
    PublishedCell,
    published_cells,
    published_tables,
)
from convla.experiments.csm.settings import TABLES, Readings, table_settings
from convla.experiments.csm.summary import summarize
from convla.experiments.descents.outcome import Outcome, run_setting
from convla.experiments.statistics import Estimate, all_positive, holm, median_interval, mostly_true, share_interval


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
    outcome = _outcome(np.full((3, 2), np.nan), np.full(3, np.nan))
    columns = estimate(outcome)
    assert math.isnan(columns["B_reduction_frequency_pct"].value)
    assert columns["corr_mean"].count == 0
    verdicts = decide(compare(published_cells(2), outcome))
    assert {v.verdict for v in verdicts if not v.cell.quantity.startswith("D")} == {"undecided"}


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


def _correlated(size: int, seed: int = 0) -> Outcome:
    """Repetitions that all decrease, to a quarter, and whose correlations are uniform on [0, 1]."""
    return _outcome(np.tile([4.0, 1.0], (size, 1)), np.random.default_rng(seed).uniform(size=size))


@pytest.mark.parametrize("size", [1_000, 4_000])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, -2.5])
def test_the_probability_of_a_mean_is_that_of_two_normal_samples(size: int, shift: float) -> None:
    outcome = _correlated(size)
    ours = estimate(outcome)["corr_mean"].value
    spread = math.sqrt((1.0 / 1000 + 1.0 / size) / 12.0)
    (verdict,) = compare([_cell("corr_mean", ours + shift * spread)], outcome)
    expected = 2.0 * stats.norm.sf(abs(shift))
    # Four standard deviations of a share of the resampled runs, and the sample's own standard deviation, which is a
    # twentieth off at the most.
    runs = 20_000 if expected < 0.1 else 1_000
    slack = 2 * 4 * math.sqrt(expected / 2 / runs) + 2.0 * stats.norm.pdf(shift) * abs(shift) * 0.05
    assert verdict.p == pytest.approx(min(1.0, expected), abs=slack)
    assert verdict.z == pytest.approx(-shift, abs=0.05 * abs(shift) + 4 * abs(shift) / math.sqrt(2 * 1000))
    assert verdict.verdict == "reproduced"


def test_rounding_in_print_is_free() -> None:
    outcome = _correlated(1000)
    ours = estimate(outcome)["corr_mean"].value
    near, far = compare([_cell("corr_mean", ours + 0.004, 0.005), _cell("corr_mean", ours + 0.045, 0.005)], outcome)
    assert near.z == 0.0
    assert far.z == pytest.approx(-0.04 / math.sqrt(2.0 / 1000 / 12), rel=0.1)


@pytest.mark.parametrize(("ours", "printed"), [(500, 500), (998, 1000), (700, 640), (1000, 1000), (10, 0)])
def test_the_probability_of_a_frequency_is_fishers(ours: int, printed: int) -> None:
    similarity = np.array([[2.0, 1.0]] * ours + [[1.0, 2.0]] * (1000 - ours))
    (verdict,) = compare([_cell("B_reduction_frequency_pct", printed / 10.0)], _outcome(similarity))
    expected = stats.fisher_exact([[ours, 1000 - ours], [printed, 1000 - printed]])[1]
    assert verdict.p == pytest.approx(expected, rel=1e-6)


def test_a_spread_that_few_repetitions_carry_is_undecided() -> None:
    """Shortfalls from 100 % in 5 of 1000 repetitions: whatever is printed, they say too little of their own rarity."""
    similarity = np.tile([1.0, 1e-6], (1000, 1))
    similarity[:5, 1] = 0.5
    outcome = _outcome(similarity, np.random.default_rng(0).uniform(size=1000))
    columns = columns_of(outcome)
    assert carriers("C_decrease_mean_pct", columns) == pytest.approx(5.0, rel=0.02)
    assert carriers("corr_mean", columns) > 400  # 1000 / 1.8, the kurtosis of a uniform law
    for printed in (99.75, 99.0, 50.0):
        (verdict,) = decide(compare([_cell("C_decrease_mean_pct", printed)], outcome))
        assert (verdict.verdict, math.isnan(verdict.p)) == ("undecided", True)
    similarity[: 2 * LEAST, 1] = 0.5
    (verdict,) = decide(compare([_cell("C_decrease_mean_pct", 50.0)], _outcome(similarity)))
    assert verdict.verdict == "not reproduced"


def test_resampled_runs_are_those_of_their_size() -> None:
    columns = columns_of(_correlated(500))
    values = columns["corr"]
    runs = resampled(columns, 50, 4000)
    error = values.std() / math.sqrt(50)
    assert runs["corr_mean"].mean() == pytest.approx(values.mean(), abs=4 * error / math.sqrt(4000))
    assert runs["corr_mean"].std() == pytest.approx(error, rel=4 / math.sqrt(8000))
    assert np.isnan(runs["D_increase_mean_pct"]).all()
    np.testing.assert_allclose(runs["C_decrease_mean_pct"], 75.0, rtol=1e-13)


def test_of_many_cells_in_agreement_few_reports_contradict_one() -> None:
    """Holm's correction keeps its level: of 200 reports on 90 agreeing cells about 5 % contradict any."""
    rng = np.random.default_rng(0)
    cell, ours = _cell("corr_mean", 0.5), Estimate(0.5, 0.1, 1000)
    contradicted = 0
    for _ in range(400):
        verdicts = decide([Verdict(cell, ours, 0.0, p, math.nan, "reproduced") for p in rng.uniform(size=90)])
        contradicted += any(verdict.verdict == "not reproduced" for verdict in verdicts)
    assert stats.binomtest(contradicted, 400, 0.05).pvalue > 1e-3
    verdicts = decide([Verdict(cell, ours, 0.0, p, math.nan, "reproduced") for p in [4e-4, *np.full(89, 0.5)]])
    assert [verdict.verdict for verdict in verdicts].count("not reproduced") == 1
    assert verdicts[0].holm == pytest.approx(90 * 4e-4)


def test_holms_correction_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    for p in rng.uniform(size=(20, 7)) ** 3:
        adjusted = holm(p.tolist())
        for level in rng.uniform(size=20):
            rejected = 0
            for index in np.argsort(p):  # step down while p(k) <= level / (7 - k)
                if p[index] > level / (7 - rejected):
                    break
                rejected += 1
            assert sum(value <= level for value in adjusted) == rejected
    assert holm([0.01, math.nan])[0] == 0.02


@pytest.mark.parametrize(("count", "size"), [(0, 9), (9, 9), (4, 9), (17, 20)])
@pytest.mark.parametrize("comparisons", [1, 6])
def test_intervals_of_shares_are_clopper_and_pearsons(count: int, size: int, comparisons: int) -> None:
    expected = stats.binomtest(count, size).proportion_ci(1.0 - 0.05 / comparisons, method="exact")
    assert share_interval(count, size, comparisons) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_intervals_of_medians_hold_at_their_level() -> None:
    rng = np.random.default_rng(0)
    for size in (6, 12, 25):
        missed = sum(
            not low <= 0.0 <= high for low, high in map(median_interval, rng.normal(size=(4000, size)).tolist())
        )
        exact = 2 * stats.binom.cdf(stats.binom.ppf(0.025, size, 0.5) - 1, size, 0.5)
        assert stats.binomtest(missed, 4000, exact).pvalue > 1e-3
        assert exact <= 0.05
    assert median_interval([1.0, 2.0, 3.0]) == (-math.inf, math.inf)


def test_verdicts_on_many_things_are_wrong_as_seldom_as_they_say() -> None:
    rng = np.random.default_rng(0)
    # At the boundary, where neither is true: four things each true of half.
    found = [mostly_true([(count, 25) for count in counts]) for counts in rng.binomial(25, 0.5, (2000, 4)).tolist()]
    assert found.count("does not hold") <= 0.05 * 2000
    assert found.count("holds") <= 0.05 * 2000
    found = [all_positive(scores) for scores in rng.normal(size=(2000, 4)).tolist()]
    assert found.count("does not hold") <= 0.05 * 2000 + 4 * math.sqrt(0.05 * 2000)
    assert all_positive([5.0, 4.0]) == "holds"


@pytest.mark.command
def test_coverage_is_nominal_for_normal_columns_and_not_where_tails_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Column C falls short of 100 % once in a thousand: a run of 1000 that misses it is far too sure of itself."""
    monkeypatch.setattr("convla.experiments.csm.coverage.SEEDS", 2)
    setting = next(s for s in table_settings() if s.name == "tables34-N3-Adam")
    rng = np.random.default_rng(0)
    end = np.where(rng.uniform(size=40_000) < 1e-3, 0.5, 1e-9 * rng.uniform(size=40_000))
    outcome = _outcome(np.stack([np.ones(40_000), end], axis=1), rng.normal(size=40_000))
    coverage = measure_coverage({setting: summarize([outcome], run=PUBLISHED_REPETITIONS)})
    rows = {row.cell.quantity: row for row in coverage.rows}
    assert {row.runs for row in coverage.rows} == {40}
    assert rows["corr_mean"].believed == pytest.approx(1.0, rel=4 / math.sqrt(2 * 40))
    assert rows["corr_mean"].value == estimate(outcome)["corr_mean"].value
    for name, nominal in (("corr_mean", 95.0), ("corr_std", 95.0)):
        assert rows[name].covered == pytest.approx(nominal, abs=100 * 4 * math.sqrt(0.05 * 0.95 / 40))
        assert rows[name].contradicted == pytest.approx(5.0, abs=100 * 4 * math.sqrt(0.05 * 0.95 / 40))
    # Of the runs exp(-1) hold no shortfall at all: their intervals hold next to nothing.
    missing = np.exp(-1.0)
    assert rows["C_decrease_mean_pct"].covered <= 100 * (1 - missing) + 400 * math.sqrt(missing * (1 - missing) / 40)
    assert len(coverage.seeds) == 2
    assert any("C mean % in Table 4" in line for line in coverage.lines())


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
    estimates = {cell.quantity: Estimate(ours[0], math.nan, ours[1])}
    (result,) = decide(compare([cell], _correlated(50), estimates))
    assert result.verdict == verdict
    assert math.isnan(result.z)


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
def test_runs_that_take_the_place_of_print_are_contradicted_as_often_as_they_should() -> None:
    """Of every cell that a long run decides, shares of runs of 1000 with p < 0.05; and few intervals of A that fail."""
    outcomes = {
        setting: run_setting(setting.descent(Readings()), repetitions=40_000, seed=5) for setting in table_settings()
    }
    rows = measure_coverage(outcomes).rows
    decided = [row for row in rows if not math.isnan(row.contradicted)]
    assert len(decided) >= 70
    for row in decided:
        # The exact test of counts is conservative where they are few.
        count = round(row.contradicted / 100 * row.runs)
        assert stats.binomtest(count, row.runs, 0.05, alternative="greater").pvalue > 1e-4, row


def test_more_repetitions_than_are_kept_are_estimated_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    size = 20_000
    end = np.where(rng.uniform(size=size) < 0.9, rng.uniform(0.0, 1.0, size), 1.0 + rng.uniform(size=size))
    outcome = _outcome(np.stack([np.ones(size), end], axis=1), rng.normal(size=size))
    whole = summarize([outcome])
    assert (whole.estimates, whole.is_whole) == (estimate(outcome), True)
    monkeypatch.setattr("convla.experiments.csm.summary.MOST", 2048)
    cuts = [np.arange(0, size, step) for step in (size, 7000, 1024)]
    streams = [[_slice(outcome, start, start + int(np.diff(cut, append=size)[0])) for start in cut] for cut in cuts]
    found = [summarize(stream, run=1000) for stream in streams]
    assert found[0].estimates == found[1].estimates == found[2].estimates
    first = found[0]
    assert (first.kept.repetitions, first.repetitions, first.is_whole) == (2048, size, False)
    assert (first.failed, first.converged, first.diverged) == (int((end >= 1.0).sum()), size, 0)
    assert {len(values) for values in first.runs.values()} == {20}
    for name, ours in whole.estimates.items():
        got = first.estimates[name]
        assert got.count == ours.count
        # Sums of 20,000 values about 100 or less; those of squares are about the mean.
        assert got.value == pytest.approx(ours.value, rel=1e-12, abs=1e-12)
        # Of 400 resamples the bootstrap's own error is 1 / sqrt(800) of itself.
        if np.isfinite(ours.stderr):
            assert got.stderr == pytest.approx(ours.stderr, rel=4 / math.sqrt(800))


def _slice(outcome: Outcome, start: int, stop: int) -> Outcome:
    return Outcome(**{name: values[start:stop] for name, values in vars(outcome).items()})
