"""Run the source of a CUDA kernel on the CPU: built as C++ by g++, with `device.h` for what a device provides.

What a device may not notice is an error here: an argument whose type is not the one that the source declares, an entry
read or written beyond the end of an array, or written before its beginning, a barrier that not all threads of a block
come to, whatever C++ leaves undefined, such as an index outside of a local or shared array. What is read before the
beginning of an array is NaN, or -1, and so is shared memory that was not written.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["COMPILER", "Launcher", "parameters"]

COMPILER = shutil.which("g++")

_C = ctypes.CDLL(None)
_PROBLEMS = {
    1: "some threads of a block wait at a barrier, and others have ended",
    2: "an entry beyond the end of an array was read or written",
    3: "an operation without a meaning: an index outside of a local or shared array, an overflow, a division by 0",
}

_KERNEL = r"__global__\s+void\s+(?:__launch_bounds__\(.*\)\s+)?"
_HERE = Path(__file__).parent
_TYPES = {
    "float": np.float32,
    "double": np.float64,
    "signed char": np.int8,
    "short": np.int16,
    "int": np.int32,
    "long long": np.int64,
    "unsigned char": np.uint8,
    "unsigned short": np.uint16,
    "unsigned int": np.uint32,
    "unsigned long long": np.uint64,
}


@functools.cache
def parameters(source: str, name: str) -> tuple[tuple[str, bool], ...]:
    """Return the type of each parameter of a kernel, without const, and whether it is a pointer."""
    found = re.search(rf"{_KERNEL}{name}\s*\(([^)]*)\)", source)
    assert found, f"no kernel {name} in the source"
    parts = [re.sub(r"\b(const|__restrict__)\b", " ", part) for part in found[1].split(",")]
    return tuple((" ".join(part.replace("*", " ").split()[:-1]), "*" in part) for part in parts)


def defines(options: Sequence[str]) -> dict[str, str]:
    """Return the macros that the options of a compiler define."""
    pairs = [option[2:].partition("=") for option in options if option.startswith("-D")]
    return {name: value for name, _, value in pairs}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="convla-cuda-")


@functools.cache
def _library(source: str, macros: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    assert COMPILER, "g++ is not installed"
    names = re.findall(rf"{_KERNEL}(\w+)", source)
    text = ['#include "device.h"', *(f"#define {name} {value}" for name, value in macros), source]
    for name in names:
        given = ", ".join(
            f"*({kind}{' *' if pointer else ''} *)arguments[{i}]"
            for i, (kind, pointer) in enumerate(parameters(source, name))
        )
        text.append(
            f"static void thread_of_{name}(void **arguments) {{ {name}({given}); }}\n"
            f'extern "C" int launch_{name}(unsigned blocks, unsigned width, unsigned height, void **arguments)\n'
            f"{{ return emulator::launch(thread_of_{name}, blocks, width, height, arguments); }}"
        )
    folder = Path(_folder().name)
    stem = f"kernel{len(list(folder.glob('*.cpp')))}"
    (folder / f"{stem}.cpp").write_text("\n".join(text))
    target = folder / f"{stem}.so"
    command = [
        COMPILER,
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
        "-Wno-unknown-pragmas",
    ]
    command += ["-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    command += ["-ffp-contract=off", "-ftrivial-auto-var-init=pattern", f"-I{_HERE}", "-o", str(target)]
    build = subprocess.run([*command, str(folder / f"{stem}.cpp")], capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    return ctypes.CDLL(str(target))


class Launcher:
    """A kernel of a source, to be launched on NumPy arrays and scalars."""

    def __init__(self, source: str, name: str, options: Sequence[str]) -> None:
        self.name = name
        macros = defines(options)
        self._library = _library(source, tuple(sorted(macros.items())))
        meanings = {new: old for old, new in re.findall(r"typedef ([\w ]+) (\w+);", source)} | macros
        resolved = [(meanings.get(kind, kind), pointer) for kind, pointer in parameters(source, name)]
        self._parameters = [(np.dtype(_TYPES[kind]), pointer) for kind, pointer in resolved]

    def __call__(self, blocks: int, threads: tuple[int, ...], arguments: Sequence[Any]) -> None:
        """Run the grid; arrays are written in place."""
        assert len(arguments) == len(self._parameters), f"{self.name} takes {len(self._parameters)} arguments"
        assert 1 <= blocks <= 2**31 - 1, f"{self.name}: {blocks} blocks"
        assert 1 <= int(np.prod(threads)) <= 1024, f"{self.name}: {threads} threads"
        held = [self._hold(i, value) for i, value in enumerate(arguments)]
        pointers = (ctypes.c_void_p * len(held))(*(place.ctypes.data for place, _ in held))
        width, height = (*threads, 1)[:2]
        failed = getattr(self._library, f"launch_{self.name}")(blocks, width, height, pointers)
        assert not failed, f"{self.name}: {_PROBLEMS[failed]}"
        for value, (_, pages) in zip(arguments, held, strict=True):
            if pages is not None:
                self._take_back(value, pages)

    def _hold(self, place: int, value: Any) -> tuple[Any, Any]:
        """Return where the argument stands, and, of an array, the pages that its copy ends."""
        dtype, pointer = self._parameters[place]
        assert value.dtype == dtype, f"{self.name}: argument {place} is {value.dtype}, and declared {dtype}"
        assert isinstance(value, np.ndarray) == pointer, (
            f"{self.name}: argument {place} is no {'array' if pointer else 'scalar'}"
        )
        if not pointer:
            return np.array([value]), None
        assert value.flags.c_contiguous, f"{self.name}: argument {place} is not contiguous"
        pages = _pages_before_a_guard(value.nbytes)
        pages[pages.size - value.nbytes :] = value.reshape(-1).view(np.uint8)
        return np.array([pages.ctypes.data + pages.size - value.nbytes], np.uintp), pages

    def _take_back(self, value: Any, pages: Any) -> None:
        before, inside = np.split(pages, [pages.size - value.nbytes])
        assert np.all(before == 0xFF), f"{self.name} wrote before the beginning of an array"
        if value.flags.writeable:
            value.reshape(-1).view(np.uint8)[:] = inside
        else:
            assert np.array_equal(value.reshape(-1).view(np.uint8), inside), f"{self.name} wrote to its input"


def _pages_before_a_guard(count: int) -> Any:
    """Return whole pages of 0xff for `count` bytes at their end, behind which stands a page that nobody may touch."""
    size = (count // mmap.PAGESIZE + 1) * mmap.PAGESIZE
    region = mmap.mmap(-1, size + mmap.PAGESIZE)
    pages = np.frombuffer(region, np.uint8, size)
    failed = _C.mprotect(ctypes.c_void_p(pages.ctypes.data + size), ctypes.c_size_t(mmap.PAGESIZE), 0)
    assert not failed
    pages[:] = 0xFF
    return pages
