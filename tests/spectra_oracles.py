"""What the tests of singular values compare with: any small operator, and its dense matrix through LAPACK."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from convla import ConvOperator
from convla.geometry import BOUNDARIES
from tests.geometries import Drawn, any_setting

EPS = {np.float32: float(np.finfo(np.float32).eps), np.float64: float(np.finfo(np.float64).eps)}


@st.composite
def operators(draw: st.DrawFn, dtype: Any = np.float64, boundary: str | None = None) -> ConvOperator:
    """Any small operator: size-1 images and channels, even and rectangular kernels, every option."""
    shape, image, options = any_setting(
        Drawn(draw),
        images=(14, 9, 5),
        taps=(5, 4, 2),
        outs=(1, 2, 3),
        inner=(1, 2, 3),
        boundaries=BOUNDARIES if boundary is None else (boundary,),
    )
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["normal", "ones", "difference", "sparse", "unit"]))
    values = {
        "normal": rng.standard_normal(shape),
        "ones": np.ones(shape),
        "difference": np.broadcast_to(1.0 - np.arange(shape[-1]) % 3, shape),
        "sparse": rng.standard_normal(shape) * (rng.random(shape) < 0.2),
        "unit": np.eye(shape[0], math.prod(shape[1:])).reshape(shape),
    }[kind]
    return ConvOperator(
        np.ascontiguousarray(values, dtype),
        image,
        **options,
        order=draw(st.sampled_from(["C", "F"])),
    )


def dense_values(operator: Any) -> np.ndarray:
    """The oracle: LAPACK's singular values of the matrix, written out in float64 from the exact kernel."""
    base = operator if isinstance(operator, ConvOperator) else operator.T
    matrix = base.with_kernel(np.asarray(base.kernel, np.float64)).to_dense()
    return np.linalg.svd(matrix, compute_uv=False)


def rounding(operator: Any, dtype: Any = np.float64) -> float:
    """A bound of what rounding does to singular values: sqrt(m n) eps times the largest, by Weyl and Higham 3.5.

    Of the kernel's moduli: beyond the edges of an image taps meet in one entry, where they may cancel to less.
    """
    moduli = np.linalg.norm(np.asarray(abs(operator).to_dense(), np.float64))
    return 8 * EPS[dtype] * math.sqrt(min(operator.shape)) * moduli


def triplet_defects(operator: Any, result: Any) -> tuple[float, float, float]:
    """The largest of norm(M v - s u), norm(M^T u - s v), and how far u and v are from orthonormal."""
    count = len(result.values)
    left, right = np.asarray(result.left, float), np.asarray(result.right, float)
    scale = np.asarray(result.values, float).reshape(-1, *(1,) * (left.ndim - 1))
    precise = operator.to_dense().astype(float)
    u, v = (w.reshape(count, -1) for w in (left, right))
    if operator.order == "F":
        u, v = (
            np.moveaxis(w, 1, 1).transpose(0, 1, *range(w.ndim - 1, 1, -1)).reshape(count, -1) for w in (left, right)
        )
    s = scale.reshape(-1, 1)
    forward = np.linalg.norm(v @ precise.T - s * u, axis=1).max()
    backward = np.linalg.norm(u @ precise - s * v, axis=1).max()
    orthonormal = max(np.abs(w @ w.T - np.eye(count)).max() for w in (u, v))
    return float(forward), float(backward), float(orthonormal)
