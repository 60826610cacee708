"""Helpers for tests of linear maps: rounding error bounds derived from dtype and size, and the adjoint test."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from convla._validate import check_rng
from convla.typing import Seed

__all__ = ["AdjointPair", "assert_adjoint", "assert_within_rounding", "gamma", "rounding_bound", "unit_roundoff"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


class AdjointPair(Protocol):
    """What `assert_adjoint` asks of an operator; `ConvOperator` is one."""

    dtype: Any
    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    def apply(self, image: Any, /) -> Any:
        """Map (..., *domain_shape) to (..., *range_shape)."""

    def adjoint(self, features: Any, /) -> Any:
        """Map (..., *range_shape) to (..., *domain_shape)."""

    def __abs__(self) -> AdjointPair:
        """Return an operator whose matrix bounds this one's entries."""


def unit_roundoff(dtype: Any) -> float:
    """Return the unit roundoff of a floating dtype, half its machine epsilon; 0 for integers and exact objects.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.testing import unit_roundoff
    >>> unit_roundoff(np.float64) == 2.0**-53
    True
    """
    dtype = np.dtype(dtype)
    return float(np.finfo(dtype).eps) / 2 if dtype.kind == "f" else 0.0


def gamma(terms: int, dtype: Any) -> float:
    """Return the constant of the forward error bound of a sum of `terms` products, in any order of summation.

    Parameters
    ----------
    terms : int
        The number of products, n.
    dtype : dtype
        In which the products are formed and summed, with unit roundoff u.

    Returns
    -------
    float
        ``n u / (1 - n u)``, so that the computed x.y is off by at most this times abs(x).abs(y).

    Raises
    ------
    ValueError
        If ``n u`` is 1 or more: the bound says nothing.

    References
    ----------
    N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM, 2002, Lemma 3.1 and Eq. (3.5).

    Examples
    --------
    >>> import numpy as np
    >>> from convla.testing import gamma
    >>> 27 * 2.0**-53 < gamma(27, np.float64) < 28 * 2.0**-53
    True
    """
    product = terms * unit_roundoff(dtype)
    if product >= 1:
        raise ValueError(f"terms must be below {1 / unit_roundoff(dtype):.0f} for dtype {np.dtype(dtype)}, got {terms}")
    return product / (1 - product)


def rounding_bound(bilinear: Callable[[Any, Any], Any], a: Any, b: Any, *, dtype: Any = None) -> FloatArray:
    """Bound the rounding error of every entry of a bilinear map, each of whose entries is a sum of products.

    Parameters
    ----------
    bilinear : callable
        Maps two NumPy arrays to one, with non-negative coefficients, such as ``lambda x, k: cross_correlate(x, k,
        padding="same")``.
    a, b : array
        Its arguments; float32 or float64.
    dtype : dtype, optional
        In which the map is computed; that of `a` by default.

    Returns
    -------
    numpy.ndarray of float64
        ``gamma(n) bilinear(|a|, |b|)`` entry by entry, where n, the number of products in the longest entry, is found
        by applying the map to ones. The bound is enlarged by its own rounding.

    References
    ----------
    N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM, 2002, Eq. (3.5).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import cross_correlate
    >>> from convla.testing import rounding_bound
    >>> x, k = np.ones((1, 4), np.float32), np.ones((1, 1, 2), np.float32)
    >>> bool(rounding_bound(lambda x, k: cross_correlate(x, k, padding="valid"), x, k).max() < 4.01 * 2.0**-24)
    True
    """
    dtype = np.asarray(a).dtype if dtype is None else dtype
    terms = int(np.max(bilinear(np.ones(np.shape(a), np.int64), np.ones(np.shape(b), np.int64))))
    size = np.asarray(bilinear(np.abs(np.asarray(a, np.float64)), np.abs(np.asarray(b, np.float64))), np.float64)
    bound: FloatArray = gamma(terms, dtype) * size * (1 + gamma(terms + 2, np.float64))
    return bound


