"""What the commands share: one-line complaints, files checked before the work, progress bars, tables wide enough."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from convla._files import atomic_write, check_replaceable
from convla.experiments.session import Unit, Watcher
from convla.models.weights import printable

INTERRUPTED = 130
"""The exit code after Ctrl-C; after SIGTERM, which is answered alike, it is 143."""

__all__ = ["INTERRUPTED", "RunBars", "check_writable", "complain", "console", "progress_bars", "write_json"]


def complain(message: str) -> None:
    """Print one line on standard error."""
    print(f"convla: {printable(' '.join(message.split()))}", file=sys.stderr)


def console() -> Console:
    """Return a console on standard output; a pipe has no width of its own: wide enough that no cell is folded."""
    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def check_writable(option: str, path: Path | None) -> None:
    """Raise, before the work and not after it, if a file cannot be written."""
    if path is None:
        return
    try:
        check_replaceable(path, follow_links=True)
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written: {error.strerror}") from error


def write_json(path: Path, data: Any) -> None:
    """Write a report."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    with atomic_write(path, follow_links=True) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # which is JSON's escape of a lone surrogate


def progress_bars(*, quiet: bool = False) -> Progress:
    """Return progress bars on standard error that show nothing where that is no terminal, and leave nothing."""
    console = Console(stderr=True)
    quiet = quiet or not console.is_terminal
    console.quiet = quiet  # bars that are off still end a line in some versions of Rich
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet,
        transient=True,
    )


class RunBars(Watcher):
    """A bar for the whole of `what`, and one for each unit that goes on.

    Attributes
    ----------
    units, saved : int
        How many there are, and how many of them are saved.
    """

    def __init__(self, what: str) -> None:
        self.units = self.saved = 0
        self._what = what
        self._progress = progress_bars()
        self._whole = self._progress.add_task(what, total=None)
        self._bars: dict[Unit, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def plan(self, units: int, saved: int) -> None:
        """Take up the number of units."""
        self.units, self.saved = units, saved
        self._progress.update(self._whole, total=units, completed=saved)

    def start(self, unit: Unit, steps: int) -> None:
        """Show a bar for a unit that begins."""
        self._bars[unit] = self._progress.add_task(str(getattr(unit, "title", unit.name)), total=steps)

    def advance(self, unit: Unit, steps: int) -> None:
        """Move a unit's bar."""
        self._progress.advance(self._bars[unit], steps)

    def finish(self, unit: Unit) -> None:
        """Take a unit's bar away, and move that of the whole."""
        self.saved += 1
        self._progress.remove_task(self._bars.pop(unit))
        self._progress.advance(self._whole)

    def interrupted(self, output: Path) -> int:
        """Say what is saved, and how to go on; return the exit code."""
        complain(
            f"interrupted: {self.saved} of {self.units} {self._what} are saved in {output}; the same command with "
            "--resume goes on from there"
        )
        return INTERRUPTED
