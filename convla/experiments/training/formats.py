"""The files of MNIST (IDX) and CIFAR-10 (binary and Python versions) as arrays; nothing in them is ever executed."""

from __future__ import annotations

import gzip
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import ConvlaError

__all__ = ["DatasetError", "read_cifar_binary", "read_cifar_python", "read_idx_images", "read_idx_labels"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

IMAGE = 3 * 32 * 32
CLASSES = 10


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
    data = _contents(path)
    header = 4 + 4 * axes
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DatasetError(
            f"{path}: not an IDX file: it does not begin with two zero bytes, a type and a number of axes"
        )
    if data[2] != 8 or data[3] != axes:
        found = f"type {data[2]} with {data[3]} axes"
        raise DatasetError(f"{path}: an IDX file of type 8 (bytes) with {axes} axes is wanted, got {found}")
    if len(data) < header:
        raise DatasetError(f"{path}: {len(data)} bytes are too few for the sizes of {axes} axes: truncated")
    sizes = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    wanted = 1
    for size in sizes:
        wanted *= size
    if wanted == 0 or len(data) - header != wanted:
        announced = f"{'x'.join(map(str, sizes))} values are announced, {len(data) - header} bytes follow"
        raise DatasetError(f"{path}: {announced}: truncated or damaged")
    return np.frombuffer(data, np.uint8, offset=header).reshape(sizes)


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
    data = _contents(path)
    if not data or len(data) % (1 + IMAGE):
        reason = f"{len(data)} bytes are no whole number of images of {1 + IMAGE}"
        raise DatasetError(f"{path}: {reason}: truncated or damaged")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + IMAGE)
    return rows[:, 1:].reshape(-1, 3, 32, 32), _check_labels(path, rows[:, 0])


def read_cifar_python(path: Path) -> tuple[Bytes, Bytes]:
    """Return the images, of shape (images, 3, 32, 32), and labels of a file of the Python version of CIFAR-10.

    The pickle may build dictionaries, lists, numbers, bytes and arrays of uint8; anything else that it names is
    refused before it is looked up, so that a hostile file runs nothing.

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
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except Exception as error:  # the reader of a damaged pickle may raise anything
        raise DatasetError(f"{path}: not a pickled batch of CIFAR-10: {error or type(error).__name__}") from None
    entries = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    images, labels = entries.get("data"), entries.get("labels")
    if not isinstance(images, np.ndarray) or not isinstance(labels, list):
        raise DatasetError(f"{path}: a dictionary with an array 'data' and a list 'labels' is wanted")
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != IMAGE or not len(images):
        found = f"{images.dtype} of shape {images.shape}"
        raise DatasetError(f"{path}: 'data' must be uint8 of shape (images, {IMAGE}), got {found}")
    if len(labels) != len(images) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise DatasetError(f"{path}: 'labels' must be {len(images)} integers below {CLASSES}")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


class _ArraysOnly(pickle.Unpickler):
    """Reads what NumPy writes for an array of bytes, under the names of any of its versions, and no other object."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _bytes_dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin_bytes
        raise DatasetError(f"refused: it names {module}.{name}, and a batch of CIFAR-10 holds arrays of bytes only")


def _empty_array(kind: object, *_: object) -> Bytes:
    """Stand in for `_reconstruct`: the array gets its shape and contents afterwards, one checked against the other."""
    if kind is not np.ndarray:
        raise DatasetError("refused: an array of another type than numpy.ndarray")
    return np.ndarray((0,), np.uint8)


def _bytes_dtype(kind: object, *_: object) -> np.dtype[np.uint8]:
    if kind not in ("u1", b"u1", "|u1", b"|u1"):
        raise DatasetError(f"refused: an array of {kind!r}, not of bytes")
    return np.dtype(np.uint8)


def _latin_bytes(text: object, encoding: object) -> bytes:
    """Stand in for `codecs.encode`, which pickles of protocol 2 use for bytes, and which knows less harmless codecs."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise DatasetError("refused: a string in an encoding other than latin1")
    return text.encode("latin1")


def _text(key: object) -> object:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _contents(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_labels(path: Path, labels: Bytes) -> Bytes:
    if labels.max() >= CLASSES:
        raise DatasetError(f"{path}: labels must be below {CLASSES}, got {labels.max()}")
    return labels
