"""What `convla inspect` shows: a row of quantities for each convolution kernel of a model."""

from __future__ import annotations

import fnmatch
import functools
import math
import os
import time
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convla._array import available_memory
from convla._validate import check_integer, check_sizes
from convla.errors import ConvergenceWarning, ConvlaError
from convla.geometry import ConvGeometry
from convla.models.kernels import split_kernels
from convla.operators import ConvOperator
from convla.similarity import convolutional_similarity
from convla.similarity.orthogonality import kernel_orthogonality, mutual_coherence, ocnn_residual, spectral_isometry
from convla.spectra import (
    SingularValueBounds,
    SingularValues,
    largest_singular_value,
    singular_value_bounds,
    smallest_singular_value,
)
from convla.typing import Padding

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


@dataclass(frozen=True)
class LayerSettings:
    """How a layer uses its kernel; what a file of weights does not say."""

    padding: Padding = "same"
    stride: int | Sequence[int] = 1
    dilation: int | Sequence[int] = 1
    groups: int = 1
    image: tuple[int, ...] | None = None
    """The image that this layer is given, where it is another than the command's."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A kernel (c_out, c_in // groups, *kernel) and the map that it stands for."""

    kernel: np.ndarray[Any, Any]
    settings: LayerSettings
    geometry: ConvGeometry

    @functools.cached_property
    def operator(self) -> ConvOperator:
        """The layer's matrix, matrix-free."""
        geometry = self.geometry
        return ConvOperator(
            self.kernel,
            geometry.image_shape,
            padding=geometry.padding,
            stride=geometry.stride,
            dilation=geometry.dilation,
            groups=geometry.groups,
            boundary=geometry.boundary,
        )

    @functools.cached_property
    def largest(self) -> SingularValues:
        """The operator's largest singular value."""
        return largest_singular_value(self.operator)

    @functools.cached_property
    def bounds(self) -> SingularValueBounds:
        """Its enclosure, which holds whatever the iteration behind `largest` did."""
        return singular_value_bounds(self.operator, start=self.largest)

    @functools.cached_property
    def smallest(self) -> SingularValues:
        """The operator's smallest singular value, where the matrix can be factorised.

        Raises
        ------
        ValueError
            If the matrix is too large.
        """
        if min(self.operator.shape) > FACTORIZED:
            raise ValueError(
                f"a matrix of shape {self.operator.shape} is too large to factorise (more than {FACTORIZED} on its "
                "shorter side): inspect the layer with a smaller image"
            )
        return smallest_singular_value(self.operator)


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
    settings: LayerSettings
    quantities: dict[str, float | None]
    """By column name; None where a quantity is not defined, and `notes` says why."""
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Inspection:
    """The layers of a model, and what is no convolution kernel in it, with the reason."""

    layers: tuple[LayerReport, ...]
    others: dict[str, str]
    columns: tuple[Column, ...]

    def as_data(self) -> dict[str, Any]:
        """Return the whole as mappings, lists, finite numbers and strings, for JSON; infinity as None."""
        layers = [asdict(layer) for layer in self.layers]
        for layer in layers:
            layer["quantities"] = {
                name: value if value is not None and math.isfinite(value) else None
                for name, value in layer["quantities"].items()
            }
        return {"layers": layers, "others": self.others}


