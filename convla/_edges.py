"""What stands beyond the edges of an axis: how far an image is extended, and by what, each way a function with a name.

A new padding or boundary is a function and its line in the table here, and its name in `convla.typing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from convla._validate import check_choice, check_integer
from convla.errors import ShapeError
from convla.typing import IndexArray, Padding

__all__ = ["BOUNDARIES", "PADDINGS", "resolve_padding"]


def _zero(position: IndexArray, size: int) -> IndexArray:
    return np.where((position >= 0) & (position < size), position, -1)


def _circular(position: IndexArray, size: int) -> IndexArray:
    return position % size


def _reflect(position: IndexArray, size: int) -> IndexArray:
    period = max(2 * (size - 1), 1)  # mirrored about both edge samples; one lone sample is its own mirror image
    position = position % period
    return cast(IndexArray, np.minimum(position, period - position) if size > 1 else position)


def _replicate(position: IndexArray, size: int) -> IndexArray:
    return np.clip(position, 0, size - 1)


def _symmetric(position: IndexArray, size: int) -> IndexArray:
    position = position % (2 * size)
    return cast(IndexArray, np.minimum(position, 2 * size - 1 - position))


BOUNDARIES: dict[str, Callable[[IndexArray, int], IndexArray]] = {
    "zero": _zero,
    "circular": _circular,
    "reflect": _reflect,
    "replicate": _replicate,
    "symmetric": _symmetric,
}
"""By boundary: the index in an axis of a size behind each position, inside it or outside; -1 where a zero stands."""

PADDINGS: dict[str, Callable[[int], tuple[int, int]]] = {
    "full": lambda extent: (extent - 1, extent - 1),
    "same": lambda extent: ((extent - 1) // 2, extent // 2),
    "valid": lambda _: (0, 0),
}
"""By padding: what is added before and after an axis, for a dilated kernel of an extent."""


def resolve_padding(padding: Padding, extents: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return the (low, high) of each axis, for a dilated kernel of these extents.

    Raises
    ------
    TypeError, ValueError, ShapeError
        If the padding is no name of `PADDINGS`, no number, and not one pair for each axis.
    """
    if isinstance(padding, str):
        around = PADDINGS[check_choice("padding", padding, tuple(PADDINGS))]
        return tuple(map(around, extents))
    if not isinstance(padding, Sequence):
        try:
            amount = check_integer("padding", padding, minimum=0)
        except TypeError:
            raise TypeError(
                f"padding must be {', '.join(map(repr, PADDINGS))}, an integer or a (low, high) pair for each axis, "
                f"got {padding!r}"
            ) from None
        return ((amount, amount),) * len(extents)
    if len(padding) != len(extents) or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in padding):
        amounts = len(padding) == len(extents) and all(isinstance(amount, int) for amount in padding)  # as in PyTorch
        advice = f": one amount for each axis is {tuple((amount, amount) for amount in padding)}" if amounts else ""
        raise ShapeError(
            f"padding must have one (low, high) pair for each of {len(extents)} axes, got {padding!r}{advice}"
        )
    pairs = [tuple(check_integer(f"padding[{axis}]", amount) for amount in pair) for axis, pair in enumerate(padding)]
    return cast(tuple[tuple[int, int], ...], tuple(pairs))
