"""What a method does to a network: to its kernels before training, to its loss, and to its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from convla.experiments.training.settings import Initialization, Penalty, Transform
from convla.frameworks.torch import (
    TRANSFORMS,
    GradientTransform,
    convolutional_similarity_loss,
    delta_orthogonal_,
    kernel_orthogonality_loss,
    ocnn_loss,
    orthogonal_,
)

__all__ = ["Regularizer", "convolutions", "initialize", "total_similarity", "transform_gradients"]


def convolutions(network: Any) -> list[Any]:
    """Return the convolutional layers of a network."""
    return [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]


def total_similarity(network: Any) -> float:
    """Return the convolutional similarity of all layers together; infinite where it overflows."""
    with torch.no_grad():
        try:
            return sum(float(convolutional_similarity_loss(layer.weight.double())) for layer in convolutions(network))
        except ValueError:  # it is computed of finite kernels only
            return float("inf")


def initialize(network: Any, method: Initialization | None) -> None:
    """Set a network's kernels as the method says, drawing from PyTorch's own generator."""
    if method is None:
        return
    weights = [layer.weight for layer in convolutions(network)]
    if method.kind == "convolutional-similarity":
        loss = functools.partial(convolutional_similarity_loss, normalized=method.normalized)
        optimizer = torch.optim.Adam(weights, lr=method.learning_rate, betas=(method.beta1, method.beta2))
        for _ in range(method.iterations):
            optimizer.zero_grad()
            sum(loss(weight) for weight in weights).backward()
            optimizer.step()
        optimizer.zero_grad()
        return
    for weight in weights:
        INITIALIZERS[method.kind](weight, gain=method.gain)


def transform_gradients(optimizer: Any, method: Transform | None) -> None:
    """Let an optimizer step along transformed gradients of the kernels."""
    if method is None:
        return
    if method.scale == 1.0:
        GradientTransform(optimizer, method.kind, linear=method.linear, **method.options())
        return
    transform = functools.partial(TRANSFORMS[method.kind], **method.options())
    GradientTransform(optimizer, lambda gradient: method.scale * transform(gradient), linear=method.linear)


class Regularizer:
    """The penalty on a network's kernels, times its weight; 0 without one.

    Parameters
    ----------
    network : torch.nn.Module
    penalty : Penalty, optional
    image_shape : tuple of int
        (channels, height, width) of what the network is given.
    """

    def __init__(self, network: Any, penalty: Penalty | None, image_shape: tuple[int, ...]) -> None:
        self._weight = 0.0 if penalty is None else penalty.weight
        self._terms: list[Callable[[], Any]] = []
        if penalty is not None:
            self._terms = [_term(penalty, layer) for layer in convolutions(network)]

    def __call__(self) -> Any:
        """Return the penalty at the network's present weights."""
        return self._weight * sum(term() for term in self._terms) if self._terms else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what another remembered."""


def _term(penalty: Penalty, layer: Any) -> Callable[[], Any]:
    if penalty.kind == "ocnn":
        return lambda: ocnn_loss(layer.weight, stride=layer.stride[0])
    if penalty.kind == "kernel-orthogonality":
        return lambda: kernel_orthogonality_loss(layer.weight)
    return lambda: convolutional_similarity_loss(layer.weight, normalized=penalty.normalized)


INITIALIZERS = {"orthogonal": orthogonal_, "delta-orthogonal": delta_orthogonal_}
