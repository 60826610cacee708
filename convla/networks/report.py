"""What an inspection has found: rows as objects, as a table of any library, as CSV, and as JSON with a schema."""

from __future__ import annotations

import csv
import html
import importlib
import io
import json
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convla.networks.certificate import Certificate
from convla.networks.digits import Side
from convla.networks.measures import Column
from convla.spectra import SpectralDensity, Status

__all__ = ["ENDS", "SCHEMA", "Inspection", "LayerReport", "csv_of", "enclosure_of", "frame_of", "pads", "sizes"]

_UNFINISHED: dict[str, Side] = {"sigma_min": "above", "condition": "below"}

SCHEMA = "convla-inspection-1"
"""The name of the layout of the JSON, whose number grows when a reader has to change."""


@dataclass(frozen=True)
class LayerReport:
    """The quantities of one layer, or of several that stand together."""

    name: str
    kind: str
    """"convolution", "linear", "normalization", or "run": several linear maps, each behind the other."""
    shape: tuple[int, ...]
    """Of the kernel, as the model holds it; of the matrix, for a run."""
    dtype: str
    geometry: dict[str, Any]
    """Image, output, padding, stride, dilation, groups, boundary, and if it is transposed; empty for no convolution."""
    assumed: tuple[str, ...]
    """What of the geometry the model does not say."""
    quantities: dict[str, float | None]
    """By column name; None where a quantity is not defined, and `notes` says why."""
    status: dict[str, str]
    """What the singular values promise, by column name; None of them where they were not asked for."""
    errors: dict[str, float]
    """What the singular values may be off, by column name: bounds where they are proved, else estimates."""
    deficiency: int | None
    """How many singular values are zero, as far as float64 can tell; None where this was not found."""
    dead: int
    """Filters that are 0, or lost in the rounding of the others."""
    notes: tuple[str, ...]
    seconds: float
    density: SpectralDensity | None = None
    """How the singular values are distributed; None where it was not asked for, or takes long: see `inspect`."""

    @property
    def summary(self) -> str:
        """The weakest thing that can be said of the row's singular values; "" where none were asked for."""
        words = dict.fromkeys(self.status.values())
        return ", ".join(words)

    def side(self, name: str) -> Side:
        """Return on which side of what it stands for a quantity is as a bound: "nearest" for one that is found."""
        if name in ENDS:
            return "above" if name == "at_most" else "below"
        unfinished = self.status.get("sigma_min") == Status.NOT_CONVERGED
        # Of what is not converged sigma_min may be smaller and the condition number larger than it is given.
        return _UNFINISHED.get(name, "nearest") if unfinished else "nearest"


