"""Gradient transforms and orthogonal initialisation beside what a user of PyTorch would write, in one run.

What is compared runs in turn, round by round; a ratio is the median of the rounds' ratios, a time the median of the
rounds' times. First with the threads that every library takes by default, by the clock; then, in a process of its own,
on one thread by processor time, which other work on the machine changes little. Prints Markdown tables, in two or three
minutes. Run with ``python benchmarks/bench_gradients.py [--one-thread] [--page]``; ``--page`` writes them into
docs/performance-gradients.md.
"""

from __future__ import annotations

import argparse
import os

# ruff: noqa: E402
_parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
_parser.add_argument("--one-thread", action="store_true", help="only that half")
_parser.add_argument("--page", action="store_true", help="write the tables into docs/performance-gradients.md")
OPTIONS = _parser.parse_args()
if OPTIONS.one_thread:
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[_name] = "1"  # before the libraries load

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import threadpoolctl
import torch
from pages import machine, measured

import convla
from convla.experiments.training.networks import resnet
from convla.frameworks.torch import GradientTransform

clock = time.process_time if OPTIONS.one_thread else time.perf_counter

Array = np.ndarray[Any, Any]

# The convolutions of ResNet-18 for 32 x 32 images: shape, and how many of them.
RESNET18 = {
    (64, 3, 3, 3): 1,
    (64, 64, 3, 3): 4,
    (128, 64, 3, 3): 1,
    (128, 128, 3, 3): 3,
    (128, 64, 1, 1): 1,
    (256, 128, 3, 3): 1,
    (256, 256, 3, 3): 3,
    (256, 128, 1, 1): 1,
    (512, 256, 3, 3): 1,
    (512, 512, 3, 3): 3,
    (512, 256, 1, 1): 1,
}


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, Array]:
    """Return the milliseconds of each call in each of several rounds, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            began = clock()
            call()
            times[name].append(1e3 * (clock() - began))
    return {name: np.array(values[1:]) for name, values in times.items()}


def milliseconds(call: Callable[[], object], repetitions: int = 5) -> float:
    """Return the median time of a call, after one to warm up."""
    return float(np.median(in_turn({"": call}, repetitions)[""]))


def ratio(first: Array, second: Array) -> float:
    """Return the median over the rounds of the ratio of two calls' times."""
    return float(np.median(first / second))


