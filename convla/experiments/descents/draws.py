"""What kernels and inputs are drawn from; the draws of a chunk follow from the seed, their stream and its number."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from convla.errors import ConvlaError, install_line

__all__ = [
    "CHUNK",
    "DISTRIBUTIONS",
    "DrawError",
    "check_draws",
    "check_streams",
    "chunk_size",
    "digest",
    "draw",
    "stream_key",
]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Generator = np.random.Generator

CHUNK = 1024
"""Repetitions drawn together, or fewer of large ones. The draws of a chunk depend on the seed, the stream and the
chunk's number alone, so neither the number of workers nor the number of repetitions changes those of a repetition."""

NUMBERS = 2**23
"""That a chunk may hold: a part draws its chunk from the start, and may need its last repetition alone."""


class DrawError(ConvlaError, ValueError):
    """What is to be drawn from is not there, or does not fit."""


def chunk_size(layer: Any) -> int:
    """Return how many repetitions of a setting are drawn together, a power of two."""
    numbers = math.prod(layer.input_shape) + layer.kernels * math.prod(layer.kernel_shape)
    fitting = max(1, NUMBERS // int(numbers))
    return min(CHUNK, 1 << (fitting.bit_length() - 1))


def draw(layer: Any, seed: int, chunk: int, size: int) -> tuple[Floats, Floats]:
    """Return inputs, and kernels with an axis for which one, of so many repetitions of a setting."""
    key = (*stream_key(layer), chunk)
    inputs, weights = int(np.prod(layer.input_shape)), layer.kernels * int(np.prod(layer.kernel_shape))
    if layer.inputs == layer.weights == "uniform":
        # One row after the other, the input before the kernels, as ever since version 0.1.
        uniform = _generator(seed, *key).random((size, inputs + weights))
        x, k = uniform[:, :inputs], 2.0 * uniform[:, inputs:] - 1.0
        return x.reshape(size, *layer.input_shape), k.reshape(size, layer.kernels, *layer.kernel_shape)
    x = _draw(layer.inputs, _generator(seed, *key, 0), (size, *layer.input_shape))
    k = _draw(layer.weights, _generator(seed, *key, 1), (size * layer.kernels, *layer.kernel_shape), weights=True)
    return x, k.reshape(size, layer.kernels, *layer.kernel_shape)


def stream_key(layer: Any) -> tuple[int, ...]:
    """Return the numbers that a setting's draws follow from, beside the seed.

    A name of one's own, such as those of the published tables, goes in by its CRC32, as ever since version 0.1: two of
    them may have the same one, and `check_streams` refuses them. What goes by what is drawn has no name to change, and
    goes in by 128 bits of BLAKE2.
    """
    if layer.stream:
        return (zlib.crc32(layer.stream.encode()),)
    return struct.unpack("<4I", hashlib.blake2b(layer.draws.encode(), digest_size=16).digest())


def check_streams(layers: Iterable[Any]) -> None:
    """Raise if settings whose streams have other names would draw the same numbers."""
    names: dict[tuple[int, ...], str] = {}
    for layer in layers:
        other = names.setdefault(stream_key(layer), layer.draws)
        if other != layer.draws:
            raise DrawError(
                f"streams {other!r} and {layer.draws!r} would draw the same numbers, as their names have the same "
                "CRC32: change one of them"
            )


def _generator(seed: int, *key: int) -> Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _draw(name: str, generator: Generator, shape: tuple[int, ...], *, weights: bool = False) -> Floats:
    if name in DISTRIBUTIONS:
        return DISTRIBUTIONS[name](generator, shape, weights)
    return _patches(_images(name), generator, shape)


def _uniform(generator: Generator, shape: tuple[int, ...], weights: bool) -> Floats:
    uniform = generator.random(shape)
    return 2.0 * uniform - 1.0 if weights else uniform


def _normal(generator: Generator, shape: tuple[int, ...], weights: bool) -> Floats:  # noqa: ARG001
    return generator.standard_normal(shape)


def _correlated(generator: Generator, shape: tuple[int, ...], weights: bool) -> Floats:  # noqa: ARG001
    """Filter white noise to an amplitude of 1 / frequency, without a mean, of variance 1 in the mean."""
    axes = shape[2:]
    grid = np.meshgrid(*(np.fft.fftfreq(n) for n in axes), indexing="ij")
    frequency = np.sqrt(sum(f * f for f in grid))
    amplitude = np.divide(1.0, frequency, out=np.zeros(axes), where=frequency > 0.0)
    amplitude /= np.sqrt(np.mean(amplitude**2)) or 1.0
    noise = generator.standard_normal(shape)
    where = tuple(range(-len(axes), 0))
    # One at a time: what a transform of many rounds may depend on how many they are.
    rows = [np.fft.ifftn(amplitude * np.fft.fftn(row, axes=where), axes=where).real for row in noise]
    return np.stack(rows)


def _natural(generator: Generator, shape: tuple[int, ...], weights: bool) -> Floats:
    """Cut patches out of two photographs, values in [0, 1]; kernels without their mean."""
    patches: Any = _patches(_photographs(shape[1]), generator, shape)
    means: Any = patches.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    centred: Floats = patches - means if weights else patches
    return centred


DISTRIBUTIONS: dict[str, Callable[[Generator, tuple[int, ...], bool], Floats]] = {
    "uniform": _uniform,
    "normal": _normal,
    "correlated": _correlated,
    "natural": _natural,
}
"""Uniform on [0, 1], kernels on [-1, 1]; standard normal; normal noise whose amplitude falls like 1 / frequency;
patches of the two photographs that come with scikit-learn."""


def check_draws(name: str, value: str, shape: tuple[int, ...]) -> None:
    """Raise unless arrays of a shape, channels first, can be drawn from a distribution, or a file of images."""
    if value == "natural":
        _patches(_photographs(shape[0]), np.random.default_rng(0), (1, *shape))
    elif value not in DISTRIBUTIONS:
        if not str(value).endswith(".npy"):
            known = ", ".join(map(repr, DISTRIBUTIONS))
            raise DrawError(f"{name} must be one of {known}, or a .npy file, got {value!r}")
        _patches(_images(value), np.random.default_rng(0), (1, *shape))


def digest(value: str) -> str:
    """Return a hash of what a file that is drawn from holds; empty for a distribution."""
    return "" if value in DISTRIBUTIONS else _digest(value, _state(value))


def _images(path: str) -> Floats:
    """Return the images of a file, read once, and once more when it is another."""
    return _read(path, _state(path))


def _state(path: str) -> tuple[int, ...]:
    """Return what tells a file from what it was before it was written anew."""
    try:
        if not Path(path).is_file():  # a pipe would wait for a writer
            raise OSError("no such file")
        found = os.stat(path)
    except OSError as error:
        raise DrawError(f"{path} cannot be read: {error}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.lru_cache(maxsize=64)
def _digest(path: str, state: tuple[int, ...]) -> str:
    return hashlib.sha256(_read(path, state).tobytes()).hexdigest()[:16]


@functools.lru_cache(maxsize=8)
def _read(path: str, state: tuple[int, ...]) -> Floats:  # noqa: ARG001 - the state is what it is remembered by
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DrawError(f"{path} cannot be read: {error}") from error
    if array.dtype.kind not in "fiu" or array.ndim < 2 or not array.size:
        got = f"{array.dtype} of shape {array.shape}"
        raise DrawError(f"{path} must hold real numbers of shape (images, channels, *size), got {got}")
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise DrawError(f"{path} must hold finite numbers, got {count} of {array.size} that are not")
    images: Floats = array.astype(np.float64)
    return images


@functools.cache
def _photographs(channels: int) -> Floats:
    if channels not in (1, 3):
        raise DrawError(f"channels must be 1 or 3 for natural images, got {channels}")
    try:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
    except ImportError as error:
        raise DrawError(f"natural images need scikit-learn and Pillow: {install_line('study')}") from error
    colours = np.stack([photograph.astype(np.float64).transpose(2, 0, 1) / 255.0 for photograph in photographs])
    grey: Floats = colours.mean(axis=1, keepdims=True)
    return colours if channels == 3 else grey


def _patches(images: Floats, generator: Generator, shape: tuple[int, ...]) -> Floats:
    """Cut a patch at a random place out of a random image for each row; of one axis, a piece of a row."""
    size, channels, *wanted = shape
    if images.ndim == len(shape) - 1:
        images = images[:, None]  # one channel, which is not told
    window = (*(1,) * (images.ndim - 2 - len(wanted)), *wanted)
    room = [n - w + 1 for n, w in zip(images.shape[2:], window, strict=False)]
    if images.ndim < len(shape) or images.shape[1] != channels or min(room) < 1:
        raise DrawError(
            f"images of shape {images.shape[1:]} have no patches of {channels} channels and size {tuple(wanted)}"
        )
    places = generator.integers([len(images), *room], size=(size, 1 + len(room)))
    patches = [
        images[(number, slice(None), *(slice(p, p + w) for p, w in zip(corner, window, strict=True)))]
        for number, *corner in places
    ]
    return np.stack(patches).reshape(shape)
