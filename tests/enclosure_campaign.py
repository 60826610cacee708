"""Drawn layers whose enclosures are compared with singular values in long double: the layers that bounds fail on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla import ConvOperator
from convla.geometry import BOUNDARIES

__all__ = ["drawn_layer", "long_double_norm"]

KINDS = (
    "normal",
    "positive",
    "flat",
    "one tap",
    "near duplicates",
    "repeated",
    "orthogonal",
    "integers",
    "scales",
    "groups of scales",
)


def drawn_layer(rng: np.random.Generator, *, entries: int = 40) -> tuple[ConvOperator, str]:
    """Draw a layer of at most `entries` rows or columns: any number of axes, any geometry, kernel, scale and dtype."""
    while True:
        ndim = int(rng.integers(1, 4))
        groups = int(rng.choice([1, 1, 2, 3]))
        depthwise = rng.random() < 0.25
        out, inner = (int(rng.integers(1, 4)), 1) if depthwise else map(int, rng.integers(1, 4, 2))
        size = [int(rng.integers(1, (8, 5, 4)[ndim - 1])) for _ in range(ndim)]
        image = [int(rng.choice([1, 2, 3, 4, 5, 6, 8, 11])) for _ in range(ndim)]
        dilation = [int(d) for d in rng.choice([1, 1, 1, 2, 3], ndim)]
        extents = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
        padding: Any = str(rng.choice(["same", "full", "valid"]))
        if rng.random() < 0.3:
            padding = [tuple(map(int, rng.integers(0, 4, 2))) for _ in range(ndim)]
        arguments = {
            "padding": padding,
            "stride": [int(s) for s in rng.choice([1, 1, 2, 3], ndim)],
            "dilation": dilation,
            "groups": groups,
            "boundary": str(rng.choice(["zero", *BOUNDARIES])),
        }
        low = 0 if isinstance(padding, str) else min(sum(pair) for pair in padding)
        if padding in ("valid",) or not isinstance(padding, str):
            image = [max(n, e - low) for n, e in zip(image, extents, strict=True)]
        kernel, kind = drawn_kernel(rng, (groups * out, inner, *size), groups)
        operator = ConvOperator(kernel, image, **arguments)
        if min(operator.shape) <= entries and max(operator.shape) <= 20 * entries:
            return operator, kind


def drawn_kernel(rng: np.random.Generator, shape: tuple[int, ...], groups: int) -> tuple[np.ndarray, str]:
    """Draw a kernel of one of the kinds, in float32, float64 or int64, of any size that its dtype holds."""
    kind = str(rng.choice(KINDS))
    values = rng.standard_normal(shape)
    if kind == "positive":
        values = np.abs(values)
    elif kind == "flat":
        values = np.ones(shape)
    elif kind == "one tap":
        kept = np.zeros(shape[2:])
        kept.flat[rng.integers(kept.size)] = 1
        values = values * kept
    elif kind == "near duplicates":
        values = values[:1] + 1e-9 * values
    elif kind == "repeated":
        values = np.broadcast_to(values[:1], shape) * np.ones(shape)
    elif kind == "orthogonal":
        values = np.eye(shape[0], math.prod(shape[1:])).reshape(shape)
    elif kind == "integers":
        return rng.integers(-9, 10, shape), kind
    elif kind == "scales":
        values = values * 10.0 ** rng.uniform(-40, 40, shape)
    elif kind == "groups of scales":
        exponents = rng.uniform(-60, 60, groups)
        values = values * np.repeat(10.0**exponents, shape[0] // groups).reshape(-1, *(1,) * (len(shape) - 1))
    dtype = rng.choice([np.float32, np.float64])
    info = np.finfo(dtype)
    largest = max(float(np.abs(values).max()), 1e-300)
    # From subnormal numbers to a little below the largest number.
    scale = rng.choice(
        [1.0, 1.0, 1 / largest, 2.0 ** rng.uniform(info.minexp - info.nmant, info.maxexp - 12) / largest]
    )
    with np.errstate(over="ignore", under="ignore"):
        kernel = (values * scale).astype(dtype)
        if not np.isfinite(kernel).all() or not np.abs(kernel).sum() < info.max:
            kernel = (values / largest).astype(dtype)
    return kernel, kind


def long_double_norm(operator: ConvOperator) -> tuple[np.longdouble, np.longdouble]:
    """Return the largest singular value in long double, and a bound of its own error.

    The dense matrix is written out from the definition; one-sided Jacobi rotations orthogonalise its columns.
    """
    matrix = _matrix(operator)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T.copy()
    largest = np.abs(matrix).max()
    if largest == 0:
        return np.longdouble(0), np.longdouble(0)
    matrix = matrix / largest
    # A QR factorisation by Householder reflections first: the triangle is small.
    matrix = _triangle(matrix)
    order = matrix.shape[1]
    eps = np.finfo(np.longdouble).eps
    for _ in range(30):
        worst = np.longdouble(0)
        for i in range(order - 1):
            for j in range(i + 1, order):
                a, b = matrix[:, i] @ matrix[:, i], matrix[:, j] @ matrix[:, j]
                c = matrix[:, i] @ matrix[:, j]
                if a == 0 or b == 0 or abs(c) <= eps * np.sqrt(a * b):
                    continue
                worst = max(worst, abs(c) / np.sqrt(a * b))
                z = (b - a) / (2 * c)
                t = 1 / (abs(z) + np.sqrt(1 + z * z)) * (1 if z >= 0 else -1)
                cosine = 1 / np.sqrt(1 + t * t)
                left, right = matrix[:, i].copy(), matrix[:, j].copy()
                matrix[:, i], matrix[:, j] = cosine * (left - t * right), cosine * (t * left + right)
        if worst <= 10 * eps:
            break
    value = np.sqrt((matrix * matrix).sum(axis=0).max()) * largest
    return value, 100 * order * eps * value


def _triangle(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.copy()
    columns = matrix.shape[1]
    for j in range(columns):
        x = matrix[j:, j]
        norm = np.sqrt(x @ x)
        if norm == 0:
            continue
        v = x.copy()
        v[0] += norm if v[0] >= 0 else -norm
        v = v / np.sqrt(v @ v)
        matrix[j:, j:] -= 2 * np.outer(v, v @ matrix[j:, j:])
    return np.triu(matrix[:columns])


def _matrix(operator: ConvOperator) -> np.ndarray:
    """The matrix from its definition, entry by entry, in long double."""
    geometry = operator.geometry
    kernel = np.asarray(operator.kernel).astype(np.longdouble)
    outputs, inputs = math.prod(geometry.output_shape), math.prod(geometry.image_shape)
    matrix = np.zeros((geometry.out_channels, outputs, geometry.in_channels, inputs), np.longdouble)
    maps = [geometry.axis_map(axis) for axis in range(geometry.ndim)]
    width = geometry.out_channels // geometry.groups
    inner = geometry.kernel_shape[1]
    for tap in np.ndindex(*geometry.kernel_size):
        sources = np.meshgrid(*(maps[a][:, t] for a, t in enumerate(tap)), indexing="ij")
        inside = np.all([s >= 0 for s in sources], axis=0).ravel()
        flat = np.ravel_multi_index(tuple(np.maximum(s, 0) for s in sources), geometry.image_shape).ravel()
        for o in range(geometry.out_channels):
            for i in range(inner):
                channel = o // width * inner + i
                matrix[o, np.flatnonzero(inside), channel, flat[inside]] += kernel[(o, i, *tap)]
    return matrix.reshape(geometry.out_channels * outputs, -1)
