"""The progress of a command that runs units of work, and what it says when it is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from rich.progress import TaskID

from convla.cli.output import INTERRUPTED, complain, progress_bars
from convla.experiments.session import Part, Watcher

__all__ = ["RunBars"]


class RunBars(Watcher):
    """A bar for the whole of `what`, and one for each part that goes on.

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
        self._bars: dict[Part[Any], TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def plan(self, parts: int, saved: int) -> None:
        """Take up the number of parts."""
        self.units, self.saved = parts, saved
        self._progress.update(self._whole, total=parts, completed=saved)

    def start(self, part: Part[Any], steps: int) -> None:
        """Show a bar for a part that begins."""
        self._bars[part] = self._progress.add_task(part.title, total=steps)

    def advance(self, part: Part[Any], steps: int) -> None:
        """Move a part's bar."""
        self._progress.advance(self._bars[part], steps)

    def damaged(self, file: str, places: int) -> None:
        """Say that rows of a file are run again."""
        records = "1 record" if places == 1 else f"{places} records"
        complain(f"{file}: {records} damaged or cut off; what was in it is run again")

    def finish(self, part: Part[Any]) -> None:
        """Take a part's bar away, and move that of the whole."""
        self.saved += 1
        self._progress.remove_task(self._bars.pop(part))
        self._progress.advance(self._whole)

    def interrupted(self, output: Path) -> int:
        """Say what is saved, and how to go on; return the exit code."""
        complain(
            f"interrupted: {self.saved} of {self.units} {self._what} are saved in {output}; the same command with "
            "--resume goes on from there"
        )
        return INTERRUPTED
