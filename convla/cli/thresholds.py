"""Thresholds of a report, such as "cond>1e4": what a continuous integration fails on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from convla.networks.digits import digits_of
from convla.networks.measures import columns_of
from convla.networks.report import ENDS, Inspection

__all__ = ["Threshold", "parse_threshold"]

_FORM = re.compile(r"\s*([\w ]+?)\s*([<>])\s*([-+.\deE]+)\s*")
_WHOLE = "lipschitz"


@dataclass(frozen=True)
class Threshold:
    """What a quantity of a layer, or of the whole network, should not be.

    Attributes
    ----------
    name : str
        Of a column, or "lipschitz" for the proved bound of the network.
    above : bool
        Whether a value above the limit breaks it, or one below.
    limit : float
    """

    name: str
    above: bool
    limit: float

    def broken_by(self, report: Inspection) -> Iterator[str]:
        """Give a sentence for everything in a report that is beyond the threshold.

        A number that is only known to be no larger, or no smaller, breaks it where that is enough.
        """
        if self.name == _WHOLE:
            if report.certificate is not None and self._is_beyond(report.certificate.upper):
                yield f"the network: lipschitz {digits_of(report.certificate.upper, 6, 'above')} is {self._words}"
            return
        for layer in report.layers:
            value = layer.quantities.get(self.name)
            if value is None or not self._is_beyond(value):
                continue
            side = layer.side(self.name)
            if self.name not in ENDS and side == ("above" if self.above else "below"):
                continue  # what it bounds may be within
            yield f"{layer.name}: {self.name} {digits_of(value, 6, side)} is {self._words}"

    @property
    def _words(self) -> str:
        return f"{'above' if self.above else 'below'} {self.limit:g}"

    def _is_beyond(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit


def parse_threshold(text: str) -> Threshold:
    """Return the threshold that a text says.

    Parameters
    ----------
    text : str
        The name or the heading of a column, or "lipschitz"; ``>`` or ``<``; a number.

    Raises
    ------
    ValueError
        If it says none.

    Examples
    --------
    >>> from convla.cli.thresholds import parse_threshold
    >>> parse_threshold("cond>1e4")
    Threshold(name='condition', above=True, limit=10000.0)
    """
    names = {word: column.name for column in columns_of(None) for word in (column.name, column.heading)}
    names[_WHOLE] = _WHOLE
    match = _FORM.fullmatch(text)
    try:
        if match is None or match[1] not in names:
            raise ValueError
        return Threshold(names[match[1]], match[2] == ">", float(match[3]))
    except ValueError:
        raise ValueError(
            f"--warn must be a quantity, > or <, and a number, such as 'cond>1e4', got {text!r}; the quantities are "
            f"{', '.join(dict.fromkeys(names.values()))}"
        ) from None
