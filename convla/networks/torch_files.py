"""What ``torch.save`` writes, read without PyTorch: the tensors are made here, from bytes, and nothing in a file runs.

A .pt file is a zip archive of a pickle, ``data.pkl``, and of the bytes of each storage; before PyTorch 1.6 it was a
sequence of pickles with the storages behind it. Tensors are views of storages, and many may share one.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from convla.errors import WeightsError
from convla.networks.archives import check_memory, copy_archive, open_archive
from convla.networks.pickles import Called, Name, PickleError, Reference, read_pickle

__all__ = ["Tensor", "TorchFile", "open_torch", "widened"]

_MAX_NESTING = 8
# Mappings that hold each other can be walked through in far more ways than there are bytes in the file.
_MAX_ENTRIES = 1_000_000
_LARGEST_PICKLE = 2**28
_ALIGNMENT = 64
_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file before PyTorch 1.6."""

_NUMBERS = {
    "float32": "f4", "float64": "f8", "float16": "f2", "bfloat16": "u2", "complex64": "c8", "complex128": "c16",
    "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?",
    "uint16": "u2", "uint32": "u4", "uint64": "u8",
}  # fmt: skip
_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "LongStorage": "int64",
    "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip

_PLAIN = (type(None), bool, int, float, str, bytes)
_OBJECTS = {
    "collections": ("OrderedDict", "defaultdict", "Counter", "deque"),
    "builtins": ("set", "frozenset", "complex", "slice", "range", "int", "float", "dict", "list", "tuple", "bytearray"),
    "numpy": ("dtype", "ndarray"),
}
_MAPPINGS = ("OrderedDict", "defaultdict", "Counter")


