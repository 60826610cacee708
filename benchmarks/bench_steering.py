"""What steering the spectrum costs in a training step, beside the plain step, in one run.

Each way has a network of its own, of the same weights. Each of its steps follows a plain one, and its cost is the
median of their ratios: what else goes on in the machine changes within seconds, and meets both. For a batch of 128 it
is time on the clock, on all threads; for the small batches processor time, on one thread. A table more compares
optimizers along orthonormalised momentum on the digits. Prints Markdown. Run with
``python benchmarks/bench_steering.py``; ``--only`` takes one of the tables, ``--write`` puts them into the page that
shows them. A row that takes longer than its part of the time is cut off, and says so: the three tables of times
together take at most ``--minutes``.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl
import torch
from orthonormal_optimizers import digits_table, makers
from steered_networks import mobilenet_v3_small, resnet50
from torch.nn.utils import parametrizations

from convla.experiments.training.networks import build_network
from convla.frameworks.torch import (
    GradientTransform,
    NetworkSpectralPenalty,
    SpectralProjection,
    convolutions,
    image_shapes,
    kernel_orthogonality_loss,
    network_similarity_loss,
    ocnn_loss,
    spectral_norm,
)

Network = Any
Loss = Callable[[Network], torch.Tensor]
Step = Callable[[], None]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance-steering.md"
EVERY = 10  # steps between two projections
FEW = 16  # images in the steps that only move the weights


class Way:
    """A network that is trained in one way: `step` makes one step of it."""

    def __init__(self, network: Network, images: torch.Tensor, term: Loss | None = None) -> None:
        self.network = network
        self.images, self.labels = images, torch.arange(len(images), device=images.device) % 10
        self.term = term
        self.optimizer: Any = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        self.after: Step | None = None

    def step(self) -> None:
        """Make one step."""
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.network(self.images), self.labels)
        if self.term is not None:
            loss = loss + 1e-3 * self.term(self.network)
        loss.backward()
        self.optimizer.step()
        if self.after is not None:
            self.after()


def certified(network: Network, example: torch.Tensor) -> Network:
    """Return the network with every convolution's norm kept below 1, by the parametrization of convla."""
    for name, shape in image_shapes(network, example).items():
        spectral_norm(network.get_submodule(name), shape)
    return network


def by_filters(network: Network) -> Network:
    """Return the network with PyTorch's own parametrization, of the kernel as a matrix of its filters."""
    for layer in convolutions(network).values():
        parametrizations.spectral_norm(layer)
    return network


def clipping(network: Network, example: torch.Tensor) -> Step:
    """Return what FastClip does after a step: a power iteration through autograd on one image of each layer.

    The weight moves along the singular vectors by what the norm is above 1 (A. Boroojeny, M. Telgarsky and H. Sundaram,
    Spectrum Extraction and Clipping for Implicitly Linear Layers, AISTATS 2024, Algorithms 1 and 2).
    """
    layers, shapes = convolutions(network), image_shapes(network, example)
    vectors = {
        name: torch.randn(1, layers[name].in_channels, *shape, device=example.device) for name, shape in shapes.items()
    }

    def clip() -> None:
        for name, vector in vectors.items():
            layer, unit = layers[name], (vector / vector.norm()).requires_grad_()
            image = torch.nn.functional.conv2d(
                unit, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
            )
            norm = image.norm()
            back, slope = torch.autograd.grad(norm, (unit, layer.weight))
            vectors[name] = back.detach()
            excess = float(norm.detach()) - 1
            if excess > 0:
                with torch.no_grad():
                    layer.weight.sub_(slope, alpha=excess / float(slope.square().sum()))

    return clip


class TooLongError(Exception):
    """A row has used up its time."""


class Clock(NamedTuple):
    """What a table's times are, and the alarm that goes by the same clock."""

    now: Callable[[], float]
    alarm: int
    signal: int


