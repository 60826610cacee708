"""How long the steps of a descent are: the learning rate throughout, or halved until the penalty decreases enough."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from convla._options import Option
from convla._validate import check_real
from convla.penalties.iterate import Course, Gradient, Iterate
from convla.penalties.tracker import Tracker

__all__ = ["Backtracking", "FixedStep", "Step", "StepName"]

StepName = Literal["fixed", "backtracking"]

ARMIJO = 1e-4  # the share of the predicted decrease that a step must reach (Nocedal and Wright, Section 3.1)
HALVINGS = 40


class Step(Option, ABC):
    """A rule for the length of a descent's steps; a subclass is a frozen dataclass with a `name`."""

    judges: ClassVar[bool]
    """Whether a step is accepted by its penalty, which is confirmed first."""

    @abstractmethod
    def take(self, course: Course, at: Iterate, gradient: Gradient) -> Iterate | None:
        """Return the next iterate; None where there is none: the kernel grew without bound, or no step decreases."""

    def check(self, tracker: Tracker) -> None:
        """Raise `ValueError` if the rule asks for more than a tracker knows."""


@dataclass(frozen=True)
class FixedStep(Step):
    """A gradient step of one length: steps 5 to 7 of Algorithm 2.1.

    Parameters
    ----------
    learning_rate : float
        Positive.
    """

    name: ClassVar[str] = "fixed"
    judges: ClassVar[bool] = False

    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        check_real("learning_rate", self.learning_rate, positive=True)

    def take(self, course: Course, at: Iterate, gradient: Gradient) -> Iterate | None:
        """Change the kernel and update the triplets."""
        operator = course.ahead(at, self.learning_rate, gradient)
        return None if operator is None else replace(course.estimated(operator, at), length=self.learning_rate)


@dataclass(frozen=True)
class Backtracking(Step):
    """A gradient step that is halved until the penalty decreases enough, and doubled after.

    Parameters
    ----------
    learning_rate : float
        Positive: the first length that is tried.

    References
    ----------
    J. Nocedal and S. J. Wright, Numerical Optimization, 2nd ed., Springer, 2006, Section 3.1.
    """

    name: ClassVar[str] = "backtracking"
    judges: ClassVar[bool] = True

    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        check_real("learning_rate", self.learning_rate, positive=True)

    def check(self, tracker: Tracker) -> None:
        """Raise `ValueError` unless the reported penalty can be trusted."""
        if not tracker.trusted:
            raise ValueError(
                f"step {self.name!r} needs a penalty that can be trusted, tracker 'block' or 'exact', got "
                f"{tracker.name!r}"
            )

    def take(self, course: Course, at: Iterate, gradient: Gradient) -> Iterate | None:
        """Try shorter and shorter steps; the penalty of one that is accepted is confirmed."""
        first = self.learning_rate if at.first_length != at.first_length else at.first_length
        # From a longer step the kernel would be out of bounds, and the halvings would be spent on coming back.
        length = min(first, course.limit / gradient.norm)
        rounding = course.eps * (at.pairs.value + course.alpha)
        for _ in range(HALVINGS):
            decrease = ARMIJO * length * gradient.norm**2
            if decrease <= rounding:
                break
            operator = course.ahead(at, length, gradient)
            if operator is not None:
                found, bar = course.estimated(operator, at), at.pairs.value - decrease
                if found.pairs.value <= bar:
                    found = course.confirmed(found)
                if found.pairs.value + found.pairs.error <= bar:
                    return replace(found, length=length, first_length=2.0 * length)
            length /= 2.0
        return None
