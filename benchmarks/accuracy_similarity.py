"""Convolutional similarity in float64 against exact rational arithmetic: the accuracy table of the documentation.

Run with ``python benchmarks/accuracy_similarity.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from convla import convolutional_similarity
from convla.autocorrelation import summed_autocorrelations

METHODS = ("autocorrelation", "spectral", "pairwise")


def kernels() -> Iterator[tuple[str, Any]]:
    rng = np.random.default_rng(0)
    yield "Gaussian 8x4x3x3", rng.standard_normal((8, 4, 3, 3))
    yield "Gaussian 4x3x7x7", rng.standard_normal((4, 3, 7, 7))
    for degree in (8, 16, 24, 32):
        binomial = np.array([1.0])
        for _ in range(degree):
            binomial = np.convolve(binomial, [1.0, 1.0])
        yield f"(1 ± x)^{degree}", np.stack([binomial, binomial * (-1.0) ** np.arange(degree + 1)])[:, None, :]
    scales = np.array([1e-150, 1e150, 1.0, 1e-150])
    yield "scales 1e-150, 1e150, 1, 1e-150", rng.standard_normal((4, 3, 3, 3)) * scales[:, None, None, None]


def by_subtraction(array: Any) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        rows = summed_autocorrelations(array)
        total = rows.sum(axis=0)
        return float((total @ total - np.sum(rows * rows)) / 2)


def relative_error(value: float, exact: Fraction) -> str:
    return f"{float(abs(Fraction(value) - exact) / exact):.0e}" if np.isfinite(value) else "out of range"


def main() -> None:
    print("| kernels | condition | autocorrelation | by subtraction | spectral | pairwise |\n|---|---|---|---|---|---|")
    for name, array in kernels():
        whole = np.vectorize(lambda x: Fraction(float(x)), otypes=[object])(array)
        exact, moduli = (convolutional_similarity(k) for k in (whole, abs(whole)))
        values = {method: float(convolutional_similarity(array, method=method)) for method in METHODS}
        cells = [values["autocorrelation"], by_subtraction(array), values["spectral"], values["pairwise"]]
        errors = " | ".join(relative_error(value, exact) for value in cells)
        print(f"| {name} | {float(moduli / exact):.0e} | {errors} |")


if __name__ == "__main__":
    main()
