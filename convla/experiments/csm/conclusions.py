"""Sentences of the source, and of ours, that the runs decide, each with the numbers that decide it.

A sentence on several rows holds, or does not, where that is wrong with a probability of at most 5 % for all rows at
once; it is undecided otherwise. That plain shrinkage does at least as well allows ties, which no test tells from small
losses: it holds where no cell of the run is worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from convla.experiments.csm.published import PUBLISHED_REPETITIONS
from convla.experiments.csm.settings import Setting
from convla.experiments.csm.summary import Summary
from convla.experiments.descents.outcome import Floats, Outcome
from convla.experiments.source import Conclusion
from convla.experiments.statistics import Estimate, all_positive, mostly_true

__all__ = ["draw_conclusions"]

Summaries = Mapping[Setting, Summary]
Estimates = Mapping[Setting, Mapping[str, Estimate]]
T = TypeVar("T")


def draw_conclusions(found: Summaries) -> list[Conclusion]:
    """Return the sentences that the settings at hand can decide; each needs all rows that it speaks of."""
    estimates = {setting: summary.estimates for setting, summary in found.items()}
    outcomes = {setting: summary.kept for setting, summary in found.items()}
    candidates = [
        _orthogonality_is_not_enough(found),
        _correlates_better(estimates),
        _always_decreases(found, (3, 4)),
        _always_decreases(found, (5, 6)),
        _worst_failure(found),
        _shrinkage_does_as_well(estimates),
        _the_loss_shrinks(outcomes),
        _turns_the_maps(outcomes, "loss"),
        _turns_the_maps(outcomes, "scale-invariant"),
    ]
    return [conclusion for conclusion in candidates if conclusion is not None]


def _rows(values: Mapping[Setting, T], tables: tuple[int, int], control: str = "loss") -> dict[tuple[int, str], T]:
    """Return what belongs to one pair of tables by (N, optimizer), or nothing unless all six are there."""
    rows = {
        (setting.n, setting.optimizer): value
        for setting, value in values.items()
        if setting.tables == tables and setting.control == control
    }
    return rows if len(rows) == 6 else {}


def _failures(summary: Summary) -> tuple[int, int]:
    """Return how many converged repetitions did not decrease, and how many converged."""
    return summary.failed, summary.converged


def _label(row: tuple[int, str]) -> str:
    return f"N = {row[0]} {row[1]}"


def _holds(truth: bool) -> str:
    return "holds" if truth else "does not hold"


def _orthogonality_is_not_enough(found: Summaries) -> Conclusion | None:
    rows = _rows(found, (1, 2))
    if not rows:
        return None
    shares = {row: failed / size for row, (failed, size) in ((row, _failures(rows[row])) for row in rows)}
    return Conclusion(
        "Section 4.1",
        "Making the kernels orthogonal can increase the similarity of the feature maps, in every row of Table 2.",
        "holds" if min(shares.values()) > 0.0 else "undecided",
        "it did not decrease in " + _list({row: f"{100 * share:.1f} %" for row, share in shares.items()}),
    )


def _correlates_better(estimates: Estimates) -> Conclusion | None:
    kernel, convolutional = _rows(estimates, (1, 2)), _rows(estimates, (3, 4))
    if not kernel or not convolutional:
        return None
    gains = {}
    for row in kernel:
        ours, base = (rows[row]["corr_mean"] for rows in (convolutional, kernel))
        gains[row] = (ours.value - base.value) / math.hypot(ours.stderr, base.stderr)
    return Conclusion(
        "Section 4.3",
        "Convolutional similarity correlates better with the similarity of the feature maps than kernel similarity "
        "does, in every row.",
        all_positive(list(gains.values())),
        "difference of the means in standard errors: " + _list({row: f"{gain:.1f}" for row, gain in gains.items()}),
    )


def _always_decreases(found: Summaries, tables: tuple[int, int]) -> Conclusion | None:
    rows = _rows(found, tables)
    if not rows:
        return None
    counts = {row: _failures(summary) for row, summary in rows.items()}
    failed, total = (sum(column) for column in zip(*counts.values(), strict=True))
    evidence = f"{failed} repetitions did not decrease: " + _list(
        {row: f"{count} of {size}" for row, (count, size) in counts.items()}
    )
    if not failed:
        evidence += f"; no number of repetitions proves it, and these leave room for {3.0 / total:.1g} of them"
    elif tables == (3, 4):
        # If print and we failed at the same rate, each failure fell into either run in proportion to their sizes.
        chance = math.prod((size / (size + PUBLISHED_REPETITIONS)) ** count for count, size in counts.values())
        evidence += f"; that all of them fell into this run and none into the printed one has probability {chance:.1g}"
    return Conclusion(
        f"Caption of Table {tables[1]}",
        "The similarity of the feature maps is guaranteed to decrease when convolutional similarity is minimised"
        + (" (full padding)." if tables == (3, 4) else " (valid)."),
        "does not hold" if failed else "undecided",
        evidence,
    )


def _worst_failure(found: Summaries) -> Conclusion | None:
    rows = _rows(found, (5, 6))
    if not rows:
        return None
    # The printed worst row; the cell of column B says the same, and this its sentence.
    failed, size = _failures(rows[16, "SGD"])
    pooled = (failed + 14) / (size + PUBLISHED_REPETITIONS)
    spread = math.sqrt(pooled * (1.0 - pooled) * (1.0 / size + 1.0 / PUBLISHED_REPETITIONS))
    z = (failed / size - 0.014) / spread
    return Conclusion(
        "Section 5",
        "Under valid padding the similarity increases with a probability of 0.014 in the worst row, N = 16 SGD.",
        "undecided" if spread > 0.007 else _holds(abs(z) <= 3.0),
        f"ours is {failed / size:.4f}, z = {z:.1f}",
    )


def _shrinkage_does_as_well(estimates: Estimates) -> Conclusion | None:
    scores = []
    for tables in ((3, 4), (5, 6)):
        loss, shrinkage = _rows(estimates, tables), _rows(estimates, tables, "shrinkage")
        if not loss or not shrinkage:
            return None
        for row, base in loss.items():
            ours = shrinkage[row]
            for quantity in ("corr_mean", "B_reduction_frequency_pct", "C_decrease_mean_pct"):
                # Both ran on the same draws: this error is the larger one, as if they had not.
                error = math.hypot(ours[quantity].stderr, base[quantity].stderr)
                scores.append((ours[quantity].value - base[quantity].value) / error if error > 0.0 else 0.0)
            fewer, more = (columns["D_increase_mean_pct"].count for columns in (ours, base))
            scores.append((more - fewer) / math.sqrt(max(more + fewer, 1)))
    worse = all_positive(scores) == "does not hold"
    return Conclusion(
        "Control",
        "Shrinking the kernels (minimising |K1|^2 + |K2|^2) does at least as well as convolutional similarity in "
        "columns A, B, C and D of every row of Tables 3-6, so these columns do not show what is particular to it.",
        "does not hold" if worse else "holds" if min(scores) >= 0.0 else "undecided",
        f"true of {sum(score >= 0.0 for score in scores)} of {len(scores)} cells; the least difference is "
        f"{min(scores):.1f} standard errors",
    )


def _the_loss_shrinks(outcomes: Mapping[Setting, Outcome]) -> Conclusion | None:
    medians: dict[tuple[int, tuple[int, str]], Floats] = {}
    counts = []
    for tables in ((3, 4), (5, 6)):
        rows = _rows(outcomes, tables)
        if not rows or not _rows(outcomes, tables, "shrinkage"):
            return None
        medians |= {(tables[1], row): np.median(outcome.survival, axis=0) for row, outcome in rows.items()}
        longer = [outcome.survival[:, 1] for outcome in rows.values()]
        counts += [(int((kept < 1.0).sum()), kept.size) for kept in longer]
    return Conclusion(
        "Control",
        "Minimising convolutional similarity shrinks both kernels, in the median, in every row of Tables 4 and 6.",
        mostly_true(counts),
        "median share of its length that the shorter and the longer survivor keeps: "
        + "; ".join(
            f"Table {table}: "
            + _list({row: f"{pair[0]:.1g} and {pair[1]:.2f}" for (t, row), pair in medians.items() if t == table})
            for table in (4, 6)
        ),
    )


def _turns_the_maps(outcomes: Mapping[Setting, Outcome], control: str) -> Conclusion | None:
    orthogonal, ours = _rows(outcomes, (1, 2)), _rows(outcomes, (3, 4), control)
    if not orthogonal or not ours:
        return None
    ends = {row: (*_cosine(orthogonal[row]), *_cosine(ours[row])) for row in ours}
    name = "convolutional similarity" if control == "loss" else "the scale-invariant CS / (|K1|^2 |K2|^2)"
    return Conclusion(
        "Control",
        f"Minimising {name} leaves the feature maps nearer to orthogonal, by the mean |cos| that no shrinking changes, "
        "than making the kernels orthogonal does, in every row of Tables 2 and 4.",
        all_positive([(base - mean) / math.hypot(e0, e1) for base, e0, mean, e1 in ends.values()]),
        "mean |cos| after orthogonal kernels and after it: "
        + _list({row: f"{base:.3f} and {mean:.3f}" for row, (base, _, mean, _) in ends.items()}),
    )


def _kept(outcome: Outcome, name: str) -> Floats:
    values: Floats = getattr(outcome, name)[outcome.converged]
    return values


def _cosine(outcome: Outcome) -> tuple[float, float]:
    """Return the mean of |cos| at the end, and its standard error."""
    cosine = _kept(outcome, "cosine")[:, 1]
    cosine = cosine[np.isfinite(cosine)]
    return float(cosine.mean()), float(cosine.std(ddof=1) / math.sqrt(cosine.size))


def _list(values: Mapping[tuple[int, str], str]) -> str:
    return ", ".join(f"{text} ({_label(row)})" for row, text in values.items())
