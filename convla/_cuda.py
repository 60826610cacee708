"""Kernels written in CUDA C++, compiled where they are first launched, and how they are launched.

A source is named as "package:name", for the file name.cu of a package. It stands alone, but for headers of its package:
what differs between its builds is a macro, such as `REAL`, the type of the entries. Grids have one axis. A kernel runs
on the device of its arrays, on CuPy's current stream, and waits for nothing. CuPy is imported with the first launch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from typing import Any, ParamSpec, TypeVar

import numpy as np

from convla.errors import EngineError, install_line
from convla.typing import Array

__all__ = [
    "C_TYPES",
    "LIBRARIES",
    "WORKSPACE",
    "blocks_for",
    "c_type",
    "chunks",
    "compiled",
    "contiguous",
    "cuda_trouble",
    "forget",
    "kept",
    "kernel_options",
    "launch_kernel",
    "on_its_device",
    "on_the_device",
    "one_device",
    "source_text",
    "table_on_device",
]

C_TYPES = {
    "float32": "float",
    "float64": "double",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
}
"""The entries that a kernel may be built for."""

WORKSPACE = 2**28
"""The bytes that an operation may take beyond its arguments and its result, where one piece of work fits in them."""

LIBRARIES = (
    "where CuPy lacks its CUDA libraries, install them: pip install 'cupy-cuda12x[ctk]', or "
    "'cupy-cuda13x[ctk]' for CUDA 13"
)
"""What helps where a library that CuPy loads when it first needs it is not found."""

_NOT_LOADED = re.compile(r"lib\w+\.so|\.dll\b|failed to load|cannot open shared object", re.IGNORECASE)

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)

P = ParamSpec("P")
R = TypeVar("R")


def cuda_trouble() -> str:
    """Return why CuPy can use no device here, and what helps; an empty string where it can."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES is empty, which hides every device: unset it"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {install_line('cuda12')}, or cuda13 for a driver of CUDA 13"
    try:
        runtime = importlib.import_module("cupy").cuda.runtime
    except ImportError as error:
        return f"CuPy is installed, but cannot be imported ({error}): install the wheel of the driver's CUDA version"
    try:
        count = runtime.getDeviceCount()
    except RuntimeError as error:
        return f"CuPy finds no usable driver ({error}): install or update NVIDIA's, and see what nvidia-smi says"
    return "" if count else "the driver shows no device: see what nvidia-smi and CUDA_VISIBLE_DEVICES say"


def source_text(source: str) -> str:
    """Return the text of a source, with the files of its package that it includes."""
    package, _, name = source.partition(":")
    folder = resources.files(package)
    text = folder.joinpath(f"{name}.cu").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: folder.joinpath(found[1]).read_text(encoding="utf-8"), text)


def kernel_options(*, fused: bool = True, **macros: object) -> tuple[str, ...]:
    """Return the compiler's options for a build with these macros.

    Where not `fused`, a product is rounded before it is added: a kernel has the very bits that its source says.
    """
    return (
        "-std=c++17",
        f"--fmad={str(fused).lower()}",
        *(f"-D{name}={value}" for name, value in sorted(macros.items())),
    )


def forget() -> None:
    """Forget what was compiled and what was copied to a device."""
    for forget_results in _FORGET:
        forget_results()


_FORGET: list[Callable[[], None]] = []


