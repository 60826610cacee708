"""What the commands share: one-line complaints, files checked before the work, progress bars, tables wide enough."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convla._files import atomic_write, check_replaceable

if TYPE_CHECKING:  # what the help does not need is imported where it is used
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

INTERRUPTED = 130
"""The exit code after Ctrl-C; after SIGTERM, which is answered alike, it is 143."""

__all__ = ["INTERRUPTED", "check_writable", "complain", "console", "progress_bars", "write_json", "write_text"]


def complain(message: str) -> None:
    """Print one line on standard error."""
    from convla.networks.weights import printable

    print(f"convla: {printable(' '.join(message.split()))}", file=sys.stderr)


def console() -> Console:
    """Return a console on standard output; a pipe has no width of its own: wide enough that no cell is folded."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def check_writable(option: str, path: Path | None) -> None:
    """Raise, before the work and not after it, if a file cannot be written."""
    if path is None:
        return
    try:
        check_replaceable(path, follow_links=True)
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole; what is no text, a lone surrogate, as an escape."""
    with atomic_write(path, follow_links=True) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: Any) -> None:
    """Write a report."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")  # the escape is JSON's own


def progress_bars(*columns: ProgressColumn, quiet: bool = False) -> Progress:
    """Return progress bars on standard error that show nothing where that is no terminal, and leave nothing.

    Lines that are printed meanwhile, on standard output too if it is the same terminal, stand above them.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    quiet = quiet or not console.is_terminal
    console.quiet = quiet  # bars that are off still end a line in some versions of Rich
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *columns,
        console=console,
        disable=quiet,
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
    )
