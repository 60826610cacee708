"""The convolution kernels in a file of weights, and their initialisation from file to file."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convla._validate import check_integer
from convla.errors import WeightsError
from convla.networks.naming import named_as_kernel, why_no_kernel
from convla.networks.parametrizations import assemble
from convla.networks.weights import (
    Weights,
    check_convertible,
    check_weights_name,
    read_model,
    read_weights,
    rewrite_weights,
    write_weights,
)
from convla.similarity import Initialization, initialize_network

__all__ = ["ModelArrays", "choose_kernels", "initialize_file", "split_kernels"]


class ModelArrays(NamedTuple):
    """The arrays of a model.

    Attributes
    ----------
    kernels : dict of str to numpy.ndarray
        Its convolution kernels, by name.
    others : dict of str to str
        Why each other array is none.
    """

    kernels: dict[str, np.ndarray[Any, Any]]
    others: dict[str, str]


def split_kernels(arrays: Mapping[str, Any]) -> ModelArrays:
    """Tell convolution kernels from the other arrays of a model.

    A kernel is any array of finite float32 or float64 numbers with 3 to 5 axes, (c_out, c_in, *kernel), no empty one,
    that is not by its name or its neighbours something else: part of an optimizer's state, the scale of a
    normalisation, a table of positions, an average of another kernel. The weights that weight_norm, spectral_norm and
    pruning hold in parts are put together.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray

    Returns
    -------
    ModelArrays

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.kernels import split_kernels
    >>> split_kernels({"conv": np.ones((2, 1, 3, 3)), "linear": np.ones((2, 3))}).others
    {'linear': '2 axes: a convolution kernel has 3 to 5, (c_out, c_in, *kernel)'}
    """
    made = assemble(arrays)
    targets = {part: name for name, weight in made.items() for part in weight.parts}
    whole = {**arrays, **{name: weight.array for name, weight in made.items()}}
    found = ModelArrays({}, {})
    for stored in arrays:
        name = targets.get(stored, stored)
        if name != stored:
            found.others[stored] = f"a part of {name}"
            if name in found.kernels:
                continue
        reason = why_no_kernel(name, whole)
        if reason is not None:
            found.others[stored] = reason
            continue
        found.kernels[name] = np.asarray(whole[name])
    return found


def choose_kernels(weights: Weights, only: Sequence[str] = ()) -> ModelArrays:
    """Choose the kernels of a file that may be changed.

    Parameters
    ----------
    weights : Weights
    only : sequence of str
        Patterns of names, ``*`` standing for anything: these arrays. Without any it is those that `split_kernels` finds
        as they are stored, and whose last name says that they are a kernel: weight, kernel, filter or conv.

    Returns
    -------
    ModelArrays
        ``others`` says why each other array stays as it is.

    Raises
    ------
    ValueError
        If a pattern matches nothing, or something that cannot be a kernel.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.kernels import choose_kernels
    >>> from convla.networks.weights import Weights
    >>> weights = Weights({"conv.weight": np.ones((2, 1, 3)), "table": np.ones((2, 1, 3))})
    >>> choose_kernels(weights).others
    {'table': 'a table, such as one of positions, by its name'}
    """
    arrays = weights.arrays
    if only:
        named = [name for name in arrays if any(fnmatch.fnmatchcase(name, pattern) for pattern in only)]
        for pattern in only:
            if not fnmatch.filter(arrays, pattern):
                raise ValueError(f"only: {pattern!r} matches none of the {len(arrays)} arrays")
        for name in named:
            if reason := why_no_kernel("weight", {"weight": arrays[name]}):
                raise ValueError(f"only: {name!r} is no kernel: {reason}")
        others = {name: "not named by only" for name in arrays if name not in named}
        return ModelArrays({name: arrays[name] for name in named}, others | weights.unread)
    found = split_kernels(arrays)
    kernels, others = {}, found.others | weights.unread
    for name, kernel in found.kernels.items():
        if name not in arrays:
            others[name] = "not stored as it is, but in parts"
        elif not named_as_kernel(name):
            others[name] = "its name does not say that it is a kernel: only can name it"
        else:
            kernels[name] = kernel
    return ModelArrays(kernels, others)


def initialize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    iterations: int = 200,
    learning_rate: float = 0.001,
    keep_norms: bool = False,
    state: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    only: Sequence[str] = (),
    chosen: Callable[[ModelArrays], None] | None = None,
    progress: Callable[[Initialization], None] | None = None,
) -> Initialization:
    """Minimise the convolutional similarity of a file's kernels and write the file again with these in their place.

    Parameters
    ----------
    source, target : path
        Files of weights, as in `read_model`, of one format. Everything but the kernels is copied bit for bit: other
        arrays, dtypes, nesting, names, and values that are no arrays. Between formats this can be done for files of
        nothing but arrays by name.
    iterations, learning_rate, keep_norms, progress
        As in `initialize_network`.
    state : path, optional
        An .npz file that keeps the state; if it is there, the minimisation goes on from it.
    save_every : int, default 50
        Steps between two savings of the state.
    only : sequence of str
        Patterns of the names of the kernels, as in `choose_kernels`, which chooses by a rule where there are none.
    chosen : callable, optional
        Told, before the first step, which kernels will be changed, and why the other arrays will not.

    Returns
    -------
    Initialization
        The last state.

    Raises
    ------
    WeightsError, OSError
        If a file cannot be read or written, the source holds no convolution kernel, or the target's format has no
        place for all that the source holds.
    TypeError, ValueError
        If an option is out of range, or the state belongs to other layers or settings.

    References
    ----------
    CSM, Algorithm 1.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from convla.networks.kernels import initialize_file
    >>> from convla.networks.weights import write_weights
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = pathlib.Path(name)
    ...     write_weights(folder / "in.npz", {"conv.weight": np.random.default_rng(0).standard_normal((4, 3, 3, 3))})
    ...     initialize_file(folder / "in.npz", folder / "out.npz", iterations=2).iteration
    2
    """
    save_every = check_integer("save_every", save_every, minimum=1)
    check_weights_name(target)
    if state is not None:
        check_weights_name(state)
    weights = read_model(source)
    check_convertible(source, target, weights)
    choice = choose_kernels(weights, only)
    if not choice.kernels:
        raise WeightsError(
            f"{source}: holds no convolution kernel among its {len(weights.arrays)} arrays, by their names and shapes"
        )
    if chosen is not None:
        chosen(choice)
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
        choice.kernels,
        iterations=iterations,
        learning_rate=learning_rate,
        keep_norms=keep_norms,
        start=start,
        progress=after_step,
    )
    rewrite_weights(source, target, result.kernels)
    return result
