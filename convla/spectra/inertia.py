"""Whether a value is the extreme singular value: the inertia of a banded matrix, by a Cholesky factorisation.

An iteration knows its Krylov space alone, and estimates what it does not see. Where the Gram matrix has a narrow band,
as for long signals and small images, ``s^2 I - M^T M`` is factorised in a few milliseconds, and the factorisation
completes if and only if no singular value is above s (Sylvester's law of inertia). The same factors then find the value
that was missed. The smallest singular value is confirmed by ``M^T M - s^2 I``, where rounding leaves enough of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy

from convla._array import namespace, on_device_of, to_numpy
from convla.operators import ConvOperator
from convla.spectra.certificate import U64, gamma
from convla.spectra.dense import group_operators
from convla.spectra.lanczos import block_lanczos
from convla.spectra.ritz import FloatArray
from convla.toeplitz import Order, convolution_matrix, unvec
from convla.typing import Array

__all__ = [
    "BandedGram",
    "Confirmed",
    "confirm_largest",
    "factorisation_is_cheap",
    "shown_of_smallest",
    "vector_of",
]

_WORK_LIMIT = 1e9  # operations of a factorisation: about 50 ms
_OVERHEAD = 2e7  # operations that take as long as the building of the matrix of one group
_WIDENING = 8.0  # of the interval above a value, until no singular value is above it
_DENSE = 0.1  # of the entries of a matrix, from which on BLAS is faster than a sparse product
_ROUNDS = 4  # of shift and invert; the first is all that was ever seen to be needed


def factorisation_is_cheap(operator: ConvOperator) -> bool:
    """Tell whether the Gram matrix of a convolution has a band narrow enough to factorise it at the cost of little."""
    geometry = operator.geometry
    longest = geometry.longest_axis
    reach = (geometry.kernel_size[longest] - 1) * geometry.dilation[longest]
    groups = geometry.groups
    shape: tuple[int, ...] = (geometry.in_channels // groups, *geometry.image_shape)
    if geometry.shape[0] < geometry.shape[1]:
        shape, reach = (geometry.out_channels // groups, *geometry.output_shape), reach // geometry.stride[longest]
    if geometry.boundary == "circular":
        reach *= 2  # the ends meet: one after the other from either end, neighbours are two places apart
    front = math.prod(shape) // shape[1 + longest]
    width = min(front * (reach + 1), math.prod(shape))
    entries = math.prod(geometry.kernel_shape) * math.prod(geometry.output_shape)
    return groups * (math.prod(shape) * width**2 + _OVERHEAD) + 100.0 * entries <= _WORK_LIMIT


class BandedGram:
    """The smaller of ``M^T M`` and ``M M^T`` in float64, its positions in an order that keeps the band narrow.

    Parameters
    ----------
    operator : ConvOperator
        With entries of order 1, and one group.

    Attributes
    ----------
    tall : scipy sparse array of shape (m, n), n <= m
        M or its transpose.
    square_bound : float
        Of the square of the largest singular value, by Schur's test.
    rounding : float
        A bound on what rounding does to a factorisation, relative to the square of the largest singular value.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.inertia import BandedGram
    >>> gram = BandedGram(ConvOperator(np.array([[[1.0, 0.0, -1.0]]]), (6,)))  # its norm is 2 cos(pi / 7) = 1.8019
    >>> gram.solver_above(1.80) is None, gram.solver_above(1.81) is None
    (True, False)
    >>> gram.all_above(0.44), gram.all_above(0.45)  # the smallest value is 2 cos(3 pi / 7) = 0.4450
    (True, False)
    """

    def __init__(self, operator: ConvOperator) -> None:
        geometry = operator.geometry
        kernel = np.asarray(to_numpy(operator.kernel), np.float64)
        matrix = convolution_matrix(kernel, geometry, order=operator.order, format="csr")
        self.wide = matrix.shape[0] < matrix.shape[1]
        self.tall = matrix.T.tocsr() if self.wide else matrix
        if geometry.boundary == "circular":
            self._places = scipy.sparse.csgraph.reverse_cuthill_mckee(
                (self.tall.T @ self.tall).tocsr(), symmetric_mode=True
            )
        else:
            shape = operator.range_shape if self.wide else operator.domain_shape
            self._places = _longest_axis_last(shape, 1 + geometry.longest_axis, operator.order)
        columns = self.tall[:, self._places]
        if columns.nnz >= _DENSE * math.prod(columns.shape):
            columns = columns.toarray()
        gram = scipy.sparse.coo_array(columns.T @ columns)
        below = gram.row - gram.col
        kept = below >= 0
        width = int(below.max(initial=0)) + 1
        self._bands = np.zeros((width, gram.shape[0]))
        self._bands[below[kept], gram.col[kept]] = gram.data[kept]
        # abs(R^T) abs(R) has 2 w - 1 entries in a row, none above the largest of the diagonal (Higham, Theorem 10.5);
        # and the entries of the Gram matrix are sums, of terms whose moduli Schur's test bounds.
        moduli = abs(self.tall)
        self.square_bound = float(moduli.sum(axis=0).max()) * float(moduli.sum(axis=1).max())
        least = max(float(self._bands[0, :].max(initial=0.0)), float(np.finfo(float).tiny))  # of the norm's square
        terms = int(np.diff(self.tall.tocsc().indptr).max(initial=0))
        self.rounding = 2 * width * gamma(width + 2, U64) + gamma(terms + 2, U64) * self.square_bound / least

    def solver_above(self, bound: float) -> Callable[[FloatArray], FloatArray] | None:
        """Return the map ``x -> (bound^2 I - G)^-1 x``, or None where a singular value is above `bound`."""
        bands = -self._bands
        bands[0, :] += bound**2
        try:
            factor = scipy.linalg.cholesky_banded(bands, overwrite_ab=True, lower=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return None

        def solve(vector: FloatArray) -> FloatArray:
            solution = np.empty_like(vector)
            solution[self._places] = scipy.linalg.cho_solve_banded(
                (factor, True), vector[self._places], check_finite=False
            )
            return solution

        return solve

    def all_above(self, bound: float) -> bool:
        """Tell whether all singular values are above `bound`, up to rounding."""
        bands = self._bands.copy()
        bands[0, :] -= bound**2
        try:
            scipy.linalg.cholesky_banded(bands, overwrite_ab=True, lower=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return False
        return True


@dataclass(frozen=True)
class Confirmed:
    """What the factorisations say of the largest singular value.

    Attributes
    ----------
    value : float
        Attained by `vector`.
    upper : float
        What no singular value exceeds, but for the rounding of the factorisation.
    vector : array of shape (n,) or None
        A singular vector, of the smaller side of one group; None where the value found before is right.
    group : int
    wide : bool
        Whether the vector is a left one.
    matvecs : int
    proved : bool
        Whether a factorisation shows `upper`: within the tolerance of the value, or within the rounding of the factors.
    """

    value: float
    upper: float
    vector: FloatArray | None
    group: int
    wide: bool
    matvecs: int
    proved: bool


def confirm_largest(
    operator: ConvOperator, value: float, rtol: float, *, max_matvecs: int, rng: np.random.Generator
) -> Confirmed:
    """Return whether no singular value is above a value by more than `rtol`, or the largest one instead.

    Parameters
    ----------
    operator : ConvOperator
        For which `factorisation_is_cheap`, with entries of order 1.
    value : float
        Positive; attained, so that the largest singular value is no smaller.
    rtol : float
        The relative accuracy of the value.
    max_matvecs : int
        It is not proved where it would take more solves together.
    rng : numpy.random.Generator

    Returns
    -------
    Confirmed

    Notes
    -----
    The eigenvalues of ``(s^2 I - G)^-1``, s just above the largest singular value, are far apart where those of G are
    close: Lanczos on it takes a few steps, whatever the start.
    """
    best = Confirmed(value, math.inf, None, 0, False, 0, proved=True)
    for number, group in enumerate(group_operators(operator)):
        best = _confirmed_in(BandedGram(group), number, best, rtol, max_matvecs, rng)
        if not best.proved:
            return best
    return best


def _confirmed_in(
    gram: BandedGram, number: int, best: Confirmed, rtol: float, max_matvecs: int, rng: np.random.Generator
) -> Confirmed:
    slack = 0.5 * rtol + gram.rounding
    value, vector, matvecs = best.value, best.vector, best.matvecs
    group, wide = best.group, best.wide
    above, proved = value * (1.0 + slack), False
    for attempt in range(_ROUNDS + 1):
        if gram.solver_above(value * (1.0 + slack)) is not None:
            above, proved = value * (1.0 + slack), True
            break
        if attempt == _ROUNDS or matvecs >= max_matvecs:
            break
        width = slack
        while (solve := gram.solver_above(above := value * (1.0 + width))) is None:
            width *= _WIDENING
        n = gram.tall.shape[1]
        top = block_lanczos(
            _on_rows(solve),
            rng.standard_normal((1, 1, n)),
            1,
            rtol=1e-6,
            basis_size=20,
            max_products=max(1, max_matvecs - matvecs),
            rng=rng,
        )
        candidate = np.asarray(top.vectors[0, :])
        attained = float(np.linalg.norm(gram.tall @ candidate))
        matvecs += top.products + 1
        if attained > value:
            value, vector, group, wide = attained, candidate, number, gram.wide
    return Confirmed(value, max(above, 0.0), vector, group, wide, matvecs, proved)


def _on_rows(solve: Callable[[FloatArray], FloatArray]) -> Callable[[Array], Array]:
    """Return a map of rows (1, j, n), from one of vectors."""
    return lambda rows: np.stack([solve(row) for row in np.asarray(rows)[0]])[None]


def shown_of_smallest(operator: ConvOperator, value: float, rtol: float) -> tuple[float, bool]:
    """Return what factorisations show of the smallest singular value.

    Parameters
    ----------
    operator : ConvOperator
        For which `factorisation_is_cheap`, with entries of order 1.
    value : float
        Positive; attained, so that the smallest singular value is no larger.
    rtol : float
        The relative accuracy that `value` is believed to have.

    Returns
    -------
    least : float
        No singular value is below it. It is above ``value * (1 - rtol)`` if the value has that accuracy and rounding
        leaves enough of its square, and 0 where rounding leaves nothing.
    refuted : bool
        Whether they show that one is below `value` by more than a third of the tolerance.
    """
    least, refuted = value, False
    for group in group_operators(operator):
        gram = BandedGram(group)
        rounding = gram.rounding * gram.square_bound
        width = 0.5 * rtol
        while rounding < (bound := least * (1.0 - width)) ** 2 and not gram.all_above(bound):
            refuted = refuted or bound**2 + rounding < (value * (1.0 - rtol / 3)) ** 2
            width = min(_WIDENING * width, 1.0 - (1.0 - width) / _WIDENING)
        least = math.sqrt(max(bound**2 - rounding, 0.0))
    return least, refuted


def vector_of(confirmed: Confirmed, operator: ConvOperator) -> Array:
    """Return the vector that was found as an image of the operator, or as features where it is a left one."""
    xp = namespace(operator.kernel)
    groups = operator.geometry.groups
    channels, *positions = operator.range_shape if confirmed.wide else operator.domain_shape
    block = unvec(np.asarray(confirmed.vector)[None, :], (channels // groups, *positions), order=operator.order)
    whole = np.zeros((1, channels, *positions))
    size = channels // groups
    whole[:, confirmed.group * size : (confirmed.group + 1) * size, ...] = block
    return on_device_of(whole, operator.kernel, xp, dtype=xp.float64)


def _longest_axis_last(shape: tuple[int, ...], longest: int, order: Order) -> np.ndarray:
    """Return the places in vec() of an image's entries, those along one axis farthest apart, the channels nearest."""
    places = np.asarray(unvec(np.arange(math.prod(shape)), shape, order=order))
    others = [axis for axis in range(1, len(shape)) if axis != longest]
    return np.transpose(places, (longest, *others, 0)).reshape(-1)
