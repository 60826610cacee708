"""The channel-directed metrics of a layer's parameters, and the Green's function of the Sobolev one.

Output channels are axis 0, one unit apart and periodic. Exact inputs (object arrays of Fractions) give exact values.
"""

from __future__ import annotations

from numbers import Rational
from typing import Any

from convla._array import namespace
from convla._validate import check_array, check_real, check_same_shape
from convla.typing import Array, ArrayLike, Namespace

__all__ = ["reweighted_inner_product", "sobolev_greens_function", "sobolev_inner_product"]


def reweighted_inner_product(k1: ArrayLike, k2: ArrayLike, lam: float | Rational) -> Any:
    """Return the re-weighted H0 inner product: of the means over output channels, and lambda / O of the deviations.

    Parameters
    ----------
    k1, k2 : array of shape (c_out, ...)
        Tangent vectors: float64, integers or Fractions.
    lam : float or Fraction
        lambda > 0.

    Returns
    -------
    number

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the arguments are no arrays of finite real numbers of one shape, or `lam` is not positive.

    References
    ----------
    CDG, Eqs. (3)-(5).

    Examples
    --------
    >>> import numpy as np
    >>> from convla.identities import reweighted_inner_product
    >>> k = np.array([[1.0], [3.0]])
    >>> float(reweighted_inner_product(k, k, 5.0))
    9.0
    """
    k1, k2, mean1, mean2, xp = _prepared(k1, k2, lam)
    deviations = xp.sum((k1 - mean1) * (k2 - mean2))
    return xp.sum(mean1 * mean2) + deviations * lam / k1.shape[0]


def sobolev_inner_product(k1: ArrayLike, k2: ArrayLike, lam: float | Rational) -> Any:
    """Return the channel-directed Sobolev inner product: of the means, and lambda O of the differences of neighbours.

    Parameters, result and errors are those of `reweighted_inner_product`.

    References
    ----------
    CDG, Eq. (6), its derivative the periodic difference of neighbouring channels.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.identities import sobolev_inner_product
    >>> k = np.array([[1.0], [3.0]])
    >>> float(sobolev_inner_product(k, k, 0.25))
    8.0
    """
    k1, k2, mean1, mean2, xp = _prepared(k1, k2, lam)
    slopes1, slopes2 = (xp.roll(k, -1, axis=0) - k for k in (k1, k2))
    return xp.sum(mean1 * mean2) + lam * k1.shape[0] * xp.sum(slopes1 * slopes2)


def sobolev_greens_function(place: Any, lam: Any) -> Any:
    """Return K(o), the periodic Green's function of ``g -> mean(g) - lambda g''`` on [0, 1].

    Parameters
    ----------
    place : array of any shape, or number
        o in [0, 1]: floats or Fractions.
    lam : float or Fraction
        lambda > 0.

    Returns
    -------
    array of the shape of `place`
        ``1 + (o^2 - o + 1/6) / (2 lambda)``: of mean 1, and non-negative exactly where lambda is at least 1/24.

    Raises
    ------
    ValueError
        If `lam` is not positive.

    References
    ----------
    CDG, Eq. (9).

    Examples
    --------
    >>> from fractions import Fraction
    >>> from convla.identities import sobolev_greens_function
    >>> sobolev_greens_function(Fraction(1, 2), Fraction(1, 24))
    Fraction(0, 1)
    """
    check_real("lam", lam, positive=True)
    # 1/6 of the kind of the weight, so that Fractions stay exact.
    sixth = 1 / (6 * (lam / lam))
    return 1 + (place * place - place + sixth) / (2 * lam)


def _prepared(k1: ArrayLike, k2: ArrayLike, lam: Any) -> tuple[Array, Array, Array, Array, Namespace]:
    xp = namespace(k1, k2)
    k1, k2 = (check_array(name, k, xp, min_ndim=1, axes="(c_out, ...)") for name, k in (("k1", k1), ("k2", k2)))
    check_same_shape("k1", k1, "k2", k2)
    check_real("lam", lam, positive=True)
    mean1, mean2 = (xp.sum(k, axis=0) / k.shape[0] for k in (k1, k2))
    return k1, k2, mean1, mean2, xp
