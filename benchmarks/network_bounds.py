"""Write the table of docs/what-bounds-a-network.md: bounds of the same networks by other packages, beside the truth.

The truth is LAPACK's norm of the whole matrix where a network is linear; the largest norm over all patterns of the
ReLUs that some input has, each found by linear programming, where it has one hidden layer; else a bound from below, by
Jacobians at random inputs. Packages are run where they are installed: ``pip install --no-deps orthogonium``;
quantbayes is on no registry, and is looked for on the path (with equinox and JAX). Run with ``python
benchmarks/network_bounds.py``.
"""

from __future__ import annotations

import importlib
import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

import convla
from convla.frameworks.torch.recording import read_module
from convla.networks.certificate import certify

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "what-bounds-a-network.md"
BEGIN, END = "<!-- written by benchmarks/network_bounds.py -->", "<!-- end -->"

Bound = Callable[[nn.Module, tuple[int, ...]], "float | None"]


class Residual(nn.Module):
    """Adds a branch to its input."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        return x + self.branch(x)


def networks() -> dict[str, tuple[nn.Sequential, tuple[int, ...]]]:
    """Return small networks with drawn weights, in double precision, and the shapes of their inputs."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(6)]
    for norm in norms:
        nn.init.uniform_(norm.running_var, 0.2, 3.0)
        nn.init.normal_(norm.weight)
    drawn = {
        "linear": (
            nn.Sequential(
                *(nn.Conv2d(3, 6, 3, padding=1), norms[0], nn.Conv2d(6, 4, 3, 2, 1), nn.Flatten(), nn.Linear(64, 5))
            ),
            (3, 8, 8),
        ),
        "one hidden layer": (nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)), (6,)),
        "overlapping pools": (
            nn.Sequential(
                *(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3, padding=1)),
                *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)),
            ),
            (1, 14, 14),
        ),
        "residual": (
            nn.Sequential(
                *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()),
                Residual(nn.Conv2d(6, 6, 3, padding=1), norms[1], nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)),
                *(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 5)),
            ),
            (3, 8, 8),
        ),
        "strides and groups": (
            nn.Sequential(
                *(nn.Conv2d(4, 8, 3, 2, 1, groups=4), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=2)),
                *(nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)),
            ),
            (4, 8, 8),
        ),
    }
    return {name: (network.double().eval(), size) for name, (network, size) in drawn.items()}


def jacobian(network: nn.Module, point: torch.Tensor) -> np.ndarray[Any, Any]:
    found = torch.autograd.functional.jacobian(network, point[None])
    return np.asarray(found.reshape(-1, point.numel()).numpy())


