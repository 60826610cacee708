"""Singular values of a layer: convla against what a user would pick, in one run, at measured accuracy.

Each row gives the least time of a few calls, fewer where they are long, the measured relative error against a float64
value of 1e-11, the convolutions, and how many times longer it took than convla's row of its block. A solver is asked
for the accuracy that convla is asked for, 1e-6; "at best" is the loosest of its tolerances that reaches it, which a
user does not know. Every library runs with the threads that it takes by default, and the time is that of the clock, for
idle machines; with ``--threads 1`` all are held to one, and the time is the processor's, for machines that are shared.

Prints Markdown, in two or three minutes. Run with ``python benchmarks/bench_spectra.py [--threads N] [--repeats 5]
[--slow] [--page]``; ``--slow`` adds SciPy's ``svds(which="SM")``, which takes minutes; ``--page`` writes the tables
into docs/performance-spectra.md.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pages import machine, measured
from scipy.sparse.linalg import ArpackError, LinearOperator, splu, svds
from threadpoolctl import threadpool_limits

from convla import (
    ConvOperator,
    largest_singular_value,
    singular_value_bounds,
    singular_values,
    smallest_singular_value,
)

ACCURACY = 1e-6
PATIENCE = 1.5  # seconds for the calls of one row, but for the first
clock = time.perf_counter


def layer(channels: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    kernel = np.random.default_rng(seed).standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)
    return kernel.astype(dtype)


def timed(function: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Return the best time in milliseconds, and the value; the first call counts where it is the only one."""
    times: list[float] = []
    while len(times) <= repeats and sum(times) < PATIENCE:
        Count.convolutions = 0
        began = clock()
        value = function()
        times.append(clock() - began)
    return 1e3 * min(times[1:] or times), float(value)


class Count:
    """The convolutions that the last call took."""

    convolutions = 0


def torch_linear_operator(kernel: np.ndarray, n: int) -> LinearOperator:
    weight, channels = torch.from_numpy(kernel), kernel.shape[0]

    def run(convolve: Any, vector: np.ndarray) -> np.ndarray:
        Count.convolutions += 1
        image = torch.from_numpy(np.ascontiguousarray(vector, np.float32)).reshape(1, channels, n, n)
        with torch.no_grad():
            return convolve(image, weight, padding=1).numpy().ravel()

    functional = torch.nn.functional
    return LinearOperator(
        (channels * n * n,) * 2,
        matvec=lambda x: run(functional.conv2d, x),
        rmatvec=lambda y: run(functional.conv_transpose2d, y),
        dtype=np.float32,
    )


def ours(operator: ConvOperator) -> float:
    found = largest_singular_value(operator, rtol=ACCURACY)
    Count.convolutions = found.matvecs
    return found.value


def svds_value(operator: LinearOperator, **options: Any) -> float:
    return float(svds(operator, k=1, return_singular_vectors=False, rng=np.random.default_rng(0), **options)[0])


def power_iteration(kernel: np.ndarray, n: int, steps: int) -> float:
    weight, functional = torch.from_numpy(kernel), torch.nn.functional
    image = torch.randn(1, kernel.shape[1], n, n, generator=torch.Generator().manual_seed(0))
    Count.convolutions = 2 * steps + 1
    with torch.no_grad():
        for _ in range(steps):
            image = functional.conv_transpose2d(functional.conv2d(image, weight, padding=1), weight, padding=1)
            image = image / image.norm()
        return functional.conv2d(image, weight, padding=1).norm().item()


def full_grid_norm(kernel: np.ndarray, size: int) -> float:
    """Return the circulant norm the plain way: FFT, then eigenvalues of half the grid's Gram matrices."""
    symbol = np.fft.rfft2(kernel, (size, size)).transpose(2, 3, 0, 1)
    return float(np.sqrt(np.linalg.eigvalsh(symbol.conj().swapaxes(-1, -2) @ symbol).max()))


def fft_svd(kernel: np.ndarray, n: int) -> float:
    """Sedghi, Gupta and Long's program."""
    transform = np.fft.fft2(kernel, (n, n)).transpose(2, 3, 0, 1)
    return float(np.linalg.svd(transform, compute_uv=False).max())


def lu_svds(kernel: np.ndarray, n: int) -> float:
    factors = splu(ConvOperator(kernel, (n, n)).to_sparse("csc"))
    size = kernel.shape[0] * n * n
    inverse = LinearOperator((size, size), matvec=factors.solve, rmatvec=lambda y: factors.solve(y, "T"), dtype=float)
    return 1 / svds_value(inverse)


