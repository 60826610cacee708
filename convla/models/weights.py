"""Read and write the arrays of a model by name: .npz, .safetensors, and PyTorch's .pt, never running a file's code.

What a file says of itself is checked before memory is taken for it. Half-precision numbers are read as float32.
"""

from __future__ import annotations

import importlib
import os
import pickle
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convla._array import available_memory
from convla.errors import WeightsError

__all__ = ["WEIGHT_FORMATS", "check_weights_name", "printable", "read_weights", "write_weights"]

# NumPy's own arrays have headers of at most a few hundred bytes; longer ones are parsed slowly.
_MAX_HEADER = 10_000
_MAX_NESTING = 8
# Mappings that hold each other can be walked through in far more ways than there are bytes in the file.
_MAX_ENTRIES = 1_000_000


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a file of weights by name.

    Parameters
    ----------
    path : path
        A file whose name ends in .npz, .safetensors (needs the extra ``safetensors``), .pt or .pth (need the extra
        ``torch``). A .pt file may nest mappings; their names are joined by dots.

    Returns
    -------
    dict of str to numpy.ndarray
        In the file's order. float16 and bfloat16 become float32.

    Raises
    ------
    WeightsError
        If the file is malformed, truncated, no regular file, holds objects instead of numbers or two arrays of one
        name, claims more memory than there is, is of an unknown format, or what reads its format is not installed.
    OSError
        If there is no such file, or it may not be read.

    Notes
    -----
    No pickled object is ever loaded: .npz files with ``allow_pickle=False``, .pt files with ``weights_only=True``.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.models.weights import read_weights, write_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     write_weights(path, {"conv.weight": np.ones((2, 1, 3, 3), dtype=np.float32)})
    ...     read_weights(path)["conv.weight"].shape
    (2, 1, 3, 3)
    """
    path = Path(path)
    reader = _format_of(path).read
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may have no end
        raise WeightsError(f"{path}: not a regular file")
    with path.open("rb"):  # an unreadable file is an OSError of its own, as a missing one is
        pass
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        for name, array in reader(path):
            if name in arrays:
                raise WeightsError(f"{path}: holds two arrays of the name {name!r}")
            arrays[name] = _plain(array)
        return arrays
    except WeightsError:
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is the file's fault
        raise WeightsError(f"{path}: not a readable {path.suffix} file: {_one_line(error)}") from error


def printable(text: str) -> str:
    """Return `text` with escapes for what is no visible character: a name in a file must not command the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_weights(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write NumPy arrays by name to a file of the format that its name ends in, all or nothing.

    Parameters
    ----------
    path : path
        As for `read_weights`. A file that is there is replaced once the new one is complete.
    arrays : mapping of str to numpy.ndarray

    Raises
    ------
    WeightsError
        If the format is unknown or cannot hold these arrays, or what writes it is not installed.
    TypeError
        If an array holds anything but numbers.
    OSError
        If the file cannot be written.

    Examples
    --------
    See `read_weights`.
    """
    path = Path(path)
    writer = _format_of(path).write
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for key, array in plain.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(f"arrays[{key!r}] must hold numbers, got dtype {array.dtype}")
    # Beside the target, so that the last step is a rename.
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        try:
            writer(Path(name), plain)
        except (OSError, WeightsError):
            raise
        except Exception as error:  # names and dtypes that the format has no place for
            raise WeightsError(f"{path}: cannot hold these arrays: {_one_line(error)}") from error
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _read_npz(path: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_memory(path, sum(member.file_size for member in members))
        for member in members:
            if not member.filename.endswith(".npy"):
                raise WeightsError(f"{path}: {member.filename!r} in it is not an array (.npy)")
            with archive.open(member) as stream:
                _check_npy_header(path, member, stream)
            with archive.open(member) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_HEADER)
            yield member.filename.removesuffix(".npy"), array


def _check_npy_header(path: Path, member: zipfile.ZipInfo, stream: Any) -> None:
    """Refuse an array whose header promises other than the bytes that are there, before memory is taken for it."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise WeightsError(f"{path}: {member.filename!r} in it has the unknown .npy version {version}")
    shape, _, dtype = read(stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise WeightsError(f"{path}: {member.filename!r} in it holds pickled objects, which are never loaded")
    wanted, there = dtype.itemsize * int(np.prod(shape, dtype=object)), member.file_size - stream.tell()
    if wanted != there:
        raise WeightsError(f"{path}: {member.filename!r} in it should hold {wanted} bytes of data, but holds {there}")


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _read_safetensors(path: Path) -> Iterator[tuple[str, Any]]:
    deserialize = _import_for(path, "safetensors", "safetensors").deserialize
    _check_memory(path, 2 * path.stat().st_size)  # the file's bytes and the arrays' are there together
    for name, entry in deserialize(path.read_bytes()):
        yield name, _decode(path, name, entry).reshape(entry["shape"])


_SAFETENSORS_DTYPES = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
}


def _decode(path: Path, name: str, entry: Mapping[str, Any]) -> Any:
    if entry["dtype"] == "BF16":
        # The upper half of a float32.
        return (np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise WeightsError(f"{path}: {name!r} in it has the dtype {entry['dtype']}, which is not read")
    return np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]])


