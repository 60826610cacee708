"""What the benchmarks share: the measured parts of the pages in docs, the machine in words, other processes beside it.

A part is printed, and with ``--page`` written between its markers on the page: nothing is copied by hand.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

DOCS = Path(__file__).resolve().parent.parent / "docs"


class _Copied:
    """A stream that also keeps what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text = stream, ""

    def write(self, text: str) -> int:
        self.text += text
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def markers(name: str) -> tuple[str, str]:
    """Return the lines around a part of a page."""
    return f"<!-- measured: {name} -->", f"<!-- end: {name} -->"


def filled(text: str, name: str, part: str) -> str:
    """Return a page's text with a part between its markers.

    Raises
    ------
    ValueError
        If the page has not these markers, once and in this order.
    """
    first, last = markers(name)
    before, _, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not ended or text.count(first) != 1 or text.count(last) != 1:
        raise ValueError(f"the page must have {first} and {last}, each once")
    return f"{before}{first}\n\n{part.strip()}\n\n{last}{after}"


@contextlib.contextmanager
def measured(page: str, name: str, *, write: bool) -> Iterator[None]:
    """Print what is measured inside; with `write`, put it between the markers of that name on a page of docs too.

    Parameters
    ----------
    page : str
        The file's name.
    name : str
    write : bool
    """
    if write:
        filled((DOCS / page).read_text(), name, "")  # before the work
    copied = _Copied(sys.stdout)
    with contextlib.redirect_stdout(copied):  # type: ignore[type-var]
        yield
    print(flush=True)
    if write:
        (DOCS / page).write_text(filled((DOCS / page).read_text(), name, copied.text))


def machine(*libraries: str, threads: str = "default threads") -> str:
    """Return a sentence of the day, the processor and the versions, NumPy's and those of the libraries named."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    names = ["convla", "numpy", *libraries]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return (
        f"{datetime.date.today()}, {processor}, {os.cpu_count()} cores, {threads}, Python {platform.python_version()}, "
        f"{', '.join(versions)}."
    )


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Let so many other processes compute meanwhile."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()
