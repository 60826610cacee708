"""The data sets' readers: on files written here in the original formats, whole, truncated, malformed and hostile."""

from __future__ import annotations

import gzip
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.experiments.training.datasets import load_dataset, split_stratified
from convla.experiments.training.formats import (
    DatasetError,
    read_cifar_binary,
    read_cifar_python,
    read_idx_images,
    read_idx_labels,
)

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def idx_arrays(seed: int = 0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    shapes = [((12, 28, 28), 256), ((12,), 10), ((7, 28, 28), 256), ((7,), 10)]
    return [rng.integers(high, size=shape, dtype=np.uint8) for shape, high in shapes]


def cifar_batch(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, 3, 32, 32), dtype=np.uint8), rng.integers(10, size=count, dtype=np.uint8)


def binary_bytes(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> bytes:
    # The format's own words: the label, then 1024 red, 1024 green and 1024 blue bytes, row by row.
    return b"".join(
        bytes([label]) + image[0].tobytes() + image[1].tobytes() + image[2].tobytes()
        for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
def test_mnist_is_read_as_it_was_written(tmp_path: Path, suffix: str, folder: str) -> None:
    arrays = idx_arrays()
    (tmp_path / folder).mkdir(parents=True)
    for name, array in zip(NAMES, arrays, strict=True):
        data = idx_bytes(array)
        (tmp_path / folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    dataset = load_dataset("mnist", tmp_path)
    assert dataset.white == 255
    found = (dataset.train[:, 0], dataset.train_labels, dataset.test[:, 0], dataset.test_labels)
    assert all(np.array_equal(a, b) for a, b in zip(found, arrays, strict=True))
    with pytest.raises(DatasetError, match=r"Fashion-MNIST is not in .*fashion-mnist"):
        load_dataset("fashion-mnist", tmp_path)


def test_names_with_a_dot_are_found_too(tmp_path: Path) -> None:
    (tmp_path / "fashion-mnist").mkdir()
    for name, array in zip(NAMES, idx_arrays(), strict=True):
        (tmp_path / "fashion-mnist" / name.replace("-idx", ".idx")).write_bytes(idx_bytes(array))
    assert load_dataset("fashion-mnist", tmp_path).train.shape == (12, 1, 28, 28)


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("nested", [True, False])
def test_cifar10_is_read_as_it_was_written(tmp_path: Path, version: str, nested: bool) -> None:
    folder = (
        tmp_path / ("cifar-10-batches-bin" if version == "binary" else "cifar-10-batches-py") if nested else tmp_path
    )
    folder.mkdir(exist_ok=True)
    batches = {f"data_batch_{number}": cifar_batch(3, number) for number in range(1, 6)} | {
        "test_batch": cifar_batch(4, 9)
    }
    for name, (images, labels) in batches.items():
        if version == "binary":
            (folder / f"{name}.bin").write_bytes(binary_bytes(images, labels))
        else:
            batch = {b"data": images.reshape(-1, 3072), b"labels": labels.tolist(), b"batch_label": b"a batch"}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    dataset = load_dataset("cifar10", tmp_path)
    assert np.array_equal(dataset.train, np.concatenate([batches[f"data_batch_{n}"][0] for n in range(1, 6)]))
    assert np.array_equal(dataset.train_labels, np.concatenate([batches[f"data_batch_{n}"][1] for n in range(1, 6)]))
    assert np.array_equal(dataset.test, batches["test_batch"][0])
    assert np.array_equal(dataset.test_labels, batches["test_batch"][1])


def test_a_batch_pickled_by_python_2_is_read(tmp_path: Path) -> None:
    # As Python 2 and its NumPy wrote it, opcode by opcode: names of numpy.core, strings of bytes, protocol 2.
    data = bytes(range(256)) * 12

    def text(content: bytes) -> bytes:
        return b"U" + bytes([len(content)]) + content

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
        + b"(K\x01" + b"K\x01M\x00\x0c\x86"
        + b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        + b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89" + b"T" + len(data).to_bytes(4, "little") + data + b"tb"
    )  # fmt: skip
    pickled = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"]K\x07a" + b"u."
    (tmp_path / "data_batch_1").write_bytes(pickled)
    images, labels = read_cifar_python(tmp_path / "data_batch_1")
    assert images.tobytes() == data
    assert labels.tolist() == [7]


class _Hostile:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder / "made-by-the-pickle"),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": _Hostile(tmp_path), b"labels": []}, protocol=protocol))
    with pytest.raises(DatasetError, match="data_batch_1: refused: it names"):
        read_cifar_python(path)
    assert not (tmp_path / "made-by-the-pickle").exists()
    # The same file does it when it is simply unpickled.
    pickle.loads(path.read_bytes())
    assert (tmp_path / "made-by-the-pickle").exists()


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {b"data": np.zeros((2, 3072), np.uint8)},
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1.5]},
        {b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]},
        {b"data": np.array([object()]), b"labels": [0]},
    ],
)
def test_other_pickles_are_refused_in_one_line(tmp_path: Path, batch: Any) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DatasetError, match="data_batch_1: ") as caught:
        read_cifar_python(path)
    assert "\n" not in str(caught.value)


