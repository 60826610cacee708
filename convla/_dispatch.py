"""Choose the kernel that runs an operation: its array-API reference, or a faster one from an engine.

A function decorated with `accelerated` is the reference of its operation and its specification. Faster kernels are
listed in one table keyed (operation, engine) and imported when first used. The type of the arrays says where the data
is; `engine` only chooses among the kernels that take that type, so no call ever moves data between devices. An engine
is one entry of the table `ENGINES`.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import numpy as np

from convla._array import cuda_is_available, describe, is_array, is_numpy
from convla._cuda import cuda_trouble
from convla._lending import lent, takes
from convla._threads import blas_on_one_thread
from convla.errors import EngineError

__all__ = [
    "ENGINES",
    "KERNELS",
    "Accelerated",
    "EngineEntry",
    "accelerated",
    "check_cuda",
    "engine_names",
    "load_kernel",
    "prepared",
    "prepares",
]


class EngineEntry(NamedTuple):
    """What is to be known of an engine.

    Attributes
    ----------
    takes : callable
        Tells whether the engine's kernels take an array.
    wants : str
        The arrays that they take, in words, for the message.
    check : callable
        Raises `EngineError` where the engine cannot run on this machine.
    direct : bool
        Its sums are those of the reference, in some order: their rounding errors are bounded entry by entry.
    fit : callable, optional
        Returns what runs a kernel, whose reference is given too, on arrays like those of a call; else the kernel does.
    """

    takes: Callable[[Any], bool]
    wants: str
    check: Callable[[], None] = lambda: None
    direct: bool = True
    fit: Callable[[Callable[..., Any], Callable[..., Any], list[Any]], Callable[..., Any]] | None = None


def check_cuda() -> None:
    """Raise `EngineError`, which names what is amiss and its remedy, unless there is CuPy and a device for it."""
    if not cuda_is_available():
        raise EngineError(f"engine 'cuda' needs CuPy and a CUDA device: {cuda_trouble() or 'none is available'}")


def _is_float(array: Any) -> bool:
    if type(array) is np.ndarray:  # a dtype's name takes long to make
        return array.dtype.char in "fd"
    return str(array.dtype).rpartition(".")[2] in ("float32", "float64")


ENGINES: dict[str, EngineEntry] = {
    "numba": EngineEntry(lambda a: is_numpy(a) and a.dtype.char in "fd", "NumPy arrays of float32 or float64"),
    "cuda": EngineEntry(
        takes,
        "CuPy arrays, and those of PyTorch and JAX on a CUDA device that no derivative is asked of",
        check_cuda,
        fit=lent,
    ),
    "fft": EngineEntry(_is_float, "arrays of float32 or float64", direct=False),
}
"""The engines by name, in the order in which "auto" prefers them where nothing else is measured."""


def engine_names() -> tuple[str, ...]:
    """Return all that ``engine=`` can be."""
    return ("auto", "direct", "reference", *ENGINES)


KERNELS: dict[tuple[str, str], str] = {
    ("correlate", "numba"): "convla.engines.numba_conv:correlate",
    ("correlate_image_adjoint", "numba"): "convla.engines.numba_conv:correlate_image_adjoint",
    ("correlate_kernel_adjoint", "numba"): "convla.engines.numba_kernel_adjoint:correlate_kernel_adjoint",
    ("correlate", "cuda"): "convla.engines.cupy_convolution:correlate",
    ("correlate", "fft"): "convla.engines.fourier:correlate",
    ("correlate_image_adjoint", "cuda"): "convla.engines.cupy_convolution:correlate_image_adjoint",
    ("correlate_image_adjoint", "fft"): "convla.engines.fourier:correlate_image_adjoint",
    ("correlate_kernel_adjoint", "cuda"): "convla.engines.cupy_convolution:correlate_kernel_adjoint",
    ("correlate_kernel_adjoint", "fft"): "convla.engines.fourier:correlate_kernel_adjoint",
    ("shown_below", "numba"): "convla.engines.numba_factorisation:shown_below",
    ("summed_autocorrelations", "numba"): "convla.engines.numba_similarity:summed_autocorrelations",
    ("summed_autocorrelations", "cuda"): "convla.engines.cupy_filters:summed_autocorrelations",
    ("correlate_lags", "numba"): "convla.engines.numba_similarity:correlate_lags",
    ("correlate_lags", "cuda"): "convla.engines.cupy_filters:correlate_lags",
    ("layer_similarities", "numba"): "convla.engines.numba_similarity:layer_similarities",
    ("layer_similarities", "cuda"): "convla.engines.cupy_filters:layer_similarities",
    ("laplacian_smoothing", "numba"): "convla.engines.numba_gradients:laplacian_smoothing",
    ("laplacian_smoothing", "cuda"): "convla.engines.cupy_gradients:laplacian_smoothing",
    ("reweighted_gradient", "numba"): "convla.engines.numba_gradients:reweighted_gradient",
    ("reweighted_gradient", "cuda"): "convla.engines.cupy_gradients:reweighted_gradient",
    ("sobolev_gradient", "numba"): "convla.engines.numba_gradients:sobolev_gradient",
    ("sobolev_gradient", "cuda"): "convla.engines.cupy_gradients:sobolev_gradient",
}
"""Where each faster kernel lives, as "module:function"; its signature is its reference's, without `engine`. Operations
outside the library add theirs through `accelerated`."""

P = ParamSpec("P")
R = TypeVar("R")


def accelerated(
    operation: str, *, prefer: Callable[..., str] | None = None, kernels: Mapping[str, str] | None = None
) -> Callable[[Callable[P, R]], Accelerated[P, R]]:
    """Make the decorated reference an operation that takes ``engine=``.

    Parameters
    ----------
    operation : str
        The key of the operation in `KERNELS`.
    prefer : callable, optional
        Called with the arguments of a call under ``engine="auto"``; returns the engine measured to be fastest for them,
        or "" for the first of `ENGINES` with a kernel that sums directly and takes the arrays, as without it.
    kernels : mapping, optional
        Entries of `KERNELS` by engine, for an operation that brings its own.
    """
    KERNELS.update({(operation, engine): place for engine, place in (kernels or {}).items()})
    return lambda reference: Accelerated(operation, reference, prefer)


class Accelerated(Generic[P, R]):
    """An operation with one reference and any number of faster kernels."""

    def __init__(self, operation: str, reference: Callable[P, R], prefer: Callable[..., str] | None) -> None:
        functools.update_wrapper(self, reference)
        self.operation = operation
        self.reference = reference
        self.prefer = prefer
        self._held = blas_on_one_thread()(reference)

    def __call__(self, *args: Any, engine: str = "auto", **kwargs: Any) -> R:
        """Run the operation with the kernel that `engine` chooses."""
        return self.resolve(*args, engine=engine, **kwargs)(*args, **kwargs)

    def resolve(self, *args: Any, engine: str = "auto", **kwargs: Any) -> Callable[..., R]:
        """Return the kernel that a call with these arguments would run, for those who call it many times."""
        choice = self.choose(*args, engine=engine, **kwargs)
        if choice == "reference":
            return self._held if all(is_numpy(array) for array in _arrays(args)) else self.reference
        kernel, fit = load_kernel(self.operation, choice), ENGINES[choice].fit
        return kernel if fit is None else fit(kernel, self.reference, _arrays(args))

    def choose(self, *args: Any, engine: str = "auto", **kwargs: Any) -> str:
        """Return the name of the engine that a call with these arguments would use."""
        if engine not in engine_names():
            raise ValueError(f"engine must be one of {', '.join(map(repr, engine_names()))}, got {engine!r}")
        arrays = _arrays(args)
        if engine in ("auto", "direct"):
            return self._automatic(engine, arrays, args, kwargs)
        self._check(engine, arrays)
        return engine

    def _automatic(self, engine: str, arrays: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        wish = os.environ.get("CONVLA_ENGINE", "auto")
        if wish not in engine_names():
            raise ValueError(f"CONVLA_ENGINE must be one of {', '.join(map(repr, engine_names()))}, got {wish!r}")
        usable = [
            name
            for name, entry in ENGINES.items()
            if (entry.direct or "direct" not in (engine, wish))
            and (self.operation, name) in KERNELS
            and all(entry.takes(array) for array in arrays)
        ]
        if wish == "reference" or not usable:
            return "reference"
        if wish in usable:
            return wish
        choice = self.prefer(*args, **kwargs) if self.prefer else ""
        if choice in ("reference", *usable):
            return choice
        return next((name for name in usable if ENGINES[name].direct), "reference")

    def _check(self, engine: str, arrays: list[Any]) -> None:
        if engine == "reference":
            return
        if (self.operation, engine) not in KERNELS:
            raise EngineError(f"{self.operation} has no kernel for engine {engine!r}; use 'auto' or 'reference'")
        entry = ENGINES[engine]
        entry.check()
        for array in arrays:
            if not entry.takes(array):
                raise EngineError(
                    f"engine {engine!r} takes {entry.wants}, got {describe(array)} of dtype {array.dtype}"
                )


def _arrays(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if is_array(value)]


def prepares(prepare: Callable[..., Any]) -> Callable[[R], R]:
    """Say what a kernel takes in the place of its second argument where that stays the same for many calls.

    Parameters
    ----------
    prepare : callable
        Called with that argument and those after it, once; an engine may put its entries in the order that it reads.
    """

    def mark(kernel: R) -> R:
        kernel.prepare = prepare  # type: ignore[attr-defined]
        return kernel

    return mark


def prepared(kernels: Iterable[Callable[..., Any]], argument: Any, *rest: Any) -> list[Any]:
    """Return for each kernel what it takes in the place of an argument; kernels that take the same share it."""
    ways = [getattr(kernel, "prepare", None) for kernel in kernels]
    made = {way: way(argument, *rest) for way in ways if way is not None}
    return [argument if way is None else made[way] for way in ways]


@functools.cache
def load_kernel(operation: str, engine: str) -> Callable[..., Any]:
    """Import and return the kernel of `operation` for `engine`."""
    module, _, name = KERNELS[operation, engine].partition(":")
    kernel: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return kernel
