"""What attains a penalty: the eigenpairs of ``B^T B - alpha I`` farthest from 0, and what they say of its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import array_api_extra as xpx
import numpy as np

from convla._array import device_of, is_exact, namespace
from convla._checks import check_not_followed
from convla._validate import check_choice, check_real
from convla.linear_map import LinearMap, check_linear_map
from convla.operators import ConvOperator
from convla.spectra.result import SingularValues
from convla.spectra.status import Status
from convla.spectra.values import singular_values, smallest_singular_value
from convla.toeplitz import unvec, vec
from convla.typing import Array

__all__ = [
    "DENSE_ENTRIES",
    "ActivePairs",
    "Gram",
    "Shifted",
    "active_pairs",
    "cluster",
    "pair_gradients",
    "pointwise_matrix",
    "shifted",
]

Gram = Literal["input", "smaller"]

DENSE_ENTRIES = 2**20
"""Matrices of at most so many entries are written out and decomposed where the whole spectrum is wanted."""


@dataclass(frozen=True)
class Shifted:
    """The matrix ``B^T B - alpha I`` of a map A, whose norm is the penalty; B is A, or its transpose.

    Attributes
    ----------
    operator, factor : LinearMap
        A and B.
    alpha : float
    """

    operator: LinearMap
    factor: LinearMap
    alpha: float

    @classmethod
    def of(cls, operator: LinearMap, alpha: float, gram: Gram) -> Shifted:
        """Return the matrix of a penalty, without the checks that `shifted` makes."""
        rows, columns = operator.shape
        return cls(operator, operator.T if gram == "smaller" and rows < columns else operator, alpha)

    @property
    def nulls(self) -> int:
        """The dimension of the null space of B that its shape forces."""
        rows, columns = self.factor.shape
        return max(0, columns - rows)


@dataclass(frozen=True)
class ActivePairs:
    """The value of a penalty, and the eigenvectors of the Gram map that attain it.

    Attributes
    ----------
    value : float
    signs : array of shape (k,)
        1 for an eigenvector of the upper end, -1 for one of the lower end.
    vectors : array of shape (k, *domain_shape of the Gram map's factor)
    images : array of shape (k, *range_shape of the factor)
        The factor times the vectors.
    nulls : int
        How many null vectors of the factor are active besides; their part of every gradient is zero.
    error : float
        How much larger the penalty can be if no triplet was missed.
    status : Status
        What supports the value.
    """

    value: float
    signs: Array
    vectors: Array
    images: Array
    nulls: int = 0
    error: float = 0.0
    status: Status = Status.ESTIMATED

    def proved(self, value: float) -> ActivePairs:
        """Return the same pairs with the value from all singular values."""
        return replace(self, value=value, error=0.0, status=Status.EXACT)


def shifted(operator: LinearMap, alpha: float, gram: Gram) -> Shifted:
    """Return the matrix that a penalty is taken of, after checks of what is given.

    Raises
    ------
    TypeError, ValueError
        If the operator is no `LinearMap`, or autograd follows its kernels; if alpha is not positive, or beyond the
        range of the operator's dtype; if `gram` is none of its values.
    """
    check_choice("gram", gram, get_args(Gram))
    operator = _floating(operator)
    for kernel in (operator.like, *operator.kernels):
        check_not_followed("kernel", kernel, "a penalty")
    alpha = check_real("alpha", alpha, positive=True)
    limit = float(namespace(operator.like).finfo(operator.dtype).max)
    if alpha > limit:
        raise ValueError(f"alpha must be at most {limit:.3g} for a kernel of {operator.dtype}, got {alpha}")
    return Shifted.of(operator, alpha, gram)


def _floating(operator: LinearMap) -> LinearMap:
    """Return a map of a floating dtype: integers, exact ones too, become float64."""
    check_linear_map(operator)
    xp = namespace(operator.like)
    return operator.astype(xp.float64) if is_exact(operator.like) else operator


def active_pairs(target: Shifted, *, cluster_rtol: float | None = None) -> ActivePairs:
    """Find the eigenpairs of ``B^T B`` farthest from alpha, exactly: by LAPACK where B is small enough."""
    factor, alpha, nulls = target.factor, target.alpha, target.nulls
    xp = namespace(factor.like)
    rows, columns = factor.shape
    matrix = pointwise_matrix(factor)
    if matrix is not None and matrix.shape[0] * matrix.shape[1] <= DENSE_ENTRIES:
        return _pointwise_pairs(target, matrix, cluster_rtol)
    if rows * columns <= DENSE_ENTRIES:
        _, values, right = xp.linalg.svd(factor.to_dense(), full_matrices=False)
        squares, status = _squares(values), Status.EXACT
    else:
        upper = singular_values(factor, min(4, rows, columns))
        status = _status(upper)
        assert upper.right is not None
        squares, right = _squares(xp.astype(upper.values, factor.dtype)), _flat(upper.right, factor)
        # The lower end attains alpha at most: beyond that it need not be known.
        if not nulls and float(squares[0]) <= 2.0 * alpha:
            lower = smallest_singular_value(factor)
            status = max(status, _status(lower), key=tuple(Status).index)
            if lower.right is None:
                nulls = 1
            else:
                squares = xp.concat([squares, xp.astype(lower.values**2, factor.dtype)])
                right = xp.concat([right, _flat(lower.right, factor)])
    value, signs, chosen, nulls = cluster(squares, alpha, nulls, cluster_rtol)
    if not chosen.shape[0]:  # only null vectors are active
        empty = [xp.reshape(right[:0, 0], (0, *shape)) for shape in (factor.domain_shape, factor.range_shape)]
        return ActivePairs(value, signs, empty[0], empty[1], nulls, status=status)
    vectors = unvec(xp.take(right, chosen, axis=0), factor.domain_shape, order=factor.order)
    return ActivePairs(value, signs, vectors, factor._apply(vectors), nulls, status=status)


def pointwise_matrix(factor: LinearMap) -> Array | None:
    """Return the matrix that a convolution of one tap, or its transpose, applies at each position; else None."""
    turned = not isinstance(factor, ConvOperator)
    convolution = factor.T if turned else factor
    if not isinstance(convolution, ConvOperator):
        return None
    geometry = convolution.geometry
    one_each = set(geometry.kernel_size) | set(geometry.stride) == {1} and not any(map(any, geometry.padding))
    if geometry.groups > 1 or not one_each:
        return None
    xp = namespace(convolution.kernel)
    matrix = xp.reshape(convolution.kernel, tuple(convolution.kernel.shape[:2]))
    return xp.matrix_transpose(matrix) if turned else matrix


def _pointwise_pairs(target: Shifted, matrix: Array, cluster_rtol: float | None) -> ActivePairs:
    """Return the pairs of one position: those of the others are their copies, and so is the average of all."""
    factor, xp = target.factor, namespace(matrix)
    rows, columns = matrix.shape
    scale = float(xp.max(xp.abs(matrix))) or 1.0
    unit = matrix / scale  # whose squares are in range
    adjoint = xp.matrix_transpose(unit)
    values, vectors = xp.linalg.eigh(unit @ adjoint if rows < columns else adjoint @ unit)
    values = xp.sqrt(xp.where(values > 0, values, xp.zeros_like(values)))
    if rows < columns:  # from the left singular vectors to the right ones; those of zero are left out as zeros
        vectors = (adjoint @ vectors) / xp.where(values > 0, values, xp.ones_like(values))
    squares, right = _squares(xp.flip(scale * values)), xp.matrix_transpose(xp.flip(vectors, axis=1))
    value, signs, chosen, nulls = cluster(squares, target.alpha, max(0, columns - rows), cluster_rtol)
    found = xp.take(right, chosen, axis=0)
    pairs = found, found @ xp.matrix_transpose(matrix)
    placed = []
    for channels, shape in zip(pairs, (factor.domain_shape, factor.range_shape), strict=True):
        images = xp.zeros((chosen.shape[0], *shape), dtype=matrix.dtype, device=device_of(matrix))
        placed.append(xpx.at(images)[(..., *(0,) * (len(shape) - 1))].set(channels))
    return ActivePairs(value, signs, placed[0], placed[1], nulls, status=Status.EXACT)


def _status(found: SingularValues) -> Status:
    return Status.ESTIMATED if found.status == Status.RANK_DEFICIENT else found.status


def _squares(values: Array) -> Array:
    """Square singular values, the largest first.

    Raises
    ------
    OverflowError
        If a square is beyond the dtype. That the least may underflow to zero is within the rounding of the penalty.
    """
    with np.errstate(over="ignore", under="ignore"):
        squares = values * values
    if not math.isfinite(float(squares[0])):
        raise OverflowError(
            f"the penalty is beyond {values.dtype}: the square of sigma_max = {float(values[0]):.3g}; scale the kernel"
        )
    return squares


def _flat(vectors: Array, factor: LinearMap) -> Array:
    flat: Array = vec(vectors, len(factor.domain_shape) - 1, order=factor.order)
    return flat


def cluster(squares: Array, alpha: float, nulls: int, rtol: float | None) -> tuple[float, Array, Array, int]:
    """Return the penalty, the signs and places of the active squared singular values, and the active null vectors."""
    xp = namespace(squares)
    if rtol is None:
        rtol = float(xp.finfo(squares.dtype).eps) ** 0.5
    distances = xp.abs(squares - alpha)
    largest = max(float(xp.max(distances)), alpha if nulls else 0.0)
    floor = largest - rtol * max(float(xp.max(squares)), alpha)
    (chosen,) = xp.nonzero(distances >= floor)
    kept = xp.take(squares, chosen)
    signs = xp.where(kept < alpha, -xp.ones_like(kept), xp.ones_like(kept))
    return largest, signs, chosen, nulls if alpha >= floor else 0


def pair_gradients(target: Shifted, pairs: ActivePairs) -> tuple[Array, ...]:
    """Return the average gradient of ``+-|B v|^2`` over the active pairs, with respect to each kernel of the map."""
    operator = target.operator
    xp = namespace(operator.like)
    count = pairs.signs.shape[0]
    if not count:
        return tuple(xp.zeros_like(kernel) for kernel in operator.kernels)
    weights = xp.astype(2.0 * pairs.signs / (count + pairs.nulls), operator.dtype)
    scaled = xp.reshape(weights, (count,) + (1,) * (pairs.images.ndim - 1)) * pairs.images
    # d|A v|^2 = 2 <A v, dA v> and d|A^T u|^2 = 2 <u, dA A^T u>: what is of A's range comes first in both.
    both = (scaled, pairs.vectors) if target.factor is operator else (pairs.vectors, scaled)
    return operator._kernel_gradients(*both)
