"""The choice of a kernel: by the type of the arrays, the engine asked for, and the environment."""

from __future__ import annotations

from typing import get_args

import array_api_strict
import numpy as np
import pytest

from convla import ConvOperator, _dispatch, cross_correlate, kernel_adjoint
from convla.errors import EngineError
from convla.typing import Engine


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> _dispatch.Accelerated[..., str]:
    """An operation whose reference and numba kernel say who they are."""
    monkeypatch.setitem(_dispatch.KERNELS, ("double", "numba"), f"{__name__}:numba_double")
    monkeypatch.delenv("CONVLA_ENGINE", raising=False)
    _dispatch.load_kernel.cache_clear()
    return _dispatch.accelerated("double")(_reference_double)


def _reference_double(array: object, scale: int = 2) -> str:  # noqa: ARG001
    return f"reference {scale}"


def numba_double(array: object, scale: int = 2) -> str:  # noqa: ARG001
    return f"numba {scale}"


def _by_size(array: np.ndarray) -> str:
    return "numba" if array.size > 9 else "reference"


def test_the_names_of_the_type_are_the_engines_that_there_are() -> None:
    assert get_args(Engine) == _dispatch.engine_names()


def test_auto_takes_the_kernel_that_takes_the_array(double: _dispatch.Accelerated[..., str]) -> None:
    assert double(np.zeros(1), scale=3) == "numba 3"
    assert double(array_api_strict.zeros(1)) == "reference 2"
    assert double(np.zeros(1, dtype=object)) == "reference 2"


def test_an_engine_asked_for_is_taken(double: _dispatch.Accelerated[..., str]) -> None:
    assert double(np.zeros(1), engine="reference") == "reference 2"
    assert double(np.zeros(1), engine="numba") == "numba 2"


def test_a_preference_decides_only_under_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_dispatch.KERNELS, ("double", "numba"), f"{__name__}:numba_double")
    monkeypatch.delenv("CONVLA_ENGINE", raising=False)
    _dispatch.load_kernel.cache_clear()
    picky = _dispatch.accelerated("double", prefer=_by_size)(_reference_double)
    assert (picky(np.zeros(1)), picky(np.zeros(10))) == ("reference 2", "numba 2")
    assert picky(np.zeros(1), engine="numba") == "numba 2"


def test_the_environment_is_a_wish_not_an_order(
    double: _dispatch.Accelerated[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVLA_ENGINE", "reference")
    assert double(np.zeros(1)) == "reference 2"
    assert double(np.zeros(1), engine="numba") == "numba 2"
    monkeypatch.setenv("CONVLA_ENGINE", "numba")
    assert double(array_api_strict.zeros(1)) == "reference 2"
    monkeypatch.setenv("CONVLA_ENGINE", "fast")
    with pytest.raises(ValueError, match=r"CONVLA_ENGINE must be one of .*, got 'fast'"):
        double(np.zeros(1))


def test_wrong_engines_are_named(double: _dispatch.Accelerated[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = ", ".join(map(repr, _dispatch.engine_names()))
    with pytest.raises(ValueError, match=f"^engine must be one of {known}, got 'gpu'$"):
        double(np.zeros(1), engine="gpu")
    with pytest.raises(EngineError, match="takes NumPy arrays of float32 or float64, got array_api_strict"):
        double(array_api_strict.zeros(1), engine="numba")
    with pytest.raises(EngineError, match="double has no kernel for engine 'cuda'"):
        double(np.zeros(1), engine="cuda")
    monkeypatch.setitem(_dispatch.KERNELS, ("double", "cuda"), f"{__name__}:numba_double")
    monkeypatch.setattr(_dispatch, "cuda_is_available", lambda: False)
    with pytest.raises(EngineError, match="needs CuPy"):
        double(np.zeros(1), engine="cuda")


@pytest.mark.parametrize(("operation", "engine"), sorted(_dispatch.KERNELS))
def test_every_entry_of_the_table_can_be_loaded(operation: str, engine: str) -> None:
    assert callable(_dispatch.load_kernel(operation, engine))


@pytest.mark.parametrize("wish", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float32, object])
def test_a_wish_breaks_no_convolution(wish: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVLA_ENGINE", wish)
    kernel, image = np.ones((2, 1, 3), dtype), np.ones((1, 5), dtype)
    features = cross_correlate(image, kernel, padding="same")
    assert features.tolist() == [[2, 3, 3, 3, 2]] * 2
    operator = ConvOperator(kernel, (5,))
    assert operator.apply(image).tolist() == features.tolist()
    assert operator.adjoint(features).tolist() == [[10, 16, 18, 16, 10]]
    kernel_adjoint(features, image, kernel_size=(3,), padding="same")


class Shouted(list):  # type: ignore[type-arg]
    """An array type that only a toy engine knows."""

    dtype = "loud"

    def __array_namespace__(self, **_: object) -> object:
        return np


def shout(array: object, scale: int = 2) -> str:  # noqa: ARG001
    return f"LOUD {scale}"


def test_a_registered_engine_is_chosen_checked_and_named(
    double: _dispatch.Accelerated[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    available: list[bool] = [True]

    def check() -> None:
        if not available:
            raise EngineError("engine 'loud' needs a voice")

    entry = _dispatch.EngineEntry(lambda array: isinstance(array, Shouted), "shouted lists", check)
    monkeypatch.setitem(_dispatch.ENGINES, "loud", entry)
    monkeypatch.setitem(_dispatch.KERNELS, ("double", "loud"), f"{__name__}:shout")
    picky = _dispatch.accelerated("double", prefer=lambda *_, **__: "")(_reference_double)
    for operation in (double, picky):
        assert operation(Shouted(), scale=3) == "LOUD 3"
        assert operation(Shouted(), engine="loud") == operation(Shouted(), engine="direct") == "LOUD 2"
        assert operation(np.zeros(1)) == "numba 2"
    with pytest.raises(EngineError, match=r"engine 'loud' takes shouted lists, got numpy\.ndarray of dtype float64"):
        double(np.zeros(1), engine="loud")
    with pytest.raises(ValueError, match="'loud', got 'quiet'"):
        double(Shouted(), engine="quiet")
    available.clear()
    with pytest.raises(EngineError, match="needs a voice"):
        double(Shouted(), engine="loud")
    monkeypatch.setitem(_dispatch.ENGINES, "loud", entry._replace(direct=False))
    assert picky(Shouted()) == "reference 2"  # no direct sums, and not said to be the fastest
