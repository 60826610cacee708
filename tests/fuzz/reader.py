"""A process that reads files which may kill it: one line a file in, one line a file out.

Run as ``python -m tests.fuzz.reader SECONDS MIB``, with limits on the processor time and memory of one file.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from convla.errors import ConvlaError

READERS = {
    **dict.fromkeys((".npz", ".safetensors", ".pt"), ("convla.networks.weights", "read_weights")),
    ".idx3": ("convla.experiments.training.formats", "read_idx_images"),
    ".idx1": ("convla.experiments.training.formats", "read_idx_labels"),
    ".bin": ("convla.experiments.training.formats", "read_cifar_binary"),
    ".pickle": ("convla.experiments.training.formats", "read_cifar_python"),
}
"""The reader of each kind of file, by the ending that the fuzzer gives it."""


def reader_of(suffix: str) -> Any:
    """Return the library's reader of a kind of file, or None where it has none, or lacks what it needs."""
    module, name = READERS[suffix]
    needs = {".pt": "torch", ".safetensors": "safetensors"}.get(suffix)
    if needs and importlib.util.find_spec(needs) is None:
        return None
    return getattr(importlib.import_module(module), name, None)


def read(path: Path) -> str:
    """Read a file; return what came of it: "read", "refused", or the fault in words."""
    try:
        reader_of(path.suffix)(path)
    except ConvlaError as error:
        message = str(error)
        return "refused" if "\n" not in message and len(message) < 1000 else f"a long message: {message[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"


def main(seconds: int, mebibytes: int) -> None:
    for suffix in READERS:
        reader_of(suffix)
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (mebibytes << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # whose signal ends the process
        print(json.dumps(read(Path(line.rstrip("\n")))), flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
