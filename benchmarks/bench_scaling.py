"""How cost grows: with repetitions, workers, channels, the image and files. Unattended, in less than six minutes.

Every point is measured in a process of its own, on one thread, and appended to a CSV file as it ends; run again, it
goes on where it stopped. The processor's time is measured, and the clock's, which wants an idle machine. A curve ends
early where its next point would not fit into what is left of the time.

Run with ``python benchmarks/bench_scaling.py [--seconds 330] [--fresh] [--output docs/scaling]``, then
``python docs/scaling_page.py`` to draw the curves and write the page.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

import convla
from convla import ConvOperator, largest_singular_value
from convla.experiments import Study
from convla.experiments.pool import Pool
from convla.experiments.session import Watcher

HEADER = ("curve", "size", "clock", "processor", "mebibytes", "parts")
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
CURVES: dict[str, tuple[int, ...]] = {
    "overhead": (100,),
    "estimates": (100,),
    "workers": (1, 2),
    "repetitions": (10**3, 10**4, 10**5, 10**6, 10**7),
    "channels": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "image": (16, 32, 64, 128, 256, 512),
    "files": (1, 10, 100, 1000),
    "parts": (10**3, 10**4, 10**5, 10**6),
}
GROWTH = {
    "repetitions": 10.0,
    "files": 10.0,
    "parts": 10.0,
    "channels": 5.0,
    "image": 5.0,
    "workers": 1.0,
    "overhead": 1.0,
    "estimates": 1.0,
}
"""How many times longer than the one before it a point may take."""


def peak() -> float:
    """Return the most memory that this process has had, in MiB; as Linux counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


class Stopwatch:
    """The clock's time and the processor's since it was made."""

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    @property
    def read(self) -> tuple[float, float]:
        """How long it has been, in seconds of both."""
        return time.perf_counter() - self._clock, time.process_time() - self._processor


Found = tuple[tuple[float, float], int]
"""Both times, and how many parts or files it was."""


def study(**changes: Any) -> Study:
    options = {"N": 3, "M": 8, "loss": "kernel", "learning_rate": 0.01, "iterations": 20, "repetitions": 1000}
    return Study(**{**options, **changes})