def _settled() -> float:
    """Return the time of day when a device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


WALL = Clock(_settled, signal.ITIMER_REAL, signal.SIGALRM)
PROCESSOR = Clock(time.process_time, signal.ITIMER_PROF, signal.SIGPROF)


@contextmanager
def limited(seconds: float, clock: Clock = WALL) -> Iterator[None]:
    """Raise `TooLongError` after so many seconds, as soon as Python's interpreter is back."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(clock.signal, stop)
    signal.setitimer(clock.alarm, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(clock.alarm, 0)
        signal.signal(clock.signal, before)


class Times(NamedTuple):
    """The seconds of a way's first step, and of later ones, each with those of the plain step right before it."""

    first: float
    pairs: list[tuple[float, float]]


def beside(plain: Step, step: Step, rounds: int, clock: Clock, seconds: float, between: Step = lambda: None) -> Times:
    """Return the times of a step beside the plain one; without pairs where it took longer than so many seconds.

    What is done between the two is not timed.
    """

    def timed(call: Step) -> float:
        start = clock.now()
        call()
        return clock.now() - start

    first = float("inf")
    pairs: list[tuple[float, float]] = []
    try:
        with limited(seconds, clock):
            first = timed(step)
            for _ in range(rounds):
                before = timed(plain)
                between()
                pairs.append((before, timed(step)))
    except TooLongError:
        pass
    return Times(first, pairs)


def table(times: dict[str, Times], head: str, seconds: float) -> str:
    """Return the least time of each way, and its cost: median and range of its times beside the plain ones."""
    plain = [before for row in times.values() for before, _ in row.pairs]
    rows = [f"| plain | {1e3 * min(plain):.0f} | 1.00 | | |"] if plain else []
    for name, (start, pairs) in times.items():
        first = f"{1e3 * start:.0f}" if start < float("inf") else "-"
        if pairs:
            ratios = sorted(step / before for before, step in pairs)
            median, least = statistics.median(ratios), min(step for _, step in pairs)
            cost = f"{median - 1:+.1%} ({ratios[0] - 1:+.0%} to {ratios[-1] - 1:+.0%})"
            rows.append(f"| {name} | {1e3 * least:.0f} | {median:.2f} | {cost} | {first} |")
        else:
            rows.append(f"| {name} | cut off: takes more than {seconds:.0f} s | | | {first} |")
    return "\n".join([f"| {head} | ms | plain steps | cost (range) | first step, ms |", "|---|---|---|---|---|", *rows])


def large_batch(rounds: int, seconds: float, device: str = "cpu", batch: int = 128) -> str:
    """ResNet-18 on a batch of 128 images of 32x32."""
    torch.manual_seed(0)
    network = build_network("resnet18", in_channels=3, image_size=32, classes=10).to(device)
    images = torch.randn(batch, 3, 32, 32).to(device)
    new: Callable[[], Network] = lambda: copy.deepcopy(network)  # noqa: E731
    example = images[:1]
    plain = Way(new(), images)
    penalty, similar, projected, transformed = new(), new(), new(), new()
    ways = {
        "`network_similarity_loss`": Way(similar, images, network_similarity_loss),
        "`NetworkSpectralPenalty`": Way(penalty, images, NetworkSpectralPenalty(penalty, example)),
        "`spectral_norm`": Way(certified(new(), example), images),
        '`GradientTransform(..., "orthonormal")`': Way(transformed, images),
        'the same, method="newton-schulz"': Way(new(), images),
        **{name: Way(new(), images) for name in makers()},
        "torch's `parametrizations.spectral_norm`": Way(by_filters(new()), images),
        "a power iteration by autograd (FastClip)": Way(new(), images),
    }
    GradientTransform(ways['`GradientTransform(..., "orthonormal")`'].optimizer, "orthonormal")
    GradientTransform(ways['the same, method="newton-schulz"'].optimizer, "orthonormal", method="newton-schulz")
    fast = ways["a power iteration by autograd (FastClip)"]
    fast.after = clipping(fast.network, example)
    for name, make in makers().items():
        ways[name].optimizer = make(ways[name].network, 1e-3)
    # One part of the time for each of them, for the projection and for the calls of the penalty.
    part = seconds / (len(ways) + 2)
    plain.step()
    times = {name: beside(plain.step, way.step, rounds, WALL, part) for name, way in ways.items()}
    times[f"`SpectralProjection`, every {EVERY} steps"] = projections(projected, images, rounds, part)
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(device)
    lines = [
        f"## ResNet-18, batch {batch}, 32x32, {where}",
        table(times, "way", part),
    ]
    try:
        with limited(part):
            least = min((before for row in times.values() for before, _ in row.pairs), default=float("inf"))
            lines.append(call_times(network, example, plain, least))
    except TooLongError:
        lines.append(f"The calls of a `NetworkSpectralPenalty` take more than {part:.0f} s.")
    return "\n\n".join(lines)


def projections(network: Network, images: torch.Tensor, rounds: int, seconds: float) -> Times:
    """Return the times of a step with its share of a projection.

    A projection follows an ordinary step, and nine that move the weights as far on a few of the images.
    """
    way, few = Way(network, images), Way(network, images[:FEW])
    projection = SpectralProjection(way.optimizer, network, images[:1], every=10**9)

    def move() -> None:
        for _ in range(EVERY - 1):
            few.step()

    alone = beside(way.step, projection.project, rounds, WALL, seconds, move)
    return Times(alone.first, [(before, before + cost / EVERY) for before, cost in alone.pairs])


def call_times(network: Network, example: torch.Tensor, plain: Way, step: float) -> str:
    """Return a sentence on the first call of the spectral penalty, forward and backward, and on later ones."""
    began = WALL.now()
    penalty = NetworkSpectralPenalty(network, example)
    built = WALL.now() - began
    seconds = []
    for _ in range(5):
        began = WALL.now()
        penalty(network).backward()
        seconds.append(WALL.now() - began)
        with torch.no_grad():  # as far as a step of training moves the weights
            for weight, other in zip(network.parameters(), plain.network.parameters(), strict=True):
                weight.add_(1e-3 * torch.randn_like(other) * other.abs().mean())
    first, later = seconds[0], min(seconds[1:])
    return (
        f"A `NetworkSpectralPenalty` is made in {built:.2f} s; its first call, and backward, takes {first:.2f} s, "
        f"a later one {later:.3f} s: {later / step:.2f} of a step."
    )


def small_batch(name: str, network: Network, images: torch.Tensor, rounds: int, seconds: float) -> str:
    """Return the table of a network on few images, on one thread, in processor time."""
    torch.manual_seed(0)
    new: Callable[[], Network] = lambda: copy.deepcopy(network)  # noqa: E731

    def over_layers(loss: Callable[..., torch.Tensor], **strides: bool) -> Loss:
        def total(network: Network) -> torch.Tensor:
            layers = convolutions(network).values()
            settings = [{"groups": layer.groups, **({"stride": layer.stride} if strides else {})} for layer in layers]
            return torch.stack([loss(layer.weight, **s) for layer, s in zip(layers, settings, strict=True)]).sum()

        return total

    penalised, plain = new(), Way(new(), images)
    ways = {
        "`kernel_orthogonality_loss`": Way(new(), images, over_layers(kernel_orthogonality_loss)),
        "`ocnn_loss`": Way(new(), images, over_layers(ocnn_loss, strided=True)),
        '`GradientTransform(..., "orthonormal")`': Way(new(), images),
        'the same, method="polar-express"': Way(new(), images),
        'the same, method="newton-schulz"': Way(new(), images),
        "`NetworkSpectralPenalty`": Way(penalised, images, NetworkSpectralPenalty(penalised, images[:1])),
    }
    for label, options in (
        ('`GradientTransform(..., "orthonormal")`', {}),
        ('the same, method="polar-express"', {"method": "polar-express"}),
        ('the same, method="newton-schulz"', {"method": "newton-schulz"}),
    ):
        way = ways[label]
        GradientTransform(way.optimizer, "orthonormal", network=way.network, **options)
    part = seconds / len(ways)
    plain.step()
    times = {label: beside(plain.step, way.step, rounds, PROCESSOR, part) for label, way in ways.items()}
    shape = "x".join(map(str, images.shape[2:]))
    return f"## {name}, {len(images)} images of {shape}, one thread\n\n" + table(times, "way", part)


def machine() -> str:
    """Return on what the figures were measured."""
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy "
        f"{np.__version__}, torch {torch.__version__}."
    )


