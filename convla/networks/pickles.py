"""What a pickle says, without doing any of it: a reader that imports nothing, calls nothing and sets no attribute.

A pickle is a program for a machine with a stack. Here its instructions build plain values only; what it would call, and
with what, comes out as data. So a caller can recognise the few shapes that it knows, and the rest stays inert.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from convla.errors import ConvlaError

__all__ = ["Called", "Name", "PickleError", "Reference", "read_pickle"]

MOST_STEPS = 2_000_000
"""Instructions of a pickle: a batch of CIFAR-10 has 60 thousand, a large network's checkpoint some hundred thousand."""

_BYTES = (("_codecs", "encode"), ("__builtin__", "bytes"), ("builtins", "bytes"))
_LARGEST_KEY = 2**60  # Integers beyond it can be chosen to collide in a dictionary, which then takes quadratic time.


class PickleError(ConvlaError, ValueError):
    """A pickle is damaged, or does what no file of weights or images does."""


class Name(NamedTuple):
    """Something that the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Reference(NamedTuple):
    """Something that is kept outside the pickle."""

    content: Any


@dataclass(eq=False)
class Called:
    """What a call would return: the function's name, its arguments, and what is put into the result afterwards."""

    function: Any
    arguments: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)


def read_pickle(stream: Any, known: Callable[[Name], bool] = lambda _: True) -> Any:
    """Return what the pickle at the stream's place describes, and leave the stream behind it.

    Parameters
    ----------
    stream : binary file in memory, or memory map
        With ``read``, ``readline`` and ``tell``. Lengths in the pickle are not trusted: what it takes in memory is in
        proportion to its bytes, whatever they say.
    known : callable, optional
        Whether a name may occur in it; by default any.

    Returns
    -------
    object
        Of None, bool, int, float, str, bytes, list, tuple, dict, `Name`, `Called` and `Reference`. Values may hold each
        other, and themselves.

    Raises
    ------
    PickleError
        If it is damaged, names what is not known, has more than `MOST_STEPS` instructions or one that this machine
        does not have, or a dictionary in it has keys other than strings, bytes and numbers.

    Examples
    --------
    >>> import io, pickle
    >>> from convla.networks.pickles import read_pickle
    >>> read_pickle(io.BytesIO(pickle.dumps({"a": [1, 2.5]})))
    {'a': [1, 2.5]}
    >>> read_pickle(io.BytesIO(pickle.dumps(len)))
    Name(module='builtins', name='len')
    """
    machine = _Machine(known)
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if steps >= MOST_STEPS:
                raise PickleError(f"a pickle of more than {MOST_STEPS} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleError(f"a pickle with the instruction {opcode.name}, which is not read")
            step(machine, argument)
    except PickleError:
        raise
    except Exception as error:  # whatever the parser makes of damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PickleError(f"a damaged pickle: {reason[:80]}") from None
    raise PickleError("a damaged pickle: it has no end")


class _Machine:
    def __init__(self, known: Callable[[Name], bool]) -> None:
        self.known = known
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack or (self.marks and self.marks[-1] >= len(self.stack)):
            raise PickleError("a damaged pickle: it takes more from the stack than is there")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("a damaged pickle: a mark is missing")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, place: int) -> None:
        self.memo[place] = self.top()

    def get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple(reversed([self.pop() for _ in range(count)])))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        entries = target.entries if isinstance(target, Called) else target
        if type(entries) is not list:
            raise PickleError(f"a damaged pickle: it appends to a {type(target).__name__}")
        entries.extend(values)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top()
        items = target.items if isinstance(target, Called) else target
        if type(items) is not dict or len(pairs) % 2:
            raise PickleError(f"a damaged pickle: it sets entries of a {type(target).__name__}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[_key(key)] = value

    def call(self) -> None:
        arguments = self.pop()
        match self.pop(), arguments:
            # Protocols 0 to 2 have no bytes: what stands for them is a call.
            case Name("_codecs", "encode"), (str() as text, "latin1" | b"latin1"):
                self.push(text.encode("latin1"))
            case Name("__builtin__" | "builtins", "bytes"), ():
                self.push(b"")
            case function, _:
                self.push(Called(function, arguments))

    def name(self, module: str, name: str) -> None:
        found = Name(module, name)
        if found not in _BYTES and not self.known(found):
            raise PickleError(f"refused: it names {str(found)[:100]!r}, which is never looked up")
        self.push(found)

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if not isinstance(target, Called):
            raise PickleError(f"a damaged pickle: it sets the state of a {type(target).__name__}")
        target.state = state

    def global_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a damaged pickle: a name that is no text")
        self.name(module, name)

    def frozen_set(self, values: list[Any]) -> None:
        self.push(Called(Name("builtins", "frozenset"), (values,)))


def _key(key: Any) -> Any:
    if type(key) in (str, bytes, float, bool) or key is None or (type(key) is int and abs(key) < _LARGEST_KEY):
        return key
    # The hash of nested tuples takes time that is exponential in their depth.
    raise PickleError(f"a dictionary with a {type(key).__name__} as a key")


def _latin1(machine: _Machine, text: str) -> None:
    machine.push(text.encode("latin1"))  # Python 2's strings are bytes


def _set(machine: _Machine, _: Any) -> None:
    machine.push(Called(Name("builtins", "set"), ()))


def _pop_pair(machine: _Machine) -> list[Any]:
    value = machine.pop()
    return [machine.pop(), value]


def _value(machine: _Machine, value: Any) -> None:
    machine.push(value)


def _none(_: _Machine, __: Any) -> None:
    pass


_Step = Callable[[_Machine, Any], object]
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), _none),
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _value),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _value),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _value),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _latin1),
    "BYTEARRAY8": lambda machine, value: machine.push(bytes(value)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: _dictionary(machine),
    "SETITEM": lambda machine, _: machine.set_items(_pop_pair(machine)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "EMPTY_SET": _set,
    "ADDITEMS": lambda machine, _: machine.append(machine.pop_mark()),
    "FROZENSET": lambda machine, _: machine.frozen_set(machine.pop_mark()),
    "GLOBAL": lambda machine, text: machine.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.global_from_stack(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.push(Reference(machine.pop())),
    "PERSID": lambda machine, text: machine.push(Reference(text)),
}
"""What an instruction does, by its name in the standard library's `pickletools`; INST, OBJ, NEWOBJ_EX and extension
codes are left out: no file of weights or images is written with them."""


def _dictionary(machine: _Machine) -> None:
    pairs = machine.pop_mark()
    machine.push({})
    machine.set_items(pairs)
