"""The whole spectrum at every kernel: the tracker "exact"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from convla._validate import check_real
from convla.penalties.pairs import ActivePairs, Shifted, active_pairs
from convla.penalties.tracker import State, Tracker

__all__ = ["Exact"]


@dataclass(frozen=True, kw_only=True)
class Exact(Tracker):
    """The decomposition of the whole matrix at every kernel; of one too large for it, the ends of its spectrum.

    Parameters
    ----------
    cluster_rtol : float, optional
        How close to the leading eigenvalues others count as active, whose gradients are averaged; see
        `convla.penalty_gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, minimize_penalty
    >>> from convla.penalties import Exact
    >>> layer = ConvOperator(np.array([[[0.1, 0.9, 0.3]]]), (12,))
    >>> minimize_penalty(layer, iterations=2, tracker=Exact(cluster_rtol=0.01)).accuracy
    <Status.EXACT: 'exact'>
    """

    name: ClassVar[str] = "exact"
    trusted: ClassVar[bool] = True

    cluster_rtol: float | None = None

    def __post_init__(self) -> None:
        if self.cluster_rtol is not None:
            check_real("cluster_rtol", self.cluster_rtol, minimum=0.0)

    def initial(self, target: Shifted) -> State:  # noqa: ARG002
        """Return an empty state."""
        return {}

    def step(self, target: Shifted, state: State) -> tuple[ActivePairs, State]:
        """Return the active pairs of this kernel."""
        return active_pairs(target, cluster_rtol=self.cluster_rtol), state
