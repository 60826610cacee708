"""The largest singular value of a module's Jacobian at data: a lower bound of its Lipschitz constant."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch

from convla.frameworks.torch.layers import check_network

__all__ = ["check_data", "largest_jacobian_norm"]

_STEPS = 10


def largest_jacobian_norm(module: Any, data: Any, *, steps: int = _STEPS, seed: int = 0) -> float:
    """Return how much a module stretches a small change of its input at some data.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode; a copy of it works in float64.
    data : tensor or numpy.ndarray, or tuple, list or mapping of these
        What ``module(...)`` takes; a batch is taken as one input, whose examples a module treats alike.
    steps : int
        Of the power method on the Jacobian.
    seed : int

    Returns
    -------
    float
        ``norm(J v) / norm(v)`` for a vector v that the power method found: never above the largest singular value of
        the Jacobian J, but for rounding in float64, and so never above the Lipschitz constant.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch.jacobians import largest_jacobian_norm
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> round(largest_jacobian_norm(layer, torch.zeros(1, 2)), 6)
    3.0
    """
    check_network(module)
    network = copy.deepcopy(module).double().eval().requires_grad_(False)
    values, names = _arguments(data)
    places = [i for i, value in enumerate(values) if _is_floating(value)]
    inputs = tuple(values[i].detach().double() for i in places)

    def function(*changed: Any) -> Any:
        given = list(values)
        for place, value in zip(places, changed, strict=True):
            given[place] = value
        result = network(**dict(zip(names, given, strict=True))) if names else network(*given)
        if isinstance(result, torch.Tensor):
            return result.reshape(-1)
        parts = result.values() if isinstance(result, dict) else result
        return torch.cat([part.reshape(-1) for part in parts])

    generator = torch.Generator().manual_seed(seed)
    vectors = tuple(torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in inputs)
    _, back = torch.func.vjp(function, *inputs)
    best = 0.0
    for _ in range(steps):
        vectors = _normalized(vectors)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of PyTorch, about itself
            image = torch.func.jvp(function, inputs, vectors)[1]
        stretch = float(torch.linalg.vector_norm(image))
        best = max(best, stretch)
        if stretch == 0.0:
            break
        vectors = back(image)
    return best


def check_data(module: Any, data: Any) -> None:
    """Raise `ValueError` if a module does not take some data.

    Parameters
    ----------
    module, data
        As for `largest_jacobian_norm`; the module runs once.
    """
    values, names = _arguments(data)
    kind = next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), torch.float32)
    kind = next((tensor.dtype for tensor in module.buffers() if tensor.is_floating_point()), kind)
    given = [
        value.to(kind) if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in values
    ]
    try:
        with torch.no_grad():
            network = copy.deepcopy(module).eval()
            network(**dict(zip(names, given, strict=True))) if names else network(*given)
            if hasattr(module, "check_values"):  # a graph of another library, whose values are known from there
                module.check_values(*given)
    except NotImplementedError as error:
        raise ValueError(f"data are of no use here: {error}") from error
    except Exception as error:
        sizes = ", ".join("x".join(map(str, value.shape)) for value in given if isinstance(value, torch.Tensor))
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"data must be what the network takes, with the batch, got {sizes or 'no tensor'}: {words}"
        ) from error


def _arguments(data: Any) -> tuple[list[Any], list[str]]:
    """Return arguments as tensors, and their names if they have any."""
    names = list(data) if isinstance(data, dict) else []
    values = list(data.values()) if names else list(data) if isinstance(data, (tuple, list)) else [data]
    return [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values], names


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _normalized(vectors: tuple[Any, ...]) -> tuple[Any, ...]:
    norm = float(torch.sqrt(sum((vector * vector).sum() for vector in vectors)))
    return tuple(vector / (norm or 1.0) for vector in vectors)
