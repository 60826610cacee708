"""Files that are written whole or not at all, and never through a link that somebody else has planted."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_write", "check_replaceable", "flush_folder"]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, follow_links: bool = False) -> Iterator[IO[bytes]]:
    """Write a file beside its place, under a random name, and move it there once it is complete.

    A reader sees the old file or the new one, whenever the process is killed; contents and name are flushed to the
    disk (fsync) before this returns, so that a power cut leaves one of the two as well.

    Parameters
    ----------
    path : path
        What is there is replaced, and its permissions are kept; a new file has those that `open` would give it.
    follow_links : bool, default False
        Replace what a symbolic link at `path` points to, as `open` would: for places that the user names. Otherwise the
        link itself is replaced, and nothing outside the folder is touched.

    Yields
    ------
    binary file
        Open for writing, seekable.

    Raises
    ------
    OSError
        If the file cannot be written, or what is there is no regular file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from convla._files import atomic_write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "report.json"
    ...     with atomic_write(path) as file:
    ...         _ = file.write(b"{}")
    ...     path.read_bytes(), len(list(path.parent.iterdir()))
    (b'{}', 1)
    """
    target = Path(os.path.realpath(path) if follow_links else path)
    mode = _mode_of(target, path)
    part = target.with_name(f".convla-{secrets.token_hex(8)}.part")
    try:
        # "x" never opens what is there already, nor follows a link.
        with part.open("x+b") as file:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush_folder(target.parent)


def check_replaceable(path: str | os.PathLike[str], *, follow_links: bool = False) -> None:
    """Raise, before the work and not after it, if `atomic_write` could not write there.

    Raises
    ------
    OSError
        As `atomic_write` would.
    """
    target = Path(os.path.realpath(path) if follow_links else path)
    if _mode_of(target, path) is not None and not target.is_symlink():
        target.open("ab").close()  # a file that must not be written is not replaced either
    part = target.with_name(f".convla-{secrets.token_hex(8)}.part")
    try:
        part.open("xb").close()
    finally:
        part.unlink(missing_ok=True)


def _mode_of(target: Path, given: Any) -> int | None:
    """Return the permissions of the file that is there, or None where there is none."""
    try:
        found = target.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):  # to be replaced itself; its own permissions mean nothing
        return None
    if not stat.S_ISREG(found.st_mode):  # a pipe would wait for a reader, a device has no whole
        if os.path.isdir(given):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(given))
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(given))
    return stat.S_IMODE(found.st_mode) & 0o777


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no such call
            os.fsync(handle)
    finally:
        os.close(handle)
