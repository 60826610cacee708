"""What every test relies on: the Hypothesis profiles, and the rule that a required oracle may not be skipped."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import hypothesis
import pytest

from convla._array import cuda_is_available

# Deadlines are off: a first call may compile.
hypothesis.settings.register_profile("default", deadline=None, max_examples=50)
hypothesis.settings.register_profile("few", deadline=None, max_examples=5)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=5000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow")
    parser.addoption("--few", action="store_true", help="at most 3 parameter sets of each test, and 5 drawn examples")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--few"):
        hypothesis.settings.load_profile("few")


def spread(items: list[pytest.Item], count: int) -> set[pytest.Item]:
    """Return so many items of each test, evenly spread among its parameter sets that are not skipped."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("skip"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return {sets[place * (len(sets) - 1) // (count - 1)] for sets in tests.values() for place in range(count)}


@pytest.hookimpl(trylast=True)  # of what other options have left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    thorough = config.getoption("--run-slow") or os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
    absent = {
        "torch": None if importlib.util.find_spec("torch") else "PyTorch is not installed",
        "jax": None if importlib.util.find_spec("jax") else "JAX is not installed",
        "gpu": None if cuda_is_available() else "no CuPy with a CUDA device",
        "slow": None if thorough else "slow: --run-slow or HYPOTHESIS_PROFILE=thorough",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                if os.environ.get(f"CONVLA_REQUIRE_{marker.upper()}") == "1":
                    item.add_marker(pytest.mark.usefixtures("required_oracle_is_absent"))
                else:
                    item.add_marker(pytest.mark.skip(reason=reason))
    if config.getoption("--few"):
        kept = spread(items, 3)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


@pytest.fixture
def required_oracle_is_absent() -> None:
    pytest.fail(
        "CONVLA_REQUIRE_TORCH, CONVLA_REQUIRE_JAX or CONVLA_REQUIRE_GPU is 1, but what this test needs is not installed"
    )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def torch_device(request: pytest.FixtureRequest) -> Any:
    torch = pytest.importorskip("torch")
    if request.param == "cuda" and not torch.cuda.is_available():
        (pytest.fail if os.environ.get("CONVLA_REQUIRE_GPU") == "1" else pytest.skip)("PyTorch finds no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A stand-in for CuPy, in its place: kernels run on the CPU, from their sources."""
    from convla import _cuda
    from tests.cuda import emulator, stand_in

    if emulator.COMPILER is None:
        (pytest.fail if os.environ.get("CONVLA_REQUIRE_NVRTC") == "1" else pytest.skip)("g++ is not installed")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CONVLA_ENGINE", raising=False)
    _cuda.forget()
    with stand_in.installed() as module:
        yield module
    _cuda.forget()
