"""Leading singular triplets of a kernel that changes a little at a time: warm-started, matrix-free.

Everything here is about the Gram map ``B^T B`` of a linear map B. The squared singular values of B are its
eigenvalues, and both of its ends are wanted: a spectral penalty pushes the upper one down and the lower one up.

A single vector that is carried along is not safe. When the kernel's change makes another singular value the largest,
the carried vector is still an eigenvector to first order and stays on what is now the second triplet for as many
iterations as the relative gap is small. A block that carries both only has to reorder them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla._array import as_array, namespace, on_device_of, row_dots, to_numpy
from convla._validate import check_choice, check_integer, check_real
from convla.errors import ConvergenceWarning
from convla.linear_map import LinearMap
from convla.toeplitz import unvec
from convla.typing import Array, Namespace

__all__ = ["DENSE_ENTRIES", "BlockTracker", "PowerTracker", "ShiftedPairs", "SingularTriplets", "extreme_triplets"]

DENSE_ENTRIES = 2**20
"""Matrices of at most this many entries are written out and decomposed by LAPACK where exact triplets are wanted."""

# To a modest accuracy, the iteration for the upper end of a larger matrix costs a tenth of the decomposition or less.
_MODEST_ENTRIES = 2**18
_MODEST_RTOL = 1e-4

ENDS = ("largest", "smallest")


@dataclass(frozen=True)
class SingularTriplets:
    """Singular triplets at one end of the spectrum of a map B, the outermost first.

    Attributes
    ----------
    singular_values : array of shape (k,)
    vectors : array of shape (k, *domain_shape)
        Right singular vectors, of unit norm.
    images : array of shape (k, *range_shape)
        ``B v``: the left singular vectors times the singular values, which also serves where these are zero.
    residuals : array of shape (k,)
        ``|B^T B v - sigma^2 v|``, which bounds the distance of sigma^2 to the nearest squared singular value.

    References
    ----------
    B. N. Parlett, The Symmetric Eigenvalue Problem, SIAM, 1998, Theorem 4.5.1 (the bound).
    """

    singular_values: Array
    vectors: Array
    images: Array
    residuals: Array


@dataclass(frozen=True)
class ShiftedPairs:
    """What the power method holds of ``B^T B - alpha I``.

    Attributes
    ----------
    values : array of shape (k,)
        Estimates ``|(B^T B - alpha I) v|`` of its singular values.
    signs : array of shape (k,)
        1 or -1: the left singular vector is this times the right one.
    vectors : array of shape (k, *domain_shape)
        Right singular vectors v, of unit norm.
    images : array of shape (k, *range_shape)
        ``B v``.
    """

    values: Array
    signs: Array
    vectors: Array
    images: Array


def extreme_triplets(
    linear_map: LinearMap, count: int, end: str = "largest", *, rtol: float = 1e-6, max_steps: int = 1000
) -> SingularTriplets:
    """Compute singular triplets at one end of the spectrum from nothing: by LAPACK, or by a block iteration.

    Parameters
    ----------
    linear_map : LinearMap
        Of float32 or float64: a `ConvOperator`, or its transpose.
    count : int
        How many, at most the number of entries of an argument of the map.
    end : {"largest", "smallest"}
        Of the eigenvalues of ``B^T B``: where B has more columns than rows, the smallest singular values are zeros.
    rtol : float
        The iteration stops when every residual is at most ``rtol * sigma_max^2``; at rounding level if that is larger.
    max_steps : int
        Of the iteration.

    Returns
    -------
    SingularTriplets

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong in type or value.

    Warns
    -----
    ConvergenceWarning
        If the iteration stops at `max_steps`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.tracking import extreme_triplets
    >>> mean = ConvOperator(np.array([[[0.5, 0.5]]]), (3,), padding="valid")
    >>> extreme_triplets(mean, 2).singular_values.round(6)
    array([0.866025, 0.5     ])
    >>> extreme_triplets(mean, 1, "smallest").singular_values.round(6)
    array([0.])
    """
    _check_floating(linear_map)
    rows, columns = linear_map.shape
    check_choice("end", end, ENDS)
    check_integer("count", count, minimum=1, maximum=columns)
    check_real("rtol", rtol, positive=True)
    check_integer("max_steps", max_steps, minimum=1)
    iterates = end == "largest" and rtol >= _MODEST_RTOL and rows * columns > _MODEST_ENTRIES
    if rows * columns <= DENSE_ENTRIES and not iterates:
        return _dense_triplets(linear_map, count, end)
    # Twice as many vectors as asked for: the last of a block converge slowest, and `rtol` speaks of the first half.
    tracker = BlockTracker(block=2 * count, steps=max_steps, end=end, rtol=rtol)
    found = tracker.update(linear_map)
    if not tracker.converged:
        warnings.warn(
            f"{count} {end} singular triplets of a {rows}x{columns} map: residual {float(found.residuals[0]):.2g} "
            f"after {max_steps} steps",
            ConvergenceWarning,
            stacklevel=2,
        )
    return SingularTriplets(
        found.singular_values[:count], found.vectors[:count, ...], found.images[:count, ...], found.residuals[:count]
    )


class PowerTracker:
    """The power method on ``B^T B - alpha I``, with the two triplets of Guo and Ye's Algorithm 2.1 kept apart.

    Parameters
    ----------
    alpha : float
        The shift, at least 0; the power method for sigma_max(B) is ``PowerTracker(0.0, triplets=1)``.
    iterations : int
        Multiplications by ``B^T B - alpha I`` in each update.
    triplets : int
        How many vectors are carried, each on its own.

    Attributes
    ----------
    vectors : array of shape (triplets, columns) or None
        What is carried to the next update; fewer vectors where the map has fewer columns. None before the first.

    Notes
    -----
    The paper leaves open at which point of an iteration a triplet is read off. Here a multiplication turns v into the
    vector that the next one starts from, and the triplet is ``(|A v|, +-v, v)`` with the last v that was multiplied:
    its image B v is then at hand, which the gradient needs.

    Nothing keeps the two vectors apart, in the paper as here: in the long run both turn to the same one. And near a
    balance of both ends of the spectrum the method has no limit; see `BlockTracker` for what to use instead.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Algorithm 2.1, step 6.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.tracking import PowerTracker
    >>> tracker = PowerTracker(alpha=1.0)
    >>> tracker.start(ConvOperator(np.diag([3.0, 2.0])[:, :, None], (1,))).values
    array([8., 3.])
    >>> tracker.update(ConvOperator(np.diag([3.0, 3.5])[:, :, None], (1,))).values
    array([ 8.  , 11.25])
    """

    def __init__(self, alpha: float, *, iterations: int = 2, triplets: int = 2) -> None:
        self.alpha = check_real("alpha", alpha, minimum=0.0)
        self.iterations = check_integer("iterations", iterations, minimum=1)
        self.triplets = check_integer("triplets", triplets, minimum=1)
        self.vectors: Array | None = None

    def start(self, linear_map: LinearMap) -> ShiftedPairs:
        """Find the triplets of the shifted Gram map exactly (`extreme_triplets`), and carry them from here on."""
        xp = namespace(linear_map.kernel)
        count = min(self.triplets, linear_map.shape[1])
        ends = [extreme_triplets(linear_map, count)]
        # An eigenvalue of the lower end is at most alpha away from alpha.
        if float(ends[0].singular_values[-1]) ** 2 < 2.0 * self.alpha:
            ends.append(extreme_triplets(linear_map, count, "smallest"))
        values, vectors, images = (
            xp.concat([getattr(end, name) for end in ends]) for name in ("singular_values", "vectors", "images")
        )
        shifted = values * values - self.alpha
        # With few columns both ends hold some triplets both; the first ones at each end are all there are.
        usable = shifted[: min(shifted.shape[0], linear_map.shape[1])]
        order = xp.argsort(xp.abs(usable), descending=True)[:count]
        self.vectors = xp.reshape(xp.take(vectors, order, axis=0), (count, -1))
        kept = xp.take(shifted, order)
        signs = xp.where(kept < 0, -xp.ones_like(kept), xp.ones_like(kept))
        return ShiftedPairs(xp.abs(kept), signs, xp.take(vectors, order, axis=0), xp.take(images, order, axis=0))

    def update(self, linear_map: LinearMap) -> ShiftedPairs:
        """Multiply each carried vector `iterations` times by the shifted Gram map of a changed kernel."""
        if self.vectors is None:
            return self.start(linear_map)
        xp = namespace(linear_map.kernel)
        for _ in range(self.iterations):
            vectors = self.vectors
            count = vectors.shape[0]
            images = linear_map.apply(xp.reshape(vectors, (count, *linear_map.domain_shape)))
            # For small layers, whatever passes over a vector besides the two maps takes as long as they do.
            product = xp.reshape(linear_map.adjoint(images), (count, -1))
            product -= self.alpha * vectors
            values = xp.sqrt(row_dots(product, product, xp))
            vanished = values == 0
            if bool(xp.any(vanished)):  # a vector that the map takes to zero stays where it is
                product = xp.where(vanished[:, None], vectors, product)
                product /= xp.where(vanished, xp.ones_like(values), values)[:, None]
            else:
                product /= values[:, None]
            self.vectors = product
        # Of the next vector and this one, which has the sign of the product's.
        agreement = xp.where(vanished, xp.zeros_like(values), row_dots(vectors, product, xp))
        signs = xp.where(agreement < 0, -xp.ones_like(agreement), xp.ones_like(agreement))
        return ShiftedPairs(values, signs, xp.reshape(vectors, (count, *linear_map.domain_shape)), images)

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what is carried from one update to the next, on the host."""
        return {} if self.vectors is None else {"vectors": to_numpy(self.vectors)}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        """Carry on from a `state`, with arrays of the library and device of `like`."""
        self.vectors = on_device_of(state["vectors"], like, namespace(like)) if "vectors" in state else None


