"""Files of models: which reader takes one, by its ending; those of weights alone are in `convla.networks.weights`."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convla.errors import WeightsError, install_line
from convla.networks.graph import Network
from convla.networks.weights import WEIGHT_FORMATS, Weights, read_model

__all__ = ["MODEL_FORMATS", "open_module", "read_file"]

_READERS = {
    ".onnx": ("convla.networks.onnx_files", "read_onnx"),
    ".pt2": ("convla.frameworks.torch.exported", "read_program"),
    ".msgpack": ("convla.networks.flax_files", "read_msgpack"),
    ".index.json": ("convla.networks.shards", "read_shards"),
    **dict.fromkeys((".keras", ".h5", ".hdf5"), ("convla.networks.keras_files", "read_keras")),
}
"""By ending: the module of a reader and its name; each imports what its format needs when it is called.

That of exported programs stands above this package, with the framework that it needs.
"""

_MODULES = {
    ".pt2": ("convla.frameworks.torch.exported", "open_program"),
    ".onnx": ("convla.frameworks.torch.onnx_modules", "open_onnx"),
}
"""By ending: what opens a graph as a module of PyTorch, which can be differentiated."""

_PROGRAMS = (".jit", ".ts", ".torchscript")

MODEL_FORMATS = (*WEIGHT_FORMATS, *_READERS)


def read_file(path: Path, image: Sequence[int] | None = None) -> Network | Weights:
    """Return the network in a file, or its weights where it holds no graph.

    Parameters
    ----------
    path : path
    image : sequence of int, optional
        The sizes of the network's input behind its channels, where a graph leaves them open.

    Raises
    ------
    WeightsError
        If the file is malformed, of an unknown format, or what reads its format is not installed.
    OSError
        If there is no such file, or it may not be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.networks.files import read_file
    >>> from convla.networks.weights import write_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     write_weights(path, {"conv.weight": np.ones((2, 1, 3))})
    ...     list(read_file(path).arrays)
    ['conv.weight']
    """
    if path.is_dir():
        raise WeightsError(f"{path}: a folder; give a file, or for shards their .index.json")
    if path.is_file() and path.stat().st_size == 0:
        raise WeightsError(f"{path}: an empty file")
    ending = next((one for one in _READERS if path.name.endswith(one)), None)
    if ending is not None:
        found: Network | Weights = _imported(path, *_READERS[ending])(path, image)
    else:
        if path.suffix in _PROGRAMS:
            raise WeightsError(
                f"{path}: a TorchScript archive, which is a program; save its weights as "
                "torch.save(torch.jit.load(...).state_dict(), ...), or the model as ONNX or by torch.export"
            )
        if path.suffix not in WEIGHT_FORMATS:
            raise WeightsError(f"{path}: the name must end in one of {', '.join(MODEL_FORMATS)}")
        found = read_model(path)
    return replace(found, source={"file": str(path), "sha256": _digest(path), **found.source})


def open_module(path: Path, image: Sequence[int] | None = None) -> Any:
    """Return the network in a file as a module of PyTorch, whose Jacobian can be taken.

    Raises
    ------
    ValueError
        If files of this kind are not opened so.
    WeightsError
        As `read_file`.
    """
    ending = next((one for one in _MODULES if path.name.endswith(one)), None)
    if ending is None:
        raise ValueError(f"data are of use for modules and for files in {', '.join(_MODULES)}, got {path}")
    module, _ = _imported(path, *_MODULES[ending])(path, image)
    return module


def _imported(path: Path, module: str, name: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise WeightsError(f"{path}: this needs the extra torch: {install_line('torch')}") from error
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
