"""Keras files, .keras and .h5: the layers that the configuration lists, with their weights; nothing is built."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import ConvlaError, WeightsError
from convla.networks.archives import open_archive
from convla.networks.graph import Network, Node
from convla.networks.hdf5_files import open_hdf5, read_arrays
from convla.networks.keras_steps import STEPS, Step
from convla.networks.torch_files import widened
from convla.networks.weights import Weights

__all__ = ["read_keras"]

_CONTAINERS = ("Functional", "Model", "Sequential")


def read_keras(path: Path, image: Sequence[int] | None = None) -> Network | Weights:
    """Return the network of a Keras file, or its weights where it holds no configuration.

    Parameters
    ----------
    path : path
        A .keras file; an .h5 file of a whole model or of weights alone.
    image : sequence of int, optional
        The sizes of the input without its channels, where the file leaves them open; a batch is taken as 1.

    Returns
    -------
    Network or Weights
        Weights have the layout "hwio".

    Raises
    ------
    WeightsError
        If the file is malformed, or the extra ``keras`` (h5py) is not installed.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import h5py
    >>> import numpy as np
    >>> from convla.networks.keras_files import read_keras
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.h5"
    ...     with h5py.File(path, "w") as file:
    ...         file["conv/kernel"] = np.ones((3, 3, 1, 2))
    ...     read_keras(path).layout
    'hwio'
    """
    with path.open("rb"):  # an unreadable file is an OSError of its own
        pass
    try:
        if path.suffix == ".keras":
            with open_archive(path) as archive:
                config = json.loads(archive.read("config.json"))
                with open_hdf5(path, io.BytesIO(archive.read("model.weights.h5"))) as file:
                    weights = _weights(path, file)
        else:
            with open_hdf5(path, path) as file:
                text = file.attrs.get("model_config")
                config = None if text is None else json.loads(text)
                weights = _weights(path, file)
        if config is None:
            return weights
        return _Reader(path, weights, config["config"], config["class_name"], image).network()
    except ConvlaError:
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is the file's fault
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: not a readable {path.suffix} file: {words}") from error


def _weights(path: Path, file: Any) -> Weights:
    found = Weights(layout="hwio", source={"format": "Keras"})
    for name, entry in read_arrays(path, file):
        if isinstance(entry, str):
            found.unread[name] = entry
        elif "optimizer" not in name.split("/")[0]:
            found.arrays[name], found.dtypes[name] = widened(path, entry, entry.dtype.name), entry.dtype.name
        else:
            found.unread[name] = "part of an optimizer's state"
    return found


class _Reader:
    """Goes through the layers of a configuration, and keeps which node holds the value of each."""

    def __init__(
        self,
        path: Path,
        weights: Weights,
        config: Mapping[str, Any],
        kind: str,
        image: Sequence[int] | None,
    ) -> None:
        if kind not in _CONTAINERS:
            raise WeightsError(f"{path}: a model of the class {kind!r}, which only its own code can build")
        self.path, self.weights, self.config, self.kind, self.image = path, weights, config, kind, image
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, str] = {}  # the node behind each layer's value
        self._used: dict[str, int] = {}

    def network(self) -> Network:
        """Return the whole as a network."""
        layers = self.config["layers"]
        last = ""
        for layer in layers:
            name = layer["config"].get("name") or layer.get("name")
            stored = self._stored(layer, name)
            if layer["class_name"] == "InputLayer":
                self._add_input(name, layer["config"])
            else:
                if not self.nodes:  # a sequence without a layer for its input
                    self._add_input("input", {"batch_shape": layer["build_config"]["input_shape"]})
                    last = "input"
                inputs = _histories(layer["inbound_nodes"]) if layer.get("inbound_nodes") else [[last]]
                for number, names in enumerate(inputs):
                    self._add_layer(layer, name if number == 0 else f"{name} ({number + 1})", stored, names)
            last = name
        outputs = _names(self.config["output_layers"]) if "output_layers" in self.config else [last]
        ends = tuple(dict.fromkeys(self.values[name] for name in outputs))
        return Network(self.nodes, ends, dict(self.weights.source))

    def _stored(self, layer: Mapping[str, Any], name: str) -> list[np.ndarray[Any, Any]] | dict[str, Any]:
        """Return the weights of a layer: in order, or by their names."""
        snake = re.sub(
            r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", layer["class_name"])
        ).lower()
        count = self._used.get(snake, -1) + 1
        self._used[snake] = count
        arrays = self.weights.arrays
        for folder in (f"layers/{snake}_{count}" if count else f"layers/{snake}", f"layers/{name}"):
            found = [arrays[f"{folder}/vars/{i}"] for i in range(8) if f"{folder}/vars/{i}" in arrays]
            if found:
                return found
        start = f"model_weights/{name}/"
        return {key.split("/")[-1].removesuffix(":0"): array for key, array in arrays.items() if key.startswith(start)}

    def _add_input(self, name: str, config: Mapping[str, Any]) -> None:
        shape = list(config.get("batch_shape") or config.get("batch_input_shape") or ())
        for place, size in enumerate(shape):
            if size is not None:
                continue
            if place == 0:
                shape[0] = 1
            elif self.image is not None and 0 <= place - 1 < len(self.image):
                shape[place] = int(self.image[place - 1])
            else:
                raise WeightsError(f"{self.path}: the size of axis {place} of the input is open: image must say it")
        # Channels stand first in a network's nodes.
        sizes = (shape[0], shape[-1], *shape[1:-1]) if len(shape) > 2 else tuple(shape)
        self.nodes[name] = Node(name, "input", what="input", shape=tuple(int(size) for size in sizes))
        self.values[name] = name

    def _add_layer(self, layer: Mapping[str, Any], name: str, stored: Any, inputs: Sequence[str]) -> None:
        befores = tuple(self.values[one] for one in inputs)
        step = Step(layer["class_name"], name, layer["config"], stored, tuple(self.nodes[one] for one in befores))
        rule = STEPS.get(step.kind)
        try:
            if rule is None:
                raise ValueError("no Lipschitz constant is known of it")
            made = rule(step)
        except (ConvlaError, LookupError, TypeError, ValueError) as error:  # a use that no rule foresees
            words = f"{error} is missing" if isinstance(error, LookupError) else str(error)
            sizes = step.befores[0].shape if step.befores else ()
            made = [Node(name, "unknown", befores, f"{step.kind}: {words}", sizes)]
        for node in made:
            self.nodes[node.name] = node
        self.values[name] = made[-1].name


def _histories(inbound: Any) -> list[list[str]]:
    """Return the names of the layers that each call of a layer takes the values of."""
    calls = []
    for call in inbound:
        names: list[str] = []
        left = [call]
        while left:
            one = left.pop(0)
            if isinstance(one, dict):
                history = (
                    one.get("config", {}).get("keras_history") if one.get("class_name") == "__keras_tensor__" else None
                )
                if history:
                    names.append(str(history[0]))
                else:
                    left = [*one.values(), *left]
            elif isinstance(one, list):
                if len(one) >= 3 and isinstance(one[0], str) and isinstance(one[1], int):  # of Keras 2
                    names.append(one[0])
                else:
                    left = [*one, *left]
        calls.append(names)
    return calls


def _names(outputs: Any) -> list[str]:
    if outputs and isinstance(outputs[0], str):
        return [outputs[0]]
    return [str(one[0]) for one in outputs]
