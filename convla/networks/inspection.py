"""What `convla inspect` shows: a row of quantities for each convolution kernel of a model."""

from __future__ import annotations

import fnmatch
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from convla import __version__
from convla._array import available_memory
from convla._validate import check_integer
from convla.errors import ConvergenceWarning, ShapeError
from convla.networks.kernels import split_kernels
from convla.networks.layers import FACTORIZED, Layer, LayerSettings, doubts, make_layer, read_settings, settings_for
from convla.networks.parametrizations import assemble
from convla.networks.weights import Weights
from convla.similarity import convolutional_similarity
from convla.similarity.orthogonality import kernel_orthogonality, mutual_coherence, ocnn_residual, spectral_isometry
from convla.spectra import SingularValues
from convla.spectra.status import Status

__all__ = [
    "COLUMNS",
    "FACTORIZED",
    "SPECTRAL_COLUMNS",
    "Column",
    "Inspection",
    "Layer",
    "LayerReport",
    "LayerSettings",
    "inspect_network",
    "read_settings",
]


class Column(NamedTuple):
    """One quantity: its name in a report, its heading in a table, and how a layer's is found."""

    name: str
    heading: str
    compute: Callable[[Layer], float]


@dataclass(frozen=True)
class LayerReport:
    """The quantities of one layer."""

    name: str
    shape: tuple[int, ...]
    """As the file holds the kernel."""
    dtype: str
    settings: LayerSettings
    geometry: dict[str, Any]
    """How the settings were understood: sizes of the layer's image and output, padding, stride, dilation, groups."""
    quantities: dict[str, float | None]
    """By column name; None where a quantity is not defined, and `notes` says why."""
    status: dict[str, str]
    """What the singular values promise, by column name; None of them where they were not asked for."""
    dead: int
    """Filters that are 0, or lost in the rounding of the others."""
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Inspection:
    """The layers of a model, and what is no convolution kernel in it, with the reason."""

    layers: tuple[LayerReport, ...]
    others: dict[str, str]
    columns: tuple[Column, ...]
    source: dict[str, str] = field(default_factory=dict)
    """What was inspected, such as the name of the file and its digest."""
    complete: bool = True
    """Whether these are all layers, or those that were done before an interruption."""

    def as_data(self) -> dict[str, Any]:
        """Return the whole as mappings, lists, finite numbers and strings, for JSON; infinity as None."""
        layers = [asdict(layer) for layer in self.layers]
        for layer in layers:
            layer["quantities"] = {
                name: value if value is not None and math.isfinite(value) else None
                for name, value in layer["quantities"].items()
            }
        head = {**self.source, "convla": __version__, "complete": self.complete}
        return {**head, "layers": layers, "others": self.others}


def inspect_network(
    weights: Weights | Mapping[str, Any],
    image: Sequence[int],
    *,
    default: LayerSettings | None = None,
    settings: Sequence[tuple[str, LayerSettings]] = (),
    spectra: bool = True,
    progress: Callable[[LayerReport], None] | None = None,
) -> Inspection:
    """Measure every convolution kernel among a model's arrays.

    Parameters
    ----------
    weights : Weights or mapping of str to numpy.ndarray
        As `read_model` or `read_weights` return them.
    image : sequence of int
        The image that each layer is given, without its channels. A file of weights does not say how layers follow each
        other; give layers of other images theirs in `settings`. For kernels of more axes its last size is repeated, for
        kernels of fewer axes all its sizes must be equal.
    default : LayerSettings, optional
        For layers that no pattern matches: padding "same", stride 1, one group.
    settings : sequence of (pattern, LayerSettings)
        As `read_settings` returns them; the last that matches a layer's name is taken.
    spectra : bool, default True
        Also find the singular values of every layer, which takes seconds for large layers on large images. The smallest
        one is left out where the matrix is too large to factorise.
    progress : callable, optional
        Called with each layer's report as it is done.

    Returns
    -------
    Inspection

    Raises
    ------
    ShapeError, TypeError, ValueError
        If settings do not fit a kernel, or an image and its features do not fit the memory; the message begins with the
        layer's name. If a pattern matches no array. Nothing has been measured then.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.inspection import inspect_network
    >>> report = inspect_network({"conv": np.ones((2, 1, 1)), "bias": np.ones(2)}, (8,))
    >>> report.layers[0].quantities["similarity"], report.others
    (1.0, {'bias': '1 axes: a convolution kernel has 3 to 5, (c_out, c_in, *kernel)'})
    """
    if not isinstance(weights, Weights):
        weights = Weights({name: np.asarray(array) for name, array in weights.items()})
    tasks, others = _tasks(weights, image, default or LayerSettings(), settings, spectra)
    columns = SPECTRAL_COLUMNS + COLUMNS if spectra else COLUMNS
    reports = []
    for task in tasks:
        reports.append(_measure(task, columns))
        if progress is not None:
            progress(reports[-1])
    return Inspection(tuple(reports), others, columns)


