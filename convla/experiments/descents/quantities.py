"""What a study reports of a setting, from its repetitions as a stream of blocks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from convla.experiments.descents.draws import CHUNK
from convla.experiments.descents.outcome import Outcome, recut
from convla.experiments.statistics import Estimate, Moments, share

__all__ = ["QUANTITIES", "estimate_stream"]

QUANTITIES = {
    "correlation": "correlation of loss and similarity over the iterates, mean",
    "correlation_std": "correlation of loss and similarity over the iterates, standard deviation",
    "decreased_pct": "repetitions whose feature maps ended less similar, %",
    "failed_pct": "repetitions whose feature maps did not end less similar, %",
    "decrease_pct": "decrease of the similarity where it decreased, mean, % of its start",
    "decrease_std_pct": "decrease of the similarity where it decreased, standard deviation",
    "cosine_before": "|cos| of the feature maps at the start, mean",
    "cosine_after": "|cos| of the feature maps at the end, mean",
    "kept_shortest": "share of its norm that the shortest survivor keeps, mean",
    "kept_longest": "share of its norm that the longest survivor keeps, mean",
    "diverged_pct": "repetitions that diverged, which no other quantity counts, %",
}
"""What the rows of a study's results estimate. The mean increase has no expectation, and is not among them."""


def estimate_stream(parts: Iterable[Outcome]) -> dict[str, Estimate]:
    """Return the quantities of a setting.

    Parameters
    ----------
    parts : iterable of Outcome
        The repetitions in their order, cut anywhere: the estimates are merged over blocks that are counted from the
        first repetition, so that the cut changes no bit of them.
    """
    names = ("correlation", "decrease", "cosine_before", "cosine_after", "kept_shortest", "kept_longest")
    moments = {name: Moments() for name in names}
    repetitions = converged = decreased = 0
    for block in recut(parts, CHUNK):
        kept = block.converged
        start, end = block.similarity[kept].T
        down = end < start
        with np.errstate(divide="ignore", invalid="ignore"):
            change = 100.0 * (start - end) / np.abs(start)
        survival = block.survival
        columns = (
            *(block.correlation[kept], change[down], *block.cosine[kept].T),
            *(survival[:, 0], survival[:, -1]),
        )
        for moment, column in zip(moments.values(), columns, strict=True):
            moment.add(column)
        repetitions += block.repetitions
        converged += int(kept.sum())
        decreased += int(down.sum())
    return {
        "correlation": moments["correlation"].mean(),
        "correlation_std": moments["correlation"].deviation(),
        "decreased_pct": _percent(decreased, converged),
        "failed_pct": _percent(converged - decreased, converged),
        "decrease_pct": moments["decrease"].mean(),
        "decrease_std_pct": moments["decrease"].deviation(),
        **{name: moments[name].mean() for name in names[2:]},
        "diverged_pct": _percent(repetitions - converged, repetitions),
    }


def _percent(count: int, size: int) -> Estimate:
    found = share(count, size)
    return Estimate(100.0 * found.value, 100.0 * found.stderr, size)
