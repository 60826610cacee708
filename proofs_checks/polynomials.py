"""Kernels with symbolic entries: identities proved as identities of polynomials, by the shipped code itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convla.typing import Array
from proofs_checks.statement import UnavailableError

__all__ = ["Polynomial", "symbolic_kernels"]


class Polynomial:
    """A polynomial with integer coefficients in an object array: python-flint's, which NumPy would take for a sequence.

    Parameters
    ----------
    value : flint.fmpz_mpoly or int
    """

    # Scalars of NumPy leave the operation to the reflected method.
    __array_ufunc__ = None

    def __init__(self, value: Any) -> None:
        self.value = value

    def __add__(self, other: Any) -> Polynomial:
        return Polynomial(self.value + _plain(other))

    def __mul__(self, other: Any) -> Polynomial:
        return Polynomial(self.value * _plain(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Polynomial:
        return Polynomial(-self.value)

    def __sub__(self, other: Any) -> Polynomial:
        return Polynomial(self.value - _plain(other))

    def __rsub__(self, other: Any) -> Polynomial:
        return Polynomial(_plain(other) - self.value)

    def __pow__(self, exponent: int) -> Polynomial:
        return Polynomial(self.value**exponent)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == _plain(other))

    __hash__ = None  # type: ignore[assignment]  # equal to integers, which hash otherwise

    def __repr__(self) -> str:
        return str(self.value)

    def derivative(self, variable: int) -> Polynomial:
        """Return the derivative by the variable of this number."""
        return Polynomial(self.value.derivative(variable))


def symbolic_kernels(shape: Sequence[int]) -> Array:
    """Return an object array of this shape whose entries are independent indeterminates over the integers.

    Raises
    ------
    UnavailableError
        If python-flint is not installed.
    """
    try:
        from flint import Ordering, fmpz_mpoly_ctx
    except ImportError:
        raise UnavailableError("identities of polynomials need python-flint: pip install python-flint") from None
    names = [f"k{i}" for i in range(math.prod(shape))]
    array = np.empty(len(names), dtype=object)
    array[:] = [Polynomial(variable) for variable in fmpz_mpoly_ctx.get(names, Ordering.degrevlex).gens()]
    return array.reshape(shape)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Polynomial) else int(value)
