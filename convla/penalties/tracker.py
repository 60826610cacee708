"""What a descent knows of the penalty at each iterate: a tracker, which maps (matrix, state) to (pairs, state)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from convla._options import Option
from convla.penalties.pairs import ActivePairs, Shifted
from convla.typing import Array

__all__ = ["State", "Tracker", "TrackerName"]

TrackerName = Literal["power", "block", "exact"]

State = Mapping[str, Array]
"""What is carried from one kernel to the next: arrays by name, of shapes that the map's shape fixes."""


class Tracker(Option, ABC):
    """How the penalty and its active pairs are followed from one kernel to the next.

    A subclass is a frozen dataclass with a `name`, and holds settings only. Its methods are pure functions: whoever
    follows a kernel keeps the state, as a dictionary, in a file, or in the buffers of a module.
    """

    trusted: ClassVar[bool]
    """Whether a step along a gradient may be judged by the reported penalty."""

    @abstractmethod
    def initial(self, target: Shifted) -> State:
        """Return the state that knows nothing, with which the first step searches from nothing."""

    @abstractmethod
    def step(self, target: Shifted, state: State) -> tuple[ActivePairs, State]:
        """Return what is known of the penalty at this kernel, and the state for the next one."""

    def challenge(self, target: Shifted, pairs: ActivePairs, state: State) -> tuple[ActivePairs, State]:  # noqa: ARG002
        """Return what a search of its own for what may have been missed leaves of an estimate: by default all."""
        return pairs, state
