"""Flax checkpoints (.msgpack): arrays by name, read as data."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import WeightsError, install_line
from convla.networks.archives import check_memory
from convla.networks.torch_files import widened
from convla.networks.weights import Weights

__all__ = ["read_msgpack"]

_ARRAY, _SCALAR = 1, 3  # the codes that Flax gives to what is no plain value


def read_msgpack(path: Path, image: Sequence[int] | None = None) -> Weights:  # noqa: ARG001  # of all readers
    """Return the arrays of a Flax checkpoint, as ``flax.serialization`` writes it; their layout is "hwio".

    Raises
    ------
    WeightsError
        If the file is malformed, or the extra ``flax`` (msgpack) is not installed.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import msgpack
    >>> from convla.networks.flax_files import read_msgpack
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.msgpack"
    ...     array = msgpack.ExtType(1, msgpack.packb(((1, 2), "float32", bytes(8))))
    ...     _ = path.write_bytes(msgpack.packb({"params": {"dense": {"kernel": array}}}))
    ...     read_msgpack(path).arrays
    {'params.dense.kernel': array([[0., 0.]], dtype=float32)}
    """
    try:
        msgpack = importlib.import_module("msgpack")
    except ImportError as error:
        raise WeightsError(f"{path}: .msgpack files need the extra flax: {install_line('flax')}") from error
    check_memory(path, 2 * path.stat().st_size)  # the file's bytes and the arrays' are there together
    content = path.read_bytes()
    try:
        tree = msgpack.unpackb(content, ext_hook=msgpack.ExtType, strict_map_key=False)
        found = Weights(layout="hwio", source={"format": "Flax"})
        for name, value in _leaves(tree, ""):
            if isinstance(value, msgpack.ExtType) and value.code in (_ARRAY, _SCALAR):
                shape, kind, data = msgpack.unpackb(value.data)
                bits = np.frombuffer(data, "<u2" if kind == "bfloat16" else np.dtype(kind).newbyteorder("<"))
                found.arrays[name], found.dtypes[name] = widened(path, bits, kind).reshape(shape), kind
            else:
                found.unread[name] = "no array"
        return found
    except WeightsError:
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is the file's fault
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: not a readable .msgpack file: {words}") from error


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    left = [(prefix, tree)]
    while left:
        name, value = left.pop(0)
        if isinstance(value, Mapping):
            start = f"{name}." if name else ""
            left = [*((f"{start}{key}", one) for key, one in value.items()), *left]
        else:
            yield name, value
