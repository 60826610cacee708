"""Time the convolution operator against what a user would pick instead; print the tables of docs/performance.md.

Run ``python benchmarks/bench_operators.py [--quick] [--busy N] [--output FILE]`` on an otherwise idle machine, with
nothing set in the environment: the defaults are what is measured. Two libraries that are compared take turns, a
stretch of calls each, and each figure is the least of all its calls: the time that the code needs when nothing else
runs. With ``--busy N`` so many processes compute beside it all the time, and each figure is the mean of all calls.
PyTorch is optional; its columns stay empty without it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy.signal
import scipy.sparse

from convla import ConvGeometry, ConvOperator, convolution_matrix
from convla._threads import at_most, thread_limit

try:
    import torch
except ImportError:
    torch = None

Work = Callable[[], Any]


busy = False
"""Whether other processes compute all the time: then the mean of all calls counts, as the least would be of luck."""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Let so many other processes compute meanwhile."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def least_times(*works: Work, rounds: int, seconds: float) -> list[float]:
    """Return the least time of each piece of work, in seconds; the mean time on a busy machine."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()  # compile, plan, allocate
    for _ in range(rounds):
        for index, work in enumerate(works):
            time.sleep(0.01)  # lets the other library's threads go to sleep
            end = time.perf_counter() + seconds
            while True:
                start = time.perf_counter()
                work()
                stop = time.perf_counter()
                times[index].append(stop - start)
                if stop > end:
                    break
    return [float(np.mean(calls) if busy else np.min(calls)) for calls in times]


def gemm_peak(dtype: Any, rounds: int) -> float:
    """Return the rate of a large matrix product, the better of NumPy's and PyTorch's, in flop/s."""
    a = np.random.default_rng(0).standard_normal((2048, 2048)).astype(dtype)
    works: list[Work] = [lambda: a @ a]
    if torch is not None:
        t = torch.tensor(a)
        works.append(lambda: t @ t)
    return 2 * 2048**3 / min(least_times(*works, rounds=rounds, seconds=0.3))


def copy_bandwidth(rounds: int) -> float:
    """Return the rate of copying 256 MiB, in bytes read and written per second."""
    source = np.ones(2**25)
    target = np.empty_like(source)
    return 2 * source.nbytes / least_times(lambda: np.copyto(target, source), rounds=rounds, seconds=0.3)[0]


def operator_rows(quick: bool) -> Iterator[str]:
    rounds, seconds = (5, 0.12) if quick else (10, 0.3)
    rng = np.random.default_rng(0)
    bandwidth = copy_bandwidth(rounds)
    yield f"Copying memory: {bandwidth / 1e9:.1f} GB/s, read and written.\n"
    for dtype in (np.float32, np.float64):
        peak = gemm_peak(dtype, rounds)
        yield f"\n{np.dtype(dtype)}; a 2048 x 2048 matrix product runs at {peak / 1e9:.0f} Gflop/s.\n"
        yield (
            "| image | channels | apply, us | PyTorch conv2d, us | ratio | adjoint, us | PyTorch conv_transpose2d, us "
            "| ratio | apply by the reference, us | Gflop/s | of GEMM | of bandwidth |\n" + "|---" * 12 + "|"
        )
        for size in (32, 224):
            for channels in (1, 3, 16, 64, 256):
                kernel = rng.standard_normal((channels, channels, 3, 3)).astype(dtype)
                image = rng.standard_normal((channels, size, size)).astype(dtype)
                ours = ConvOperator(kernel, (size, size))
                plain = ConvOperator(kernel, (size, size), engine="reference")
                works: list[Work] = [
                    lambda o=ours, x=image: o.apply(x),
                    lambda o=ours, x=image: o.adjoint(x),
                    lambda o=plain, x=image: o.apply(x),
                ]
                if torch is not None:
                    k, x = torch.tensor(kernel), torch.tensor(image)[None]
                    works.append(lambda k=k, x=x: torch.nn.functional.conv2d(x, k, padding=1))
                    works.append(lambda k=k, x=x: torch.nn.functional.conv_transpose2d(x, k, padding=1))
                times = least_times(*works, rounds=rounds, seconds=seconds)
                apply, adjoint, reference = times[:3]
                theirs = times[3:] or [float("nan")] * 2
                flops = 2 * 9 * channels**2 * size**2
                moved = 2 * image.nbytes + kernel.nbytes
                yield (
                    f"| {size} x {size} | {channels} | {1e6 * apply:.1f} | {1e6 * theirs[0]:.1f} "
                    f"| {theirs[0] / apply:.2f} | {1e6 * adjoint:.1f} | {1e6 * theirs[1]:.1f} "
                    f"| {theirs[1] / adjoint:.2f} | {1e6 * reference:.1f} | {flops / apply / 1e9:.0f} "
                    f"| {flops / apply / peak:.0%} "
                    f"| {moved / apply / bandwidth:.0%} |"
                )


