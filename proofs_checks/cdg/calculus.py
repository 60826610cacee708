"""Exact polynomials of the place in [0, 1], and fractions that count what is done to them."""

from __future__ import annotations

import numbers
from fractions import Fraction
from typing import Any

__all__ = ["Counted", "Polynomial", "added", "at", "derivative", "integral", "plain", "primitive", "product", "scaled"]


class Counted:
    """A fraction that counts the operations on it and on what they give.

    Parameters
    ----------
    value : Fraction
    tally : list of one int
        Shared by all that is counted together.
    """

    # Scalars of NumPy leave the operation to the reflected method.
    __array_ufunc__ = None

    def __init__(self, value: Fraction, tally: list[int]) -> None:
        self.value, self.tally = value, tally

    def _result(self, value: Fraction) -> Counted:
        self.tally[0] += 1
        return Counted(value, self.tally)

    def __add__(self, other: Any) -> Counted:
        return self._result(self.value + plain(other))

    def __sub__(self, other: Any) -> Counted:
        return self._result(self.value - plain(other))

    def __rsub__(self, other: Any) -> Counted:
        return self._result(plain(other) - self.value)

    def __mul__(self, other: Any) -> Counted:
        return self._result(self.value * plain(other))

    def __truediv__(self, other: Any) -> Counted:
        return self._result(self.value / plain(other))

    def __neg__(self) -> Counted:
        return self._result(-self.value)

    __radd__, __rmul__ = __add__, __mul__


numbers.Rational.register(Counted)  # as an entry of an array of exact numbers


def plain(other: Any) -> Fraction:
    """Return the number itself."""
    return other.value if isinstance(other, Counted) else Fraction(other)


Polynomial = list[Fraction]
"""Coefficients, the constant first."""


def at(p: Polynomial, o: Fraction) -> Fraction:
    """Return p(o)."""
    return sum((c * o**i for i, c in enumerate(p)), Fraction(0))


def product(p: Polynomial, q: Polynomial) -> Polynomial:
    """Return p q."""
    result = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            result[i + j] += a * b
    return result


def added(*terms: Polynomial) -> Polynomial:
    """Return the sum of polynomials."""
    length = max(map(len, terms))
    return [sum((p[i] for p in terms if i < len(p)), Fraction(0)) for i in range(length)]


def primitive(p: Polynomial) -> Polynomial:
    """Return the integral of p from 0."""
    return [Fraction(0)] + [c / (i + 1) for i, c in enumerate(p)]


def derivative(p: Polynomial) -> Polynomial:
    """Return the derivative of p."""
    return [i * c for i, c in enumerate(p)][1:] or [Fraction(0)]


def integral(p: Polynomial) -> Fraction:
    """Return the integral of p over [0, 1]."""
    return at(primitive(p), Fraction(1))


def scaled(p: Polynomial, factor: Fraction) -> Polynomial:
    """Return a multiple of p."""
    return [factor * c for c in p]
