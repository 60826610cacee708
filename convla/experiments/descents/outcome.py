"""One setting run in full: its random draws, its descents, and what is kept of every repetition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from convla import feature_map_gram
from convla.errors import EngineError
from convla.experiments.descents.draws import chunk_size, draw
from convla.experiments.descents.filters import descend_filters
from convla.experiments.descents.functions import check_loss, check_optimizer
from convla.experiments.descents.pairs import OPTIMIZERS, choose_engine, descend_pairs, dot, quadratic_form
from convla.experiments.descents.settings import Setting
from convla.experiments.session import joined
from convla.extending import check_cuda, check_integer, namespace, to_numpy
from convla.typing import Array

__all__ = ["GROWTH", "Outcome", "check_engine", "recut", "run_setting", "setting_engine"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

ENTRIES = 2**23
"""Numbers that the matrices of one descent may have together: repetitions with many taps are run fewer at a time."""

GROWTH = 1e3
"""Kernels that grew by more than this diverged, though perhaps not yet to infinity: no minimised loss rewards growth,
and steps that are merely too long for a while stay far below it."""


@dataclass(frozen=True, repr=False)
class Outcome:
    """What is kept of each repetition of a setting; [:, 0] is the start of the descent and [:, 1] its end.

    Attributes
    ----------
    correlation : numpy.ndarray of shape (R,)
        Of the loss and the feature-map similarity over the iterates.
    loss, similarity : numpy.ndarray of shape (R, 2)
        The loss, and the feature-map similarity in the reading that was asked for.
    norms : numpy.ndarray of shape (R, 2, S)
        |K_i|, along the last axis.
    cosine : numpy.ndarray of shape (R, 2)
        The modulus of the cosine of the feature maps, in the mean over their pairs.
    """

    correlation: Floats
    loss: Floats
    similarity: Floats
    norms: Floats
    cosine: Floats

    def __repr__(self) -> str:
        converged = int(np.count_nonzero(self.converged))
        return f"<Outcome of {self.repetitions} repetitions of {self.norms.shape[-1]} kernels, {converged} converged>"

    def __getitem__(self, rows: slice) -> Outcome:
        """Return some repetitions."""
        return Outcome(**{name: values[rows] for name, values in vars(self).items()})

    @property
    def repetitions(self) -> int:
        """How many repetitions were run."""
        return int(self.correlation.size)

    @property
    def converged(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which repetitions stayed finite, neither kernel more than `GROWTH` times as long as at the start.

        The others diverged: they are counted, and kept out of every statistic.
        """
        ends = np.concatenate([self.loss, self.similarity, *np.moveaxis(self.norms, 2, 0)], axis=1)
        bounded = self.norms[:, 1] <= GROWTH * self.norms[:, 0]
        kept: np.ndarray[Any, np.dtype[np.bool_]] = np.all(np.concatenate([bounded, np.isfinite(ends)], axis=1), axis=1)
        return kept

    @property
    def survival(self) -> Floats:
        """What is left of the kernels' lengths in the converged repetitions, the shortest first: shape (R', S)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self.norms[self.converged, 1] / self.norms[self.converged, 0]
        ordered: Floats = np.sort(ratios, axis=1)
        return ordered

    @property
    def diverged(self) -> int:
        """How many repetitions diverged."""
        return int(self.repetitions - self.converged.sum())


def recut(parts: Iterable[Outcome], size: int) -> Iterator[Outcome]:
    """Yield the repetitions of some parts in blocks of `size`, counted from the first; the last may have fewer."""
    waiting: list[Outcome] = []  # less than a block together
    room = size
    for part in parts:
        start = 0
        while start < part.repetitions:
            piece = part[start : start + room]
            start, room = start + piece.repetitions, room - piece.repetitions
            waiting.append(piece)
            if not room:
                yield joined(waiting)
                waiting, room = [], size
    if waiting:
        yield joined(waiting)


def run_setting(
    setting: Setting,
    *,
    repetitions: int,
    seed: int,
    start: int = 0,
    engine: str = "auto",
    advance: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Run repetitions of one setting.

    Parameters
    ----------
    setting : convla.experiments.descents.settings.Setting
    repetitions : int
        How many, at least 1.
    start : int, default 0
        The number of the first one.
    seed : int
        At least 0.
    engine : {"auto", "reference", "numba", "cuda"}
        "cuda" puts the draws on the GPU and runs them there; the others stay on the CPU.
    advance : callable
        Told, after every chunk, how many repetitions it had.

    Returns
    -------
    Outcome

    Raises
    ------
    EngineError
        If the engine is not available.

    Examples
    --------
    >>> from convla.experiments.csm.settings import Readings, table_settings
    >>> outcome = run_setting(table_settings()[0].descent(Readings()), repetitions=100, seed=0)
    >>> bool(outcome.loss[:, 1].max() < 1e-4), outcome.diverged
    (True, 0)
    """
    check_integer("repetitions", repetitions, minimum=1)
    check_integer("seed", seed, minimum=0)
    check_engine(engine)
    if setting.function is not None:
        check_loss(setting.loss, draw(setting, seed, 0, 4)[1])
    if setting.optimizer not in OPTIMIZERS:
        check_optimizer(setting.optimizer, draw(setting, seed, 0, 4)[1][:, 0].reshape(4, -1).T.copy())
    engine = setting_engine(setting, engine)
    parts: list[Outcome] = []
    for x, kernels in _drawn(setting, seed, start, start + repetitions):
        if engine == "cuda":
            import cupy

            x, kernels = cupy.asarray(x), cupy.asarray(kernels)
        parts.append(_run_chunk(setting, x, kernels, engine))
        advance(len(x))
    return joined(parts)


