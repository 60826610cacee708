"""Gradient descent on sets of kernels with any number of axes and channels, as `descend_pairs` does it on pairs.

All repetitions move together, each operation one pass over them: taps first, repetitions last. Sums over taps run in
ascending order, one term at a time, so that a repetition's numbers do not depend on those beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from convla.experiments.descents.functions import LossFunction, evaluate
from convla.experiments.descents.pairs import Correlation, dot, quadratic_form
from convla.experiments.descents.settings import Setting
from convla.extending import namespace
from convla.typing import Array, Namespace

__all__ = ["FilterDescent", "descend_filters"]


class FilterDescent(NamedTuple):
    """What a descent leaves of each repetition; R repetitions of S kernels.

    The first three are those of `convla.experiments.descents.pairs.PairDescent`.
    """

    correlation: Array
    """(R,)"""
    loss: Array
    """(R, 2)"""
    similarity: Array
    """(R, 2)"""
    kernels: Array
    """(R, S, taps) the kernels at the last iterate."""


def descend_filters(kernels: Array, gram: Array, setting: Setting) -> FilterDescent:
    """Descend on a loss of each set of kernels and record how the similarity of their feature maps follows it.

    Parameters
    ----------
    kernels : array, shape (R, S, taps)
        At the start; the taps of all channels in a row.
    gram : array, shape (R, taps, taps)
        T of each repetition's input: <F_i, F_j> = K_i^T T K_j.
    setting : convla.experiments.descents.settings.Setting

    Returns
    -------
    FilterDescent
    """
    xp = namespace(kernels, gram)
    minimize = _loss(setting, xp)
    trained = setting.kernels if setting.train == "both" else 1
    steppers = [setting.make_optimizer(setting.learning_rate) for _ in range(trained)]
    k = list(xp.unstack(xp.permute_dims(kernels, (1, 2, 0))))
    gram = xp.permute_dims(gram, (1, 2, 0))
    trace = Correlation(xp.zeros_like(gram[0, 0, ...]))
    values, observed = [], []
    # A diverging repetition overflows; it is the caller's to count and drop.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for iteration in range(setting.iterations + 1):
            value, gradients = minimize(k)
            seen = _observe(k, gram, setting.similarity, xp)
            trace.add(value, seen)
            if iteration in (0, setting.iterations):
                values.append(value)
                observed.append(seen)
            if iteration < setting.iterations:
                moved = [stepper.step(a, g) for stepper, a, g in zip(steppers, k, gradients, strict=False)]
                k = moved + k[len(moved) :]
        correlation = trace.correlation(xp)
    return FilterDescent(
        correlation,
        xp.stack(values, axis=1),
        xp.stack(observed, axis=1),
        xp.permute_dims(xp.stack(k), (2, 0, 1)),
    )


def _observe(k: list[Array], gram: Array, similarity: str, xp: Namespace) -> Array:
    lengths = [xp.sqrt(quadratic_form(a, gram, a)) for a in k] if similarity == "cosine" else []
    total = xp.zeros_like(gram[0, 0, ...])
    for i, j in itertools.combinations(range(len(k)), 2):
        product = quadratic_form(k[i], gram, k[j])
        if similarity == "squared":
            product = product * product
        elif similarity == "absolute":
            product = xp.abs(product)
        elif similarity == "cosine":
            product = product / (lengths[i] * lengths[j])
        total = total + product
    return total


Minimized = Callable[[list[Array]], tuple[Array, list[Array]]]


def _loss(setting: Setting, xp: Namespace) -> Minimized:
    """Return what gives the loss of kernels, taps first, and its gradient with respect to each."""
    function = setting.function  # loaded once for all steps
    if function is not None:
        return lambda k: _own(k, setting, function, xp)
    name, normalized = setting.minimized
    if name == "shrinkage":
        return lambda k: (sum((dot(a, a) for a in k), xp.zeros_like(k[0][0, ...])), [2.0 * a for a in k])
    if name == "kernel":
        return lambda k: _kernel_loss(k, normalized, xp)
    return lambda k: _convolutional_loss(k, setting, normalized, xp)


def _own(k: list[Array], setting: Setting, function: LossFunction, xp: Namespace) -> tuple[Array, list[Array]]:
    # A repetition after the other in memory: NumPy's sums over one would else depend on how many there are.
    stacked = np.ascontiguousarray(xp.permute_dims(xp.stack(k), (2, 0, 1)))
    value, gradient = evaluate(setting.loss, function, stacked.reshape(*stacked.shape[:2], *setting.kernel_shape))
    return value, list(np.ascontiguousarray(np.moveaxis(gradient.reshape(stacked.shape), 0, 2)))


def _kernel_loss(k: list[Array], normalized: bool, xp: Namespace) -> tuple[Array, list[Array]]:
    norms = [dot(a, a) if normalized else 1.0 for a in k]
    value, gradients = xp.zeros_like(k[0][0, ...]), [0.0 * a for a in k]
    for i, j in itertools.combinations(range(len(k)), 2):
        product = dot(k[i], k[j])
        share = product * product / (norms[i] * norms[j])
        value = value + share
        slope = 2.0 * product / (norms[i] * norms[j])
        for a, b in ((i, j), (j, i)):
            gradients[a] = gradients[a] + slope * k[b]
            if normalized:
                gradients[a] = gradients[a] - (2.0 * share / norms[a]) * k[a]
    return value, gradients


def _convolutional_loss(k: list[Array], setting: Setting, normalized: bool, xp: Namespace) -> tuple[Array, list[Array]]:
    # The sum over channels c, d of |K_i[c] (x) K_j[d]|^2 is <A_i, A_j>, with A_i the autocorrelations of K_i summed
    # over its channels; over |K_i|^2 |K_j|^2 it is that of A_i / |K_i|^2.
    norms = [dot(a, a) if normalized else 1.0 for a in k]
    lags = [_autocorrelation(a, setting, xp) / n for a, n in zip(k, norms, strict=True)]
    total = sum(lags, xp.zeros_like(lags[0]))
    value, gradients = xp.zeros_like(k[0][0, ...]), []
    for own, a, n in zip(lags, k, norms, strict=True):
        others = total - own
        share = dot(own, others)
        value = value + 0.5 * share
        # d<A_i, B>/dK_i[c, a] = 2 sum over b of B[b - a] K_i[c, b], as B is symmetric.
        gradient = 2.0 * _correlate(a, others, setting, xp) / n
        gradients.append(gradient - (2.0 * share / n) * a if normalized else gradient)
    return value, gradients


def _places(size: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Return for each tap where the taps of a kernel lie among the lags counted from it."""
    return [tuple(slice(n - 1 - a, 2 * n - 1 - a) for n, a in zip(size, tap, strict=True)) for tap in np.ndindex(*size)]


