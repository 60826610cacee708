"""Zip archives that are not trusted, as NumPy and PyTorch write them: opened, and copied with some members changed."""

from __future__ import annotations

import contextlib
import copy
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from convla._array import available_memory
from convla.errors import WeightsError

__all__ = ["check_memory", "copy_archive", "open_archive"]

# Both libraries store or deflate, which grows a thousandfold at most; bz2 makes gigabytes of a few hundred bytes.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


def check_memory(path: str | os.PathLike[str], needed: int) -> None:
    """Raise `WeightsError` if `needed` bytes are more than are free."""
    available = available_memory(np.empty(0))
    if available is not None and needed > available:
        raise WeightsError(f"{path}: holds {needed} bytes of arrays, more than the {available} bytes of free memory")


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members are each there once, readable, and no larger together than the memory.

    A member gives no more bytes than the archive says, so that what it says can be relied on.

    Raises
    ------
    WeightsError
        If it is no such archive.
    """
    with zipfile.ZipFile(path) as archive:
        names = set()
        for member in archive.infolist():
            if member.filename in names:
                name = member.filename.removesuffix(".npy")
                raise WeightsError(f"{path}: holds two arrays of the name {name!r}")
            names.add(member.filename)
            if member.compress_type not in _METHODS or member.flag_bits & _ENCRYPTED:
                raise WeightsError(
                    f"{path}: {member.filename!r} in it is encrypted or compressed by the method "
                    f"{member.compress_type}; stored and deflated members are read"
                )
        check_memory(path, sum(member.file_size for member in archive.infolist()))
        yield archive


def copy_archive(path: Path, target: IO[bytes], changed: Mapping[str, bytes], alignment: int = 1) -> None:
    """Write the archive to `target` with the contents of some members changed, and the others' as they are.

    Parameters
    ----------
    path : Path
    target : binary file
        Open for writing, seekable.
    changed : mapping of str to bytes
        By the member's name.
    alignment : int, default 1
        Of the first byte of each stored member: PyTorch maps files whose tensors begin at multiples of 64.
    """
    with open_archive(path) as source, zipfile.ZipFile(target, "w") as archive:
        archive.comment = source.comment
        for member in source.infolist():
            content = changed.get(member.filename)
            if content is None:
                content = source.read(member)
            info = copy.copy(member)
            info.extra = b""
            if alignment > 1:
                # A local header has 30 bytes before the name, and an extra field 4 before its content.
                begin = target.tell() + 30 + len(info.filename.encode()) + 4
                padding = -begin % alignment
                info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, content)
