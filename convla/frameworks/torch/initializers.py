"""Initialisers in the style of `torch.nn.init`: they fill a weight in place and return it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from convla.initializers import delta_orthogonal_kernel, orthogonal_kernel
from convla.typing import Seed

__all__ = ["delta_orthogonal_", "orthogonal_"]

Tensor = Any


def orthogonal_(tensor: Tensor, *, gain: float = 1.0, method: str = "haar", rng: Seed = None) -> Tensor:
    """Fill a weight with `convla.orthogonal_kernel`, in place.

    Parameters
    ----------
    tensor : tensor of shape (c_out, c_in, *kernel)
    gain : float, default 1
    method : {"haar", "svd"}
    rng : numpy.random.Generator or seed
        By default a seed is drawn from PyTorch's generator, so that ``torch.manual_seed`` decides.

    Returns
    -------
    tensor
        The one passed in.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.orthogonal_kernel`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import orthogonal_
    >>> rows = orthogonal_(torch.empty(4, 2, 3, 3)).flatten(1)
    >>> torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    True
    """
    return _fill(tensor, functools.partial(orthogonal_kernel, method=method), gain, rng)


def delta_orthogonal_(tensor: Tensor, *, gain: float = 1.0, rng: Seed = None) -> Tensor:
    """Fill a weight with `convla.delta_orthogonal_kernel`, in place.

    Parameters
    ----------
    tensor : tensor of shape (c_out, c_in, *kernel)
    gain : float, default 1
    rng : numpy.random.Generator or seed
        By default a seed is drawn from PyTorch's generator.

    Returns
    -------
    tensor
        The one passed in.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.delta_orthogonal_kernel`.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import delta_orthogonal_
    >>> int(torch.count_nonzero(delta_orthogonal_(torch.empty(4, 2, 3, 3))))
    8
    """
    return _fill(tensor, delta_orthogonal_kernel, gain, rng)


def _fill(tensor: Tensor, make: Callable[..., Any], gain: float, rng: Seed) -> Tensor:
    if rng is None:
        rng = int(torch.randint(2**62, ()))
    with torch.no_grad():
        return tensor.copy_(torch.from_numpy(make(tuple(tensor.shape), gain=gain, rng=rng)))
