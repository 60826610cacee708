"""The results folder: what is saved of each unit, what makes two runs the same, and how a run is resumed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np

from convla.errors import ConvlaError
from convla.extending import atomic_write
from convla.networks.weights import read_weights

__all__ = ["ResultsError", "ResultsFolder", "Table", "as_records", "surroundings"]

MANIFEST = "manifest.json"

T = TypeVar("T")

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A header, and rows under it."""


class ResultsError(ConvlaError, ValueError):
    """A results folder cannot be used: not writable, made with other settings, or damaged."""


class ResultsFolder:
    """A folder that holds one run: its manifest, and one file for each unit that has ended.

    Every file is written beside its place and moved there (`convla.extending.atomic_write`), so that a kill at any
    moment, or a power cut, leaves whole files only, and what was said to be saved is there. Links in the folder that
    somebody else has planted are replaced, not followed.

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
            with tempfile.TemporaryFile(dir=self.inner("runs")):
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
        try:
            if not (self.path / MANIFEST).is_file():  # a pipe would wait for a writer
                raise FileNotFoundError
            manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ResultsError(f"{self.path / MANIFEST} cannot be read: {error}") from error
        if not isinstance(manifest, dict):
            raise ResultsError(f"{self.path / MANIFEST} is not a manifest of convla: choose another --output")
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, the identity with it."""
        text = json.dumps({"identity": self.identity, **manifest}, indent=1, ensure_ascii=False) + "\n"
        with self.writing(MANIFEST) as file:
            file.write(text.encode())

    def save(self, name: str, described: Mapping[str, Any], outcome: Any) -> None:
        """Save what a unit left, a dataclass of arrays, with what its numbers depend on."""
        arrays = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
        with self.writing(self._run_file(name)) as file:
            np.savez(file, setting=np.array(self._stamp(described)), **arrays)

    def load(self, name: str, described: Mapping[str, Any], kind: type[T], length: int) -> T | None:
        """Return what a unit left when it was run in this folder with this identity, or None.

        It is a dataclass of arrays, each with as many rows as `length` says.
        """
        path = self.path / self._run_file(name)
        try:
            data = read_weights(path)
            if str(data["setting"]) != self._stamp(described):
                return None
            outcome = kind(**{field.name: data[field.name] for field in fields(kind)})  # type: ignore[arg-type]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path} is damaged: delete it") from error
        if any(len(value) != length for value in vars(outcome).values()):
            raise ResultsError(f"{path} lacks repetitions: delete it")
        return outcome

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

    def _stamp(self, described: Mapping[str, Any]) -> str:
        return json.dumps({"setting": described, "identity": self.identity}, sort_keys=True)

    @staticmethod
    def _run_file(name: str) -> str:
        return f"runs/{name}.npz"

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of the folder for writing, all or nothing."""
        target = self.path / name
        try:
            with atomic_write(target) as file:
                yield file
        except OSError as error:
            raise ResultsError(f"{target} cannot be written: {error.strerror}") from error


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
