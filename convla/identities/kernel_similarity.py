"""Other forms of the convolutional similarity."""

from __future__ import annotations

from convla._array import namespace
from convla._checks import check_kernel
from convla.identities.inner_products import kernel_correlation
from convla.typing import AnyArray, ArrayLike

__all__ = ["ordered_pair_similarity", "same_channel_similarity"]


def ordered_pair_similarity(kernels: ArrayLike) -> AnyArray:
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


def same_channel_similarity(kernels: ArrayLike) -> AnyArray:
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
