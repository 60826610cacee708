"""The experiments' descent on pairs of kernels on CuPy arrays: one launch, a thread for each repetition."""

from __future__ import annotations

import math

from convla.extending import blocks_for, launch_kernel, namespace, on_its_device
from convla.typing import Array

__all__ = ["descend_pairs"]

_THREADS = 64
_LOSS = {"kernel": 0, "convolutional": 1, "shrinkage": 2}
_SIMILARITY = {"squared": 0, "absolute": 1, "signed": 2, "cosine": 3}
_BETAS = (0.9, 0.999)


@on_its_device
def descend_pairs(
    k1: Array,
    k2: Array,
    gram: Array,
    *,
    loss: str,
    normalized: bool,
    toeplitz: bool,
    similarity: str,
    optimizer: str,
    learning_rate: float,
    iterations: int,
    both: bool,
) -> tuple[Array, Array, Array, Array, Array]:
    """Run the operation; see `convla.experiments.descents.pairs.descend_pairs`."""
    xp = namespace(k1, k2, gram)
    repetitions, n = k1.shape
    k1, k2 = (xp.asarray(xp.permute_dims(k, (1, 0)), copy=True, order="C") for k in (k1, k2))
    grams = xp.ascontiguousarray(xp.permute_dims(xp.reshape(gram, (repetitions, n * n)), (1, 0)))
    # Python's own powers, as in the reference: those of a device may differ in the last bit.
    steps = range(1, iterations + 1)
    adam = optimizer == "Adam"
    lengths = [learning_rate / (1.0 - _BETAS[0] ** t) if adam else learning_rate for t in steps]
    roots = [math.sqrt(1.0 - _BETAS[1] ** t) for t in steps]
    trace = xp.empty((5, repetitions), dtype=xp.float64)
    arguments = (
        *(k1, k2, grams, xp.asarray(lengths, dtype=xp.float64), xp.asarray(roots, dtype=xp.float64), trace),
        *(repetitions, iterations, _LOSS[loss], _SIMILARITY[similarity]),
        *(int(flag) for flag in (normalized, toeplitz, adam, both)),
    )
    launch_kernel(
        "convla.experiments.descents:pairs",
        "descend_pairs",
        blocks_for(repetitions, _THREADS),
        (_THREADS,),
        arguments,
        fused=False,
        TAPS=n,
    )
    return (
        trace[0, ...],
        xp.permute_dims(trace[1:3, ...], (1, 0)),
        xp.permute_dims(trace[3:5, ...], (1, 0)),
        xp.permute_dims(k1, (1, 0)),
        xp.permute_dims(k2, (1, 0)),
    )
