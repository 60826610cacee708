"""Write orthogonal-layers.csv: how close to 1 all singular values of a layer come, by its sizes and its boundary.

Run as ``python docs/orthogonal_layers.py``; it takes a quarter of an hour.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np

from convla import nearest_orthogonal

CHANNELS = ((4, 4), (8, 4), (4, 8))
KERNELS = ((2, 2), (3, 3))
IMAGES = ((4, 4), (6, 6))
PADDINGS = (("same", "circular"), ("same", "zero"), ("valid", "zero"), ("full", "zero"))
SEEDS = 3


def reached(
    channels: tuple[int, int], kernel: tuple[int, int], image: tuple[int, int], setting: tuple[str, str]
) -> list:
    """Return a row: the sizes, and the least delta from each start over a few random kernels."""
    padding, boundary = setting
    best: dict[str, float] = {}
    for seed in range(SEEDS):
        drawn = np.random.default_rng(seed).standard_normal((*channels, *kernel)) / (channels[1] * kernel[0]) ** 0.5
        found = nearest_orthogonal(drawn, image, padding=padding, boundary=boundary, max_iterations=150, rng=seed)
        for candidate in found.candidates:
            best[candidate.start] = min(best.get(candidate.start, np.inf), candidate.delta)
    sizes = (*channels, f"{kernel[0]}x{kernel[1]}", f"{image[0]}x{image[1]}", f"{padding}, {boundary}")
    return [*sizes, *("0" if delta < 1e-6 else f"{delta:.2g}" for delta in best.values())]


def main() -> None:
    """Write the table."""
    starts = ("kernel", "polar", "delta", "block convolution")
    with open(Path(__file__).parent / "orthogonal-layers.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["c_out", "c_in", "kernel", "image", "padding", *(f"from {start}" for start in starts)])
        for sizes in itertools.product(CHANNELS, KERNELS, IMAGES, PADDINGS):
            table.writerow(reached(*sizes))
            file.flush()


if __name__ == "__main__":
    main()
