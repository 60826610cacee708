"""The data sets by name: the digits that come with scikit-learn, and CIFAR-10, MNIST, Fashion-MNIST from files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import install_line
from convla.experiments.training.formats import (
    DatasetError,
    read_cifar_binary,
    read_cifar_python,
    read_idx_images,
    read_idx_labels,
)
from convla.extending import check_choice

__all__ = ["DATASETS", "Dataset", "load_dataset", "split_stratified"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

TEST_SHARE = 0.2
SPLIT_SEED = 0
"""The digits come without a split of their own; this one is fixed, whatever the seed of the runs."""


@dataclass(frozen=True)
class Dataset:
    """Images as bytes, with labels.

    Attributes
    ----------
    name : str
    train, test : numpy.ndarray of uint8, of shape (images, channels, height, width)
    train_labels, test_labels : numpy.ndarray of uint8, of shape (images,)
    white : int
        The byte that stands for 1.0.
    classes : int
    """

    name: str
    train: Bytes
    train_labels: Bytes
    test: Bytes
    test_labels: Bytes
    white: int
    classes: int = 10

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all images and labels: results of other data are other results."""
        sha = hashlib.sha256()
        for array in (self.train, self.train_labels, self.test, self.test_labels):
            sha.update(repr(array.shape).encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()[:16]


def load_dataset(name: str, folder: Path) -> Dataset:
    """Return a data set.

    Parameters
    ----------
    name : {"digits", "cifar10", "mnist", "fashion-mnist"}
    folder : Path
        Where the folders of the last three are, with the files in their original formats: ``cifar-10-batches-bin`` or
        ``cifar-10-batches-py``, ``mnist`` or ``MNIST/raw``, ``fashion-mnist`` or ``FashionMNIST/raw``. The digits need
        none.

    Returns
    -------
    Dataset

    Raises
    ------
    DatasetError
        If the files are not there (the message says which are wanted, and where), or are malformed.
    ValueError
        If there is no data set of that name.

    Examples
    --------
    >>> digits = load_dataset("digits", Path("data"))
    >>> digits.train.shape, digits.test.shape, digits.white
    ((1438, 1, 8, 8), (359, 1, 8, 8), 16)
    """
    return DATASETS[check_choice("dataset", name, tuple(DATASETS))](Path(folder))


def split_stratified(labels: Bytes, share: float, seed: int) -> tuple[Any, Any]:
    """Return the places of a training and a held-out part, with `share` of every class in the latter.

    Parameters
    ----------
    labels : numpy.ndarray of shape (images,)
    share : float
        Of the held-out part, between 0 and 1. The classes with the largest remainders get one more, so that it has the
        nearest integer to its share of all.
    seed : int
        At least 0.

    Returns
    -------
    tuple of numpy.ndarray
        Both sorted.

    Examples
    --------
    >>> kept, held = split_stratified(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint8), 0.25, seed=0)
    >>> len(kept), len(held)
    (6, 2)
    """
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    exact = share * counts
    sizes = np.floor(exact).astype(int)
    missing = round(share * labels.size) - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:missing]] += 1
    held = [
        generator.permutation(np.flatnonzero(labels == name))[:size] for name, size in zip(classes, sizes, strict=True)
    ]
    places = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(labels.size), places), places


def _load_digits(_: Path) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetError(f"the digits need scikit-learn: {install_line('train')}") from error
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.uint8)
    kept, held = split_stratified(labels, TEST_SHARE, SPLIT_SEED)
    return Dataset("digits", images[kept], labels[kept], images[held], labels[held], white=16)


def _load_cifar10(folder: Path) -> Dataset:
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    for place in (folder / "cifar-10-batches-bin", folder):
        if (place / f"{batches[0]}.bin").exists():
            train = [read_cifar_binary(_present(place / f"{name}.bin")) for name in batches]
            test = read_cifar_binary(_present(place / "test_batch.bin"))
            return _cifar(train, test)
    for place in (folder / "cifar-10-batches-py", folder):
        if (place / batches[0]).exists():
            train = [read_cifar_python(_present(place / name)) for name in batches]
            return _cifar(train, read_cifar_python(_present(place / "test_batch")))
    raise DatasetError(
        f"CIFAR-10 is not in {folder}: put {folder / 'cifar-10-batches-bin'} there, with data_batch_1.bin to "
        "data_batch_5.bin and test_batch.bin as unpacked from cifar-10-binary.tar.gz (or the folder "
        "cifar-10-batches-py of cifar-10-python.tar.gz), or name the folder that holds it with --data"
    )


def _cifar(train: Sequence[tuple[Bytes, Bytes]], test: tuple[Bytes, Bytes]) -> Dataset:
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return Dataset("cifar10", images, labels, *test, white=255)


def _load_idx(name: str, title: str, folders: Sequence[str], folder: Path) -> Dataset:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for place in (folder / inner for inner in folders):
        paths = [_variant(place, stem) for stem in names]
        if paths[0] is None:
            continue
        for path, stem in zip(paths, names, strict=True):
            if path is None:
                raise DatasetError(f"{place / stem}-ubyte: no such file (nor with .gz)")
        train, train_labels, test, test_labels = (path for path in paths if path is not None)
        arrays = (*_pair(train, train_labels), *_pair(test, test_labels))
        if arrays[0].shape[1:] != arrays[2].shape[1:]:
            raise DatasetError(f"{test}: images of another size than those of {train.name}")
        return Dataset(name, *arrays, white=255)
    raise DatasetError(
        f"{title} is not in {folder}: put {', '.join(f'{stem}-ubyte' for stem in names)}, plain or as .gz, into "
        f"{folder / folders[0]}, or name the folder above it with --data"
    )


def _variant(place: Path, stem: str) -> Path | None:
    # Some distributions have a dot where the original names have a hyphen.
    spellings = (stem, stem.replace("-idx", ".idx"))
    candidates = [place / f"{spelling}-ubyte{suffix}" for suffix in ("", ".gz") for spelling in spellings]
    return next((path for path in candidates if path.exists()), None)


def _pair(images: Path, labels: Path) -> tuple[Bytes, Bytes]:
    pixels, names = read_idx_images(images), read_idx_labels(labels)
    if len(pixels) != len(names):
        raise DatasetError(f"{labels}: {len(names)} labels for the {len(pixels)} images of {images.name}")
    return pixels[:, None], names


def _present(path: Path) -> Path:
    if not path.exists():
        raise DatasetError(f"{path}: no such file, though its neighbours are there")
    return path


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "digits": _load_digits,
    "cifar10": _load_cifar10,
    "mnist": lambda folder: _load_idx("mnist", "MNIST", ("mnist", "MNIST/raw"), folder),
    "fashion-mnist": lambda folder: _load_idx(
        "fashion-mnist", "Fashion-MNIST", ("fashion-mnist", "FashionMNIST/raw"), folder
    ),
}
"""The loaders by name."""
