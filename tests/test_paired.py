"""Differences in pairs: their intervals against SciPy's and by how often they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from convla.experiments.statistics import mean_with_error, paired_difference, spread_ratio


def test_the_interval_is_the_t_interval_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 12))
    found = paired_difference(a, b, comparisons=7)
    assert (found.low, found.high) == pytest.approx(stats.ttest_rel(a, b).confidence_interval(0.95))
    wide = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / 7)
    assert (found.simultaneous_low, found.simultaneous_high) == pytest.approx(wide)


def test_the_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    count, runs = 5, 2000
    samples = rng.normal(0.3, 1.0, size=(runs, count))
    intervals = [paired_difference(sample, np.zeros(count)) for sample in samples]
    covered = sum(interval.low <= 0.3 <= interval.high for interval in intervals)
    # Four standard deviations of the binomial.
    assert abs(covered - 0.95 * runs) < 4.0 * math.sqrt(runs * 0.95 * 0.05)


def test_equal_differences_of_counts_are_no_certainty() -> None:
    same = paired_difference([51.0] * 5, [50.0] * 5, comparisons=20, resolution=1.0)
    assert same.simultaneous_low < 0.0 < same.low
    assert same.verdict(more_is_better=True) == "no difference seen"
    clear = paired_difference([61.0, 60.0, 62.0, 60.0, 61.0], [50.0] * 5, comparisons=20, resolution=1.0)
    assert clear.verdict(more_is_better=True) == "better"
    assert clear.verdict(more_is_better=False) == "worse"
    lonely = paired_difference([1.0, math.nan], [0.0, 0.0])
    assert (lonely.seeds, lonely.verdict(more_is_better=True)) == (1, "no difference seen")
    assert mean_with_error([math.nan]).count == 0


def test_the_ends_of_a_spread_are_the_ratios_that_a_test_just_allows() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 14))
    a = 2.0 * a + b  # in pairs
    found = spread_ratio([*a.tolist(), math.nan, 1.0], [*b.tolist(), 1.0, math.nan], comparisons=5)
    assert (found.ratio, found.seeds) == (pytest.approx(a.std(ddof=1) / b.std(ddof=1)), 14)
    for level, ends in ((0.05, (found.low, found.high)), (0.01, (found.simultaneous_low, found.simultaneous_high))):
        assert ends[0] < found.ratio < ends[1]
        for t in ends:
            assert stats.pearsonr(a + t * b, a - t * b).pvalue == pytest.approx(level)
    assert found.verdict() == "more spread"
    assert spread_ratio(b.tolist(), a.tolist(), 5).verdict() == "less spread"
    turned = spread_ratio(b.tolist(), a.tolist())
    assert (turned.low, turned.high) == pytest.approx((1.0 / found.high, 1.0 / found.low))
    for values, baseline in (([1.0, 2.0], [2.0, 5.0]), ([1.0] * 4, [1.0, 2.0, 3.0, 4.0])):
        nothing = spread_ratio(values, baseline)
        assert math.isnan(nothing.ratio)
        assert nothing.verdict() == "no difference seen"


def test_spreads_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    runs = 1000
    common, a, b = rng.normal(size=(3, runs, 6))
    found = [spread_ratio(*pair) for pair in zip(3.0 * (common + a), common + b, strict=True)]
    covered = sum(interval.low <= 3.0 <= interval.high for interval in found)
    assert abs(covered - 0.95 * runs) < 4.0 * math.sqrt(runs * 0.95 * 0.05)
