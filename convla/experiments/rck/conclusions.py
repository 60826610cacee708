"""The sentences of Section 3 of Guo and Ye that runs can decide, each with the numbers that decide it.

A sentence holds when it is true of more than half of all kernels, of the distribution that they are drawn from, in
every panel that it speaks of; it does not hold when that is false of a panel. Either is said where the kernels at hand
show it with an error probability of at most 5 % for all panels at once, and "undecided" otherwise: five kernels that
agree do not show it of two panels, and nine do of ten. Where kernels are added for what is undecided, the error is that
of all looks together, and the first look that decides a sentence counts. Sentences on sizes are of medians, with the
intervals between order statistics that hold whatever the distribution. What is a theorem needs no counting: a single
kernel against it would overturn it. The evidence counts kernels. Unless "reported" is said, values are the true ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from convla.experiments.rck.settings import ALPHAS, SHAPES, FigureSetting, Traces
from convla.experiments.source import Conclusion
from convla.experiments.statistics import median_interval, mostly_true

__all__ = ["draw_figure_conclusions"]

AT = 20
"""The iterate that the paper's text looks at."""

Panels = Mapping[FigureSetting, Traces]


def draw_figure_conclusions(panels: Panels, first: int, rounds: int = 0) -> list[Conclusion]:
    """Return the verdicts; none unless all panels are there.

    Parameters
    ----------
    panels : dict of FigureSetting to Traces
    first : int
        The kernels of the first look at them; each of the following is at twice as many.
    rounds : int, default 0
        How many looks may follow.
    """
    if not panels:
        return []
    size, conclusions = first, _look(panels, first, rounds + 1)
    while size < min(len(traces.true) for traces in panels.values()):
        size *= 2
        later = _look(panels, size, rounds + 1)
        conclusions = [new if old.verdict == "undecided" else old for old, new in zip(conclusions, later, strict=True)]
    return conclusions


def _look(whole: Panels, size: int, looks: int) -> list[Conclusion]:
    """Return the verdicts by the first `size` kernels, one of so many looks; those on theorems by all kernels."""
    panels = {setting: traces.first(size) for setting, traces in whole.items()}
    first, second, large, _ = _groups(panels)
    _, _, all_large, all_wide = _groups(whole)
    count = functools.partial(_count, looks)
    return [
        _comparable(panels, looks),
        count(
            "Section 3, Example 1",
            f"sigma_max(M^T M - I) converges well within 20 iterations (at iterate {AT} all but 5 % of the decrease "
            "over 40 is done).",
            first,
            _settled,
            _late(first),
        ),
        count(
            "Section 3, Example 1", "kappa(M) and sigma_max(M^T M - I) decrease.", first, _both_decrease, _drop(first)
        ),
        count(
            "Section 3, Example 1",
            "sigma_min(M) does not change significantly (by no more than a quarter of itself).",
            first,
            lambda t: np.abs(t.sigma_min[:, AT] / t.sigma_min[:, 0] - 1.0) <= 0.25,
            "median of sigma_min at the end over the start: "
            + _list({name: f"{np.median(t.sigma_min[:, AT] / t.sigma_min[:, 0]):.2f}" for name, t in first.items()})
            + "; against sigma_max at the start, the scale of the figure's axis, the change is "
            + _list({n: f"{_median_share(t):.1f} %" for n, t in first.items()}),
        ),
        count(
            "Section 3, Example 1",
            "Minimising R_1 is less effective in increasing sigma_min(M) (it does not increase).",
            first,
            lambda t: t.sigma_min[:, AT] <= t.sigma_min[:, 0],
        ),
        _similar_rates(first, looks),
        count(
            "Section 3, Example 2",
            f"For all alpha sigma_max(M^T M - alpha I) converges (at iterate {AT} all but 5 % of the decrease over 40 "
            "is done).",
            second,
            _settled,
            _late(second),
        ),
        count(
            "Section 3, Example 2",
            "kappa(M) and sigma_max(M^T M - alpha I) decrease.",
            second,
            _both_decrease,
            _drop(second),
        ),
        _faster(second, looks),
        count(
            "Section 3, Example 2",
            "For alpha = 5 and 10 the reported sigma_max(M^T M - alpha I) is least at the 6th and the 4th iteration.",
            large,
            lambda t: np.argmin(t.reported[:, : AT + 1], axis=1) == (6 if t is large["alpha = 5"] else 4),
            "reported minimum "
            + _list({n: f"{np.median(t.reported[:, : AT + 1].min(axis=1)):.2f}" for n, t in large.items()})
            + ", so much of alpha: "
            + _list({n: _depth(t, _level(large, t)) for n, t in large.items()})
            + ", where the true value is "
            + _list({n: f"{np.median(_true_at_dip(t)):.2f}" for n, t in large.items()}),
        ),
        _theorem(
            "Section 3, Example 2",
            "For alpha = 5 and 10 sigma_max(M^T M - alpha I) itself reaches a value below alpha.",
            all_large,
            lambda t: t.true.min(axis=1) < _level(all_large, t) * (1.0 - 1e-9),
            ("does not hold", "holds"),
            "least true value: "
            + _list({name: f"{t.true.min():.6f}" for name, t in all_large.items()})
            + "; the dip is the lag of two power iterations behind the change of the leading eigenvalue",
        ),
        count(
            "Section 3, Example 2",
            "After that the reported value increases back to a level of alpha (within 1 % at iterate 20).",
            large,
            lambda t: np.abs(t.reported[:, AT] / _level(large, t) - 1.0) <= 0.01,
        ),
        _similar_effect(second, looks),
        _theorem(
            "Section 3, Example 2",
            "There is a barrier to reducing sigma_max(M^T M - alpha I) below alpha: with more input than output "
            "channels the true value never goes below it.",
            all_wide,
            lambda t: t.true.min(axis=1) < _level(all_wide, t) * (1.0 - 1e-12),
            ("holds", "does not hold"),
            "M^T M is singular there. With 3x3x1x3 kernels, where it is not, the least value is "
            f"{whole[FigureSetting(1, 3, 1.0)].true.min():.3f} < 1 = alpha",
        ),
        _remedy(panels, looks),
    ]