def written(page: str, name: str, text: str) -> str:
    """Return the page with a table in its place."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Print the tables, and write them where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", choices=("resnet18", "resnet50", "mobilenet", "digits"))
    parser.add_argument("--device", default="cpu", help='of the large batch: "cuda" for a GPU')
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--write", action="store_true", help=f"between the markers of {PAGE.name}")
    options = parser.parse_args()
    small = 10 * options.minutes
    tables: dict[str, Callable[[], str]] = {
        "resnet18": lambda: large_batch(options.rounds, 40 * options.minutes, options.device),
        "resnet50": lambda: small_batch("ResNet-50", resnet50(), torch.randn(4, 3, 64, 64), options.rounds, small),
        "mobilenet": lambda: small_batch(
            "MobileNetV3-small", mobilenet_v3_small(), torch.randn(8, 3, 64, 64), options.rounds, small
        ),
        "digits": digits_table,
    }
    for name, measure in tables.items():
        if options.only not in (None, name):
            continue
        torch.manual_seed(0)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads if name == "resnet18" else 1)
        with threadpoolctl.threadpool_limits(None if name == "resnet18" else 1):
            text = f"{measure()}\n\n{machine()}"
        torch.set_num_threads(threads)
        print(text, flush=True)
        if options.write:
            PAGE.write_text(written(PAGE.read_text(), name, text))


if __name__ == "__main__":
    main()
