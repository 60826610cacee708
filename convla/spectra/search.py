"""The largest and smallest singular values of one map by Lanczos, its groups as a batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from convla._array import namespace, on_device_of
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.batch import Batch
from convla.spectra.companion import conjugate_wave
from convla.spectra.lanczos import LanczosResult, block_lanczos, random_start_error
from convla.spectra.maximiser import SymbolPeak
from convla.spectra.result import End, SingularValues, read_off, triplets
from convla.spectra.starts import structured_start
from convla.spectra.status import Status
from convla.typing import Array

__all__ = ["lanczos_triplets"]

_BASIS_BYTES = 1 << 30  # of all vectors that are kept
_SHORT_BASIS = 120  # vectors, where they fit in the cache
_CACHE_BYTES = 1 << 21
_BLUR = 16  # units of the dtype, that sums in it may be off
_FAILURE = 1e-10  # the probability that the bound of a random start allows itself


class _Side(Batch):
    """The smaller side of a map, whose Gram matrix is iterated with."""

    def placed(self, found: LanczosResult) -> Array:
        """Return the vectors that were found as images, zero but in their groups: (k, *domain_shape)."""
        xp = namespace(found.vectors)
        hot = on_device_of(found.parts[:, None] == np.arange(self.groups), found.vectors, xp, dtype=found.vectors.dtype)
        return xp.reshape(hot[:, :, None] * found.vectors[:, None, :], (-1, *self.linear_map.domain_shape))


def lanczos_triplets(
    operator: LinearMap,
    k: int,
    *,
    rtol: float,
    criterion: Literal["residual", "value"],
    max_matvecs: int,
    rng: np.random.Generator,
    start: Array | None = None,
    block: int = 2,
    basis_size: int | None = None,
    end: End = "largest",
) -> SingularValues:
    """Run `block_lanczos` on the smaller Gram matrix of a map, and read the triplets off in float64.

    Parameters
    ----------
    operator : LinearMap
        Of float32 or float64, with entries of moderate size.
    k, rtol, criterion, rng
        See `block_lanczos`.
    max_matvecs : int
        The search ends unconverged after this many applications of the operator and its transpose.
    start : array of shape (j, *domain_shape), optional
        Images, not zero, to start from, before random ones; the symbol's plane waves by default where `operator` is a
        convolution.
    block : int
        How many vectors are multiplied at a time. With two, a pair of close values is told apart. From the symbol's
        waves the search for the largest value goes with one, and then on from it and its companion, the same wave a
        quarter of a period on: for cosine and sine of one wave are the rule among close pairs.
    basis_size : int, optional
        How many vectors are kept at most; see `_basis_size`.
    end : {"largest", "smallest"}

    Returns
    -------
    SingularValues
        With the status "estimated" or "not converged".
    """
    xp = namespace(operator.like)
    rows, columns = operator.shape
    wide = rows < columns
    groups = operator.geometry.groups if isinstance(operator, ConvOperator) else 1
    side = _Side(operator.T if wide else operator, groups)
    random, spent = 1.0, 0
    peaks: tuple[SymbolPeak, ...] = ()
    if start is not None:
        random = float(start.shape[0] < block)  # what was given may hide anything
    elif end == "largest" and isinstance(operator, ConvOperator):
        start, random, peaks = structured_start(operator, rng)
    # From a wave alone, then from it and its companion; a block of two from random vectors.
    paired = k == 1 and 0.0 < random < 1.0 and groups == 1
    width = min(1 if paired else block, side.order)
    draws = on_device_of(rng.standard_normal((groups, width, side.order)), operator.like, xp, dtype=operator.dtype)
    if start is not None:
        start = start[: min(width, start.shape[0]), ...]
        if wide:
            start, spent = operator._apply(start), start.shape[0]
        first = side.rows(start)
        # Each group's part of its own, and random where a start says nothing of it.
        known = xp.sum(first * first, axis=2, keepdims=True) > 0
        count = start.shape[0]
        draws = xp.concat([xp.where(known, first, draws[:, :count, :]), draws[:, count:, :]], axis=1)

    def run(vectors: Array, products: int, min_steps: int) -> LanczosResult:
        return block_lanczos(
            side.gram,
            vectors,
            k,
            rtol=rtol,
            criterion=criterion,
            which=end,
            basis_size=basis_size or _basis_size(k, vectors.dtype, xp, side),
            max_products=max(1, products),
            rng=rng,
            spacing=_spacing(operator) if isinstance(operator, ConvOperator) else 1.0,
            min_steps=min_steps,
        )

    across = _steps_across(operator) if isinstance(operator, ConvOperator) and criterion == "value" else 0
    found = run(draws, max_matvecs // 2, across)
    random_steps, products = found.random_steps, found.products
    opposite = replace(found, vectors=found.opposite, parts=np.array([found.opposite_part]))
    if paired and found.converged:
        image = side.placed(found)
        companion = conjugate_wave(image[0, ...])
        if companion is not None:
            found = run(side.rows(xp.concat([image, companion[None, ...]])), max_matvecs // 2 - products, 0)
            products += found.products
    if end == "largest":
        values, left, right, residuals = triplets(operator, side.placed(found), wide=wide)
    else:
        values, left, right, residuals = read_off(side.linear_map, side.placed(found))
        if wide:
            left, right = right, left
            again = read_off(operator, right)
            if float(again[0][0]) - float(values[0]) <= float(found.errors[0]):
                values, left, right, residuals = again
    count = len(values)
    eps = float(xp.finfo(operator.dtype).eps)
    # A map that is no convolution multiplies in its own dtype.
    rounding = 0.0 if isinstance(operator, ConvOperator) else 4 * eps * float(values[0])
    errors = found.errors[:count] + rounding
    # What was read off in float64 is what counts: it tells what the iteration may have lost sight of.
    met = criterion == "value" or float(residuals.max()) <= 2 * max(rtol, _BLUR * eps) * float(values.max())
    if end == "smallest":  # of a square near its rounding a Krylov space knows no root, however little is left of it
        met = met and float(errors[0]) <= rtol * float(values[-1])
        errors = errors if found.converged and met else np.maximum(errors, values[::-1])  # it is not below zero
    blur = _BLUR * eps * float(values[0])  # of the Ritz values, which the bound of the random start speaks of
    # A random part that is shorter than the vector makes the failure that much more probable.
    spread = random_start_error(random_steps, side.order, failure=random * _FAILURE / groups)
    ends = slice(None, None, 1 if end == "largest" else -1)
    if end == "smallest":
        left, right = xp.flip(left, axis=0), xp.flip(right, axis=0)
    return SingularValues(
        values=on_device_of(values[ends].copy(), operator.like, xp, dtype=xp.float64),
        left=xp.astype(left, operator.dtype),
        right=xp.astype(right, operator.dtype),
        residuals=residuals[ends],
        errors=errors,
        upper=(float(values[0]) + blur) * (1.0 + spread) if end == "largest" and math.isfinite(spread) else math.inf,
        matvecs=2 * products + spent + 2 * (1 + wide),
        status=Status.ESTIMATED if found.converged and met else Status.NOT_CONVERGED,
        method="lanczos",
        least=xp.reshape(side.placed(opposite), (*side.linear_map.domain_shape,)) if end == "largest" else None,
        peaks=peaks,
    )


def _basis_size(k: int, dtype: object, xp: object, side: _Side) -> int:
    """Return how many vectors to keep for k triplets.

    Of long vectors few: a thick restart loses little, and to re-orthogonalise against more costs more than it saves. Of
    short ones more: they belong to long signals, whose leading values are close to each other.
    """
    itemsize = 4 if dtype == xp.float32 else 8  # type: ignore[attr-defined]
    vector = itemsize * side.order * side.groups
    size = max(3 * k, 2 * k + 38, min(_SHORT_BASIS, _CACHE_BYTES // vector))
    return min(size, max(2 * k + 16, 40, _BASIS_BYTES // vector))


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
