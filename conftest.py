"""For every test: threads, which small matrices only make slower, and which modules PyTorch's absence leaves out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

# NumPy starts the threads of its BLAS when it is imported, so this comes first. Tests of threads ask for more.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# JAX compiles each function for each shape and dtype, which takes a third of the time if LLVM does not optimise.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The many processes that the tests start read what the first has compiled, whatever their surroundings prefer.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

collect_ignore_glob = (
    []
    if find_spec("torch")
    else [
        "convla/frameworks/torch/*",
        *(f"convla/experiments/training/{part}.py" for part in ("images", "methods", "networks", "trainer")),
    ]
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist chooses
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give each of several processes neighbouring tests, which need the same compiled code; idle ones take more."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


@pytest.hookimpl(trylast=True)  # of what is left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put JAX's tests and whole commands in the middle, where the second of two processes begins.

    It takes a minute or two of them, and by then the first has compiled by numba most of what both need.
    """
    if hasattr(config, "workerinput"):
        others = [item for item in items if not _is_apart(item)]
        first = others[: len(items) // 2]
        items[:] = [*first, *filter(_is_apart, items), *others[len(first) :]]


def _is_apart(item: pytest.Item) -> bool:
    return any(map(item.get_closest_marker, ("jax", "command"))) or "jax" in item.path.parts


@pytest.fixture(scope="session", autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give numba, and PyTorch where a test needs it, one thread: on a busy machine two wait for each other."""
    import numba

    libraries: list[Any] = [numba]
    if find_spec("torch") and any(item.get_closest_marker("torch") for item in request.session.items):
        import torch

        libraries.append(torch)
    before = [library.get_num_threads() for library in libraries]
    for library in libraries:
        library.set_num_threads(1)
    yield
    for library, count in zip(libraries, before, strict=True):
        library.set_num_threads(count)