@dataclass(frozen=True, repr=False)
class Inspection:
    """The layers of a model, what bounds the whole, and what is no layer in it, with the reason.

    Attributes
    ----------
    layers : tuple of LayerReport
        In the model's order; behind each run of linear maps that stand together a row of the run.
    columns : tuple of Column
        What was measured.
    certificate : Certificate or None
        What bounds the whole network; None where it was not asked for, or the model has no graph.
    others : dict of str to str
        Why something else in the model is no row.
    source : dict of str to str
        What was inspected, such as the name of the file and its digest.
    complete : bool
        Whether these are all rows, or those that were done before an interruption.
    """

    layers: tuple[LayerReport, ...]
    columns: tuple[Column, ...]
    certificate: Certificate | None = None
    others: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    complete: bool = True

    def __repr__(self) -> str:
        bound = "" if self.certificate is None else f", {self.certificate.short}"
        partly = "" if self.complete else " (interrupted)"
        return f"<Inspection of {len(self.layers)} rows{partly}{bound}: .to_frame(), .to_csv(), .to_json()>"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows; the whole, with notes and the bound, is `to_html`."""
        heads = ["layer", "kernel", "image", *(column.heading for column in self.columns), "status"]
        rows = [
            [
                *(record[name] for name in ("layer", "shape", "image")),
                *("" if (value := record[column.name]) is None else f"{value:.4g}" for column in self.columns),
                record["status"],
            ]
            for record in self.records()
        ]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{html.escape(repr(self))}</p>"

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerReport:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r} among {', '.join(layer.name for layer in self.layers)}")

    @property
    def model_name(self) -> str:
        """What the model is called: by its file, by its class, or not at all."""
        return str(self.source.get("file") or self.source.get("model") or "a model")

    def records(self) -> list[dict[str, Any]]:
        """Return one flat mapping for each row: what `to_frame` and `to_csv` are made of."""
        return [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "shape": sizes(layer.shape),
                "image": sizes(layer.geometry.get("image", ())),
                "stride": sizes(layer.geometry.get("stride", ())),
                "padding": pads(layer.geometry.get("padding", ())),
                "groups": layer.geometry.get("groups"),
                "transposed": layer.geometry.get("transposed"),
                "dtype": layer.dtype,
                **{column.name: layer.quantities[column.name] for column in self.columns},
                "status": layer.summary,
                "zero_values": layer.deficiency,
                "assumed": " ".join(layer.assumed),
                "seconds": layer.seconds,
                "notes": "; ".join(layer.notes),
            }
            for layer in self.layers
        ]

    def to_frame(self) -> Any:
        """Return the rows as a `pandas.DataFrame`.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return frame_of(self.records())

    def to_csv(self) -> str:
        """Return the rows as comma-separated values, with a line of names; what is not defined is empty."""
        return csv_of(self.records(), "layer")

    def to_html(self) -> str:
        """Return one page of HTML that needs nothing else: see `convla.networks.page`."""
        page: str = importlib.import_module("convla.networks.page").to_page(self)  # which imports this module
        return page

    def as_data(self) -> dict[str, Any]:
        """Return the whole as mappings, lists, finite numbers and strings, for JSON; infinity as "Infinity"."""
        version = importlib.import_module("convla").__version__  # which imports this module while it is made

        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "dtype": layer.dtype,
                "geometry": _plain(layer.geometry),
                "assumed": list(layer.assumed),
                "quantities": {name: _number(value) for name, value in layer.quantities.items()},
                "status": layer.status,
                "errors": {name: _number(value) for name, value in layer.errors.items()},
                "density": _density(layer.density),
                "zero_values": layer.deficiency,
                "dead": layer.dead,
                "notes": list(layer.notes),
                "seconds": layer.seconds,
            }
            for layer in self.layers
        ]
        return {
            "schema": SCHEMA,
            **self.source,
            "versions": {"convla": version, "numpy": np.__version__, "python": platform.python_version()},
            "complete": self.complete,
            "certificate": None if self.certificate is None else self.certificate.as_data(),
            "layers": layers,
            "others": self.others,
        }

    def to_json(self) -> str:
        """Return `as_data` as text."""
        return json.dumps(self.as_data(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: float | None) -> float | str | None:
    """Return a number as JSON can hold it."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity"


def _density(found: SpectralDensity | None) -> dict[str, Any] | None:
    """Return a distribution of singular values for JSON."""
    if found is None:
        return None
    return {
        "edges": found.edges.tolist(),
        "shares": found.shares.tolist(),
        "errors": found.errors.tolist(),
        "confidence": found.confidence,
        "blur": found.blur,
        "zeros": found.zeros,
        "zeros_proved": found.zeros_proved,
        "status": str(found.status),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


ENDS = ("at_least", "at_most")
"""The columns that enclose the largest singular value."""


def enclosure_of(layer: LayerReport, column: str) -> tuple[float, float] | None:
    """Return the proved enclosure of a quantity, where there is one: of the largest singular value.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import inspect
    >>> from convla.networks.report import enclosure_of
    >>> row = inspect({"conv": np.ones((2, 1, 1))}, image=(8,))["conv"]
    >>> enclosure_of(row, "sigma_min") is None, len(enclosure_of(row, "sigma_max"))
    (True, 2)
    """
    low, high = (layer.quantities.get(name) for name in ENDS)
    return None if column != "sigma_max" or low is None or high is None else (low, high)


def sizes(values: Sequence[int]) -> str:
    """Return sizes as they are written: 3x224x224."""
    return "x".join(map(str, values))


def pads(values: Sequence[tuple[int, int]]) -> str:
    """Return paddings as they are written: 1x1, or low:high where the sides differ."""
    return "x".join(str(low) if low == high else f"{low}:{high}" for low, high in values)


def frame_of(records: Sequence[dict[str, Any]]) -> Any:
    """Return flat mappings as a `pandas.DataFrame`.

    Raises
    ------
    ImportError
        If pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_frame needs pandas: pip install pandas; records() gives the same rows") from error
    return pandas.DataFrame.from_records(records)


def csv_of(records: Sequence[dict[str, Any]], first: str) -> str:
    """Return flat mappings as comma-separated values, with a line of names; `first` is that of the first, if any."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [first], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
