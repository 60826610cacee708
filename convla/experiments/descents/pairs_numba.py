"""The experiments' descent on pairs of kernels, compiled for the CPU.

Repetitions are handled in blocks of `LANES`: every inner loop runs over one block and becomes a few vector
instructions, and the blocks run in parallel. A lane does the operations of the reference in the reference's order,
without fused multiply-add, so both give the same bits, for any number of threads.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from convla.compiling import compile_for, compiled
from convla.experiments.descents.pairs import LOSSES, MOMENTUM, OPTIMIZERS, SIMILARITIES, step_factors
from convla.extending import share
from convla.typing import NumPyArray

__all__ = ["descend_pairs"]

# Long enough that the vectoriser's overlap checks are paid once for several vector instructions, short enough that a
# block of the largest kernels (N = 16) stays in the second-level cache.
LANES = 64

_SGD, _MOMENTUM, _NESTEROV, _ADAGRAD, _RMSPROP = range(5)  # the places among OPTIMIZERS; the last is Adam
# The optimisers' constants, as `convla.descent` has them.
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_ADAGRAD_EPSILON = 1e-10
_DECAY = 0.99


def descend_pairs(
    k1: NumPyArray,
    k2: NumPyArray,
    gram: NumPyArray,
    *,
    loss: str,
    normalized: bool,
    toeplitz: bool,
    similarity: str,
    optimizer: str,
    learning_rate: float,
    iterations: int,
    both: bool,
) -> tuple[NumPyArray, NumPyArray, NumPyArray, NumPyArray, NumPyArray]:
    """Run the operation on blocks of repetitions; see `convla.experiments.descents.pairs.descend_pairs`."""
    repetitions, n = k1.shape
    blocks = -(-repetitions // LANES)
    k1, k2 = _to_lanes(k1, blocks), _to_lanes(k2, blocks)
    trace = np.empty((blocks, 5, LANES))
    lengths, roots = (np.array(factors) for factors in step_factors(optimizer, learning_rate, iterations))
    grams = _to_lanes(gram.reshape(repetitions, n * n), blocks)
    rule = [*OPTIMIZERS].index(optimizer)
    options = (lengths, roots, rule, LOSSES.index(loss), normalized, toeplitz, SIMILARITIES.index(similarity), both)
    jobs = itertools.count()  # which gives each number to one thread only

    def descend() -> None:
        while (block := next(jobs)) < blocks:
            _descend_block(k1[block], k2[block], grams[block], *options, trace[block])

    if blocks > 1:
        compile_for(_descend_block, k1[0], k2[0], grams[0], *options, trace[0])
        share(descend)
    else:
        descend()
    correlation, *rest = _from_lanes(trace, repetitions).T
    first_loss, last_loss, first_seen, last_seen = rest
    return (
        correlation,
        np.stack([first_loss, last_loss], axis=1),
        np.stack([first_seen, last_seen], axis=1),
        _from_lanes(k1, repetitions),
        _from_lanes(k2, repetitions),
    )


def _to_lanes(rows: NumPyArray, blocks: int) -> NumPyArray:
    # (R, n) -> (blocks, n, LANES); the lanes beyond R are zeros, computed and dropped.
    padded = np.zeros((blocks * LANES, rows.shape[1]))
    padded[: rows.shape[0]] = rows
    return np.ascontiguousarray(padded.reshape(blocks, LANES, -1).transpose(0, 2, 1))


def _from_lanes(lanes: NumPyArray, repetitions: int) -> NumPyArray:
    return np.ascontiguousarray(lanes.transpose(0, 2, 1)).reshape(-1, lanes.shape[1])[:repetitions]


# error_model="numpy": a division by zero in one lane gives inf or nan there and stops nothing.
@compiled(error_model="numpy")
def _multiply_add(total: NumPyArray, a: NumPyArray, b: NumPyArray) -> None:
    for lane in range(LANES):
        total[lane] += a[lane] * b[lane]


@compiled(error_model="numpy")
def _dot(a: NumPyArray, b: NumPyArray, total: NumPyArray) -> None:
    for lane in range(LANES):
        total[lane] = a[0, lane] * b[0, lane]
    for i in range(1, a.shape[0]):
        _multiply_add(total, a[i], b[i])


@compiled(error_model="numpy")
def _cross_correlation(k1: NumPyArray, k2: NumPyArray, r: NumPyArray) -> None:
    n = k1.shape[0]
    r[:] = 0.0
    for a in range(n):
        for b in range(n):
            _multiply_add(r[n - 1 + b - a], k1[a], k2[b])


@compiled(error_model="numpy")
def _quadratic_form(a: NumPyArray, gram: NumPyArray, b: NumPyArray, image: NumPyArray, total: NumPyArray) -> None:
    n = a.shape[0]
    for i in range(n):
        for lane in range(LANES):
            image[lane] = gram[i * n, lane] * b[0, lane]
        for j in range(1, n):
            _multiply_add(image, gram[i * n + j], b[j])
        if i == 0:
            for lane in range(LANES):
                total[lane] = a[0, lane] * image[lane]
        else:
            _multiply_add(total, a[i], image)


@compiled(error_model="numpy")
def _loss_and_gradient(
    loss: int,
    k1: NumPyArray,
    k2: NumPyArray,
    r: NumPyArray,
    value: NumPyArray,
    g1: NumPyArray,
    g2: NumPyArray,
    work: NumPyArray,
) -> None:
    n = k1.shape[0]
    if loss == 0:
        _dot(k1, k2, work[0])
        for lane in range(LANES):
            value[lane] = work[0, lane] * work[0, lane]
        for i in range(n):
            for lane in range(LANES):
                g1[i, lane] = 2.0 * work[0, lane] * k2[i, lane]
                g2[i, lane] = 2.0 * work[0, lane] * k1[i, lane]
    elif loss == 1:
        g1[:] = 0.0
        g2[:] = 0.0
        for a in range(n):
            for b in range(n):
                _multiply_add(g1[a], k2[b], r[n - 1 + b - a])
                _multiply_add(g2[b], k1[a], r[n - 1 + b - a])
        for i in range(n):
            for lane in range(LANES):
                g1[i, lane] = 2.0 * g1[i, lane]
                g2[i, lane] = 2.0 * g2[i, lane]
        _dot(r, r, value)
    else:
        _dot(k1, k1, work[0])
        _dot(k2, k2, work[1])
        for lane in range(LANES):
            value[lane] = work[0, lane] + work[1, lane]
        for i in range(n):
            for lane in range(LANES):
                g1[i, lane] = 2.0 * k1[i, lane]
                g2[i, lane] = 2.0 * k2[i, lane]


@compiled(error_model="numpy")
def _normalize(
    k1: NumPyArray, k2: NumPyArray, value: NumPyArray, g1: NumPyArray, g2: NumPyArray, work: NumPyArray
) -> None:
    _dot(k1, k1, work[0])
    _dot(k2, k2, work[1])
    for lane in range(LANES):
        work[2, lane] = work[0, lane] * work[1, lane]
    for i in range(k1.shape[0]):
        for lane in range(LANES):
            g1[i, lane] = (g1[i, lane] - (2.0 * value[lane] / work[0, lane]) * k1[i, lane]) / work[2, lane]
            g2[i, lane] = (g2[i, lane] - (2.0 * value[lane] / work[1, lane]) * k2[i, lane]) / work[2, lane]
    for lane in range(LANES):
        value[lane] = value[lane] / work[2, lane]


@compiled(error_model="numpy")
def _observe(
    similarity: int,
    toeplitz: bool,
    k1: NumPyArray,
    k2: NumPyArray,
    gram: NumPyArray,
    r: NumPyArray,
    seen: NumPyArray,
    work: NumPyArray,
) -> None:
    n = k1.shape[0]
    if toeplitz:
        seen[:] = 0.0
        for lane in range(LANES):
            seen[lane] = r[0, lane] * gram[n - 1, lane]
        for t in range(1, 2 * n - 1):
            _multiply_add(seen, r[t], gram[abs(t - n + 1)])
    else:
        _quadratic_form(k1, gram, k2, work[0], seen)
    if similarity == 0:
        for lane in range(LANES):
            seen[lane] = seen[lane] * seen[lane]
    elif similarity == 1:
        for lane in range(LANES):
            seen[lane] = abs(seen[lane])
    elif similarity == 3:
        _quadratic_form(k1, gram, k1, work[0], work[1])
        _quadratic_form(k2, gram, k2, work[0], work[2])
        for lane in range(LANES):
            seen[lane] = seen[lane] / (math.sqrt(work[1, lane]) * math.sqrt(work[2, lane]))


@compiled(error_model="numpy")
def _welford(count: int, x: NumPyArray, y: NumPyArray, moments: NumPyArray) -> None:
    for lane in range(LANES):
        dx = x[lane] - moments[0, lane]
        dy = y[lane] - moments[1, lane]
        moments[0, lane] += dx / count
        moments[1, lane] += dy / count
        rest = y[lane] - moments[1, lane]
        moments[2, lane] += dx * (x[lane] - moments[0, lane])
        moments[3, lane] += dy * rest
        moments[4, lane] += dx * rest


@compiled(error_model="numpy")
def _step(
    rule: int, k: NumPyArray, g: NumPyArray, first: NumPyArray, second: NumPyArray, length: float, root: float
) -> None:
    # `first` has the velocity or first moment, `second` the squares or second moment.
    beta1, beta2 = _BETAS
    for i in range(k.shape[0]):
        if rule == _SGD:
            for lane in range(LANES):
                k[i, lane] -= length * g[i, lane]
        elif rule == _MOMENTUM:
            for lane in range(LANES):
                first[i, lane] = MOMENTUM * first[i, lane] + g[i, lane]
                k[i, lane] -= length * first[i, lane]
        elif rule == _NESTEROV:
            for lane in range(LANES):
                first[i, lane] = MOMENTUM * first[i, lane] + g[i, lane]
                k[i, lane] -= length * (g[i, lane] + MOMENTUM * first[i, lane])
        elif rule == _ADAGRAD:
            for lane in range(LANES):
                second[i, lane] = second[i, lane] + g[i, lane] * g[i, lane]
                k[i, lane] -= length * g[i, lane] / (math.sqrt(second[i, lane]) + _ADAGRAD_EPSILON)
        elif rule == _RMSPROP:
            for lane in range(LANES):
                second[i, lane] = _DECAY * second[i, lane] + (1.0 - _DECAY) * (g[i, lane] * g[i, lane])
                k[i, lane] -= length * g[i, lane] / (math.sqrt(second[i, lane]) + _EPSILON)
        else:
            for lane in range(LANES):
                first[i, lane] = beta1 * first[i, lane] + (1.0 - beta1) * g[i, lane]
                second[i, lane] = beta2 * second[i, lane] + (1.0 - beta2) * (g[i, lane] * g[i, lane])
                k[i, lane] -= length * (first[i, lane] / (math.sqrt(second[i, lane]) / root + _EPSILON))


@compiled(nogil=True, error_model="numpy")
def _descend_block(
    k1: NumPyArray,
    k2: NumPyArray,
    gram: NumPyArray,
    lengths: NumPyArray,
    roots: NumPyArray,
    rule: int,
    loss: int,
    normalized: bool,
    toeplitz: bool,
    similarity: int,
    both: bool,
    trace: NumPyArray,
) -> None:
    n = k1.shape[0]
    iterations = lengths.size
    r = np.zeros((2 * n - 1, LANES))
    g1, g2 = np.zeros((n, LANES)), np.zeros((n, LANES))
    first, second = np.zeros((2, n, LANES)), np.zeros((2, n, LANES))
    value, seen = np.zeros(LANES), np.zeros(LANES)
    work, moments = np.zeros((3, LANES)), np.zeros((5, LANES))
    for iteration in range(iterations + 1):
        if toeplitz or loss == 1:
            _cross_correlation(k1, k2, r)
        _loss_and_gradient(loss, k1, k2, r, value, g1, g2, work)
        if normalized:
            _normalize(k1, k2, value, g1, g2, work)
        _observe(similarity, toeplitz, k1, k2, gram, r, seen, work)
        _welford(iteration + 1, value, seen, moments)
        if iteration == 0:
            trace[1] = value
            trace[3] = seen
        if iteration < iterations:
            _step(rule, k1, g1, first[0], second[0], lengths[iteration], roots[iteration])
            if both:
                _step(rule, k2, g2, first[1], second[1], lengths[iteration], roots[iteration])
    for lane in range(LANES):
        trace[0, lane] = moments[4, lane] / (math.sqrt(moments[2, lane]) * math.sqrt(moments[3, lane]))
    trace[2] = value
    trace[4] = seen
