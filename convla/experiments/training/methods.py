"""What a method does to a network: to its kernels before training, to its loss, and to its gradients."""

from __future__ import annotations

import functools
from typing import Any

import torch

from convla.experiments.training.method_settings import Initialization, Penalty, Transform
from convla.frameworks.torch import (
    TRANSFORMS,
    GradientTransform,
    NetworkSpectralPenalty,
    convolutions,
    delta_orthogonal_,
    layer_losses,
    minimize_similarity_,
    network_similarity_loss,
    orthogonal_,
)

__all__ = ["Regularizer", "initialize", "total_similarity", "transform_gradients"]

INITIALIZERS = {"orthogonal": orthogonal_, "delta-orthogonal": delta_orthogonal_}


def total_similarity(network: Any) -> float:
    """Return the convolutional similarity of all layers together; infinite where it cannot be computed."""
    with torch.no_grad():
        try:
            return float(network_similarity_loss(network))
        except ValueError:  # it refuses kernels that are not finite, or would overflow
            return float("inf")


def initialize(network: Any, method: Initialization | None) -> None:
    """Set a network's kernels as the method says, drawing from PyTorch's own generator."""
    if method is None:
        return
    if method.kind == "convolutional-similarity":
        if method.iterations:
            minimize_similarity_(
                network,
                iterations=method.iterations,
                learning_rate=method.learning_rate,
                betas=(method.beta1, method.beta2),
                keep_norms=method.keep_norms,
            )
        return
    for layer in convolutions(network).values():
        INITIALIZERS[method.kind](layer.weight, gain=method.gain)


def transform_gradients(optimizer: Any, network: Any, method: Transform | None) -> None:
    """Let an optimizer step along transformed gradients of a network's kernels."""
    if method is None:
        return
    common = {"linear": method.linear, "network": network}
    if method.scale == 1.0:
        GradientTransform(optimizer, method.kind, **common, **method.options())
        return
    transform = functools.partial(TRANSFORMS[method.kind], **method.options())
    GradientTransform(optimizer, lambda gradient: method.scale * transform(gradient), **common)


class Regularizer:
    """The penalty on a network's kernels, times its weight; 0 without one.

    Parameters
    ----------
    network : torch.nn.Module
    penalty : Penalty, optional
    example : tensor
        Images as the network is given them.
    """

    def __init__(self, network: Any, penalty: Penalty | None, example: Any) -> None:
        self._network, self._penalty = network, penalty
        self._spectral: Any = None
        if penalty is not None and penalty.kind == "singular-values":
            options = {"alpha": penalty.alpha, "gram": penalty.gram}
            self._spectral = NetworkSpectralPenalty(network, example, **options).to(example.device)

    def __call__(self) -> Any:
        """Return the penalty at the network's present weights."""
        if self._penalty is None:
            return 0.0
        if self._spectral is not None:
            return self._penalty.weight * self._spectral(self._network)
        losses = layer_losses(self._network, self._penalty.kind, **self._penalty.options())
        return self._penalty.weight * sum(losses.values())

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers between steps: the singular vectors that it follows."""
        return {} if self._spectral is None else dict(self._spectral.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what another remembered."""
        if self._spectral is not None:
            self._spectral.load_state_dict(state)
