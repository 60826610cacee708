"""ONNX files: the graph with its weights, read as data; constants are folded, sizes inferred, and nothing else run."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import ConvlaError, WeightsError, install_line
from convla.networks.graph import Network, Node, unused_name
from convla.networks.onnx_steps import STEPS, WORDS, Step

__all__ = ["read_onnx"]

_FOLDED = 1 << 24
"""The most entries of a constant that is computed from others."""


def read_onnx(path: Path, image: Sequence[int] | None = None) -> Network:
    """Return the network of an ONNX file.

    Parameters
    ----------
    path : path
    image : sequence of int, optional
        The sizes of the input behind its channels, where the file leaves them open; a batch is taken as 1.

    Returns
    -------
    Network

    Raises
    ------
    WeightsError
        If the file is no ONNX model, its sizes cannot be inferred, or the extra ``onnx`` is not installed.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import onnx
    >>> from convla.networks.onnx_files import read_onnx
    >>> x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 2)) for name in "xy")
    >>> graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", [x], [y])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.onnx"
    ...     onnx.save(onnx.helper.make_model(graph), str(path))
    ...     [node.what for node in read_onnx(path).nodes.values()]
    ['input', 'relu']
    """
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise WeightsError(f"{path}: .onnx files need the extra onnx: {install_line('onnx')}") from error
    try:
        model = onnx.load(str(path))
        if not model.graph.output:
            raise WeightsError(f"{path}: not a readable .onnx file: no graph with an output in it")
        opened = _with_sizes(path, model, image)
        inferred = onnx.shape_inference.infer_shapes(opened, data_prop=True)
        return _Reader(path, onnx, inferred.graph).network(_opset(model))
    except (OSError, ConvlaError):
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is the file's fault
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: not a readable .onnx file: {words}") from error


def _opset(model: Any) -> int:
    return max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)


def _with_sizes(path: Path, model: Any, image: Sequence[int] | None) -> Any:
    """Return the model with all sizes of its inputs fixed."""
    weights = {one.name for one in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights:
            continue
        dims = value.type.tensor_type.shape.dim
        for place, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            behind = place - (len(dims) - len(image or ()))
            if image is not None and behind >= 0 and place >= 1:
                dim.dim_value = int(image[behind])
            elif place == 0:
                dim.dim_value = 1
            else:
                raise WeightsError(
                    f"{path}: the size of axis {place} of input {value.name!r} is open: image must say it, without the "
                    "channels"
                )
    # What was inferred for open sizes would contradict those that are set.
    del model.graph.value_info[:]
    return model


@dataclass
class _Reader:
    """Walks through a graph and keeps what each tensor is: a constant, or the value of a node."""

    path: Path
    onnx: Any
    graph: Any
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    paddings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def network(self, opset: int) -> Network:
        """Return the whole as a network."""
        for initializer in self.graph.initializer:
            self._keep_constant(initializer.name, self.onnx.numpy_helper.to_array(initializer))
        for value in self.graph.input:
            if value.name not in self.constants:
                self._add(
                    Node(unused_name(self.nodes, value.name), "input", what="input", shape=self.sizes[value.name]),
                    value.name,
                )
        for proto in self.graph.node:
            self._read(proto)
        outputs = []
        for value in self.graph.output:
            if value.name in self.constants:
                self._add(Node(unused_name(self.nodes, value.name), "unknown", what="a constant"), value.name)
            outputs.append(self.values[value.name])
        return Network(self.nodes, tuple(dict.fromkeys(outputs)), {"format": "ONNX", "opset": str(opset)})

    @functools.cached_property
    def sizes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of tensors that are known."""
        found = {}
        for value in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            dims = value.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") for dim in dims):
                found[value.name] = tuple(int(dim.dim_value) for dim in dims)
        return found

    def _read(self, proto: Any) -> None:
        inputs = [name for name in proto.input if name]
        tracked = [name for name in inputs if name in self.values]
        if proto.op_type == "Shape" and inputs and inputs[0] in self.sizes:
            self._keep_constant(
                proto.output[0], self._evaluated(proto, {inputs[0]: np.zeros(self.sizes[inputs[0]])})[0]
            )
            return
        if not tracked and not any(attribute.g.node for attribute in proto.attribute):
            feeds = {name: self.constants[name] for name in inputs}
            for name, value in zip(proto.output, self._evaluated(proto, feeds), strict=False):
                self._keep_constant(name, np.asarray(value))
            return
        step = Step(
            name=proto.name or proto.output[0],
            kind=proto.op_type,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes={one.name: self.onnx.helper.get_attribute_value(one) for one in proto.attribute},
            constants=self.constants,
            sizes=self.sizes,
            values=self.values,
            nodes=self.nodes,
            paddings=self.paddings,
            evaluate=lambda feeds: self._evaluated(proto, feeds),
        )
        node = self._interpreted(step)
        # A step with a graph inside may read any value of the graph around it.
        read = [self.values[name] for name in tracked] or list(self.nodes)
        names = node.inputs or tuple(dict.fromkeys(read))
        shape = next((self.sizes[name] for name in proto.output if name in self.sizes), ())
        notes = (*node.notes, *(note for name in inputs for note in self.notes.get(name, ()) if node.layer is not None))
        whole = replace(
            node, name=unused_name(self.nodes, node.name or step.name), inputs=names, shape=shape, notes=notes
        )
        self._add(whole, *proto.output)

    def _interpreted(self, step: Step) -> Node:
        rule: Callable[[Step], Node] | None = STEPS.get(step.kind)
        if rule is None:
            reason = WORDS.get(step.kind, "no Lipschitz constant is known of it")
            return Node("", "unknown", what=f"{step.kind}: {reason}")
        try:
            return rule(step)
        except (ConvlaError, KeyError, TypeError, ValueError) as error:  # a use that no rule foresees
            words = f"the size of {error} is not known" if isinstance(error, KeyError) else str(error)
            return Node("", "unknown", what=f"{step.kind}: {words}")

    def _evaluated(self, proto: Any, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Return what a node makes of constants."""
        if sum(value.size for value in feeds.values()) > _FOLDED:
            raise WeightsError(f"{self.path}: {proto.op_type} of constants of more than {_FOLDED} entries")
        evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(proto)
        return list(evaluator.run(None, dict(feeds)))

    def _keep_constant(self, name: str, array: np.ndarray[Any, Any]) -> None:
        kind = str(array.dtype)
        if kind in ("float16", "bfloat16"):
            array, self.notes[name] = array.astype(np.float32), (f"its weight of {kind} is taken as float32",)
        self.constants[name] = array

    def _add(self, node: Node, *tensors: str) -> None:
        self.nodes[node.name] = node
        for tensor in tensors:
            self.values[tensor] = node.name
