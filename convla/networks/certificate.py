"""A proved upper bound of the Lipschitz constant of a network, and which layers make it large."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from convla.networks.digits import digits_of
from convla.networks.gains import outward
from convla.networks.graph import Network, Node

__all__ = ["Certificate", "Step", "certify"]


@dataclass(frozen=True)
class Step:
    """One step of a network in its bound.

    Attributes
    ----------
    name, what : str
    gain : float
        By how much it alone can stretch a difference; 1 for a sum or a concatenation.
    bound : float
        By how much the network up to here can, from the input on.
    share : float
        By which factor the bound of the whole would be smaller if this step stretched nothing (had a gain of 1); for
        layers only, else 1.
    before : float
        The bound of what it takes, the largest where it takes several; 1 for an input.
    """

    name: str
    what: str
    gain: float
    bound: float
    share: float
    before: float = 1.0

    @property
    def is_shown(self) -> bool:
        """Whether it changes the bound, which a picture of the bound is about."""
        return 0.0 < self.bound < math.inf and (self.share > 1.0 or self.bound != self.before)


@dataclass(frozen=True, repr=False)
class Certificate:
    """Bounds of the Lipschitz constant of a network, in the Euclidean norms of its input and output.

    Attributes
    ----------
    upper : float
        Proved, rounding included, for the exact arithmetic of the weights as they are; infinity where `reasons` say
        what is not bounded.
    lower : float
        What the network was seen to do near data; 0 where there was none.
    steps : tuple of Step
        In the network's order.
    reasons : tuple of str
        Of an infinite bound: the steps of which nothing is proved.
    """

    upper: float
    steps: tuple[Step, ...]
    reasons: tuple[str, ...] = ()
    lower: float = 0.0

    @property
    def short(self) -> str:
        """The bounds in a few words."""
        if math.isinf(self.upper):
            return "no Lipschitz bound"
        lower = f", >= {digits_of(self.lower, 6, 'below')}" if self.lower else ""
        return f"Lipschitz constant <= {digits_of(self.upper, 6, 'above')}{lower}"

    def __repr__(self) -> str:
        return f"<Certificate: {self.short}>"

    @property
    def largest_shares(self) -> list[Step]:
        """The steps that make the bound large, the largest share first."""
        return sorted((step for step in self.steps if step.share > 1.0), key=lambda step: -step.share)

    def with_lower(self, lower: float) -> Certificate:
        """Return the certificate with a lower bound."""
        return replace(self, lower=max(self.lower, lower))

    def as_data(self) -> dict[str, Any]:
        """Return the certificate for JSON; infinity as the word "Infinity"."""

        def number(value: float) -> float | str:
            return value if math.isfinite(value) else "Infinity"

        steps = [
            {
                "name": step.name,
                "what": step.what,
                "gain": number(step.gain),
                "bound": number(step.bound),
                "share": number(step.share),
                "before": number(step.before),
            }
            for step in self.steps
        ]
        return {"upper": number(self.upper), "lower": self.lower, "reasons": list(self.reasons), "steps": steps}


def certify(
    network: Network, norm: Callable[[str], float], *, runs: Mapping[tuple[str, ...], float] | None = None
) -> Certificate:
    """Bound the Lipschitz constant of a network from above, provably.

    Parameters
    ----------
    network : Network
    norm : callable
        Of a layer's name: a proved upper bound of its largest singular value.
    runs : mapping of tuple of str to float, optional
        Proved upper bounds of the norms of layers that stand together (see `Network.runs`), where these are better than
        the products.

    Returns
    -------
    Certificate

    Notes
    -----
    With b(v) the bound of the part of the network from its input to node v: b(input) = 1; b(v) = gain(v) b(u) for a map
    of u alone; a sum of terms c_i u_i has ``sum |c_i| b(u_i)``; a concatenation ``sqrt(sum b(u_i)^2)``, and so have
    several outputs together. A step that is unknown has no bound; one that does not depend on the input has 0.
    Everything is rounded outwards.

    The norms are those of whole tensors: of a batch, those of all its entries together.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.certificate import certify
    >>> from convla.networks.graph import Network, Node
    >>> from convla.networks.layers import dense_layer
    >>> nodes = [Node("x", "input"), Node("a", "layer", ("x",), layer=dense_layer(np.array([[3.0]])))]
    >>> nodes.append(Node("y", "sum", ("x", "a"), weights=(1.0, 1.0)))
    >>> certify(Network({node.name: node for node in nodes}, ("y",)), {"a": 3.0}.__getitem__)
    <Certificate: Lipschitz constant <= 4.00001>
    """
    norms = {name: norm(name) for name in network.layers}
    known = dict(runs or {})
    bounds = _bounds(network, norms, known)
    upper = _together(network, bounds)
    steps = []
    for name, node in network.nodes.items():
        share = 1.0
        if node.layer is not None and 0.0 < upper < math.inf:
            without = {run: value for run, value in known.items() if name not in run}
            left = _together(network, _bounds(network, {**norms, name: 1.0}, without))
            share = upper / left if left else math.inf
        before = max((bounds[one] for one in node.inputs), default=1.0)
        steps.append(Step(name, node.what, norms.get(name, node.gain), bounds[name], share, before))
    unknown = [node for node in network.nodes.values() if node.kind == "unknown" and node.inputs]
    reached = _reached(network)
    reasons = tuple(f"{node.name}: {node.what}" for node in unknown if node.name in reached)
    return Certificate(upper, tuple(steps), reasons)


def _bounds(network: Network, norms: Mapping[str, float], runs: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    """Return the bound of every node, from the input on."""
    ends = {run[-1]: (network.nodes[run[0]].inputs[0], value) for run, value in runs.items()}
    bounds: dict[str, float] = {}
    for name, node in network.nodes.items():
        bound = _step(node, bounds, norms)
        if name in ends:
            start, value = ends[name]
            bound = min(bound, _times(value, bounds[start]))
        bounds[name] = bound
    return bounds


def _step(node: Node, bounds: Mapping[str, float], norms: Mapping[str, float]) -> float:
    before = [bounds[name] for name in node.inputs]
    match node.kind:
        case "input":
            return 1.0
        case "layer":
            return _times(norms[node.name], before[0])
        case "map":
            return _times(node.gain, before[0])
        case "sum":
            terms = [_times(abs(weight), bound) for weight, bound in zip(node.weights, before, strict=True)]
            return outward(math.fsum(terms))
        case "concatenation":
            return _root_of_squares(before)
    return math.inf if any(before) else 0.0


def _together(network: Network, bounds: Mapping[str, float]) -> float:
    return _root_of_squares([bounds[name] for name in network.outputs])


def _root_of_squares(values: list[float]) -> float:
    if len(values) == 1:
        return values[0]
    largest = max(values)
    if largest == 0.0 or math.isinf(largest):
        return largest
    # Divided by the largest: the squares may leave the range of float64.
    return outward(largest * math.sqrt(math.fsum((value / largest) ** 2 for value in values)), 4)


def _times(gain: float, bound: float) -> float:
    """Return a bound of the product, where a gain of 1 costs no rounding and 0 stays 0."""
    if gain == 0.0 or bound == 0.0:
        return 0.0
    if gain == 1.0:
        return bound
    return math.nextafter(gain * bound, math.inf)


def _reached(network: Network) -> set[str]:
    """Return the nodes that the outputs depend on."""
    found, left = set(), list(network.outputs)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left.extend(network.nodes[name].inputs)
    return found