class _Task(NamedTuple):
    """A layer to be inspected."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    settings: LayerSettings
    layer: Layer
    doubts: tuple[str, ...]


def _tasks(
    weights: Weights,
    image: Sequence[int],
    default: LayerSettings,
    settings: Sequence[tuple[str, LayerSettings]],
    spectra: bool,
) -> tuple[list[_Task], dict[str, str]]:
    """Return the layers of a model, each checked before the first is measured, and why its other arrays are none."""
    sizes = tuple(check_integer("image", size, minimum=1) for size in image)
    kernels, others = split_kernels(weights.arrays)
    for pattern, _ in settings:
        if not fnmatch.filter([*weights.arrays, *kernels], pattern):
            raise ValueError(f"settings for {pattern!r} match none of the {len(weights.arrays)} arrays")
    rank = max((kernel.ndim - 2 for kernel in kernels.values()), default=len(sizes))
    if len(sizes) > rank:
        raise ShapeError(
            f"image must have at most {rank} sizes, as many as the kernels have axes behind their channels, got "
            f"{'x'.join(map(str, sizes))}: give it without the channels"
        )
    made = assemble(weights.arrays)
    tasks = []
    for name, kernel in kernels.items():
        chosen = settings_for(name, default, settings)
        layer = make_layer(name, kernel, chosen, sizes)
        if spectra:
            _check_memory(name, layer)
        notes = (*([made[name].note] if name in made else ()), *doubts(name, kernel, chosen))
        stored = made[name].parts[0] if name in made else name
        dtype = weights.dtypes.get(stored, str(kernel.dtype))
        tasks.append(_Task(name, kernel.shape, dtype, chosen, layer, notes))
    return tasks, {**others, **weights.unread}


def _check_memory(name: str, layer: Layer) -> None:
    needed = VECTORS * layer.kernel.itemsize * sum(layer.operator.shape)
    available = available_memory(layer.kernel)
    if available is not None and needed > available:
        raise ValueError(
            f"layer {name}: singular values on images of {'x'.join(map(str, layer.geometry.image_shape))} take "
            f"{needed} bytes at least, more than the {available} bytes of free memory"
        )


def _measure(task: _Task, columns: Sequence[Column]) -> LayerReport:
    """Return the quantities of a layer; what cannot be found is told in its notes."""
    layer = task.layer
    began = time.perf_counter()
    quantities: dict[str, float | None] = {}
    reasons: dict[str, list[str]] = {}
    for column in columns:
        # What overflows comes out as infinity or NaN, and is told below.
        with warnings.catch_warnings(record=True) as caught, np.errstate(over="ignore", invalid="ignore"):
            warnings.simplefilter("always", ConvergenceWarning)
            try:
                value = column.compute(layer)
                if math.isnan(value):
                    raise ValueError("not a number: its parts leave the range of floating-point numbers")
                quantities[column.name] = value
            except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
                quantities[column.name] = None
                reasons.setdefault(str(error) or type(error).__name__, []).append(column.heading)
        for warning in caught:
            reasons.setdefault(str(warning.message), []).append(column.heading)
    status = {name: str(found.status) for name, found in _found(layer, quantities).items()}
    for name, word in status.items():
        if word == Status.ESTIMATED:
            reasons.setdefault(f"{word}: {Status.ESTIMATED.sentence}", []).append(name)
    dead = int(np.count_nonzero(~layer.live))
    notes = list(task.doubts)
    if dead:
        notes.append(
            f"{dead} of {layer.live.size} filters are dead: their norms are 0, or at most 2^-20 (1e-6) of the largest, "
            "which is lost in rounding; scaled pairs and coherence are over the others"
        )
    notes += [f"{', '.join(headings)}: {reason}" for reason, headings in reasons.items()]
    return LayerReport(
        task.name,
        task.shape,
        task.dtype,
        task.settings,
        _described(layer),
        quantities,
        status,
        dead,
        tuple(notes),
        time.perf_counter() - began,
    )


def _found(layer: Layer, quantities: Mapping[str, float | None]) -> dict[str, SingularValues]:
    """Return the singular values that were found, by column name."""
    names = {"sigma_max": "largest", "sigma_min": "smallest"}
    return {name: getattr(layer, kept) for name, kept in names.items() if quantities.get(name) is not None}


def _described(layer: Layer) -> dict[str, Any]:
    geometry = layer.geometry
    shapes = (geometry.image_shape, geometry.range_shape[1:])
    image, output = shapes[::-1] if layer.transposed else shapes
    return {
        "image": image,
        "output": output,
        **{name: getattr(geometry, name) for name in ("padding", "stride", "dilation", "groups", "boundary")},
        "transposed": layer.transposed,
    }


def _mean_normalized_similarity(layer: Layer) -> float:
    live = layer.all_filters[layer.live.reshape(-1)]
    if len(live) < 2:
        raise ValueError(f"fewer than two live filters have no pairs, got {len(live)}")
    return float(convolutional_similarity(live, normalized=True)) / math.comb(len(live), 2)


def _coherence(layer: Layer) -> float:
    # Filters of different groups see different channels, and are orthogonal as they are.
    groups = [group[live] for group, live in zip(layer.filters, layer.live, strict=True)]
    values = [float(mutual_coherence(group)) for group in groups if len(group) > 1]
    if not values:
        raise ValueError("no group has two live filters, which have a cosine")
    return max(values)


def _ocnn_residual(layer: Layer) -> float:
    stride = layer.geometry.stride
    if layer.transposed and any(step > 1 for step in stride):
        raise ValueError("not defined for a transposed layer with a stride")
    return math.fsum(float(ocnn_residual(group, stride=stride)) for group in layer.filters)


def _condition_number(layer: Layer) -> float:
    if str(layer.smallest.status) == Status.RANK_DEFICIENT:
        raise ValueError("infinite: the operator is rank deficient")
    return layer.largest.value / layer.smallest.value


VECTORS = 6
"""The least number of images and features that the iteration for the largest singular value holds."""

SPECTRAL_COLUMNS: tuple[Column, ...] = (
    Column("sigma_max", "sigma_max", lambda layer: layer.largest.value),
    Column("sigma_max_lower", "at least", lambda layer: layer.bounds.lower),
    Column("sigma_max_upper", "at most", lambda layer: layer.bounds.upper),
    Column("sigma_min", "sigma_min", lambda layer: layer.smallest.value),
    Column("condition_number", "cond", _condition_number),
)
"""The singular values of the layer's matrix; the enclosure of the largest is proved."""

COLUMNS: tuple[Column, ...] = (
    Column("similarity", "L_CS", lambda layer: float(convolutional_similarity(layer.all_filters))),
    Column("normalized_similarity", "per pair, scaled", _mean_normalized_similarity),
    Column(
        "kernel_orthogonality",
        "|WW'-I|^2",
        lambda layer: math.fsum(float(kernel_orthogonality(group)) for group in layer.filters),
    ),
    Column("spectral_isometry", "SRIP", lambda layer: max(float(spectral_isometry(group)) for group in layer.filters)),
    Column("mutual_coherence", "coherence", _coherence),
    Column("ocnn_residual", "OCNN", _ocnn_residual),
)
"""The similarity and orthogonality of the kernels."""
