"""Every operation of the performance pages on one thread and on all, idle and beside two processes that compute.

One thread is asked for as a user would, with ``threadpoolctl.threadpool_limits(1)``; all is what nobody set. The two
take turns. On the idle machine the least time of each counts; beside busy processes, which this starts itself, the
mean, as the least would be of luck. Prints Markdown, and what was slower with more threads than with one, in about five
minutes. Run with ``python benchmarks/bench_threads.py [--seconds S] [--only WORD] [--page]``; ``--page`` writes the
table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pages import busy_processes, machine, measured
from threadpoolctl import threadpool_limits

import convla
from convla import ConvOperator
from convla.experiments.training.networks import resnet
from convla.frameworks.torch import GradientTransform
from convla.penalties import Power
from convla.similarity import orthogonality

Work = Callable[[], Any]

NOISE = 0.9
"""Below this ratio of the time on one thread to that on all, an operation is called slower with more threads."""

rng = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return rng.standard_normal(shape).astype(dtype)


def products() -> dict[str, Work]:
    """Return the rows of docs/performance.md."""
    found: dict[str, Work] = {}
    for size, channels in ((32, 1), (32, 16), (32, 64), (7, 512), (224, 3), (224, 64)):
        operator = ConvOperator(normal(channels, channels, 3, 3), (size, size))
        image = normal(channels, size, size)
        layer = f"{channels} channels, {size} x {size}"
        found[f"apply, {layer}"] = lambda o=operator, x=image: o.apply(x)
        found[f"adjoint, {layer}"] = lambda o=operator, x=image: o.adjoint(x)
        found[f"kernel adjoint, {layer}"] = lambda o=operator, x=image: o.kernel_adjoint(x, x)
    long, signal = ConvOperator(normal(1, 1, 4095), (65_536,)), normal(1, 65_536)
    found["apply, 4095 taps, 65,536 points"] = lambda: long.apply(signal)
    geometry = convla.ConvGeometry((16, 16, 3, 3), (16, 16), padding="same")
    for form in ("csr", "dense"):
        kernel = normal(16, 16, 3, 3)
        found[f"matrix, {form}, 16 channels, 16 x 16"] = lambda k=kernel, f=form: convla.convolution_matrix(
            k, geometry, format=f
        )
    return found


def spectra() -> dict[str, Work]:
    """Return the rows of docs/performance-spectra.md and docs/performance-penalty.md."""
    found: dict[str, Work] = {}
    for channels, size in ((64, 32), (512, 7)):
        operator = ConvOperator(normal(channels, channels, 3, 3), (size, size))
        layer = f"{channels} channels, {size} x {size}"
        found[f"largest_singular_value, {layer}"] = lambda o=operator: convla.largest_singular_value(o)
        found[f"singular_value_bounds, {layer}"] = lambda o=operator: convla.singular_value_bounds(o)
    for channels in (4, 8):
        small = ConvOperator(normal(channels, channels, 3, 3, dtype=np.float64), (16, 16))
        found[f"smallest_singular_value, {channels} channels, 16 x 16"] = lambda o=small: (
            convla.smallest_singular_value(o)
        )
    circular = ConvOperator(normal(64, 64, 3, 3), (32, 32), boundary="circular")
    found["singular_values, 64 channels, 32 x 32, circular"] = lambda: convla.singular_values(circular)
    for channels, size in ((16, 32), (64, 32)):
        operator = ConvOperator(normal(channels, channels, 3, 3), (size, size))
        found[f"ten steps of the penalty's descent, {channels} channels, {size} x {size}"] = lambda o=operator: (
            convla.penalties.minimize_penalty(o, 1.0, iterations=10, tracker=Power(iterations=2))
        )
    return found


def similarity() -> dict[str, Work]:
    """Return the rows of docs/performance-similarity.md."""
    shapes = [tuple(layer.shape) for layer in resnet(stem="cifar").parameters() if layer.ndim == 4]
    network = {str(place): normal(*shape) for place, shape in enumerate(shapes)}
    kernels = normal(512, 512, 3, 3)
    small = normal(64, 64, 3, 3)
    return {
        "similarity and gradient, 64x64x3x3": lambda: convla.convolutional_similarity_and_gradient(small),
        "similarity and gradient, 512x512x3x3": lambda: convla.convolutional_similarity_and_gradient(kernels),
        "kernel_orthogonality and gradient, 512x512x3x3": lambda: orthogonality.kernel_orthogonality_and_gradient(
            kernels
        ),
        "ocnn_residual and gradient, 512x512x3x3": lambda: orthogonality.ocnn_residual_and_gradient(kernels),
        "similarity and gradient, ResNet18": lambda: convla.network_similarity(network),
    }


def gradients() -> dict[str, Work]:
    """Return the rows of docs/performance-gradients.md."""
    gradient = normal(512, 512, 3, 3)
    found: dict[str, Work] = {
        f"orthonormalize, {method}, 512x512x3x3": lambda m=method: convla.orthonormalize(gradient, method=m)
        for method in ("exact", "svd", "newton-schulz", "polar-express")
    }
    found |= {
        "reweighted_gradient, 512x512x3x3": lambda: convla.reweighted_gradient(gradient, 2.0),
        "sobolev_gradient, 512x512x3x3": lambda: convla.sobolev_gradient(gradient, 1.0, blend=0.5),
        "laplacian_smoothing, axis 0, 512x512x3x3": lambda: convla.laplacian_smoothing(gradient, 1.0, axis=0),
        "laplacian_smoothing, rasterised, 512x512x3x3": lambda: convla.laplacian_smoothing(gradient, 1.0),
        "laplacian_smoothing, fft, 512x512x3x3": lambda: convla.laplacian_smoothing(
            gradient, 1.0, axis=0, method="fft"
        ),
        "orthogonal_kernel, 64x64x3x3": lambda: convla.orthogonal_kernel((64, 64, 3, 3), rng=0, dtype=np.float32),
        "orthogonal_kernel, 512x512x3x3": lambda: convla.orthogonal_kernel((512, 512, 3, 3), rng=0, dtype=np.float32),
    }
    layer = normal(16, 16, 3, 3)
    found["orthonormalize_operator, 16x16x3x3, 16 x 16"] = lambda: convla.orthonormalize_operator(layer, (16, 16))
    small = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3) for _ in range(3)))
    for name, network in (("three small layers", small), ("ResNet18", resnet(stem="cifar"))):
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        GradientTransform(optimizer, "sobolev", lam=1.0, blend=0.5)
        found[f"a step with a Sobolev gradient, {name}"] = optimizer.step
    return found


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold every library to one thread."""
    every = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(every)


