"""The penalty R_alpha(K) = sigma_max(M^T M - alpha I) on a kernel, its gradient, and its descent (RCK)."""

from convla.penalties.minimize import PenaltyDescent, Trace, minimize_penalty
from convla.penalties.value import penalty, penalty_gradient

__all__ = ["PenaltyDescent", "Trace", "minimize_penalty", "penalty", "penalty_gradient"]
