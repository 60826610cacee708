"""Gradient descent on many pairs of one-dimensional kernels at once, watching the similarity of their feature maps.

One repetition of CSM's toy experiment is an input X, two kernels K1, K2 and a few hundred steps of an optimiser on a
loss of the kernels alone. The feature maps enter only through <F1, F2> = K1^T T K2 with the small matrix T of
`convla.similarity.pairs.feature_map_gram`, fixed by X; no feature map is formed. For full padding T is Toeplitz, and
the product is <K1 (x) K2, lags of X> (CSM Eq. 6), whose first factor the convolutional losses need anyway.

Every sum over taps runs in ascending order, one term at a time, so that the compiled engine, which does the same for
each repetition, agrees with this reference to the last bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from array_api_extra import at

from convla.descent import SGD, AdaGrad, Adam, Optimizer, RMSprop
from convla.errors import ShapeError
from convla.extending import (
    accelerated,
    check_array,
    check_choice,
    check_integer,
    check_real,
    check_same_shape,
    device_of,
    namespace,
    on_device_of,
)
from convla.typing import AnyArray, Array, Namespace

__all__ = [
    "LOSSES",
    "MOMENTUM",
    "OPTIMIZERS",
    "SIMILARITIES",
    "Correlation",
    "PairDescent",
    "choose_engine",
    "descend_pairs",
    "dot",
    "quadratic_form",
    "step_factors",
]

LOSSES = ("kernel", "convolutional", "shrinkage")
"""Squared kernel similarity <K1, K2>^2 (CSM Eq. 5); convolutional similarity (CSM Eq. 24); |K1|^2 + |K2|^2."""

SIMILARITIES = ("squared", "absolute", "signed", "cosine")
"""Readings of "feature map similarity": <F1, F2>^2, |<F1, F2>|, <F1, F2>, and their cosine."""

MOMENTUM = 0.9

OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {
    "SGD": SGD,
    "momentum": functools.partial(SGD, momentum=MOMENTUM),
    "Nesterov": functools.partial(SGD, momentum=MOMENTUM, nesterov=True),
    "AdaGrad": AdaGrad,
    "RMSprop": RMSprop,
    "Adam": Adam,
}
"""The optimisers by name, at the constants that PyTorch has by default, and a momentum of 0.9."""


class PairDescent(NamedTuple):
    """What a descent leaves of each repetition; R repetitions of kernels with N taps."""

    correlation: AnyArray
    """(R,) Pearson's correlation, over the iterates, of the loss and the feature-map similarity."""
    loss: AnyArray
    """(R, 2) the loss at the first and the last iterate."""
    similarity: AnyArray
    """(R, 2) the feature-map similarity at the first and the last iterate."""
    k1: AnyArray
    """(R, N) the first kernel at the last iterate."""
    k2: AnyArray
    """(R, N) the second kernel at the last iterate."""


def descend_pairs(
    k1: Array,
    k2: Array,
    gram: Array,
    *,
    loss: str,
    normalized: bool = False,
    toeplitz: bool,
    similarity: str = "squared",
    optimizer: str,
    learning_rate: float,
    iterations: int,
    both: bool = True,
    engine: str = "auto",
) -> PairDescent:
    """Descend on a loss of each pair of kernels and record how the feature-map similarity follows it.

    Parameters
    ----------
    k1, k2 : array, shape (R, N)
        The kernels at the start. All computation is in float64.
    gram : array, shape (R, N, N)
        T of each repetition's input: <F1, F2> = K1^T T K2.
    loss : {"kernel", "convolutional", "shrinkage"}
        See `LOSSES`.
    normalized : bool, default False
        Divide the loss by |K1|^2 |K2|^2, which makes it invariant to the kernels' scale.
    toeplitz : bool
        T is Toeplitz (full padding), so <F1, F2> is computed from K1 (x) K2 and T's first row.
    similarity : {"squared", "absolute", "signed", "cosine"}, default "squared"
        See `SIMILARITIES`.
    optimizer : str
        One of `OPTIMIZERS`.
    learning_rate : float
        Of the optimiser.
    iterations : int
        How many steps; the trace has one value more, the start.
    both : bool, default True
        Train both kernels, else only K1.
    engine : {"auto", "reference", "numba"}
        Which kernel runs it; all give the same bits.

    Returns
    -------
    PairDescent
        Of a repetition that diverges the values are not finite.

    Raises
    ------
    ShapeError, TypeError, ValueError
        If an argument has the wrong shape, type or value.

    Examples
    --------
    Two kernels made orthogonal, watched through a white input (T is the identity, so the feature maps' similarity is
    the kernels'):

    >>> import numpy as np
    >>> k1, k2 = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]])
    >>> run = descend_pairs(k1, k2, np.eye(2)[None], loss="kernel", toeplitz=True, optimizer="SGD",
    ...                     learning_rate=0.1, iterations=100)
    >>> run.loss.round(9), run.correlation.round(9)
    (array([[0.36, 0.  ]]), array([1.]))
    """
    xp = namespace(k1, k2, gram)
    k1, k2, gram = (
        xp.astype(check_array(name, value, xp, ndim=len(axes), axes=f"({', '.join(axes)})"), xp.float64, copy=False)
        for name, value, axes in (("k1", k1, "RN"), ("k2", k2, "RN"), ("gram", gram, "RNN"))
    )
    check_same_shape("k1", k1, "k2", k2)
    if tuple(gram.shape) != (*k1.shape, k1.shape[1]):
        raise ShapeError(f"gram must have shape {(*k1.shape, k1.shape[1])} to go with k1, got {tuple(gram.shape)}")
    check_choice("loss", loss, LOSSES)
    check_choice("similarity", similarity, SIMILARITIES)
    check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    check_real("learning_rate", learning_rate, positive=True)
    check_integer("iterations", iterations, minimum=1)
    return PairDescent(
        *_descend_pairs(
            k1,
            k2,
            gram,
            loss=loss,
            normalized=normalized,
            toeplitz=toeplitz,
            similarity=similarity,
            optimizer=optimizer,
            learning_rate=learning_rate,
            iterations=iterations,
            both=both,
            engine=engine,
        )
    )


