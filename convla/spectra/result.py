"""What is found of a spectrum: singular values, with their vectors and with what supports them."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import array_api_extra as xpx
import numpy as np

from convla._array import device_of, namespace, on_device_of, to_numpy
from convla.linear_map import LinearMap
from convla.spectra.maximiser import SymbolPeak
from convla.spectra.ritz import FloatArray
from convla.spectra.status import Status
from convla.typing import AnyArray, Array

__all__ = ["End", "SingularValues", "of_zero", "placed", "read_off", "smallest_triplet", "triplets", "weakest"]

End = Literal["largest", "smallest"]

SHOWN = 20
"""Rows of the table in a notebook."""


@dataclass(frozen=True, repr=False)
class SingularValues:
    """Singular values of an operator, with what supports them.

    Attributes
    ----------
    values : array of shape (k,)
        Of the operator's library, in float64 whatever the operator's dtype, decreasing.
    left, right : array of shape (k, *range_shape) and (k, *domain_shape), or None
        Singular vectors with ``M right = value left``, of the operator's dtype; None where all values were asked for.
    residuals : numpy.ndarray of float64, shape (k,), or None
        ``norm(M^T left - value right)``, or ``norm(M right - value left)`` where that is larger, as it can be for a
        smallest value. Some singular value lies within the residual of each value.
    errors : numpy.ndarray of float64, shape (k,)
        What the values may be off: bounds where the status is "exact" or "confirmed"; where it is "estimated" what the
        iteration makes of its residuals and of the gaps that it has seen, which fails where a value hides. Of a
        smallest value that has not converged they are bounds too: the value, or what a factorisation leaves open.
    upper : float
        What the largest singular value does not exceed: proved where the status is "exact" or "confirmed"; where it is
        "estimated", but for a probability of 1e-10 over the random vectors that the iteration started from. Infinity
        where nothing is known, and where other than the largest values were asked for.
    matvecs : int
        Applications of the operator and of its transpose together; 0 for direct methods.
    status : Status
        "exact", "confirmed", "estimated", "not converged" or "rank deficient"; ``status.sentence`` says what it means.
    method : {"dense", "fourier", "inverse", "lanczos", "block"}
        What was run, on the part of the matrix that holds the first value.
    nullity : int
        The least dimension of the null space of the operator that is known: the number of columns beyond the number of
        rows of a wide one, and one more where the status is "rank deficient".
    least : array of shape domain_shape, or range_shape where that is smaller, or None
        Of an iteration for the largest values: the unit vector that the operator, or its transpose, shrinks the most of
        all that were seen. What is left of it bounds the smallest singular value from above.
    peaks : tuple of SymbolPeak
        Of an iteration that started from plane waves: the maxima of the symbol that they belong to, up to a factor of
        their values, which an enclosure then need not look for again.
    """

    values: AnyArray
    left: AnyArray | None
    right: AnyArray | None
    residuals: FloatArray | None
    errors: FloatArray
    upper: float
    matvecs: int
    status: Status
    method: str
    nullity: int = 0
    least: AnyArray | None = None
    peaks: tuple[SymbolPeak, ...] = ()

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.6g}" for value in to_numpy(self.values)[:4].tolist())
        count = self.values.shape[0]
        more = f", ... {count} in all" if count > 4 else ""
        return f"<SingularValues {shown}{more}: {self.status}, by {self.method}>"

    def _repr_html_(self) -> str:
        values = to_numpy(self.values).tolist()
        rows = [
            f"<tr><th>{place}</th><td>{value:.12g}</td><td>{error:.2g}</td></tr>"
            for place, (value, error) in enumerate(zip(values, self.errors.tolist(), strict=True), 1)
            if place <= SHOWN
        ]
        more = f"<caption>the first {SHOWN} of {len(values)}</caption>" if len(values) > SHOWN else ""
        head = "<thead><tr><th></th><th>singular value</th><th>off by at most or about</th></tr></thead>"
        said = html.escape(f"{self.status}, by {self.method}: {self.status.sentence}")
        return f"<table>{more}{head}<tbody>{''.join(rows)}</tbody></table><p>{said}</p>"

    @property
    def value(self) -> float:
        """The first value, as a Python float."""
        return float(self.values[0])

    def __float__(self) -> float:
        return self.value

    @property
    def transposed(self) -> SingularValues:
        """The same for the transposed operator: left and right vectors change places."""
        if self.right is None or self.left is None:
            return self
        return replace(self, left=self.right, right=self.left, least=None)


def weakest(statuses: Sequence[Status]) -> Status:
    """Return what can be said of results together: no more than of the weakest of them."""
    order = (Status.NOT_CONVERGED, Status.ESTIMATED, Status.RANK_DEFICIENT, Status.CONFIRMED, Status.EXACT)
    return next(status for status in order if status in statuses)


def read_off(operator: LinearMap, vectors: Array) -> tuple[FloatArray, Array, Array, FloatArray]:
    """Return singular triplets in the span of some vectors, in sums of float64.

    Parameters
    ----------
    operator : LinearMap
    vectors : array of shape (k, *domain_shape)
        Linearly independent, approximately right singular vectors, whose errors matter to second order.

    Returns
    -------
    values : numpy.ndarray of float64, shape (k,)
        Decreasing; none is above the singular value of the same rank, but for rounding.
    left, right : array of shape (k, *range_shape) and (k, *domain_shape)
        In float64, orthonormal, with ``M right = value left`` to rounding.
    residuals : numpy.ndarray of float64, shape (k,)
        ``norm(M^T left - value right)``.

    Notes
    -----
    The Rayleigh-Ritz method on the right side alone: with orthonormal V, the singular value decomposition of M V.
    """
    xp = namespace(operator.like)
    precise = operator.astype(xp.float64)
    count = vectors.shape[0]
    rows = xp.reshape(xp.astype(vectors, xp.float64), (count, -1))
    rows = xp.matrix_transpose(xp.linalg.qr(xp.matrix_transpose(rows))[0])
    images = xp.reshape(precise._apply(xp.reshape(rows, (count, *operator.domain_shape))), (count, -1))
    x, values, left = xp.linalg.svd(images, full_matrices=False)
    right = xp.matmul(xp.matrix_transpose(x), rows)
    count = left.shape[0]  # fewer than the vectors where the range has fewer dimensions
    left = xp.reshape(left, (count, *operator.range_shape))
    back = xp.reshape(precise._adjoint(left), (count, -1)) - values[:, None] * right
    residuals = np.asarray(to_numpy(xp.linalg.vector_norm(back, axis=1)), np.float64)
    right = xp.reshape(right, (count, *operator.domain_shape))
    return np.asarray(to_numpy(values), np.float64), left, right, residuals


def triplets(operator: LinearMap, vectors: Array, *, wide: bool) -> tuple[FloatArray, Array, Array, FloatArray]:
    """Return what `read_off` does, from right singular vectors or, where `wide`, from left ones.

    From left vectors the relation of the right ones is made exact as well, by one more application, which raises each
    value by no more than half its squared residual over the value.
    """
    if not wide:
        return read_off(operator, vectors)
    _, right, _, _ = read_off(operator.T, vectors)
    return read_off(operator, right)


def smallest_triplet(
    operator: LinearMap, left: Array, right: Array, *, wide: bool
) -> tuple[FloatArray, Array, Array, FloatArray]:
    """Return singular triplets from vectors of both sides, each accurate by itself.

    Where the values are not tiny beside the largest, ``M right = value left`` holds to rounding. Where they are, an
    image holds little but the rounding errors of its vector, and both relations hold as the vectors let them.

    Parameters
    ----------
    operator : LinearMap
    left, right : array of shape (k, *range_shape) and (k, *domain_shape)
        In float64, of norm 1, each pair up to its sign.
    wide : bool
        Whether the values are the norms of the images of the left vectors, and not of the right ones.

    Returns
    -------
    values, left, right, residuals
        As of `read_off`, in the order given; a residual is the larger of ``norm(M right - value left)`` and
        ``norm(M^T left - value right)``.
    """
    xp = namespace(operator.like)
    precise = operator.astype(xp.float64)
    count = left.shape[0]
    images, back = (xp.reshape(array, (count, -1)) for array in (precise._apply(right), precise._adjoint(left)))
    u, v = (xp.reshape(side, (count, -1)) for side in (left, right))
    norms = xp.linalg.vector_norm(back if wide else images, axis=1)
    signs = xp.where(xp.sum(images * u, axis=1) < 0, -xp.ones_like(norms), xp.ones_like(norms))
    u, back = signs[:, None] * u, signs[:, None] * back
    defects = [xp.linalg.vector_norm(d, axis=1) for d in (images - norms[:, None] * u, back - norms[:, None] * v)]
    residuals = np.maximum(*(np.asarray(to_numpy(defect), np.float64) for defect in defects))
    values = np.asarray(to_numpy(norms), np.float64)
    if count == 1:
        exact = triplets(operator, left if wide else right, wide=wide)
        if exact[3][0] <= 2 * residuals[0] and exact[0][0] - values[0] <= residuals[0]:
            return exact
    return values, xp.reshape(u, left.shape), right, residuals


def placed(vectors: Array, channels: slice, positions: Sequence[slice], shape: Sequence[int]) -> Array:
    """Place vectors (k, channels, *positions) of a part of an image among zeros: (k, *shape).

    Of axes for which `positions` says nothing, the part has all.
    """
    xp = namespace(vectors)
    whole = xp.zeros((vectors.shape[0], *shape), dtype=vectors.dtype, device=device_of(vectors))
    filled: Array = xpx.at(whole)[(slice(None), channels, *positions, ...)].set(vectors)
    return filled


def of_zero(operator: LinearMap, k: int) -> SingularValues:
    """Return k singular triplets of a map that is zero: unit vectors."""
    xp = namespace(operator.like)

    def units(shape: tuple[int, ...]) -> Array:
        flat = xp.eye(k, math.prod(shape), dtype=operator.dtype, device=device_of(operator.like))
        return xp.reshape(flat, (k, *shape))

    return SingularValues(
        values=on_device_of(np.zeros(k), operator.like, xp, dtype=xp.float64),
        left=units(operator.range_shape),
        right=units(operator.domain_shape),
        residuals=np.zeros(k),
        errors=np.zeros(k),
        upper=0.0,
        matvecs=0,
        status=Status.EXACT,
        method="dense",
    )
