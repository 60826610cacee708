"""Read and write the arrays of a model by name: .npz, .safetensors, and PyTorch's .pt, never running a file's code.

What a file says of itself is checked before memory is taken for it. Half-precision numbers are read as float32.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from convla._files import atomic_write
from convla.errors import WeightsError, install_line
from convla.networks.archives import check_memory, copy_archive, open_archive
from convla.networks.torch_files import Tensor, open_torch, widened

__all__ = [
    "WEIGHT_FORMATS",
    "Weights",
    "check_convertible",
    "check_weights_name",
    "printable",
    "read_model",
    "read_weights",
    "rewrite_weights",
    "write_weights",
]

# NumPy's own arrays have headers of at most a few hundred bytes; longer ones are parsed slowly.
_MAX_HEADER = 10_000


@dataclass
class Weights:
    """What a file of weights holds.

    Attributes
    ----------
    arrays : dict of str to numpy.ndarray
        By name, in the file's order; float16 and bfloat16 as float32.
    dtypes : dict of str to str
        How each is stored.
    unread : dict of str to str
        Why something else in the file is none of these arrays, by name.
    flat : bool
        Whether arrays by name are all that the file holds: no nesting, no other values.
    layout : {"oihw", "hwio"}, optional
        The order of kernels' axes, where the format says it.
    source : dict of str to str
        What was read, such as the name of the file.
    """

    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    flat: bool = True
    layout: str | None = None
    source: dict[str, str] = field(default_factory=dict)


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a file of weights by name: the `arrays` of `read_model`.

    Parameters, errors and notes are those of `read_model`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.networks.weights import read_weights, write_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     write_weights(path, {"conv.weight": np.ones((2, 1, 3, 3), dtype=np.float32)})
    ...     read_weights(path)["conv.weight"].shape
    (2, 1, 3, 3)
    """
    return read_model(path).arrays


def read_model(path: str | os.PathLike[str]) -> Weights:
    """Return what a file of weights holds.

    Parameters
    ----------
    path : path
        A file whose name ends in .npz, .safetensors (needs the extra ``safetensors``), .pt or .pth. A .pt file may nest
        mappings and lists; their names are joined by dots.

    Returns
    -------
    Weights
        Tensors that share a storage share memory here too.

    Raises
    ------
    WeightsError
        If the file is malformed, truncated, no regular file, holds objects instead of numbers or two arrays of one
        name, claims more memory than there is, is of an unknown format, or what reads its format is not installed.
    OSError
        If there is no such file, or it may not be read.

    Notes
    -----
    No pickled object is ever loaded: .npz files with ``allow_pickle=False``, and .pt files without PyTorch, their
    pickles taken to pieces as data.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.networks.weights import read_model, write_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     write_weights(path, {"conv.weight": np.ones((2, 1, 3, 3), dtype=np.float16)})
    ...     read_model(path).dtypes
    {'conv.weight': 'float16'}
    """
    path = Path(path)
    reader = _format_of(path).read
    with _regular(path).open("rb"):  # an unreadable file is an OSError of its own, as a missing one is
        pass
    with _blaming(path):
        weights = Weights()
        for name, entry, dtype in reader(path):
            if not name:
                weights.flat = False
                continue
            if name in weights.arrays or name in weights.unread:
                raise WeightsError(f"{path}: holds two arrays of the name {name!r}")
            if isinstance(entry, str):
                weights.unread[name] = entry
            else:
                weights.arrays[name], weights.dtypes[name] = entry, dtype
    return weights


