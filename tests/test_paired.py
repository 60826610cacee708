"""Differences in pairs: their intervals against SciPy's and by how often they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from convla.experiments.statistics import mean_with_error, paired_difference


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
