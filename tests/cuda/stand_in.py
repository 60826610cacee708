"""An array library that behaves as CuPy does and computes with NumPy: for tests without a device.

Its arrays are no NumPy arrays: they refuse to be mixed with them or to become one unasked, and a device other than the
current one is refused, as in CuPy. `RawKernel` runs the source of a kernel on the CPU, by `tests.cuda.emulator`. What a
program would wait for, a number read on the host, is counted in `COUNTS`, and so are the launches of kernels.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.cuda.emulator import Launcher

__all__ = ["COUNTS", "Stream", "installed", "ndarray"]

COUNTS: Counter[str] = Counter()

MEMORY = 2**33
"""The bytes that a device is said to have."""


class Device:
    """A device, current inside of its context."""

    current = 0

    def __init__(self, device: Any = None) -> None:
        self.id = Device.current if device is None else int(getattr(device, "id", device))
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(Device.current)
        Device.current = self.id
        return self

    def __exit__(self, *_: object) -> None:
        Device.current = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> None:
        Device.current = self.id

    def synchronize(self) -> None:
        COUNTS["waits"] += 1


class Stream:
    """A stream of the device, current inside of its context; launches are noted with the one that they are on."""

    current = 0
    launched: list[int] = []  # noqa: RUF012 - one list, emptied with `COUNTS`

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr
        self._before: list[int] = []

    @classmethod
    def from_external(cls, stream: Any) -> Stream:
        version, ptr = stream.__cuda_stream__()
        assert version == 0
        return cls(ptr)

    def __enter__(self) -> Stream:
        self._before.append(Stream.current)
        Stream.current = self.ptr
        return self

    def __exit__(self, *_: object) -> None:
        Stream.current = self._before.pop()

    def synchronize(self) -> None:
        COUNTS["streams waited for"] += 1


class ndarray:  # noqa: N801 - the name that CuPy gives it
    """An array on a device."""

    __module__ = "cupy"
    __array_ufunc__ = None  # NumPy's scalars leave their operators to it

    def __init__(self, values: Any) -> None:
        self.values = values
        self.device = Device()

    def __array__(self, *_: object, **__: object) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()

    def get(self) -> Any:
        COUNTS["waits"] += 1
        return self.values.copy()

    def tolist(self) -> Any:
        COUNTS["waits"] += 1
        return self.values.tolist()

    def item(self) -> Any:
        COUNTS["waits"] += 1
        return self.values.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        return wrap(self.values[_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.values[_key(key)] = unwrap(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.values, name)
        if isinstance(found, np.ndarray):
            return wrap(found)
        return wrapped(found) if callable(found) else found

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise NotImplementedError("no pointer of a device")

    def __repr__(self) -> str:
        return repr(self.values)


def _binary(name: str) -> Callable[[ndarray, Any], Any]:
    def apply(self: ndarray, other: Any) -> Any:
        return wrap(getattr(operator, name)(unwrap(self), unwrap(other)))

    return apply


def _reflected(name: str) -> Callable[[ndarray, Any], Any]:
    def apply(self: ndarray, other: Any) -> Any:
        return wrap(getattr(operator, name)(unwrap(other), unwrap(self)))

    return apply


def _in_place(name: str) -> Callable[[ndarray, Any], Any]:
    def apply(self: ndarray, other: Any) -> Any:
        self.values = getattr(operator, name)(unwrap(self), unwrap(other))
        return self

    return apply


def _unary(name: str) -> Callable[[ndarray], Any]:
    return lambda self: wrap(getattr(operator, name)(unwrap(self)))


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
):
    _bare = _name.rstrip("_")
    setattr(ndarray, f"__{_bare}__", _binary(_name))
    setattr(ndarray, f"__r{_bare}__", _reflected(_name))
    setattr(ndarray, f"__i{_bare}__", _in_place("i" + _bare if _bare != _name else f"i{_name}"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _binary(_name))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _unary(_name))
ndarray.__hash__ = None  # type: ignore[assignment]


def _key(key: Any) -> Any:
    """Return an index; CuPy takes NumPy's integer arrays for one."""
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    return key.values if isinstance(key, ndarray) else key


