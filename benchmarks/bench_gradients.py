"""Gradient transforms and orthogonal initialisation beside what a user of PyTorch would write, in one run.

Times are processor time of one thread, the least of several calls, so that other work on the machine changes little.
Prints Markdown tables. Run with ``python benchmarks/bench_gradients.py``.
"""

from __future__ import annotations

import os

# ruff: noqa: E402
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # before the libraries load

import itertools
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import convla
from convla.frameworks.torch import GradientTransform

torch.set_num_threads(1)

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


def milliseconds(call: Callable[[], object], repetitions: int = 5) -> float:
    """Return the least processor time of a call, after one to warm up."""
    call()
    best = float("inf")
    for _ in range(repetitions):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return 1e3 * best


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


def fft_smoothing(gradient: torch.Tensor, sigma: float) -> torch.Tensor:
    """Laplacian smoothing of the flat gradient by a complex FFT, as Osher et al.'s code and torchzero do it."""
    flat = gradient.flatten()
    second_difference = torch.zeros_like(flat)
    second_difference[0], second_difference[1], second_difference[-1] = -2.0, 1.0, 1.0
    spectrum = torch.fft.fft(flat) / (1 - sigma * torch.fft.fft(second_difference))
    return torch.fft.ifft(spectrum).real.reshape(gradient.shape)


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
        times = {
            "torch.linalg.svd": milliseconds(lambda t=tensor: torch.linalg.svd(t.flatten(1), full_matrices=False), 3),
            "Newton-Schulz of Muon, torch": milliseconds(lambda t=tensor: muon_loop(t)),
        }
        u, _, vt = torch.linalg.svd(tensor.flatten(1), full_matrices=False)
        errors = dict(zip(times, (defect((u @ vt).numpy()), defect(muon_loop(tensor).numpy())), strict=True))
        for method in ("exact", "svd", "newton-schulz", "polar-express"):
            label = f"convla, {method}"
            times[label] = milliseconds(lambda g=gradient, m=method: convla.orthonormalize(g, method=m), 3)
            errors[label] = defect(convla.orthonormalize(gradient, method=method))
        svd, loop = times["torch.linalg.svd"], times["Newton-Schulz of Muon, torch"]
        for label, ms in times.items():
            print(f"| {name} | {label} | {ms:.0f} | {svd / ms:.1f} | {loop / ms:.1f} | {errors[label]:.1e} |")


def whole_network() -> None:
    print("\n| the 20 convolutions of ResNet-18, condition 1e3 | ms | ratio |\n|---|---|---|")
    rows = {"torch.linalg.svd": 0.0, "Newton-Schulz of Muon, torch": 0.0, "convla, exact": 0.0}
    for shape, count in RESNET18.items():
        gradient = with_condition(shape, 1e3)
        tensor = torch.from_numpy(gradient)
        calls: tuple[Callable[[], object], ...] = (
            lambda t=tensor: torch.linalg.svd(t.flatten(1), full_matrices=False),
            lambda t=tensor: muon_loop(t),
            lambda g=gradient: convla.orthonormalize(g),
        )
        for name, call in zip(rows, calls, strict=True):
            rows[name] += count * milliseconds(call, 3)
    for name, ms in rows.items():
        print(f"| {name} | {ms:.0f} | {ms / rows['convla, exact']:.1f} |")


def channel_directed() -> None:
    rng = np.random.default_rng(0)
    shapes = [shape for shape, count in RESNET18.items() for _ in range(count)]
    gradients = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    tensors = [torch.from_numpy(gradient) for gradient in gradients]
    size = sum(gradient.size for gradient in gradients)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    calls: dict[str, Callable[[], object]] = {
        "one read and write: gradient * 1": lambda: [gradient * np.float32(1) for gradient in gradients],
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
            t.add_(1.0 * t.mean(0, keepdim=True).repeat(t.shape[0], 1, 1, 1)) for t in tensors
        ],
        "smoothing by complex FFT, torch, layer by layer": lambda: [fft_smoothing(t, 1.0) for t in tensors],
        "smoothing by complex FFT, torch, all at once": lambda: fft_smoothing(flat, 1.0),
    }
    times = {name: milliseconds(call) for name, call in calls.items()}
    floor = times["one read and write: gradient * 1"]
    fft = times["smoothing by complex FFT, torch, layer by layer"]
    print(f"\n| over {size / 1e6:.1f} M parameters | ms | times one read and write | FFT layer by layer / this |")
    print("|---|---|---|---|")
    for name, ms in times.items():
        print(f"| {name} | {ms:.0f} | {ms / floor:.2f} | {fft / ms:.1f} |")


def initialisation() -> None:
    print("\n| orthogonal initialisation, float32 | torch, ms | convla, ms | ratio | our orthogonality error |")
    print("|---|---|---|---|---|")
    for shape in ((64, 64, 3, 3), (256, 256, 3, 3), (512, 512, 3, 3), (512, 512, 1, 1)):
        weights = torch.empty(shape)
        theirs = milliseconds(lambda w=weights: torch.nn.init.orthogonal_(w))
        ours = milliseconds(lambda s=shape: convla.orthogonal_kernel(s, rng=0, dtype=np.float32))
        error = defect(convla.orthogonal_kernel(shape, rng=0, dtype=np.float32))
        print(f"| {shape} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.2f} | {error:.1e} |")


def operator() -> None:
    print("\n| orthonormalisation of the layer's operator, float32 | filters, ms | operator, ms | ratio |")
    print("|---|---|---|---|")
    for channels, n in ((16, 16), (64, 16), (64, 32)):
        gradient = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)
        rows = milliseconds(lambda g=gradient: convla.orthonormalize(g), 3)
        layer = milliseconds(lambda g=gradient, n=n: convla.orthonormalize_operator(g, (n, n)), 2)
        print(f"| {channels} x {channels} x 3 x 3 on {n} x {n} | {rows:.1f} | {layer:.0f} | {layer / rows:.0f} |")


class Block(torch.nn.Module):
    """A basic residual block."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(before, after, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(after),
            torch.nn.ReLU(),
            torch.nn.Conv2d(after, after, 3, 1, 1, bias=False),
            torch.nn.BatchNorm2d(after),
        )
        self.shortcut = torch.nn.Identity() if stride == 1 else torch.nn.Conv2d(before, after, 1, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's features."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18() -> torch.nn.Module:
    """Return ResNet-18 for 32 x 32 images."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(before, after) for before, after in itertools.pairwise(widths)]
    stem = [torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU()]
    return torch.nn.Sequential(
        *stem, *blocks, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 10)
    )


def wrappers() -> None:
    torch.manual_seed(0)
    network = resnet18()
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
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, numpy {np.__version__}\n")
    orthonormalisation()
    whole_network()
    channel_directed()
    initialisation()
    operator()
    wrappers()


if __name__ == "__main__":
    main()
