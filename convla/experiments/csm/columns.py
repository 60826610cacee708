"""Columns A-D of CSM's tables from the repetitions of a setting, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from convla.experiments.descents.outcome import Floats, Outcome
from convla.experiments.statistics import Estimate, share

__all__ = ["Column", "column_of", "columns_of", "estimate", "frequency", "quantity_of", "resampled"]

Column = Floats
"""What each repetition has in a column, NaN where it has nothing there."""

RESAMPLES = 400
DRAWN_AT_ONCE = 50_000
"""What fits the second-level cache; how many changes no bit."""


def columns_of(outcome: Outcome) -> dict[str, Column]:
    """Return columns A, C and D of the converged repetitions, as "corr", "C_decrease" and "D_increase"."""
    kept = outcome.converged
    start, end = outcome.similarity[kept].T
    with np.errstate(divide="ignore", invalid="ignore"):
        # The signed and cosine readings can start below zero: a change is measured against the modulus of the start.
        change = 100.0 * (end - start) / np.abs(start)
    change = np.where(np.isfinite(change), change, np.nan)
    return {
        "corr": outcome.correlation[kept],
        "C_decrease": np.where(end < start, -change, np.nan),
        "D_increase": np.where(end > start, change, np.nan),
    }


def estimate(outcome: Outcome, *, seed: int = 0) -> dict[str, Estimate]:
    """Return columns A-D of one setting, under the names of `convla.experiments.csm.published.QUANTITIES`.

    Standard deviations divide by n - 1, as the printed ones do (Table 6, N = 16 SGD, is impossible otherwise), and are
    0 for a single value, as in Table 6, N = 16 Adam. Standard errors of means and standard deviations are by bootstrap
    over the repetitions; that of the frequency B is the standard deviation of its posterior under Jeffreys' prior,
    which stays positive where no failure was seen. Column D gets none: its expectation is infinite.

    Parameters
    ----------
    outcome : Outcome
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict of str to Estimate
    """
    estimates = {}
    for name, (mean, std) in _bootstrap(columns_of(outcome), seed).items():
        estimates[quantity_of(name, "mean")], estimates[quantity_of(name, "std")] = mean, std
    for name in ("D_increase_mean_pct", "D_increase_std_pct"):
        estimates[name] = replace(estimates[name], stderr=math.nan)
    kept = outcome.converged
    start, end = outcome.similarity[kept].T
    return estimates | frequency(int((end < start).sum()), int(kept.sum()))


def frequency(decreased: int, converged: int) -> dict[str, Estimate]:
    """Return column B by its name, from how many repetitions decreased of how many that converged."""
    found = share(decreased, converged)
    return {"B_reduction_frequency_pct": Estimate(100.0 * found.value, 100.0 * found.stderr, converged)}


def resampled(columns: Mapping[str, Column], size: int, runs: int, *, seed: int = 0) -> dict[str, Floats]:
    """Return the means and standard deviations of runs of another size, drawn from the repetitions at hand.

    Parameters
    ----------
    columns : dict of str to Column
    size : int
        Repetitions of each run, drawn with replacement.
    runs : int
        How many.
    seed : int

    Returns
    -------
    dict of str to numpy.ndarray of shape (runs,)
        By the names of quantities; NaN where a run has nothing in a column.
    """
    generator = np.random.default_rng(seed)
    table, centres = _moments(columns)
    rows = max(1, DRAWN_AT_ONCE // size)
    # One moment at a time: sums over a last axis are the quick ones.
    moments = [np.ascontiguousarray(column) for column in table.T]
    parts = []
    for start in range(0, runs, rows):
        drawn = generator.integers(table.shape[0], size=(min(rows, runs - start), size), dtype=np.uint32)
        places = drawn.astype(np.intp)  # once for all moments
        parts.append(np.stack([moment.take(places).sum(axis=1) for moment in moments], axis=1))
    sums = np.concatenate(parts)
    values: dict[str, Floats] = {}
    for index, name in enumerate(columns):
        _, means, stds = _summary(sums[:, 3 * index : 3 * index + 3])
        values |= {quantity_of(name, "mean"): centres[name] + means, quantity_of(name, "std"): stds}
    return values


def column_of(quantity: str) -> str:
    """Return the column whose mean or standard deviation a quantity is.

    Examples
    --------
    >>> column_of("C_decrease_mean_pct"), column_of("corr_std")
    ('C_decrease', 'corr')
    """
    return quantity.removesuffix("_pct").removesuffix("_mean").removesuffix("_std")


def quantity_of(column: str, moment: str) -> str:
    """Return the name of a column's mean or standard deviation."""
    return f"{column}_{moment}" + ("" if column == "corr" else "_pct")


def _moments(columns: Mapping[str, Column]) -> tuple[Floats, dict[str, float]]:
    """Return presence, offset from the mean and its square for each column, and the means.

    About the mean, so that the variances of sums of them do not cancel.
    """
    moments: list[Floats] = []
    centres = {}
    for name, values in columns.items():
        present = np.isfinite(values)
        centres[name] = float(values[present].mean()) if present.any() else 0.0
        offset = np.where(present, values - centres[name], 0.0)
        moments += [present.astype(float), offset, offset * offset]
    return np.stack(moments, axis=1), centres


def _bootstrap(columns: Mapping[str, Column], seed: int) -> dict[str, tuple[Estimate, Estimate]]:
    """Return the mean and standard deviation of each column, NaN being absence, with bootstrap standard errors."""
    table, centres = _moments(columns)
    sums = np.concatenate([weights @ table for weights in _weights(table.shape[0], seed)])
    estimates = {}
    for index, name in enumerate(columns):
        count, mean, std = _summary(table.sum(axis=0, keepdims=True)[:, 3 * index : 3 * index + 3])
        _, means, stds = _summary(sums[:, 3 * index : 3 * index + 3])
        size = int(count[0])
        estimates[name] = (
            Estimate(centres[name] + float(mean[0]) if size else 0.0, _spread(means, size), size),
            Estimate(float(std[0]) if size > 1 else 0.0, _spread(stds, size), size),
        )
    return estimates


def _summary(sums: Floats) -> tuple[Floats, Floats, Floats]:
    count, first, second = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = first / count
        variance = np.maximum(second - first * mean, 0.0) / (count - 1.0)
    return count, mean, np.where(count > 1.0, np.sqrt(np.maximum(variance, 0.0)), np.nan)


def _spread(resampled: Floats, size: int) -> float:
    finite = resampled[np.isfinite(resampled)]
    return float(finite.std(ddof=1)) if size > 1 and finite.size > 1 else math.nan


def _weights(size: int, seed: int) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Yield the resamples as rows of counts, a few at a time, so that memory stays bounded."""
    generator = np.random.default_rng(seed)
    if size == 0:
        yield np.zeros((RESAMPLES, 0))
        return
    rows = max(1, min(RESAMPLES, 2_000_000 // size))
    for start in range(0, RESAMPLES, rows):
        draws = generator.integers(size, size=(min(rows, RESAMPLES - start), size))
        offsets = np.arange(draws.shape[0])[:, None] * size
        counts = np.bincount((draws + offsets).ravel(), minlength=draws.size)
        yield counts.reshape(draws.shape).astype(np.float64)
