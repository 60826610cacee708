"""What numba has compiled is kept so that a process never runs the code of other types, whoever writes beside it."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

import convla.engines
from convla.engines import _parallel
from convla.experiments.descents import pairs_numba

MODULE = """
from convla.compiling import compiled

@compiled()
def half(x):
    return x / 2
"""


def run(folder: Path, code: str) -> str:
    line = [sys.executable, "-c", f"from kernels import half; {code}"]
    paths = os.pathsep.join((str(folder), str(Path(__file__).parent.parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(folder / "kept")}
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.command
def test_files_that_were_mixed_up_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(MODULE, encoding="utf-8")
    calls = "print(half(3), half(1.5)); print(sum(half.stats.cache_hits.values()))"
    assert run(tmp_path, calls) == "1.5 0.75\n0\n"
    assert run(tmp_path, calls) == "1.5 0.75\n2\n"
    first, second = (tmp_path / "kept").rglob("*.nbc")
    assert not list((tmp_path / "kept").rglob("*.nbi"))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert run(tmp_path, calls) == "1.5 0.75\n0\n"
    assert run(tmp_path, calls) == "1.5 0.75\n2\n"


@pytest.mark.command
def test_another_source_is_compiled_anew(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(MODULE, encoding="utf-8")
    assert run(tmp_path, "print(half(3))") == "1.5\n"
    (tmp_path / "kernels.py").write_text(MODULE.replace("x / 2", "x / 2.0 + 0"), encoding="utf-8")
    assert run(tmp_path, "print(half(3))") == "1.5\n"
    assert len(list((tmp_path / "kept").rglob("*.nbc"))) == 2


def test_no_compiled_function_takes_the_records_of_two_modules() -> None:
    # numba writes a record's type into the names of compiled code as a number that each process gives anew: code that
    # two processes kept for two records may have one name, and a third process then runs the wrong one of the two.
    shared = set()
    for found in pkgutil.iter_modules(convla.engines.__path__):
        if not found.name.startswith(("_numba", "_kernel", "_tile", "_dots", "numba")):
            continue
        module = importlib.import_module(f"convla.engines.{found.name}")
        for name, member in vars(module).items():
            function = getattr(member, "py_func", None)
            if function is not None and function.__module__ != module.__name__:
                assert "s" not in inspect.signature(function).parameters, f"{name}, which {found.name} imports"
                shared.add(name)
    assert "extend" in shared


def test_what_is_shared_is_compiled_before_other_threads_come(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a program that is ended, a thread that compiles would have to be waited for.
    @numba.njit(nogil=True)
    def fill(counter: Any, out: Any) -> None:
        job = counter[0]
        counter[0] = len(out)
        for place in range(job, len(out)):
            out[place] = place

    found = []

    def share(work: Callable[[], object]) -> None:
        found.append(len(fill.overloads))
        work()

    monkeypatch.setattr(_parallel, "share", share)
    out = np.zeros(3)
    _parallel.run_jobs(fill, out, shared=True)
    assert found == [1]
    assert out.tolist() == [0.0, 1.0, 2.0]


def test_a_descent_is_compiled_before_its_blocks_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    block = pairs_numba._descend_block
    monkeypatch.setattr(pairs_numba, "compile_for", lambda _, *given: told.append(f"compile {len(given)}"))
    monkeypatch.setattr(pairs_numba, "_descend_block", lambda *given: told.append(f"run {len(given)}"))
    monkeypatch.setattr(pairs_numba, "share", lambda work: work())
    k1, k2 = np.random.default_rng(0).standard_normal((2, 2 * pairs_numba.LANES, 2))
    options = {"loss": "kernel", "normalized": False, "toeplitz": False, "similarity": "absolute", "optimizer": "SGD"}
    pairs_numba.descend_pairs(
        k1, k2, np.zeros((len(k1), 2, 2)), learning_rate=0.1, iterations=1, both=True, **options
    )  # fmt: skip
    count = len(inspect.signature(block.py_func).parameters)
    assert told == [f"compile {count}", f"run {count}", f"run {count}"]
