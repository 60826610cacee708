"""RCK Section 3, Figures 3.1 and 3.2: its sentences from many kernels, recorded, and some of the descents run again.

``python -m proofs_checks.rck.figures RESULTS`` writes the record anew, RESULTS being the folder of ``convla reproduce figures --rounds 3``.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from convla.experiments.rck.settings import FigureSetting, figure_settings, run_figure
from convla.experiments.statistics import median_interval, mostly_true
from proofs_checks.statement import Kind, Statement, evidence

__all__ = ["STATEMENTS", "main"]

RECORD = Path(__file__).parent.parent / "figures.json"
AT = 20
"""The iterate that the text looks at."""
QUANTITIES = ("reported", "true", "sigma_max", "sigma_min", "condition")


@functools.cache
def _recorded() -> dict[str, Any]:
    """Return the record: kernels, seed, "sentences" as [subject, statement, verdict, counts], and of each panel's first kernel the values at `AT`."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def _printed() -> list[FigureSetting]:
    return [setting for setting in figure_settings() if setting.variant == "printed"]


@evidence(
    Kind.MEASUREMENT,
    "both examples from the recorded number of random kernels, seed 0, the error of all panels and rounds together at most 5 %: the verdict on each sentence",
)
def sentences_of_both_examples(_: int) -> str:
    sentences = [row for row in _recorded()["sentences"] if row[0] != "Ours"]
    counts = Counter(verdict for _, _, verdict, _ in sentences)
    assert counts["holds"] >= 6, counts
    return (
        f"{_recorded()['kernels']} kernels; "
        + "; ".join(
            f"{verdict}: {statement.partition(' (')[0].rstrip('.')}"
            for verdict in ("does not hold", "undecided")
            for _, statement, said, _ in sentences
            if said == verdict
        )
        + f"; {counts['holds']} of {len(sentences)} hold"
    )


COUNT = re.compile(r"(\d+) of (\d+)")
PANELS, LOOKS = 4, 4
"""Panels and rounds for which the error is shared at most."""


@evidence(
    Kind.MEASUREMENT,
    "sentences that stay undecided, by the counts of the record: kernels after which a share like the one seen would be told from a half in four of five runs",
)
def kernels_that_would_decide(_: int) -> str:
    found = []
    for _subject, statement, verdict, counts in _recorded()["sentences"]:
        shares = [int(count) / int(size) for count, size in COUNT.findall(counts.partition(";")[0])]
        if verdict == "undecided" and shares:
            nearest = min(shares, key=lambda share: abs(share - 0.5))
            found.append(f"{statement.partition(' (')[0].rstrip('.')}: {nearest:.2f}, {_kernels_for(nearest)}")
    return "; ".join(found) or "none stays undecided by its counts"


def _kernels_for(share: float) -> str:
    """Return about how many kernels tell a share from a half, by the normal law."""
    if share == 0.5:
        return "none would"
    quantiles = scipy.stats.norm.isf([0.05 / (2 * PANELS * LOOKS), 0.2])
    return f"about {math.ceil((quantiles[0] / 2 + quantiles[1] * math.sqrt(share * (1 - share))) ** 2 / (share - 0.5) ** 2)} kernels"


@evidence(
    Kind.MEASUREMENT,
    "the first kernel of every panel of both figures, run now, against the record: all values at iterate 20",
)
def first_kernels_are_the_recorded_ones(_: int) -> str:
    worst = 0.0
    for setting in _printed():
        traces = run_figure(setting, kernels=1, seed=_recorded()["seed"])
        for name, wanted in zip(QUANTITIES, _recorded()["first"][setting.name], strict=True):
            worst = max(worst, abs(float(getattr(traces, name)[0, AT]) / wanted - 1.0))
    # Twenty steps of a descent from singular vectors, whose last digits other libraries round differently.
    assert worst < 1e-3, worst
    return f"{len(_printed())} descents, all values within one in a thousand"


@evidence(
    Kind.PROPERTY,
    "0 to n true of n, n = 5 to 40, and medians of 5 to 40 values: verdicts against the exact binomial tests, one and several panels and looks",
)
def verdicts_by_definition(_: int) -> str:
    tried = 0
    for size, looks in ((5, 1), (9, 2), (24, 4), (40, 3)):
        for count in range(size + 1):
            # One of two panels, the other true throughout.
            level = 0.05 / (2 * looks)
            low, high = scipy.stats.binomtest(count, size).proportion_ci(1 - level)
            other = scipy.stats.binomtest(size, size).proportion_ci(1 - level).low > 0.5
            wanted = "holds" if low > 0.5 and other else "does not hold" if high < 0.5 else "undecided"
            assert mostly_true([(count, size), (size, size)], looks) == wanted, (count, size, looks)
            tried += 1
        values = np.random.default_rng(size).permutation(size).astype(float).tolist()
        # The largest rank at which both tails beyond are at most the level.
        rank = int(scipy.stats.binom.ppf(0.05 / (2 * looks), size, 0.5))
        rank -= scipy.stats.binom.cdf(rank, size, 0.5) > 0.05 / (2 * looks)
        ends = [-math.inf, *map(float, range(size)), math.inf]
        assert median_interval(values, looks) == (ends[rank + 1], ends[size - rank]), (size, looks)
        tried += 1
    return f"{tried} verdicts and intervals"


STATEMENTS: tuple[Statement, ...] = ()


def main(arguments: list[str] | None = None) -> int:
    """Write the record."""
    parser = argparse.ArgumentParser(prog="python -m proofs_checks.rck.figures", description=__doc__)
    parser.add_argument("results", type=Path, help="the folder of the runs")
    folder = parser.parse_args(arguments).results
    seed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["identity"]["seed"]
    with (folder / "conclusions.csv").open(encoding="utf-8", newline="") as file:
        sentences = [list(row.values()) for row in csv.DictReader(file)]
    names = {(s.kernel, s.alpha, s.variant): s.name for s in _printed()}
    first, kernels = {}, 0
    with (folder / "traces.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kernels = max(kernels, int(row["kernel"]) + 1)
            name = names.get((row["kernel_size"], float(row["alpha"]), row["variant"]))
            # A descent that ended early has no more iterates: its last values stand.
            if name and row["kernel"] == "0" and int(row["iteration"]) <= AT:
                first[name] = [float(row[quantity]) for quantity in QUANTITIES]
    record = {"kernels": kernels, "seed": seed, "sentences": sentences, "first": first}
    RECORD.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
