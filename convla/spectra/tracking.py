"""Singular triplets at an end of the spectrum of a map whose kernel changes a little at a time: a warm block iteration.

Everything here is about the Gram map ``B^T B`` of a linear map B. The squared singular values of B are its
eigenvalues, and both of its ends are wanted: a spectral penalty pushes the upper one down and the lower one up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np

from convla._array import as_array, device_of, namespace, to_numbers
from convla._checks import check_not_followed
from convla._convergence import warn
from convla._validate import check_choice, check_integer, check_real
from convla.linear_map import LinearMap
from convla.spectra import tracked_search
from convla.spectra.carrier import Carrier
from convla.spectra.result import End, SingularValues
from convla.spectra.tracked_search import Search, State

__all__ = ["BlockTracker", "State"]


@dataclass(frozen=True, kw_only=True)
class BlockTracker:
    """Singular triplets at one end of the spectrum, followed by a warm-started block iteration in each uncoupled part.

    Parameters
    ----------
    block : int
        How many triplets are returned, and vectors carried in each part: more than the triplets that may change places.
    steps : int
        Of the iteration from one map to the next; fewer once `rtol` is reached.
    end : {"largest", "smallest"}
        Which end of the spectrum of ``B^T B``. Where B has more columns than rows, the smallest singular values are
        zeros.
    reseed : int
        How many vectors more are carried in each part, to which random ones are added in every step: a safeguard
        against a triplet that rises from outside the block.
    rtol : float
        No more steps once the residuals of the first half of the block are below ``rtol * sigma_max^2``.
    outermost : bool
        Whether the outermost value alone is asked for, to that accuracy: a search from nothing ends with it, and one at
        the lower end once a square is below ``rtol * sigma_max^2``, as none is below 0.
    rng : int
        The seed of the random vectors, which depend on it and on the number of updates alone.

    Notes
    -----
    The tracker itself holds nothing: `step` maps ``(map, state)`` to ``(triplets, state)``, from `initial` on.

    The iteration is that of `convla.spectra.block_iteration`. It costs one application and one adjoint for each vector
    that has not settled, and one of each for all carried ones, as the images under the changed map are computed
    afresh. Where the whole of a part is hardly larger than that, it is the search space, and what is found is exact.
    Where the outermost value alone is asked for, and falls below what the last one of the block had been, as when a
    descent pushes all of them down at once, one from beside the block may be the outermost now: that part is searched
    anew, which takes no longer than to follow so large a change.

    A block iteration stays in the invariant subspaces that its vectors touch. The parts that the geometry and the zero
    taps of the kernel fix (`convla.spectra.parts`), and the groups of channels, have a block each. For parts of the
    kernel's own making (channels that zeros cut off) there are the random vectors. And where the kernel has changed so
    much that the vectors say little of it, or an update does not converge, the search begins anew.

    Of many groups few have the outermost values. By Weyl's inequality no singular value moves by more than
    ``|M - M'| <= sqrt(readers) |K - K'|``, where `readers` counts how often an entry of the image is read at most: a
    group whose values cannot have come near the wanted ones since it was last followed is left as it is.

    References
    ----------
    G. W. Stewart and J. Sun, Matrix Perturbation Theory, Academic Press, 1990, Corollary IV.4.10 (Weyl).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.tracking import BlockTracker
    >>> tracker = BlockTracker(block=2)
    >>> first = ConvOperator(np.diag([3.0, 2.9])[:, :, None], (1,))
    >>> found, state = tracker.step(first, tracker.initial(first))
    >>> found.values
    array([3. , 2.9])
    >>> found, state = tracker.step(first.with_kernel(np.diag([3.0, 3.1])[:, :, None]), state)
    >>> found.values
    array([3.1, 3. ])
    """

    block: int = 4
    steps: int = 20
    end: End = "largest"
    reseed: int = 1
    rtol: float = 1e-6
    outermost: bool = False
    rng: int = 0

    def __post_init__(self) -> None:
        check_integer("block", self.block, minimum=1)
        check_integer("steps", self.steps, minimum=1)
        check_choice("end", self.end, get_args(End))
        check_integer("reseed", self.reseed, minimum=0, maximum=max(1, self.block - 1))
        check_real("rtol", self.rtol, positive=True)
        check_integer("rng", self.rng, minimum=0)

    def initial(self, linear_map: LinearMap) -> State:
        """Return the state that knows nothing: the first step finds the triplets from random vectors."""
        carrier = Carrier(linear_map)
        shapes = {
            "vectors": (min(self.block + self.reseed, carrier.order), linear_map.shape[1]),
            "kernel": tuple(carrier.parameters.shape),
            "values": (carrier.groups, self.block),
            "bounds": (carrier.groups,),
        }
        xp, device = namespace(linear_map.like), device_of(linear_map.like)
        state = {name: xp.zeros(shape, dtype=linear_map.dtype, device=device) for name, shape in shapes.items()}
        return {**state, "updates": xp.zeros((), dtype=xp.int64, device=device)}

    def step(
        self,
        linear_map: LinearMap,
        state: State,
        *,
        bar: float = 0.0,
        norm: float = 0.0,
        carrier: Carrier | None = None,
    ) -> tuple[SingularValues, State]:
        """Return the outermost triplets of a map, from what is known of one like it.

        Parameters
        ----------
        linear_map : LinearMap
            Of float32 or float64.
        state : mapping of str to array
            From `initial`, or an earlier step for a map of the same shapes.
        bar : float
            With `outermost`, a singular value below which the upper end is of no interest: a search from nothing ends
            where it is found to be below.
        norm : float
            What sigma_max is known not to be below.
        carrier : Carrier, optional
            Of the map, where there is one: a search from nothing goes on from what one at the other end has left in it.

        Returns
        -------
        found : SingularValues
            The outermost first; at most as many as the map has columns. Its status is "estimated" or "not converged".
        state : dict of str to array
            For the next step.

        Raises
        ------
        TypeError
            If the map is not of float32 or float64, or is one that autograd follows.
        """
        _check_floating(linear_map)
        search = Search(self, carrier or Carrier(linear_map), state, bar, norm)
        followed, lost, known = search.choice()
        converged = search.follow(followed, known) or search.go_on(known)
        converged = search.begin(lost, known) and converged
        found = search.found(converged)
        if not converged and found.residuals is not None:
            rows, columns = linear_map.shape
            warn(
                f"{self.block} {self.end} singular values of a {rows}x{columns} map: residual {found.residuals[0]:.2g} "
                f"after {tracked_search.COLD_STEPS} steps",
                stacklevel=2,
            )
        return found, search.carried()

    def range(self, carrier: Carrier, state: State) -> tuple[float, float]:
        """Return between what the outermost singular value of a map is, by what is known of one like it."""
        if not int(state["updates"]):
            return 0.0, math.inf
        drift = np.ldexp(carrier.moved(state["kernel"])[0], carrier.exponent)
        values = np.reshape(to_numbers(state["values"]), (drift.size, -1))
        if self.end == "smallest":
            return 0.0, float((values.min(axis=1) + drift).min())
        least = float((values.max(axis=1) - drift).max())
        return max(0.0, least), float((np.array(to_numbers(state["bounds"])) + drift).max())


def _check_floating(linear_map: LinearMap) -> None:
    xp = namespace(linear_map.like)
    kernel = as_array(linear_map.like, xp)
    if kernel.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"the map must have a kernel of float32 or float64, got dtype {kernel.dtype}")
    check_not_followed("kernel", kernel, "a singular triplet")
