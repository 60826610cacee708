"""How the norm of a zero-padded convolution approaches that of its symbol as the image grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convla._validate import check_integer, check_real
from convla.errors import ShapeError

__all__ = ["norm_from_symbol"]


def norm_from_symbol(peak: float, curvatures: Sequence[float], image_shape: Sequence[int]) -> float:
    """Return the norm of a zero-padded convolution to leading order in the size of the image.

    Parameters
    ----------
    peak : float
        The largest norm S of the symbol f over all frequencies, positive.
    curvatures : sequence of float
        For each axis the second derivative of the squared norm of f at the maximum, at most 0.
    image_shape : sequence of int
        n for each axis.

    Returns
    -------
    float
        The root of ``S^2 + sum over axes of pi^2 curvature / (2 (n + 1)^2)``, or 0 where that is negative.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range.
    ShapeError
        If there is not one curvature for each axis.

    Notes
    -----
    For one non-degenerate maximum, up to conjugation, where the largest singular value of f is simple, and a Hessian
    that is diagonal. Where a curvature vanishes the true difference is of higher order.

    References
    ----------
    S. V. Parter, On the extreme eigenvalues of truncated Toeplitz matrices, Bull. AMS 67 (1961); H. Widom, On the
    eigenvalues of certain Hermitian operators, Trans. AMS 88 (1958).

    Examples
    --------
    The kernel (1, 2, 1) has the symbol 2 + 2 cos(theta), and the norm 2 + 2 cos(pi / (n + 1)) on n samples:

    >>> import math
    >>> from convla.identities import norm_from_symbol
    >>> round(norm_from_symbol(4.0, [-16.0], [64]), 5), round(2 + 2 * math.cos(math.pi / 65), 5)
    (3.99766, 3.99766)
    """
    if len(curvatures) != len(image_shape):
        raise ShapeError(f"curvatures must have one number for each of {len(image_shape)} axes, got {len(curvatures)}")
    square = check_real("peak", peak, positive=True) ** 2
    for curvature, size in zip(curvatures, image_shape, strict=True):
        length = check_integer("every entry of image_shape", size, minimum=1) + 1
        square += math.pi**2 * check_real("every entry of curvatures", curvature, maximum=0.0) / (2 * length**2)
    return math.sqrt(max(square, 0.0))