class BlockTracker:
    """Singular triplets at one end of the spectrum, followed by a warm-started block iteration.

    Parameters
    ----------
    block : int
        How many vectors are carried: more than the triplets that may change places.
    steps : int
        Of the iteration in each update; fewer once `rtol` is reached.
    end : {"largest", "smallest"}
        Which end of the spectrum of ``B^T B``.
    reseed : int
        How many of the block's last vectors are replaced by random ones at each update, less than `block`: a safeguard
        against a triplet that rises from outside the block.
    rtol : float
        No more steps once the residuals of the first half of the block are below ``rtol * sigma_max^2``.
    seed : int
        Of the random vectors.

    Notes
    -----
    A step is a Rayleigh-Ritz projection onto the block, its residuals and the last change: the locally optimal block
    method, without a preconditioner. It costs one application and one adjoint for each vector, and an update one of
    each more, as the images under the changed map are computed afresh.

    Attributes
    ----------
    converged : bool
        Whether the last update stopped on `rtol`.
    vectors : array of shape (block, columns) or None
        What is carried to the next update; fewer vectors where the map has fewer columns. None before the first.
    updates : int
        How many updates were made.

    References
    ----------
    A. V. Knyazev, Toward the optimal preconditioned eigensolver: locally optimal block preconditioned conjugate
    gradient method, SIAM J. Sci. Comput. 23 (2001), Algorithm 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.tracking import BlockTracker
    >>> tracker = BlockTracker(block=2, steps=4)
    >>> tracker.start(ConvOperator(np.diag([3.0, 2.9])[:, :, None], (1,))).singular_values
    array([3. , 2.9])
    >>> tracker.update(ConvOperator(np.diag([3.0, 3.1])[:, :, None], (1,))).singular_values
    array([3.1, 3. ])
    """

    def __init__(
        self,
        *,
        block: int = 4,
        steps: int = 1,
        end: str = "largest",
        reseed: int = 0,
        rtol: float = 1e-6,
        seed: int = 0,
    ) -> None:
        self.block = check_integer("block", block, minimum=1)
        self.steps = check_integer("steps", steps, minimum=1)
        self.end = check_choice("end", end, ENDS)
        self.reseed = check_integer("reseed", reseed, minimum=0, maximum=self.block - 1)
        self.rtol = check_real("rtol", rtol, positive=True)
        self.seed = check_integer("seed", seed, minimum=0)
        self.converged = False
        self.updates = 0
        self.vectors: Array | None = None

    def start(self, linear_map: LinearMap) -> SingularTriplets:
        """Find the triplets from nothing, to `rtol` at least (`extreme_triplets`), and carry them from here on."""
        found = extreme_triplets(linear_map, min(self.block, linear_map.shape[1]), self.end, rtol=self.rtol)
        xp = namespace(linear_map.kernel)
        self.vectors = xp.reshape(found.vectors, (found.vectors.shape[0], -1))
        return found

    def update(self, linear_map: LinearMap) -> SingularTriplets:
        """Follow the triplets to a changed kernel; a first update without a `start` sets out from random vectors."""
        _check_floating(linear_map)
        xp = namespace(linear_map.kernel)
        count = min(self.block, linear_map.shape[1])
        # Orthonormal before anything is read off: a block with fresh vectors, or from a saved state, need not be.
        vectors = _orthonormal(self._first_vectors(count, linear_map, xp), xp)
        images = _apply(linear_map, vectors, xp)
        vectors, images, *change, scale = _rayleigh_ritz(vectors, images, count, self.end, xp)
        settled = (count + 1) // 2
        # Rounding errors of sums of that many terms add up like its root.
        rounding = 10.0 * linear_map.shape[1] ** 0.5 * float(xp.finfo(vectors.dtype).eps)
        rtol = max(self.rtol, rounding)
        for step in range(self.steps + 1):
            squares = xp.sum(images * images, axis=1)
            remainder = _adjoint(linear_map, images, xp) - squares[:, None] * vectors
            residuals = xp.linalg.vector_norm(remainder, axis=1)
            self.converged = float(xp.max(residuals[:settled])) <= rtol * scale
            if self.converged or step == self.steps:
                break
            basis = xp.concat([vectors, change[0]])
            basis_images = xp.concat([images, change[1]])
            added = _orthonormal(remainder[: linear_map.shape[1] - basis.shape[0], :], xp, against=basis)
            if added.shape[0]:
                basis = xp.concat([basis, added])
                basis_images = xp.concat([basis_images, _apply(linear_map, added, xp)])
            vectors, images, *change, scale = _rayleigh_ritz(basis, basis_images, count, self.end, xp)
        self.vectors = vectors
        self.updates += 1
        return SingularTriplets(
            xp.sqrt(squares),
            xp.reshape(vectors, (count, *linear_map.domain_shape)),
            xp.reshape(images, (count, *linear_map.range_shape)),
            residuals,
        )

    def _first_vectors(self, count: int, linear_map: LinearMap, xp: Namespace) -> Array:
        fresh = self.reseed if self.vectors is not None else count
        if not fresh and self.vectors is not None:
            return self.vectors
        # The generator depends on the seed and the update alone, so a restored tracker draws the same vectors.
        draws = np.random.default_rng([self.seed, self.updates]).standard_normal((fresh, linear_map.shape[1]))
        draws /= np.linalg.norm(draws, axis=1, keepdims=True)
        new = on_device_of(draws, linear_map.kernel, xp, dtype=linear_map.dtype)
        return new if self.vectors is None else xp.concat([self.vectors[: count - fresh, :], new])

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what is carried from one update to the next, on the host."""
        if self.vectors is None:
            return {}
        return {"vectors": to_numpy(self.vectors), "updates": np.array(self.updates)}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        """Carry on from a `state`, with arrays of the library and device of `like`."""
        self.vectors = on_device_of(state["vectors"], like, namespace(like)) if "vectors" in state else None
        self.updates = int(state["updates"]) if "updates" in state else 0


def _rayleigh_ritz(
    basis: Array, images: Array, count: int, end: str, xp: Namespace
) -> tuple[Array, Array, Array, Array, float]:
    """Return the Ritz vectors of ``B^T B`` in the span of the orthonormal rows of `basis`, and their images.

    With them come orthonormal rows for their change, the part that the first `count` rows do not span, the images of
    these, and the largest Ritz value. All are combinations of the basis with orthonormal coefficients, so that the
    images stay those of the vectors to rounding, however many steps are taken.
    """
    values, ritz = xp.linalg.eigh(images @ xp.matrix_transpose(images))
    chosen = xp.flip(ritz[:, -count:], axis=1) if end == "largest" else ritz[:, :count]
    extra = min(count, basis.shape[0] - count)
    outside = xp.concat([xp.zeros_like(chosen[:count, :extra]), chosen[count:, :extra]])
    both = xp.linalg.qr(xp.concat([chosen, outside], axis=1))[0]
    combination, change = xp.matrix_transpose(chosen), xp.matrix_transpose(both[:, count:])
    return combination @ basis, combination @ images, change @ basis, change @ images, float(values[-1])


def _orthonormal(rows: Array, xp: Namespace, *, against: Array | None = None) -> Array:
    """Return orthonormal rows that span `rows`, orthogonal to the orthonormal rows of `against`.

    Rows that depend on others become arbitrary directions.
    """
    if not rows.shape[0]:
        return rows
    for _ in range(2):  # once more, as the first pass leaves the rounding errors of what it removed
        norms = xp.linalg.vector_norm(rows, axis=1, keepdims=True)
        rows = rows / xp.where(norms == 0, xp.ones_like(norms), norms)
        if against is not None:
            rows = rows - (rows @ xp.matrix_transpose(against)) @ against
        rows = xp.matrix_transpose(xp.linalg.qr(xp.matrix_transpose(rows))[0])
    return rows


def _dense_triplets(linear_map: LinearMap, count: int, end: str) -> SingularTriplets:
    xp = namespace(linear_map.kernel)
    _, _, right = xp.linalg.svd(linear_map.to_dense(), full_matrices=False)
    columns = linear_map.shape[1]
    if end == "largest":
        rows = right[:count, :]
        missing = count - rows.shape[0]
        if missing > 0:
            rows = xp.concat([rows, _null_vectors(right, missing, xp)])
    else:
        null = _null_vectors(right, min(count, columns - right.shape[0]), xp)
        wanted = count - null.shape[0]
        rows = xp.concat([null, xp.flip(right, axis=0)[:wanted, :]])
    vectors = unvec(rows, linear_map.domain_shape, order=linear_map.order)
    images = linear_map.apply(vectors)
    flat = xp.reshape(images, (count, -1))
    values = xp.linalg.vector_norm(flat, axis=1)
    gram = xp.reshape(linear_map.adjoint(images), (count, -1))
    residuals = xp.linalg.vector_norm(gram - (values * values)[:, None] * xp.reshape(vectors, (count, -1)), axis=1)
    return SingularTriplets(values, vectors, images, residuals)


def _null_vectors(right: Array, count: int, xp: Namespace) -> Array:
    """Return orthonormal vectors that are orthogonal to the rows of `right`: the rest of the domain of a wide map."""
    draws = np.random.default_rng(0).standard_normal((count, right.shape[1]))
    return _orthonormal(on_device_of(draws, right, xp, dtype=right.dtype), xp, against=right)


def _apply(linear_map: LinearMap, rows: Array, xp: Namespace) -> Array:
    count = rows.shape[0]
    return xp.reshape(linear_map.apply(xp.reshape(rows, (count, *linear_map.domain_shape))), (count, -1))


def _adjoint(linear_map: LinearMap, rows: Array, xp: Namespace) -> Array:
    count = rows.shape[0]
    return xp.reshape(linear_map.adjoint(xp.reshape(rows, (count, *linear_map.range_shape))), (count, -1))


def _check_floating(linear_map: LinearMap) -> None:
    xp = namespace(linear_map.kernel)
    kernel = as_array(linear_map.kernel, xp)
    if kernel.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"the map must have a kernel of float32 or float64, got dtype {kernel.dtype}")
