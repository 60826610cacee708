"""HDF5 files read as data: arrays by their paths, and text; no links to other files are followed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from convla.errors import WeightsError, install_line
from convla.networks.archives import check_memory

__all__ = ["open_hdf5", "read_arrays"]


def open_hdf5(path: Path, content: Path | IO[bytes]) -> Any:
    """Open an HDF5 file for reading.

    Parameters
    ----------
    path : path
        What errors name.
    content : path or binary file

    Raises
    ------
    WeightsError
        If the extra ``keras`` is not installed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import h5py
    >>> from convla.networks.hdf5_files import open_hdf5, read_arrays
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.h5"
    ...     with h5py.File(path, "w") as file:
    ...         file["layer/kernel"] = [1.0, 2.0]
    ...     with open_hdf5(path, path) as file:
    ...         list(read_arrays(path, file))
    [('layer/kernel', array([1., 2.]))]
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise WeightsError(f"{path}: {path.suffix} files need the extra keras: {install_line('keras')}") from error
    return h5py.File(content, "r")


def read_arrays(path: Path, file: Any) -> Iterator[tuple[str, np.ndarray[Any, Any] | str]]:
    """Give the arrays of an open file by their paths; the reason, for what is none.

    Raises
    ------
    WeightsError
        If an array claims more memory than there is.
    """
    h5py = importlib.import_module("h5py")
    left = [("", file)]
    while left:
        prefix, group = left.pop(0)
        for name in group:
            whole = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield whole, "a link, which is not followed"
                continue
            entry = group[name]
            if isinstance(entry, h5py.Group):
                left.append((f"{whole}/", entry))
            elif entry.external or entry.is_virtual:
                yield whole, "kept in another file, which is not read"
            elif entry.dtype.kind not in "biuf":
                yield whole, f"dtype {entry.dtype}, which is not read"
            else:
                check_memory(path, int(entry.size) * entry.dtype.itemsize)
                yield whole, np.asarray(entry[()])
