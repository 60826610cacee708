"""Initialisers in the style of `torch.nn.init`: they fill a weight in place and return it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convla._validate import check_integer, check_rng
from convla.errors import ShapeError
from convla.frameworks.torch._closed_form import check_weight
from convla.initializers import KernelMethod, delta_orthogonal_kernel, orthogonal_kernel
from convla.typing import Seed

__all__ = ["delta_orthogonal_", "orthogonal_"]


def orthogonal_(
    tensor: Tensor, *, gain: float = 1.0, method: KernelMethod = "haar", groups: int = 1, rng: Seed = None
) -> Tensor:
    """Fill a weight with `convla.orthogonal_kernel`, in place.

    Parameters
    ----------
    tensor : tensor of shape (c_out, c_in // groups, *kernel)
        Of any floating-point dtype; the values are rounded to it. Of a transposed convolution pass
        ``weight.transpose(0, 1)``, which is a view.
    gain : float, default 1
    method : {"haar", "svd"}
    groups : int, default 1
        The layer's: the filters of each group are orthonormal on their own, as they read different channels.
    rng : numpy.random.Generator or seed
        By default a seed is drawn from PyTorch's generator, so that ``torch.manual_seed`` decides.

    Returns
    -------
    tensor
        The one passed in.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.orthogonal_kernel`; also if the tensor is of no floating-point dtype, or computed from others.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import orthogonal_
    >>> rows = orthogonal_(torch.empty(4, 2, 3, 3)).flatten(1)
    >>> torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    True
    """
    return _fill(tensor, functools.partial(orthogonal_kernel, method=method, gain=gain), groups, rng)


def delta_orthogonal_(tensor: Tensor, *, gain: float = 1.0, groups: int = 1, rng: Seed = None) -> Tensor:
    """Fill a weight with `convla.delta_orthogonal_kernel`, in place.

    Parameters
    ----------
    tensor : tensor of shape (c_out, c_in // groups, *kernel)
        Of any floating-point dtype; the values are rounded to it.
    gain : float, default 1
    groups : int, default 1
        The layer's: each group gets an orthonormal matrix of channels of its own.
    rng : numpy.random.Generator or seed
        By default a seed is drawn from PyTorch's generator.

    Returns
    -------
    tensor
        The one passed in.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convla.delta_orthogonal_kernel`; also if the tensor is of no floating-point dtype, or computed from others.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import delta_orthogonal_
    >>> int(torch.count_nonzero(delta_orthogonal_(torch.empty(4, 2, 3, 3))))
    8
    """
    return _fill(tensor, functools.partial(delta_orthogonal_kernel, gain=gain), groups, rng)


def _fill(tensor: Tensor, make: Callable[..., Any], groups: int, rng: Seed) -> Tensor:
    check_weight("tensor", tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"tensor must be of a floating-point dtype, got {tensor.dtype}")
    owner = tensor if tensor._base is None else tensor._base
    if owner.grad_fn is not None:
        # Of a parametrization, for one: what is written into it is lost when it is computed again.
        raise ValueError(
            "tensor must be a weight, got one that is computed from others (by a parametrization?): fill those, or "
            "remove it first"
        )
    groups = check_integer("groups", groups, minimum=1)
    shape = tuple(tensor.shape)
    if not shape or shape[0] % groups:
        raise ShapeError(f"groups must divide the number of filters, got {groups} for shape {shape}")
    generator = check_rng(int(torch.randint(2**62, ())) if rng is None else rng)
    kernels = [make((shape[0] // groups, *shape[1:]), rng=generator) for _ in range(groups)]
    with torch.no_grad():
        return tensor.copy_(torch.from_numpy(np.concatenate(kernels)))
