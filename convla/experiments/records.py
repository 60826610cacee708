"""A file of arrays that grows: rows from here to there, in any order, each piece checked when it is read.

A record is a header and the arrays one after the other as NumPy writes them (``.npy``), so that 10^6 pieces of work are
one file and not 10^6. Pieces are appended as they end; a kill or a power cut leaves at most a broken end, which is
found and taken off. Header and arrays carry their BLAKE2 hash: what is damaged is told apart from what is not, wherever
it is, and lost alone.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

__all__ = ["DamagedRecordError", "Key", "RecordFile", "key_of"]

Key = bytes
"""What rows belong to: a hash of everything that their numbers depend on."""

MAGIC = b"\x93CONVLA\n"
FIELDS = struct.Struct("<8s16sqqq16s")
"""Of a header: `MAGIC`, the key, the first row and the one after the last, the bytes of the arrays and their hash."""
CHECK = 8
"""Bytes of the header's own hash, which ends it."""
HEADER = FIELDS.size + CHECK
BUFFERED = 2**12
"""Bytes that are read at a time where headers are looked at one after the other."""
PREFIX = 10
"""Bytes of a ``.npy`` before its header in words, whose length the last two say."""
SOUGHT = 2**20
"""Bytes in which the next header is sought at a time behind a damaged one."""


class DamagedRecordError(Exception):
    """The arrays of records are not those that were written."""


def key_of(text: str) -> Key:
    """Return the key of what a text describes."""
    return _hash(text.encode(), 16)