def _autocorrelation(kernel: Array, setting: Setting, xp: Namespace) -> Array:
    """Return the sum over channels of a kernel's autocorrelation, (lags, R)."""
    size = setting.kernel_shape[1:]
    taps = xp.reshape(kernel, (*setting.kernel_shape, -1))
    lags = xp.zeros((*(2 * n - 1 for n in size), kernel.shape[-1]), dtype=kernel.dtype)
    for channel in range(setting.channels):
        for tap, place in zip(np.ndindex(*size), _places(size), strict=True):
            lags[place] += taps[(channel, *tap)] * taps[channel]
    return xp.reshape(lags, (-1, kernel.shape[-1]))


def _correlate(kernel: Array, lags: Array, setting: Setting, xp: Namespace) -> Array:
    """Return sum over b of lags[b - a] kernel[c, b] for each channel c and tap a."""
    size = setting.kernel_shape[1:]
    taps = xp.reshape(kernel, (*setting.kernel_shape, -1))
    table = xp.reshape(lags, (*(2 * n - 1 for n in size), -1))
    result = xp.zeros_like(taps)
    for tap, place in zip(np.ndindex(*size), _places(size), strict=True):
        # lags[a - b] = lags[b - a]: all taps a at once, for one b.
        result += taps[(slice(None), *tap)][(slice(None), *(None,) * len(size))] * table[place]
    return xp.reshape(result, kernel.shape)
