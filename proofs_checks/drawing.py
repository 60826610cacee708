"""Draw the figure of docs/what-we-found.md: ``python -m proofs_checks.drawing``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from convla import identities

__all__ = ["main"]

TARGET = Path(__file__).parent.parent / "docs" / "_static" / "least-similar-kernels.png"


def main() -> int:
    """Draw the least similar kernels of 4, 8 and 12 taps, their spectra and their zeros."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(10, 8), layout="constrained")
    frequencies = np.linspace(0, np.pi, 801)
    for row, taps in zip(axes, (4, 8, 12), strict=True):
        pair = identities.least_similar_pair(taps, starts=16, sweeps=400)
        # The one with its frequencies near 0 first.
        ordered = sorted(pair, key=lambda kernel: -abs(float(kernel.sum())))
        for kernel, colour in zip(ordered, ("tab:blue", "tab:red"), strict=True):
            kernel = kernel * np.sign(kernel[np.argmax(np.abs(kernel))])
            row[0].plot(range(taps), kernel, "o-", color=colour, markersize=4)
            power = np.abs(np.exp(1j * np.outer(frequencies, np.arange(taps))) @ kernel) ** 2
            row[1].semilogy(frequencies, power + 1e-16, color=colour)
            zeros = np.roots(kernel)
            row[2].plot(zeros.real, zeros.imag, "o", color=colour, markersize=5)
        circle = np.exp(1j * np.linspace(0, 2 * np.pi, 400))
        row[2].plot(circle.real, circle.imag, color="0.7", linewidth=0.8)
        row[2].set_aspect("equal")
        row[0].set_ylabel(f"N = {taps}")
        row[1].set_ylim(1e-12, 30)
    for axis, title in zip(axes[0], ("taps", "power spectrum, frequencies 0 to pi", "zeros"), strict=True):
        axis.set_title(title)
    figure.savefig(TARGET, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
