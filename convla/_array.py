"""All that convla knows about array libraries.

Every numerical function is written against the Python array API standard; this module finds the namespace of its
arguments and answers the few questions the standard leaves open. Nothing here imports an array library other than
NumPy: a library can only be met through an array the caller already made with it.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import math
import os
from typing import Any, TypeGuard, cast

import array_api_compat
import numpy as np

from convla.typing import Array, ArrayLike, Namespace

__all__ = [
    "accumulation_dtype",
    "all_finite",
    "as_array",
    "as_float_array",
    "available_memory",
    "copy_of",
    "cuda_is_available",
    "describe",
    "device_of",
    "is_array",
    "is_cupy",
    "is_exact",
    "is_followed",
    "is_numpy",
    "is_on_gpu",
    "is_traced",
    "namespace",
    "on_device_of",
    "row_dots",
    "sparse_library",
    "to_numbers",
    "to_numpy",
]

_UNSHARED = 8192
"""Entries of a dot product that no BLAS shares among threads; OpenBLAS does from 10,000."""


def namespace(*values: ArrayLike) -> Namespace:
    """Return the one array-API namespace of `values`; NumPy's where no value is an array.

    Raises
    ------
    TypeError
        If the values belong to more than one array library, or are JAX arrays without JAX's 64-bit numbers, or of
        float32 where JAX rounds what it multiplies.
    """
    for value in values:  # nearly every call is of NumPy's arrays, and asking costs microseconds
        if type(value) is not np.ndarray:
            break
    else:
        return _namespace_of_numpy()
    arrays = [value for value in values if is_array(value)]
    if all(type(array) is np.ndarray for array in arrays):
        return _namespace_of_numpy()
    libraries = {_library(array) for array in arrays}
    if len(libraries) > 1:
        kinds = ", ".join(sorted({describe(array) for array in arrays}))
        raise TypeError(f"all arrays of a call must come from one library, got {kinds}")
    if libraries == {"jax"}:
        _check_jax(arrays)
    return cast(Namespace, array_api_compat.array_namespace(*arrays))  # it says no more than that it is a module


def _check_jax(arrays: list[Array]) -> None:
    config = importlib.import_module("jax").config
    if not config.jax_enable_x64:
        # JAX gives float32 and int32 where 64 bits are asked for: sums would be less accurate than promised, or wrap.
        raise TypeError("JAX arrays need jax.config.update('jax_enable_x64', True): sums are kept in 64-bit numbers")
    if config.jax_default_matmul_precision in ("highest", "float32"):
        return
    if any(array.dtype == np.float32 and _platform_of(array) != "cpu" for array in arrays):
        raise TypeError(
            "JAX arrays of float32 that are not on a CPU need jax.config.update('jax_default_matmul_precision', "
            "'highest'): by default JAX rounds the factors of products to 10 bits or fewer there"
        )


def _platform_of(array: Any) -> str:
    """Return what kind of device holds an array of JAX, or will do so by default where it is traced."""
    jax = importlib.import_module("jax")
    return str(jax.default_backend() if is_traced(array) else next(iter(array.devices())).platform)


@functools.cache
def _namespace_of_numpy() -> Namespace:
    # This imports all of NumPy: not before it is needed.
    return cast(Namespace, array_api_compat.array_namespace(np.empty(0)))


def _library(array: Array) -> str:
    # JAX's arrays come from jaxlib, those that it traces from jax.
    return "jax" if array_api_compat.is_jax_array(array) else type(array).__module__.partition(".")[0]


def is_array(value: object) -> TypeGuard[Array]:
    """Tell whether `value` is an array of a library that follows the standard."""
    return bool(array_api_compat.is_array_api_obj(value))


def as_array(value: ArrayLike, xp: Namespace) -> Array:
    """Return `value` as an array of `xp`, without a copy where it is one."""
    return value if is_array(value) else xp.asarray(value)


def is_traced(array: Array) -> bool:
    """Tell whether `array` stands for values that are not there yet: an argument of a function that JAX traces."""
    return bool(array_api_compat.is_jax_array(array)) and isinstance(array, importlib.import_module("jax.core").Tracer)


def is_followed(array: Array) -> bool:
    """Tell whether a framework follows what is done with `array`, to differentiate it."""
    if array_api_compat.is_torch_array(array):
        return bool(array.requires_grad) and bool(importlib.import_module("torch").is_grad_enabled())
    return is_traced(array)


def copy_of(array: Array, xp: Namespace) -> Array:
    """Return a copy of `array` in memory of its own."""
    if array_api_compat.is_torch_array(array):
        clone: Array = array.clone()  # asarray warns of what it does to tensors that autograd follows
        return clone
    return xp.asarray(array, copy=True)


def as_float_array(value: ArrayLike, xp: Namespace) -> Array:
    """Return `value` as a real floating-point array of `xp`: float32 and float64 stay, integers become float64."""
    array = as_array(value, xp)
    if is_exact(array):
        return array if array.dtype == object else xp.astype(array, xp.float64)
    return array


def is_exact(array: Array) -> bool:
    """Tell whether arithmetic on `array` is exact: integers, or NumPy object arrays of exact numbers."""
    if is_numpy(array) and array.dtype == object:
        return True
    return bool(namespace(array).isdtype(array.dtype, "integral"))


def accumulation_dtype(array: Array, xp: Namespace) -> Any:
    """Return the dtype that sums over `array` are kept in: float64 for float32, else the array's own."""
    return xp.float64 if array.dtype == xp.float32 else array.dtype


