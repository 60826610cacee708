"""What training or a regulariser changed: two models' layers side by side."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from convla.networks.inspection import inspect
from convla.networks.report import ENDS, Inspection, csv_of, enclosure_of, frame_of

__all__ = ["Change", "Comparison", "compare"]


@dataclass(frozen=True)
class Change:
    """One quantity of one layer in two models."""

    layer: str
    quantity: str
    before: float | None
    after: float | None

    enclosures: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None)
    """What is proved to hold the values, before and after; None where nothing is."""

    @property
    def ratio(self) -> float | None:
        """After over before; None where one is not defined, or before is 0 or infinite."""
        if self.before is None or self.after is None or not self.before or not math.isfinite(self.before):
            return None
        return self.after / self.before


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two reports, layer by layer.

    Attributes
    ----------
    before, after : Inspection
    changes : tuple of Change
        Of the layers that both have, in the order of the first; the last are of the network as a whole.
    only_before, only_after : tuple of str
        Layers that one of them has.
    """

    before: Inspection
    after: Inspection
    changes: tuple[Change, ...]
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()

    @property
    def quantities(self) -> list[str]:
        """What is compared, without the ends of enclosures, which are no quantities of their own."""
        return [name for name in dict.fromkeys(one.quantity for one in self.changes) if name not in ENDS]

    def __repr__(self) -> str:
        layers = len({change.layer for change in self.changes})
        size = f"{layers} layers, {len(self.changes)} quantities"
        return f"<Comparison of {size}: .to_frame(), .to_csv(), .to_json(), .to_html()>"

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def records(self) -> list[dict[str, Any]]:
        """Return one flat mapping for each change."""
        return [
            {
                "layer": change.layer,
                "quantity": change.quantity,
                "before": change.before,
                "after": change.after,
                "ratio": change.ratio,
            }
            for change in self.changes
        ]

    def to_frame(self) -> Any:
        """Return the changes as a `pandas.DataFrame`.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return frame_of(self.records())

    def to_csv(self) -> str:
        """Return the changes as comma-separated values, with a line of names; what is not defined is empty."""
        return csv_of(self.records(), "layer")

    def to_html(self) -> str:
        """Return one page of HTML that needs nothing else: see `convla.networks.paired`."""
        page: str = importlib.import_module("convla.networks.paired").to_page(self)  # which imports this module
        return page

    def as_data(self) -> dict[str, Any]:
        """Return the whole for JSON: both reports, and which layers only one of them has."""
        return {
            "schema": "convla-comparison-1",
            "before": self.before.as_data(),
            "after": self.after.as_data(),
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
        }

    def to_json(self) -> str:
        """Return `as_data` as text."""
        return json.dumps(self.as_data(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def compare(before: Any, after: Any, example: Any = None, **options: Any) -> Comparison:
    """Compare two models layer by layer, by the names of their layers.

    Parameters
    ----------
    before, after : torch.nn.Module, path, mapping of str to array, Weights, Network or Inspection
        What has been inspected already is taken as it is.
    example, **options
        As for `inspect`, for both.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If the two have no layer of one name.
    TypeError, WeightsError, OSError
        As `inspect`.
    KeyboardInterrupt
        If Ctrl-C comes while a model is inspected: half of one is not compared.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import compare
    >>> kernel = np.ones((2, 1, 1))
    >>> changes = compare({"conv": kernel}, {"conv": 3 * kernel}, image=(8,), measures=["sigma_max"])
    >>> changes.changes[0].quantity, round(changes.changes[0].ratio, 9)
    ('sigma_max', 3.0)
    """
    reports = [_inspected(model, example, options) for model in (before, after)]
    first, second = reports
    names = [{layer.name: layer for layer in report} for report in reports]
    shared = [name for name in names[0] if name in names[1]]
    if not shared:
        raise ValueError(
            f"the two models must have layers of one name, got {', '.join(names[0])} and {', '.join(names[1])}"
        )
    columns = [column.name for column in first.columns if column in second.columns]
    changes = []
    for name in shared:
        one, other = names[0][name], names[1][name]
        for column in columns:
            sides = (enclosure_of(one, column), enclosure_of(other, column))
            changes.append(Change(name, column, one.quantities[column], other.quantities[column], sides))
    if first.certificate is not None and second.certificate is not None:
        changes.append(Change("the network", "lipschitz", first.certificate.upper, second.certificate.upper))
    # What an inspection that was interrupted has no row of may be there all the same.
    only = [
        tuple(name for name in names[one] if name not in names[1 - one]) if reports[1 - one].complete else ()
        for one in (0, 1)
    ]
    return Comparison(first, second, tuple(changes), *only)


def _inspected(model: Any, example: Any, options: dict[str, Any]) -> Inspection:
    if isinstance(model, Inspection):
        return model
    report = inspect(model, example, **options)
    if not report.complete:
        raise KeyboardInterrupt
    return report
