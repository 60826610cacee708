"""Singular values of a layer that can be differentiated: the functions of `convla` by their names, on tensors.

Each takes the operator of a tensor, whose graph it joins: ``largest_singular_value(ConvOperator(weight, (32, 32)))``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from convla import spectra
from convla._array import describe
from convla.frameworks.torch._closed_form import check_weight, closed_form
from convla.linear_map import LinearMap
from convla.penalties import value as penalties
from convla.spectra import gradients
from convla.spectra.border import convolution_of

__all__ = ["condition_number", "largest_singular_value", "penalty", "singular_values", "smallest_singular_value"]

Tensor = Any


def largest_singular_value(operator: LinearMap, **options: Any) -> Tensor:
    """Return the largest singular value of a convolution, differentiable once in its kernel.

    Parameters
    ----------
    operator : ConvOperator or its transpose
        Of a tensor of float32 or float64.
    **options
        Of `convla.largest_singular_value_and_gradient`: ``cluster_rtol``, ``rtol``, ``start``, ``max_matvecs``,
        ``rng``.

    Returns
    -------
    tensor of shape ()
        Of the kernel's dtype. Where several singular values are equal, or very nearly, the gradient is an average over
        them: a subgradient.

    Raises
    ------
    TypeError, ValueError
        As `convla.largest_singular_value_and_gradient`.
    RuntimeError
        If a second derivative is asked for.

    Examples
    --------
    >>> import torch
    >>> from convla import ConvOperator
    >>> from convla.frameworks.torch import largest_singular_value
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 2.0]])[:, :, None].requires_grad_()
    >>> largest_singular_value(ConvOperator(weight, (5,))).log().backward()
    >>> weight.grad[:, :, 0].round(decimals=4).abs().tolist()
    [[0.33329999446868896, 0.0], [0.0, 0.0]]
    """
    return _differentiable(
        operator, gradients.largest_singular_value_and_gradient, spectra.largest_singular_value, options
    )


def smallest_singular_value(operator: LinearMap, **options: Any) -> Tensor:
    """Return the smallest singular value of a convolution, the last of min(m, n), differentiable once in its kernel.

    Parameters
    ----------
    operator : ConvOperator or its transpose
        Of a tensor of float32 or float64.
    **options
        Of `convla.smallest_singular_value_and_gradient`.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ValueError
        As `convla.smallest_singular_value_and_gradient`: also where the value cannot be told from 0 and a gradient is
        asked for.
    RuntimeError
        If a second derivative is asked for.

    Examples
    --------
    >>> import torch
    >>> from convla import ConvOperator
    >>> from convla.frameworks.torch import smallest_singular_value
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 2.0]])[:, :, None].requires_grad_()
    >>> smallest_singular_value(ConvOperator(weight, (5,))).backward()
    >>> weight.grad[:, :, 0].round(decimals=4).abs().tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    return _differentiable(
        operator, gradients.smallest_singular_value_and_gradient, spectra.smallest_singular_value, options
    )


def condition_number(operator: LinearMap, **options: Any) -> Tensor:
    """Return the condition number of a convolution, differentiable once in its kernel.

    Parameters
    ----------
    operator : ConvOperator or its transpose
        Of a tensor of float32 or float64.
    **options
        Of `convla.condition_number_and_gradient`.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `smallest_singular_value`.

    Examples
    --------
    >>> import torch
    >>> from convla import ConvOperator
    >>> from convla.frameworks.torch import condition_number
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 2.0]])[:, :, None].requires_grad_()
    >>> round(condition_number(ConvOperator(weight, (5,))).item(), 4)
    1.5
    """
    return _differentiable(operator, gradients.condition_number_and_gradient, spectra.condition_number, options)


def singular_values(operator: LinearMap, k: int, **options: Any) -> Tensor:
    """Return the k largest singular values of a convolution, differentiable once in its kernel.

    Parameters
    ----------
    operator : ConvOperator or its transpose
        Of a tensor of float32 or float64.
    k : int
    **options
        Of `convla.singular_values_and_gradients`.

    Returns
    -------
    tensor of shape (k,)

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `largest_singular_value`.

    Examples
    --------
    >>> import torch
    >>> from convla import ConvOperator
    >>> from convla.frameworks.torch import singular_values
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 2.0]])[:, :, None].requires_grad_()
    >>> singular_values(ConvOperator(weight, (1,)), 2).sum().backward()
    >>> weight.grad[:, :, 0].round(decimals=4).abs().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return _differentiable(
        operator, gradients.singular_values_and_gradients, spectra.singular_values, {"k": k, **options}
    )


def penalty(
    operator: LinearMap, alpha: float, *, gram: Literal["input", "smaller"] = "input", cluster_rtol: float | None = None
) -> Tensor:
    """Return `convla.penalty`, sigma_max(M^T M - alpha I), differentiable once in its kernel by `penalty_gradient`.

    It finds the singular values anew in each call; `SpectralPenalty` follows them.

    Parameters
    ----------
    operator : ConvOperator
        Of a tensor of float32 or float64.
    alpha, gram, cluster_rtol
        As in `convla.penalty_gradient`.

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `convla.penalty_gradient`.
    RuntimeError
        If a second derivative is asked for.

    Examples
    --------
    >>> import torch
    >>> from convla import ConvOperator
    >>> from convla.frameworks.torch import penalty
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 2.0]])[:, :, None].requires_grad_()
    >>> penalty(ConvOperator(weight, (1,)), 1.0).backward()
    >>> weight.grad[:, :, 0].round(decimals=4).tolist()
    [[6.0, 0.0], [0.0, 0.0]]
    """

    def value(found: LinearMap) -> Tensor:
        return penalties.penalty(found, alpha, gram=gram)

    def both(found: LinearMap) -> tuple[Tensor, Tensor]:
        slope = penalties.penalty_gradient(found, alpha, gram=gram, cluster_rtol=cluster_rtol)
        return value(found), slope

    return _joined(operator, value, both)


def _differentiable(
    operator: LinearMap, both: Callable[..., Any], value: Callable[..., Any], options: dict[str, Any]
) -> Tensor:
    plain = {key: options[key] for key in options if key != "cluster_rtol"}

    def found(given: LinearMap) -> Any:
        result = value(given, **plain)
        return result.values if "k" in options else float(result)

    def pair(given: LinearMap) -> tuple[Any, Tensor]:
        result = both(given, **options)
        return result.value, result.gradient

    return _joined(operator, found, pair)


def _joined(
    operator: LinearMap, value: Callable[[LinearMap], Any], both: Callable[[LinearMap], tuple[Any, Tensor]]
) -> Tensor:
    """Return a function of an operator as one of its kernel, which autograd follows."""
    convolution, transposed = convolution_of(operator)
    check_weight("the operator's kernel", convolution.kernel)
    if not convolution.kernel.is_floating_point():
        raise TypeError(f"the operator's kernel must be of float32 or float64, got {describe(convolution.kernel)}")

    def anew(kernel: Tensor) -> LinearMap:
        same = convolution.with_kernel(kernel)
        return same.T if transposed else same

    def alone(kernel: Tensor) -> Tensor:
        return torch.as_tensor(value(anew(kernel)), dtype=kernel.dtype, device=kernel.device)

    def together(kernel: Tensor) -> tuple[Tensor, Tensor]:
        found, gradient = both(anew(kernel))
        return torch.as_tensor(found, dtype=kernel.dtype, device=kernel.device), gradient

    return closed_form(convolution.kernel, alone, together)
