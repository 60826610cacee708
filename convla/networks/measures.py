"""What is measured on a layer: singular values, similarity, orthogonality, each by a name of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from convla._validate import check_choice
from convla.networks.layers import Layer
from convla.networks.spectrum import Spectrum
from convla.similarity import convolutional_similarity
from convla.similarity.objectives import OBJECTIVES, Objective
from convla.similarity.orthogonality import mutual_coherence, spectral_isometry
from convla.spectra.status import Status

__all__ = ["MEASURES", "Column", "Subject", "columns_of"]


class Subject(NamedTuple):
    """What a row is about: the spectrum of a map, and the layer whose kernel it is, if it is of one layer."""

    spectrum: Spectrum
    layer: Layer | None

    @property
    def kernel_layer(self) -> Layer:
        """The layer, for a measure of its kernel."""
        if self.layer is None:
            raise ValueError("not defined for several layers together")
        products = self.layer.kernel.size * self.layer.all_filters.shape[0]
        if products > self.spectrum.effort.kernels:
            raise ValueError(f"left out to save time: a kernel of shape {self.layer.kernel.shape}")
        return self.layer


class Column(NamedTuple):
    """One quantity: its name in a report, its heading in a table, and how it is found."""

    name: str
    heading: str
    compute: Callable[[Subject], float]

    def __reduce__(self) -> tuple[Callable[[str], Column], tuple[str]]:
        """Be pickled by name, as reports are that another process has made."""
        return _named, (self.name,)


def _named(name: str) -> Column:
    return next(column for group in MEASURES.values() for column in group if column.name == name)


def _sigma_max(subject: Subject) -> float:
    found = subject.spectrum.largest
    if subject.spectrum.is_bare and found.value == 0.0 < found.upper:
        raise ValueError("left out to save time, but for a bound")
    return found.value


def _condition(subject: Subject) -> float:
    smallest = subject.spectrum.smallest
    if smallest.status == Status.RANK_DEFICIENT:
        return math.inf
    return subject.spectrum.largest.value / smallest.value if smallest.value else math.inf


def _stable_rank(subject: Subject) -> float:
    if subject.spectrum.is_bare:
        raise ValueError("left out to save time")
    if subject.spectrum.largest.value == 0.0:
        raise ValueError("not defined for a map that is zero")
    return subject.spectrum.stable_rank


def _scaled_similarity(subject: Subject) -> float:
    layer = subject.kernel_layer
    live = layer.all_filters[layer.live.reshape(-1)]
    if len(live) < 2:
        raise ValueError(f"fewer than two live filters have no pairs, got {len(live)}")
    return float(convolutional_similarity(live, normalized=True)) / math.comb(len(live), 2)


def _coherence(subject: Subject) -> float:
    layer = subject.kernel_layer
    # Filters of different groups see different channels, and are orthogonal as they are.
    groups = [group[live] for group, live in zip(layer.filters, layer.live, strict=True)]
    values = [float(mutual_coherence(group)) for group in groups if len(group) > 1]
    if not values:
        raise ValueError("no group has two live filters, which have a cosine")
    return max(values)


def _objective(objective: Objective, subject: Subject) -> float:
    layer = subject.kernel_layer
    if layer.transposed and "stride" in objective.options and any(step > 1 for step in layer.geometry.stride):
        raise ValueError("not defined for a transposed layer with a stride")
    return float(objective.value(layer.all_filters, **objective.at(layer.geometry)))


def _objectives(measure: str) -> tuple[Column, ...]:
    """Return the columns of the objectives in a group."""
    return tuple(
        Column(objective.column, objective.heading, functools.partial(_objective, objective))
        for objective in OBJECTIVES.values()
        if objective.measure == measure
    )


def _spectral_isometry(subject: Subject) -> float:
    return max(float(spectral_isometry(group)) for group in subject.kernel_layer.filters)


MEASURES: dict[str, tuple[Column, ...]] = {
    "sigma_max": (
        Column("sigma_max", "sigma_max", _sigma_max),
        Column("at_least", "at least", lambda subject: subject.spectrum.bounds[0]),
        Column("at_most", "at most", lambda subject: subject.spectrum.bounds[1]),
    ),
    "sigma_min": (
        Column("sigma_min", "sigma_min", lambda subject: subject.spectrum.smallest.value),
        Column("condition", "cond", _condition),
    ),
    "stable_rank": (Column("stable_rank", "stable rank", _stable_rank),),
    "similarity": (
        *_objectives("similarity"),
        Column("scaled_similarity", "per pair, scaled", _scaled_similarity),
    ),
    "orthogonality": (
        *_objectives("orthogonality"),
        Column("spectral_isometry", "SRIP", _spectral_isometry),
        Column("mutual_coherence", "coherence", _coherence),
    ),
    "density": (),
}
"""Groups of columns; the enclosure of the largest singular value, "at_least" and "at_most", is proved.

The density of a row is no number, and so in no column: `LayerReport.density`.
"""

OF_MAPS = ("sigma_max", "sigma_min", "stable_rank")
"""The groups that are defined for any map, and not only for a kernel."""


def columns_of(measures: Sequence[str] | None) -> tuple[Column, ...]:
    """Return the columns of some groups of `MEASURES`, in that order; all by default.

    Examples
    --------
    >>> from convla.networks.measures import columns_of
    >>> [column.name for column in columns_of(["sigma_max"])]
    ['sigma_max', 'at_least', 'at_most']
    """
    if isinstance(measures, str):
        raise TypeError(f"measures must be a sequence of names, got the string {measures!r}")
    for name in measures or ():
        check_choice("measures", name, tuple(MEASURES))
    return tuple(column for name, group in MEASURES.items() if measures is None or name in measures for column in group)
