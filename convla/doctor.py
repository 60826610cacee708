"""What is found on this machine: versions, engines, a GPU, threads, caches, extras; and what helps where it is not.

It needs nothing beyond the base, so that it can say what is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from convla._cuda import LIBRARIES, cuda_trouble
from convla._dispatch import ENGINES
from convla._threads import thread_limit
from convla.errors import EngineError, install_line

__all__ = ["Finding", "examine", "report"]


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes
    ----------
    section, name : str
        Where it is listed, and what it is.
    text : str
        What was found.
    bad : bool
        Whether something that is needed for what is there does not work.
    """

    section: str
    name: str
    text: str
    bad: bool = False


def examine() -> list[Finding]:
    """Look at everything.

    Returns
    -------
    list of Finding

    Examples
    --------
    >>> from convla.doctor import examine
    >>> [finding.text for finding in examine() if finding.name == "numba" and finding.section == "Engines"]
    ['ready, for NumPy arrays of float32 or float64']
    """
    return [*_versions(), *_engines(), *_gpu(), *_threads(), *_caches(), *_extras()]


def report(findings: list[Finding]) -> str:
    """Return findings as text, a paragraph for each section."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for section in dict.fromkeys(finding.section for finding in findings):
        lines += ["", section]
        lines += [f"  {f.name:<{width}}  {'!! ' if f.bad else ''}{f.text}" for f in findings if f.section == section]
    return "\n".join(lines[1:])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    yield Finding("Versions", "convla", str(_version("convla") or "not installed: run from a checkout"))
    yield Finding("Versions", "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for name in _requirements().get("", []):
        version = _version(name)
        yield Finding("Versions", name, version or f"missing: pip install {name}", version is None)


def _engines() -> Iterator[Finding]:
    for name, entry in ENGINES.items():
        try:
            entry.check()
            yield Finding("Engines", name, f"ready, for {entry.wants}")
        except EngineError as error:
            yield Finding("Engines", name, f"not ready: {error}")
    yield Finding("Engines", "CONVLA_ENGINE", os.environ.get("CONVLA_ENGINE") or "not set: the fastest is taken")


def _gpu() -> Iterator[Finding]:
    trouble = cuda_trouble()
    if trouble:
        yield Finding("GPU", "CuPy", trouble)
        return
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    yield Finding("GPU", "CuPy", f"{cupy.__version__}, CUDA {runtime.runtimeGetVersion()}")
    for number in range(runtime.getDeviceCount()):
        facts = runtime.getDeviceProperties(number)
        with cupy.cuda.Device(number):
            free, total = runtime.memGetInfo()
        yield Finding(
            "GPU",
            f"device {number}",
            f"{facts['name'].decode()}, compute capability {facts['major']}.{facts['minor']}, "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        )
    yield from _libraries(cupy)


def _libraries(cupy: Any) -> Iterator[Finding]:
    """Use each of the libraries that CuPy loads when it first needs them."""
    uses: dict[str, Callable[[], Any]] = {
        "NVRTC": lambda: cupy.ones(2) + 1,
        "cuBLAS": lambda: cupy.ones((2, 2)) @ cupy.ones((2, 2)),
        "cuFFT": lambda: cupy.fft.rfft(cupy.ones(4)),
        "cuSOLVER": lambda: cupy.linalg.eigh(cupy.ones((2, 2))),
    }
    for name, use in uses.items():
        try:
            use()
            yield Finding("GPU", name, "works")
        except Exception as error:
            yield Finding("GPU", name, f"{type(error).__name__}: {error}; {LIBRARIES}", True)


def _threads() -> Iterator[Finding]:
    yield Finding("Threads", "compiled kernels", f"{thread_limit()} of {os.cpu_count()} processors")
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if name in os.environ:
            yield Finding("Threads", name, os.environ[name])


def _caches() -> Iterator[Finding]:
    # numba keeps compiled functions beside their module, or in a folder of the user where that cannot be written.
    named = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(named) if named else Path(__file__).parent
    writable = os.access(folder, os.W_OK)
    where = str(folder) if writable or named else "the user's cache folder"
    text = f"in {where}" if writable or not named else f"{where} cannot be written: every process compiles anew"
    yield Finding("Caches", "compiled kernels", text, bool(named) and not writable)
    cuda = os.environ.get("CUPY_CACHE_DIR") or str(Path.home() / ".cupy" / "kernel_cache")
    yield Finding("Caches", "CUDA kernels", f"in {cuda}")


def _extras() -> Iterator[Finding]:
    for extra, names in _requirements().items():
        if not extra:
            continue
        missing = [name for name in names if _version(name) is None]
        text = f"lacks {', '.join(missing)}: {install_line(extra)}" if missing else "complete"
        yield Finding("Extras", extra, text)


def _requirements() -> dict[str, list[str]]:
    """Return what each extra needs, those of the extras that it names included; under "" what the base needs."""
    direct: dict[str, list[tuple[str, list[str]]]] = {"": []}
    try:
        metadata = importlib.metadata.metadata("convla")
    except importlib.metadata.PackageNotFoundError:
        return {"": []}
    for extra in metadata.get_all("Provides-Extra") or []:
        direct[extra] = []
    for line in metadata.get_all("Requires-Dist") or []:
        found = re.match(r"([\w.-]+)(?:\[([\w,.-]+)\])?", line)
        condition = re.search(r"extra == ['\"]([\w.-]+)['\"]", line)
        if found:
            parts = found[2].split(",") if found[2] else []
            direct[condition[1] if condition else ""].append((found[1], parts))

    def needed(extra: str) -> dict[str, None]:
        names: dict[str, None] = {}
        for name, parts in direct[extra]:
            if name == "convla":
                for part in parts:
                    names |= needed(part)
            else:
                names[name] = None
        return names

    return {extra: list(needed(extra)) for extra in direct}
