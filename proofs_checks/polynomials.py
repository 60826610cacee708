"""Kernels with symbolic entries: identities proved as identities of polynomials, by the shipped code itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convla.typing import NumPyArray as Array
from proofs_checks.statement import UnavailableError

__all__ = ["symbolic_kernels"]


def symbolic_kernels(shape: Sequence[int]) -> Array:
    """Return an object array of this shape whose entries are independent indeterminates over the integers.

    They are python-flint's multivariate polynomials, as they are.

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
    # One by one: NumPy takes a polynomial in a list for a sequence of terms.
    gens = np.fromiter(fmpz_mpoly_ctx.get(names, Ordering.degrevlex).gens(), dtype=object, count=len(names))
    return gens.reshape(shape)
