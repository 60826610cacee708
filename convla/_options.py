"""Options that have settings of their own: small frozen objects, for which a name is the shorthand."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from convla._array import describe
from convla._validate import check_choice

__all__ = ["Option"]


class Option:
    """A choice among the classes of one family, each with a name that stands for its default settings.

    A direct subclass is a family, such as the trackers of a penalty; a subclass of a family, a frozen dataclass with a
    `name`, is a choice. To define it is enough for its name to be understood.

    Examples
    --------
    >>> from convla.penalties import Backtracking, Step
    >>> Step.of("step", "backtracking") == Step.of("step", Backtracking())
    True
    """

    name: ClassVar[str]
    _family: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if Option in cls.__bases__:
            cls._family = {}
        elif "name" in vars(cls):
            cls._family[cls.name] = cls

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the family's choices."""
        return tuple(cls._family)

    @classmethod
    def of(cls, parameter: str, value: object) -> Self:
        """Return a choice of this family, from itself or from its name.

        Raises
        ------
        TypeError, ValueError
            If the value is neither; the message begins with the name of the parameter.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            classes = ", ".join(choice.__name__ for choice in cls._family.values())
            raise TypeError(
                f"{parameter} must be one of {', '.join(map(repr, cls._family))}, or a {classes} object, "
                f"got {describe(value)}"
            )
        chosen: Self = cls._family[check_choice(parameter, value, cls.names())]()
        return chosen
