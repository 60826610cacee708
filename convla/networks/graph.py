"""A network as a graph of maps: what its nodes do to a tensor, and how much each can stretch it.

Readers build this graph from a module or from a file; the certificate and the report read it. Nothing here knows any
framework.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from convla.networks.layers import Layer

__all__ = ["Network", "Node", "unused_name"]

Kind = Literal["input", "layer", "map", "sum", "concatenation", "unknown"]


@dataclass(frozen=True, eq=False)
class Node:
    """One step of a network.

    Attributes
    ----------
    name : str
        Of its own in the network; that of the weight or the module where there is one.
    kind : str
        "input"; "layer", a linear map with weights; "map", any map of one tensor whose Lipschitz constant is known;
        "sum" and "concatenation" of several tensors; "unknown", of which nothing is proved.
    inputs : tuple of str
        The names of the nodes whose values it takes, in the order of `weights`.
    what : str
        What it does, in words; why nothing is known of it, for an unknown one.
    shape : tuple of int
        Of its value, with the batch.
    layer : Layer or None
    from_left : bool
        Whether the layer's matrix acts on the first axis, as in ``A @ x``, so that it does not stand together with one
        that acts on the last.
    gain : float
        A proved upper bound of the Lipschitz constant of a "map".
    weights : tuple of float
        The factor of each term of a "sum".
    notes : tuple of str
        What a reader has to say of the node.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...] = ()
    what: str = ""
    shape: tuple[int, ...] = ()
    layer: Layer | None = None
    from_left: bool = False
    gain: float = 1.0
    weights: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Network:
    """A network as a graph of maps, in an order in which every node stands behind its inputs.

    Attributes
    ----------
    nodes : mapping of str to Node
    outputs : tuple of str
        The nodes whose values together are the network's.
    source : mapping of str to str
        What was read, such as the name of a file and its digest.

    Raises
    ------
    ValueError
        If a node takes the value of one that does not stand before it, or an output is no node.
    """

    nodes: Mapping[str, Node]
    outputs: tuple[str, ...]
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name, node in self.nodes.items():
            missing = [one for one in node.inputs if one not in seen]
            if missing or node.name != name:
                raise ValueError(f"node {name!r} must be called so and stand behind its inputs, got {missing or node}")
            seen.add(name)
        if not set(self.outputs) <= seen:
            raise ValueError(f"outputs must be nodes, got {self.outputs}")

    @property
    def layers(self) -> dict[str, Layer]:
        """The linear maps with weights, by node, in the network's order."""
        return {name: node.layer for name, node in self.nodes.items() if node.layer is not None}

    def runs(self) -> list[tuple[str, ...]]:
        """Return the chains of layers, two or more, of which each takes the value of the one before and is alone to.

        A layer that is applied at several places of a tensor, as a matrix to each row, is in none.

        Examples
        --------
        >>> import numpy as np
        >>> from convla.networks.graph import Network, Node
        >>> from convla.networks.layers import dense_layer
        >>> layers = [dense_layer(np.ones((3, 3))) for _ in range(2)]
        >>> nodes = [Node("x", "input"), Node("a", "layer", ("x",), shape=(1, 3), layer=layers[0])]
        >>> nodes.append(Node("b", "layer", ("a",), shape=(1, 3), layer=layers[1]))
        >>> Network({node.name: node for node in nodes}, ("b",)).runs()
        [('a', 'b')]
        """
        readers = Counter(_all_inputs(self.nodes.values()))
        readers.update(self.outputs)
        chains: dict[str, tuple[str, ...]] = {}
        for name, node in self.nodes.items():
            if node.layer is None or not _is_applied_once(node, node.layer):
                continue
            before = node.inputs[0]
            goes_on = readers[before] == 1 and before in chains and _fit(self.nodes[before].layer, node.layer)
            chains[name] = (*(chains.pop(before) if goes_on else ()), name)
        return [chain for chain in chains.values() if len(chain) > 1]


def _fit(before: Layer | None, behind: Layer) -> bool:
    """Tell whether the one gives what the other takes, both in the same order of axes."""
    if before is None or before.channels[1] != behind.channels[0]:
        return False
    return "normalization" in (before.kind, behind.kind) or before.output == behind.image


def _is_applied_once(node: Node, layer: Layer) -> bool:
    if node.from_left:
        return False
    return layer.kind == "normalization" or math.prod(node.shape[1:]) == layer.shape[0]


def _all_inputs(nodes: Iterable[Node]) -> list[str]:
    return [name for node in nodes for name in node.inputs]


def unused_name(nodes: Mapping[str, Node], name: str) -> str:
    """Return a name, with a number behind it where a node has it already.

    Examples
    --------
    >>> from convla.networks.graph import Node, unused_name
    >>> unused_name({"conv": Node("conv", "input")}, "conv")
    'conv (2)'
    """
    found, number = name, 1
    while found in nodes:
        number += 1
        found = f"{name} ({number})"
    return found
