"""Kernels with symbolic entries: identities proved as identities of polynomials, by the shipped code itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convla.typing import Array
from proofs_checks.statement import UnavailableError

__all__ = ["derivative", "symbolic_kernels"]


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
    array[:] = fmpz_mpoly_ctx.get(names, Ordering.degrevlex).gens()
    return array.reshape(shape)


def derivative(polynomial: Any, variable: int) -> Any:
    """Return the derivative of a polynomial by its variable of this number."""
    return polynomial.derivative(variable)
