"""Lipschitz constants, in the Euclidean norm, of the steps of a network that have no weights.

Each is a proved upper bound of ``norm(f(x) - f(y)) / norm(x - y)``, rounded outwards; the proofs are in the
documentation, "What bounds a network".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from convla.spectra.certificate import U64, Combinations, certified_norm_bound, gamma, provable
from convla.spectra.scaling import rounded_up

__all__ = [
    "ACTIVATIONS",
    "activation_gain",
    "average_gain",
    "average_matrix",
    "copies_gain",
    "matrix_gain",
    "normalization_gain",
    "outward",
    "overlap_gain",
    "windows",
]


def outward(value: float, operations: int = 1) -> float:
    """Return a float64 that is not below the exact number of which rounded operations on positive ones gave this.

    Examples
    --------
    >>> from convla.networks.gains import outward
    >>> outward(1.0) > 1.0, outward(0.0)
    (True, 0.0)
    """
    return math.nextafter(value * (1.0 + 4 * operations * U64), math.inf) if value else 0.0


def _leaky(slope: Any) -> float:
    return max(1.0, float(np.max(np.abs(slope))))


ACTIVATIONS: Mapping[str, Callable[..., float]] = {
    # Of these the derivative, where there is one, lies between 0 and 1, or -1 and 1.
    **dict.fromkeys(
        (
            "abs",
            "clamp",
            "clip",
            "dropout",
            "hardtanh",
            "identity",
            "logsigmoid",
            "neg",
            "relu",
            "relu6",
            "softplus",
            "softshrink",
            "softsign",
            "tanh",
            "tanhshrink",
            "threshold at 0",
            "sin",
            "cos",
            "arctan",
            "celu",
        ),
        lambda **_: 1.0,
    ),
    "leaky relu": lambda slope=0.01: _leaky(slope),
    "prelu": lambda slope: _leaky(slope),
    # For x < 0 the derivative is alpha exp(x).
    "elu": lambda alpha=1.0: max(1.0, abs(alpha)),
    # scale alpha, at 0 from below: 1.0507... times 1.6732....
    "selu": lambda: 1.7580993408473770,
    "sigmoid": lambda: 0.25,
    "hardsigmoid": lambda slope=1.0 / 6.0: outward(abs(slope)),
    # x clip(x + 3, 0, 6) / 6 has the derivative (2 x + 3) / 6 between -3 and 3, at most 3/2.
    "hardswish": lambda: 1.5,
    # The second derivative of x Phi(x) is phi(x) (2 - x^2): the first is largest at sqrt(2), 1.128904145...
    "gelu": lambda: 1.1289042,
    # Of the formula with tanh the derivative is at most 1.1290..., of x sigmoid(x) 1.09984, of x tanh(softplus) 1.0885.
    "gelu by tanh": lambda: 1.13,
    "silu": lambda: 1.1,
    "mish": lambda: 1.09,
    # The Jacobian diag(p) - p p^T has rows of modulus 2 p (1 - p) <= 1/2 (Gershgorin).
    "softmax": lambda: 0.5,
    # I - 1 p^T is a projector along 1, of norm sqrt(n) norm(p) <= sqrt(n) for n > 1.
    "log softmax": lambda count: outward(math.sqrt(count)),
}
"""By name, each a function of its parameters."""


def activation_gain(name: str, **parameters: Any) -> float:
    """Return a Lipschitz constant of an activation, which acts on each entry, or along an axis for the softmax.

    Parameters
    ----------
    name : str
        One of `ACTIVATIONS`.
    **parameters
        Such as `slope` for the leaky ReLU and PReLU, `alpha` for ELU, `count` for the logarithm of a softmax.

    Examples
    --------
    >>> from convla.networks.gains import activation_gain
    >>> activation_gain("relu"), activation_gain("leaky relu", slope=0.2), activation_gain("softmax")
    (1.0, 1.0, 0.5)
    """
    return ACTIVATIONS[name](**parameters)


def copies_gain(sources: Sequence[int] | np.ndarray[Any, Any]) -> float:
    """Return the norm of a map that copies entries: the root of how often the one is copied that is copied most.

    Parameters
    ----------
    sources : sequence of int
        The index of the entry behind each entry of the value; negative where there is none, but a constant.

    Examples
    --------
    >>> from convla.networks.gains import copies_gain
    >>> copies_gain([0, 1, 2]), copies_gain([0, 0, 0, 0]) >= 2.0
    (1.0, True)
    """
    array = np.asarray(sources).reshape(-1)
    counts = np.bincount(array[array >= 0]) if (array >= 0).any() else np.zeros(1, dtype=int)
    most = int(counts.max())
    return 1.0 if most == 1 else outward(math.sqrt(most))


def overlap_gain(sizes: Sequence[int], windows: Sequence[Sequence[range]]) -> float:
    """Return a Lipschitz constant of a maximum over windows: the root of the most windows that one entry is in.

    Parameters
    ----------
    sizes : sequence of int
        Of the image, along each axis.
    windows : sequence of sequence of range
        The positions of each window along each axis; those outside the image are of no account.

    Notes
    -----
    ``|max a - max b| <= max |a - b|``, whose square is at most the sum of the squares over the window, and each entry
    is in at most the product over the axes of the windows that hold it.

    Examples
    --------
    >>> from convla.networks.gains import overlap_gain
    >>> overlap_gain([6], [[range(0, 2), range(2, 4), range(4, 6)]])
    1.0
    >>> round(overlap_gain([6], [[range(-1, 2), range(1, 4), range(3, 6)]]) ** 2, 6)
    2.0
    """
    most = 1
    for size, axis in zip(sizes, windows, strict=True):
        counts = np.zeros(size, dtype=int)
        for window in axis:
            inside = [place for place in window if 0 <= place < size]
            counts[inside] += 1
        most *= max(1, int(counts.max()))
    return 1.0 if most == 1 else outward(math.sqrt(most))


def windows(outputs: int, kernel: int, stride: int, low: int, dilation: int = 1) -> list[range]:
    """Return the positions that each output of a pooling reads along one axis, with `low` positions of padding before.

    Examples
    --------
    >>> from convla.networks.gains import windows
    >>> windows(2, kernel=3, stride=2, low=1)
    [range(-1, 2), range(1, 4)]
    """
    starts = [output * stride - low for output in range(outputs)]
    return [range(start, start + (kernel - 1) * dilation + 1, dilation) for start in starts]


def average_matrix(size: int, windows: Sequence[range], counted: range) -> np.ndarray[Any, Any]:
    """Return the matrix of means over windows along one axis, each over the positions of its window that are counted.

    Examples
    --------
    >>> from convla.networks.gains import average_matrix
    >>> average_matrix(3, [range(-1, 1), range(1, 3)], range(-1, 3))  # with the padding counted
    array([[0.5, 0. , 0. ],
           [0. , 0.5, 0.5]])
    """
    matrix = np.zeros((len(windows), size))
    for row, window in enumerate(windows):
        divisor = sum(place in counted for place in window)
        matrix[row, [place for place in window if 0 <= place < size]] = 1.0 / divisor if divisor else 0.0
    return matrix


def matrix_gain(matrix: np.ndarray[Any, Any]) -> float:
    """Return a proved upper bound of the norm of a small matrix, above it by little more than rounding.

    Notes
    -----
    ``b^2 I - M^T M`` is factorised by Cholesky: see `convla.spectra.certificate`. A power of two is split off first, so
    that no square leaves the range of float64. A matrix with infinities or NaN has the bound infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.gains import matrix_gain
    >>> 5.0 <= matrix_gain(np.array([[3.0], [4.0]])) < 5.0 + 1e-12
    True
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    largest = float(np.max(np.abs(matrix), initial=0.0))
    if largest == 0.0:
        return 0.0
    if not math.isfinite(largest):
        return math.inf
    exponent = math.frexp(largest)[1]
    # What becomes subnormal loses less than the spare terms of the error below allow for.
    matrix = np.ldexp(matrix, -exponent)
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    gram = (gram + gram.T) / 2  # exactly symmetric, whatever the library's product is
    terms = max(matrix.shape) + 4
    error = gamma(terms, U64) * float((matrix * matrix).sum()) * (1.0 + gamma(matrix.size, U64))
    guess = math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)) * (1.0 + 4 * terms * U64)
    bound = certified_norm_bound(Combinations.of(gram[None, ...]), error, provable(guess, error, len(gram)))
    return rounded_up(Fraction(bound) * Fraction(2) ** exponent)