def kernel_adjoint_rows(quick: bool) -> Iterator[str]:
    """Time the gradient of a layer in its weights, as `apply` and `adjoint` above."""
    rounds, seconds = (5, 0.12) if quick else (10, 0.3)
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        peak = gemm_peak(dtype, rounds)
        yield f"\n{np.dtype(dtype)}; a 2048 x 2048 matrix product runs at {peak / 1e9:.0f} Gflop/s.\n"
        yield (
            "| image | channels | kernel adjoint, us | PyTorch conv2d_weight, us | ratio | by the reference, us "
            "| applications | Gflop/s | of GEMM |\n" + "|---" * 9 + "|"
        )
        for size in (32, 224):
            for channels in (1, 3, 16, 64, 256):
                shape = (channels, channels, 3, 3)
                kernel = rng.standard_normal(shape).astype(dtype)
                image, features = rng.standard_normal((2, channels, size, size)).astype(dtype)
                ours = ConvOperator(kernel, (size, size))
                plain = ConvOperator(kernel, (size, size), engine="reference")
                works: list[Work] = [
                    lambda o=ours, x=image, y=features: o.kernel_adjoint(y, x),
                    lambda o=plain, x=image, y=features: o.kernel_adjoint(y, x),
                    lambda o=ours, x=image: o.apply(x),
                ]
                if torch is not None:
                    x, y = torch.tensor(image)[None], torch.tensor(features)[None]
                    works.append(lambda x=x, y=y, s=shape: torch.nn.grad.conv2d_weight(x, s, y, padding=1))
                gradient, reference, application, *theirs = least_times(*works, rounds=rounds, seconds=seconds)
                theirs = theirs or [float("nan")]
                flops = 2 * 9 * channels**2 * size**2
                yield (
                    f"| {size} x {size} | {channels} | {1e6 * gradient:.1f} | {1e6 * theirs[0]:.1f} "
                    f"| {theirs[0] / gradient:.2f} | {1e6 * reference:.1f} | {gradient / application:.2f} "
                    f"| {flops / gradient / 1e9:.0f} | {flops / gradient / peak:.0%} |"
                )


def alone(work: Work) -> Work:
    """Return the work on one thread."""

    def on_one_thread() -> Any:
        with at_most(1):
            return work()

    return on_one_thread


def thread_rows(quick: bool) -> Iterator[str]:
    """Time each product on one thread and on all that are allowed: more must not take longer."""
    rounds, seconds = (5, 0.12) if quick else (20, 0.3)
    rng = np.random.default_rng(0)
    yield "| image | channels | product | one thread, us | all, us | ratio |\n" + "|---" * 6 + "|"
    for size, channels in ((32, 1), (32, 16), (32, 32), (32, 64), (7, 512), (224, 3), (224, 16), (224, 64)):
        kernel = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
        image = rng.standard_normal((channels, size, size)).astype(np.float32)
        operator = ConvOperator(kernel, (size, size))
        products: dict[str, Work] = {
            "apply": lambda o=operator, x=image: o.apply(x),
            "adjoint": lambda o=operator, x=image: o.adjoint(x),
            "kernel adjoint": lambda o=operator, x=image: o.kernel_adjoint(x, x),
        }
        for name, work in products.items():
            one, every = least_times(alone(work), work, rounds=rounds, seconds=seconds)
            yield f"| {size} x {size} | {channels} | {name} | {1e6 * one:.1f} | {1e6 * every:.1f} | {one / every:.2f} |"


