"""Convolutional similarity, value and gradient: convla against PyTorch, the memory's speed, and its own methods.

Prints the Markdown tables of the documentation's performance page, all from one run of a minute or two. Run with
``python benchmarks/bench_similarity.py [--page]``; ``--page`` writes them into docs/performance-similarity.md.
"""

from __future__ import annotations

import argparse
import functools
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from pages import machine, measured

from convla import convolutional_similarity_and_gradient, initialize_network, network_similarity

RESNET18 = [(64, 3, 7, 7), *[(64, 64, 3, 3)] * 4]
for WIDTH in (128, 256, 512):
    RESNET18 += [(WIDTH, WIDTH // 2, 3, 3), *[(WIDTH, WIDTH, 3, 3)] * 3, (WIDTH, WIDTH // 2, 1, 1)]
PUBLISHED_STEP = 90.0  # seconds on an A5000 GPU, CSM Section 7


def best(function: Callable[[], Any], repeats: int = 50, seconds: float = 3.0) -> float:
    """Return the shortest time of some calls, fewer where they are long, in milliseconds, after one that compiles."""
    function()
    times: list[float] = []
    while len(times) < repeats and sum(times) < seconds:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def random_kernels(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@numba.njit(parallel=True, fastmath=True)
def read_twice_write_once(kernels: Any, out: Any) -> None:
    """Do the least that a value and a gradient must do to memory."""
    for i in numba.prange(kernels.shape[0]):
        total = np.float32(0)
        for j in range(kernels.shape[1]):
            total += kernels[i, j]
        out[i, 0] = total
    for i in numba.prange(kernels.shape[0]):
        scale = out[i, 0]
        for j in range(kernels.shape[1]):
            out[i, j] = scale * kernels[i, j]


def floor(layers: list[Any]) -> float:
    rows = [layer.reshape(len(layer), -1) for layer in layers]
    outs = [np.empty_like(row) for row in rows]

    def sweep() -> None:
        for row, out in zip(rows, outs, strict=True):
            read_twice_write_once(row, out)

    return best(sweep)


def memory_taken(layers: dict[str, Any]) -> float:
    """Return the most memory that NumPy holds on the way, gradients included, over that of the kernels."""
    tracemalloc.start()
    network_similarity(layers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / sum(layer.nbytes for layer in layers.values())


def pytorch_pairs(kernels: Any) -> float:
    """Time the definition as one writes it in PyTorch, every pair's full convolutions and autograd: milliseconds."""
    import torch

    leaf = torch.from_numpy(kernels).requires_grad_()
    pad = [size - 1 for size in kernels.shape[2:]]
    began = time.perf_counter()
    for i in range(len(leaf) - 1):
        later = leaf[i + 1 :].reshape(-1, 1, *kernels.shape[2:])
        # A backward pass for each filter, or the graph of all pairs would not fit the memory.
        (torch.nn.functional.conv2d(leaf[i][:, None], later, padding=pad) ** 2).sum().backward()
    seconds = time.perf_counter() - began
    gradient = convolutional_similarity_and_gradient(kernels)[1]
    assert np.allclose(leaf.grad.numpy(), gradient, rtol=1e-3, atol=1e-4 * abs(gradient).max())
    return 1e3 * seconds


def against_pytorch() -> None:
    print("| kernels | PyTorch, all pairs (ms) | convla (ms) | ratio |\n|---|---|---|---|")
    for channels in (16, 32, 64):
        kernels = random_kernels((channels, channels, 3, 3))
        ours = best(functools.partial(convolutional_similarity_and_gradient, kernels))
        theirs = pytorch_pairs(kernels)
        print(f"| {channels}x{channels}x3x3 | {theirs:,.0f} | {ours:.3f} | {theirs / ours:,.0f} |")


def against_memory() -> None:
    print("| float32 | threads | value and gradient (ms) | memory floor (ms) | ratio | memory taken, of the kernels' |")
    print("|---|---|---|---|---|---|")
    network = {str(i): random_kernels(shape, i) for i, shape in enumerate(RESNET18)}
    cases = [("512x512x3x3", {"0": random_kernels((512, 512, 3, 3))}), ("ResNet18, 20 layers", network)]
    for name, layers in cases:
        for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(threads)
            ours = best(functools.partial(network_similarity, layers))
            least = floor(list(layers.values()))
            taken = memory_taken(layers)
            print(f"| {name} | {threads} | {ours:.2f} | {least:.2f} | {ours / least:.1f} | {taken:.2f} |")
    published = 1e3 * PUBLISHED_STEP / ours
    print(f"\nthe published step of ResNet18, {PUBLISHED_STEP:.0f} s on a GPU, over ours: {published:,.0f}")
    began = time.perf_counter()
    initialize_network(network, iterations=20)
    print(f"one iteration of Algorithm 1 on ResNet18, Adam included: {1e3 * (time.perf_counter() - began) / 20:.0f} ms")


def against_each_other() -> None:
    print("| kernels | autocorrelation (ms) | its reference (ms) | spectral (ms) |\n|---|---|---|---|")
    sizes: list[tuple[int, ...]] = [
        (3, 3),
        (5, 5),
        (7, 7),
        (15, 15),
        (31, 31),
        (43, 43),
        (33,),
        (129,),
        (257,),
        (3, 3, 3),
    ]
    for channels in (3, 64):
        for size in sizes:
            kernels = random_kernels((16, channels, *size))
            calls = [
                functools.partial(convolutional_similarity_and_gradient, kernels, **options)
                for options in (
                    {"method": "autocorrelation"},
                    {"method": "autocorrelation", "engine": "reference"},
                    {"method": "spectral"},
                )
            ]
            times = [best(call, repeats=10) for call in calls]
            print(f"| {'x'.join(map(str, kernels.shape))} | " + " | ".join(f"{t:.3g}" for t in times) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="write the tables into docs/performance-similarity.md")
    write = parser.parse_args().page
    parts = {"memory": against_memory, "definition": against_pytorch, "methods": against_each_other}
    for name, part in parts.items():
        with measured("performance-similarity.md", name, write=write):
            print(f"{machine('numba', 'torch')}\n")
            part()


if __name__ == "__main__":
    main()
