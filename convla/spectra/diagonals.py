"""The singular values of what is diagonal: the moduli of its factors, exactly."""

from __future__ import annotations

import math

import numpy as np

from convla._array import is_exact, namespace, on_device_of, to_numpy
from convla.algebra import Diagonal, Identity, Zero
from convla.spectra.result import End, SingularValues
from convla.spectra.status import Status

__all__ = ["diagonal_triplets"]


def diagonal_triplets(operator: Diagonal | Identity | Zero, k: int | None, end: End = "largest") -> SingularValues:
    """Return all singular values of a diagonal map, or the k largest or smallest triplets.

    Parameters
    ----------
    operator : Diagonal, Identity or Zero
    k : int or None
        All values, without vectors, for None.
    end : {"largest", "smallest"}

    Examples
    --------
    >>> import numpy as np
    >>> from convla import diagonal
    >>> from convla.spectra.diagonals import diagonal_triplets
    >>> found = diagonal_triplets(diagonal(np.array([[2.0, -3.0]])), 1)
    >>> found.value, found.left, found.right
    (3.0, array([[[ 0., -1.]]]), array([[[0., 1.]]]))
    """
    like, xp = operator.like, namespace(operator.like)
    count = min(operator.shape)
    if isinstance(operator, Diagonal):
        factors = np.asarray(to_numpy(operator.entries), np.float64).reshape(-1)
    else:
        factors = np.full(count, float(isinstance(operator, Identity)))
    moduli = np.abs(factors)
    order = np.argsort(-moduli if end == "largest" else moduli, kind="stable")[:k]
    values, signs = moduli[order], np.where(factors[order] < 0, -1.0, 1.0)
    dtype = xp.float64 if is_exact(like) else like.dtype
    left = right = None
    if k is not None:
        sides = np.zeros((k, operator.shape[0])), np.zeros((k, operator.shape[1]))
        sides[0][np.arange(k), order], sides[1][np.arange(k), order] = signs, 1.0
        shapes = (operator.range_shape, operator.domain_shape)
        left, right = (
            on_device_of(side.reshape(k, *shape), like, xp, dtype=dtype)
            for side, shape in zip(sides, shapes, strict=True)
        )
    singular = end == "smallest" and values[0] == 0
    return SingularValues(
        values=on_device_of(values, like, xp, dtype=xp.float64),
        left=left,
        right=right,
        residuals=None if k is None else np.zeros(k),
        errors=np.zeros(len(values)),
        upper=float(values[0]) if end == "largest" else math.inf,
        matvecs=0,
        status=Status.RANK_DEFICIENT if singular else Status.EXACT,
        method="dense",
    )
