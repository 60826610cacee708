"""What the tests of convolutional similarity compare with: the definitions, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np


def exactly(kernels: Any) -> Any:
    """Return the exact values of floats, as an object array of fractions."""
    return np.vectorize(lambda x: Fraction(float(x)), otypes=[object])(kernels)


def correlations(first: Any, second: Any) -> dict[tuple[int, ...], Any]:
    """Return {lag: matrix (c_in, c_in)} of the full cross-correlations of all channels of two kernels."""
    size = first.shape[1:]
    out: dict[tuple[int, ...], Any] = {}
    for p in np.ndindex(*size):
        for q in np.ndindex(*size):
            lag = tuple(b - a for a, b in zip(p, q, strict=True))
            out[lag] = out.get(lag, 0) + np.multiply.outer(first[(slice(None), *p)], second[(slice(None), *q)])
    return out


def pair_similarity(first: Any, second: Any) -> Any:
    """Return the sum over channels of the squared norms of the cross-correlations of two kernels."""
    return sum((matrix * matrix).sum() for matrix in correlations(first, second).values())


def similarity(kernels: Any) -> Any:
    """Return the convolutional similarity by its definition, over unordered pairs."""
    count = len(kernels)
    return sum(pair_similarity(kernels[i], kernels[j]) for i in range(count) for j in range(i + 1, count))


def normalized_similarity(kernels: Any) -> Any:
    """Return the convolutional similarity with each pair's term divided by the product of its energies."""
    energies = [(kernel * kernel).sum() for kernel in kernels]
    count = len(kernels)
    return sum(
        Fraction(pair_similarity(kernels[i], kernels[j])) / (energies[i] * energies[j])
        for i in range(count)
        for j in range(i + 1, count)
    )


def quadratic_gradient(function: Any, kernels: Any) -> Any:
    """Differentiate an exact function that is quadratic in each entry: a central difference of step 1 is exact."""
    gradient = np.zeros(kernels.shape, dtype=object)
    for entry in np.ndindex(*kernels.shape):
        step = np.zeros(kernels.shape, dtype=object)
        step[entry] = 1
        gradient[entry] = (function(kernels + step) - function(kernels - step)) / Fraction(2)
    return gradient
