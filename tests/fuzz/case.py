"""One case of the search: its draws, the calls it makes, as source text too, and what is expected of their values."""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import convla
from convla import penalties
from convla.errors import ConvergenceWarning
from tests.fuzz.draw import Layer, any_layer, array_source


class WrongAnswerError(AssertionError):
    """Something false, with the lines that show it."""


class Case:
    """What a check draws from, calls and reports to.

    Attributes
    ----------
    rng : numpy.random.Generator
    counts : collections.Counter
        What was seen: statuses, and how many of a kind were beyond a bound that is no promise.
    family : callable
        Draws the layers: `any_layer`, or one that takes the same arguments.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        self.family: Callable[..., Layer] = any_layer
        public = (penalties, convla)
        self.names: dict[str, Any] = {name: getattr(m, name) for m in public for name in m.__all__}
        self._lines: list[Callable[[], str]] = []

    def layer(self, size: str = "any", **options: Any) -> Layer:
        """Draw a layer; `op` names its operator in what is evaluated."""
        return self.use(self.family(self.rng, size, **options))

    def use(self, layer: Layer) -> Layer:
        self._lines.append(lambda: layer.source)
        self.counts["layers"] += 1
        # At once, so that a layer which cannot be built is reported with its source.
        self.names |= {"kernel": layer.array, "op": layer.operator}
        return layer

    def give(self, name: str, value: Any) -> Any:
        """Name an array, or a plain value, for what is evaluated."""
        text = (lambda: array_source(value)) if isinstance(value, np.ndarray) else lambda: repr(value)
        self._lines.append(lambda: f"{name} = {text()}")
        self.names[name] = value
        return value

    def add_lines(self, text: str) -> None:
        """Add lines to the reproducer for what is not evaluated here."""
        self._lines.append(lambda: text)

    def evaluate(self, expression: str, name: str = "result") -> Any:
        """Call the library, by an expression of the names so far, and name the value."""
        self._lines.append(lambda: f"{name} = {expression}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.names[name] = eval(expression, self.names)
        return self.names[name]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def one_of(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    @staticmethod
    def expect(holds: Any, message: str) -> None:
        """Fail unless something holds; what is not a number holds for nothing."""
        if not bool(holds):
            raise WrongAnswerError(message)

    @property
    def reproducer(self) -> str:
        """A script that makes the same calls."""
        body = "\n".join(line() for line in self._lines)
        used = [name for name in ("base64", "zlib", "numpy", "torch", "jax", "array_api_strict") if f"{name}." in body]
        imports = [f"import {name}" for name in used] + ["from convla.penalties import *", "from convla import *"]
        if "jax" in used:
            imports.append('jax.config.update("jax_enable_x64", True)')
        return "\n".join([*imports, body])


@dataclass(frozen=True)
class Check:
    """Something that is searched for failures.

    `weight` is how often it is run, next to the others; `run` draws, calls and judges one case.
    """

    name: str
    weight: float
    run: Callable[[Case], None]


CHECKS: dict[str, Check] = {}


def check(weight: float) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Enter a function of a case among the checks, under its name."""

    def enter(function: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[function.__name__] = Check(function.__name__, weight, function)
        return function

    return enter


def load_checks() -> dict[str, Check]:
    """Return all checks by name."""
    for module in ("spectra", "iterations", "algebra", "projections", "penalties", "maps", "interrupts", "files"):
        importlib.import_module(f"tests.fuzz.checks.{module}")
    return CHECKS