def assert_within_rounding(got: Any, bilinear: Callable[[Any, Any], Any], a: Any, b: Any, expected: Any = None) -> None:
    """Raise `AssertionError` unless `got` agrees with a bilinear map of `a` and `b` to within rounding.

    Parameters
    ----------
    got : array
        What the code under test returned.
    bilinear : callable
        As for `rounding_bound`.
    a, b : array
        The arguments; integers and exact objects are compared exactly.
    expected : array, optional
        The value from an independent source, in exact or in float64 arithmetic; the map at float64 by default.
    """
    got = np.asarray(got)
    kind = np.asarray(a).dtype
    if kind.kind != "f":
        np.testing.assert_array_equal(got, bilinear(a, b) if expected is None else expected)
        return
    if expected is None:
        expected = bilinear(np.asarray(a, np.float64), np.asarray(b, np.float64))
    # The value that is compared with was rounded too, in float64.
    bound = rounding_bound(bilinear, a, b) + rounding_bound(bilinear, a, b, dtype=np.float64)
    error = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64))
    if got.shape != error.shape or not (error <= bound).all():
        worst = np.unravel_index(np.argmax(error - bound), error.shape)
        raise AssertionError(
            f"entry {tuple(map(int, worst))} is off by {error[worst]:.3e}, beyond its rounding bound "
            f"{bound[worst]:.3e}: got {got[worst]!r}, expected {np.asarray(expected)[worst]!r}"
        )


def assert_adjoint(
    operator: AdjointPair, *, terms: int | None = None, batch: tuple[int, ...] = (), rng: Seed = 0
) -> None:
    """Raise `AssertionError` unless ``<apply(x), y> = <x, adjoint(y)>`` for random x and y, to within rounding.

    Every new operator has to pass this test; see the guide "Adding an operator".

    Parameters
    ----------
    operator : object with apply, adjoint, abs(), domain_shape, range_shape and dtype
        On NumPy arrays. ``abs(operator)`` has a matrix that bounds this one's entries.
    terms : int, optional
        The largest number of products in an entry of either map; by default the larger of the two sizes, which bounds
        it.
    batch : tuple of int
        Leading axes of x and y.
    rng : numpy.random.Generator or seed

    Raises
    ------
    AssertionError
        If the two inner products differ by more than the rounding errors of both maps can explain: for integers, if
        they differ at all.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.testing import assert_adjoint
    >>> assert_adjoint(ConvOperator(np.array([[[1.0, 2.0, 3.0]]]), (8,), boundary="reflect"), terms=9)
    """
    generator = check_rng(rng)
    dtype = np.dtype(operator.dtype)
    x, y = (_draw((*batch, *shape), dtype, generator) for shape in (operator.domain_shape, operator.range_shape))
    forward, backward = np.asarray(operator.apply(x)), np.asarray(operator.adjoint(y))
    if dtype.kind != "f":
        left, right = np.sum(forward * y), np.sum(x * backward)
        if left != right:
            raise AssertionError(f"<apply(x), y> = {left} but <x, adjoint(y)> = {right}")
        return
    if terms is None:
        terms = max(math.prod(operator.domain_shape), math.prod(operator.range_shape))
    # The inner products are taken in float64, of products that are exact or rounded once.
    left, right = (
        math.fsum((np.asarray(p, np.float64) * np.asarray(q, np.float64)).ravel())
        for p, q in ((forward, y), (x, backward))
    )
    size = math.fsum(
        (np.abs(np.asarray(y, np.float64)) * np.asarray(abs(operator).apply(np.abs(x)), np.float64)).ravel()
    )
    bound = (2 * gamma(terms, dtype) + 2 * gamma(2, np.float64)) * size * (1 + gamma(terms, dtype))
    if not abs(left - right) <= bound:
        raise AssertionError(
            f"<apply(x), y> = {left!r} and <x, adjoint(y)> = {right!r} differ by {abs(left - right):.3e}, beyond the "
            f"rounding bound {bound:.3e}"
        )


def _draw(shape: tuple[int, ...], dtype: Any, generator: np.random.Generator) -> Any:
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(-9, 10, shape).astype(dtype)