def kept(make: Callable[P, R]) -> Callable[P, R]:
    """Keep what is made of hashable arguments for the current device, up to 256 results, until `forget` is called."""

    @functools.lru_cache(maxsize=256)
    def made(_device: int, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return make(*args, **kwargs)

    @functools.wraps(make)
    def get(*args: P.args, **kwargs: P.kwargs) -> R:
        return made(importlib.import_module("cupy").cuda.Device().id, *args, **kwargs)  # type: ignore[arg-type]

    _FORGET.append(made.cache_clear)
    return get


@kept
def _kernel(source: str, name: str, options: tuple[str, ...]) -> Any:
    kernel = importlib.import_module("cupy").RawKernel(source_text(source), name, options=options)
    try:
        kernel.compile()
    except Exception as error:
        raise EngineError(
            f"the CUDA kernel {name} cannot be compiled ({type(error).__name__}: {error}); {LIBRARIES}"
        ) from error
    return kernel


def compiled(source: str, name: str, *, fused: bool = True, **macros: object) -> Any:
    """Return a kernel for the current device, to be called with blocks, threads and arguments.

    `fused` and the macros are those of `kernel_options`.

    Raises
    ------
    EngineError
        If it cannot be compiled.
    """
    return _kernel(source, name, kernel_options(fused=fused, **macros))


def launch_kernel(
    source: str,
    name: str,
    blocks: int,
    threads: tuple[int, ...],
    arguments: Iterable[Any],
    *,
    fused: bool = True,
    **macros: object,
) -> None:
    """Launch a kernel on the current device; Python's integers become 64-bit ones, its floats float64.

    `fused` and the macros are those of `kernel_options`.

    Raises
    ------
    EngineError
        If it cannot be compiled.
    """
    kernel = compiled(source, name, fused=fused, **macros)
    kernel((blocks,), threads, tuple(_settled(value) for value in arguments))


def _settled(value: Any) -> Any:
    if isinstance(value, int):
        return np.int64(value)
    return np.float64(value) if isinstance(value, float) else value


def blocks_for(count: int, size: int) -> int:
    """Return how many blocks of `size` cover `count`."""
    return -(-count // size)


def chunks(count: int, each: int, room: int) -> Iterator[slice]:
    """Yield slices that cover `count` things of `each` bytes, as many at a time as fit in `room`, or one."""
    step = max(1, room // max(each, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def on_its_device(operation: Callable[P, R]) -> Callable[P, R]:
    """Make the device of the arrays the current one while an operation runs, as CuPy needs it.

    Raises
    ------
    EngineError
        If the arrays are on several devices, or CuPy does not find a library of CUDA.
    MemoryError
        If the device has too little memory.
    """

    @functools.wraps(operation)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        cupy = importlib.import_module("cupy")
        device = one_device([value for value in args if isinstance(value, cupy.ndarray)])
        with cupy.cuda.Device(device):
            try:
                return operation(*args, **kwargs)
            except (ImportError, MemoryError, OSError, RuntimeError) as error:
                named = _named(error)
                if named is None:
                    raise
                raise named from error

    return run


def one_device(arrays: Iterable[Any]) -> int | None:
    """Return the number of the device of CuPy's arrays, or None where there are none; see `on_its_device`."""
    devices = {array.device.id for array in arrays}
    if len(devices) > 1:
        raise EngineError(
            f"all arrays of a call must be on one device, got devices {', '.join(map(str, sorted(devices)))}: copy "
            "them to one, with cupy.asarray inside of cupy.cuda.Device(number)"
        )
    return devices.pop() if devices else None


def _named(error: Exception) -> Exception | None:
    """Return an error of CuPy's as one that names the remedy; None where none is known."""
    if isinstance(error, EngineError):
        return None
    if isinstance(error, MemoryError) or "cudaErrorMemoryAllocation" in str(error):
        return MemoryError(
            f"the device has too little memory ({error}): pass fewer images or filters at a time, or give back "
            "what CuPy keeps, with cupy.get_default_memory_pool().free_all_blocks()"
        )
    if isinstance(error, ImportError) or _NOT_LOADED.search(str(error)):
        return EngineError(f"a library of CUDA cannot be loaded ({type(error).__name__}: {error}); {LIBRARIES}")
    return None


def table_on_device(table: Any) -> Any:
    """Return a table of NumPy on the current device, for launches on any stream."""
    cupy = importlib.import_module("cupy")
    copy = cupy.asarray(table)
    cupy.cuda.get_current_stream().synchronize()  # once: later calls may be on other streams
    return copy


@kept
def on_the_device(make: Callable[..., Any], *arguments: Any) -> Any:
    """Return a table that `make` builds of hashable arguments, on the current device, kept for later calls."""
    return table_on_device(make(*arguments))


def contiguous(array: Array) -> Array:
    """Return an array of CuPy as a kernel reads it, in C order: itself where it is in that order."""
    ordered: Array = importlib.import_module("cupy").ascontiguousarray(array)
    return ordered


def c_type(array: Array) -> str:
    """Return what C calls the entries of an array."""
    return C_TYPES[np.dtype(array.dtype).name]
