"""Wrong versions of shipped functions, made from their syntax: a sign, a factor, an index, a term, an order changed.

A statement names public functions. What is mutated is their code, that of the private functions of their modules
that they call, however these are named and written, and the compiled kernels for the CPU of those of them that have one.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convla._dispatch import KERNELS, Accelerated

__all__ = ["Mutant", "applied", "definition", "mutants", "resolve"]

SWAPPED = {
    "min": "max",
    "minimum": "maximum",
    "argmin": "argmax",
    "all": "any",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "sin": "cos",
    "floor": "ceil",
}
SWAPPED |= {value: key for key, value in SWAPPED.items()}
OPTIONS = {"circular": "zero", "zero": "circular", "full": "same", "same": "valid", "valid": "full"}
OPTIONS |= {"low": "high", "high": "low", "ordered": "unordered", "C": "F", "F": "C"}
NUMBERS = ("Array", "AnyArray", "NumPyArray", "FloatArray", "Any", "float")
"""What a function is annotated to return where it can be doubled."""
COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
EXCHANGED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
}
SYMBOLS = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.MatMult: "@",
    ast.FloorDiv: "//",
    ast.Pow: "**",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
DROPPED = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.MatMult)
"""Operations of which the second operand is also left out."""


@dataclass(frozen=True)
class Mutant:
    """One wrong version of one function.

    Attributes
    ----------
    function : str
        The public function that it was asked of.
    module, name : str
        Where the code that is changed stands.
    line : int
    change : str
        In words; with a number in brackets where the function has the same change at several places.
    place : int
        The number of the change among all of that function's.
    """

    function: str
    module: str
    name: str
    line: int
    change: str
    place: int

    @property
    def where(self) -> str:
        """What identifies the mutant whatever is written around it: "module.name: change"."""
        return f"{self.module}.{self.name}: {self.change}"


def resolve(function: str) -> tuple[str, str]:
    """Return the module and the qualified name of a function, method or class named as it is imported.

    Raises
    ------
    LookupError
        If there is none of that name, or it is private.

    Examples
    --------
    >>> from proofs_checks.mutation import resolve
    >>> resolve("convla.identities.gram_kernel")
    ('convla.identities.matrices', 'gram_kernel')
    """
    parts = function.split(".")
    if any(part.startswith("_") for part in parts):
        raise LookupError(f"{function} is private: name the public function that calls it")
    for split in range(len(parts) - 1, 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        try:
            value = getattr(value, parts[split])  # a module's name may be imported only now
            for part in parts[split + 1 :]:
                value = inspect.getattr_static(value, part)
        except AttributeError:
            break
        plain = _plain(value)
        return plain.__module__, plain.__qualname__
    raise LookupError(f"there is no function {function}")


def mutants(function: str) -> list[Mutant]:
    """Return all mutants of a public function, and of the private functions of its module that it reaches.

    Examples
    --------
    >>> from proofs_checks.mutation import mutants
    >>> mutants("convla.identities.scaled_penalty_minimum")[1].change
    "'2': 3 for 2"
    """
    found = []
    for module, reached in _reached(*resolve(function)):
        node = _definitions(module)[reached]
        alike: Counter[str] = Counter()
        for place, (line, change, _) in enumerate(_changes(node)):
            alike[change] += 1
            words = change if alike[change] == 1 else f"{change} [{alike[change]}]"
            found.append(Mutant(function, module, reached, line, words, place))
    return found


def definition(mutant: Mutant) -> ast.FunctionDef:
    """Return the syntax of the function that a mutant is a wrong version of."""
    return _definitions(mutant.module)[mutant.name]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Give the function its mutant's code wherever it is held, and its own back afterwards."""
    function = _function(mutant.module, mutant.name)
    original = function.__code__
    function.__code__ = _compiled(mutant, function)
    try:
        with _compiled_anew(mutant.module):
            yield
    finally:
        function.__code__ = original


@contextmanager
def _compiled_anew(module: str) -> Iterator[None]:
    """Forget the machine code of a module's compiled functions, each of which holds that of those it calls."""
    held = vars(importlib.import_module(module)).values()
    numba: Any = sys.modules.get("numba")  # no module of compiled functions is imported without it
    kernels = [value for value in held if numba is not None and isinstance(value, numba.core.dispatcher.Dispatcher)]
    caches = [kernel._cache for kernel in kernels]
    for kernel in kernels:
        kernel._cache = numba.core.caching.NullCache()
        kernel._reset_overloads()
    try:
        yield
    finally:
        for kernel, cache in zip(kernels, caches, strict=True):
            kernel._cache = cache
            kernel._reset_overloads()


