"""Losses and optimisers of one's own: in a Python file or a module, checked before they are trusted."""

from __future__ import annotations

import functools
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from convla.descent import Optimizer
from convla.errors import ConvlaError

__all__ = [
    "LossError",
    "LossFunction",
    "OptimizerError",
    "StaleModuleError",
    "check_loss",
    "check_optimizer",
    "evaluate",
    "load_loss",
    "load_optimizer",
    "source_digest",
]

Floats = np.ndarray[Any, np.dtype[np.float64]]
LossFunction: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]

STEP = 6e-6
"""Of the difference quotient, for kernels of about unit size: the cube root of epsilon, where its error is least."""

CLOSE = 1e-5
"""How far the slope may be from it: the error of the quotient is about the square of `STEP`, some 1e-10, unless the
third derivative is large."""


class LossError(ConvlaError, ValueError):
    """A loss of one's own cannot be loaded, or is not what it has to be."""


class StaleModuleError(ConvlaError, RuntimeError):
    """A module was edited after it was imported."""


class OptimizerError(ConvlaError, ValueError):
    """An optimiser of one's own cannot be loaded, or is not what it has to be."""


def load_loss(name: str) -> LossFunction:
    """Return the loss that a setting names.

    Parameters
    ----------
    name : str
        "file.py:function", or "package.module:function". It is called with kernels of shape (R, S, channels, N), or
        (R, S, channels, N, N), a row for each repetition, and returns their losses, of shape (R,), and the gradient, of
        the kernels' shape. A repetition's loss must not depend on the others'. Loading it runs the file, and once more
        when the file is another.

    Raises
    ------
    LossError
        If there is no such function.
    """
    loss: LossFunction = _load("loss", name, LossError)
    return loss


def load_optimizer(name: str) -> Callable[[float], Optimizer]:
    """Return the optimiser that a setting names.

    Parameters
    ----------
    name : str
        "file.py:Name", or "package.module:Name". It is called with the learning rate, for each kernel anew, and returns
        an object whose ``step(parameter, gradient)`` gives the parameter after a step: arrays of shape (taps, R), a
        column for each repetition. A repetition's steps must not depend on the others'. Loading it runs the file.

    Raises
    ------
    OptimizerError
        If there is no such function or class.
    """
    make: Callable[[float], Optimizer] = _load("optimizer", name, OptimizerError)
    return make


def _load(kind: str, name: str, failure: type[Exception]) -> Any:
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise failure(f"{kind} must be a known name, or 'file.py:function' or 'module:function', got {name!r}")
    try:
        module = _run(place, Path(place).read_bytes()) if place.endswith(".py") else _imported(place)[0]
    except Exception as error:  # whatever a file of somebody's raises as it is run
        raise failure(f"{kind} {name!r}: {place} cannot be loaded: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise failure(f"{kind} {name!r}: {place} has no function {function!r}")
    return found


@functools.lru_cache(maxsize=64)
def _run(place: str, source: bytes) -> ModuleType:
    """Return the module that a file with this content makes: run once, and anew once it is edited."""
    module = ModuleType(f"convla_study_{Path(place).stem}_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = place
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    exec(compile(source, place, "exec"), vars(module))
    return module


@functools.cache
def _imported(place: str) -> tuple[ModuleType, bytes]:
    """Return a module, with the content that its file had when it was imported by us."""
    module = importlib.import_module(place)
    return module, _content(module)


def _content(module: ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    return Path(file).read_bytes() if file else module.__name__.encode()


def source_digest(name: str) -> str:
    """Return a hash of the file that a name of `load_loss` or `load_optimizer` is found in, as it is now.

    Results of another file are other results, whatever stands in it: a function, a class, or an object that is called.

    Raises
    ------
    StaleModuleError
        If it is a module that was edited since it was imported: Python keeps what it was.
    """
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        content = Path(place).read_bytes()
    else:
        module, content = _imported(place)
        if _content(module) != content:
            raise StaleModuleError(f"module {place} was edited after it was imported: start Python anew")
    return hashlib.sha256(content).hexdigest()[:16]


def check_loss(name: str, kernels: Floats) -> None:
    """Compare the gradient of a loss with difference quotients of it, at some kernels.

    Raises
    ------
    LossError
        If it does not return what it has to, or the gradient is not that of the value.
    """
    function = load_loss(name)
    generator = np.random.default_rng(0)
    towards = generator.standard_normal(kernels.shape)
    value, gradient = evaluate(name, function, kernels)
    slope = np.sum(gradient * towards, axis=tuple(range(1, kernels.ndim)))
    ahead, behind = (np.asarray(function(kernels + sign * STEP * towards)[0]) for sign in (1.0, -1.0))
    size = np.sqrt(np.sum(gradient**2, axis=tuple(range(1, kernels.ndim)))) * np.sqrt(kernels[0].size)
    # What rounding does to the quotient: a few epsilons of the value over the step.
    allowed = CLOSE * size + 64 * np.finfo(np.float64).eps * np.abs(value) / STEP
    gap = np.abs((ahead - behind) / (2.0 * STEP) - slope)
    if not np.all(gap <= allowed):
        worst = int(np.argmax(gap - allowed))
        raise LossError(
            f"loss {name!r}: the gradient is not that of the value: the slope along a random direction is "
            f"{slope[worst]:.6g} by the gradient, and {slope[worst] + gap[worst]:.6g} or "
            f"{slope[worst] - gap[worst]:.6g} by differences"
        )


def check_optimizer(name: str, kernels: Floats) -> None:
    """Take two steps of an optimiser from some kernels, of shape (taps, R), and compare them with those of each alone.

    Raises
    ------
    OptimizerError
        If it does not return what it has to, or the steps of a repetition depend on the others.
    """
    together = _two_steps(name, kernels)
    for column in range(kernels.shape[1]):
        one = slice(column, column + 1)
        if not np.array_equal(together[:, one], _two_steps(name, kernels[:, one]), equal_nan=True):
            raise OptimizerError(
                f"optimizer {name!r}: the steps of a repetition, a column of an array of shape (taps, R), must not "
                f"depend on those beside it: column {column} of {kernels.shape[1]} alone steps to elsewhere"
            )


def _two_steps(name: str, parameter: Floats) -> Floats:
    stepper = load_optimizer(name)(2.0**-6)
    if not callable(getattr(stepper, "step", None)):
        raise OptimizerError(f"optimizer {name!r} must return an object with a method step, got {stepper!r}")
    for scale in (1.0, -0.5):
        moved = np.asarray(stepper.step(parameter, scale * parameter))
        if moved.shape != parameter.shape or moved.dtype != parameter.dtype:
            raise OptimizerError(
                f"optimizer {name!r}: step must return {parameter.dtype} of shape {parameter.shape}, got {moved.dtype} "
                f"of shape {moved.shape}"
            )
        parameter = moved
    return parameter


def evaluate(name: str, function: LossFunction, kernels: Floats) -> tuple[Floats, Floats]:
    """Return a loss, which goes by a name, and its gradient, their shapes checked."""
    returned: object = function(kernels)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise LossError(f"loss {name!r} must return the losses and the gradient, got {type(returned).__name__}")
    value, gradient = (np.asarray(part, dtype=np.float64) for part in returned)
    if value.shape != kernels.shape[:1] or gradient.shape != kernels.shape:
        raise LossError(
            f"loss {name!r} must return losses of shape {kernels.shape[:1]} and a gradient of shape {kernels.shape}, "
            f"got {value.shape} and {gradient.shape}"
        )
    return value, gradient