def block(
    title: str,
    rows: list[tuple[str, list[Callable[[], float]]]],
    reference: float,
    repeats: int,
    *,
    counted: bool = False,
) -> None:
    """Print one table; the first row is ours. Each row lists its calls from the loosest tolerance on."""
    heads = ["method", "relative error", *(["convolutions"] if counted else []), "ms", "times ours"]
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    ours = None
    for name, calls in rows:
        for call in calls:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of solvers that say they have not converged: the error column tells
                try:
                    elapsed, value = timed(call, repeats)
                    count = Count.convolutions
                except ArpackError:
                    began = clock()
                    with contextlib.suppress(ArpackError):
                        call()
                    elapsed, value, count = 1e3 * (clock() - began), math.nan, 0
            if abs(value / reference - 1) <= ACCURACY:
                break
        ours = elapsed if ours is None else ours
        error = "no convergence" if math.isnan(value) else f"{value / reference - 1:+.1e}"
        cells = [name, error, *([str(count or "")] if counted else []), f"{elapsed:.1f}", f"{elapsed / ours:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def largest(repeats: int) -> None:
    for channels, n, seed in ((64, 32, 0), (64, 32, 1), (64, 32, 2), (64, 32, 3), (512, 7, 0)):
        kernel = layer(channels, seed)
        precise = ConvOperator(kernel.astype(np.float64), (n, n))
        reference = largest_singular_value(precise, rtol=1e-11, rng=1).value
        operator, peer = ConvOperator(kernel, (n, n)), torch_linear_operator(kernel, n)
        rows: list[tuple[str, list[Callable[[], float]]]] = [
            ("convla, cold, search included", [lambda o=operator: ours(o)]),
            ("svds ARPACK, PyTorch conv, tol 1e-6", [lambda p=peer: svds_value(p, tol=ACCURACY)]),
            ("at best", [lambda p=peer, t=t: svds_value(p, tol=t) for t in (1e-2, 1e-3, 1e-6)]),
            (
                "svds LOBPCG, PyTorch conv, tol 1e-6",
                [lambda p=peer: svds_value(p, tol=ACCURACY, solver="lobpcg", maxiter=300)],
            ),
            (
                "at best",
                [
                    lambda p=peer, t=t, m=m: svds_value(p, tol=t, solver="lobpcg", maxiter=m)
                    for t, m in ((1e-4, 20), (1e-4, 40), (1e-4, 60), (1e-5, 100), (1e-5, 150))
                ],
            ),
            ("500 power steps, PyTorch", [lambda k=kernel, n=n: power_iteration(k, n, 500)]),
        ]
        title = f"sigma_max, {channels} -> {channels}, 3x3, {n}x{n}, zero-padded, seed {seed}"
        block(title, rows, reference, repeats, counted=True)


def enclosures(repeats: int) -> None:
    for channels, n in ((64, 32), (64, 56), (512, 7)):
        kernel = layer(channels)
        operator = ConvOperator(kernel, (n, n))
        bounds = singular_value_bounds(operator)
        print(f"\nThe enclosure: [{bounds.lower:.6f}, {bounds.upper:.6f}], gap {bounds.upper / bounds.lower - 1:.2e}")
        block(
            f"Upper bound of sigma_max, {channels} -> {channels}, 3x3, {n}x{n} (the error column is the bound's excess "
            "over the grid's norm)",
            [
                ("convla, both sides, certified", [lambda o=operator: singular_value_bounds(o).upper]),
                (
                    f"FFT + eigenvalues on the full half grid of side {n + 1}, one side",
                    [lambda k=kernel, n=n: full_grid_norm(k, n + 1)],
                ),
            ],
            full_grid_norm(kernel.astype(np.float64), n + 1),
            repeats,
        )


def smallest(repeats: int, *, slow: bool) -> None:
    for channels in (4, 8):
        kernel = layer(channels, dtype=np.float64)
        small = ConvOperator(kernel, (16, 16))
        reference = float(np.linalg.svd(small.to_dense(), compute_uv=False)[-1])
        rows = [
            ("convla", [lambda o=small: smallest_singular_value(o).value]),
            ("sparse LU + svds", [lambda k=kernel: lu_svds(k, 16)]),
        ]
        if slow:
            rows.append(("svds SM", [lambda o=small: svds_value(o.as_linear_operator(), which="SM", maxiter=20000)]))
        block(
            f"sigma_min, {channels} -> {channels}, 3x3, 16x16, zero-padded",
            rows,
            reference,
            1 if slow else repeats,
        )


def circular(repeats: int) -> None:
    kernel = layer(64)
    operator = ConvOperator(kernel, (32, 32), boundary="circular")
    block(
        "All singular values, 64 -> 64, 3x3, 32x32, circular",
        [
            ("convla", [lambda: float(singular_values(operator).values[0])]),
            ("NumPy fft2 + batched svd", [lambda: fft_svd(kernel, 32)]),
        ],
        fft_svd(kernel.astype(np.float64), 32),
        repeats,
    )


def main() -> None:
    global clock
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of every library; by default what each takes")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/performance-spectra.md")
    arguments = parser.parse_args()
    repeats, threads = arguments.repeats, arguments.threads
    if threads is not None:
        torch.set_num_threads(threads)
        threadpool_limits(threads)
        if threads == 1:
            clock = time.process_time
    parts: dict[str, Callable[[], None]] = {
        "largest": lambda: largest(repeats),
        "enclosures": lambda: enclosures(repeats),
        "smallest": lambda: smallest(repeats, slow=arguments.slow),
        "circular": lambda: circular(repeats),
    }
    for name, part in parts.items():
        with measured("performance-spectra.md", name, write=arguments.page):
            print(machine("scipy", "numba", "torch", threads=f"{threads or 'default'} threads"))
            part()


if __name__ == "__main__":
    main()
