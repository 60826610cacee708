"""CDG Section 4, Figures 4 to 6: what the sentences about them say, what decides them, and what it says on the digits."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats

from convla.experiments.statistics import paired_difference, spread_ratio
from convla.experiments.training.schema import read_experiment
from proofs_checks.statement import Kind, Statement, Verdict, evidence
from proofs_checks.training import MANY, recorded

__all__ = ["STATEMENTS"]

SETTINGS = {
    "cdg-figure4": (8, 5, ("SGD", "Laplacian, rasterised", "Laplacian, output channels", "Sobolev", "re-weighted")),
    "cdg-figure5": (
        128,
        25,
        (
            "SGD",
            *(f"Sobolev, {way}" for way in ("output channels", "input channels", "rasterised")),
            *(f"Laplacian, {way}" for way in ("output channels", "rasterised")),
            "Laplacian, rasterised, all layers",
        ),
    ),
    "cdg-figure6": (
        100,
        5,
        ("SGD", *(f"{kind}, λ = {lam}" for kind in ("Sobolev", "re-weighted") for lam in (1, 5, 10, 15, 20))),
    ),
}
"""Of the experiment of each figure: batch size, trials, and arms that its sentences compare."""


@evidence(
    Kind.PROOF,
    "Figures 4 to 6: each has an experiment with the printed batch size and trials, and an arm for each thing that its sentences compare",
)
def figures_have_experiments(_: int) -> str:
    for name, (batch, trials, arms) in SETTINGS.items():
        experiment = read_experiment(name)
        assert dict(experiment.full.settings)["batch_size"] == batch, name
        assert experiment.full.seeds == trials, name
        assert set(arms) <= {arm.name for arm in experiment.arms}, name
        assert experiment.measures[0] == "final-test-accuracy", name
    assert read_experiment("cdg-figure4").measures == ("final-test-accuracy", "final-train-accuracy")
    assert read_experiment("cdg-figure6").full.grid["dataset"] == ("mnist", "fashion-mnist")
    return f"{len(SETTINGS)} experiments"


@evidence(
    Kind.PROPERTY,
    "20 sets of 3 to 30 pairs: differences against SciPy's t intervals; at the ends of a ratio t of deviations the correlation of a + t b and a - t b has "
    "the probability that the level allows",
)
def comparisons_by_definition(_: int) -> str:
    rng = np.random.default_rng(0)
    for count in range(3, 31, 3):
        a, b = rng.normal(size=(2, count))
        a = 1.5 * a + b
        for comparisons in (1, 4):
            gap = paired_difference(a.tolist(), b.tolist(), comparisons)
            spread = spread_ratio(a.tolist(), b.tolist(), comparisons)
            assert gap.seeds == spread.seeds == count
            assert math.isclose(spread.ratio, a.std() / b.std(), rel_tol=1e-12)
            for level, ends, bounds in (
                (0.05, (spread.low, spread.high), (gap.low, gap.high)),
                (
                    0.05 / comparisons,
                    (spread.simultaneous_low, spread.simultaneous_high),
                    (gap.simultaneous_low, gap.simultaneous_high),
                ),
            ):
                wanted = scipy.stats.ttest_rel(a, b).confidence_interval(1 - level)
                assert np.allclose(bounds, wanted, rtol=1e-9), (count, comparisons)
                assert ends[0] < spread.ratio < ends[1], (count, comparisons)
                for t in ends:
                    found = scipy.stats.pearsonr(a + t * b, a - t * b).pvalue
                    assert math.isclose(found, level, rel_tol=1e-6), (count, comparisons, found)
    # Equal differences of counts: the deviation of a difference of two rounded values, 1 / sqrt 6, stands in.
    same = paired_difference([51.0] * 5, [50.0] * 5, resolution=1.0)
    assert math.isclose(same.high - 1.0, scipy.stats.t.ppf(0.975, 4) / math.sqrt(6 * 5), rel_tol=1e-9), same
    assert math.isnan(spread_ratio([1.0, 2.0], [2.0, 5.0]).ratio), "two seeds say nothing of a spread"
    return "20 differences and ratios, at two levels each"


TRIALS = 25
"""Runs of each method in Figure 5."""


@evidence(
    Kind.MEASUREMENT,
    "Fisher's F of two sets of 25 normal runs: the ratio of standard deviations that the test at 5 % sees in four of five experiments",
)
def spreads_that_25_runs_show(_: int) -> str:
    least = scipy.stats.f.isf(0.025, TRIALS - 1, TRIALS - 1)
    ratio = math.sqrt(least / scipy.stats.f.ppf(0.2, TRIALS - 1, TRIALS - 1))
    seen = scipy.stats.f.sf(least / ratio**2, TRIALS - 1, TRIALS - 1)
    assert math.isclose(seen, 0.8, rel_tol=1e-9), seen
    assert 1.7 < ratio < 1.9, ratio
    return f"a factor of {ratio:.2f}; {math.sqrt(least):.2f} is the least that it calls significant"


@evidence(
    Kind.MEASUREMENT,
    f"the runs of `cdg-figure11` on the digits, {MANY} seeds in pairs, recorded: test accuracy of the two gradients less SGD's, and the ratio of "
    "standard deviations over the seeds, with intervals for both",
)
def spreads_on_digits(_: int) -> str:
    runs = recorded()["measured"]["cdg-figure11"]["final-test-accuracy"]
    found = []
    for arm in ("re-weighted", "Sobolev"):
        assert len(runs[arm]) == len(runs["SGD"]) == MANY, arm
        gap, spread = paired_difference(runs[arm], runs["SGD"], 2), spread_ratio(runs[arm], runs["SGD"], 2)
        assert spread.verdict() == "no difference seen", spread
        assert gap.within(1.0), gap
        found.append(
            f"{arm}: {gap.mean:+.2f} [{gap.simultaneous_low:+.2f}, {gap.simultaneous_high:+.2f}] %; deviation times {spread.ratio:.2f} "
            f"[{spread.simultaneous_low:.2f}, {spread.simultaneous_high:.2f}]"
        )
    return f"SGD: {np.mean(runs['SGD']):.2f} ± {np.std(runs['SGD'], ddof=1):.2f} %; " + "; ".join(found)


STATEMENTS = (
    Statement(
        id="CDG-spread",
        number="Section 4, Figure 5, left",
        title="less varying test accuracies",
        claim="Over 25 trials on CIFAR-10 the Sobolev gradient has a higher average test accuracy than SGD, with significantly reduced variance.",
        verdict=Verdict.UNDECIDED,
        evidence=(spreads_that_25_runs_show, spreads_on_digits, comparisons_by_definition),
        functions=("convla.experiments.statistics.spread_ratio", "convla.experiments.statistics.paired_difference"),
        note="Histograms are drawn, without numbers. What would decide: over its 25 seeds, in pairs, the interval of the ratio of standard deviations lies below 1: "
        "`convla train cdg-figure5` writes it into spread.csv; at the source's size it takes CIFAR-10 and a GPU. Of generated images the claim holds by the "
        "printed numbers (CDG-variance).",
    ),
    Statement(
        id="CDG-figures",
        number="Section 4, Figures 4 to 6",
        title="what channel-directed gradients do for training",
        claim="In batches of 8 both gradients improve training and test accuracy over SGD and over Laplacian smoothing, in either order (Figure 4); the output "
        "channels are the best direction whatever smooths, and smoothing convolutional layers alone in rasterised order is worse than SGD (Figure 5); every "
        "lambda to 20 improves SGD (Figure 6).",
        verdict=Verdict.UNDECIDED,
        evidence=(figures_have_experiments,),
        note="Curves and bars are drawn, without numbers or spreads. What would decide: over the printed trials, in pairs, the interval of the difference to SGD, and to "
        "each arm that is said to be worse, at 95 % for all of a figure at once, lies above 0. `convla train cdg-figure4`, `cdg-figure5` and `cdg-figure6` print the "
        "differences to SGD, and runs.csv has the others' pairs; at the source's size they take the data and a GPU.",
    ),
)