def average_gain(matrices: Sequence[np.ndarray[Any, Any]]) -> float:
    """Return a proved upper bound of the norm of a linear map that acts along each axis by a matrix of its own.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.gains import average_gain, average_matrix
    >>> halves = average_matrix(4, [range(0, 2), range(2, 4)], range(4))
    >>> 0.5 <= average_gain([halves, halves]) < 0.5 + 1e-12  # the Kronecker product of two of norm sqrt(1/2)
    True
    """
    return outward(math.prod(matrix_gain(matrix) for matrix in matrices), len(matrices))


def normalization_gain(scale: Any, epsilon: float) -> float:
    """Return a Lipschitz constant of a normalisation by the mean and deviation of its own input.

    Parameters
    ----------
    scale : array or None
        What each entry is multiplied by afterwards.
    epsilon : float
        What is added to the variance.

    Notes
    -----
    Of ``(x - mean(x)) / s`` with ``s^2 = var(x) + epsilon`` the Jacobian is ``(P - y y^T / n) / s``, with P the
    projector on vectors of mean 0 and y the value, ``norm(y)^2 <= n``: its norm is at most ``1 / s``.

    Examples
    --------
    >>> from convla.networks.gains import normalization_gain
    >>> 10.0 <= normalization_gain(None, 0.01) < 10.0 + 1e-12
    True
    """
    if epsilon <= 0.0:
        return math.inf
    largest = 1.0 if scale is None else float(np.max(np.abs(np.asarray(scale, dtype=np.float64))))
    gain = largest / math.sqrt(epsilon)
    return outward(gain, 3) if gain or not largest else math.ulp(0.0)
