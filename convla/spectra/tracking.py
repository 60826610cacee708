"""Leading singular triplets of a kernel that changes a little at a time: warm-started, matrix-free.

Everything here is about the Gram map ``B^T B`` of a linear map B. The squared singular values of B are its
eigenvalues, and both of its ends are wanted: a spectral penalty pushes the upper one down and the lower one up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from convla._array import as_array, namespace, on_device_of, to_numpy
from convla._checks import check_not_followed
from convla._validate import check_choice, check_integer, check_real
from convla.errors import ConvergenceWarning
from convla.linear_map import LinearMap
from convla.spectra.block_iteration import iterate, orthonormal, outermost
from convla.spectra.summands import Summands
from convla.toeplitz import unvec
from convla.typing import Array, Namespace

__all__ = ["DENSE_ENTRIES", "BlockTracker", "SingularTriplets", "extreme_triplets"]

DENSE_ENTRIES = 2**20
"""Matrices of at most this many entries are written out and decomposed by LAPACK where exact triplets are wanted."""

# To a modest accuracy, the iteration for the upper end of a larger matrix costs a tenth of the decomposition or less.
_MODEST_ENTRIES = 2**18
_MODEST_RTOL = 1e-4

_COLD_STEPS = 1000
"""Of the iteration from nothing."""

_PROBE_STEPS = 4
"""What a random vector gets at least to show what it points at."""

_LARGE_CHANGE = 0.5
"""Of the kernel, in units of its norm and by the bound of its effect: from there on a search begins anew."""

# Parts of at most this many operations are decomposed as wholes: where it costs no more than steps of the iteration,
# and in a search from nothing. The unit vectors and their images have to fit in memory besides.
_WARM_WORK, _COLD_WORK = 2.0**19, 2.0**27
_EXACT_ENTRIES = 2**23

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
    # All of them are random at first.
    tracker = BlockTracker(block=2 * count, steps=max_steps, end=end, reseed=0, rtol=rtol)
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


class BlockTracker:
    """Singular triplets at one end of the spectrum, followed by a warm-started block iteration in each uncoupled part.

    Parameters
    ----------
    block : int
        How many triplets are returned, and vectors carried in each part: more than the triplets that may change places.
    steps : int
        Of the iteration in each update; fewer once `rtol` is reached.
    end : {"largest", "smallest"}
        Which end of the spectrum of ``B^T B``.
    reseed : int
        How many vectors more are carried in each part, to which random ones are added at each update: a safeguard
        against a triplet that rises from outside the block. With 0 the block is closed: what its vectors do not point
        at is not found, however the kernel changes.
    rtol : float
        No more steps once the residuals of the first half of the block are below ``rtol * sigma_max^2``.
    seed : int
        Of the random vectors.

    Attributes
    ----------
    converged : bool
        Whether the last update stopped on `rtol`.
    vectors : array of shape (block + reseed, columns) or None
        What is carried to the next update, the n-th vectors of all parts in the n-th row; fewer where no part has so
        many columns. None before the first.
    kernel : array or None
        Of the map at the last update.
    updates : int
        How many updates were made.

    Notes
    -----
    A step is a Rayleigh-Ritz projection onto the block, its residuals and the last change: the locally optimal block
    method, without a preconditioner. It costs one application and one adjoint for each vector that has not settled; an
    update one of each for all, as the images under the changed map are computed afresh. Where the whole of a part is
    hardly larger than that, it is the search space, and what is found is exact.

    A block iteration stays in the invariant subspaces that its vectors touch. Those that the geometry fixes (groups of
    channels, what strides and dilations split) have a block each; see `convla.spectra.components`. For those of the
    kernel's own making (taps that are zero) there are the random vectors, with four steps or more in each update. And
    where the kernel has changed so much that the vectors say little of it, `follow` begins anew: singular values move
    by at most ``sqrt(taps) |K - K'|``, with the norm of the kernels as matrices of c_out rows.

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
        reseed: int = 1,
        rtol: float = 1e-6,
        seed: int = 0,
    ) -> None:
        self.block = check_integer("block", block, minimum=1)
        self.steps = check_integer("steps", steps, minimum=1)
        self.end = check_choice("end", end, ENDS)
        self.reseed = check_integer("reseed", reseed, minimum=0, maximum=max(1, self.block - 1))
        self.rtol = check_real("rtol", rtol, positive=True)
        self.seed = check_integer("seed", seed, minimum=0)
        self.converged = False
        self.updates = 0
        self.vectors: Array | None = None
        self.kernel: Array | None = None

    def start(self, linear_map: LinearMap) -> SingularTriplets:
        """Find the triplets from nothing, to `rtol` at least, and carry them from here on."""
        summands = Summands(linear_map)
        if not summands.single:
            return self._follow(summands, None, _COLD_STEPS, _COLD_WORK)
        count = min(self.block + self.reseed, linear_map.shape[1])
        found = extreme_triplets(linear_map, count, self.end, rtol=self.rtol)
        xp = namespace(linear_map.like)
        self.vectors, self.kernel = xp.reshape(found.vectors, (count, -1)), linear_map.like
        self.converged = True
        return SingularTriplets(*(getattr(found, field.name)[: self.block, ...] for field in fields(found)))

    def follow(self, linear_map: LinearMap) -> SingularTriplets:
        """Update the triplets, or find them from nothing where they are lost.

        They are if the kernel has changed too much for what is carried, or the update ended before it converged.
        """
        if self.has_lost(linear_map):
            return self.start(linear_map)
        found = self.update(linear_map)
        return found if self.converged else self.start(linear_map)

    def update(self, linear_map: LinearMap) -> SingularTriplets:
        """Follow the triplets to a changed kernel; a first update without a `start` sets out from random vectors."""
        _check_floating(linear_map)
        summands = Summands(linear_map)
        carried = None if self.vectors is None else summands.split(self.vectors)
        found = self._follow(summands, carried, self.steps, _WARM_WORK if self.reseed else 0.0)
        self.updates += 1
        return found

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what is carried from one update to the next, on the host."""
        if self.vectors is None:
            return {}
        state = {"vectors": to_numpy(self.vectors), "updates": np.array(self.updates)}
        return state if self.kernel is None else {**state, "kernel": to_numpy(self.kernel)}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        """Carry on from a `state`, with arrays of the library and device of `like`."""
        self.vectors, self.kernel = (
            on_device_of(state[name], like, namespace(like)) if name in state else None
            for name in ("vectors", "kernel")
        )
        self.updates = int(state["updates"]) if "updates" in state else 0

    def carried_shape(self, linear_map: LinearMap) -> tuple[int, int]:
        """Return the shape of `vectors` for a map: what a buffer for them must hold."""
        most = max(Summands(linear_map).domain_sizes, default=0)
        return min(self.block + self.reseed, most), linear_map.shape[1]

    def has_lost(self, linear_map: LinearMap) -> bool:
        """Tell whether a map is so far from the last one that its triplets are better found from nothing."""
        if self.vectors is None or self.kernel is None:
            return True
        xp = namespace(linear_map.like)
        rows = xp.reshape(linear_map.like, (linear_map.like.shape[0], -1))
        change = rows - xp.astype(xp.reshape(self.kernel, rows.shape), linear_map.dtype)
        taps = math.prod(linear_map.like.shape[2:]) ** 0.5
        # The norm of a row is at most that of the matrix, and Frobenius' at least: for the usual small change these do.
        longest = float(xp.max(xp.linalg.vector_norm(rows, axis=1)))
        if taps * float(xp.linalg.vector_norm(change)) <= _LARGE_CHANGE * longest:
            return False
        return bool(taps * _spectral_norm(change, xp) > _LARGE_CHANGE * _spectral_norm(rows, xp))

    def _follow(
        self, summands: Summands, carried: list[Array] | None, steps: int, exact_work: float
    ) -> SingularTriplets:
        """Iterate from the carried vectors of each part, or from random ones, and carry on what is found."""
        linear_map, xp = summands.linear_map, namespace(summands.linear_map.like)
        count = min(self.block, linear_map.shape[1])
        blocks, self.converged = iterate(
            summands,
            self._bases(summands, carried, exact_work),
            count=self.block + self.reseed,
            settled=(count + 1) // 2,
            end=self.end,
            rtol=self.rtol,
            steps=steps,
            probes=self.reseed,
            probe_steps=_PROBE_STEPS if self.reseed else 0,
        )
        self.vectors = summands.join([block.vectors for block in blocks])
        self.kernel = linear_map.like
        squares, residuals, vectors, images = outermost(summands, blocks, count, self.end)
        return SingularTriplets(xp.sqrt(squares), vectors, images, residuals)

    def _bases(self, summands: Summands, carried: list[Array] | None, exact_work: float) -> list[Array]:
        """Return where the iteration sets out in the parts of each kind: the whole of them if that is little work."""
        kernel, sizes = summands.linear_map.like, summands.domain_sizes
        xp = namespace(kernel)
        work = sum(summands.groups * size**3 for size in sizes)
        if sizes and work <= exact_work and max(sizes) * sum(summands.linear_map.shape) <= _EXACT_ENTRIES:
            return [
                on_device_of(np.tile(np.eye(size), (summands.groups, 1, 1)), kernel, xp, dtype=kernel.dtype)
                for size in sizes
            ]
        # The generator depends on the seed and the update alone, so a restored tracker draws the same vectors.
        rng = np.random.default_rng([self.seed, self.updates])
        bases = []
        for kind, size in enumerate(sizes):
            count = min(self.block + self.reseed, size)
            fresh = count if carried is None else min(self.reseed, count)
            draws = rng.standard_normal((summands.groups, fresh, size)) / size**0.5
            rows = on_device_of(draws, kernel, xp, dtype=kernel.dtype)
            if carried is not None:
                rows = _stirred(carried[kind][:, :count, :], rows, count, xp)
            # Orthonormal before anything is read off: a block with random parts, or from a saved state, is not.
            bases.append(orthonormal(rows, xp))
        return bases


def _stirred(carried: Array, draws: Array, count: int, xp: Namespace) -> Array:
    """Add random vectors to the last of the carried ones, or set them behind those of a part that has fewer."""
    missing = min(draws.shape[1], count - carried.shape[1])
    if missing:
        carried = xp.concat([carried, xp.zeros_like(draws[:, :missing, :])], axis=1)
    kept = carried.shape[1] - draws.shape[1]
    return xp.concat([carried[:, :kept, :], carried[:, kept:, :] + draws], axis=1)


def _spectral_norm(rows: Array, xp: Namespace) -> float:
    if rows.shape[0] > rows.shape[1]:
        rows = xp.matrix_transpose(rows)
    return math.sqrt(max(0.0, float(xp.max(xp.linalg.eigvalsh(rows @ xp.matrix_transpose(rows))))))


def _dense_triplets(linear_map: LinearMap, count: int, end: str) -> SingularTriplets:
    xp = namespace(linear_map.like)
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
    return orthonormal(on_device_of(draws, right, xp, dtype=right.dtype), xp, against=right)


def _check_floating(linear_map: LinearMap) -> None:
    xp = namespace(linear_map.like)
    kernel = as_array(linear_map.like, xp)
    if kernel.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"the map must have a kernel of float32 or float64, got dtype {kernel.dtype}")
    check_not_followed("kernel", kernel, "a singular triplet")
