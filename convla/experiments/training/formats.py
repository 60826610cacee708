"""The files of MNIST (IDX) and CIFAR-10 (binary and Python versions) as arrays; nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import stat
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import ConvlaError
from convla.networks.pickles import Called, Name, PickleError, read_pickle

__all__ = ["DatasetError", "read_cifar_binary", "read_cifar_python", "read_idx_images", "read_idx_labels"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

IMAGE = 3 * 32 * 32
CLASSES = 10
LARGEST = 2**30
"""Bytes that a file may have, or an IDX file announce: twenty times MNIST, and six times CIFAR-10."""

LARGEST_PICKLE = 2**26
"""Bytes of a pickled batch of CIFAR-10: twice as many as there are."""


class DatasetError(ConvlaError, ValueError):
    """A data set is not where it was looked for, or one of its files is malformed."""


def read_idx_images(path: Path) -> Bytes:
    """Return the images of an IDX file, plain or gzipped, as an array of shape (images, height, width).

    Parameters
    ----------
    path : Path
        Such as ``train-images-idx3-ubyte.gz``.

    Returns
    -------
    numpy.ndarray of uint8

    Raises
    ------
    DatasetError
        If the file cannot be read or is no such file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "train-images-idx3-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9]))
    ...     read_idx_images(path).tolist()
    [[[7, 9]]]
    """
    return _read_idx(path, 3)


def read_idx_labels(path: Path) -> Bytes:
    """Return the labels of an IDX file, plain or gzipped, as an array of shape (labels,).

    Raises
    ------
    DatasetError
        If the file cannot be read, is no such file, or holds a label above 9.
    """
    return _check_labels(path, _read_idx(path, 1))


def _read_idx(path: Path, axes: int) -> Bytes:
    with _reading(path) as file:
        start = file.read(4)
        if len(start) < 4 or start[:2] != b"\0\0":
            raise DatasetError(
                f"{path}: not an IDX file: it does not begin with two zero bytes, a type and a number of axes"
            )
        if start[2] != 8 or start[3] != axes:
            found = f"type {start[2]} with {start[3]} axes"
            raise DatasetError(f"{path}: an IDX file of type 8 (bytes) with {axes} axes is wanted, got {found}")
        header = file.read(4 * axes)
        if len(header) < 4 * axes:
            raise DatasetError(f"{path}: {4 + len(header)} bytes are too few for the sizes of {axes} axes: truncated")
        sizes = [int.from_bytes(header[4 * axis : 4 * axis + 4], "big") for axis in range(axes)]
        wanted, announced = math.prod(sizes), f"{'x'.join(map(str, sizes))} values are announced"
        if wanted > LARGEST:
            raise DatasetError(f"{path}: {announced}, and at most {LARGEST} are read: damaged")
        # One byte more than announced tells that more follow; a small gzip file may unpack to any number.
        data = file.read(wanted + 1)
    if wanted == 0 or len(data) != wanted:
        follow = "more" if len(data) > wanted else f"{len(data)} bytes"
        raise DatasetError(f"{path}: {announced}, {follow} follow: truncated or damaged")
    return np.frombuffer(data, np.uint8).reshape(sizes)


def read_cifar_binary(path: Path) -> tuple[Bytes, Bytes]:
    """Return the images, of shape (images, 3, 32, 32), and labels of a file of the binary version of CIFAR-10.

    Parameters
    ----------
    path : Path
        Such as ``data_batch_1.bin``: for each image a label, then its red, green and blue rows.

    Returns
    -------
    tuple of numpy.ndarray of uint8

    Raises
    ------
    DatasetError
        If the file cannot be read, is no whole number of images, or holds a label above 9.
    """
    with _reading(path) as file:
        data = file.read()
    if not data or len(data) % (1 + IMAGE):
        reason = f"{len(data)} bytes are no whole number of images of {1 + IMAGE}"
        raise DatasetError(f"{path}: {reason}: truncated or damaged")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + IMAGE)
    return rows[:, 1:].reshape(-1, 3, 32, 32), _check_labels(path, rows[:, 0])


def read_cifar_python(path: Path) -> tuple[Bytes, Bytes]:
    """Return the images, of shape (images, 3, 32, 32), and labels of a file of the Python version of CIFAR-10.

    The file is a pickle, of which nothing is run: it is taken to pieces as data, and the one array that is looked for
    is made here, from its bytes.

    Parameters
    ----------
    path : Path
        Such as ``data_batch_1``.

    Returns
    -------
    tuple of numpy.ndarray of uint8

    Raises
    ------
    DatasetError
        If the file cannot be read, is no such file, or names anything but arrays of uint8.
    """
    with _reading(path, LARGEST_PICKLE) as file:
        data = file.read()
    try:
        batch = read_pickle(io.BytesIO(data), _is_array)
        entries = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
        images, labels = entries.get("data"), entries.get("labels")
        if not isinstance(images, Called) or not isinstance(labels, list):
            raise DatasetError("a dictionary with an array 'data' and a list 'labels' is wanted")
        rows = _array_of_bytes(images)
    except (DatasetError, PickleError) as error:
        raise DatasetError(f"{path}: {error}") from None
    if len(labels) != len(rows) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise DatasetError(f"{path}: 'labels' must be {len(rows)} integers below {CLASSES}")
    return rows.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def _is_array(name: Name) -> bool:
    """Whether NumPy, of any version, writes this name for an array."""
    functions = {"multiarray": ("_reconstruct",), "numeric": ("_frombuffer",)}
    package, _, module = name.module.rpartition(".")
    if package in ("numpy.core", "numpy._core"):
        return name.name in functions.get(module, ())
    return name.module == "numpy" and name.name in ("ndarray", "dtype")


def _array_of_bytes(made: Called) -> Bytes:
    """Return the rows of images that a pickle describes, in either of the ways in which NumPy writes arrays."""
    layout: tuple[Any, ...] = (None, None, None, None)
    match made:
        case Called(Name(_, "_reconstruct"), (Name(_, "ndarray"), *_), (_, shape, dtype, columns_first, content)):
            layout = shape, dtype, content, "F" if columns_first else "C"
        case Called(Name(_, "_frombuffer"), (content, dtype, shape, order)):
            layout = shape, dtype, content, order
    shape, dtype, content, order = layout
    match dtype:
        case Called(Name(_, "dtype"), ("u1" | b"u1" | "|u1" | b"|u1", *_)):
            pass
        case _:
            raise DatasetError("refused: 'data' is no array of bytes")
    match shape:
        case (int() as count, int() as length) if length == IMAGE and 0 < count < LARGEST:
            pass
        case _:
            found = len(shape) if isinstance(shape, tuple) else "no"
            raise DatasetError(f"'data' must be uint8 of shape (images, {IMAGE}), got a shape of {found} sizes")
    if not isinstance(content, bytes) or count * IMAGE != len(content):
        raise DatasetError("truncated or damaged: 'data' has another shape than its bytes")
    return np.frombuffer(content, np.uint8).reshape(count, IMAGE, order="F" if order == "F" else "C")


def _text(key: object) -> object:
    return key.decode("latin1") if isinstance(key, bytes) else key


@contextlib.contextmanager
def _reading(path: Path, largest: int = LARGEST) -> Iterator[gzip.GzipFile | BufferedReader]:
    """Open a file, if it is one: a pipe or a device may have no end."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DatasetError(f"{path}: not a regular file")
        if found.st_size > largest:
            raise DatasetError(f"{path}: {found.st_size} bytes, and at most {largest} are read: no such data set")
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_labels(path: Path, labels: Bytes) -> Bytes:
    if labels.max() >= CLASSES:
        raise DatasetError(f"{path}: labels must be below {CLASSES}, got {labels.max()}")
    return labels