def truth(network: nn.Sequential, size: tuple[int, ...]) -> tuple[float, bool]:
    """Return the constant, and whether it is exact, or only a bound from below."""
    kinds = [type(part) for part in network]
    points = torch.randn(30, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if not any(isinstance(part, (nn.ReLU, nn.MaxPool2d)) for part in network.modules()):
        return float(np.linalg.norm(jacobian(network, points[0]), 2)), True
    if kinds == [nn.Linear, nn.ReLU, nn.Linear]:
        return one_hidden_layer(
            *(part.detach().numpy() for part in (network[0].weight, network[0].bias, network[2].weight))
        ), True
    return max(float(np.linalg.norm(jacobian(network, point), 2)) for point in 3.0 * points), False


def one_hidden_layer(first: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Return the largest norm of W2 D W1 over the patterns D of the ReLUs that some input has."""
    norms = []
    for pattern in itertools.product((0.0, 1.0), repeat=len(first)):
        on = np.array(pattern)
        norms.append((float(np.linalg.norm(second @ (on[:, None] * first), 2)), on))
    for norm, on in sorted(norms, key=lambda one: -one[0]):
        sign = 1.0 - 2.0 * on  # at least 1e-6 on the side of its hyperplane that the pattern says
        found = linprog(np.zeros(first.shape[1]), sign[:, None] * first, -sign * bias - 1e-6, bounds=(None, None))
        if found.status == 0:
            return norm
    raise AssertionError("some pattern has an input")


def certified(network: nn.Module, size: tuple[int, ...]) -> float:
    report = convla.inspect(network, torch.zeros(1, *size, dtype=torch.float64), measures=["sigma_max"])
    assert report.certificate is not None
    return report.certificate.upper


def layer_norms(network: nn.Module, size: tuple[int, ...]) -> dict[str, float]:
    """Return LAPACK's norm of the matrix of every layer."""
    graph = read_module(network, torch.zeros(1, *size, dtype=torch.float64))
    return {name: float(np.linalg.norm(layer.map.to_dense(), 2)) for name, layer in graph.layers.items()}


def plain_product(network: nn.Module, size: tuple[int, ...]) -> float:
    return math.prod(layer_norms(network, size).values())


def along_the_graph(norm_of: Callable[[nn.Module, tuple[int, ...]], float]) -> Bound:
    """Return the bound by the rules of this page from other norms of convolutions; LAPACK's of all other layers."""

    def bound(network: nn.Module, size: tuple[int, ...]) -> float:
        graph = read_module(network, torch.zeros(1, *size, dtype=torch.float64))
        norms = layer_norms(network, size)
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                norms[name] = norm_of(module, graph.layers[name].image)
        return certify(graph, norms.__getitem__).upper

    return bound


def flattened(module: nn.Module, _: tuple[int, ...]) -> float:
    weight = module.weight.detach()
    return float(torch.linalg.matrix_norm(weight.reshape(len(weight), -1), 2))


def orthogonium(module: nn.Module, image: tuple[int, ...]) -> float:
    get_conv_sv = importlib.import_module("orthogonium.layers.conv.singular_values").get_conv_sv
    return float(get_conv_sv(module, n_iter=4, return_stab_rank=False, imsize=image[0]))


def quantbayes(mode: str) -> Bound:
    """Return `network_lipschitz_upper` on the same network in equinox, normalisations folded into the layer before."""

    def bound(network: nn.Module, size: tuple[int, ...]) -> float:
        upper = importlib.import_module("quantbayes.stochax.utils.regularizers").network_lipschitz_upper
        convert = Equinox()
        shape = {"conv_input_shape": size[1:]} if len(size) == 3 else {}
        return float(upper(convert.chain(list(network)), conv_mode=mode, **shape))

    return bound


class Equinox:
    """Rewrites PyTorch's layers as equinox's."""

    def __init__(self) -> None:
        self.eqx, self.jnp = importlib.import_module("equinox"), importlib.import_module("jax.numpy")
        self.key = importlib.import_module("jax.random").key(0)

    def chain(self, parts: list[nn.Module]) -> list[Any]:
        """Return the layers one behind the other."""
        found: list[Any] = []
        for part, behind in zip(parts, [*parts[1:], None], strict=True):
            if isinstance(part, nn.Conv2d):
                factors = 1.0
                if isinstance(behind, nn.BatchNorm2d):
                    assert behind.running_var is not None
                    factors = (behind.weight / (behind.running_var + behind.eps).sqrt()).detach()[:, None, None, None]
                sizes = (part.kernel_size, part.stride, part.padding, part.dilation, part.groups)
                layer = self.eqx.nn.Conv2d(part.in_channels, part.out_channels, *sizes, key=self.key)
                found.append(self.with_weight(layer, part.weight.detach() * factors))
            elif isinstance(part, nn.Linear):
                layer = self.eqx.nn.Linear(part.in_features, part.out_features, key=self.key)
                found.append(self.with_weight(layer, part.weight.detach()))
            elif isinstance(part, nn.MaxPool2d | nn.AvgPool2d):
                found.append(getattr(self.eqx.nn, type(part).__name__)(part.kernel_size, part.stride))
            elif isinstance(part, Residual):
                found.append(Hinted(self.chain(list(part.branch))))
        return found

    def with_weight(self, layer: Any, weight: torch.Tensor) -> Any:
        """Return a layer of equinox with a weight of PyTorch."""
        return self.eqx.tree_at(lambda one: one.weight, layer, self.jnp.asarray(weight.numpy()))


class Hinted:
    """A residual block as quantbayes is told of one."""

    def __init__(self, branch: list[Any]) -> None:
        self.branch = branch

    def __residual_hint__(self) -> tuple[list[Any], None, float]:
        return self.branch, None, 1.0


BOUNDS: dict[str, Bound] = {
    "convla, proved": certified,
    "all layers' norms multiplied": plain_product,
    "layers' norms of the flattened kernels": along_the_graph(flattened),
    "layers' norms by orthogonium 0.0.4": along_the_graph(orthogonium),
    "quantbayes, its default": quantbayes("tn"),
    "quantbayes, the least of its two": quantbayes("min_tn_circ_embed"),
}
OWN = ("convla, proved", "all layers' norms multiplied", "layers' norms of the flattened kernels")
"""What needs no other package."""


def entry(bound: Bound, network: nn.Module, size: tuple[int, ...]) -> float | None:
    try:
        return bound(network, size)
    except (ImportError, ValueError, RuntimeError, TypeError) as error:
        print(f"  {type(error).__name__}: {error}")
        return None


def table() -> list[str]:
    found = networks()
    truths = {name: truth(*one) for name, one in found.items()}
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    shown = [f"{value:.4f}" if exact else f">= {value:.4f}" for value, exact in truths.values()]
    lines.append("| **the constant** | " + " | ".join(shown) + " |")
    for name, bound in BOUNDS.items():
        cells = []
        for key, one in found.items():
            value = entry(bound, *one)
            below = value is not None and value < truths[key][0] * (1.0 - 1e-6)
            cells.append("-" if value is None else f"{value:.4f}" + (" **below**" if below else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    behind = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(table()) + f"\n\n{END}{behind}", encoding="utf-8")


if __name__ == "__main__":
    main()
