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
from convla.experiments.descents.lanes_numba import GROUP, LANES, add_products
from convla.experiments.descents.pairs import LOSSES, MOMENTUM, OPTIMIZERS, SIMILARITIES, step_factors
from convla.extending import share
from convla.typing import NumPyArray

__all__ = ["descend_pairs"]

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
def _dot(a: NumPyArray, b: NumPyArray, total: NumPyArray) -> None:
    for lane in range(LANES):
        total[lane] = a[0, lane] * b[0, lane]
    for lane in range(0, LANES, GROUP):
        add_products(lane, total, 0, a, 1, 1, b, 1, 1, a.shape[0] - 1)


@compiled(error_model="numpy")
def _cross_correlation(k1: NumPyArray, k2: NumPyArray, r: NumPyArray) -> None:
    n = k1.shape[0]
    r[:] = 0.0
    for lane in range(0, LANES, GROUP):
        for t in range(1 - n, n):
            add_products(lane, r, n - 1 + t, k1, max(0, -t), 1, k2, max(0, t), 1, n - abs(t))


@compiled(error_model="numpy")
def _quadratic_form(a: NumPyArray, gram: NumPyArray, b: NumPyArray, image: NumPyArray, total: NumPyArray) -> None:
    n = a.shape[0]
    for i in range(n):
        for lane in range(LANES):
            image[i, lane] = gram[i * n, lane] * b[0, lane]
    for lane in range(0, LANES, GROUP):
        for i in range(n):
            add_products(lane, image, i, gram, i * n + 1, 1, b, 1, 1, n - 1)
    _dot(a, image, total)


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
        for lane in range(0, LANES, GROUP):
            for i in range(n):
                add_products(lane, g1, i, k2, 0, 1, r, n - 1 - i, 1, n)
                add_products(lane, g2, i, k1, 0, 1, r, n - 1 + i, -1, n)
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
    image: NumPyArray,
    work: NumPyArray,
) -> None:
    n = k1.shape[0]
    if toeplitz:
        for lane in range(LANES):
            seen[lane] = r[0, lane] * gram[n - 1, lane]
        for lane in range(0, LANES, GROUP):  # gram's row of lag t - n + 1, which is as far from 0 on either side
            add_products(lane, seen, 0, r, 1, 1, gram, n - 2, -1, n - 1)
            add_products(lane, seen, 0, r, n, 1, gram, 1, 1, n - 1)
    else:
        _quadratic_form(k1, gram, k2, image, seen)
    if similarity == 0:
        for lane in range(LANES):
            seen[lane] = seen[lane] * seen[lane]
    elif similarity == 1:
        for lane in range(LANES):
            seen[lane] = abs(seen[lane])
    elif similarity == 3:
        _quadratic_form(k1, gram, k1, image, work[1])
        _quadratic_form(k2, gram, k2, image, work[2])
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
    image, value, seen = np.zeros((n, LANES)), np.zeros(LANES), np.zeros(LANES)
    work, moments = np.zeros((3, LANES)), np.zeros((5, LANES))
    for iteration in range(iterations + 1):
        if toeplitz or loss == 1:
            _cross_correlation(k1, k2, r)
        _loss_and_gradient(loss, k1, k2, r, value, g1, g2, work)
        if normalized:
            _normalize(k1, k2, value, g1, g2, work)
        _observe(similarity, toeplitz, k1, k2, gram, r, seen, image, work)
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
