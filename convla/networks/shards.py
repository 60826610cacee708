"""A model that is kept in several files, as an index beside them says (model.safetensors.index.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from convla.errors import WeightsError
from convla.networks.weights import Weights, read_model

__all__ = ["read_shards"]


def read_shards(path: Path, image: Sequence[int] | None = None) -> Weights:  # noqa: ARG001  # of all readers
    """Return the arrays of a model that is kept in several files, which an index beside them lists by name.

    Raises
    ------
    WeightsError
        If the index is malformed, names a file outside of its folder, or a file lacks what it should hold.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> import numpy as np
    >>> from convla.networks.shards import read_shards
    >>> from convla.networks.weights import write_weights
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = pathlib.Path(name)
    ...     write_weights(folder / "1.npz", {"conv.weight": np.ones((2, 1, 3))})
    ...     _ = (folder / "model.index.json").write_text(json.dumps({"weight_map": {"conv.weight": "1.npz"}}))
    ...     list(read_shards(folder / "model.index.json").arrays)
    ['conv.weight']
    """
    text = path.read_bytes()
    try:
        places = json.loads(text)["weight_map"]
        files = list(dict.fromkeys(places.values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: not an index of shards, which has a weight_map: {error}") from error
    found = Weights(source={"format": "shards"})
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise WeightsError(f"{path}: names {file!r}, which is no file beside it")
        shard = read_model(path.with_name(file))
        wanted = [name for name, place in places.items() if place == file]
        for name in wanted:
            if name in shard.unread:
                found.unread[name] = shard.unread[name]
            elif name in shard.arrays:
                found.arrays[name], found.dtypes[name] = shard.arrays[name], shard.dtypes[name]
            else:
                raise WeightsError(f"{path}: {file} lacks {name!r}")
    return found
