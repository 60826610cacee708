"""A study of one's own: every combination of settings, cut into parts of repetitions, as a table of estimates."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from convla.errors import ConvlaError, EngineError, install_line
from convla.experiments.descents.draws import check_streams, digest
from convla.experiments.descents.functions import source_digest
from convla.experiments.descents.outcome import Outcome, run_setting, setting_engine
from convla.experiments.descents.pairs import OPTIMIZERS
from convla.experiments.descents.quantities import estimate_stream
from convla.experiments.descents.settings import NAMED_LOSSES, Setting
from convla.experiments.folder import ResultsError, ResultsFolder, read_manifest, surroundings
from convla.experiments.pool import Pool, Workers
from convla.experiments.reading import read_toml
from convla.experiments.records import DamagedRecordError, RecordFile, key_of
from convla.experiments.session import Job, Part, Session, Watcher
from convla.extending import check_integer

__all__ = ["AXES", "Numbered", "Study", "StudyError", "StudyResult", "read_outcomes", "read_rows", "read_study"]

AXES = tuple(field.name for field in fields(Setting))
REQUIRED = tuple(field.name for field in fields(Setting) if field.default is MISSING)
MOST_SETTINGS = 10**4
MOST_REPETITIONS = 10**9
RESULT = ("engine", "repetitions", "quantity", "estimate", "stderr", "number")
FILE = "results.csv"

Files: TypeAlias = tuple[tuple[str, str], ...]


class StudyError(ConvlaError, ValueError):
    """A study is malformed: an unknown key, a missing one, or a value that it cannot have."""


@dataclass(frozen=True)
class Numbered:
    """A setting of a study, and the files that it reads."""

    setting: Setting
    number: int
    files: Files
    """Hashes of them, as the process that asks for it found them."""

    @property
    def name(self) -> str:
        """The name of its file, which follows from what it is: in another study the same setting is found there."""
        return f"setting-{key_of(json.dumps(self.describe(), sort_keys=True)).hex()[:16]}"

    @property
    def title(self) -> str:
        """What a screen calls it."""
        return f"setting {self.number}"

    def describe(self) -> dict[str, Any]:
        """Return it as plain data, with what its numbers depend on beside the seed."""
        return {"setting": self.setting.describe(), "files": dict(self.files)}


def _files(setting: Setting) -> Files:
    """Return hashes of the files of arrays and of Python that a setting names, as they are now."""
    found = {"weights": digest(setting.weights), "inputs": digest(setting.inputs)}
    if setting.loss not in NAMED_LOSSES:
        found["loss"] = source_digest(setting.loss)
    if setting.optimizer not in OPTIMIZERS:
        found["optimizer"] = source_digest(setting.optimizer)
    return tuple(found.items())


@dataclass(frozen=True)
class _Work(Job[Numbered, Outcome]):
    repetitions: int
    seed: int
    engine: str
    part: int | None

    kind: ClassVar[type[Any]] = Outcome

    def describe(self, unit: Numbered) -> dict[str, Any]:
        # The GPU's numbers are others, to rounding; those of the other engines are the same.
        return unit.describe() | ({"engine": "cuda"} if self.engine == "cuda" else {})

    def size(self, unit: Numbered) -> int:  # noqa: ARG002
        return self.repetitions

    def cut(self, unit: Numbered) -> int:
        return self.part or unit.setting.part

    def __call__(self, part: Part[Numbered], advance: Callable[[int], None] = lambda _: None) -> Outcome:
        _check_files(part.unit)
        outcome = run_setting(
            part.unit.setting,
            repetitions=part.rows,
            start=part.start,
            seed=self.seed,
            engine=self.engine,
            advance=advance,
        )
        _check_files(part.unit)
        return outcome


def _check_files(unit: Numbered) -> None:
    """Raise if a file that the setting reads is not the one that the study began with."""
    differing = [getattr(unit.setting, kind) for kind, _ in set(_files(unit.setting)) - set(unit.files)]
    if differing:
        raise StudyError(
            f"{', '.join(differing)} is not what the study began with: it was edited meanwhile, or a worker has "
            "another copy; --resume begins what depends on it anew"
        )


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes
    ----------
    rows : list of dict
        One for each setting and quantity: the attributes of the setting, "engine", "repetitions", "quantity",
        "estimate", "stderr" and "number", which is how many repetitions entered the estimate.
    folder : Path
        The results folder, with these rows in ``results.csv`` and every repetition in ``runs``.
    engines : dict of str to int
        How many settings each engine ran.
    seconds : float
    """

    rows: list[dict[str, Any]]
    folder: Path
    engines: dict[str, int]
    seconds: float


