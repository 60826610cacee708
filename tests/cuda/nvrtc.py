"""NVIDIA's run-time compiler by ctypes: it needs no device and no driver, only the wheel nvidia-cuda-nvrtc."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

__all__ = ["compile_source", "library"]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiler's library, or None where no wheel has brought it."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    # One wheel has a folder of its own in the package `nvidia`, those from CUDA 13 on have one for all.
    paths = sorted(
        path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*") if ".alt." not in path.name
    )
    return ctypes.CDLL(str(paths[-1])) if paths else None


def compile_source(source: str, options: Sequence[str], architecture: str) -> str:
    """Compile a source to the machine code of a device, such as "sm_90"; return what the compiler complains of."""
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", 0, None, None) == 0
    given = [option.encode() for option in (*options, f"--gpu-architecture={architecture}")]
    failed = nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    code = ctypes.c_size_t()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(code))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode().strip()
    if failed and not text:
        return f"error {failed}"
    return text if text or code.value else "no machine code"