def _write_safetensors(path: Path, arrays: Mapping[str, Any]) -> None:
    _import_for(path, "safetensors", "safetensors")
    _import_for(path, "safetensors.numpy", "safetensors").save_file(dict(arrays), path)


def _read_torch(path: Path) -> Iterator[tuple[str, Any]]:
    torch = _import_for(path, "torch", "torch")
    _check_memory(path, _stored_bytes(path))
    try:
        with warnings.catch_warnings(action="ignore"):  # of formats that PyTorch itself no longer writes
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own message advises to load the objects after all
        raise WeightsError(
            f"{path}: not a readable {path.suffix} file: it is damaged, or holds objects other than tensors, which are "
            "never loaded; save a network as torch.save(network.state_dict(), ...)"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    for entries, (name, tensor) in enumerate(_entries(path, content, "", 0)):
        if entries >= _MAX_ENTRIES:
            raise WeightsError(f"{path}: holds more than {_MAX_ENTRIES} entries")
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            continue
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {name!r} in it claims shape {tuple(tensor.shape)}, more than is stored")
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        yield name, (tensor.float() if half else tensor).detach().numpy()


def _stored_bytes(path: Path) -> int:
    """Return how much memory the records of a file of torch.save take; they are stored as they are, or compressed."""
    if not zipfile.is_zipfile(path):  # the format before PyTorch 1.6
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def _entries(path: Path, content: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Give all that nested mappings hold, themselves too, so that they are counted; names are joined by dots."""
    if depth > _MAX_NESTING:
        raise WeightsError(f"{path}: nests mappings more than {_MAX_NESTING} deep, at {prefix[:60]!r}")
    for key, value in content.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, Mapping):
            yield from _entries(path, value, f"{name}.", depth + 1)


def _write_torch(path: Path, arrays: Mapping[str, Any]) -> None:
    torch = _import_for(path, "torch", "torch")
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, path)


class _Format(NamedTuple):
    read: Callable[[Path], Iterator[tuple[str, Any]]]
    write: Callable[[Path, Mapping[str, Any]], None]


_FORMATS = {
    ".npz": _Format(_read_npz, _write_npz),
    ".safetensors": _Format(_read_safetensors, _write_safetensors),
    ".pt": _Format(_read_torch, _write_torch),
    ".pth": _Format(_read_torch, _write_torch),
}
WEIGHT_FORMATS = tuple(_FORMATS)


def _format_of(path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        raise WeightsError(f"{path}: the name must end in one of {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix]


def check_weights_name(path: str | os.PathLike[str]) -> None:
    """Raise `WeightsError` if no format of weights has this ending: before the work that the file is for."""
    _format_of(Path(path))


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _import_for(path: Path, module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise WeightsError(f"{path}: {path.suffix} files need the extra convla[{extra}]") from error


def _check_memory(path: Path, needed: int) -> None:
    available = available_memory(np.empty(0))
    if available is not None and needed > available:
        raise WeightsError(f"{path}: holds {needed} bytes of arrays, more than the {available} bytes of free memory")


def _plain(array: Any) -> Any:
    """Return `array` in this machine's byte order, float16 as float32."""
    wanted = np.dtype(np.float32) if array.dtype.kind == "f" and array.dtype.itemsize == 2 else array.dtype
    return array.astype(wanted.newbyteorder("="), copy=False)
