"""Other forms of the convolutional similarity, and how small it gets for kernels of unit norm."""

from __future__ import annotations

import math

import numpy as np

from convla._array import namespace
from convla._checks import check_kernel
from convla._validate import check_integer
from convla.identities.inner_products import kernel_correlation
from convla.typing import Array, ArrayLike, Seed

__all__ = [
    "least_similar_pair",
    "ordered_pair_similarity",
    "same_channel_similarity",
    "similarity_lower_bound",
]


def ordered_pair_similarity(kernels: ArrayLike) -> Array:
    """Return the convolutional similarity summed over ordered pairs i != j: twice `convla.convolutional_similarity`.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in, *kernel)

    Returns
    -------
    array of shape ()

    Raises
    ------
    TypeError, ShapeError, ValueError
        If `kernels` is no array of finite real numbers of that shape.

    References
    ----------
    CSM, Eq. (17).

    Examples
    --------
    >>> import numpy as np
    >>> from convla.identities import ordered_pair_similarity
    >>> int(ordered_pair_similarity(np.array([[[1, 2]], [[3, -1]]])))
    76
    """
    xp = namespace(kernels)
    kernels = check_kernel(kernels, xp)
    products = kernel_correlation(kernels, kernels, stacks=True)
    pairs = xp.sum(products * products, axis=tuple(range(2, products.ndim)), dtype=products.dtype)
    own = xp.eye(pairs.shape[0], dtype=pairs.dtype)
    return xp.sum(pairs * (1 - own), dtype=pairs.dtype)


def same_channel_similarity(kernels: ArrayLike) -> Array:
    """Return the sum over kernels i < j of the squared norm of the cross-correlation summed over equal channels.

    The loss of orthogonal convolutional networks off its diagonal: it vanishes for kernels whose feature maps are not
    orthogonal, because `convla.convolutional_similarity` takes every pair of channels for itself.

    Parameters, result and errors are those of `ordered_pair_similarity`.

    References
    ----------
    CSM, Section 4.2.2 and Figure 1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import convolutional_similarity
    >>> from convla.identities import same_channel_similarity
    >>> kernels = np.array([[[1], [1]], [[1], [-1]]])
    >>> int(same_channel_similarity(kernels)), int(convolutional_similarity(kernels))
    (0, 4)
    """
    xp = namespace(kernels)
    kernels = check_kernel(kernels, xp)
    products = kernel_correlation(kernels, kernels, stacks=True)
    summed = products[:, :, 0, 0, ...]
    for channel in range(1, kernels.shape[1]):
        summed = summed + products[:, :, channel, channel, ...]
    pairs = xp.sum(summed * summed, axis=tuple(range(2, summed.ndim)), dtype=summed.dtype)
    return xp.sum(xp.triu(pairs, k=1), dtype=pairs.dtype)


def similarity_lower_bound(taps: int) -> float:
    """Return a positive lower bound of the convolutional similarity of two kernels of unit norm with `taps` entries.

    Parameters
    ----------
    taps : int
        N, at least 1, of kernels with one axis and one channel.

    Returns
    -------
    float

    Notes
    -----
    Two kernels are polynomials of degree N - 1, one of them reversed, and their cross-correlation is the product.
    Bombieri's norm, the sum of |a_i|^2 / binom(n, i), satisfies [PQ]^2 >= [P]^2 [Q]^2 / binom(2N-2, N-1); it is at most
    the Euclidean norm and at least that over the largest binomial coefficient.

    References
    ----------
    B. Beauzamy, E. Bombieri, P. Enflo, H. Montgomery, Products of polynomials in many variables, J. Number Theory 36
    (1990), Theorem 1.2.

    Examples
    --------
    >>> from convla.identities import similarity_lower_bound
    >>> similarity_lower_bound(2)
    0.5
    """
    degree = check_integer("taps", taps, minimum=1) - 1
    return 1.0 / (math.comb(2 * degree, degree) * math.comb(degree, degree // 2) ** 2)


def least_similar_pair(taps: int, *, starts: int = 64, sweeps: int = 400, rng: Seed = 0) -> tuple[Array, Array]:
    """Search two kernels of unit norm with the least convolutional similarity.

    Parameters
    ----------
    taps : int
        N, at least 1.
    starts : int
        Random starts, of which the best is returned.
    sweeps : int
        Alternating minimisations from each start.
    rng : numpy.random.Generator or seed

    Returns
    -------
    k1, k2 : array of shape (taps,)
        A pair of which no change of one kernel alone lessens the similarity. Their similarity bounds the minimum from
        above.

    Raises
    ------
    TypeError, ValueError
        If a count is no positive integer.

    Notes
    -----
    For fixed K1 the similarity is the quadratic form of the Toeplitz matrix of K1's autocorrelation, least at its last
    eigenvector. Among the starts is the pair of (1 + z)^(N-1) and (1 - z)^(N-1), equal and alternating signs, whose
    product leaves out every second power.

    Examples
    --------
    >>> from convla.identities import least_similar_pair
    >>> k1, k2 = least_similar_pair(2)
    >>> bool(abs(abs(k1 @ k1) - 1) < 1e-12), bool(abs(k1 @ k2) < 1e-12)
    (True, True)
    """
    check_integer("taps", taps, minimum=1)
    check_integer("starts", starts, minimum=1)
    check_integer("sweeps", sweeps, minimum=1)
    generator = np.random.default_rng(rng)
    k1 = generator.standard_normal((starts, taps))
    k1[0] = [math.comb(taps - 1, i) for i in range(taps)]
    k1 /= np.linalg.norm(k1, axis=1, keepdims=True)
    for _ in range(sweeps):
        k2, _ = _best_partner(k1)
        k1, values = _best_partner(k2)
    best = int(np.argmin(values))
    return k1[best], k2[best]


def _best_partner(kernels: Array) -> tuple[Array, Array]:
    """Return for each row its unit-norm partner of least similarity, and that similarity."""
    rows, taps = kernels.shape
    padded = np.concatenate((np.zeros((rows, taps - 1)), kernels, np.zeros((rows, taps - 1))), axis=1)
    # Row t of the convolution's matrix is the kernel at lag t: similarity is |matrix @ partner|^2.
    place = np.arange(2 * taps - 1)[:, None] + taps - 1 - np.arange(taps)[None, :]
    _, values, vectors = np.linalg.svd(padded[:, place], full_matrices=False)
    return vectors[:, -1, ::-1], values[:, -1] ** 2