def read_settings(path: str | os.PathLike[str], default: LayerSettings) -> list[tuple[str, LayerSettings]]:
    r"""Read how layers use their kernels from a TOML file.

    Each table is for the layers that its name matches, ``*`` standing for anything; a later one goes before an earlier
    one. Its keys are padding, stride, dilation, groups and image; what it leaves out is as in `default`.

    Parameters
    ----------
    path : path
        Such as a file of ``["layer2.*"]`` and ``stride = 2`` on two lines.
    default : LayerSettings

    Returns
    -------
    list of (pattern, LayerSettings)

    Raises
    ------
    ValueError
        If the file is not TOML, or has an unknown key.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from convla.models.inspection import LayerSettings, read_settings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "layers.toml"
    ...     _ = path.write_text('["layer2.*"]\nstride = 2\n')
    ...     read_settings(path, LayerSettings())[0][1].stride
    2
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    known = set(asdict(default))
    settings = []
    for pattern, table in tables.items():
        if not isinstance(table, dict) or not set(table) <= known:
            raise ValueError(f"{path}: [{pattern}] must be a table with the keys {', '.join(sorted(known))}")
        if "image" in table:
            table["image"] = check_sizes(f"{path}: [{pattern}] image", table["image"])
        settings.append((pattern, replace(default, **table)))
    return settings


def inspect_network(
    arrays: Mapping[str, Any],
    image: Sequence[int],
    *,
    default: LayerSettings | None = None,
    settings: Sequence[tuple[str, LayerSettings]] = (),
    spectra: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Inspection:
    """Measure every convolution kernel among a model's arrays.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
        As `read_weights` returns them.
    image : sequence of int
        The image that each layer is given. A file of weights does not say how layers follow each other; give layers of
        other images theirs in `settings`. For kernels with another number of axes its last size is repeated.
    default : LayerSettings, optional
        For layers that no pattern matches: padding "same", stride 1, one group.
    settings : sequence of (pattern, LayerSettings)
        As `read_settings` returns them; the last that matches a layer's name is taken.
    spectra : bool, default True
        Also find the singular values of every layer, which takes seconds for large layers on large images. The smallest
        one is left out where the matrix is too large to factorise.
    progress : callable, optional
        Called with the name of each layer that is done.

    Returns
    -------
    Inspection

    Raises
    ------
    ShapeError, TypeError, ValueError
        If settings do not fit a kernel, or an image and its features do not fit the memory; the message begins with the
        layer's name. If a pattern matches no array.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.models.inspection import inspect_network
    >>> report = inspect_network({"conv": np.ones((2, 1, 1)), "bias": np.ones(2)}, (8, 8))
    >>> report.layers[0].quantities["similarity"], report.others
    (1.0, {'bias': '1 axes: a convolution kernel has 3 to 5, (c_out, c_in, *kernel)'})
    """
    sizes = tuple(check_integer("image", size, minimum=1) for size in image)
    kernels, others = split_kernels(arrays)
    for pattern, _ in settings:
        if not fnmatch.filter(arrays, pattern):
            raise ValueError(f"settings for {pattern!r} match none of the {len(arrays)} arrays")
    columns = SPECTRAL_COLUMNS + COLUMNS if spectra else COLUMNS
    reports = []
    for name, kernel in kernels.items():
        chosen = default or LayerSettings()
        for pattern, match in settings:
            if fnmatch.fnmatchcase(name, pattern):
                chosen = match
        reports.append(_inspect_layer(name, kernel, chosen, sizes, columns))
        if progress is not None:
            progress(name)
    return Inspection(tuple(reports), others, columns)


def _inspect_layer(
    name: str, kernel: Any, settings: LayerSettings, image: tuple[int, ...], columns: tuple[Column, ...]
) -> LayerReport:
    rank = kernel.ndim - 2
    sizes = settings.image or (*image, *(image[-1],) * rank)[:rank]
    try:
        geometry = ConvGeometry(
            kernel.shape,
            sizes,
            padding=settings.padding,
            stride=settings.stride,
            dilation=settings.dilation,
            groups=settings.groups,
        )
    except (ConvlaError, TypeError, ValueError) as error:
        raise type(error)(f"layer {name}: {error}") from error
    needed, available = VECTORS * kernel.itemsize * sum(geometry.shape), available_memory(kernel)
    if columns != COLUMNS and available is not None and needed > available:
        raise ValueError(
            f"layer {name}: singular values on images of {'x'.join(map(str, sizes))} take {needed} bytes at least, "
            f"more than the {available} bytes of free memory"
        )
    layer = Layer(kernel, settings, geometry)
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
    notes = tuple(f"{', '.join(headings)}: {reason}" for reason, headings in reasons.items())
    return LayerReport(name, kernel.shape, settings, quantities, notes, time.perf_counter() - began)


def _mean_normalized_similarity(layer: Layer) -> float:
    count = layer.kernel.shape[0]
    if count < 2:
        raise ValueError(f"a layer of one kernel has no pairs, got shape {layer.kernel.shape}")
    return float(convolutional_similarity(layer.kernel, normalized=True)) / math.comb(count, 2)


def _over_groups(measure: Callable[[Any], Any], layer: Layer) -> list[float]:
    # Kernels of different groups see different channels: their rows of the layer's matrix cannot meet.
    return [float(measure(group)) for group in np.split(layer.kernel, layer.settings.groups)]


def _condition_number(layer: Layer) -> float:
    if layer.smallest.status == "rank deficient":
        raise ValueError("infinite: the operator is rank deficient")
    return layer.largest.value / layer.smallest.value


FACTORIZED = 4096
"""The longest shorter side of a matrix whose smallest singular value is looked for: seconds, and hundreds of MiB."""

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
    Column("similarity", "L_CS", lambda layer: float(convolutional_similarity(layer.kernel))),
    Column("normalized_similarity", "per pair, scaled", _mean_normalized_similarity),
    Column("kernel_orthogonality", "|WW'-I|^2", lambda layer: math.fsum(_over_groups(kernel_orthogonality, layer))),
    Column("spectral_isometry", "SRIP", lambda layer: max(_over_groups(spectral_isometry, layer))),
    Column("mutual_coherence", "coherence", lambda layer: max(_over_groups(mutual_coherence, layer))),
    Column(
        "ocnn_residual",
        "OCNN",
        lambda layer: math.fsum(
            _over_groups(lambda group: ocnn_residual(group, stride=layer.settings.stride), layer),
        ),
    ),
)
"""The similarity and orthogonality of the kernels."""
