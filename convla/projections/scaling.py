"""The last step of a projection: a kernel scaled down until a norm of its layer is proved, rounding included."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from convla._array import namespace
from convla.operators import ConvOperator
from convla.spectra.bounds import singular_value_bounds
from convla.spectra.result import SingularValues
from convla.typing import ArrayLike

__all__ = ["ScaledOperator", "scaled_below"]


class ScaledOperator(NamedTuple):
    """An operator whose norm is proved to be below a limit.

    Attributes
    ----------
    operator : ConvOperator
        Of the kernel as its dtype holds it.
    factor : float
        What the kernel was multiplied by; 1 where nothing had to be done.
    upper : float
        The proved bound of the largest singular value, at most the limit.
    """

    operator: ConvOperator
    factor: float
    upper: float


def scaled_below(
    operator: ConvOperator,
    maximum: float,
    *,
    start: SingularValues | ArrayLike | None = None,
    scale: Callable[[float], ConvOperator] | None = None,
    proof: Callable[[ConvOperator], float] | None = None,
    upper: float | None = None,
) -> ScaledOperator:
    """Scale an operator down until its largest singular value is proved to be at most `maximum`.

    Parameters
    ----------
    operator : ConvOperator
        With a kernel of float32 or float64.
    maximum : float
        Positive.
    start : SingularValues or array of shape (..., *domain_shape), optional
        Vectors close to the leading one, which save work; see `convla.singular_value_bounds`.
    scale : callable, optional
        Returns the operator of the kernel times a factor, as whoever uses it will compute and round it; by default
        their product in the kernel's dtype.
    proof : callable, optional
        Returns a proved upper bound of an operator's largest singular value; by default the upper end of
        `convla.singular_value_bounds`.
    upper : float, optional
        Such a bound of `operator`, where one is known.

    Returns
    -------
    ScaledOperator

    Notes
    -----
    The proof is made of the scaled kernel after it is rounded to its dtype: what rounding adds is within it. Where it
    comes out above the limit by that, a margin is taken, four times as large each time, from the roundoff of the dtype
    on.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.projections.scaling import scaled_below
    >>> scaled = scaled_below(ConvOperator(np.array([[[1.0, 2.0, 1.0]]], np.float32), (9,)), 1.0)
    >>> scaled.upper <= 1.0, scaled.operator.dtype.name, round(scaled.factor * 3.902, 4)
    (True, 'float32', 1.0)
    """
    xp = namespace(operator.kernel)
    roundoff = float(xp.finfo(operator.dtype).eps)
    found, factor, margin = operator, 1.0, roundoff
    if proof is None:

        def proof(operator: ConvOperator) -> float:
            return singular_value_bounds(operator, start=start).upper

    upper = proof(found) if upper is None else upper
    while upper > maximum:
        factor *= maximum / upper * max(0.0, 1.0 - margin)
        found = operator.with_kernel(operator.kernel * factor) if scale is None else scale(factor)
        upper = proof(found)
        margin *= 4
    return ScaledOperator(found, factor, upper)
