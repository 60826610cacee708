"""The power method on ``B^T B - alpha I``, vector by vector, as in Guo and Ye's Algorithm 2.1: the tracker "power".

A single vector that is carried along is not safe. When the kernel's change makes another singular value the largest,
the carried vector is still an eigenvector to first order and stays on what is now the second triplet for as many
iterations as the relative gap is small. A block that carries both only has to reorder them: see `Block`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from convla._array import device_of, namespace, row_dots
from convla._validate import check_integer
from convla.penalties.pairs import ActivePairs, Shifted
from convla.penalties.tracker import State, Tracker
from convla.spectra.result import End, SingularValues
from convla.spectra.tracking import BlockTracker
from convla.typing import Array

__all__ = ["Power"]


@dataclass(frozen=True, kw_only=True)
class Power(Tracker):
    """Two triplets of ``B^T B - alpha I`` by the power method, each on its own, the larger of which is taken.

    Parameters
    ----------
    iterations : int
        Multiplications by ``B^T B - alpha I`` at each kernel.
    triplets : int
        How many vectors are carried.

    Notes
    -----
    These are steps 6 and 7 of the paper's Algorithm 2.1, which leaves open at which point of an iteration a triplet is
    read off. Here a multiplication turns v into the vector that the next one starts from, and the triplet is
    ``(|A v|, +-v, v)`` with the last v that was multiplied: its image B v is then at hand, which the gradient needs.

    Nothing keeps the two vectors apart, in the paper as here: in the long run both turn to the same one. And near a
    balance of both ends of the spectrum the method has no limit; see `Block` for what to use instead.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Algorithm 2.1, step 6.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.penalties import Power, shifted
    >>> tracker = Power(iterations=2)
    >>> first, second = (ConvOperator(np.diag([3.0, a])[:, :, None], (1,)) for a in (2.0, 3.5))
    >>> target = shifted(first, 1.0, "input")
    >>> pairs, state = tracker.step(target, tracker.initial(target))
    >>> pairs.value
    8.0
    >>> tracker.step(shifted(second, 1.0, "input"), state)[0].value
    11.25
    """

    name: ClassVar[str] = "power"
    trusted: ClassVar[bool] = False

    iterations: int = 2
    triplets: int = 2

    def __post_init__(self) -> None:
        check_integer("iterations", self.iterations, minimum=1)
        check_integer("triplets", self.triplets, minimum=1)

    def initial(self, target: Shifted) -> State:
        """Return vectors of zeros, from which the first step does not set out."""
        factor = target.factor
        xp, device, columns = namespace(factor.like), device_of(factor.like), factor.shape[1]
        return {
            "shifted": xp.zeros((min(self.triplets, columns), columns), dtype=factor.dtype, device=device),
            "shifted_updates": xp.zeros((), dtype=xp.int64, device=device),
        }

    def step(self, target: Shifted, state: State) -> tuple[ActivePairs, State]:
        """Multiply each carried vector by the shifted Gram map of this kernel; find them exactly at the first."""
        updates = state["shifted_updates"]
        if int(updates):
            values, signs, vectors, images, carried = self._multiplied(target, state["shifted"])
        else:
            values, signs, vectors, images = self._leading(target)
            carried = namespace(vectors).reshape(vectors, (vectors.shape[0], -1))
        xp = namespace(values)
        place = int(xp.argmax(values))
        one = slice(place, place + 1)
        pairs = ActivePairs(float(values[place]), signs[one], vectors[one, ...], images[one, ...])
        return pairs, {"shifted": carried, "shifted_updates": updates + 1}

    def _leading(self, target: Shifted) -> tuple[Array, Array, Array, Array]:
        """Find the leading triplets of the shifted Gram map."""
        factor, alpha = target.factor, target.alpha
        xp, columns = namespace(factor.like), factor.shape[1]
        count = min(self.triplets, columns)
        ends: list[SingularValues] = []
        rows: list[Array] = []
        for end in get_args(End):
            # An eigenvalue of the lower end is at most alpha away from alpha.
            if end == "largest" or float(ends[0].values[-1]) ** 2 < 2.0 * alpha:
                tracker = BlockTracker(block=count, end=end)
                found, _ = tracker.step(factor, tracker.initial(factor))
                assert found.right is not None
                ends.append(found)
                rows.append(found.right)
        values = xp.astype(xp.concat([found.values for found in ends]), factor.dtype)
        vectors = xp.concat(rows)
        shifted = values * values - alpha
        # With few columns both ends hold some triplets both; the first ones at each end are all there are.
        usable = shifted[: min(shifted.shape[0], columns)]
        order = xp.argsort(xp.abs(usable), descending=True)[:count]
        kept, vectors = xp.take(shifted, order), xp.take(vectors, order, axis=0)
        signs = xp.where(kept < 0, -xp.ones_like(kept), xp.ones_like(kept))
        return xp.abs(kept), signs, vectors, factor._apply(vectors)

    def _multiplied(self, target: Shifted, carried: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Multiply each vector, and return its triplet with what it has become."""
        factor, alpha = target.factor, target.alpha
        xp, count = namespace(factor.like), carried.shape[0]
        for _ in range(self.iterations):
            vectors = carried
            images = factor._apply(xp.reshape(vectors, (count, *factor.domain_shape)))
            # For small layers, whatever passes over a vector besides the two maps takes as long as they do.
            product = xp.reshape(factor._adjoint(images), (count, -1))
            product -= alpha * vectors
            values = xp.sqrt(row_dots(product, product, xp))
            vanished = values == 0
            if bool(xp.any(vanished)):  # a vector that the map takes to zero stays where it is
                product = xp.where(vanished[:, None], vectors, product)
                product /= xp.where(vanished, xp.ones_like(values), values)[:, None]
            else:
                product /= values[:, None]
            carried = product
        # Of the next vector and this one, which has the sign of the product's.
        agreement = xp.where(vanished, xp.zeros_like(values), row_dots(vectors, product, xp))
        signs = xp.where(agreement < 0, -xp.ones_like(agreement), xp.ones_like(agreement))
        return values, signs, xp.reshape(vectors, (count, *factor.domain_shape)), images, carried