def muon_loop(gradient: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz with Muon's coefficients and 5 steps, as it is published, in float32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.flatten(1)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def fft_denominator(gradient: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the eigenvalues of Laplacian smoothing as Osher et al.'s code and torchzero compute them."""
    second_difference = torch.zeros(gradient.numel())
    second_difference[0], second_difference[1], second_difference[-1] = -2.0, 1.0, 1.0
    return 1 - sigma * torch.fft.fft(second_difference)


def fft_smoothing(gradient: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Smooth the flat gradient by a complex FFT, as Osher et al.'s code and torchzero do it."""
    return torch.fft.ifft(torch.fft.fft(gradient.flatten()) / denominator).real.reshape(gradient.shape)


def torchzero_smoothing() -> Callable[[torch.Tensor, float], torch.Tensor] | None:
    """Return torchzero's function where it is installed (``pip install --no-deps torchzero``)."""
    try:
        from torchzero.modules.smoothing.laplacian import vector_laplacian_smoothing
    except ImportError:
        return None
    smooth: Callable[[torch.Tensor, float], torch.Tensor] = vector_laplacian_smoothing
    return smooth


def with_condition(shape: tuple[int, ...], condition: float) -> Array:
    """Return a float32 gradient whose matrix has singular values spaced evenly in their logarithm."""
    gaussian = np.random.default_rng(0).standard_normal((shape[0], int(np.prod(shape[1:]))))
    u, _, vt = np.linalg.svd(gaussian, full_matrices=False)
    values = np.logspace(0, -np.log10(condition), min(gaussian.shape))
    return ((u * values) @ vt).reshape(shape).astype(np.float32)


def defect(isometry: Array) -> float:
    """Return the relative Frobenius distance of the rows' Gram matrix to the identity."""
    rows = np.asarray(isometry, np.float64).reshape(isometry.shape[0], -1)
    return float(np.linalg.norm(rows @ rows.T - np.eye(len(rows))) / np.sqrt(len(rows)))


def orthonormalisation() -> None:
    print("| gradient, float32 | method | ms | SVD / method | Newton-Schulz / method | orthogonality error |")
    print("|---|---|---|---|---|---|")
    shape = (512, 512, 3, 3)
    gaussian = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for name, gradient in (("Gaussian, condition 2", gaussian), ("condition 1e4", with_condition(shape, 1e4))):
        tensor = torch.from_numpy(gradient)
        results: dict[str, Callable[[], Any]] = {
            "torch.linalg.svd": lambda t=tensor: svd(t),
            "Newton-Schulz of Muon, torch": lambda t=tensor: muon_loop(t),
        }
        for method in ("exact", "svd", "newton-schulz", "polar-express"):
            results[f"convla, {method}"] = lambda g=gradient, m=method: convla.orthonormalize(g, method=m)
        times = in_turn(results)
        for label, ms in times.items():
            result = results[label]()
            error = defect(np.asarray(result[0] @ result[2] if isinstance(result, tuple) else result))
            ratios = " | ".join(f"{ratio(times[other], ms):.1f}" for other in list(results)[:2])
            print(f"| {name} | {label} | {np.median(ms):.0f} | {ratios} | {error:.1e} |")


def svd(gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the factors U, S, V^T by torch.linalg.svd, in the gradient's dtype."""
    return tuple(torch.linalg.svd(gradient.flatten(1), full_matrices=False))


def whole_network() -> None:
    print("\n| the 20 convolutions of ResNet-18, condition 1e3 | ms | ratio |\n|---|---|---|")
    gradients = [with_condition(shape, 1e3) for shape, count in RESNET18.items() for _ in range(count)]
    tensors = [torch.from_numpy(gradient) for gradient in gradients]
    times = in_turn(
        {
            "torch.linalg.svd": lambda: [svd(t) for t in tensors],
            "Newton-Schulz of Muon, torch": lambda: [muon_loop(t) for t in tensors],
            "convla, exact": lambda: [convla.orthonormalize(g) for g in gradients],
        },
        3,
    )
    for name, ms in times.items():
        print(f"| {name} | {np.median(ms):.0f} | {ratio(ms, times['convla, exact']):.1f} |")


def channel_directed() -> None:
    rng = np.random.default_rng(0)
    shapes = [shape for shape, count in RESNET18.items() for _ in range(count)]
    gradients = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    tensors = [torch.from_numpy(gradient.copy()) for gradient in gradients]
    kept = [np.empty_like(gradient) for gradient in gradients]
    size = sum(gradient.size for gradient in gradients)
    one = np.float32(1)
    denominators = [fft_denominator(t, 1.0) for t in tensors]
    calls: dict[str, Callable[[], object]] = {
        "one read and write: gradient * 1": lambda: [gradient * one for gradient in gradients],
        "the same into arrays that are kept": lambda: [
            np.multiply(gradient, one, out=out) for gradient, out in zip(gradients, kept, strict=True)
        ],
        "reweighted_gradient": lambda: [convla.reweighted_gradient(g, 2.0) for g in gradients],
        "sobolev_gradient": lambda: [convla.sobolev_gradient(g, 1.0, blend=0.5) for g in gradients],
        "laplacian_smoothing, output channels, sweeps": lambda: [
            convla.laplacian_smoothing(g, 1.0, axis=0) for g in gradients
        ],
        "laplacian_smoothing, output channels, fft": lambda: [
            convla.laplacian_smoothing(g, 1.0, axis=0, method="fft") for g in gradients
        ],
        "laplacian_smoothing, rasterised, sweeps": lambda: [convla.laplacian_smoothing(g, 1.0) for g in gradients],
        "Figure 3 of CDG, torch, in place": lambda: [
            t.add_(1e-6 * t.mean(0, keepdim=True).repeat(t.shape[0], 1, 1, 1)) for t in tensors
        ],
        "smoothing by complex FFT, torch, eigenvalues kept": lambda: [
            fft_smoothing(t, d) for t, d in zip(tensors, denominators, strict=True)
        ],
    }
    theirs = torchzero_smoothing()
    if theirs is not None:
        calls["smoothing by torchzero"] = lambda: [theirs(t, 1.0) for t in tensors]
    times = in_turn(calls, 15)
    floor, fft = (times[name] for name in (next(iter(calls)), "smoothing by complex FFT, torch, eigenvalues kept"))
    print(f"\n| over {size / 1e6:.1f} M parameters | ms | times one read and write | complex FFT / this |")
    print("|---|---|---|---|")
    for name, ms in times.items():
        print(f"| {name} | {np.median(ms):.1f} | {ratio(ms, floor):.2f} | {ratio(fft, ms):.1f} |")


def initialisation() -> None:
    print("\n| orthogonal initialisation, float32 | torch, ms | convla, ms | ratio | our orthogonality error |")
    print("|---|---|---|---|---|")
    for shape in ((64, 64, 3, 3), (256, 256, 3, 3), (512, 512, 3, 3), (512, 512, 1, 1)):
        weights = torch.empty(shape)
        times = in_turn(
            {
                "torch": lambda w=weights: torch.nn.init.orthogonal_(w),
                "convla": lambda s=shape: convla.orthogonal_kernel(s, rng=0, dtype=np.float32),
            }
        )
        theirs, ours = times["torch"], times["convla"]
        error = defect(convla.orthogonal_kernel(shape, rng=0, dtype=np.float32))
        print(
            f"| {shape} | {np.median(theirs):.1f} | {np.median(ours):.1f} | {ratio(theirs, ours):.2f} | {error:.1e} |"
        )


def operator() -> None:
    print("\n| orthonormalisation of the layer's operator, float32 | filters, ms | operator, ms | ratio |")
    print("|---|---|---|---|")
    for channels, n in ((16, 16), (64, 16), (64, 32)):
        gradient = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)
        rows = milliseconds(lambda g=gradient: convla.orthonormalize(g), 3)
        layer = milliseconds(lambda g=gradient, n=n: convla.orthonormalize_operator(g, (n, n)), 2)
        print(f"| {channels} x {channels} x 3 x 3 on {n} x {n} | {rows:.1f} | {layer:.0f} | {layer / rows:.0f} |")


def wrappers() -> None:
    torch.manual_seed(0)
    network = resnet(stem="cifar")
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)
    x, y = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))

    def forward_and_backward() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()

    step = milliseconds(forward_and_backward, 2)
    plain = milliseconds(optimizer.step)
    print("\n| ResNet-18, batch of 32: transform in optimizer.step() | added, ms | of a training step |\n|---|---|---|")
    print(f"| none: forward, backward and SGD with momentum take {step + plain:.0f} ms | | |")
    options: dict[str, dict[str, Any]] = {
        "reweighted": {"lam": 2.0},
        "sobolev": {"lam": 1.0, "blend": 0.5},
        "laplacian": {"sigma": 1.0, "axis": 0},
        "normalized": {},
        "orthonormal": {},
        "orthonormal, Newton-Schulz": {"method": "newton-schulz"},
    }
    for name, keywords in options.items():
        handle = GradientTransform(optimizer, name.partition(",")[0], **keywords)
        added = milliseconds(optimizer.step, 3) - plain
        handle.remove()
        print(f"| {name} | {added:.0f} | {100 * added / (step + plain):.1f} % |")


def main() -> None:
    blas = {pool["architecture"] for pool in threadpoolctl.threadpool_info() if pool.get("architecture")}
    threads = "one thread" if OPTIONS.one_thread else "default threads"
    with measured("performance-gradients.md", threads, write=OPTIONS.page):
        print(f"{machine('numba', 'torch', threads=threads)} OpenBLAS runs kernels for {', '.join(sorted(blas))}.\n")
        for part in (orthonormalisation, whole_network, channel_directed, initialisation, operator, wrappers):
            part()
    if not OPTIONS.one_thread:
        command = [sys.executable, __file__, "--one-thread", *["--page"] * OPTIONS.page]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
