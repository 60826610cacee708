"""A call of one of PyTorch's functions, as it is recorded: its name, its arguments, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from convla.networks.graph import Node

__all__ = ["ATTENTION", "Call", "Padded", "Watcher", "only_first", "plain_name", "unknown"]

ATTENTION = "attention: a product of what depends on the input, which has no Lipschitz constant on the whole space"


class Watcher(Protocol):
    """What a call asks of the recorder."""

    def is_tracked(self, value: Any) -> bool:
        """Tell whether a value depends on the inputs."""

    def inputs_of(self, tensors: Sequence[Tensor]) -> tuple[str, ...]:
        """Return the nodes of tensors."""

    def name_of_weight(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter or buffer."""

    @property
    def module_name(self) -> str:
        """The name of the innermost module that runs."""

    @property
    def paddings(self) -> dict[int, Padded]:
        """What padded tensors were before, by the identity of the tensor."""


@dataclass(frozen=True)
class Padded:
    """A tensor before it was padded, and how much on the sides of each image axis, by which boundary."""

    before: Tensor
    amounts: tuple[tuple[int, int], ...]
    boundary: str


@dataclass(frozen=True)
class Call:
    """A call of one of PyTorch's functions.

    Attributes
    ----------
    function : callable
    args, kwargs
    value
        What it returned.
    watcher : Watcher
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    value: Any
    watcher: Watcher

    @property
    def name(self) -> str:
        """The function's name, in place or as an operator too: "add" for add, add_, __add__ and __iadd__."""
        # An operator of an exported program is called "conv2d.default".
        return plain_name(str(getattr(self.function, "__name__", self.function)).partition(".")[0])

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument, by its position or its name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def arguments(self, *names: str) -> Iterator[Any]:
        """Give arguments in the order of the function's signature, None for those left out."""
        return (self.argument(position, name) for position, name in enumerate(names))

    @property
    def input(self) -> Tensor:
        """The first argument."""
        return self.argument(0, "input")

    def follows_only_first(self) -> bool:
        """Tell whether the first argument alone depends on the inputs."""
        others = [*self.args[1:], *(value for key, value in self.kwargs.items() if key != "input")]
        return self.watcher.is_tracked(self.input) and not any(map(self.watcher.is_tracked, others))


_ALIASES = {
    "iadd": "add", "radd": "add", "isub": "sub", "subtract": "sub", "rsub": "rsub", "imul": "mul", "rmul": "mul",
    "multiply": "mul", "truediv": "div", "itruediv": "div", "true_divide": "div", "divide": "div", "negative": "neg",
    "concat": "cat",
    "log_sigmoid": "logsigmoid", "concatenate": "cat", "maximum": "maximum", "absolute": "abs", "clip": "clamp",
    "clamp_min": "clamp", "clamp_max": "clamp", "rmatmul": "matmul", "mm": "matmul",
}  # fmt: skip


def plain_name(name: str) -> str:
    """Return the name that `STEPS` has for a function: that of "add" for "add_" and "__iadd__" too."""
    return _ALIASES.get(name.strip("_"), name.strip("_"))


def unknown(call: Call, reason: str) -> Node:
    """Return a node that nothing is known of, and why."""
    return Node("", "unknown", what=f"{call.name}: {reason}")


def only_first(rule: Callable[[Call], Node]) -> Callable[[Call], Node]:
    """Apply a rule for one tensor where no other argument depends on the input."""

    def checked(call: Call) -> Node:
        return rule(call) if call.follows_only_first() else unknown(call, "its parameters depend on the input")

    return checked
