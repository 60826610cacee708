"""The results folder: what is saved of each unit, what makes two runs the same, and how a run is resumed."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TypeAlias

from convla.errors import ConvlaError
from convla.experiments.records import Key, RecordFile, key_of
from convla.extending import atomic_write

fcntl: ModuleType | None
msvcrt: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

__all__ = ["ResultsError", "ResultsFolder", "Table", "as_records", "read_manifest", "surroundings"]

MANIFEST = "manifest.json"
RUNS = "runs"

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A header, and rows under it."""


class ResultsError(ConvlaError, ValueError):
    """A results folder cannot be used: not writable, made with other settings, or damaged."""


class ResultsFolder:
    """A folder that holds one run: its manifest, and for each unit a file of records, to which parts are appended.

    Every other file is written beside its place and moved there (`convla.extending.atomic_write`), so that a kill at
    any moment, or a power cut, leaves whole files and records only, and what was said to be saved is there. Links in
    the folder that somebody else has planted are replaced, not followed.

    Parameters
    ----------
    path : str or path-like
        Made if it does not exist.
    identity : mapping
        What makes two runs the same run: the seed, the repetitions, the readings.

    Raises
    ------
    ResultsError
        If the folder cannot be written, or holds a run with another identity.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.inner(RUNS)):
                pass
        except OSError as error:
            raise ResultsError(f"the results folder {self.path} cannot be written: {error.strerror}") from error
        self._check_identity()

    def inner(self, name: str) -> Path:
        """Return a folder in this one, made if it does not exist.

        Raises
        ------
        ResultsError
            If there is a link in its place, which leads to a folder of somebody's choosing.
        """
        folder = self.path / name
        if folder.is_symlink():
            raise ResultsError(f"the results folder {self.path} cannot be written: {name} in it is a symbolic link")
        folder.mkdir(exist_ok=True)
        return folder

    def _check_identity(self) -> None:
        if not (self.path / MANIFEST).exists():
            return
        found = self.read_manifest().get("identity")
        if not isinstance(found, dict):
            raise ResultsError(f"{self.path / MANIFEST} is not a manifest of convla: choose another --output")
        differing = [key for key in self.identity if found.get(key) != self.identity[key]]
        if differing:
            made = ", ".join(f"{key} = {found.get(key)}" for key in differing)
            asked = ", ".join(f"{key} = {self.identity[key]}" for key in differing)
            raise ResultsError(
                f"the results folder {self.path} was made with {made}, not {asked}: choose another --output"
            )

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, or an empty one."""
        return read_manifest(self.path)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, the identity with it."""
        text = json.dumps({"identity": self.identity, **manifest}, indent=1, ensure_ascii=False) + "\n"
        with self.writing(MANIFEST) as file:
            file.write(text.encode())

    def records(self, name: str, described: Mapping[str, Any]) -> RecordFile:
        """Return the file of what a unit leaves, and of what its numbers depend on beside the identity.

        Raises
        ------
        ResultsError
            If it is there and cannot be read.
        """
        path = self.path / self.file_of(name)
        try:
            return RecordFile(path, self.key(described))
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror}") from error

    @staticmethod
    def file_of(name: str) -> str:
        """Return where a unit's file is in the folder."""
        return f"{RUNS}/{name}.records"

    def key(self, described: Mapping[str, Any]) -> Key:
        """Return what tells the records of a unit from those of others."""
        return key_of(json.dumps({"setting": described, "identity": self.identity}, sort_keys=True))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder, until the end of this process at the latest.

        Raises
        ------
        ResultsError
            If another run is in it.
        """
        path = self.path / RUNS / "lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise ResultsError(f"{path} cannot be written: {error.strerror}") from error
        with open(handle, "r+b") as file:
            if not _locks(file):
                owner = file.read(200).decode(errors="replace").strip()
                raise ResultsError(
                    f"the results folder {self.path} is in use by another run{f', {owner}' if owner else ''}: wait for "
                    "its end, or choose another --output"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            file.flush()
            yield

    def write_tables(self, tables: Mapping[str, Table]) -> list[str]:
        """Write tables, as CSV files under their names, and return these."""
        for name, (header, rows) in tables.items():
            self.write_csv(name, header, rows)
        return list(tables)

    def write_csv(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table; floats in full precision, NaN as an empty field."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if value != value else value for value in row] for row in rows])
        with self.writing(name) as file:
            file.write(text.getvalue().encode())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of the folder for writing, all or nothing."""
        target = self.path / name
        try:
            with atomic_write(target) as file:
                yield file
        except OSError as error:
            raise ResultsError(f"{target} cannot be written: {error.strerror}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a results folder, or an empty one.

    Raises
    ------
    ResultsError
        If it cannot be read, or is none.
    """
    path = folder / MANIFEST
    try:
        if not path.is_file():  # a pipe would wait for a writer
            raise FileNotFoundError
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise ResultsError(f"{path} is not a manifest of convla: choose another --output")
    return manifest


def _locks(file: IO[bytes]) -> bool:
    """Return whether no other process has locked a file; it stays locked until it is closed."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        # Some network file systems have no locks: it goes without.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def as_records(table: Table) -> list[dict[str, Any]]:
    """Return the rows of a table as plain data, for JSON; what is not finite as None."""
    header, rows = table
    return [
        dict(zip(header, (None if isinstance(v, float) and not math.isfinite(v) else v for v in row), strict=True))
        for row in rows
    ]


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Return what a manifest says of where a run was made: the versions of Python and of packages, and the platform."""
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