def _groups(panels: Panels) -> tuple[Mapping[str, Traces], ...]:
    """Return the panels of either example, those of large alpha, and those with more input than output channels."""
    return (
        {f"{s.kernel}": panels[s] for s in (FigureSetting(*shape, 1.0) for shape in SHAPES)},
        {f"alpha = {alpha:g}": panels[FigureSetting(*SHAPES[0], alpha)] for alpha in ALPHAS},
        {f"alpha = {alpha:g}": panels[FigureSetting(*SHAPES[0], alpha)] for alpha in (5.0, 10.0)},
        {
            f"{s.kernel}, {s.variant}, alpha = {s.alpha:g}": t
            for s, t in panels.items()
            if _is_wide(s) and s.variant != "remedy"
        },
    )


def _level(panels: Mapping[str, Traces], traces: Traces) -> float:
    """Return the alpha at the end of a panel's name."""
    return float(_name(panels, traces).rpartition("= ")[2])


def _name(panels: Mapping[str, Traces], traces: Traces) -> str:
    return next(name for name, found in panels.items() if found is traces)


def _is_wide(setting: FigureSetting) -> bool:
    return setting.in_channels > setting.out_channels


def _count(
    looks: int,
    subject: str,
    statement: str,
    panels: Mapping[str, Traces],
    test: Callable[[Traces], np.ndarray],
    evidence: str = "",
) -> Conclusion:
    passed = {name: test(traces) for name, traces in panels.items()}
    counts = "true of " + _list({name: f"{int(p.sum())} of {p.size}" for name, p in passed.items()})
    verdict = mostly_true([(int(p.sum()), p.size) for p in passed.values()], looks)
    return Conclusion(subject, statement, verdict, f"{counts}; {evidence}" if evidence else counts)


def _theorem(
    subject: str,
    statement: str,
    panels: Mapping[str, Traces],
    below: Callable[[Traces], np.ndarray],
    verdicts: tuple[str, str],
    evidence: str,
) -> Conclusion:
    """Return the first verdict, which RCK-barrier proves, unless a kernel goes below alpha: then the second."""
    found = sum(int(below(traces).sum()) for traces in panels.values())
    size = sum(len(traces.true) for traces in panels.values())
    counted = (
        f"{found} of {size} descents go below, as RCK-barrier proves; " if not found else f"{found} of {size} do; "
    )
    return Conclusion(subject, statement, verdicts[found > 0], counted + evidence)


def _settled(traces: Traces) -> np.ndarray:
    drop = traces.true[:, 0] - traces.true[:, -1]
    settled: np.ndarray = traces.true[:, AT] - traces.true[:, -1] <= 0.05 * drop
    return settled


def _late(panels: Mapping[str, Traces]) -> str:
    return f"median of the value at {AT} and at the end: " + _list(
        {n: f"{np.median(t.true[:, AT]):.2f} and {np.median(t.true[:, -1]):.2f}" for n, t in panels.items()}
    )


def _both_decrease(traces: Traces) -> np.ndarray:
    return (traces.true[:, AT] < traces.true[:, 0]) & (traces.condition[:, AT] < traces.condition[:, 0])


def _drop(panels: Mapping[str, Traces]) -> str:
    return f"median kappa at the start and at {AT}: " + _list(
        {n: f"{np.median(t.condition[:, 0]):.1f} and {np.median(t.condition[:, AT]):.1f}" for n, t in panels.items()}
    )


def _median_share(traces: Traces) -> float:
    return 100.0 * float(np.median(np.abs(traces.sigma_min[:, AT] - traces.sigma_min[:, 0]) / traces.sigma_max[:, 0]))


def _true_at_dip(traces: Traces) -> np.ndarray:
    rows = np.arange(len(traces.reported))
    values: np.ndarray = traces.true[rows, np.argmin(traces.reported[:, : AT + 1], axis=1)]
    return values


def _depth(traces: Traces, alpha: float) -> str:
    """Return the least reported value of the kernels as shares of alpha, from the deepest to the shallowest."""
    shares = traces.reported[:, : AT + 1].min(axis=1) / alpha
    return f"{100 * shares.min():.0f} to {100 * shares.max():.0f} %"


