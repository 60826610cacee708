"""Singular values of a layer that can be differentiated: the functions of `convla` by their names, on tensors.

Each takes a map of tensors, whose graph it joins: ``largest_singular_value(ConvOperator(weight, (32, 32)))``. Simple
singular values of one convolution, and what is made of them, can be differentiated twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from convla import spectra
from convla._array import is_followed
from convla.frameworks.torch._closed_form import Known, check_weight, closed_form
from convla.linear_map import LinearMap, check_linear_map
from convla.penalties import value as penalties
from convla.spectra import gradients
from convla.spectra.curvature import hessian_product
from convla.spectra.gradients import SpectralGradient
from convla.spectra.result import SingularValues

__all__ = ["condition_number", "largest_singular_value", "penalty", "singular_values", "smallest_singular_value"]


def largest_singular_value(operator: LinearMap, **options: Any) -> Tensor:
    """Return the largest singular value of a map, differentiable in its kernels.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map with `kernels`: tensors of float32 or float64.
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
        If a second derivative is asked for where the value is not simple, or the map is made of several convolutions;
        or a third one.

    Notes
    -----
    A second derivative finds the vectors once more and solves a linear system for each value; see
    `convla.spectra.curvature`.

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
        operator,
        spectra.largest_singular_value,
        gradients.largest_singular_value_and_gradient,
        functools.partial(spectra.singular_values, k=1),
        options,
    )


def smallest_singular_value(operator: LinearMap, **options: Any) -> Tensor:
    """Return the smallest singular value of a map, the last of min(m, n), differentiable in its kernels.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map with `kernels`: tensors of float32 or float64.
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
        As `largest_singular_value`.

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
        operator,
        spectra.smallest_singular_value,
        gradients.smallest_singular_value_and_gradient,
        spectra.smallest_singular_value,
        options,
    )


def condition_number(operator: LinearMap, **options: Any) -> Tensor:
    """Return the condition number of a map, differentiable in its kernels.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map with `kernels`: tensors of float32 or float64.
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
    if any(is_followed(kernel) for kernel in _kernels(operator)):
        return largest_singular_value(operator, **options) / smallest_singular_value(operator, **options)
    plain = {key: options[key] for key in options if key != "cluster_rtol"}
    return _joined(operator, lambda given: spectra.condition_number(given, **plain).value, lambda _: ())


def singular_values(operator: LinearMap, k: int, **options: Any) -> Tensor:
    """Return the k largest singular values of a map, differentiable in its kernels.

    Parameters
    ----------
    operator : LinearMap
        A `ConvOperator`, its transpose, or any other map with `kernels`: tensors of float32 or float64.
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
        operator,
        spectra.singular_values,
        gradients.singular_values_and_gradients,
        spectra.singular_values,
        {"k": k, **options},
    )


def penalty(
    operator: LinearMap, alpha: float, *, gram: Literal["input", "smaller"] = "input", cluster_rtol: float | None = None
) -> Tensor:
    """Return `convla.penalty`, sigma_max(M^T M - alpha I), differentiable once in its kernels by `penalty_gradient`.

    It finds the singular values anew in each call; `SpectralPenalty` follows them.

    Parameters
    ----------
    operator : LinearMap
        With `kernels`: tensors of float32 or float64.
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

    def both(found: LinearMap) -> tuple[Any, ...]:
        slope = penalties.penalty_gradient(found, alpha, gram=gram, cluster_rtol=cluster_rtol)
        return value(found), slope

    return _joined(operator, value, both)


def _differentiable(
    operator: LinearMap,
    value: Callable[..., SingularValues],
    both: Callable[..., SpectralGradient],
    triplets: Callable[..., SingularValues],
    options: dict[str, Any],
) -> Tensor:
    """Return singular values of a map, by functions that find values, their gradients, and their vectors."""
    plain = {key: options[key] for key in options if key != "cluster_rtol"}

    def alone(given: LinearMap) -> Any:
        result = value(given, **plain)
        return result.values if "k" in options else result.value

    def together(given: LinearMap) -> tuple[Any, ...]:
        result = both(given, **options)
        change = functools.partial(_change, given, result.multiplicity, lambda: triplets(given, **plain))
        return result.value, result.gradient, change

    return _joined(operator, alone, together)


def _change(
    operator: LinearMap, multiplicity: Any, triplets: Callable[[], SingularValues], *directions: Tensor
) -> tuple[Tensor, ...]:
    """Return the products of the Hessians of simple singular values with directions, added up."""
    counts = multiplicity if isinstance(multiplicity, tuple) else (multiplicity,)
    if max(counts) > 1:
        raise RuntimeError(
            f"second derivatives need simple singular values, got a cluster of {max(counts)}: its vectors are not "
            "determined"
        )
    if len(directions) > 1:
        raise RuntimeError("second derivatives are those of one convolution, got a map of several")
    found = triplets()
    (direction,) = directions
    stacked = direction if isinstance(multiplicity, tuple) else direction[None]
    products = [hessian_product(operator, found, place, each) for place, each in enumerate(stacked)]
    return (torch.stack(products).sum(0),)


def _joined(
    operator: LinearMap, value: Callable[[LinearMap], Any], known: Callable[[LinearMap], tuple[Any, ...]]
) -> Tensor:
    """Return a function of a map as one of its kernels, which autograd follows."""
    kernels = _kernels(operator)
    kind = {"dtype": kernels[0].dtype, "device": kernels[0].device}

    def alone(*detached: Tensor) -> Tensor:
        return torch.as_tensor(value(operator.with_kernels(detached)), **kind)

    def together(*detached: Tensor) -> Known:
        found, slopes, *change = known(operator.with_kernels(detached))
        return Known(torch.as_tensor(found, **kind), slopes if isinstance(slopes, tuple) else (slopes,), *change)

    return closed_form(kernels, alone, together)


def _kernels(operator: LinearMap) -> tuple[Tensor, ...]:
    """Return the kernels of a map, which are tensors of floats."""
    check_linear_map(operator)
    if not operator.kernels:
        raise TypeError(f"operator must be made of convolutions to have a gradient, got a {type(operator).__name__}")
    kernels: tuple[Tensor, ...] = operator.kernels
    for kernel in kernels:
        check_weight("the operator's kernel", kernel)
        if not kernel.is_floating_point():
            raise TypeError(f"the operator's kernel must be of float32 or float64, got {kernel.dtype}")
    return kernels