def batch_rows(quick: bool) -> Iterator[str]:
    """Time several images at once, for each of them."""
    rounds, seconds = (5, 0.12) if quick else (10, 0.3)
    rng = np.random.default_rng(0)
    yield "| image | channels | 1 image, us | 2, us each | 4, us each | 8, us each |\n" + "|---" * 6 + "|"
    for size, channels in ((8, 16), (32, 64), (16, 128), (14, 256), (7, 512)):
        operator = ConvOperator(rng.standard_normal((channels, channels, 3, 3)).astype(np.float32), (size, size))
        images = rng.standard_normal((8, channels, size, size)).astype(np.float32)
        counts = (1, 2, 4, 8)
        works: list[Work] = [lambda o=operator, x=images[:count]: o.apply(x) for count in counts]
        times = least_times(*works, rounds=rounds, seconds=seconds)
        each = [f"{1e6 * time / count:.1f}" for time, count in zip(times, counts, strict=True)]
        yield f"| {size} x {size} | {channels} | {' | '.join(each)} |"


def filter_rows(quick: bool) -> Iterator[str]:
    """Time long filters of one channel, by default and summed directly, against SciPy's transforms."""
    rounds, seconds = (3, 0.12) if quick else (10, 0.3)
    rng = np.random.default_rng(0)
    yield (
        "| dtype | points | taps | apply, us | adjoint, us | kernel adjoint, us | oaconvolve, us | ratio "
        "| direct, us |\n" + "|---" * 9 + "|"
    )
    for dtype in (np.float64, np.float32):
        for points, taps in ((16_384, 127), (65_536, 255), (32_768, 2047), (65_536, 4095)):
            kernel = rng.standard_normal((1, 1, taps)).astype(dtype)
            signal = rng.standard_normal((1, points)).astype(dtype)
            operator = ConvOperator(kernel, (points,))
            direct = operator.with_engine("direct")
            times = least_times(
                lambda o=operator, x=signal: o.apply(x),
                lambda o=operator, x=signal: o.adjoint(x),
                lambda o=operator, x=signal: o.kernel_adjoint(x, x),
                lambda k=kernel, x=signal: scipy.signal.oaconvolve(x[0], k[0, 0, ::-1], mode="same"),
                lambda o=direct, x=signal: o.apply(x),
                rounds=rounds,
                seconds=seconds,
            )
            apply, adjoint, gradient, theirs, summed = (1e6 * time for time in times)
            yield (
                f"| {np.dtype(dtype)} | {points} | {taps} | {apply:.1f} | {adjoint:.1f} | {gradient:.1f} "
                f"| {theirs:.1f} | {theirs / apply:.2f} | {summed:.1f} |"
            )


def by_entries(kernel: Any, size: int) -> Any:
    """Build the 'same' matrix with a Python loop over its entries, as a first attempt would."""
    out, inner, k, _ = kernel.shape
    rows, columns, values = [], [], []
    for c in range(out):
        for d in range(inner):
            for i in range(size):
                for j in range(size):
                    for p in range(k):
                        for q in range(k):
                            y, x = i + p - 1, j + q - 1
                            if 0 <= y < size and 0 <= x < size:
                                rows.append((c * size + i) * size + j)
                                columns.append((d * size + y) * size + x)
                                values.append(kernel[c, d, p, q])
    shape = out * size * size, inner * size * size
    return scipy.sparse.coo_array((np.asarray(values), (rows, columns)), shape=shape).tocsr()


def by_blocks(kernel: Any, size: int) -> Any:
    """Build the 'same' matrix from Kronecker products of shifted diagonals, in blocks."""
    out, inner = kernel.shape[:2]
    shifts = (-1, 0, 1)
    shift = [scipy.sparse.eye_array(size, k=o, format="csr", dtype=kernel.dtype) for o in shifts]

    def block(c: int, d: int) -> Any:
        lines = [
            scipy.sparse.diags_array(
                [np.full(size - abs(o), kernel[c, d, p, o + 1]) for o in shifts], offsets=shifts, dtype=kernel.dtype
            )
            for p in range(3)
        ]
        return sum(scipy.sparse.kron(shift[p], lines[p], format="csr") for p in range(3))

    return scipy.sparse.block_array([[block(c, d) for d in range(inner)] for c in range(out)], format="csr")


