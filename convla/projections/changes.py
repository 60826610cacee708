"""What a change of a kernel can add to a norm that has been proved, from inner products of its taps alone."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from convla._array import to_numpy
from convla.operators import ConvOperator
from convla.spectra.certificate import U64, gamma
from convla.spectra.enclosure import envelope
from convla.spectra.scaling import rounded_up

__all__ = ["bound_after"]


def bound_after(before: ConvOperator, upper: float, after: ConvOperator) -> float:
    """Return a proved bound of a convolution's largest singular value, from one of another kernel in the same setting.

    Parameters
    ----------
    before : ConvOperator
        With a kernel of float32 or float64.
    upper : float
        A proved upper bound of its largest singular value.
    after : ConvOperator

    Returns
    -------
    float
        At least `upper`. Infinity where the difference of the kernels is out of range.

    Notes
    -----
    By Weyl's inequality the norm grows by no more than that of the difference D, and this is bounded by the Frobenius
    norms of its symbol: with D_t the matrix of a tap,

        ``norm(f(theta))_F^2 = sum_{s,t} <D_s, D_t> exp(i theta.(t - s)) <= sum_{s,t} abs(<D_s, D_t>)``,

    of which a stride, that tells the taps apart by phases, leaves fewer terms. The factor between the symbol and the
    layer is that of `convla.spectra.enclosure.envelope`. It takes one small product, and is larger than the norm by up
    to the root of the number of channels, less where the change is of low rank.

    References
    ----------
    H. Weyl, Das asymptotische Verteilungsgesetz der Eigenwerte linearer partieller Differentialgleichungen, Math. Ann.
    71 (1912) 441-479.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.projections.changes import bound_after
    >>> before, after = (ConvOperator(np.array([[kernel]]), (9,)) for kernel in ([1.0, 2.0, 1.0], [1.0, 2.5, 1.25]))
    >>> round(bound_after(before, 4.0, after), 12)
    4.75
    """
    geometry = before.geometry
    with np.errstate(over="ignore"):
        difference = np.subtract(to_numpy(after.kernel), to_numpy(before.kernel), dtype=np.float64)
    largest = float(np.abs(difference).max())
    if largest == 0.0 or not math.isfinite(largest):
        return upper if largest == 0.0 else math.inf
    exponent = math.frexp(largest)[1]
    taps = np.ldexp(difference, -exponent).reshape(geometry.groups, -1, math.prod(geometry.kernel_size))
    products = np.abs(taps.swapaxes(1, 2) @ taps)
    # An inner product errs by at most gamma_n times those of the moduli, whose sum is at most the number of taps times
    # the sum of the squares; the rest is the differences' rounding, that of the sum, and what underflows.
    terms = taps.shape[1] + taps.shape[2] ** 2 + 16
    square = float(products.sum(axis=(1, 2)).max()) * (1 + 2 * taps.shape[2] * gamma(terms, U64))
    change = Fraction(math.sqrt(square) * (1 + 4 * U64)) * Fraction(envelope(geometry).factor * (1 + 4 * U64))
    return rounded_up(Fraction(upper) + change * Fraction(2) ** exponent)