class RecordFile:
    """The records of one key in a file; those of others are passed over, and kept.

    24 bytes are kept in memory for each record, its arrays on the disk alone.

    Parameters
    ----------
    path : Path
        Read when it is there, from header to header; made when something is appended.
    key : bytes

    Attributes
    ----------
    damaged : int
        How many places of the file could not be read as a record so far; an end that was cut off is one.

    Raises
    ------
    OSError
        If the file is there and cannot be read.
    """

    def __init__(self, path: Path, key: Key) -> None:
        self.path, self.key = path, key
        self.damaged = 0
        self._columns = array("q"), array("q"), array("q")  # first row, the one after the last, place in the file
        self._end = 0
        if path.exists():
            with self._open(os.O_RDONLY) as file:
                self._scan(file, os.fstat(file.fileno()).st_size)

    def __len__(self) -> int:
        return len(self._columns[0])

    def _open(self, flags: int) -> BinaryIO:
        # Never through a link that somebody else has planted.
        handle = os.open(self.path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
        return os.fdopen(handle, "rb" if flags == os.O_RDONLY else "r+b", buffering=BUFFERED)

    def _scan(self, file: BinaryIO, size: int) -> None:
        place, whole = 0, True
        while place < size:
            header = _header(file, place)
            if header is not None and place + HEADER + header.length <= size:
                whole = True
                if header.key == self.key:
                    self._note(header.start, header.stop, place)
                self._end = place = place + HEADER + header.length
            else:
                self.damaged += whole
                whole = False
                place = _next_magic(file, place + 1, size)

    def _note(self, start: int, stop: int, place: int) -> None:
        for column, value in zip(self._columns, (start, stop, place), strict=True):
            column.append(value)

    def append(self, start: int, stop: int, arrays: Sequence[Any]) -> None:
        """Write rows at the end of the file; they are there for good when `flush` has returned."""
        body = io.BytesIO()
        for values in arrays:
            np.lib.format.write_array(body, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
        payload = body.getvalue()
        fields = FIELDS.pack(MAGIC, self.key, start, stop, len(payload), _hash(payload, 16))
        with self._open(os.O_RDWR | os.O_CREAT) as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(fields + _hash(fields, CHECK) + payload)
        self._note(start, stop, self._end)
        self._end += HEADER + len(payload)

    def flush(self) -> None:
        """Wait until the disk has what was written, so that a power cut loses nothing but its name in the folder."""
        with self._open(os.O_RDWR) as file:
            os.fsync(file.fileno())

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        self._columns = array("q"), array("q"), array("q")
        self._end = self.damaged = 0

    def count(self, size: int) -> int:
        """Return how many records have rows before `size`; of those that begin at the same one, one counts."""
        starts = np.unique(np.array(self._columns[0], dtype=np.int64))
        return int(np.searchsorted(starts, size))

    def missing(self, size: int) -> list[tuple[int, int]]:
        """Return which of the rows before `size` no record has, as ranges."""
        starts, stops, _ = self._in_order()
        reach = np.concatenate([[0], np.minimum(np.maximum.accumulate(stops), size)])
        begin = np.concatenate([np.minimum(starts, size), [size]])
        gaps = np.flatnonzero(reach < begin)
        return [(int(reach[gap]), int(begin[gap])) for gap in gaps]

    def rows(self, start: int, size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield the rows from `start` to before `size`, each once and in order: where a piece ends, and its arrays.

        Records may overlap, as of runs that were cut otherwise: of a damaged one, rows that others have are not lost.

        Raises
        ------
        DamagedRecordError
            If arrays are not those that were written, and no other record has their rows. The damaged records count as
            missing then; rows before them have been yielded.
        """
        if start >= size:
            return
        with self._open(os.O_RDONLY) as file:
            while start < size:
                covering = self._covering(start, size)
                for first, place, stop in covering:
                    arrays = _arrays(file, place)
                    if arrays is None:
                        self._drop([place, *(p for _, p, _ in covering if _arrays(file, p) is None)])
                        if any(last > start for _, last in self.missing(size)):
                            raise DamagedRecordError
                        break  # others have its rows
                    yield stop, [values[start - first : stop - first] for values in arrays]
                    start = stop

    def _covering(self, start: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield records that together have the rows: the first row of each, its place, and which row to stop before.

        Of those that begin in time the one that reaches farthest comes next.
        """
        starts, stops, places = self._in_order()
        number = 0
        while start < size:
            best, reach = -1, start
            while number < len(starts) and starts[number] <= start:
                if stops[number] > reach:
                    best, reach = number, int(stops[number])
                number += 1
            if best < 0:
                raise IndexError(f"{self.path} lacks row {start}")
            start = min(reach, size)
            yield int(starts[best]), int(places[best]), start

    def _in_order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return first rows, last rows and places by the first row, of equal ones what was written last first."""
        starts, stops, places = (np.array(column, dtype=np.int64) for column in self._columns)
        order = np.lexsort((-places, starts))
        return starts[order], stops[order], places[order]

    def _drop(self, places: list[int]) -> None:
        self.damaged += len(places)
        kept = np.isin(np.array(self._columns[2]), places, invert=True)
        starts, stops, begins = (array("q", np.array(column)[kept].tobytes()) for column in self._columns)
        self._columns = starts, stops, begins


class _Header(NamedTuple):
    key: Key
    start: int
    stop: int
    length: int
    """Of the arrays, in bytes."""
    check: bytes
    """Their hash."""


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


def _header(file: BinaryIO, place: int) -> _Header | None:
    """Return the header at a place, or None where there is none."""
    file.seek(place)
    data = file.read(HEADER)
    if len(data) != HEADER or _hash(data[: FIELDS.size], CHECK) != data[FIELDS.size :]:
        return None
    magic, *fields = FIELDS.unpack(data[: FIELDS.size])
    header = _Header(*fields)
    # A hash is no signature: a header that leads backwards, from somebody's hand, would be read for ever.
    return header if magic == MAGIC and 0 <= header.start <= header.stop and header.length >= 0 else None


def _arrays(file: BinaryIO, place: int) -> list[np.ndarray] | None:
    """Return the arrays of the record at a place, or None where they are not those that were written."""
    try:
        header = _header(file, place)
        payload = b"" if header is None else file.read(header.length)
    except OSError:  # the disk cannot read it either
        return None
    if header is None or len(payload) != header.length or _hash(payload, len(header.check)) != header.check:
        return None
    arrays, place = [], 0
    while place < len(payload):
        begin = place + PREFIX + int.from_bytes(payload[place + PREFIX - 2 : place + PREFIX], "little")
        shape, dtype = _layout(payload[place:begin])
        count = math.prod(shape)
        arrays.append(np.frombuffer(payload, dtype, count, begin).reshape(shape))
        place = begin + count * dtype.itemsize
    return arrays


@functools.lru_cache
def _layout(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return what the header of a ``.npy`` says, which takes longer to read than a small array."""
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header[PREFIX - 2 :]))
    return shape, dtype


def _next_magic(file: BinaryIO, place: int, size: int) -> int:
    """Return where the next header may begin, or the size of the file."""
    while place < size:
        file.seek(place)
        found = file.read(SOUGHT + len(MAGIC)).find(MAGIC)
        if found >= 0:
            return place + found
        place += SOUGHT
    return size