def peak_memory(work: Work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def sparse_rows(quick: bool) -> Iterator[str]:
    yield (
        "| channels | image | stored entries | convla, ms | kron/diags blocks, ms | ratio | loop over entries, ms "
        "| ratio | peak memory / result: convla | blocks |\n" + "|---" * 10 + "|"
    )
    rng = np.random.default_rng(0)
    for channels, size in ((1, 32), (1, 224), (3, 32), (3, 224), (16, 16), (16, 32), (64, 16)):
        kernel = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
        geometry = ConvGeometry(kernel.shape, (size, size), padding="same")
        works: list[Work] = [lambda k=kernel, g=geometry: convolution_matrix(k, g, format="csr")]
        works += [lambda k=kernel, n=size, f=build: f(k, n) for build in (by_blocks, by_entries)]
        if quick and channels * size > 256:
            continue
        ours, blocks, entries = least_times(*works, rounds=3, seconds=0.05)
        matrix = works[0]()
        if abs(matrix - works[1]()).max() or abs(matrix - works[2]()).max():
            raise AssertionError("the constructions disagree")
        size_of = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
        peaks = [peak_memory(work) / size_of for work in works[:2]]
        yield (
            f"| {channels} | {size} x {size} | {matrix.nnz} | {1e3 * ours:.2f} | {1e3 * blocks:.1f} "
            f"| {blocks / ours:.1f} | {1e3 * entries:.0f} | {entries / ours:.0f} | {peaks[0]:.1f} | {peaks[1]:.1f} |"
        )


def dense_rows(quick: bool) -> Iterator[str]:
    yield "| channels | image | bytes | convla, ms | writing as many bytes, ms | ratio |\n" + "|---" * 6 + "|"
    for channels, size in ((1, 32), (1, 64), (1, 100), (4, 16), (16, 16), (16, 24)):
        kernel = np.ones((channels, channels, 3, 3), np.float32)
        geometry = ConvGeometry(kernel.shape, (size, size), padding="same")
        ours, write = least_times(
            lambda k=kernel, g=geometry: convolution_matrix(k, g, format="dense"),
            lambda g=geometry: np.full(g.shape, 1, np.float32),
            rounds=3 if quick else 6,
            seconds=0.1,
        )
        count = 4 * geometry.shape[0] * geometry.shape[1]
        yield f"| {channels} | {size} x {size} | {count} | {1e3 * ours:.2f} | {1e3 * write:.2f} | {ours / write:.2f} |"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and no large sparse matrices")
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    parser.add_argument("--only", help="the one section to print, by its title")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that compute beside it")
    options = parser.parse_args()
    global busy
    busy = options.busy > 0
    versions = [f"numpy {np.__version__}", f"scipy {scipy.__version__}", f"numba {numba.__version__}"]
    if torch is not None:
        versions.append(f"torch {torch.__version__}")
    machine = (
        f"{processor()}, {thread_limit()} threads on {os.cpu_count()} cores, {options.busy} busy processes beside it"
    )
    lines = [f"{datetime.date.today()}, {machine}, Python {platform.python_version()}, {', '.join(versions)}."]
    print(lines[0], flush=True)
    sections = {
        "Application and image adjoint": operator_rows,
        "Kernel adjoint": kernel_adjoint_rows,
        "Threads": thread_rows,
        "Several images": batch_rows,
        "Long filters": filter_rows,
        "Sparse construction": sparse_rows,
        "Dense construction": dense_rows,
    }
    if options.only is not None:
        sections = {options.only: sections[options.only]}
    with torch.inference_mode() if torch is not None else contextlib.nullcontext(), busy_processes(options.busy):
        for title, rows in sections.items():
            lines.append(f"\n### {title}\n")
            print(lines[-1])
            for row in rows(options.quick):
                lines.append(row)
                print(row, flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