def all_finite(array: Array) -> bool:
    """Tell whether `array` holds no NaN and no infinity; exact arrays never do, and of traced ones nobody knows.

    One reduction without a temporary settles the usual case; only a non-finite result (which may be an overflow) needs
    the element-wise pass. For NumPy's sake that is a BLAS dot product, as quick as reading the array, in stretches that
    the BLAS does not share among threads: waking them takes longer, and a whole time slice on a busy machine.
    """
    if type(array) is np.ndarray:
        if array.dtype.kind != "f":
            return True
        flat = array.ravel(order="K")
        # Unlike dot, vdot does not warn of an overflow. The other is in a context of its own: what an `errstate` sets
        # would stay where Ctrl-C comes as it begins or ends.
        small = flat.size <= _UNSHARED
        square = np.vdot(flat, flat) if small else contextvars.copy_context().run(_square, flat)
        return math.isfinite(square) or bool(np.isfinite(flat).all())
    if is_exact(array) or is_traced(array):
        return True
    if array_api_compat.is_torch_array(array):
        array = array.detach()  # a number read from a tensor that autograd follows brings a warning
    xp = namespace(array)
    return math.isfinite(float(xp.sum(array))) or bool(xp.all(xp.isfinite(array)))


@np.errstate(over="ignore", invalid="ignore")
def _square(flat: np.ndarray) -> float:
    return float(row_dots(flat, flat, namespace(flat)))


def row_dots(a: Array, b: Array, xp: Namespace) -> Array:
    """Return the dot products of the last axes of two arrays of one shape: in NumPy by the BLAS, on one thread."""
    if type(a) is not np.ndarray or type(b) is not np.ndarray:
        return xp.sum(a * b, axis=-1)
    whole = a.shape[-1] // _UNSHARED * _UNSHARED
    if not whole:
        dots: Array = np.vecdot(a, b)
        return dots
    stretches = (*a.shape[:-1], -1, _UNSHARED)
    heads = np.vecdot(a[..., :whole].reshape(stretches), b[..., :whole].reshape(stretches))
    summed: Array = np.sum(heads, axis=-1) + np.vecdot(a[..., whole:], b[..., whole:])
    return summed


def is_numpy(array: object) -> TypeGuard[np.ndarray[Any, Any]]:
    """Tell whether `array` is a NumPy array."""
    return bool(array_api_compat.is_numpy_array(array))


def is_cupy(array: object) -> TypeGuard[Any]:
    """Tell whether `array` is a CuPy array."""
    return bool(array_api_compat.is_cupy_array(array))


def is_on_gpu(array: Array) -> bool:
    """Tell whether `array` is CuPy's, or PyTorch's or JAX's and wholly on one CUDA device."""
    if type(array) is np.ndarray:
        return False
    if is_cupy(array):
        return True
    if array_api_compat.is_torch_array(array):
        # PyTorch for AMD's devices calls them by the same name.
        return array.device.type == "cuda" and importlib.import_module("torch").version.cuda is not None
    if array_api_compat.is_jax_array(array) and not is_traced(array):
        devices = array.devices()
        return len(devices) == 1 and next(iter(devices)).platform in ("gpu", "cuda")
    return False


def device_of(array: Array) -> Any:
    """Return the device that holds `array`; None, for the default one, where it is traced and on none yet."""
    if type(array) is np.ndarray:
        return "cpu"
    return None if is_traced(array) else array_api_compat.device(array)


def on_device_of(values: ArrayLike, like: Array, xp: Namespace, *, dtype: Any = None) -> Array:
    """Return host `values` (index tables, coefficients) as an array of `xp` on the device of `like`."""
    if type(like) is np.ndarray:
        return np.asarray(values, dtype=dtype)
    if isinstance(values, np.ndarray) and any(stride < 0 for stride in values.strides):
        values = values.copy()  # PyTorch takes no array that is read backwards
    return xp.asarray(values, dtype=dtype, device=device_of(like))


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Copy `array` to host memory, for reports and plots; never called on the way of a computation."""
    if is_cupy(array):
        return np.asarray(array.get())
    if array_api_compat.is_torch_array(array):
        return np.asarray(array.detach().cpu())
    return np.asarray(array)


def to_numbers(array: Array) -> list[float]:
    """Return the few entries of a real array, in row-major order, as Python's numbers: what decisions are made on."""
    flat = array.reshape(-1) if type(array) is np.ndarray else namespace(array).reshape(array, (-1,))
    listed: Any = getattr(flat, "tolist", None)
    return list(map(float, listed() if listed is not None else (flat[i] for i in range(flat.shape[0]))))


def describe(value: object) -> str:
    """Name the type of `value` as a reader would: 'numpy.ndarray', 'torch.Tensor', 'str'."""
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    return kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"


def available_memory(array: Array) -> int | None:
    """Return the free bytes of the memory that holds `array`; None where the system does not say."""
    if is_cupy(array):
        return int(importlib.import_module("cupy").cuda.runtime.memGetInfo()[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not POSIX, or a system without this figure
        return None


def sparse_library(array: Array) -> Any:
    """Return `scipy.sparse` for NumPy arrays and `cupyx.scipy.sparse` for CuPy's, each with its `linalg`.

    Raises
    ------
    TypeError
        If no sparse matrices are known for the library of `array`.
    """
    if not is_numpy(array) and not is_cupy(array):
        raise TypeError(f"sparse matrices and LinearOperators take NumPy or CuPy arrays, got {describe(array)}")
    name = "scipy.sparse" if is_numpy(array) else "cupyx.scipy.sparse"
    importlib.import_module(f"{name}.linalg")
    return importlib.import_module(name)


def cuda_is_available() -> bool:
    """Tell whether CuPy is installed and finds a device, importing it on the first call only."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    try:
        import cupy
    except ImportError:
        return False
    # With no driver the import succeeds and later calls raise; this one answers.
    return bool(cupy.is_available())
