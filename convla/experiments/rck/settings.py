"""The runs behind Figures 3.1 and 3.2 of Guo and Ye, and the two that this package sets beside them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from convla.extending import in_order

if TYPE_CHECKING:
    from convla import ConvOperator
    from convla.penalties import PenaltyDescent

__all__ = ["ALPHAS", "ITERATIONS", "SHAPES", "FigureSetting", "Traces", "figure_settings", "run_figure"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

ITERATIONS = 40
LEARNING_RATE = 0.01
IMAGE = (15, 15)
SHAPES = ((3, 1), (1, 3), (3, 6), (6, 3))
"""(input channels, output channels) of the panels of Figure 3.1, alpha = 1."""
ALPHAS = (0.1, 1.0, 5.0, 10.0)
"""Of the panels of Figure 3.2, kernels 3x3x3x1."""


def _options(variant: str) -> dict[str, Any]:
    """Return what `minimize_penalty` is told.

    "printed" is Algorithm 2.1 by the power method; "svd" by the full SVD at every step, which the paper reports as
    comparable; "remedy" the penalty on the smaller Gram matrix, both ends tracked.
    """
    from convla.penalties import Backtracking, Block, FixedStep

    options: dict[str, dict[str, Any]] = {
        "printed": {"tracker": "power", "step": FixedStep(LEARNING_RATE)},
        "svd": {"tracker": "exact", "step": FixedStep(LEARNING_RATE)},
        "remedy": {"tracker": Block(cluster_rtol=0.01), "step": Backtracking(LEARNING_RATE), "gram": "smaller"},
    }
    return options[variant]


@dataclass(frozen=True)
class FigureSetting:
    """One panel's descent.

    Attributes
    ----------
    in_channels, out_channels : int
    alpha : float
    variant : {"printed", "svd", "remedy"}
    """

    in_channels: int
    out_channels: int
    alpha: float
    variant: str = "printed"

    @property
    def kernel(self) -> str:
        """The kernel's size as the paper writes it: '3x3x3x1'."""
        return f"3x3x{self.in_channels}x{self.out_channels}"

    @property
    def name(self) -> str:
        """The setting's name, and its file's."""
        return f"figure-{self.kernel}-alpha{self.alpha:g}-{self.variant}"

    def describe(self) -> dict[str, Any]:
        """Return the setting as plain data, for the manifest."""
        return asdict(self) | {"name": self.name, "iterations": ITERATIONS, "learning_rate": LEARNING_RATE}


@dataclass(frozen=True)
class Traces:
    """The traces of one setting, a row for each random kernel, a column for each iterate.

    A descent that ended early keeps its last values to the end of its row.

    Attributes
    ----------
    reported, true : numpy.ndarray of shape (kernels, ITERATIONS + 1)
        sigma_max(M^T M - alpha I) as the algorithm has it, and from all singular values.
    sigma_max, sigma_min, condition : numpy.ndarray of shape (kernels, ITERATIONS + 1)
        Of M.
    steps : numpy.ndarray of shape (kernels,)
        How many steps were taken.
    """

    reported: Floats
    true: Floats
    sigma_max: Floats
    sigma_min: Floats
    condition: Floats
    steps: Floats

    def first(self, kernels: int) -> Traces:
        """Return the rows of the first kernels."""
        return Traces(**{name: values[:kernels] for name, values in vars(self).items()})


def figure_settings() -> tuple[FigureSetting, ...]:
    """Return the settings of both figures and what is set beside them, each once.

    Examples
    --------
    >>> [setting.name for setting in figure_settings()][:2]
    ['figure-3x3x3x1-alpha1-printed', 'figure-3x3x1x3-alpha1-printed']
    """
    printed = [FigureSetting(*shape, 1.0) for shape in SHAPES]
    printed += [FigureSetting(*SHAPES[0], alpha) for alpha in ALPHAS]
    svd = [FigureSetting(*SHAPES[0], alpha, "svd") for alpha in ALPHAS] + [FigureSetting(*SHAPES[1], 1.0, "svd")]
    remedy = [FigureSetting(*shape, 1.0, "remedy") for shape in SHAPES if shape[0] > shape[1]]
    return tuple(dict.fromkeys([*printed, *svd, *remedy]))


def run_figure(
    setting: FigureSetting, *, kernels: int, seed: int, start: int = 0, advance: Callable[[int], None] = lambda _: None
) -> Traces:
    """Run one setting from several random kernels, uniform on [0, 1].

    Parameters
    ----------
    setting : FigureSetting
    kernels : int
        How many. The draws depend on the seed, the kernel's size and its number alone, so the panels of one size share
        them.
    seed : int
    start : int, default 0
        The number of the first kernel.
    advance : callable
        Told after every kernel that one more is done.

    Returns
    -------
    Traces
    """
    rows: dict[str, list[Any]] = {field.name: [] for field in fields(Traces)}
    for descent in in_order(partial(_descend, setting, seed), range(start, start + kernels)):
        for name in rows.keys() - {"steps"}:
            values = getattr(descent.trace, name)
            rows[name].append(np.concatenate([values, np.full(ITERATIONS + 1 - values.size, values[-1])]))
        rows["steps"].append(float(descent.iteration))
        advance(1)
    return Traces(**{name: np.array(values) for name, values in rows.items()})


def _descend(setting: FigureSetting, seed: int, number: int) -> PenaltyDescent[ConvOperator]:
    """Descend from one random kernel: most of the time one thread of LAPACK finds all singular values."""
    from convla import ConvOperator, kernel_from_hwio, minimize_penalty  # for which the tables do not wait

    sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(setting.kernel.encode()), number))
    drawn = np.random.default_rng(sequence).random((3, 3, setting.in_channels, setting.out_channels))
    layer = ConvOperator(kernel_from_hwio(drawn), IMAGE)
    return minimize_penalty(layer, setting.alpha, iterations=ITERATIONS, measure=True, **_options(setting.variant))
