"""The sum of all squared singular values of a map: its squared Frobenius norm, from a convolution's kernel alone."""

from __future__ import annotations

import string

import numpy as np

from convla._array import namespace, to_numpy
from convla.linear_map import LinearMap
from convla.operators import ConvOperator

__all__ = ["squared_frobenius_norm"]


def squared_frobenius_norm(operator: LinearMap, *, unit: float = 1.0) -> float:
    """Return the squared Frobenius norm of a map's matrix.

    Parameters
    ----------
    operator : LinearMap
        A convolution, or its transpose, of any size; another map is written out.
    unit : float
        The norm is found in multiples of it: of the largest singular value, say, so that no square leaves the range.

    Returns
    -------
    float

    Raises
    ------
    MemoryError
        If another map than a convolution is too large to be written out.

    Notes
    -----
    Row (o, q) of a convolution's matrix holds ``sum of K[o, i, t]`` over the taps t that read one position of channel
    i. So the sum of squares is ``sum K[o, i, t] K[o, i, t'] N[t, t']`` with N[t, t'] the number of outputs q for which
    both taps read the same position; N is the product over the axes of such numbers along each, and diagonal where the
    boundary is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.frobenius import squared_frobenius_norm
    >>> squared_frobenius_norm(ConvOperator(np.array([[[1.0, 2.0, 3.0]]]), (4,)))
    46.0
    """
    convolution = operator if isinstance(operator, ConvOperator) else operator.T
    if not isinstance(convolution, ConvOperator):
        matrix = operator.to_dense()
        xp = namespace(matrix)
        return float(xp.sum((xp.astype(matrix, xp.float64) / unit) ** 2))
    geometry = convolution.geometry
    kernel = np.asarray(to_numpy(convolution.kernel), dtype=np.float64) / unit
    axes = string.ascii_lowercase[: geometry.ndim]
    counted = kernel
    for axis in range(geometry.ndim):
        sources = geometry.axis_map(axis)
        inside = sources >= 0
        same = (sources[:, :, None] == sources[:, None, :]) & inside[:, :, None]
        meetings = same.sum(axis=0).astype(np.float64)
        counted = np.moveaxis(np.tensordot(counted, meetings, axes=(2 + axis, 0)), -1, 2 + axis)
    return float(np.einsum(f"yz{axes},yz{axes}->", kernel, counted))
