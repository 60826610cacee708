"""Tensors of PyTorch and arrays of JAX on a CUDA device, lent to CuPy's kernels without a copy, and the results back.

Both go through DLPack. A kernel runs on the stream that PyTorch is on, so that it comes after what was asked for before
it and ahead of what follows, and PyTorch's memory is not handed out again while a kernel reads it. JAX's streams are
its own: the protocol makes CuPy's wait for its arrays, and the memory of an array that is dropped can be handed out at
once, so the end of the kernel is waited for before its arguments are let go.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import array_api_compat

from convla._array import cuda_is_available, is_array, is_cupy, is_followed, is_on_gpu
from convla.typing import Array

__all__ = ["lent", "takes"]

P = ParamSpec("P")
R = TypeVar("R")


def takes(array: Array) -> bool:
    """Tell whether CuPy's kernels take an array: CuPy's own, or one that may be lent to them."""
    return is_on_gpu(array) and (is_cupy(array) or (not _is_followed(array) and cuda_is_available()))


def _is_followed(array: Array) -> bool:
    """Tell whether a framework follows what is done with an array, forward derivatives and compilation included."""
    if is_followed(array):
        return True
    if not array_api_compat.is_torch_array(array):
        return False
    torch = importlib.import_module("torch")
    return bool(
        torch.autograd.forward_ad._current_level >= 0
        or torch._C._functorch.maybe_current_level() is not None
        or torch.compiler.is_compiling()
    )


def lent(kernel: Callable[P, R], reference: Callable[P, R], arrays: Sequence[Array]) -> Callable[P, R]:
    """Return what runs a kernel of CuPy's arrays on arrays of this library.

    Parameters
    ----------
    kernel, reference : callable
        Of the same arguments.
    arrays : sequence of array
        Those of a call.

    Returns
    -------
    callable
        The kernel, where the arrays are CuPy's. Else one that takes and returns arrays of their library, and runs the
        reference where the framework follows an argument: a kernel of CuPy's has no derivative.
    """
    if all(is_cupy(array) for array in arrays):
        return kernel

    @functools.wraps(kernel, updated=())  # without what prepares its arguments, which are another library's here
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [value for value in args if is_array(value)]
        if any(_is_followed(value) for value in given):
            return reference(*args, **kwargs)
        with _on_the_stream_of(given[0]):
            borrowed = (_borrowed(value) if is_array(value) else value for value in args)
            result = kernel(*borrowed, **kwargs)  # type: ignore[arg-type]
            return _returned(result, given[0])  # type: ignore[no-any-return]

    return run


@contextlib.contextmanager
def _on_the_stream_of(array: Any) -> Iterator[None]:
    cuda = importlib.import_module("cupy").cuda
    device = array.__dlpack_device__()[1]
    with cuda.Device(device):
        if array_api_compat.is_torch_array(array):
            with _as_cupys(importlib.import_module("torch").cuda.current_stream(array.device), cuda):
                yield
        else:
            try:
                yield
            finally:
                cuda.get_current_stream().synchronize()


def _as_cupys(stream: Any, cuda: Any) -> Any:
    """Return a stream of PyTorch as one of CuPy: from CuPy 14 on by a protocol, where PyTorch has it too."""
    if hasattr(cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cuda.Stream.from_external(stream)
    return cuda.ExternalStream(stream.cuda_stream)


def _borrowed(array: Array) -> Any:
    own = array.detach() if array_api_compat.is_torch_array(array) else array
    return importlib.import_module("cupy").from_dlpack(own)


def _returned(result: Any, like: Array) -> Any:
    """Return CuPy's arrays, in tuples or lists too, as arrays of the library of `like`."""
    if isinstance(result, (tuple, list)):
        parts = (_returned(part, like) for part in result)
        return type(result)(parts)
    if not is_cupy(result):
        return result
    if array_api_compat.is_torch_array(like):
        return importlib.import_module("torch").from_dlpack(result)
    # JAX takes no array whose axes are in another order in memory.
    return importlib.import_module("jax.dlpack").from_dlpack(importlib.import_module("cupy").ascontiguousarray(result))
