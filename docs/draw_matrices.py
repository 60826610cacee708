"""Draw docs/_static/convolution_matrices.png: the matrix of one kernel for every padding and boundary."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from convla import ConvGeometry, convolution_matrix
from convla.geometry import BOUNDARIES, PADDINGS


def main() -> None:
    """Draw where each tap of a 3 x 3 kernel stands in M, for a 5 x 5 image."""
    # Each tap has a power of two, so that taps which share a place show as such.
    kernel = 2 ** np.arange(9).reshape(1, 1, 3, 3)
    colors = ListedColormap(["white", *plt.colormaps["tab10"].colors[:9], "black"])
    figure, axes = plt.subplots(len(PADDINGS), len(BOUNDARIES), figsize=(11, 9.4), layout="constrained")
    for line, padding in zip(axes, PADDINGS, strict=True):
        for axis, boundary in zip(line, BOUNDARIES, strict=True):
            geometry = ConvGeometry(kernel.shape, (5, 5), padding=padding, boundary=boundary)
            matrix = convolution_matrix(kernel, geometry, format="dense")
            single = np.isin(matrix, kernel)
            tap = np.where(single, np.log2(np.maximum(matrix, 1)) + 1, np.where(matrix == 0, 0, 10))
            axis.imshow(tap, cmap=colors, vmin=-0.5, vmax=10.5, interpolation="nearest")
            axis.set_title(f'"{padding}", "{boundary}": {geometry.shape[0]} x {geometry.shape[1]}', fontsize=9)
            for edge in range(5, 25, 5):
                axis.axvline(edge - 0.5, color="0.7", linewidth=0.5)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle("Colour: which tap of the 3 x 3 kernel stands there; black: several taps, added up")
    figure.savefig(Path(__file__).parent / "_static" / "convolution_matrices.png", dpi=80)


if __name__ == "__main__":
    main()