def _iterations_needed(traces: Traces) -> np.ndarray:
    """Return for each kernel the number of iterations after which all but 5 % of the decrease is done for good."""
    final = traces.true[:, -1:]
    above = traces.true - final > 0.05 * (traces.true[:, :1] - final)
    needed: np.ndarray = above.shape[1] - np.argmax(above[:, ::-1], axis=1)
    return needed


def _comparable(panels: Panels, looks: int) -> Conclusion:
    pairs = {
        s: (panels[FigureSetting(s.in_channels, s.out_channels, s.alpha)], t)
        for s, t in panels.items()
        if s.variant == "svd"
    }
    gaps = {
        f"{s.kernel}, alpha = {s.alpha:g}": np.abs(p.sigma_max[:, AT] / f.sigma_max[:, AT] - 1.0)
        for s, (p, f) in pairs.items()
    }
    return Conclusion(
        "Section 3",
        f"Two power iterations and the full SVD give comparable results (sigma_max(M) at iterate {AT} within 10 %).",
        mostly_true([(int((gap <= 0.1).sum()), gap.size) for gap in gaps.values()], looks),
        "median difference: " + _list({name: f"{100 * np.median(gap):.1f} %" for name, gap in gaps.items()}),
    )


def _within_a_factor_of_2(values: Mapping[str, np.ndarray], looks: int) -> str:
    """Return whether all medians are within a factor of 2 of each other, by intervals that hold for all at once."""
    intervals = [median_interval(found.tolist(), len(values) * looks) for found in values.values()]
    lows, highs = zip(*intervals, strict=True)
    if max(highs) <= 2 * min(lows):
        return "holds"
    return "does not hold" if max(lows) > 2 * min(highs) else "undecided"


def _similar_rates(panels: Mapping[str, Traces], looks: int) -> Conclusion:
    needed = {name: _iterations_needed(traces) for name, traces in panels.items()}
    return Conclusion(
        "Section 3, Example 1",
        "The kernel sizes mainly affect the final values, not the convergence (iterations to all but 5 % of the "
        "decrease within a factor of 2 of each other).",
        _within_a_factor_of_2(needed, looks),
        "iterations needed, in the median: " + _list({name: f"{np.median(n):g}" for name, n in needed.items()}),
    )


def _faster(panels: Mapping[str, Traces], looks: int) -> Conclusion:
    needed = {name: _iterations_needed(traces) for name, traces in panels.items()}
    faster = {f"{a} to {b}": needed[b] <= needed[a] for a, b in itertools.pairwise(needed)}
    first, last = next(iter(needed)), list(needed)[-1]
    faster[f"{first} to {last}, fewer"] = needed[last] < needed[first]
    return Conclusion(
        "Section 3, Example 2",
        "For larger alpha the convergence is faster (from one alpha to the next no more iterations to all but 5 % of "
        "the decrease, from the least to the largest fewer).",
        mostly_true([(int(found.sum()), found.size) for found in faster.values()], looks),
        "iterations, in the median: "
        + _list({name: f"{np.median(n):g}" for name, n in needed.items()})
        + "; true of "
        + _list({name: f"{int(found.sum())} of {found.size}" for name, found in faster.items()}),
    )


def _similar_effect(panels: Mapping[str, Traces], looks: int) -> Conclusion:
    ends = {name: traces.condition[:, AT] for name, traces in panels.items()}
    return Conclusion(
        "Section 3, Example 2",
        "Larger alpha have a similar effect in reducing kappa(M) (medians at iterate 20 within a factor of 2).",
        _within_a_factor_of_2(ends, looks),
        "median kappa: " + _list({name: f"{np.median(end):.1f}" for name, end in ends.items()}),
    )


def _remedy(panels: Panels, looks: int) -> Conclusion:
    rows = {}
    better = []
    for setting, traces in panels.items():
        if setting.variant == "remedy":
            printed = panels[FigureSetting(setting.in_channels, setting.out_channels, setting.alpha)]
            ends = (traces.condition < printed.condition) & (traces.sigma_min > printed.sigma_min)
            better.append((int(ends[:, -1].sum()), len(ends)))
            rows[setting.kernel] = (
                f"sigma_min {np.median(printed.sigma_min[:, -1]):.2f} and {np.median(traces.sigma_min[:, -1]):.2f}, "
                f"kappa {np.median(printed.condition[:, -1]):.1f} and {np.median(traces.condition[:, -1]):.1f}"
            )
    return Conclusion(
        "Ours",
        "Penalising the smaller of M^T M and M M^T, both ends tracked, leaves a larger sigma_min and a smaller kappa "
        "than the printed penalty where there are more input than output channels.",
        mostly_true(better, looks),
        "medians at the end, as printed and so: "
        + "; ".join(f"{text} ({name})" for name, text in rows.items())
        + "; true of "
        + _list({name: f"{count} of {size}" for name, (count, size) in zip(rows, better, strict=True)}),
    )


def _list(values: Mapping[str, str]) -> str:
    return ", ".join(f"{text} ({name})" for name, text in values.items())