def test_a_pickle_with_a_persistent_name_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"Pname\n.")
    with pytest.raises(DatasetError, match="a dictionary with an array 'data'") as caught:
        read_cifar_python(path)
    assert "\n" not in str(caught.value)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    images, labels = cifar_batch(2, 0)
    whole = {
        "data_batch_1.bin": (binary_bytes(images, labels), read_cifar_binary),
        "data_batch_1": (pickle.dumps({b"data": images.reshape(2, -1), b"labels": labels.tolist()}), read_cifar_python),
        "train-images-idx3-ubyte": (idx_bytes(idx_arrays()[0]), read_idx_images),
        "train-images-idx3-ubyte.gz": (gzip.compress(idx_bytes(idx_arrays()[0])), read_idx_images),
        "train-labels-idx1-ubyte": (idx_bytes(idx_arrays()[1]), read_idx_labels),
    }
    for name, (data, read) in whole.items():
        path = tmp_path / name
        path.write_bytes(data)
        read(path)
        for length in (0, 1, 3, 7, len(data) // 2 - 1, len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(DatasetError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)


def test_malformed_files_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.array([3, 10, 2])))
    with pytest.raises(DatasetError, match="labels must be below 10, got 10"):
        read_idx_labels(path)
    with pytest.raises(DatasetError, match="with 3 axes is wanted, got type 8 with 1 axes"):
        read_idx_images(path)
    path.write_bytes(idx_bytes(np.array([3, 1])) + b"\0")
    with pytest.raises(DatasetError, match="2 values are announced, more follow"):
        read_idx_labels(path)
    path.write_bytes(bytes([0, 0, 8, 1, 0xFF, 0xFF, 0xFF, 0xFF, 1]))
    with pytest.raises(DatasetError, match="4294967295 values are announced, and at most"):
        read_idx_labels(path)
    path.with_suffix(".gz").write_bytes(b"not gzip at all")
    with pytest.raises(DatasetError, match="not a whole gzip file"):
        read_idx_labels(path.with_suffix(".gz"))


def test_a_gzip_file_is_unpacked_no_further_than_it_announces(tmp_path: Path) -> None:
    path, size = tmp_path / "train-labels-idx1-ubyte.gz", 2**26
    path.write_bytes(gzip.compress(idx_bytes(np.array([3, 1])) + bytes(size)))
    assert path.stat().st_size < size // 500
    tracemalloc.start()
    with pytest.raises(DatasetError, match="2 values are announced, more follow"):
        read_idx_labels(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size // 16


def test_missing_files_say_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"CIFAR-10 is not in .*cifar-10-batches-bin.*data_batch_1.bin.*--data"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(DatasetError, match=r"MNIST is not in .*train-images-idx3-ubyte.*mnist.*--data"):
        load_dataset("mnist", tmp_path)
    images, labels = cifar_batch(1, 0)
    (tmp_path / "data_batch_1.bin").write_bytes(binary_bytes(images, labels))
    with pytest.raises(DatasetError, match=r"data_batch_2.bin: no such file"):
        load_dataset("cifar10", tmp_path)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / NAMES[0]).write_bytes(idx_bytes(idx_arrays()[0]))
    with pytest.raises(DatasetError, match=r"train-labels-idx1-ubyte: no such file"):
        load_dataset("mnist", tmp_path)
    for name, array in zip(NAMES, [idx_arrays()[0], *idx_arrays()[3:], *idx_arrays()[2:]], strict=False):
        (tmp_path / "mnist" / name).write_bytes(idx_bytes(array))
    with pytest.raises(DatasetError, match="7 labels for the 12 images"):
        load_dataset("mnist", tmp_path)


def test_the_digits_are_split_by_class_and_always_alike() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    digits = load_dataset("digits", Path("nowhere"))
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert digits.train.max() == digits.white == 16
    shares = np.bincount(digits.test_labels) / np.bincount(np.concatenate([digits.train_labels, digits.test_labels]))
    assert np.abs(shares - 0.2).max() < 0.005
    assert digits.digest == load_dataset("digits", Path("elsewhere")).digest


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_stratified_split_loses_nothing(share: float) -> None:
    labels = np.random.default_rng(0).integers(10, size=203).astype(np.uint8)
    kept, held = split_stratified(labels, share, seed=1)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(203))
    assert len(held) == round(share * 203)
    assert np.abs(np.bincount(labels[held], minlength=10) - share * np.bincount(labels, minlength=10)).max() < 1
    assert not np.array_equal(held, split_stratified(labels, share, seed=2)[1])
