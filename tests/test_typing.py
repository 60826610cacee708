"""The types that cross module borders: the arrays and functions of every library are what the protocols say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import array_api_strict
import numpy as np
import pytest

from convla._array import namespace
from convla.typing import Array, FourierTransforms, Limits, LinearAlgebra, Namespace


class Nothing(Protocol):
    """What every protocol has of its own."""


def torch_array() -> Any:
    return pytest.importorskip("torch").ones(3)


def cupy_array() -> Any:
    return pytest.importorskip("cupy").ones(3)


def jax_array() -> Any:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return jax.numpy.ones(3)


LIBRARIES = [
    pytest.param(lambda: np.ones(3), id="numpy"),
    pytest.param(lambda: array_api_strict.ones(3), id="strict"),
    pytest.param(torch_array, id="torch", marks=pytest.mark.torch),
    pytest.param(cupy_array, id="cupy", marks=pytest.mark.gpu),
    pytest.param(jax_array, id="jax", marks=pytest.mark.jax),
]


def members(protocol: type) -> dict[str, Any]:
    """Return what a protocol asks for, by name."""
    asked = {name: what for name, what in vars(protocol).items() if callable(what) or isinstance(what, property)}
    return {name: what for name, what in asked.items() if name not in vars(Nothing)}


def keywords(function: Callable[..., Any]) -> set[str]:
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY}


def takes(function: Callable[..., Any], names: set[str]) -> bool:
    """Tell whether a function has parameters of these names, or may have: what is written in C does not always say."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return True
    return names <= parameters.keys() or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


@pytest.mark.parametrize("make", LIBRARIES)
def test_every_array_has_what_is_asked_of_arrays(make: Callable[[], Any]) -> None:
    array = make()
    assert isinstance(array, Array)
    assert not [name for name in members(Array) if not hasattr(array, name)]
    assert {"shape", "dtype", "__getitem__", "__matmul__", "__rsub__", "__eq__", "__float__"} <= members(Array).keys()


@pytest.mark.parametrize("other", [[1.0, 2.0], 1.0, "array", None, (np.ones(2),)])
def test_nothing_else_is_an_array(other: object) -> None:
    assert not isinstance(other, Array)


@pytest.mark.parametrize("make", LIBRARIES)
def test_every_namespace_has_the_functions_and_takes_their_keywords(make: Callable[[], Any]) -> None:
    xp = namespace(make())
    parts = {Namespace: xp, LinearAlgebra: xp.linalg, FourierTransforms: xp.fft}
    assert all(hasattr(xp.finfo(xp.float32), name) for name in members(Limits))
    for protocol, module in parts.items():
        for name, wanted in members(protocol).items():
            found = getattr(module, name)  # an AttributeError says which one is missing
            assert isinstance(wanted, property) or takes(found, keywords(wanted)), name