def printable(text: str) -> str:
    """Return `text` with escapes for what is no visible character: a name in a file must not command the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_weights(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write NumPy arrays by name to a file of the format that its name ends in, all or nothing.

    Parameters
    ----------
    path : path
        Its ending as for `read_weights`; .safetensors and .pt need the extras ``safetensors`` and ``torch``. A file
        that is there, or that a link there points to, is replaced once the new one is complete.
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
    with atomic_write(path, follow_links=True) as file:
        try:
            writer(path, file, plain)
        except (OSError, WeightsError):
            raise
        except Exception as error:  # names and dtypes that the format has no place for
            raise WeightsError(f"{path}: cannot hold these arrays: {_one_line(error)}") from error


def rewrite_weights(
    source: str | os.PathLike[str], target: str | os.PathLike[str], changed: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Write a file of weights again with some arrays changed, and everything else in it as it is.

    Their dtypes, the other arrays, the nesting, the names and all other values stay bit for bit.

    Parameters
    ----------
    source, target : path
        They may be the same file, and of two formats where `check_convertible` has no objection.
    changed : mapping of str to numpy.ndarray
        By name, of the shapes that the source has; numbers are rounded to the source's dtypes.

    Raises
    ------
    WeightsError
        If the source cannot be read, or a number is beyond its dtype.
    OSError
        If the target cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.networks.weights import read_model, rewrite_weights, write_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     write_weights(path, {"a": np.ones(2, dtype=np.float16), "b": np.arange(3)})
    ...     rewrite_weights(path, path, {"a": np.array([0.5, 2.0])})
    ...     weights = read_model(path)
    >>> weights.arrays["a"].tolist(), weights.dtypes["a"], weights.arrays["b"].tolist()
    ([0.5, 2.0], 'float16', [0, 1, 2])
    """
    path = Path(source)
    if _format_of(path) is not _format_of(Path(target)):
        weights = read_model(path)
        check_convertible(source, target, weights)
        arrays = {**weights.arrays, **changed}
        write_weights(target, {name: _rounded(path, name, arrays[name], weights.dtypes[name]) for name in arrays})
        return
    with _blaming(path, OSError), atomic_write(target, follow_links=True) as file:
        _format_of(path).rewrite(_regular(path), file, changed)


def check_convertible(source: str | os.PathLike[str], target: str | os.PathLike[str], weights: Weights) -> None:
    """Raise `WeightsError` if the target is of another format, which cannot hold all that was read from the source."""
    if _format_of(Path(source)) is _format_of(Path(target)):
        return
    lost = list(weights.unread) + [name for name, dtype in weights.dtypes.items() if dtype == "bfloat16"]
    if lost or not weights.flat:
        what = f"{lost[0]!r}" if lost else "names within names, and other values than arrays"
        raise WeightsError(f"{target}: its format has no place for all that {source} holds ({what}): keep the ending")