def _compiled(mutant: Mutant, function: types.FunctionType) -> types.CodeType:
    node = copy.deepcopy(definition(mutant))
    for place, (_, _, change) in enumerate(_changes(node)):
        if place == mutant.place:
            change()
            break
    node.decorator_list = []
    tree: ast.AST = node
    if "__class__" in function.__code__.co_freevars:  # super() needs the class around it
        tree = ast.parse("class _: pass").body[0]
        tree.body = [node]  # type: ignore[attr-defined]
    module = ast.fix_missing_locations(ast.Module(body=[tree], type_ignores=[]))  # type: ignore[list-item]
    flags = function.__code__.co_flags & 0x1FF0000  # of __future__
    code = compile(module, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    return _code_of(code, node.name)


def _code_of(code: types.CodeType, name: str) -> types.CodeType:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_name == name:
                return constant
            if constant.co_name == "_":
                return _code_of(constant, name)
    raise LookupError(name)


def _plain(value: Any) -> Any:
    """Return the function or class within a property, cached or not, a class method, or what a decorator made."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, functools.cached_property):
        value = value.func
    return inspect.unwrap(getattr(value, "__func__", value))


def _function(module: str, name: str) -> types.FunctionType:
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = inspect.getattr_static(value, part)
    function: types.FunctionType = _plain(value)
    return function


@functools.lru_cache
def _definitions(module: str) -> dict[str, ast.FunctionDef]:
    """Return the functions and methods of a module by their qualified names."""
    source = inspect.getsourcefile(importlib.import_module(module))
    assert source is not None
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.parse(Path(source).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}": part for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def _reached(module: str, name: str) -> list[tuple[str, str]]:
    """Return the definitions that `name` stands for, the private ones of the module that they use, and their kernels."""
    waiting = [(module, key) for key in _definitions(module) if key == name or key.startswith(f"{name}.")]
    if not waiting:
        raise LookupError(f"{module} defines no {name}")
    found: list[tuple[str, str]] = []
    while waiting:
        module, key = waiting.pop(0)
        if (module, key) in found:
            continue
        found.append((module, key))
        definitions, owner = _definitions(module), key.rpartition(".")[0]
        value = getattr(importlib.import_module(module), key, None)
        if isinstance(value, Accelerated) and (value.operation, "numba") in KERNELS:
            engine, _, kernel = KERNELS[value.operation, "numba"].partition(":")
            waiting.append((engine, kernel))
        for _, _, _, node in _expressions(definitions[key]):
            used = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            if used.startswith("_"):
                waiting += [(module, other) for other in (used, f"{owner}.{used}") if other in definitions]
            if used == "METHODS":  # the table by which a function chooses among private ones
                waiting += [(module, other) for other in definitions if other.startswith("_") and "." not in other]
    return found


Change = tuple[int, str, Callable[[], None]]


def _changes(function: ast.FunctionDef) -> Iterator[Change]:
    """Yield the line of every change, the change in words, and what makes it, in the order of the code."""
    doubled = isinstance(function.returns, ast.Name) and function.returns.id in NUMBERS
    for statement in _statements(function.body):
        if (
            doubled
            and isinstance(statement, ast.Return)
            and not isinstance(statement.value, ast.Constant | types.NoneType)
        ):
            yield statement.lineno, f"{_shown(statement)}: doubled", functools.partial(_double, statement)
        for parent, field, index, node in _expressions(statement):
            yield from _changes_of(parent, field, index, node)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        silent = isinstance(statement, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom) or _is_check(statement)
        if not docstring and not silent:
            yield statement


Place = tuple[ast.AST, str, int | None, ast.AST]

SKIPPED = ("annotation", "returns", "decorator_list")


def _expressions(node: ast.AST) -> Iterator[Place]:
    """Yield every expression with its parent and field, but not what only errors and types are made of."""
    for field, value in ast.iter_fields(node):
        if field in SKIPPED or isinstance(node, ast.arguments):
            continue
        children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr) or _is_check(child):
                continue
            yield node, field, index, child
            yield from _expressions(child)


def _is_check(node: ast.AST) -> bool:
    """Tell whether this only checks: a guard that raises, a call of a check whose result is dropped."""
    if isinstance(node, ast.If):
        return all(isinstance(part, ast.Raise) for part in node.body)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id.lstrip("_").startswith(("check_", "refuse_"))
    return False


def _changes_of(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> Iterator[Change]:
    line = getattr(node, "lineno", 0)

    def put(new: ast.AST) -> None:
        if index is None:
            setattr(parent, field, new)
        else:
            getattr(parent, field)[index] = new

    def change(words: str, new: Callable[[], ast.AST]) -> Change:
        return line, f"{_shown(node)}: {words}", lambda: put(ast.copy_location(new(), node))

    if isinstance(node, ast.BinOp):
        kind = type(node.op)
        if kind in EXCHANGED and not isinstance(node.left, ast.Constant | ast.JoinedStr | ast.Tuple) | _is_text(node):
            other = EXCHANGED[kind]
            yield change(
                f"{SYMBOLS[other]} for {SYMBOLS[kind]}",
                lambda: ast.BinOp(left=node.left, op=other(), right=node.right),
            )
            if kind in DROPPED:
                yield change(f"{SYMBOLS[kind]} {_shown(node.right)} dropped", lambda: node.left)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield change(f"{'-' if isinstance(node.op, ast.USub) else 'not'} dropped", lambda: node.operand)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
        compared = COMPARED[type(node.ops[0])]
        yield change(
            f"{SYMBOLS[compared]} for {SYMBOLS[type(node.ops[0])]}",
            lambda: ast.Compare(left=node.left, ops=[compared()], comparators=node.comparators),
        )
    elif isinstance(node, ast.BoolOp):
        flipped = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield change(f"'{flipped.__name__.lower()}'", lambda: ast.BoolOp(op=flipped(), values=node.values))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        number = node.value
        new = number + 1 if isinstance(number, int) else 2 * number or 1.0
        yield change(f"{new} for {number}", lambda: ast.Constant(value=new))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        flag = node.value
        yield change(f"{not flag} for {flag}", lambda: ast.Constant(value=not flag))
    elif isinstance(node, ast.Constant) and node.value in OPTIONS and isinstance(parent, ast.Call | ast.keyword):
        option = OPTIONS[node.value]
        yield change(f"{option!r}", lambda: ast.Constant(value=option))
    elif isinstance(node, ast.Name) and node.id in SWAPPED and isinstance(node.ctx, ast.Load):
        yield change(f"{SWAPPED[node.id]} for {node.id}", lambda: ast.Name(id=SWAPPED[node.id], ctx=ast.Load()))
    elif isinstance(node, ast.Attribute) and node.attr in SWAPPED and isinstance(node.ctx, ast.Load):
        yield change(
            f"{SWAPPED[node.attr]} for {node.attr}",
            lambda: ast.Attribute(value=node.value, attr=SWAPPED[node.attr], ctx=ast.Load()),
        )
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        last = len(node.args) - (len(node.args) > 1)
        for number, argument in enumerate(node.args[: last + 1][:2]):
            yield change(
                f"{_shown(argument)} + 1",
                functools.partial(_with_argument, node, number, argument),
            )
    elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
        plain = all(isinstance(part, ast.Name | ast.Attribute | ast.Constant | ast.Call) for part in node.elts)
        if plain and ast.dump(node.elts[0]) != ast.dump(node.elts[1]):
            yield change("entries exchanged", lambda: ast.Tuple(elts=node.elts[::-1], ctx=ast.Load()))
    elif isinstance(node, ast.IfExp):
        yield change("branches exchanged", lambda: ast.IfExp(test=node.test, body=node.orelse, orelse=node.body))


def _double(statement: ast.Return) -> None:
    assert statement.value is not None
    statement.value = ast.BinOp(left=ast.Constant(value=2), op=ast.Mult(), right=statement.value)


def _with_argument(call: ast.Call, number: int, argument: ast.expr) -> ast.Call:
    more = ast.BinOp(left=argument, op=ast.Add(), right=ast.Constant(value=1))
    return ast.Call(func=call.func, args=[*call.args[:number], more, *call.args[number + 1 :]], keywords=call.keywords)


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(part, ast.JoinedStr) for part in ast.walk(node))


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return f"'{text if len(text) <= 60 else text[:57] + '...'}'"
