"""Time the convolution operator against what a user would pick instead; print the tables of docs/performance.md.

Run ``python benchmarks/bench_operators.py [--long] [--only PART] [--page]`` on an otherwise idle machine, with nothing
set in the environment: the defaults are what is measured. Two libraries that are compared take turns, a stretch of
calls each, and each figure is the least of all its calls: the time that the code needs when nothing else runs. PyTorch
is optional; its columns stay empty without it. With ``--page`` the tables go into the page.
"""

from __future__ import annotations

import argparse
import contextlib
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.signal
import scipy.sparse
from pages import machine, measured

from convla import ConvGeometry, ConvOperator, convolution_matrix

try:
    import torch
except ImportError:
    torch = None

Work = Callable[[], Any]


def least_times(*works: Work, rounds: int, seconds: float) -> list[float]:
    """Return the least time of each piece of work, in seconds."""
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
    return [min(calls) for calls in times]


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


def operator_rows(long: bool) -> Iterator[str]:
    rounds, seconds = (10, 0.3) if long else (4, 0.08)
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


def kernel_adjoint_rows(long: bool) -> Iterator[str]:
    """Time the gradient of a layer in its weights, as `apply` and `adjoint` above."""
    rounds, seconds = (10, 0.3) if long else (4, 0.08)
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


def batch_rows(long: bool) -> Iterator[str]:
    """Time several images at once, for each of them."""
    rounds, seconds = (10, 0.3) if long else (4, 0.08)
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


def filter_rows(long: bool) -> Iterator[str]:
    """Time long filters of one channel, by default and summed directly, against SciPy's transforms."""
    rounds, seconds = (10, 0.3) if long else (3, 0.08)
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


def sparse_rows(long: bool) -> Iterator[str]:
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
        if not long and channels * size > 256:
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


def dense_rows(long: bool) -> Iterator[str]:
    yield "| channels | image | bytes | convla, ms | writing as many bytes, ms | ratio |\n" + "|---" * 6 + "|"
    for channels, size in ((1, 32), (1, 64), (1, 100), (4, 16), (16, 16), (16, 24)):
        kernel = np.ones((channels, channels, 3, 3), np.float32)
        geometry = ConvGeometry(kernel.shape, (size, size), padding="same")
        ours, write = least_times(
            lambda k=kernel, g=geometry: convolution_matrix(k, g, format="dense"),
            lambda g=geometry: np.full(g.shape, 1, np.float32),
            rounds=6 if long else 3,
            seconds=0.1,
        )
        count = 4 * geometry.shape[0] * geometry.shape[1]
        yield f"| {channels} | {size} x {size} | {count} | {1e3 * ours:.2f} | {1e3 * write:.2f} | {ours / write:.2f} |"


PARTS: dict[str, Callable[[bool], Iterator[str]]] = {
    "products": operator_rows,
    "kernel adjoint": kernel_adjoint_rows,
    "several images": batch_rows,
    "long filters": filter_rows,
    "sparse construction": sparse_rows,
    "dense construction": dense_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="more repetitions, and large sparse matrices")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    libraries = ["scipy", "numba"] + ["torch"] * (torch is not None)
    with torch.inference_mode() if torch is not None else contextlib.nullcontext():
        for name, rows in PARTS.items():
            if options.only not in (None, name):
                continue
            with measured("performance.md", name, write=options.page):
                print(f"{machine(*libraries)}\n")
                for row in rows(options.long):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