class Tensor(NamedTuple):
    """Where in a file a tensor is: a view of a storage, everything counted in entries."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> tuple[int, int]:
        """The first entry of the storage that it reaches, and the one behind the last."""
        if 0 in self.shape:
            return self.offset, self.offset
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.offset, self.offset + reach + 1


@dataclass
class TorchFile:
    """A file of ``torch.save``: its tensors by name, and why others are not read.

    Attributes
    ----------
    tensors : dict of str to Tensor
    unread : dict of str to str
        The reason by name.
    flat : bool
        Whether tensors by name are all that it holds.
    """

    path: Path
    records: _Zip | _Legacy
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    flat: bool = True

    def storage(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """Return all entries of a tensor's storage, as the file holds them; bfloat16 as uint16."""
        order = "<" if self.records.little else ">"
        return np.frombuffer(self.records.read(tensor.storage), order + _NUMBERS[tensor.dtype])

    def arrays(self) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """Give each tensor as a view of its storage, which is read once; half precision as float32."""
        check_memory(self.path, sum(map(self.records.size, {tensor.storage for tensor in self.tensors.values()})))
        storages: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
        for name, tensor in self.tensors.items():
            key = tensor.storage, tensor.dtype
            if key not in storages:
                storages[key] = widened(self.path, self.storage(tensor), tensor.dtype)
            yield name, _view(storages[key], tensor)

    def write_changed(self, target: IO[bytes], changed: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write the file to `target` with the entries of some tensors changed, and every other byte as it is.

        Parameters
        ----------
        target : binary file
        changed : mapping of str to numpy.ndarray
            By name; of the tensors' shapes, and of their dtypes, bfloat16 as uint16.
        """
        storages: dict[str, np.ndarray[Any, Any]] = {}
        for name, array in changed.items():
            tensor = self.tensors[name]
            if tensor.storage not in storages:
                storages[tensor.storage] = self.storage(tensor).copy()
            _view(storages[tensor.storage], tensor)[...] = array
        self.records.write_changed(target, {key: storage.tobytes() for key, storage in storages.items()})


def open_torch(path: Path) -> TorchFile:
    """Return what a file of ``torch.save`` holds; storages are not read before they are asked for.

    Parameters
    ----------
    path : Path

    Returns
    -------
    TorchFile
        Nested mappings, lists and tuples are walked through, and the names joined by dots.

    Raises
    ------
    WeightsError
        If it is damaged, holds other objects than tensors and plain values, is a TorchScript archive, or has no names.
    """
    records = _Zip(path) if zipfile.is_zipfile(path) else _Legacy(path)
    content = records.content
    if _items(content) is None:
        kind = "Tensor" if isinstance(content, Called) else type(content).__name__
        raise WeightsError(f"{path}: holds a {kind}, not tensors by name")
    file = TorchFile(path, records)
    for entries, (name, value) in enumerate(_Walk(path).entries(content)):
        if entries >= _MAX_ENTRIES:
            raise WeightsError(f"{path}: holds more than {_MAX_ENTRIES} entries")
        if not isinstance(value, Called) or _items(value) is not None:
            file.flat = False
            continue
        if name in file.tensors or name in file.unread:
            raise WeightsError(f"{path}: holds two arrays of the name {name!r}")
        try:
            tensor = _tensor(value)
        except _UnreadError as reason:
            file.unread[name] = str(reason)
            continue
        if tensor is None:
            file.flat = False
            continue
        file.tensors[name] = tensor
        _check(path, name, tensor, records)
    return file


def widened(path: Path, array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Return numbers of a dtype, bfloat16 given as uint16, in this machine's byte order, half precision as float32."""
    if dtype == "bfloat16":  # the upper half of a float32
        check_memory(path, 4 * array.nbytes)
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize == 2:
        check_memory(path, 2 * array.nbytes)
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _view(storage: np.ndarray[Any, Any], tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as a view of its storage."""
    strides = [stride * storage.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides)


class _UnreadError(Exception):
    """A tensor that is no array of numbers."""


def _known(name: Name) -> bool:
    """Whether ``torch.save`` writes this name for tensors and plain values: all are inert here, and most of no use."""
    if name.module.startswith(("numpy.core.", "numpy._core.")):
        return name.name in ("scalar", "_reconstruct", "_frombuffer")
    if name.module in ("torch", "torch._utils", "torch._tensor", "torch.nn.parameter", "torch.storage"):
        return True
    return name.name in _OBJECTS.get(name.module.replace("__builtin__", "builtins"), ()) or name == (
        "torch.serialization",
        "_get_layout",
    )


def _read(path: Path, stream: Any) -> Any:
    try:
        return read_pickle(stream, _known)
    except PickleError as error:
        raise WeightsError(
            f"{path}: not a readable {path.suffix} file: it is damaged, or holds objects other than tensors, which are "
            f"never loaded; save a network as torch.save(network.state_dict(), ...): {error}"
        ) from None


def _items(value: Any) -> dict[Any, Any] | None:
    """Return the entries of a mapping, or None for what is none."""
    match value:
        case dict():
            return value
        case Called(Name("collections", "OrderedDict"), ([*pairs],)):  # as Python 2 wrote it
            return {key: entry for key, entry in pairs if isinstance(key, (str, bytes, int))}
        case Called(Name("collections", name)) if name in _MAPPINGS:
            return value.items
    return None


class _Walk:
    """All that nested mappings and lists hold, themselves too, so that they are counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plain: dict[int, bool] = {}

    def entries(self, content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
        """Give each entry with its name, joined by dots."""
        if depth > _MAX_NESTING:
            raise WeightsError(f"{self.path}: nests mappings more than {_MAX_NESTING} deep, at {prefix[:60]!r}")
        items = _items(content)
        for key, value in items.items() if items is not None else enumerate(content):
            name = f"{prefix}{key.decode('latin1') if isinstance(key, bytes) else key}"
            yield name, value
            if _items(value) is not None or (isinstance(value, (list, tuple)) and not self._is_plain(value)):
                yield from self.entries(value, f"{name}.", depth + 1)

    def _is_plain(self, values: list[Any] | tuple[Any, ...]) -> bool:
        """Whether a list holds numbers and texts only, such as a history of losses; it is looked through once."""
        if id(values) not in self._plain:
            self._plain[id(values)] = all(isinstance(value, _PLAIN) for value in values)
        return self._plain[id(values)]


def _tensor(value: Called) -> Tensor | None:
    """Return where a tensor is, or None if the object is none."""
    name = value.function.name if isinstance(value.function, Name) else ""
    match name, value.arguments:
        case "_rebuild_parameter" | "_rebuild_parameter_with_state", (Called() as data, *_):
            return _tensor_within(data)
        case "_rebuild_from_type_v2", (Name() as function, Name(_, "Tensor" | "Parameter" | "Buffer"), arguments, *_):
            return _tensor_within(Called(function, arguments))
        case "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", (Reference(storage), *layout):
            return _strided(storage, layout, typed=name == "_rebuild_tensor_v3")
    if name == "_rebuild_qtensor":
        raise _UnreadError("a quantised tensor: its numbers are not those of a kernel")
    if name == "_rebuild_sparse_tensor":
        raise _UnreadError("a sparse tensor")
    if name.startswith("_rebuild"):
        raise _UnreadError(f"a tensor of another kind ({name.removeprefix('_rebuild_')})")
    if name.endswith("Tensor"):
        raise _UnreadError("a tensor as PyTorch wrote it before version 0.4")
    if name in ("_reconstruct", "_frombuffer"):
        raise _UnreadError("an array of NumPy, no tensor")
    return None


def _tensor_within(value: Called) -> Tensor | None:
    if isinstance(value.function, Name) and value.function.name in ("_rebuild_parameter", "_rebuild_from_type_v2"):
        raise _UnreadError("a tensor within a tensor")
    return _tensor(value)


def _strided(storage: Any, layout: list[Any], *, typed: bool) -> Tensor:
    match storage:
        case ("storage", Name(_, kind), str() as key, location, int(), *views) if not any(views):
            dtype = _STORAGES.get(kind, kind.removesuffix("Storage"))
        case _:
            raise _UnreadError("a tensor of a form that is not read")
    if typed and len(layout) > 5 and isinstance(layout[5], Name):
        dtype = layout[5].name
    if location == "meta":
        raise _UnreadError("a tensor without data (device meta)")
    if dtype not in _NUMBERS:
        raise _UnreadError(f"dtype {dtype[:40]}, which is not read")
    metadata = layout[6:7] if typed else layout[5:6]
    if metadata and metadata[0] and any(metadata[0].values() if isinstance(metadata[0], dict) else metadata):
        raise _UnreadError("a tensor that is stored as its conjugate or negative")
    match layout:
        case (int() as offset, tuple() as shape, tuple() as strides, *_):
            return Tensor(key, dtype, offset, shape, strides)
    raise _UnreadError("a tensor of a form that is not read")


def _check(path: Path, name: str, tensor: Tensor, records: _Zip | _Legacy) -> None:
    """Refuse a tensor that reaches beyond its storage, or has more entries than it: memory is not taken for those."""
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    whole = all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    if not whole or len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 64:
        raise WeightsError(f"{path}: {name!r} in it has a damaged shape")
    stored = records.size(tensor.storage) // np.dtype(_NUMBERS[tensor.dtype]).itemsize
    if math.prod(tensor.shape) > stored or tensor.span[1] > stored:
        raise WeightsError(f"{path}: {name!r} in it claims shape {tensor.shape}, more than is stored")


class _Zip:
    """The records of an archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_archive(path) as archive:
            self._sizes = {member.filename: member.file_size for member in archive.infolist()}
            folders = [name.removesuffix("data.pkl") for name in self._sizes if name.endswith("/data.pkl")]
            program = any(name.endswith("/constants.pkl") or "/code/" in name for name in self._sizes)
            if program:
                raise WeightsError(
                    f"{path}: a TorchScript archive, which is a program; save its weights as "
                    "torch.save(torch.jit.load(...).state_dict(), ...)"
                )
            if len(folders) != 1:
                raise WeightsError(f"{path}: not a readable {path.suffix} file: not an archive of torch.save")
            self._folder = folders[0]
            order = f"{self._folder}byteorder"
            self.little = order not in self._sizes or archive.read(order) == b"little"
            pickled = f"{self._folder}data.pkl"
            if self._sizes[pickled] > _LARGEST_PICKLE:
                raise WeightsError(f"{path}: its pickle has {self._sizes[pickled]} bytes: no file of tensors")
            self.content = _read(path, io.BytesIO(archive.read(pickled)))

    def size(self, key: str) -> int:
        """Return the bytes of a storage."""
        try:
            return self._sizes[f"{self._folder}data/{key}"]
        except KeyError:
            raise WeightsError(f"{self.path}: the storage {key[:20]!r} is missing: damaged") from None

    def read(self, key: str) -> bytes:
        """Return a storage; the archive's checksum is checked."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(f"{self._folder}data/{key}")

    def write_changed(self, target: IO[bytes], changed: Mapping[str, bytes]) -> None:
        """Write the archive with other bytes in some storages."""
        members = {f"{self._folder}data/{key}": content for key, content in changed.items()}
        copy_archive(self.path, target, members, _ALIGNMENT)


class _Legacy:
    """The records of a file before PyTorch 1.6: pickles, then for each storage its number of entries and its bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_memory(path, path.stat().st_size)
        self._content = path.read_bytes()
        self._places: dict[str, tuple[int, int]] = {}
        data = io.BytesIO(self._content)
        if _read(path, data) != _MAGIC:
            raise WeightsError(f"{path}: not a readable {path.suffix} file: not written by torch.save")
        _, system, self.content, keys = (_read(path, data) for _ in range(4))
        self.little = not isinstance(system, dict) or system.get("little_endian", True) is True
        itemsizes = dict(_storage_types(self.content))
        for key in keys if isinstance(keys, list) else ():
            count = int.from_bytes(data.read(8), "little" if self.little else "big", signed=True)
            begin, size = data.tell(), count * itemsizes.get(key, 0)
            if count < 0 or begin + size > len(self._content):
                raise WeightsError(f"{path}: not a readable {path.suffix} file: a storage is cut off")
            self._places[key] = begin, size
            data.seek(begin + size)

    def size(self, key: str) -> int:
        """Return the bytes of a storage."""
        try:
            return self._places[key][1]
        except KeyError:
            raise WeightsError(f"{self.path}: the storage {key[:20]!r} is missing: damaged") from None

    def read(self, key: str) -> bytes:
        """Return a storage."""
        begin, size = self._places[key]
        return self._content[begin : begin + size]

    def write_changed(self, target: IO[bytes], changed: Mapping[str, bytes]) -> None:
        """Write the file with other bytes in some storages."""
        content = bytearray(self._content)
        for key, storage in changed.items():
            begin, size = self._places[key]
            content[begin : begin + size] = storage
        target.write(content)


def _storage_types(content: Any) -> Iterator[tuple[str, int]]:
    """Give the key of each storage that is referred to, and the size of its entries; every object is visited once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        match value:
            case Reference(("storage", Name(_, kind), str() as key, *_)):
                name = _STORAGES.get(kind)
                yield key, np.dtype(_NUMBERS[name]).itemsize if name else _OTHER_SIZES.get(kind, 1)
            case Called():
                waiting += [value.arguments, value.state, *value.items.values(), *value.entries]
            case dict():
                waiting += value.values()
            case list() | tuple():
                waiting += value


_OTHER_SIZES = {"QInt32Storage": 4}