@contextlib.contextmanager
def _blaming(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Make whatever a parser makes of hostile bytes the file's fault, but for the exceptions that are of `others`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (WeightsError, *others)):
            raise
        raise WeightsError(f"{path}: not a readable {path.suffix} file: {_one_line(error)}") from error


def _regular(path: Path) -> Path:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may have no end
        raise WeightsError(f"{path}: not a regular file")
    return path


_Entries = Iterator[tuple[str, Any, str]]
"""A name, with an array and its dtype in the file, or with the reason why it is none; no name for other values."""


def _read_npz(path: Path) -> _Entries:
    with open_archive(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise WeightsError(f"{path}: {member.filename!r} in it is not an array (.npy)")
            with archive.open(member) as stream:
                _, _, dtype = _npy_header(path, member, stream)
            with archive.open(member) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_HEADER)
            yield member.filename.removesuffix(".npy"), widened(path, array, dtype.name), dtype.name


def _npy_header(path: Path, member: zipfile.ZipInfo, stream: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Refuse an array whose header promises other than the bytes that are there, before memory is taken for it."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise WeightsError(f"{path}: {member.filename!r} in it has the unknown .npy version {version}")
    shape, columns_first, dtype = read(stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise WeightsError(f"{path}: {member.filename!r} in it holds pickled objects, which are never loaded")
    wanted, there = dtype.itemsize * int(np.prod(shape, dtype=object)), member.file_size - stream.tell()
    if wanted != there:
        raise WeightsError(f"{path}: {member.filename!r} in it should hold {wanted} bytes of data, but holds {there}")
    return shape, columns_first, dtype


def _write_npz(_: Path, file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _rewrite_npz(path: Path, file: IO[bytes], changed: Mapping[str, Any]) -> None:
    members = {}
    with open_archive(path) as archive:
        for name, array in changed.items():
            content = archive.read(f"{name}.npy")
            stream = io.BytesIO(content)
            _, columns_first, dtype = _npy_header(path, archive.getinfo(f"{name}.npy"), stream)
            rounded = _rounded(path, name, array, dtype.name).astype(dtype)
            members[f"{name}.npy"] = content[: stream.tell()] + rounded.tobytes("F" if columns_first else "C")
    copy_archive(path, file, members)


def _read_safetensors(path: Path) -> _Entries:
    deserialize = _import_for(path, "safetensors", "safetensors").deserialize
    check_memory(path, 2 * path.stat().st_size)  # the file's bytes and the arrays' are there together
    content = path.read_bytes()
    entries = deserialize(content)
    if "__metadata__" in _safetensors_header(content)[0]:
        yield "", None, ""
    for name, entry in entries:
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            yield name, f"dtype {entry['dtype']}, which is not read", ""
            continue
        array = np.frombuffer(entry["data"], "<u2" if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<"))
        yield name, widened(path, array, dtype).reshape(entry["shape"]), dtype


def _safetensors_header(content: bytes | bytearray) -> tuple[dict[str, Any], int]:
    """Return what a file's header says, and where its data begins."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), start


_SAFETENSORS_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}


def _write_safetensors(path: Path, file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    _import_for(path, "safetensors", "safetensors")
    file.write(_import_for(path, "safetensors.numpy", "safetensors").save(dict(arrays)))


def _rewrite_safetensors(path: Path, file: IO[bytes], changed: Mapping[str, Any]) -> None:
    content = bytearray(path.read_bytes())
    header, start = _safetensors_header(content)
    for name, array in changed.items():
        dtype = _SAFETENSORS_DTYPES[header[name]["dtype"]]
        low, high = (start + offset for offset in header[name]["data_offsets"])
        rounded = _rounded(path, name, array, dtype)
        content[low:high] = rounded.astype(rounded.dtype.newbyteorder("<")).tobytes()
    file.write(content)


def _read_torch(path: Path) -> _Entries:
    content = open_torch(path)
    for name, array in content.arrays():
        yield name, array, content.tensors[name].dtype
    for name, reason in content.unread.items():
        yield name, reason, ""
    if not content.flat:
        yield "", None, ""


def _write_torch(path: Path, file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    torch = _import_for(path, "torch", "torch")
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, file)


def _rewrite_torch(path: Path, file: IO[bytes], changed: Mapping[str, Any]) -> None:
    content = open_torch(path)
    rounded = {name: _rounded(path, name, array, content.tensors[name].dtype) for name, array in changed.items()}
    for name, other in _overlaps(content.tensors, rounded):
        raise WeightsError(f"{path}: {name!r} shares its memory with {other!r}, which would change with it")
    content.write_changed(file, rounded)


def _overlaps(tensors: Mapping[str, Tensor], changed: Container[str]) -> Iterator[tuple[str, str]]:
    """Give the tensors to be changed that share entries with another one, unless the two are the same throughout."""
    views: dict[Tensor, list[str]] = {}
    for name, tensor in tensors.items():
        views.setdefault(tensor, []).append(name)
    last: dict[
        bool, tuple[str, int, str]
    ] = {}  # of those to be changed, and of the others, the one that reaches furthest
    for tensor, names in sorted(views.items(), key=lambda item: (item[0].storage, item[0].span)):
        low, high = tensor.span
        for name in names:
            for kind, (storage, end, other) in last.items():
                if storage == tensor.storage and low < end and low < high and (kind or name in changed):
                    yield (other, name) if kind else (name, other)
        if any(name in changed for name in names) and (kept := [name for name in names if name not in changed]):
            yield next(name for name in names if name in changed), kept[0]
        for name in names:
            kind = name in changed
            if kind not in last or last[kind][0] != tensor.storage or high > last[kind][1]:
                last[kind] = tensor.storage, high, name


def _rounded(path: Path, name: str, array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Return numbers in a dtype of a file, to nearest with ties to even; bfloat16 as uint16."""
    if dtype == "bfloat16":
        bits = array.astype(np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            rounded = array.astype(dtype)
    if not np.isfinite(widened(path, rounded, dtype)).all():
        raise WeightsError(f"{path}: {name!r} in it would leave the range of {dtype}")
    return rounded


class _Format(NamedTuple):
    read: Callable[[Path], _Entries]
    write: Callable[[Path, IO[bytes], Mapping[str, Any]], None]
    rewrite: Callable[[Path, IO[bytes], Mapping[str, Any]], None]


_TORCH = _Format(_read_torch, _write_torch, _rewrite_torch)
_FORMATS = {
    ".npz": _Format(_read_npz, _write_npz, _rewrite_npz),
    ".safetensors": _Format(_read_safetensors, _write_safetensors, _rewrite_safetensors),
    ".pt": _TORCH,
    ".pth": _TORCH,
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
        raise WeightsError(f"{path}: {path.suffix} files need the extra {extra}: {install_line(extra)}") from error