def measure_repetitions(size: int, folder: Path) -> Found:
    study(repetitions=1000).run(folder / "warm", pool=Pool())  # compiled, loaded
    watch = Stopwatch()
    plan = study(repetitions=size)
    plan.run(folder / "run", pool=Pool())
    return watch.read, -(-size // plan.settings[0].part)


def measure_workers(size: int, folder: Path) -> Found:
    """Eight parts of about a second, by so many processes."""
    plan = study(N=9, M=64, loss="convolutional", iterations=2000)
    part = plan.settings[0].part
    pool = Pool("loky", workers=size)
    dict(pool.map(functools.partial(_one_part, plan, part), range(size)))  # imports, compiled code
    watch = Stopwatch()
    plan.repeated(8 * part).run(folder / "run", part=part, pool=pool)
    return watch.read, 8


def _one_part(plan: Study, part: int, place: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan.repeated(part // 8).run(Path(folder) / str(place), pool=Pool())


class _Instantly(Executor):
    """Gives every part what the first of them left: workers that take no time, so that the driver is never idle."""

    def __init__(self) -> None:
        self.first: Any = None

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Any:
        self.first = self.first or function(*arguments, **options)
        future: Future[Any] = Future()
        future.set_result(self.first)
        return future


class _Lap(Watcher):
    """Reads a stopwatch when a part is saved."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch, self.read = watch, watch.read

    def finish(self, unit: Any) -> None:  # noqa: ARG002
        self.read = self.watch.read


def measure_overhead(size: int, folder: Path) -> Found:
    """Measure what the driver does with parts as large as those of a second until they are saved."""
    return _driver(size, folder)[0], size


def measure_estimates(size: int, folder: Path) -> Found:
    """Measure what it does with them when all are saved."""
    return _driver(size, folder)[1], size


def _driver(size: int, folder: Path) -> tuple[Any, Any]:
    part = study(N=9, M=64, loss="convolutional", iterations=400).settings[0].part
    plan = study(iterations=1, repetitions=size * part)
    study().run(folder / "warm", pool=Pool())
    executor = _Instantly()
    plan.repeated(part).run(folder / "first", part=part, pool=Pool(executor))
    watch = Stopwatch()
    lap = _Lap(watch)
    plan.run(folder / "run", part=part, pool=Pool(executor, workers=size), watcher=lap)
    return lap.read, tuple(np.subtract(watch.read, lap.read))


def measure_parts(size: int, folder: Path) -> Found:
    """Measure all that the driver does with parts of one repetition, their estimates included."""
    plan, executor = study(iterations=1), _Instantly()
    plan.run(folder / "first", part=1, pool=Pool(executor))
    watch = Stopwatch()
    plan.repeated(size).run(folder / "run", part=1, pool=Pool(executor, workers=64))
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    print(f"{len(files)} files of {sum(path.stat().st_size for path in files)} bytes", file=sys.stderr)
    return watch.read, size


def measure_channels(size: int, folder: Path) -> Found:  # noqa: ARG001
    return _norm(size, 8)


def measure_image(size: int, folder: Path) -> Found:  # noqa: ARG001
    return _norm(16, size)


def _norm(channels: int, image: int) -> Found:
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((channels, channels, 3, 3), dtype=np.float32) / np.float32(3.0 * channels**0.5)
    largest_singular_value(ConvOperator(kernel[:8, :8], (8, 8)))  # compiled, loaded
    watch = Stopwatch()
    largest_singular_value(ConvOperator(kernel, (image, image)))
    return watch.read, 1


def measure_files(size: int, folder: Path) -> Found:
    generator = np.random.default_rng(0)
    for number in range(size):
        weights = {"conv.weight": generator.standard_normal((8, 8, 3, 3), dtype=np.float32)}
        np.savez(folder / f"{number}.npz", **weights)
    convla.inspect(folder / "0.npz", image=(8, 8))
    watch = Stopwatch()
    for number in range(size):
        convla.inspect(folder / f"{number}.npz", image=(8, 8))
    return watch.read, size


MEASURES: dict[str, Callable[[int, Path], Found]] = {
    "overhead": measure_overhead,
    "parts": measure_parts,
    "estimates": measure_estimates,
    "workers": measure_workers,
    "repetitions": measure_repetitions,
    "channels": measure_channels,
    "image": measure_image,
    "files": measure_files,
}


def measure(curve: str, size: int) -> None:
    """Measure one point in this process, and print it."""
    folder = Path(tempfile.mkdtemp(prefix="convla-scaling-"))
    try:
        (clock, processor), parts = MEASURES[curve](size, folder)
    finally:
        shutil.rmtree(folder)
    values = (curve, size, clock, processor, peak(), parts)
    print(json.dumps(dict(zip(HEADER, values, strict=True))))


def rows(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=330.0, help="of the clock, for all of it")
    parser.add_argument("--fresh", action="store_true", help="measure all points anew")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "scaling")
    parser.add_argument("--point", nargs=2, metavar=("CURVE", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        measure(arguments.point[0], int(arguments.point[1]))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    table, machine = arguments.output / "scaling.csv", arguments.output / "machine.json"
    if arguments.fresh or not table.exists():
        table.write_text(",".join(HEADER) + "\n", encoding="utf-8")
        found = {
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "convla": convla.__version__,
        }
        machine.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    done = {(row["curve"], int(row["size"])) for row in rows(table)}
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    deadline = time.monotonic() + arguments.seconds
    for curve, sizes in CURVES.items():
        expected = 0.0
        for size in sizes:
            if (curve, size) in done:
                continue
            left = deadline - time.monotonic()
            if expected > left or left <= 0.0:
                print(f"{curve}: {size} and more would not fit into {left:.0f} s", flush=True)
                break
            began = time.monotonic()
            command = [sys.executable, __file__, "--point", curve, str(size)]
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(run.stdout)
            starting = time.monotonic() - began - row["clock"]
            expected = starting + GROWTH[curve] * row["clock"]
            with table.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow([row[name] for name in HEADER])
            clock, processor, memory = (float(row[name]) for name in ("clock", "processor", "mebibytes"))
            print(f"{curve} {size}: clock {clock:.3g} s, processor {processor:.3g} s, {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
