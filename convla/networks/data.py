"""The inputs of a network in a file, at which its Jacobian is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import WeightsError
from convla.networks.weights import read_model

__all__ = ["read_data"]


def read_data(path: str | os.PathLike[str]) -> tuple[np.ndarray[Any, Any], ...]:
    """Return the arrays of a .npy or .npz file, in the file's order: the inputs of a network.

    Parameters
    ----------
    path : path

    Raises
    ------
    WeightsError
        If it is none, or holds other than numbers.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.networks.data import read_data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "x.npy"
    ...     np.save(path, np.zeros((1, 3, 8, 8), np.float32))
    ...     [array.shape for array in read_data(path)]
    [(1, 3, 8, 8)]
    """
    path = Path(path)
    if path.suffix == ".npz":
        return tuple(read_model(path).arrays.values())
    if path.suffix != ".npy":
        raise WeightsError(f"{path}: data are read from .npy and .npz files")
    try:
        with path.open("rb") as stream:
            array: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is the file's fault
        raise WeightsError(f"{path}: not a readable .npy file: {' '.join(str(error).split())[:200]}") from error
    if array.dtype.kind not in "biuf":
        raise WeightsError(f"{path}: data must be numbers, got dtype {array.dtype}")
    return (array,)
