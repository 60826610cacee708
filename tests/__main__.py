"""`python -m tests`: the fast lane, every module with few drawn examples, on all cores; arguments go to pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


def parts(count: int) -> list[list[str]]:
    """The modules of tests, dealt out so that each part holds about as much source."""
    paths = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if path.stem not in COMMANDS]
    dealt: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for path in sorted(paths, key=lambda path: -path.stat().st_size):
        least = sizes.index(min(sizes))
        dealt[least].append(str(path.relative_to(ROOT)))
        sizes[least] += path.stat().st_size
    return dealt


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    line = [sys.executable, "-m", "pytest", "-q", "--few", "-m", "not (command or jax or slow)", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [subprocess.Popen([*line, *part], cwd=ROOT, text=True, **pipes) for part in parts(os.cpu_count() or 1)]
    try:
        printed = [process.communicate()[0] for process in running]
    except KeyboardInterrupt:
        for process in running:
            process.terminate()
        return 130
    print("\n".join(printed))
    print(
        f"{time.monotonic() - began:.0f} s; without whole commands, and with few examples: `python -m pytest` runs all"
    )
    # 5: a part in which nothing was selected.
    return max((process.returncode for process in running if process.returncode != 5), default=5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
