"""The convolution kernels in a file of weights, and their initialisation from file to file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convla._validate import check_integer
from convla.errors import WeightsError
from convla.models.weights import check_weights_name, read_weights, write_weights
from convla.similarity import Initialization, initialize_network

__all__ = ["ModelArrays", "initialize_file", "split_kernels"]


class ModelArrays(NamedTuple):
    """The arrays of a model: its convolution kernels by name, and why each other one is none."""

    kernels: dict[str, np.ndarray[Any, Any]]
    others: dict[str, str]


def split_kernels(arrays: Mapping[str, Any]) -> ModelArrays:
    """Tell convolution kernels from the other arrays of a model.

    A kernel is taken to be any array of finite float32 or float64 numbers with 3 to 5 axes, (c_out, c_in, *kernel), and
    no empty one.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray

    Returns
    -------
    ModelArrays
        ``kernels``, and ``others`` with the reason in words.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.models.kernels import split_kernels
    >>> split_kernels({"conv": np.ones((2, 1, 3, 3)), "linear": np.ones((2, 3))}).others
    {'linear': '2 axes: a convolution kernel has 3 to 5, (c_out, c_in, *kernel)'}
    """
    reasons = {name: _why_not(array) for name, array in arrays.items()}
    kernels = {name: np.asarray(array) for name, array in arrays.items() if reasons[name] is None}
    return ModelArrays(kernels, {name: reason for name, reason in reasons.items() if reason is not None})


def initialize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    iterations: int = 200,
    learning_rate: float = 0.001,
    keep_norms: bool = False,
    state: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    progress: Callable[[Initialization], None] | None = None,
) -> Initialization:
    """Minimise the convolutional similarity of a file's kernels and write all its arrays to another file.

    Parameters
    ----------
    source, target : path
        Files of weights, as in `read_weights`. What is no convolution kernel is copied.
    iterations, learning_rate, keep_norms, progress
        As in `initialize_network`.
    state : path, optional
        An .npz file that keeps the state; if it is there, the minimisation goes on from it.
    save_every : int, default 50
        Steps between two savings of the state.

    Returns
    -------
    Initialization
        The last state.

    Raises
    ------
    WeightsError, OSError
        If a file cannot be read or written, or the source holds no convolution kernel.
    TypeError, ValueError
        If an option is out of range, or the state belongs to other layers or settings.

    References
    ----------
    CSM, Algorithm 1.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.models.kernels import initialize_file
    >>> from convla.models.weights import write_weights
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = pathlib.Path(name)
    ...     write_weights(folder / "in.npz", {"conv": np.random.default_rng(0).standard_normal((4, 3, 3, 3))})
    ...     initialize_file(folder / "in.npz", folder / "out.npz", iterations=2).iteration
    2
    """
    save_every = check_integer("save_every", save_every, minimum=1)
    check_weights_name(target)
    if state is not None:
        check_weights_name(state)
    arrays = read_weights(source)
    kernels = split_kernels(arrays).kernels
    if not kernels:
        raise WeightsError(f"{source}: holds no convolution kernel among its {len(arrays)} arrays")
    state_path = None if state is None else Path(state)
    start = None
    if state_path is not None and state_path.exists():
        try:
            start = Initialization.from_arrays(read_weights(state_path))
        except ValueError as error:
            raise WeightsError(f"{state_path}: {error}") from error

    def after_step(now: Initialization) -> None:
        if state_path is not None and (now.iteration % save_every == 0 or now.iteration == iterations):
            write_weights(state_path, now.to_arrays())
        if progress is not None:
            progress(now)

    result = initialize_network(
        kernels,
        iterations=iterations,
        learning_rate=learning_rate,
        keep_norms=keep_norms,
        state=start,
        progress=after_step,
    )
    write_weights(target, {**arrays, **result.kernels})
    return result


def _why_not(array: Any) -> str | None:
    if not 3 <= array.ndim <= 5:
        return f"{array.ndim} axes: a convolution kernel has 3 to 5, (c_out, c_in, *kernel)"
    if array.dtype not in (np.float32, np.float64):
        return f"dtype {array.dtype}: a convolution kernel holds floating-point numbers"
    if array.size == 0:
        return f"an empty axis in shape {array.shape}"
    if not np.isfinite(array).all():
        return "NaN or infinity in it"
    return None
