"""One setting run in full: its random draws, its descents, and what is kept of every repetition."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from convla import feature_map_gram
from convla.experiments.descents.pairs import choose_engine, descend_pairs, dot, quadratic_form
from convla.experiments.descents.settings import Setting
from convla.extending import check_cuda, check_integer, namespace, to_numpy
from convla.typing import Array

__all__ = ["CHUNK", "GROWTH", "Outcome", "check_engine", "run_setting"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

CHUNK = 1024
"""Repetitions drawn and run together. The draws of a chunk depend on the seed, the setting and the chunk's number
alone, so neither the number of workers nor the number of repetitions changes those of a repetition."""


GROWTH = 1e3
"""Kernels that grew by more than this diverged, though perhaps not yet to infinity: no minimised loss rewards growth,
and steps that are merely too long for a while stay far below it."""


@dataclass(frozen=True)
class Outcome:
    """What is kept of each repetition of a setting; [:, 0] is the start of the descent and [:, 1] its end.

    Attributes
    ----------
    correlation : numpy.ndarray of shape (R,)
        Of the loss and the feature-map similarity over the iterates.
    loss, similarity : numpy.ndarray of shape (R, 2)
        The loss, and the feature-map similarity in the reading that was asked for.
    norms : numpy.ndarray of shape (R, 2, 2)
        |K1| and |K2|, along the last axis.
    cosine : numpy.ndarray of shape (R, 2)
        The modulus of the cosine of the feature maps.
    """

    correlation: Floats
    loss: Floats
    similarity: Floats
    norms: Floats
    cosine: Floats

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
        """What is left of the kernels' lengths in the converged repetitions, the shorter first: shape (R', 2)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self.norms[self.converged, 1] / self.norms[self.converged, 0]
        ordered: Floats = np.sort(ratios, axis=1)
        return ordered

    @property
    def diverged(self) -> int:
        """How many repetitions diverged."""
        return int(self.repetitions - self.converged.sum())


def run_setting(
    setting: Setting,
    *,
    repetitions: int,
    seed: int,
    engine: str = "auto",
    advance: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Run one setting.

    Parameters
    ----------
    setting : Setting
    repetitions : int
        At least 1.
    seed : int
        At least 0.
    engine : {"auto", "reference", "numba", "cuda"}
        "cuda" puts the draws on the GPU and runs the reference there; the others stay on the CPU.
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
    parts = []
    for chunk, size in enumerate(_chunk_sizes(repetitions)):
        x, k1, k2 = _draw(setting, seed, chunk, size)
        if engine == "cuda":
            import cupy

            x, k1, k2 = cupy.asarray(x), cupy.asarray(k1), cupy.asarray(k2)
        parts.append(_run_chunk(setting, x, k1, k2, "reference" if engine == "cuda" else engine))
        advance(size)
    columns = {field.name: np.concatenate([part[field.name] for part in parts]) for field in fields(Outcome)}
    return Outcome(**columns)


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


def _chunk_sizes(repetitions: int) -> Iterator[int]:
    for start in range(0, repetitions, CHUNK):
        yield min(CHUNK, repetitions - start)


def _draw(setting: Setting, seed: int, chunk: int, size: int) -> tuple[Floats, Floats, Floats]:
    """Draw X ~ U(0, 1) and K1, K2 ~ U(-1, 1), one row for each repetition."""
    key = (zlib.crc32(setting.draws.encode()), chunk)
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    uniform = generator.random((size, setting.m + 2 * setting.n))
    x, k1, k2 = np.split(uniform, [setting.m, setting.m + setting.n], axis=1)
    return x, 2.0 * k1 - 1.0, 2.0 * k2 - 1.0


def _run_chunk(setting: Setting, x: Array, k1: Array, k2: Array, engine: str) -> dict[str, Floats]:
    gram = feature_map_gram(x[:, None, :], (setting.n,), padding=setting.padding)  # type: ignore[arg-type]
    run = descend_pairs(k1, k2, gram, **setting.descent(), engine=engine)
    norms, cosines = zip(*(_describe_pair(a, b, gram) for a, b in ((k1, k2), (run.k1, run.k2))), strict=True)
    return {
        "correlation": to_numpy(run.correlation),
        "loss": to_numpy(run.loss),
        "similarity": to_numpy(run.similarity),
        "norms": np.stack(norms, axis=1),
        "cosine": np.stack(cosines, axis=1),
    }


def _describe_pair(k1: Array, k2: Array, gram: Array) -> tuple[Floats, Floats]:
    """Return the kernels' norms (R, 2) and |cos| of their feature maps (R,), on the host."""
    xp = namespace(k1, k2, gram)
    # NumPy's own sums depend on how the memory is laid out, which differs between the engines.
    k1, k2, gram = xp.permute_dims(k1, (1, 0)), xp.permute_dims(k2, (1, 0)), xp.permute_dims(gram, (1, 2, 0))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norm = xp.sqrt(xp.stack([dot(k1, k1), dot(k2, k2)], axis=1))
        lengths = [xp.sqrt(quadratic_form(k, gram, k)) for k in (k1, k2)]
        cosine = xp.abs(quadratic_form(k1, gram, k2)) / (lengths[0] * lengths[1])
    return to_numpy(norm), to_numpy(cosine)
