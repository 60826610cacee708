"""Singular values from the matrix itself, written out; the one place that says where this is cheap."""

from __future__ import annotations

import math

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla._products import product
from convla._threads import blas_on_one_thread
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.result import End, SingularValues, placed, smallest_triplet, triplets
from convla.spectra.ritz import FloatArray
from convla.spectra.roundoff import in_double, rounding_of_entries
from convla.spectra.status import Status
from convla.toeplitz import unvec, vec
from convla.typing import AnyArray, Array

__all__ = [
    "among_groups",
    "decomposition_is_cheap",
    "decomposition_work",
    "dense_triplets",
    "dense_values",
    "group_operators",
    "rounding",
]

_CHEAP = 2e9  # operations: what an iteration of some hundred products takes on layers of this size
_CHEAP_BYTES = 1 << 27
_OPERATIONS_PER_CUBE = 25  # of a decomposition with vectors, those of a matrix product being one
_GRAM_LIMIT = 1e-3  # of a singular value to the largest, above which the Gram matrix keeps ten digits of it
_SQUARE_LIMIT = 0.1  # above which it keeps as many as the matrix itself, whatever lies near
_NEGLECTED = 100.0  # rounding units beside a value, which LAPACK's iterations on a bidiagonal matrix take for nothing


def decomposition_work(operator: LinearMap) -> float:
    """Estimate the operations of a dense decomposition of a map, group by group."""
    groups = _groups(operator)
    rows, columns = (side // groups for side in operator.shape)
    small, large = sorted((rows, columns))
    return groups * (2.0 * large * small**2 + _OPERATIONS_PER_CUBE * small**3)


def decomposition_is_cheap(operator: LinearMap, *, limit: float = _CHEAP) -> bool:
    """Tell whether the matrix, by groups, is small enough to be written out and decomposed rather than applied."""
    size = 8 * math.prod(operator.shape) // _groups(operator)
    return decomposition_work(operator) <= limit and size <= max(_CHEAP_BYTES, limit / 64)


def group_operators(operator: ConvOperator) -> list[ConvOperator]:
    """Return the convolution of each group by itself."""
    geometry = operator.geometry
    if geometry.groups == 1:
        return [operator]
    size = geometry.out_channels // geometry.groups
    kernels = (operator.kernel[group * size : (group + 1) * size, ...] for group in range(geometry.groups))
    single = geometry.replace(kernel_shape=(size, *geometry.kernel_shape[1:]), groups=1)
    return [ConvOperator(kernel, single, order=operator.order, engine=operator.engine) for kernel in kernels]


@blas_on_one_thread()
def dense_values(operator: LinearMap) -> SingularValues:
    """Return all singular values, without vectors.

    Raises
    ------
    MemoryError
        If the dense matrices would not fit in memory.
    """
    xp = namespace(operator.like)
    found = to_numpy(xp.linalg.svdvals(_matrices(operator)))
    values = np.sort(np.asarray(found, np.float64), axis=None)[::-1]
    errors = rounding(operator, float(values[0]), values)
    return SingularValues(
        values=on_device_of(values.copy(), operator.like, xp, dtype=xp.float64),
        left=None,
        right=None,
        residuals=None,
        errors=errors,
        upper=float(values[0] + errors[0]),
        matvecs=0,
        status=Status.EXACT,
        method="dense",
    )


@blas_on_one_thread()
def dense_triplets(operator: LinearMap, k: int, end: End = "largest") -> SingularValues:
    """Return the k largest, or smallest, singular triplets, the outermost first.

    Parameters
    ----------
    operator : LinearMap
        Of float32 or float64.
    k : int
        At most the number of singular values.
    end : {"largest", "smallest"}

    Raises
    ------
    MemoryError
        If the dense matrices would not fit in memory.
    """
    xp, dtype = namespace(operator.like), operator.dtype
    matrices = _matrices(operator)
    groups, rows, columns = matrices.shape
    wide = rows < columns
    tall = xp.matrix_transpose(matrices) if wide else matrices
    squares, vectors = xp.linalg.eigh(product(xp.matrix_transpose(tall), tall))
    spectrum = np.sqrt(np.maximum(np.asarray(to_numpy(squares), np.float64), 0.0))
    chosen = np.argsort(spectrum, axis=None, kind="stable")
    chosen = chosen[::-1][:k] if end == "largest" else chosen[:k]
    largest = float(spectrum.max())
    whole = operator
    if not isinstance(operator, ConvOperator):  # which multiplies in its own dtype, or in many steps
        operator = _Matrix(matrices[0, ...], operator)
    side = operator.T if wide else operator
    listed = None
    if _squares_tell(spectrum, chosen, max(rows, columns)):
        where, ranks = np.unravel_index(chosen, spectrum.shape)
        images = among_groups(_picked(vectors, where, ranks), where, side, groups)
        values, left, right, residuals = triplets(operator, images, wide=wide)
        if end == "smallest":
            values, residuals = values[::-1], residuals[::-1]
            left, right = (xp.flip(vectors, axis=0) for vectors in (left, right))
    else:
        u, whole_spectrum, vt = xp.linalg.svd(tall, full_matrices=False)
        spectrum = np.asarray(to_numpy(whole_spectrum), np.float64)
        ranked = spectrum.copy()
        if end == "smallest":
            # Groups that cannot be told from singular ones come first, whatever smaller value another has.
            floors = max(rows, columns) * float(np.finfo(np.float64).eps) * spectrum[:, 0]
            doubtful = spectrum[:, -1] <= floors
            ranked[~doubtful, :] += math.inf if doubtful.any() else 0.0
        chosen = np.argsort(ranked, axis=None, kind="stable")
        chosen = chosen[::-1][:k] if end == "largest" else chosen[:k]
        where, ranks = np.unravel_index(chosen, spectrum.shape)
        listed = spectrum[where, ranks]
        right = among_groups(_picked(xp.matrix_transpose(vt), where, ranks), where, side, groups)
        left = among_groups(_picked(u, where, ranks), where, side.T, groups)
        left, right = (right, left) if wide else (left, right)
        values, left, right, residuals = smallest_triplet(operator, left, right, wide=wide)
        # Tiny values, of rounding alone, may have changed places.
        order = np.argsort(-values if end == "largest" else values, kind="stable")
        places = on_device_of(order, left, xp)
        values, residuals = values[order], residuals[order]
        left, right = (xp.take(vectors, places, axis=0) for vectors in (left, right))
    # A group is decomposed by itself: its rounding errors are those of its own largest value.
    own = largest if end == "largest" else float(spectrum[where[0]].max())
    errors = rounding(whole, own, values)
    singular = end == "smallest" and min(float(spectrum[where, ranks].min()), float(values.min())) <= errors.min()
    if end == "largest" and listed is not None:
        # Of tiny values the vectors, and so the norms of their images, may stand for another: those listed do not.
        off = np.abs(values - listed)
        errors = np.where(off > errors, errors + off, errors)
    return SingularValues(
        values=on_device_of(values.copy(), operator.like, xp, dtype=xp.float64),
        left=xp.astype(left, dtype),
        right=xp.astype(right, dtype),
        residuals=residuals,
        errors=errors,
        upper=float(largest + errors[0]) if end == "largest" else math.inf,
        matvecs=0,
        status=Status.RANK_DEFICIENT if singular else Status.EXACT,
        method="dense",
    )


def _picked(columns: Array, groups: np.ndarray, places: np.ndarray) -> Array:
    """Return columns (k, n) of a stack of matrices (groups, n, p), by group and place."""
    xp = namespace(columns)
    return xp.stack([columns[int(g), :, int(i)] for g, i in zip(groups, places, strict=True)])


def _squares_tell(spectrum: np.ndarray, chosen: np.ndarray, side: int) -> bool:
    """Tell whether the vectors of the Gram matrices give the chosen values as precisely as those of the matrices.

    Parameters
    ----------
    spectrum : array of shape (groups, n)
        Roots of the eigenvalues of the Gram matrices, increasing in each group.
    chosen : array of int
        Flat indices of it.
    side : int
        The longer one of a matrix.

    Notes
    -----
    What rounding does to a Gram matrix has a norm of about ``e = side eps s_max^2``. So an eigenvector of the square
    ``s^2`` holds up to ``e / g`` of another one at the distance g, and the value that is read off from it is wrong by
    ``e^2 / (2 s g)``, or, where e is all that parts the two, by ``e / s``: beside a value that is not chosen, this is
    to be no more than the decomposition of the matrix itself leaves open, ``side eps s_max``. What is mixed with
    another chosen value is told apart again when the values are read off.
    """
    largest = float(spectrum.max())
    least = float(spectrum.ravel()[chosen].min())
    if least < _GRAM_LIMIT * largest or largest == 0:
        return False
    if least >= _SQUARE_LIMIT * largest:
        return True
    is_chosen = np.isin(np.arange(spectrum.size), chosen).reshape(spectrum.shape)
    beside = is_chosen[:, 1:] != is_chosen[:, :-1]
    gaps = np.diff(np.square(spectrum / largest), axis=1)[beside]
    unit = side * float(np.finfo(np.float64).eps)
    return bool(np.all(2 * (least / largest) * gaps >= unit))


def rounding(operator: LinearMap, largest: float, values: FloatArray) -> FloatArray:
    """Return what a decomposition in float64 by LAPACK leaves open of values, of which the largest is given.

    Its sums have as many terms as the longer side, and where all entries are alike their rounding errors are too, and
    add up: that is relative to the largest value. Entries beside the diagonal of a bidiagonal matrix are set to zero
    where they are below 100 eps times the values there (``TOL`` in DLASQ2; half of it in DBDSQR). By Weyl's inequality
    no value moves by more; one without others like it moves by next to nothing, two equal ones by half of the entry
    between them. Where taps meet in one entry of the matrix, beyond the edges of an image, they are summed with a
    rounding error relative to their moduli, which may be far above the largest singular value: they may cancel. So may
    the terms of a sum of maps.

    References
    ----------
    J. Demmel and W. Kahan, Accurate singular values of bidiagonal matrices, SIAM J. Sci. Stat. Comput. 11 (1990)
    873-912, and B. Parlett and O. Marques, An implementation of the dqds algorithm, Linear Algebra Appl. 309 (2000)
    217-259, for the criteria.
    """
    eps = float(np.finfo(np.float64).eps)
    return np.asarray(eps * (max(operator.shape) * largest + _NEGLECTED * values) + rounding_of_entries(operator))


class _Matrix(LinearMap):
    """A map by its matrix in float64."""

    def __init__(self, matrix: Array, linear_map: LinearMap) -> None:
        self._matrix, self._map = matrix, linear_map
        self.order = linear_map.order

    @property
    def domain_shape(self) -> tuple[int, ...]:
        return self._map.domain_shape

    @property
    def range_shape(self) -> tuple[int, ...]:
        return self._map.range_shape

    @property
    def like(self) -> Array:
        return self._matrix

    def apply(self, image: Array) -> AnyArray:
        xp = namespace(image)
        rows = vec(image, len(self.domain_shape) - 1, order=self.order)
        return unvec(xp.matmul(rows, xp.matrix_transpose(self._matrix)), self.range_shape, order=self.order)

    def adjoint(self, features: Array) -> AnyArray:
        xp = namespace(features)
        rows = vec(features, len(self.range_shape) - 1, order=self.order)
        return unvec(xp.matmul(rows, self._matrix), self.domain_shape, order=self.order)


def _groups(operator: LinearMap) -> int:
    return operator.geometry.groups if isinstance(operator, ConvOperator) else 1


def _matrices(operator: LinearMap) -> Array:
    """Return the matrices of the groups in float64: shape (groups, m, n)."""
    xp = namespace(operator.like)
    precise = operator.astype(xp.float64) if isinstance(operator, ConvOperator) else in_double(operator)
    if not isinstance(precise, ConvOperator) or precise.geometry.groups == 1:
        matrix: Array = precise.to_dense()
        return matrix[None, ...]
    # Side by side on the channels of one group, the filters of all groups are one convolution: the stack of theirs.
    groups = precise.geometry.groups
    together = ConvOperator(precise.kernel, precise.geometry.replace(groups=1), order=precise.order).to_dense()
    return xp.reshape(together, (groups, -1, together.shape[1]))


def among_groups(rows: Array, numbers: np.ndarray, whole: LinearMap, groups: int) -> Array:
    """Place vectors (k, n), each of one group, in the channels of their groups: (k, *domain_shape of the map)."""
    xp = namespace(rows)
    channels, *positions = whole.domain_shape
    size = channels // groups
    blocks: Array = unvec(rows, (size, *positions), order=whole.order)
    if groups == 1:
        return blocks
    everywhere = [slice(None)] * len(positions)
    return xp.concat(
        [
            placed(
                blocks[i : i + 1, ...],
                slice(int(group) * size, (int(group) + 1) * size),
                everywhere,
                whole.domain_shape,
            )
            for i, group in enumerate(numbers)
        ]
    )
