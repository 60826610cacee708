"""Damaged and hostile files in the library's readers: the library's own errors only, soon, in little memory."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.damage import damaged
from tests.fuzz.case import Case, check
from tests.fuzz.reader import READERS, reader_of

SECONDS, MEBIBYTES = 10, 512


class Reader:
    """A process that reads files, started anew when one has ended it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def read(self, content: bytes, suffix: str) -> str:
        if self.process is None:
            command = [sys.executable, "-m", "tests.fuzz.reader", str(SECONDS), str(MEBIBYTES)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(command, text=True, **pipes)
            self.answer()
        path = self.folder / f"file{suffix}"
        path.write_bytes(content)
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the answer says
            print(path, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> str:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
        return f"the process ended with {code}" + (f": more than {SECONDS} s" if code == -27 else "")

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


@functools.cache
def _reader() -> Reader:
    reader = Reader()
    atexit.register(reader.close)
    return reader


@check(weight=2)
def files(case: Case) -> None:
    suffixes = [suffix for suffix in READERS if reader_of(suffix) is not None]
    suffix = case.one_of(suffixes)
    make = case.one_of((_damaged, _damaged, _crafted))
    content = make(case, suffix)
    case.give("content", np.frombuffer(content, np.uint8))
    module, name = READERS[suffix]
    write = f"import pathlib, {module} as m\npath = pathlib.Path('file{suffix}')\npath.write_bytes(content.tobytes())"
    case.add_lines(f"{write}\nm.{name}(path)")
    found = _reader().read(content, suffix)
    case.counts[f"{suffix} {found}" if found in ("read", "refused") else "faults"] += 1
    case.expect(found in ("read", "refused"), f"a {suffix} file of {len(content)} bytes: {found}")


@functools.cache
def _whole(suffix: str) -> bytes:
    """An undamaged file."""
    rng = np.random.default_rng(0)
    arrays = {"conv": rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "b/ü": rng.standard_normal((2, 4, 1))}
    if suffix in (".npz", ".safetensors", ".pt"):
        from convla.networks.weights import write_weights

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"whole{suffix}"
            write_weights(path, arrays)
            return path.read_bytes()
    images = rng.integers(0, 256, (3, 3072), np.uint8)
    if suffix == ".idx3":
        return bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 4, 4) + images.tobytes()[:32]
    if suffix == ".idx1":
        return bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + bytes(range(5))
    if suffix == ".bin":
        return b"".join(bytes([label]) + image.tobytes() for label, image in enumerate(images))
    return pickle.dumps({b"data": images, b"labels": [1, 2, 3]}, protocol=2)


def _damaged(case: Case, suffix: str) -> bytes:
    content = _whole(suffix)
    if suffix in (".npz", ".pt") and case.chance(0.5):
        content = _rewritten(case, content)
    for _ in range(int(case.rng.integers(1, 3))):
        content = damaged(content, case.rng) or b"\0"
    if suffix.startswith(".idx") and case.chance(0.2):
        content = gzip.compress(content)
    return content


def _rewritten(case: Case, archive: bytes) -> bytes:
    """The archive with its members damaged before their check sums are formed, compressed in any way."""
    buffer = io.BytesIO()
    method = case.one_of((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, damaged(content, case.rng) if case.chance(0.5) and content else content)
    return buffer.getvalue()


def _crafted(case: Case, suffix: str) -> bytes:
    """Headers that promise what is not there, bombs, and pickles of the callables that a reader may allow."""
    huge = int(2 ** case.rng.uniform(20, 40))
    if suffix == ".npz":
        return _bomb(case, "a.npy", _npy(case, huge))
    if suffix == ".pt":
        return _bomb(case, "archive/data.pkl", _pickle(case))
    if suffix == ".safetensors":
        entry = {
            "dtype": case.one_of(("F32", "BF16", "F64", "I8", "X9")),
            "shape": [huge],
            "data_offsets": [0, 4 * huge],
        }
        header = json.dumps({"a": entry}).encode()
        return struct.pack("<Q", case.one_of((len(header), huge))) + header
    if suffix == ".idx3":
        return bytes([0, 0, 8, 3]) + case.rng.bytes(12) + b"\0" * 64
    if suffix == ".idx1":
        return gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", huge % 2**32) + bytes(min(huge, 2**24)))
    return case.rng.bytes(3073) if suffix == ".bin" else _pickle(case)


def _npy(case: Case, size: int) -> bytes:
    header = {"descr": case.one_of(("<f4", "<f2", "|O", "<U9999999", "<c16")), "fortran_order": False, "shape": (size,)}
    text = repr(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(min(4 * size, 2**23))


def _bomb(case: Case, name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    method = case.one_of((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for i in range(case.one_of((1, 1, 20))):
            archive.writestr(name if i == 0 else f"{i}{name}", content)
    return buffer.getvalue()


def _pickle(case: Case) -> bytes:
    """A random program of the pickle machine, over what readers of arrays know by name."""
    names = [
        "numpy ndarray",
        "numpy dtype",
        "numpy.core.multiarray _reconstruct",
        "_codecs encode",
        "builtins bytearray",
    ]
    names += ["numpy._core.multiarray _reconstruct", "collections OrderedDict", "torch._utils _rebuild_tensor_v2"]
    atoms: list[Any] = [
        *(b"c" + name.replace(" ", "\n").encode() + b"\n" for name in names),
        *(b"K" + bytes([n]) for n in (0, 1, 4, 9)),
        b"J" + struct.pack("<i", int(case.rng.integers(-(2**31), 2**31))),
        *(b"C" + bytes([len(text)]) + text for text in (b"", b"data", b"labels", b"b", b"|u1", b"|O", b"\1" * 32)),
        *(b"X" + struct.pack("<I", len(text)) + text.encode() for text in ("u1", "O8", "latin1", "data", "uu")),
        b"N",
        b")",
        b"]",
        b"}",
    ]
    verbs = [b"R", b"b", b"s", b"\x85", b"\x86", b"\x87", b"\x81", b"a", b"2", b"q\0", b"h\0"]
    words = [
        case.one_of(atoms) if case.chance(0.6) else case.one_of(verbs) for _ in range(int(case.rng.integers(2, 40)))
    ]
    return b"\x80\x02" + (_batch(case, atoms) if case.chance(0.5) else b"".join(words)) + b"."


def _batch(case: Case, atoms: list[bytes]) -> bytes:
    """A batch of CIFAR-10 with an array of any dtype over bytes of its choosing: made or filled so, then read."""
    plain = b"cnumpy\ndtype\nX\2\0\0\0u1\x85R"
    named = b"cnumpy\ndtype\n" + case.one_of(atoms) + case.one_of((b"\x85R", b"K\0K\1\x87R"))
    dtype = case.one_of((plain, named, *(b"X\2\0\0\0" + name for name in (b"u1", b"O8", b"O8", b"f8"))))
    shape = case.one_of((b"K\4\x85", b"K\2K\2\x86", b"K\1M\0\x0c\x86", b"J\0\0\0\x7f\x85"))
    memory = case.one_of((b"C\x20" + b"\1" * 32, b"C\x20" + case.rng.bytes(32), *atoms))
    made = b"cnumpy\nndarray\n" + shape + dtype + memory + b"\x87R"
    begun = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
    filling = b"(K\1" + shape + case.one_of((plain, dtype)) + b"I00\n" + memory + b"tb"
    read = b"cnumpy\nndarray\n" + made + b"\x85R"
    array = case.one_of((made, begun + filling, made + filling, read))
    return b"}C\4data" + array + b"sC\6labels](K\1es"
