"""How long a network takes to inspect, beside what else a user has for the largest singular value of each layer.

Networks of PyTorch's own modules with random weights, float32, enclosures included. The peers find one number a layer,
without any bound: 500 steps of the power method in PyTorch, and ARPACK (scipy.sparse.linalg.svds) on the same products,
for the convolutions of ResNet-18 alone. Wall time, start-up not counted; the memory is the largest of the process so
far. About four minutes on two cores.

    python benchmarks/bench_inspect.py [--only WORD] [--page]

``--only`` takes the networks with a word in their names, and no peers; ``--page`` writes the tables into
docs/performance-inspect.md.
"""

from __future__ import annotations

import argparse
import functools
import resource
import time

import numpy as np
import torch
from pages import machine, measured
from scipy.sparse.linalg import LinearOperator, svds
from torch import nn

import convla
from convla.networks.inspection import Plan

POWER_STEPS = 500


class Block(nn.Module):
    """A residual block of two convolutions, or of three with a narrow one between."""

    def __init__(self, inner, width, stride, *, narrow):
        super().__init__()
        shapes = [(inner, width, 1), (width, width, 3), (width, 4 * width, 1)]
        shapes = shapes if narrow else [(inner, width, 3), (width, width, 3)]
        steps = [1, stride, 1] if narrow else [stride, 1]
        parts = []
        for (a, b, size), step in zip(shapes, steps, strict=True):
            parts += [nn.Conv2d(a, b, size, step, size // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.branch = nn.Sequential(*parts[:-1])
        outer = shapes[-1][1]
        self.downsample = None
        if stride > 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        """Return the features of an image."""
        return torch.relu(self.branch(x) + (x if self.downsample is None else self.downsample(x)))


def resnet(counts, *, narrow, small):
    """Build a residual network; `small` has the stem for images of 32 by 32."""
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False)] if small else [nn.Conv2d(3, 64, 7, 2, 3, bias=False)]
    parts = [*stem, nn.BatchNorm2d(64), nn.ReLU()]
    parts += [] if small else [nn.MaxPool2d(3, 2, 1)]
    inner = 64
    for stage, count in enumerate(counts):
        width = 64 * 2**stage
        for block in range(count):
            parts.append(Block(inner, width, 2 if stage and not block else 1, narrow=narrow))
            inner = 4 * width if narrow else width
    return initialised(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 1000)))


def vgg19():
    parts, inner = [], 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            parts += [nn.Conv2d(inner, width, 3, padding=1), nn.ReLU()]
            inner = width
        parts.append(nn.MaxPool2d(2))
    return initialised(nn.Sequential(*parts, nn.Flatten(), nn.Linear(512, 10)))


def initialised(network):
    """Draw kernels, and normalisations with statistics as training leaves them: no two factors alike."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.0)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
    return network.eval()


RESNET18 = functools.partial(resnet, (2, 2, 2, 2), narrow=False, small=True)
RUNS = [
    ("ResNet-18, 32 x 32", RESNET18, 32, {}),
    ("the same, with densities of all layers", RESNET18, 32, {"measures": ["sigma_max", "density"], "runs": False}),
    ("the same, budget 2 s", RESNET18, 32, {"budget": 2.0}),
    ("VGG-19, 32 x 32, budget 20 s", vgg19, 32, {"budget": 20.0}),
    (
        "ResNet-50, 224 x 224, sigma_max and similarity",
        functools.partial(resnet, (3, 4, 6, 3), narrow=True, small=False),
        224,
        {"measures": ["sigma_max", "similarity"]},
    ),
    (
        "ResNet-152, 224 x 224, budget 20 s",
        functools.partial(resnet, (3, 8, 36, 3), narrow=True, small=False),
        224,
        {"budget": 20.0, "measures": ["sigma_max", "sigma_min"]},
    ),
]


def inspected(build, size, options):
    """Return seconds, rows, rows that are estimated to save time, and what was expected after a tenth of the rows."""
    plan = Plan(build(), torch.zeros(1, 3, size, size), **options)
    expected = []
    began = time.perf_counter()

    def note(_):
        expected.append(time.perf_counter() - began + plan.seconds_left)

    report = plan.run(note)
    seconds = time.perf_counter() - began
    hurried = sum(any("save time" in note for note in row.notes) for row in report)
    return seconds, len(report), hurried, expected[len(expected) // 10]


def layers_of(network):
    """Return a network's convolutions and the images that they are given."""
    plan = Plan(network, torch.zeros(1, 3, 32, 32), runs=False, measures=["sigma_max"])
    return [task.layers[0] for task in plan.tasks if task.layers[0].kind == "convolution"]


