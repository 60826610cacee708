"""Stochastic gradient descent with orthonormalised momentum, whose steps are measured by what they do to images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from convla._validate import check_choice, check_real
from convla.frameworks.torch._closed_form import full_precision
from convla.frameworks.torch.layers import CONVOLUTIONS, check_network, linear_maps
from convla.orthonormal import METHODS, orthonormalize

__all__ = ["OrthonormalSGD"]

Layer = Any

NORMS = ("rms", "spectral")


class OrthonormalSGD(torch.optim.Optimizer):  # type: ignore[misc]
    """Descend along the orthonormal polar factor of each layer's momentum; other parameters follow AdamW.

    Parameters
    ----------
    network : torch.nn.Module
        Whose convolutions, transposed or not, and linear layers are orthonormalised, each group of a layer by itself.
        Its other parameters (biases, norms, embeddings), and those of the layers in `except_for`, are left to AdamW.
    lr : float, default 0.02
        How much a step changes a layer, in the norm of `norm`.
    momentum : float, default 0.95
        Of the average of gradients; Nesterov's.
    weight_decay : float, default 0
        Decoupled, times `lr`.
    norm : {"rms", "spectral"}
        Of what the step adds to a layer as a map of images: "spectral" is its largest singular value, "rms" the largest
        ratio of the root mean squares of output and input.
    method : {"newton-schulz", "polar-express", "exact", "svd"}
        See `convla.orthonormalize`.
    except_for : collection of str, optional
        Names of layers that AdamW is to have; often the last one.
    other_lr, other_betas : float and (float, float)
        AdamW's; its weight decay is the same.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong in type or value, a name is none of a layer, or no layer is left to orthonormalise. At a
        step: if a gradient holds NaN or infinity; no parameter is then changed.

    Notes
    -----
    The momentum G of a group, as a matrix of filters times taps, becomes its polar factor O, whose singular values are
    1. As a map of images, the convolution with O has a norm of at most sqrt(r), r the most output positions that read
    one entry of the image: the product over the axes of ceil(kernel / stride), where stride and dilation are coprime,
    and more at the edges of images that are reflected or replicated. So the step is

        K <- K - lr f O,    f = 1 / sqrt(r)  ("spectral"),    f = sqrt(c_out / (c_in s r))  ("rms"),

    s being the product of the strides, the ratio of the numbers of positions. Both bounds hold for grouped and
    depthwise layers as they stand, as their groups act on channels of their own. For a transposed convolution O is the
    polar factor of the weight as it is stored, the filters of the convolution whose transpose it is, and s divides
    instead of multiplying. "newton-schulz" leaves singular values between 0.7 and 1.2, by which the bounds are to be
    multiplied.

    All layers whose matrices have one shape are orthonormalised together. Gradients of half precision are averaged in
    float32.

    References
    ----------
    K. Jordan et al., Muon, 2024; G. Yang, J. B. Simon and J. Bernstein, A Spectral Condition for Feature Learning,
    2023, for "rms"; I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization, ICLR 2019.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import OrthonormalSGD
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8))
    >>> optimizer = OrthonormalSGD(network, lr=0.1)
    >>> network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    >>> optimizer.step()
    >>> [len(group["params"]) for group in optimizer.param_groups]
    [1, 3]
    """

    def __init__(
        self,
        network: Any,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        norm: str = "rms",
        method: str = "newton-schulz",
        except_for: Any = (),
        other_lr: float = 1e-3,
        other_betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        check_network(network)
        check_choice("norm", norm, NORMS)
        check_choice("method", method, tuple(METHODS))
        shared = {"weight_decay": check_real("weight_decay", weight_decay, minimum=0.0)}
        orthonormal = {
            "lr": check_real("lr", lr, positive=True),
            "momentum": check_real("momentum", momentum, minimum=0.0, maximum=1.0),
            **shared,
        }
        first, second = (check_real(f"other_betas[{i}]", beta, minimum=0.0) for i, beta in enumerate(other_betas))
        other = {"lr": check_real("other_lr", other_lr, positive=True), "betas": (first, second), **shared}
        layers = linear_maps(network)
        unknown = set(except_for) - set(layers)
        if unknown:
            raise ValueError(f"except_for must hold names of layers, of {sorted(layers)}, got {sorted(unknown)}")
        chosen = {layer.weight: layer for name, layer in layers.items() if name not in except_for}
        if not chosen:
            raise ValueError("network must have a convolutional or linear layer to orthonormalise, got none")
        rest = [parameter for parameter in network.parameters() if parameter not in chosen]
        groups: list[dict[str, Any]] = [{"params": list(chosen), "orthonormal": True, **orthonormal}]
        if rest:
            groups.append({"params": rest, "orthonormal": False, **other})
        self._method: Any = method
        self._groups = {weight: getattr(layer, "groups", 1) for weight, layer in chosen.items()}
        self._factors = {weight: _factor(layer, norm) for weight, layer in chosen.items()}
        super().__init__(groups, {})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the closure, if there is one, evaluates the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        steps = [
            (group, list(self._directions(group))) for group in self.param_groups if group["orthonormal"]
        ]  # which refuse NaN, before anything is changed
        for group, directions in steps:
            for weight, average, direction in directions:
                self.state[weight]["average"] = average
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction.to(weight.dtype), alpha=-group["lr"] * self._factors[weight])
        for group in self.param_groups:
            if not group["orthonormal"]:
                self._adamw(group)
        return loss

    def _directions(self, group: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each weight with its new average of gradients and the polar factor of what Nesterov makes of it."""
        stacks: dict[tuple[Any, ...], list[tuple[Tensor, Tensor, Tensor]]] = {}
        beta = group["momentum"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            gradient = weight.grad.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight.grad
            average = torch.lerp(gradient, self.state[weight].get("average", torch.zeros_like(gradient)), beta)
            ahead = torch.lerp(gradient, average, beta)
            count = self._groups[weight]
            matrices = ahead.reshape(count, weight.shape[0] // count, -1)
            stacks.setdefault((*matrices.shape[1:], matrices.dtype, matrices.device), []).append(
                (weight, average, matrices)
            )
        for entries in stacks.values():
            together = torch.cat([matrices for _, _, matrices in entries])
            with full_precision(together):
                factors = orthonormalize(together, method=self._method, batch_axes=1)
            parts = torch.split(factors, [len(matrices) for _, _, matrices in entries])
            for (weight, average, _), part in zip(entries, parts, strict=True):
                yield weight, average, part.reshape(weight.shape)

    def _adamw(self, group: dict[str, Any]) -> None:
        chosen = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in chosen:
            state = self.state[parameter]
            if not state:  # all of it or nothing, whenever Ctrl-C comes
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state.update(step=torch.zeros(()), **averages)
        states = [[self.state[parameter][key] for parameter in chosen] for key in ("exp_avg", "exp_avg_sq")]
        adamw(
            chosen,
            [parameter.grad for parameter in chosen],
            *states,
            [],
            [self.state[parameter]["step"] for parameter in chosen],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def _factor(layer: Layer, norm: str) -> float:
    """Return what a polar factor is to be multiplied by, for the layer that it is the weight of to have norm 1."""
    if isinstance(layer, nn.Linear):
        readers, ratio = 1, layer.out_features / layer.in_features
    else:
        # A position is read through the taps of one residue of the stride: every s / gcd(s, d)-th.
        settings = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        readers = math.prod(-(-k // (s // math.gcd(s, d))) for k, s, d in settings)
        strides = math.prod(layer.stride)
        forward = isinstance(layer, CONVOLUTIONS)
        ratio = layer.out_channels / layer.in_channels * (1 / strides if forward else strides)
    return math.sqrt((ratio if norm == "rms" else 1.0) / readers)
