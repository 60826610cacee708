"""The experiments' descent on pairs of kernels on CuPy arrays: one launch, a thread for each repetition."""

from __future__ import annotations

from typing import Any

from convla.experiments.descents.pairs import LOSSES, OPTIMIZERS, SIMILARITIES, _descend_pairs, step_factors
from convla.extending import blocks_for, launch_kernel, namespace, on_its_device
from convla.typing import Array

__all__ = ["MOST_TAPS", "descend_pairs"]

_THREADS = 64

MOST_TAPS = 64
"""A thread keeps eleven numbers for each tap, and a device sets that aside for all the threads that it could run."""


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
    xp: Any = namespace(k1, k2, gram)  # of CuPy, whose arrays have an order in memory
    repetitions, n = k1.shape
    if n > MOST_TAPS:
        options: dict[str, Any] = {
            "loss": loss,
            "normalized": normalized,
            "toeplitz": toeplitz,
            "similarity": similarity,
        }
        options |= {"optimizer": optimizer, "learning_rate": learning_rate, "iterations": iterations, "both": both}
        return _descend_pairs.reference(k1, k2, gram, **options)
    k1, k2 = (xp.asarray(xp.permute_dims(k, (1, 0)), copy=True, order="C") for k in (k1, k2))
    grams = xp.ascontiguousarray(xp.permute_dims(xp.reshape(gram, (repetitions, n * n)), (1, 0)))
    factors = step_factors(optimizer, learning_rate, iterations)
    lengths, roots = (xp.asarray(each, dtype=xp.float64) for each in factors)
    trace = xp.empty((5, repetitions), dtype=xp.float64)
    arguments = (
        *(k1, k2, grams, lengths, roots, trace),
        *(repetitions, iterations, LOSSES.index(loss), SIMILARITIES.index(similarity)),
        *(int(normalized), int(toeplitz), [*OPTIMIZERS].index(optimizer), int(both)),
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