def choose_engine(engine: str) -> str:
    """Return the engine that `descend_pairs` would use on NumPy arrays: "numba" or "reference"."""
    return _descend_pairs.choose(np.empty(0), engine=engine)


@accelerated(
    "descend_pairs",
    kernels={
        "numba": "convla.experiments.descents.pairs_numba:descend_pairs",
        "cuda": "convla.experiments.descents.pairs_cuda:descend_pairs",
    },
)
def _descend_pairs(
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
    xp = namespace(k1, k2, gram)
    loss_and_gradient = _LOSSES[loss]
    steppers = [OPTIMIZERS[optimizer](learning_rate) for _ in range(2)]
    # Taps first: each operation below is one pass over all repetitions.
    k1, k2 = xp.permute_dims(k1, (1, 0)), xp.permute_dims(k2, (1, 0))
    gram = xp.permute_dims(gram, (1, 2, 0))
    n = k1.shape[0]
    lags = xp.take(gram[0, ...], on_device_of([abs(t) for t in range(1 - n, n)], gram, xp), axis=0)
    trace = Correlation(xp.zeros_like(k1[0, ...]))
    values, observed = [], []
    # A diverging repetition overflows; it is the caller's to count and drop.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for iteration in range(iterations + 1):
            value, g1, g2 = loss_and_gradient(k1, k2, xp)
            if normalized:
                value, g1, g2 = _normalize(value, g1, g2, k1, k2)
            seen = _observe(k1, k2, gram, lags, similarity, toeplitz, xp)
            trace.add(value, seen)
            if iteration in (0, iterations):
                values.append(value)
                observed.append(seen)
            if iteration < iterations:
                k1 = steppers[0].step(k1, g1)
                k2 = steppers[1].step(k2, g2) if both else k2
        correlation = trace.correlation(xp)
    return (
        correlation,
        xp.stack(values, axis=1),
        xp.stack(observed, axis=1),
        xp.permute_dims(k1, (1, 0)),
        xp.permute_dims(k2, (1, 0)),
    )


def step_factors(optimizer: str, learning_rate: float, iterations: int) -> tuple[list[float], list[float]]:
    """Return for a compiled descent the length of each step, and the root that Adam's second moment is divided by.

    By Python's own powers, as in the reference: a compiled power may differ in the last bit.
    """
    if optimizer != "Adam":
        return [float(learning_rate)] * iterations, [1.0] * iterations
    beta1, beta2 = Adam(learning_rate).betas
    steps = range(1, iterations + 1)
    return [learning_rate / (1.0 - beta1**t) for t in steps], [math.sqrt(1.0 - beta2**t) for t in steps]


def dot(a: Array, b: Array) -> Array:
    """Return the inner products of a and b, taps first, in ascending order of the taps whatever the memory's."""
    total = a[0, ...] * b[0, ...]
    for i in range(1, a.shape[0]):
        total = total + a[i, ...] * b[i, ...]
    return total


def _cross_correlation(k1: Array, k2: Array, xp: Namespace) -> Array:
    # (K1 (x) K2)[t] = sum over a of K1[a] K2[a + t], t = 1-N .. N-1, stored at t + N - 1.
    n = k1.shape[0]
    r = xp.zeros((2 * n - 1, k1.shape[1]), dtype=k1.dtype, device=device_of(k1))
    for a in range(n):
        r = at(r, (slice(n - 1 - a, 2 * n - 1 - a), ...)).add(k1[a, ...] * k2)
    return r


def _kernel_loss(k1: Array, k2: Array, xp: Namespace) -> tuple[Array, Array, Array]:  # noqa: ARG001
    product = dot(k1, k2)
    return product * product, 2.0 * product * k2, 2.0 * product * k1


def _convolutional_loss(k1: Array, k2: Array, xp: Namespace) -> tuple[Array, Array, Array]:
    # CS = sum over t of r[t]^2, so dCS/dK1[a] = 2 sum over b of r[b - a] K2[b]
    # and dCS/dK2[b] = 2 sum over a of K1[a] r[b - a].
    n = k1.shape[0]
    r = _cross_correlation(k1, k2, xp)
    backwards = xp.flip(r, axis=0)
    g1, g2 = xp.zeros_like(k1), xp.zeros_like(k2)
    for i in range(n):
        g1 = g1 + k2[i, ...] * backwards[n - 1 - i : 2 * n - 1 - i, ...]
        g2 = g2 + k1[i, ...] * r[n - 1 - i : 2 * n - 1 - i, ...]
    return dot(r, r), 2.0 * g1, 2.0 * g2


def _shrinkage_loss(k1: Array, k2: Array, xp: Namespace) -> tuple[Array, Array, Array]:  # noqa: ARG001
    return dot(k1, k1) + dot(k2, k2), 2.0 * k1, 2.0 * k2


_LOSSES: dict[str, Callable[[Array, Array, Namespace], tuple[Array, Array, Array]]] = {
    "kernel": _kernel_loss,
    "convolutional": _convolutional_loss,
    "shrinkage": _shrinkage_loss,
}


def _normalize(value: Array, g1: Array, g2: Array, k1: Array, k2: Array) -> tuple[Array, Array, Array]:
    # J = L / (n1 n2) with n = |K|^2: dJ/dK1 = (dL/dK1 - (2 L / n1) K1) / (n1 n2).
    n1, n2 = dot(k1, k1), dot(k2, k2)
    scale = n1 * n2
    g1 = (g1 - (2.0 * value / n1) * k1) / scale
    g2 = (g2 - (2.0 * value / n2) * k2) / scale
    return value / scale, g1, g2


def quadratic_form(a: Array, gram: Array, b: Array) -> Array:
    """Return a^T gram b, taps first, in the order of `dot`."""
    image = gram[:, 0, ...] * b[0, ...]
    for j in range(1, b.shape[0]):
        image = image + gram[:, j, ...] * b[j, ...]
    return dot(a, image)


def _observe(k1: Array, k2: Array, gram: Array, lags: Array, similarity: str, toeplitz: bool, xp: Namespace) -> Array:
    product = dot(_cross_correlation(k1, k2, xp), lags) if toeplitz else quadratic_form(k1, gram, k2)
    if similarity == "squared":
        return product * product
    if similarity == "absolute":
        return xp.abs(product)
    if similarity == "cosine":
        return product / (xp.sqrt(quadratic_form(k1, gram, k1)) * xp.sqrt(quadratic_form(k2, gram, k2)))
    return product


class Correlation:
    """Pearson's correlation of a stream of pairs, by Welford's updates (no cancellation of large sums)."""

    def __init__(self, zero: Array) -> None:
        self.count = 0
        self.mean_x = self.mean_y = self.xx = self.yy = self.xy = zero

    def add(self, x: Array, y: Array) -> None:
        """Take in a value of each."""
        self.count += 1
        dx, dy = x - self.mean_x, y - self.mean_y
        self.mean_x = self.mean_x + dx / self.count
        self.mean_y = self.mean_y + dy / self.count
        rest = y - self.mean_y
        self.xx = self.xx + dx * (x - self.mean_x)
        self.yy = self.yy + dy * rest
        self.xy = self.xy + dx * rest

    def correlation(self, xp: Namespace) -> Array:
        """Return the correlation of what was taken in."""
        return self.xy / (xp.sqrt(self.xx) * xp.sqrt(self.yy))
