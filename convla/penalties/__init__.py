"""The penalty R_alpha(K) = sigma_max(M^T M - alpha I) on a map's kernels, its gradient, and its descent (RCK)."""

from convla.penalties.block import Block
from convla.penalties.exact import Exact
from convla.penalties.minimize import DescentStatus, PenaltyDescent, Settled, Trace, minimize_penalty
from convla.penalties.pairs import ActivePairs, Shifted, shifted
from convla.penalties.power import Power
from convla.penalties.steps import Backtracking, FixedStep, Step
from convla.penalties.tracker import Tracker
from convla.penalties.value import penalty, penalty_gradient

__all__ = [
    "ActivePairs",
    "Backtracking",
    "Block",
    "DescentStatus",
    "Exact",
    "FixedStep",
    "PenaltyDescent",
    "Power",
    "Settled",
    "Shifted",
    "Step",
    "Trace",
    "Tracker",
    "minimize_penalty",
    "penalty",
    "penalty_gradient",
    "shifted",
]
