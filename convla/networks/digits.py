"""Numbers to a few digits; a bound is rounded so that what is written is one too."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context
from typing import Literal, TypeAlias

__all__ = ["Side", "digits_of"]

Side: TypeAlias = Literal["nearest", "above", "below"]

_ROUNDING = {"nearest": ROUND_HALF_EVEN, "above": ROUND_CEILING, "below": ROUND_FLOOR}


def digits_of(value: float, digits: int, side: Side = "nearest") -> str:
    """Return a number to so many digits, as the format ``g`` writes it.

    Parameters
    ----------
    value : float
        Not subnormal, unless it is rounded to the nearest.
    digits : int
        At least 1 and at most 15.
    side : {"nearest", "above", "below"}
        "above" gives the least such number that is not below the value, for an upper bound; "below" the greatest that
        is not above it, for a lower one.

    Examples
    --------
    >>> from convla.networks.digits import digits_of
    >>> digits_of(4.925713, 6), digits_of(4.925713, 6, "above"), digits_of(4.925719, 6, "below")
    ('4.92571', '4.92572', '4.92571')
    """
    if not math.isfinite(value):
        return f"{value:g}"
    rounded = Context(prec=digits, rounding=_ROUNDING[side]).create_decimal(value)
    return f"{float(rounded):.{digits}g}"
