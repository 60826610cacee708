"""What the commands share: one-line complaints, files checked before the work, progress bars, tables wide enough."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convla._files import atomic_write, check_replaceable

if TYPE_CHECKING:  # what the help does not need is imported where it is used
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.text import Text

INTERRUPTED = 130
"""The exit code after Ctrl-C; after SIGTERM, which is answered alike, it is 143."""
PROSE = 20
"""The least width of a column of sentences."""
TOLD = 60.0
"""Seconds between two lines of progress where there is no terminal, in the log of a queue's job for one."""

__all__ = [
    "INTERRUPTED",
    "check_plot",
    "check_writable",
    "complain",
    "console",
    "counted",
    "progress_bars",
    "reason",
    "show_table",
    "time_left",
    "write_json",
    "write_text",
]

_PLOTS = (".png", ".svg", ".pdf")


def complain(message: str) -> None:
    """Print one line on standard error."""
    from convla.networks.weights import printable

    print(f"convla: {printable(' '.join(message.split()))}", file=sys.stderr)


def console() -> Console:
    """Return a console on standard output; a pipe has no width of its own: wide enough that no cell is folded."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def counted(number: int, name: str) -> str:
    """Return a number with what it counts, in the singular or the plural."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def show_table(
    screen: Console,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: Container[str] = (),
    prose: Container[str] = (),
    title: str | None = None,
) -> None:
    """Print a table where it fits, else each row as its headings with their cells; nothing is ever cut.

    Parameters
    ----------
    screen : rich.console.Console
    headings : sequence of str
    rows : iterable of sequences of str
        With Rich's markup.
    words, prose : container of str
        Headings of columns that are not numbers, and of those whose cells may be folded, too.
    title : str, optional
    """
    from rich.text import Text

    cells = [[Text.from_markup(cell) for cell in row] for row in rows]
    named = [[Text(heading, "bold") for heading in headings], *cells]
    widths = [max(cell.cell_len for cell in column) for column in zip(*named, strict=True)]
    needed = sum(PROSE if heading in prose else width for heading, width in zip(headings, widths, strict=True))
    if title is not None:
        screen.print(title, style="bold")
    if needed + 2 * (len(headings) - 1) > screen.width:
        for row in cells:
            parts = [Text.assemble((f"{h} ", "dim"), cell) for h, cell in zip(headings, row, strict=True) if cell.plain]
            _print_folded(screen, parts)
    elif prose:
        _print_with_prose(screen, headings, cells, prose)
    else:
        for row in named:
            for heading, width, cell in zip(headings, widths, row, strict=True):
                pad = cell.pad_right if heading in words else cell.pad_left
                pad(width - cell.cell_len)
        screen.print(Text("\n").join(Text("  ").join(row) for row in named))


def _print_folded(screen: Console, parts: Sequence[Text]) -> None:
    """Put parts behind each other on lines that fit; no part is broken that fits a line."""
    from rich.text import Text

    line = parts[0]
    for part in parts[1:]:
        if line.cell_len + 2 + part.cell_len <= screen.width:
            line = Text.assemble(line, "  ", part)
        else:
            screen.print(line)
            line = Text.assemble("  ", part)
    screen.print(line)


def _print_with_prose(
    screen: Console, headings: Sequence[str], rows: Sequence[Sequence[Text]], prose: Container[str]
) -> None:
    """Print a table some of whose columns are folded to fit."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in prose, overflow="fold")
    for row in rows:
        table.add_row(*row)
    screen.print(table)


def reason(error: Exception) -> str:
    """Return what an error says, in one line: of a file "name: why", not "[Errno 2] ...: 'name'"."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or f"the computation ended with {type(error).__name__}"


def check_writable(option: str, path: Path | None) -> None:
    """Raise, before the work and not after it, if a file cannot be written."""
    if path is None:
        return
    try:
        check_replaceable(path, follow_links=True)
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written: {error.strerror}") from error


def check_plot(path: Path | None) -> None:
    """Raise if the format of a picture is none that is drawn."""
    if path is not None and path.suffix not in _PLOTS:
        raise ValueError(f"--plot must end in one of {', '.join(_PLOTS)}, got {str(path)!r}")


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole; what is no text, a lone surrogate, as an escape."""
    with atomic_write(path, follow_links=True) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: Any) -> None:
    """Write a report."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")  # the escape is JSON's own


def time_left(seconds: float) -> str:
    """Return a duration as a screen shows it.

    Examples
    --------
    >>> time_left(75.2), time_left(90000)
    ('1:15', '25:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_bars(*, last: ProgressColumn | None = None) -> Progress:
    """Return progress bars on standard error that leave nothing; where that is no terminal, a line a minute instead.

    Lines that are printed meanwhile, on standard output too if it is the same terminal, stand above them. The last
    column says how long the rest will take, if all take the same; or what `last` says. The line is of the first bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many a second, and how long it will take from here."""

        def render(self, task: Task) -> Text:
            if not task.speed or task.remaining is None:
                return Text("")
            return Text(f"{task.speed:.3g}/s, {time_left(task.remaining / task.speed)} left")

    rest = Rate() if last is None else last

    class Bars(Progress):
        """Bars that tell in a line how far the first of them is, where they are not shown."""

        told = time.monotonic()

        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self.tell()

        def update(self, task_id: TaskID, **fields: Any) -> None:
            super().update(task_id, **fields)
            self.tell()

        def tell(self) -> None:
            now = time.monotonic()
            if not self.disable or now < self.told + TOLD:
                return
            self.told, whole = now, self.tasks[0]
            total = "" if whole.total is None else f" of {whole.total:g}"
            more = str(rest.render(whole))
            complain(f"{whole.description.strip()}: {whole.completed:g}{total}{more and f', {more}'}")

    console = Console(stderr=True)
    quiet = not console.is_terminal
    console.quiet = quiet  # bars that are off still end a line in some versions of Rich
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        rest,
        console=console,
        get_time=time.monotonic,
        disable=quiet,
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
        speed_estimate_period=600.0,  # units may take minutes
    )
