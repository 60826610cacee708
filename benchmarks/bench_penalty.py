"""What one step of Algorithm 2.1 costs, in applications of the operator: float32, no matrix formed.

A step is the gradient of the chosen triplet, the new kernel, and two power iterations on two triplets. Its cost is
divided by that of one application to one image, the mean of `apply` and `adjoint`, interleaved with it in one run; so
are its parts: the eight applications, made on two images at a time, and the kernel adjoint. Processor time of one
thread, which other work on the machine disturbs less than the time of day.

    python benchmarks/bench_penalty.py [--rounds N] [--page]

The compiled engine first, then, in a process of its own, the reference. ``--page`` writes both tables into the page.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

# ruff: noqa: E402
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # before the libraries load

import numpy as np
from pages import machine, measured

from convla import ConvOperator
from convla.penalties import Power, shifted
from convla.penalties.pairs import pair_gradients

LAYERS = [
    ((64, 64, 3, 3), (32, 32)),
    ((16, 16, 3, 3), (32, 32)),
    ((128, 128, 3, 3), (16, 16)),
    ((512, 512, 3, 3), (7, 7)),
    ((64, 3, 7, 7), (64, 64)),
    ((3, 3, 3, 3), (15, 15)),
]


def timed(function, *arguments):
    began = time.process_time()
    result = function(*arguments)
    return time.process_time() - began, result


def measure(kernel_shape, image_shape, rounds):
    rng = np.random.default_rng(0)
    scale = np.sqrt(np.prod(kernel_shape[1:]))
    operator = ConvOperator((rng.standard_normal(kernel_shape) / scale).astype(np.float32), image_shape)
    image = rng.standard_normal(operator.domain_shape).astype(np.float32)
    features = rng.standard_normal(operator.range_shape).astype(np.float32)
    tracker = Power(iterations=2)
    vectors = rng.standard_normal((2, image.size)).astype(np.float32)
    state = {"shifted": vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "shifted_updates": np.array(1)}
    pairs, state = tracker.step(shifted(operator, 1.0, "input"), state)

    def step(operator, pairs, state):
        (gradient,) = pair_gradients(shifted(operator, 1.0, "input"), pairs)
        moved = operator.with_kernel(operator.kernel - 0.01 * gradient)
        return moved, *tracker.step(shifted(moved, 1.0, "input"), state)

    images, both = np.stack([image, image]), np.stack([features, features])
    rows = []
    for _ in range(rounds):
        forward, _ = timed(operator.apply, image)
        backward, _ = timed(operator.adjoint, features)
        seconds, (operator, pairs, state) = timed(step, operator, pairs, state)
        again, _ = timed(operator.apply, image)
        application = (0.5 * (forward + again) + backward) / 2
        pairwise = 2 * (timed(operator.apply, images)[0] + timed(operator.adjoint, both)[0])
        gradient = timed(operator.kernel_adjoint, features, image)[0]
        rows.append(
            (1e3 * application, 1e3 * seconds, seconds / application, pairwise / application, gradient / application)
        )
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def table(rounds):
    print(f"{machine('numba', threads='one thread')}\n")
    print(
        "| kernel | image | application ms | step ms | step / application | eight applications in pairs "
        "| kernel adjoint |\n" + "|---" * 7 + "|"
    )
    for kernel, image in LAYERS:
        application, step, *ratios = measure(kernel, image, rounds)
        shapes = ("x".join(map(str, kernel)), "x".join(map(str, image)))
        cells = [*shapes, f"{application:.3g}", f"{step:.3g}", *(f"{ratio:.1f}" for ratio in ratios)]
        print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--page", action="store_true", help="write the tables into docs/performance-penalty.md")
    options = parser.parse_args()
    if "CONVLA_ENGINE" in os.environ:
        with measured("performance-penalty.md", os.environ["CONVLA_ENGINE"], write=options.page):
            table(options.rounds)
        return
    with measured("performance-penalty.md", "compiled", write=options.page):
        table(options.rounds)
    command = [sys.executable, __file__, "--rounds", str(max(1, options.rounds // 3)), *["--page"] * options.page]
    subprocess.run(command, env=os.environ | {"CONVLA_ENGINE": "reference"}, check=True)


if __name__ == "__main__":
    main()
