"""Pickles as data: what plain values come out, what is refused, and that no bytes run, crash, hang or grow anything."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.experiments.training.formats import DatasetError, read_cifar_python
from convla.networks import pickles
from convla.networks.pickles import Called, Name, PickleError, Reference, read_pickle

PLAIN = {
    "values": [None, True, False, 0, -7, 2**40, -(2**70), 1.5, float("inf"), "text", "ü\n", b"", b"\x00\xff" * 200],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    3: {"nested": [[], {}, {"a": {"b": []}}]},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_as_they_went_in(protocol: int) -> None:
    stream = io.BytesIO(pickle.dumps(PLAIN, protocol) + b"what follows")
    assert read_pickle(stream) == PLAIN
    assert stream.read() == b"what follows"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_described_and_not_made(protocol: int) -> None:
    found = read_pickle(io.BytesIO(pickle.dumps(collections.OrderedDict(a=1), protocol)))
    assert (found.function, found.items) == (Name("collections", "OrderedDict"), {"a": 1})
    found = read_pickle(io.BytesIO(pickle.dumps(np.float64(2.0), protocol)))
    assert isinstance(found, Called)
    assert found.function.name == "scalar"
    assert found.arguments[1] == np.float64(2.0).tobytes()
    with pytest.raises(PickleError, match=r"refused: it names 'collections\.OrderedDict', which is never looked up"):
        read_pickle(io.BytesIO(pickle.dumps(collections.OrderedDict(a=1), protocol)), lambda _: False)


def test_values_may_hold_themselves() -> None:
    loop: list[Any] = []
    loop.append(loop)
    found = read_pickle(io.BytesIO(pickle.dumps(loop)))
    assert found[0] is found
    assert read_pickle(io.BytesIO(b"\x80\x02X\x01\x00\x00\x00aQ.")) == Reference("a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged"),
        (b"]", "damaged"),
        (b".", "takes more from the stack than is there"),
        (b"(0.", "damaged"),
        (b"u.", "a mark is missing"),
        (b"h\x07.", "damaged"),
        (b"K\x01K\x02b.", "sets the state of a int"),
        (b"K\x01K\x02a.", "appends to a int"),
        (b"}((K\x01tK\x02u.", "a tuple as a key"),
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"\xff", "damaged"),
        (b"]K\x01K\x02\x93.", "a name that is no text"),
        (b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"K\x01s.", "a dictionary with a int as a key"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(PickleError, match=message):
        read_pickle(io.BytesIO(data))


def name(text: str) -> bytes:
    return b"c" + text.replace(" ", "\n").encode() + b"\n"


OBJECT_DTYPE = name("numpy dtype") + b"X\x02\x00\x00\x00O8K\x00K\x01\x87R"
ARRAY = name("numpy ndarray")
HOSTILE = {
    # An array of objects over a buffer of the file's choosing: pointers to anywhere.
    "ndarray of objects over bytes": ARRAY + b"(K\x01\x85" + OBJECT_DTYPE + b"B\x08\x00\x00\x00AAAAAAAAtR",
    "ndarray made by its type": ARRAY + b"(K\x01\x85" + OBJECT_DTYPE + b"B\x08\x00\x00\x00AAAAAAAAt\x81",
    "state of the function itself": name("numpy.core.multiarray _reconstruct") + b"}X\x08\x00\x00\x00__code__Nsb",
    "state and slots of the function": name("numpy.core.multiarray _reconstruct")
    + b"N}X\x08\x00\x00\x00__code__Ns\x86b",
    "call of a method's name": name("numpy ndarray.tofile") + b"X\x01\x00\x00\x00x\x85R",
    "an array of 2^62 bytes": name("numpy.core.multiarray _reconstruct") + ARRAY + b"K\x00\x85C\x01b\x87R"
    b"(K\x01\x8a\x08"
    + (2**62).to_bytes(8, "little")
    + b"\x85"
    + name("numpy dtype")
    + b"X\x02\x00\x00\x00u1\x85R\x89C\x01atb",
    "a shape of nested tuples": name("numpy.core.multiarray _reconstruct") + ARRAY + b"K\x00\x85C\x01b\x87R"
    b"(K\x01" + b")" + b"2\x86" * 60 + name("numpy dtype") + b"X\x02\x00\x00\x00u1\x85R\x89C\x01atb",
}


def batch_of(data: bytes) -> bytes:
    return b"\x80\x03}(C\x04data" + data + b"C\x06labels](K\x01K\x02eu."


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_arrays_are_refused_and_nothing_crashes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(batch_of(HOSTILE[kind]))
    script = (
        "import sys; from pathlib import Path; from convla.experiments.training.formats import *\n"
        "try:\n    images, labels = read_cifar_python(Path(sys.argv[1])); print(images.sum())\n"
        "except DatasetError as error:\n    print('refused:', error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol_and_order(protocol: int, order: Any, tmp_path: Path) -> None:
    images = np.asarray(np.random.default_rng(0).integers(256, size=(3, 3072), dtype=np.uint8), order=order)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": images, b"labels": [3, 0, 9]}, protocol))
    found, labels = read_cifar_python(path)
    assert np.array_equal(found.reshape(3, -1), images)
    assert labels.tolist() == [3, 0, 9]


@pytest.mark.command
@pytest.mark.parametrize("trials", [400, pytest.param(4000, marks=pytest.mark.slow)])
def test_mutated_pickles_are_read_or_refused_soon_and_in_little_memory(trials: int, tmp_path: Path) -> None:
    path, rng = tmp_path / "data_batch_1", np.random.default_rng(5)
    images = rng.integers(256, size=(2, 3072), dtype=np.uint8)
    wholes = [pickle.dumps({b"data": images, b"labels": [1, 2]}, protocol) for protocol in range(6)]
    instructions = b"}]()NaeusbRQ0122hqcKJTUX\x81\x82\x85\x86\x87\x8a\x8b\x8c\x8d\x8e\x90\x92\x93\x94\x95\x96"
    messages = []
    tracemalloc.start()
    for trial in range(trials):
        content = bytearray(wholes[trial % len(wholes)])
        for _ in range(int(rng.integers(1, 8))):
            # The text around the data is what steers the machine.
            at = int(rng.integers(150)) if rng.random() < 0.5 else -1 - int(rng.integers(120))
            at = max(-len(content), min(at, len(content) - 1))
            kind = rng.integers(4)
            if kind == 0:
                content[at] = int(rng.integers(256))
            elif kind == 1:
                content[at] = instructions[int(rng.integers(len(instructions)))]
            elif kind == 2:
                content[at:at] = bytes([instructions[int(rng.integers(len(instructions)))]]) + rng.bytes(4)
            else:
                content[at : at + int(rng.integers(1, 5))] = rng.bytes(int(rng.integers(5)))
        path.write_bytes(bytes(content))
        began = time.process_time()
        try:
            found, _ = read_cifar_python(path)
            assert found.shape[1:] == (3, 32, 32)
        except DatasetError as error:
            messages.append(str(error))
        assert time.process_time() - began < 1.0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(messages) > trials * 2 // 3
    assert not any("\n" in message for message in messages)
    assert peak < 4_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"a.",  # a bytearray of a length that is not there
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"a.",
        b"\x80\x02Nr\xff\xff\xff\xff.",  # an entry of the memo far beyond the others
        b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",  # an integer of two thousand million bytes
        b"\x80\x02]" + b"2\x86" * 10_000 + b".",  # 2^10000 ways through 10000 pairs
        b"(" * 10_000 + b".",
    ],
)
def test_lengths_are_not_trusted(data: bytes) -> None:
    began = time.process_time()
    tracemalloc.start()
    with contextlib.suppress(PickleError):
        read_pickle(io.BytesIO(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    assert time.process_time() - began < 2.0


def test_endless_programs_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    with pytest.raises(PickleError, match="more than 1000 instructions"):
        read_pickle(io.BytesIO(b"N0" * 2000 + b"."))


def test_pipes_devices_and_giants_are_not_read(tmp_path: Path) -> None:
    pipe, endless, giant = (tmp_path / name for name in ("pipe", "endless", "giant"))
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    with giant.open("wb") as file:
        file.truncate(2**27)  # a hole: no disk is used
    for path, message in ((pipe, "not a regular file"), (endless, "not a regular file"), (giant, "at most 67108864")):
        with pytest.raises(DatasetError, match=message):
            read_cifar_python(path)