def check_engine(engine: str) -> str:
    """Return the engine that a run would use, "numba", "reference" or "cuda", before any work.

    Raises
    ------
    EngineError
        If it is not available.
    ValueError
        If it is unknown, here or in the environment.
    """
    if engine == "cuda":
        check_cuda()
        return engine
    return choose_engine(engine)


def setting_engine(setting: Setting, engine: str) -> str:
    """Return the engine that runs a setting: what `check_engine` says, where the setting is in the compiled range.

    Raises
    ------
    EngineError
        If it is asked for by name, and the setting is not.
    """
    choice = check_engine(engine)
    if setting.compiled or choice == "reference":
        return choice
    if engine in ("auto", "direct"):
        return "reference"
    raise EngineError(f"engine {engine!r} does not run {setting.beyond_compiled}: use 'auto' or 'reference'")


def _drawn(setting: Setting, seed: int, start: int, stop: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield inputs and kernels of the repetitions from `start` to before `stop`, a few at a time."""
    most = max(1, ENTRIES // setting.taps**2)
    size = chunk_size(setting)
    for chunk in range(start // size, -(-stop // size)):
        first = chunk * size
        x, kernels = draw(setting, seed, chunk, min(size, stop - first))
        for low in range(max(0, start - first), len(x), most):
            yield x[low : low + most], kernels[low : low + most]


def _run_chunk(setting: Setting, x: Array, kernels: Array, engine: str) -> Outcome:
    xp = namespace(x, kernels)
    size, padding = setting.kernel_shape[1:], setting.padding
    gram = feature_map_gram(x, size, padding=padding, stride=setting.stride)  # type: ignore[arg-type]
    first = xp.reshape(kernels, (*kernels.shape[:2], -1))
    run: Any
    if setting.compiled:
        run = descend_pairs(first[:, 0, :], first[:, 1, :], gram, **_options(setting), engine=engine)
        last = [run.k1, run.k2]
    else:
        run = descend_filters(first, gram, setting)
        last = list(xp.unstack(run.kernels, axis=1))
    ends = [list(xp.unstack(first, axis=1)), last]
    norms, cosines = zip(*(_describe_kernels(kernels, gram) for kernels in ends), strict=True)
    return Outcome(
        to_numpy(run.correlation),
        to_numpy(run.loss),
        to_numpy(run.similarity),
        np.stack(norms, axis=1),
        np.stack(cosines, axis=1),
    )


def _options(setting: Setting) -> dict[str, Any]:
    loss, normalized = setting.minimized
    return {
        "loss": loss,
        "normalized": normalized,
        "toeplitz": (setting.padding, setting.stride, setting.dimensions, setting.channels) == ("full", 1, 1, 1),
        "similarity": setting.similarity,
        "optimizer": setting.optimizer,
        "learning_rate": setting.learning_rate,
        "iterations": setting.iterations,
        "both": setting.train == "both",
    }


def _describe_kernels(kernels: list[Array], gram: Array) -> tuple[Floats, Floats]:
    """Return the kernels' norms (R, S) and the mean |cos| of their feature maps (R,), on the host."""
    xp = namespace(*kernels, gram)
    # NumPy's own sums depend on how the memory is laid out, which differs between the engines.
    kernels, gram = [xp.permute_dims(k, (1, 0)) for k in kernels], xp.permute_dims(gram, (1, 2, 0))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norm = xp.sqrt(xp.stack([dot(k, k) for k in kernels], axis=1))
        lengths = [xp.sqrt(quadratic_form(k, gram, k)) for k in kernels]
        pairs = list(itertools.combinations(range(len(kernels)), 2))
        cosines = [xp.abs(quadratic_form(kernels[i], gram, kernels[j])) / (lengths[i] * lengths[j]) for i, j in pairs]
        cosine = sum(cosines[1:], cosines[0]) / len(pairs)
    return to_numpy(norm), to_numpy(cosine)
