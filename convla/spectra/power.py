"""The power method on ``B^T B - alpha I``, vector by vector: Guo and Ye's Algorithm 2.1 as printed.

A single vector that is carried along is not safe. When the kernel's change makes another singular value the largest,
the carried vector is still an eigenvector to first order and stays on what is now the second triplet for as many
iterations as the relative gap is small. A block that carries both only has to reorder them: see `BlockTracker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla._array import namespace, on_device_of, row_dots, to_numpy
from convla._validate import check_integer, check_real
from convla.linear_map import LinearMap
from convla.spectra.tracking import extreme_triplets
from convla.typing import Array

__all__ = ["PowerTracker", "ShiftedPairs"]


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
    >>> from convla.spectra.power import PowerTracker
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
        xp = namespace(linear_map.like)
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
        xp = namespace(linear_map.like)
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

    def carried_shape(self, linear_map: LinearMap) -> tuple[int, int]:
        """Return the shape of `vectors` for a map: what a buffer for them must hold."""
        return min(self.triplets, linear_map.shape[1]), linear_map.shape[1]

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what is carried from one update to the next, on the host."""
        return {} if self.vectors is None else {"vectors": to_numpy(self.vectors)}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]], like: Array) -> None:
        """Carry on from a `state`, with arrays of the library and device of `like`."""
        self.vectors = on_device_of(state["vectors"], like, namespace(like)) if "vectors" in state else None