def products(layer):
    """Return the products with a layer and its transpose, of PyTorch."""
    kernel, geometry = torch.from_numpy(np.array(layer.kernel)), layer.geometry
    padding = [low for low, _ in geometry.padding]
    settings = {"stride": geometry.stride, "padding": padding}
    rest = [
        n + 2 * p - k - (o - 1) * s
        for n, p, k, o, s in zip(layer.image, padding, geometry.kernel_size, layer.output, geometry.stride, strict=True)
    ]

    def forward(x):
        return nn.functional.conv2d(x, kernel, **settings)

    def backward(y):
        return nn.functional.conv_transpose2d(y, kernel, output_padding=rest, **settings)

    return forward, backward


def by_powers(layer):
    forward, backward = products(layer)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, layer.channels[0], *layer.image, generator=generator)
    for _ in range(POWER_STEPS):
        x = backward(forward(x / x.norm()))
    return float(forward(x / x.norm()).norm())


def by_arpack(layer):
    forward, backward = products(layer)
    sizes = (1, layer.channels[0], *layer.image), (1, layer.channels[1], *layer.output)

    def with_array(function, shape):
        return lambda x: function(torch.from_numpy(x.astype(np.float32).reshape(shape))).numpy().reshape(-1)

    matrix = LinearOperator(
        layer.shape,
        matvec=with_array(forward, sizes[0]),
        rmatvec=with_array(backward, sizes[1]),
        dtype=np.float32,
    )
    return float(svds(matrix, 1, tol=1e-5, return_singular_vectors=False, rng=np.random.default_rng(0))[0])


def networks(word):
    """Print what each network takes."""
    # Compiled once, and the BLAS awake.
    convla.inspect(resnet((1, 1, 0, 0), narrow=False, small=True), torch.zeros(1, 3, 8, 8))
    print(
        "| network | rows | s | of them estimated | s expected after a tenth of the rows | GiB |\n" + "|---" * 6 + "|"
    )
    for name, build, size, options in RUNS:
        if word not in name:
            continue
        seconds, rows, hurried, expected = inspected(build, size, options)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {name} | {rows} | {seconds:.1f} | {hurried} | {expected:.1f} | {memory:.2f} |", flush=True)


def peers():
    """Print what others take for one number a layer, and which of their numbers are below a proved bound."""
    layers = layers_of(RESNET18())
    rows = convla.inspect(RESNET18(), torch.zeros(1, 3, 32, 32), measures=["sigma_max"], runs=False)
    enclosures = [(row.quantities["at_least"], row.quantities["at_most"]) for row in rows if row.kind == "convolution"]
    print(
        "| sigma_max of the convolutions of ResNet-18, 32 x 32 | s | below its proved lower bound by more than 1e-4 |"
    )
    print("|---|---|---|")
    began = time.perf_counter()
    convla.inspect(RESNET18(), torch.zeros(1, 3, 32, 32), measures=["sigma_max"], runs=False, certify=False)
    print(f"| convla.inspect, with proved enclosures | {time.perf_counter() - began:.1f} | 0 of {len(layers)} |")
    for name, find in ((f"{POWER_STEPS} power steps in PyTorch", by_powers), ("ARPACK, tolerance 1e-5", by_arpack)):
        began = time.perf_counter()
        with torch.no_grad():
            values = [find(layer) for layer in layers]
        seconds = time.perf_counter() - began
        short = sum(value < lower * (1 - 1e-4) for value, (lower, _) in zip(values, enclosures, strict=True))
        print(f"| {name} | {seconds:.1f} | {short} of {len(layers)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="networks with this word in their names, and no peers")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/performance-inspect.md")
    options = parser.parse_args()
    with measured("performance-inspect.md", "networks", write=options.page):
        print(machine("scipy", "torch") + "\n")
        networks(options.only)
    if not options.only:
        with measured("performance-inspect.md", "peers", write=options.page):
            peers()


if __name__ == "__main__":
    main()