def both(work: Work, seconds: float, *, busy: bool) -> tuple[float, float]:
    """Return the seconds of a call on one thread and on all, taken in turn for so long together."""
    times: tuple[list[float], list[float]] = ([], [])
    work()
    end = time.perf_counter() + seconds
    while not times[1] or time.perf_counter() < end:
        for limits, kept in zip((one_thread, contextlib.nullcontext), times, strict=True):
            with limits():
                time.sleep(0.01)  # lets the threads of the other way go to sleep
                work()
                stretch = time.perf_counter() + seconds / 10
                while True:
                    began = time.perf_counter()
                    work()
                    kept.append(time.perf_counter() - began)
                    if time.perf_counter() > stretch:
                        break
    one, every = (statistics.fmean(kept) if busy else min(kept) for kept in times)
    return one, every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each operation and machine (default 2)")
    parser.add_argument("--only", default="", help="operations whose names hold this")
    parser.add_argument("--page", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    works = {
        name: work
        for rows in (products, spectra, similarity, gradients)
        for name, work in rows().items()
        if options.only in name
    }
    with measured("performance.md", "threads", write=options.page):
        print(f"{machine('numba', 'torch')} Times in ms; a ratio above 1: more threads are the faster.\n")
        head = ("idle, one thread", "all", "ratio", "beside two busy processes, one thread", "all", "ratio")
        print(f"| operation | {' | '.join(head)} |\n{'|---' * 7}|")
        slower = {"idle": [], "busy": []}
        for name, work in works.items():
            cells = []
            for count, kind in ((0, "idle"), (2, "busy")):
                with busy_processes(count):
                    one, every = both(work, options.seconds, busy=count > 0)
                cells += [f"{1e3 * one:.3g}", f"{1e3 * every:.3g}", f"{one / every:.2f}"]
                if one < NOISE * every:
                    slower[kind].append(f"{name} ({one / every:.2f})")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print()
        for kind, names in slower.items():
            where = "On the idle machine" if kind == "idle" else "Beside two busy processes"
            said = "; ".join(names) or "none"
            print(f"{where}, slower on {os.cpu_count()} threads than on one by more than a tenth: {said}.")


if __name__ == "__main__":
    main()