def wrap(value: Any) -> Any:
    """Return what NumPy gave as arrays of the device; a scalar as one of no axes."""
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple):
        parts = [wrap(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [wrap(part) for part in value] if isinstance(value, list) else value


def unwrap(value: Any) -> Any:
    """Return the NumPy arrays behind arrays of the current device."""
    if isinstance(value, ndarray):
        if value.device.id != Device.current:
            raise ValueError(f"an array of device {value.device.id}, and the current device is {Device.current}")
        return value.values
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        parts = [unwrap(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {name: unwrap(part) for name, part in value.items()}
    return value


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of NumPy's as one of the device's arrays."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            raise TypeError(f"{call.__name__}() got an unexpected keyword argument 'device'")
        return wrap(function(*unwrap(args), **unwrap(kwargs)))

    call.__name__ = getattr(function, "__name__", "call")
    return call


class RawKernel:
    """A kernel from its source."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), **_: Any) -> None:
        self.name = name
        self._given = code, name, options

    @functools.cached_property
    def _launcher(self) -> Launcher:
        return Launcher(*self._given)

    def compile(self, log_stream: Any = None) -> None:  # noqa: ARG002 - the library's signature
        """Build the source now, and not at the first launch."""
        self._launcher  # noqa: B018

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], **_: Any) -> None:
        assert len(grid) == 1, "grids have one axis"
        for value in args:
            # CuPy takes Python's numbers too, as of 64 bits, whatever the source says: a mistake waiting to happen.
            assert isinstance(value, (ndarray, np.generic)), f"{self.name}: {value!r} has no dtype"
        COUNTS["launches"] += 1
        Stream.launched.append(Stream.current)
        COUNTS[self.name] += 1
        self._launcher(grid[0], block, unwrap(args))


class Event:
    """A moment in a stream."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.time = 0.0

    def record(self, *_: Any) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        COUNTS["waits"] += 1


def _asarray(value: Any, dtype: Any = None, **_: Any) -> ndarray:
    given = value.values if isinstance(value, ndarray) else value
    array = np.asarray(unwrap(given) if isinstance(given, (list, tuple)) else given, dtype=dtype)
    if isinstance(value, ndarray) and array is given:
        return value
    return ndarray(array.copy())


def _array(value: Any, dtype: Any = None, copy: bool = True, **_: Any) -> ndarray:
    array = _asarray(value, dtype)
    return ndarray(array.values.copy()) if copy and array is value else array


def _functions(source: Any, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    for key in dir(source):
        value = getattr(source, key)
        if key.startswith("_") or isinstance(value, types.ModuleType):
            continue
        is_function = callable(value) and not isinstance(value, type)
        setattr(module, key, wrapped(value) if is_function else value)
    return module


def _build() -> dict[str, types.ModuleType]:
    """Return the modules of the library by name."""
    cupy = _functions(np, "cupy")
    fft, linalg = _functions(np.fft, "cupy.fft"), _functions(np.linalg, "cupy.linalg")
    cuda, device = types.ModuleType("cupy.cuda"), types.ModuleType("cupy.cuda.device")
    runtime = types.SimpleNamespace(
        memGetInfo=lambda: (MEMORY, MEMORY),
        getDeviceCount=lambda: 2,
        runtimeGetVersion=lambda: 12090,
        driverGetVersion=lambda: 12090,
        getDeviceProperties=lambda _: {
            "name": b"a stand-in", "major": 9, "minor": 0, "totalGlobalMem": MEMORY, "multiProcessorCount": 1,
            "clockRate": 1000, "memoryClockRate": 1000, "memoryBusWidth": 64,
        },
    )  # fmt: skip
    vars(cuda).update(
        Device=Device,
        Event=Event,
        Stream=Stream,
        ExternalStream=Stream,
        get_current_stream=lambda: Stream(Stream.current),
        device=device,
        runtime=runtime,
        get_elapsed_time=lambda first, last: 1e3 * (last.time - first.time),
        is_available=lambda: True,
    )
    device.Device = Device  # type: ignore[attr-defined]
    vars(cupy).update(
        __version__="0.stand-in",
        ndarray=ndarray,
        asarray=_asarray,
        array=_array,
        ascontiguousarray=lambda a: wrap(np.ascontiguousarray(unwrap(a))),
        asnumpy=lambda a: a.get(),
        from_dlpack=lambda a: ndarray(np.from_dlpack(a)),
        bool=np.bool_,
        fft=fft,
        linalg=linalg,
        cuda=cuda,
        RawKernel=RawKernel,
        is_available=lambda: True,
    )
    for name in ("abs", "max", "min", "round"):
        setattr(cupy, name, wrapped(getattr(np, name)))
    return {"cupy": cupy, "cupy.fft": fft, "cupy.linalg": linalg, "cupy.cuda": cuda, "cupy.cuda.device": device}


_MODULES = _build()
_COMPAT: dict[str, types.ModuleType] = {}


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Put the library in the place of CuPy, whether that is there or not, and take it away again."""
    import array_api_compat

    def ours(name: str) -> bool:
        return name.partition(".")[0] in ("cupy", "cupyx") or name.startswith("array_api_compat.cupy")

    before = {name: module for name, module in sys.modules.items() if ours(name)}
    attribute = vars(array_api_compat).get("cupy")
    for name in before:
        del sys.modules[name]
    sys.modules.update(_MODULES | _COMPAT)
    COUNTS.clear()
    Stream.launched.clear()
    try:
        yield _MODULES["cupy"]
    finally:
        _COMPAT.update({name: sys.modules[name] for name in sys.modules if name.startswith("array_api_compat.cupy")})
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)
        vars(array_api_compat).pop("cupy", None)
        if attribute is not None:
            array_api_compat.cupy = attribute
        Device.current = 0
