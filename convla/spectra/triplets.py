"""Singular triplets of a convolution by three methods: the dense matrix, the torus's frequencies, Lanczos.

What each takes has its kernel scaled to entries of moderate size (`convla.spectra.scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.companion import conjugate_wave
from convla.spectra.lanczos import golub_kahan_lanczos
from convla.spectra.maximiser import SymbolPeak, start_vectors, symbol_peaks
from convla.spectra.symbol import FloatArray, Symbol
from convla.spectra.torus import circular_lattice, circular_singular_values, circular_triplets
from convla.toeplitz import unvec
from convla.typing import Array

__all__ = ["SingularValues", "Status", "dense_triplets", "fourier_triplets", "lanczos_triplets", "structured_start"]

Status = Literal["converged", "not converged", "rank deficient"]

_BASIS_BYTES = 1 << 29  # both Lanczos bases together

_SHORT_BASIS = 60  # pairs of vectors, where they fit in the cache
_CACHE_BYTES = 1 << 21

# Of the parts of a start vector, next to the even plane wave of the symbol's best maximum.
_ODD_WEIGHT = 0.3
_LESSER_WEIGHT = 0.3
_NOISE_WEIGHT = 0.05


@dataclass(frozen=True)
class SingularValues:
    """Singular values of an operator, with what supports them.

    Attributes
    ----------
    values : array of shape (k,)
        Of the kernel's library and dtype (float64 for integer kernels), decreasing.
    left, right : array of shape (k, *range_shape) and (k, *domain_shape), or None
        Singular vectors with ``M right = value left``; None where all values were asked for.
    residuals : numpy.ndarray of float64, shape (k,), or None
        ``norm(M^T left - value right)``. Some singular value lies within the residual of each value.
    errors : numpy.ndarray of float64, shape (k,)
        Estimates of the errors of the values; see Notes of `largest_singular_value`.
    matvecs : int
        Applications of the operator and of its transpose together; 0 for direct methods.
    status : {"converged", "not converged", "rank deficient"}
        "rank deficient" is said of a smallest singular value that cannot be told from 0 in float64 arithmetic.
    method : {"dense", "fourier", "inverse", "lanczos"}
        What was run.
    nullity : int
        The least dimension of the null space of the operator that is known: the number of columns beyond the number of
        rows of a wide one, and one more where the status is "rank deficient".
    """

    values: Array
    left: Array | None
    right: Array | None
    residuals: FloatArray | None
    errors: FloatArray
    matvecs: int
    status: Status
    method: str
    nullity: int = 0

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
        return replace(self, left=self.right, right=self.left)


def dense_triplets(operator: ConvOperator, k: int | None) -> SingularValues:
    """Decompose the dense matrix: all values, or the k largest triplets.

    Raises
    ------
    MemoryError
        If the dense matrix would not fit in memory.
    """
    xp = namespace(operator.kernel)
    matrix = operator.to_dense()
    if k is None:
        values = xp.linalg.svdvals(matrix)
        return _direct_result(values, None, None, None, operator, "dense")
    u, values, vt = xp.linalg.svd(matrix, full_matrices=False)
    left, right = xp.matrix_transpose(u)[:k, :], vt[:k, :]
    residuals = xp.linalg.vector_norm(xp.matmul(left, matrix) - values[:k, None] * right, axis=-1)
    left, right = (
        unvec(rows, shape, order=operator.order)
        for rows, shape in ((left, operator.range_shape), (right, operator.domain_shape))
    )
    return _direct_result(values[:k], left, right, residuals, operator, "dense")


def fourier_triplets(operator: ConvOperator, k: int | None, *, smallest: bool = False) -> SingularValues:
    """Decompose the symbol at the torus's frequencies: all values, or the k largest, or smallest, triplets.

    Raises
    ------
    ValueError
        Unless the boundary is circular and the outputs visit the torus evenly, or if the symbol has not k values.
    """
    geometry = operator.geometry
    if geometry.boundary != "circular" or not circular_lattice(geometry).exact:
        raise ValueError(
            "method 'fourier' needs a circular boundary and outputs that visit the image's torus evenly, got boundary "
            f"{geometry.boundary!r}, image {geometry.image_shape}, stride {geometry.stride}, "
            f"output {geometry.output_shape}"
        )
    kernel = operator.kernel
    xp = namespace(kernel)
    if k is None:
        spectrum = circular_singular_values(kernel, geometry)
        values = on_device_of(spectrum, kernel, xp, dtype=kernel.dtype)
        return _direct_result(values, None, None, None, operator, "fourier")
    left, found, right = circular_triplets(kernel, geometry, k, smallest=smallest)
    values = on_device_of(found, kernel, xp, dtype=kernel.dtype)
    difference = operator.adjoint(left) - right * xp.reshape(values, (-1, *(1,) * (right.ndim - 1)))
    residuals = xp.linalg.vector_norm(difference, axis=tuple(range(1, right.ndim)))
    return _direct_result(values, left, right, residuals, operator, "fourier")


def _direct_result(
    values: Array, left: Array | None, right: Array | None, residuals: Array | None, operator: ConvOperator, method: str
) -> SingularValues:
    """Wrap what a backward stable decomposition found: the errors are a small multiple of the rounding unit."""
    xp = namespace(values)
    count = values.shape[0]
    rounding = float(xp.finfo(values.dtype).eps) * math.sqrt(min(operator.shape)) * float(values[0])
    return SingularValues(
        values=values,
        left=left,
        right=right,
        residuals=None if residuals is None else np.asarray(to_numpy(residuals), np.float64),
        errors=np.full(count, rounding),
        matvecs=0,
        status="converged",
        method=method,
    )


def lanczos_triplets(
    operator: ConvOperator,
    k: int,
    rtol: float,
    criterion: Literal["residual", "value"],
    start: Array,
    max_matvecs: int,
    rng: np.random.Generator,
    *,
    which: Literal["largest", "smallest"] = "largest",
) -> SingularValues:
    """Run `golub_kahan_lanczos` on an operator from an image; the arguments are the same."""
    xp = namespace(operator.kernel)
    rows, columns = operator.shape
    # Bidiagonalise the tall one of M and M^T: its Krylov space closes once it fills the smaller of the two spaces.
    tall: LinearMap = operator if rows >= columns else operator.T
    if tall is not operator:
        start = operator.apply(start)
        if not bool(xp.any(start != 0)):
            start = on_device_of(rng.standard_normal(tall.domain_shape), start, xp, dtype=operator.dtype)
    domain, codomain = tall.domain_shape, tall.range_shape
    itemsize = 4 if operator.dtype == xp.float32 else 8
    found = golub_kahan_lanczos(
        lambda x: xp.reshape(tall.apply(xp.reshape(x, domain)), (-1,)),
        lambda y: xp.reshape(tall.adjoint(xp.reshape(y, codomain)), (-1,)),
        xp.reshape(start, (-1,)),
        k,
        rows=max(rows, columns),
        rtol=rtol,
        criterion=criterion,
        which=which,
        basis_size=_basis_size(k, itemsize * (rows + columns)),
        max_matvecs=max_matvecs,
        rng=rng,
        spacing=_spacing(operator),
        min_steps=_steps_across(operator) if criterion == "value" else 0,
        companion=None if which == "smallest" else lambda x: conjugate_wave(xp.reshape(x, domain)),
    )
    result = SingularValues(
        values=on_device_of(found.values, operator.kernel, xp, dtype=operator.dtype),
        left=xp.reshape(found.left, (k, *codomain)),
        right=xp.reshape(found.right, (k, *domain)),
        residuals=found.residuals,
        errors=found.errors,
        matvecs=found.matvecs + (tall is not operator),
        status="converged" if found.converged else "not converged",
        method="lanczos",
    )
    return result if tall is operator else result.transposed


def _spacing(operator: ConvOperator) -> float:
    """Estimate the relative distance of the two largest singular values from above, by the size of the image.

    Near its maximum the spectrum is that of a particle in a box of n positions: next to the ground state lies one with
    two arches along an axis, which is lower by 3/4 (pi / (n + 1))^2 times the curvature of the symbol's norm. For a
    trigonometric polynomial of degree m the curvature is at most m^2, by Bernstein's inequality.
    """
    geometry = operator.geometry
    parts = [
        0.75 * (math.pi * max(1, (k - 1) * d // s) / (n + 1)) ** 2
        for k, d, s, n in zip(
            geometry.kernel_size, geometry.dilation, geometry.stride, geometry.output_shape, strict=True
        )
    ]
    return min(1.0, *parts)


def _steps_across(operator: ConvOperator) -> int:
    """Return after how many steps the middle of the image has felt its edges, which set the largest values apart."""
    geometry = operator.geometry
    return max(
        math.ceil(n / (2 * max(1, (k - 1) * d)))
        for k, d, n in zip(geometry.kernel_size, geometry.dilation, geometry.image_shape, strict=True)
    )


def _basis_size(k: int, bytes_a_pair: int) -> int:
    """Return how many pairs of vectors to keep for k triplets.

    Of long vectors few: a thick restart loses little, and to re-orthogonalise against more costs more than it saves. Of
    short ones more: they belong to long signals, whose leading values are close to each other.
    """
    size = max(3 * k, 2 * k + 18, min(_SHORT_BASIS, _CACHE_BYTES // bytes_a_pair))
    return min(size, max(2 * k + 12, 20, _BASIS_BYTES // bytes_a_pair))


def structured_start(
    operator: ConvOperator, rng: np.random.Generator, peaks: Sequence[SymbolPeak] | None = None
) -> Array:
    """Return a start vector of the symbol's plane waves with a random part, which no symmetry of the kernel hides.

    Parameters
    ----------
    operator : ConvOperator
    rng : numpy.random.Generator
    peaks : sequence of SymbolPeak, optional
        Maxima of the symbol's norm, the best first, if already known.

    Returns
    -------
    array of shape (c_in, *image)

    Notes
    -----
    The lesser maxima take part because the largest singular value may belong to any that is nearly as high: from the
    best one alone the iteration can settle, with a small residual, on the second singular value.
    """
    geometry, kernel = operator.geometry, operator.kernel
    xp = namespace(kernel)
    noise = _unit(on_device_of(rng.standard_normal(operator.domain_shape), kernel, xp, dtype=kernel.dtype))
    symbol = Symbol(kernel, geometry)
    # On few positions the search costs more than the convolutions it saves, and the edges, which it ignores, rule.
    if math.prod(4 * degree + 1 for degree in symbol.degrees) > math.prod(geometry.output_shape) / 2:
        return noise
    start = _NOISE_WEIGHT * noise
    for rank, peak in enumerate(symbol_peaks(symbol, rng=rng) if peaks is None else peaks):
        waves = start_vectors(symbol, peak, geometry.image_shape, windowed=geometry.boundary != "circular")
        weight = 1.0 if rank == 0 else _LESSER_WEIGHT
        start = start + weight * (_unit(waves[0, ...]) + _ODD_WEIGHT * _unit(waves[1, ...]))
    return start


def _unit(array: Array) -> Array:
    """Return an array divided by its norm; zero stays zero."""
    xp = namespace(array)
    norm = float(xp.linalg.vector_norm(xp.reshape(array, (-1,))))
    return array / norm if norm > 0 else array
