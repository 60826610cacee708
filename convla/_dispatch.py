"""Choose the kernel that runs an operation: its array-API reference, or a faster one from an engine.

A function decorated with `accelerated` is the reference of its operation and its specification. Faster kernels are
listed in one table keyed (operation, engine) and imported when first used. The type of the arrays says where the data
is; `engine` only chooses among the kernels that take that type, so no call ever moves data between devices.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import array_api_compat

from convla._array import cuda_is_available, describe, is_cupy, is_numpy
from convla.errors import EngineError

__all__ = ["ENGINES", "KERNELS", "Accelerated", "accelerated", "check_cuda", "load_kernel"]

ENGINES = ("auto", "reference", "numba", "cuda")

KERNELS: dict[tuple[str, str], str] = {
    ("prepared_kernel", "numba"): "convla.engines.numba_conv:prepared_kernel",
    ("prepared_kernel", "cuda"): "convla.engines.cupy_gpu:prepared_kernel",
    ("correlate", "numba"): "convla.engines.numba_conv:correlate",
    ("correlate_image_adjoint", "numba"): "convla.engines.numba_conv:correlate_image_adjoint",
    ("correlate_kernel_adjoint", "numba"): "convla.engines.numba_kernel_adjoint:correlate_kernel_adjoint",
    ("correlate", "cuda"): "convla.engines.cupy_gpu:correlate",
    ("correlate_image_adjoint", "cuda"): "convla.engines.cupy_gpu:correlate_image_adjoint",
    ("correlate_kernel_adjoint", "cuda"): "convla.engines.cupy_gpu:correlate_kernel_adjoint",
    ("descend_pairs", "numba"): "convla.engines.numba_cpu:descend_pairs",
    ("summed_autocorrelations", "numba"): "convla.engines.numba_similarity:summed_autocorrelations",
    ("summed_autocorrelations", "cuda"): "convla.engines.cupy_similarity:summed_autocorrelations",
    ("correlate_lags", "numba"): "convla.engines.numba_similarity:correlate_lags",
    ("correlate_lags", "cuda"): "convla.engines.cupy_similarity:correlate_lags",
    ("laplacian_smoothing", "numba"): "convla.engines.numba_gradients:laplacian_smoothing",
    ("reweighted_gradient", "numba"): "convla.engines.numba_gradients:reweighted_gradient",
    ("sobolev_gradient", "numba"): "convla.engines.numba_gradients:sobolev_gradient",
}
"""Where each faster kernel lives, as "module:function"; its signature is its reference's, without `engine`."""

P = ParamSpec("P")
R = TypeVar("R")


def accelerated(
    operation: str, *, prefer: Callable[..., str] | None = None
) -> Callable[[Callable[P, R]], Accelerated[P, R]]:
    """Make the decorated reference an operation that takes ``engine=``.

    Parameters
    ----------
    operation : str
        The key of the operation in `KERNELS`.
    prefer : callable, optional
        Called with the arguments of a call under ``engine="auto"``; returns the engine measured to be fastest for them.
        Without it a kernel that takes the arrays is always preferred to the reference.
    """
    return lambda reference: Accelerated(operation, reference, prefer)


class Accelerated(Generic[P, R]):
    """An operation with one reference and any number of faster kernels."""

    def __init__(self, operation: str, reference: Callable[P, R], prefer: Callable[..., str] | None) -> None:
        functools.update_wrapper(self, reference)
        self.operation = operation
        self.reference = reference
        self.prefer = prefer

    def __call__(self, *args: Any, engine: str = "auto", **kwargs: Any) -> R:
        """Run the operation with the kernel that `engine` chooses."""
        return self.resolve(*args, engine=engine, **kwargs)(*args, **kwargs)

    def resolve(self, *args: Any, engine: str = "auto", **kwargs: Any) -> Callable[..., R]:
        """Return the kernel that a call with these arguments would run, for those who call it many times."""
        choice = self.choose(*args, engine=engine, **kwargs)
        return self.reference if choice == "reference" else load_kernel(self.operation, choice)

    def choose(self, *args: Any, engine: str = "auto", **kwargs: Any) -> str:
        """Return the name of the engine that a call with these arguments would use."""
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}")
        arrays = [value for value in args if array_api_compat.is_array_api_obj(value)]
        if engine == "auto":
            return self._automatic(arrays, args, kwargs)
        self._check(engine, arrays)
        return engine

    def _automatic(self, arrays: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        usable = [
            engine
            for engine in ENGINES[2:]
            if (self.operation, engine) in KERNELS and all(_takes(engine, array) for array in arrays)
        ]
        wish = os.environ.get("CONVLA_ENGINE", "auto")
        if wish not in ENGINES:
            raise ValueError(f"CONVLA_ENGINE must be one of {', '.join(map(repr, ENGINES))}, got {wish!r}")
        if wish == "reference" or not usable:
            return "reference"
        if wish in usable:
            return wish
        choice = self.prefer(*args, **kwargs) if self.prefer else usable[0]
        return choice if choice in usable else "reference"

    def _check(self, engine: str, arrays: list[Any]) -> None:
        if engine == "reference":
            return
        if (self.operation, engine) not in KERNELS:
            raise EngineError(f"{self.operation} has no kernel for engine {engine!r}; use 'auto' or 'reference'")
        if engine == "cuda":
            check_cuda()
        for array in arrays:
            if not _takes(engine, array):
                wanted = {"numba": "NumPy arrays of float32 or float64", "cuda": "CuPy arrays"}[engine]
                raise EngineError(f"engine {engine!r} takes {wanted}, got {describe(array)} of dtype {array.dtype}")


def check_cuda() -> None:
    """Raise `EngineError` unless there is CuPy and a device for it."""
    if not cuda_is_available():
        raise EngineError("engine 'cuda' needs CuPy (extras cuda12, cuda13) and a CUDA device; none is available")


def _takes(engine: str, array: Any) -> bool:
    if engine == "numba":
        return is_numpy(array) and array.dtype.char in "fd"
    return is_cupy(array)


@functools.cache
def load_kernel(operation: str, engine: str) -> Callable[..., Any]:
    """Import and return the kernel of `operation` for `engine`."""
    module, _, name = KERNELS[operation, engine].partition(":")
    kernel: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return kernel