class Study:
    """Descents on kernels under every combination of some settings.

    Parameters
    ----------
    repetitions : int, default 1000
        Of every setting.
    seed : int, default 0
    title : str, optional
    together : sequence of mapping, optional
        Settings whose values go together: each entry is combined with all the others' values.
    **settings
        The attributes of `convla.experiments.descents.settings.Setting`: each a value, a list or range of values, or a
        mapping with "from", "to" and perhaps "step", the end included.

    Raises
    ------
    StudyError
        If a setting is unknown, missing, given twice, or has an impossible value.

    Examples
    --------
    >>> import tempfile
    >>> study = Study(N=[3, 5], M=16, inputs="normal", loss="convolutional", learning_rate=0.01, iterations=50,
    ...               repetitions=200)
    >>> [(setting.N, setting.loss) for setting in study.settings]
    [(3, 'convolutional'), (5, 'convolutional')]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = study.run(folder).rows
    >>> [row["quantity"] for row in rows if row["N"] == 5][:3]
    ['correlation', 'correlation_std', 'decreased_pct']
    """

    def __init__(
        self,
        *,
        repetitions: int = 1000,
        seed: int = 0,
        title: str = "",
        together: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        try:
            self.repetitions = check_integer("repetitions", repetitions, minimum=1, maximum=MOST_REPETITIONS)
            self.seed = check_integer("seed", seed, minimum=0)
            if not isinstance(title, str):
                raise TypeError(f"title must be a text, got {title!r}")
            self.title = title
            self.settings = tuple(dict.fromkeys(_combinations(settings, together)))
            check_streams(self.settings)
        except (TypeError, ValueError) as error:
            raise StudyError(str(error)) from error

    def repeated(self, repetitions: int) -> Study:
        """Return the same study with another number of repetitions."""
        changed = copy.copy(self)
        changed.repetitions = check_integer("repetitions", repetitions, minimum=1, maximum=MOST_REPETITIONS)
        return changed

    def units(self) -> list[Numbered]:
        """Return the settings with the files that they read, as they are now."""
        return [Numbered(setting, number, _files(setting)) for number, setting in enumerate(self.settings, 1)]

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers of all parts depend on."""
        return {"seed": self.seed, "convla": metadata.version("convla")}

    def run(
        self,
        output: str | os.PathLike[str],
        *,
        engine: str = "auto",
        pool: Pool | None = None,
        part: int | None = None,
        resume: bool = False,
        parquet: bool = False,
        watcher: Watcher | None = None,
    ) -> StudyResult:
        """Run all settings, save every part as it ends, and estimate the quantities.

        The numbers are the same bit for bit for every pool, number of workers and size of the parts.

        Parameters
        ----------
        output : path
            The results folder.
        engine : {"auto", "reference", "numba", "cuda"}
        pool : Pool, optional
            Where it is run; by default on this process's threads.
        part : int, optional
            Repetitions of a part; by default as many as take about a second.
        resume : bool, default False
            Take from the folder the repetitions that are there, however they were cut.
        parquet : bool, default False
            Write ``results.parquet``, too, which needs the extra ``parquet``.
        watcher : Watcher, optional
            Who is told how it goes.

        Returns
        -------
        StudyResult

        Raises
        ------
        ResultsError
            If the results folder cannot be used, or holds a study of other settings and `resume` is False.
        EngineError
            If the engine, the executor or pyarrow is not available, or the engine does not run a setting.
        """
        began = time.perf_counter()
        engines = [setting_engine(setting, engine) for setting in self.settings]
        if part is not None:
            part = check_integer("part", part, minimum=1)
        writer = _parquet() if parquet else None
        units = self.units()
        work = _Work(self.repetitions, self.seed, engine, part)
        with contextlib.ExitStack() as stack:
            workers = stack.enter_context(Workers(pool or Pool(threads=os.cpu_count() or 1)))
            folder = ResultsFolder(output, self.identity)
            stack.enter_context(folder.locked())
            manifest = self._manifest(folder, work, units, engines, resume=resume)
            session: Session[Numbered, Outcome] = Session(folder, workers, watcher, resume=resume)
            session.announce([(work, units)])
            session.run(work, units)
            rows = list(self._rows(session, work, units, engines))
            header = (*AXES, *RESULT)
            folder.write_csv(FILE, header, [[row[name] for name in header] for row in rows])
            if writer is not None:
                with folder.writing("results.parquet") as file:
                    writer(rows, file)
            seconds = time.perf_counter() - began
            done = {"complete": True, "seconds": round(seconds, 3)}
            done |= {"resumed_parts": session.resumed, "damaged_records": session.damaged}
            folder.write_manifest(manifest | done)
        return StudyResult(rows, folder.path, manifest["engines"], seconds)

    def _manifest(
        self, folder: ResultsFolder, work: _Work, units: Sequence[Numbered], engines: Sequence[str], *, resume: bool
    ) -> dict[str, Any]:
        """Write what is going to be run, unless the folder holds another study, and return it."""
        manifest = {
            "complete": False,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "title": self.title,
            "repetitions": self.repetitions,
            "engines": {name: engines.count(name) for name in dict.fromkeys(engines)},
            **surroundings(("convla", "numpy", "scipy", "numba", "array-api-compat")),
            "settings": [setting.describe() for setting in self.settings],
            "runs": [{"file": folder.file_of(u.name), "key": folder.key(work.describe(u)).hex()} for u in units],
        }
        if not resume and folder.read_manifest().get("settings", manifest["settings"]) != manifest["settings"]:
            raise ResultsError(
                f"the results folder {folder.path} holds a study of other settings: choose another --output, or "
                "--resume to keep what is the same"
            )
        folder.write_manifest(manifest)
        return manifest

    def _rows(
        self, session: Session[Numbered, Outcome], work: _Work, units: Sequence[Numbered], engines: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        for unit, engine in zip(units, engines, strict=True):
            for quantity, found in estimate_stream(session.outcomes(work, unit)).items():
                values = (engine, self.repetitions, quantity, found.value, found.stderr, found.count)
                yield unit.setting.describe() | dict(zip(RESULT, values, strict=True))


def _parquet() -> Callable[[list[dict[str, Any]], Any], None]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EngineError(f"Parquet files need pyarrow: {install_line('parquet')}") from error

    def write(rows: list[dict[str, Any]], file: Any) -> None:
        # A padding is a word or a number: in a column of one type, words.
        parquet.write_table(pyarrow.Table.from_pylist([row | {"padding": str(row["padding"])} for row in rows]), file)

    return write


def _combinations(settings: Mapping[str, Any], together: Sequence[Mapping[str, Any]]) -> Iterator[Setting]:
    groups = [dict(group) for group in together] or [{}]
    for place, group in enumerate(groups, 1):
        twice = [key for key in group if key in settings]
        if twice:
            raise ValueError(f"entry {place} of together: {twice[0]} is given outside it, too")
        given = {**settings, **group}
        for key in given:
            if key not in AXES:
                known = ", ".join(("title", "repetitions", "seed", "together", *AXES))
                raise ValueError(f"unknown key {key!r}; known are {known}")

        for key in REQUIRED:
            if key not in given:
                raise ValueError(f"lacks the key {key!r}")
        values = {key: _values(key, value) for key, value in given.items()}
        if math.prod(map(len, values.values())) * len(groups) > MOST_SETTINGS:
            raise ValueError(f"there must be at most {MOST_SETTINGS} settings")
        for chosen in itertools.product(*values.values()):
            setting = Setting(**dict(zip(values, chosen, strict=True)))
            try:
                stream = setting.stream.format(**setting.describe())
            except (KeyError, IndexError) as error:
                raise ValueError(f"stream names {error}, which is no setting: {setting.stream!r}") from error
            except ValueError as error:
                raise ValueError(f"stream must be a text with settings in braces, got {setting.stream!r}") from error
            yield replace(setting, stream=stream)


def _values(key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        unknown = [name for name in value if name not in ("from", "to", "step")]
        if unknown or "from" not in value or "to" not in value:
            raise ValueError(f"{key} must be a range like {{ from = 3, to = 25, step = 2 }}, got {dict(value)!r}")
        first, last, step = (check_integer(key, value.get(name, 1)) for name in ("from", "to", "step"))
        if step < 1 or last < first:
            raise ValueError(f"{key}: a range goes up, got {dict(value)!r}")
        return range(first, last + 1, step)
    if isinstance(value, list | tuple | range):
        if not value:
            raise ValueError(f"{key} must have at least one value")
        return value
    return (value,)


def read_study(path: str | os.PathLike[str]) -> Study:
    """Return the study that a TOML file describes: its keys are the parameters of `Study`.

    Files that it names, of arrays or of Python, are found from its own folder.

    Raises
    ------
    StudyError
        If there is no such file, or it is malformed.
    """
    place = Path(path)
    data = read_toml(place, str(place), StudyError)
    found = functools.partial(_found, place.parent)
    try:
        together = data.pop("together", [])
        if not isinstance(together, list) or not all(isinstance(group, dict) for group in together):
            raise TypeError("together must be a list of tables, each beginning with [[together]]")
        groups = [{key: found(key, value) for key, value in group.items()} for group in together]
        return Study(**{key: found(key, value) for key, value in data.items()}, together=groups)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{place}: {error}") from error


def read_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a study from its results folder; numbers as numbers.

    Raises
    ------
    StudyError
        If they are not there, or not of a study.
    """
    path = Path(folder) / FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    if not rows or list(rows[0]) != [*AXES, *RESULT]:
        raise StudyError(f"{path} does not hold the results of a study")
    return [{name: _number(value) for name, value in row.items()} for row in rows]


def read_outcomes(folder: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Outcome]]:
    """Yield what every repetition of a study left, some at a time: their setting, and arrays with a row for each.

    Settings and repetitions are in their order; memory does not grow with their number.

    Raises
    ------
    StudyError
        If they are not there, or not of a study.
    ResultsError
        If some are missing or damaged: the study with ``--resume`` runs them again.

    Examples
    --------
    >>> import tempfile
    >>> study = Study(N=[3, 5], M=16, loss="kernel", learning_rate=0.01, iterations=5, repetitions=70)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = study.run(folder, part=50)
    ...     [(setting["N"], outcome.repetitions) for setting, outcome in read_outcomes(folder)]
    [(3, 50), (3, 20), (5, 50), (5, 20)]
    """
    place = Path(folder)
    manifest = read_manifest(place)
    try:
        repetitions, settings = int(manifest["repetitions"]), list(manifest["settings"])
        files = [(place / run["file"], bytes.fromhex(run["key"])) for run in manifest["runs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{place} does not hold a study") from error
    for setting, (path, key) in zip(settings, files, strict=True):
        try:
            for _, arrays in RecordFile(path, key).rows(0, repetitions):
                yield setting, Outcome(*arrays)
        except (OSError, IndexError, DamagedRecordError) as error:
            raise ResultsError(f"{path}: repetitions are missing or damaged: --resume runs them again") from error


def _number(text: str) -> Any:
    if not text:
        return math.nan
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _found(folder: Path, key: str, value: Any) -> Any:
    """Return a value with the files in it named from the study's folder."""
    if isinstance(value, list):
        return [_found(folder, key, entry) for entry in value]
    is_file = isinstance(value, str) and (
        (key in ("weights", "inputs") and value.endswith(".npy"))
        or (key in ("loss", "optimizer") and value.rpartition(":")[0].endswith(".py"))
    )
    return str(folder / value) if is_file else value
