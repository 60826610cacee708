"""Gradient descent on the penalty sigma_max(M^T M - alpha I): Algorithm 2.1 of Guo and Ye, and descents that settle."""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from convla._array import all_finite, namespace, on_device_of, to_numpy
from convla._checks import check_kernel, check_not_followed
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_integer, check_real
from convla.errors import ConvergenceWarning, ConvlaError
from convla.operators import ConvOperator
from convla.penalties._estimators import ESTIMATORS, EstimatorOptions
from convla.penalties.spectrum import Spectrum, fourth_powers_fit, measure_spectrum
from convla.penalties.value import ActivePairs, check_alpha, floating, pair_gradient
from convla.spectra.status import Status
from convla.spectra.tracking import DENSE_ENTRIES
from convla.typing import Array, ArrayLike, Boundary, Padding

__all__ = [
    "STEPS",
    "Options",
    "PenaltyDescent",
    "Trace",
    "minimize_penalty",
]

STEPS = ("fixed", "backtracking")

GROWTH = 1e4
"""A descent has diverged when its kernel is this many times as long as the first one and the root of alpha together;
a minimiser is shorter than that: its singular values are at most the root of 2 alpha."""

ARMIJO = 1e-4  # the share of the predicted decrease that a step must reach (Nocedal and Wright, Section 3.1)
HALVINGS = 40

LOST = 0.01
"""An estimate that is off by this part of the penalty, or of alpha, comes from vectors that have to be found anew."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Callback = Callable[["PenaltyDescent"], object]


@dataclass(frozen=True, kw_only=True)
class Options(EstimatorOptions):
    """What a descent does, as given to `minimize_penalty`."""

    learning_rate: float
    step: str
    tolerance: float
    patience: int
    measure: bool | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("learning_rate", self.learning_rate, positive=True)
        check_choice("step", self.step, STEPS)
        check_real("tolerance", self.tolerance, minimum=0.0)
        check_integer("patience", self.patience, minimum=1)
        if self.measure is not None and not isinstance(self.measure, bool):
            raise TypeError(f"measure must be True, False or None, got {self.measure!r}")
        if self.step != "fixed" and self.tracker == "power":
            raise ValueError(
                f"step {self.step!r} needs a penalty that can be trusted, tracker 'block' or 'exact', got 'power'"
            )


@dataclass(frozen=True)
class Trace:
    """What is recorded at every iterate, the first kernel included.

    Attributes
    ----------
    reported : numpy.ndarray of shape (iterations + 1,)
        The penalty as the tracker has it; where a backtracking descent decomposed the matrix, the true one.
    true : numpy.ndarray of shape (iterations + 1,)
        The penalty from all singular values; NaN, as the next three, where they are not measured.
    sigma_max, sigma_min, condition : numpy.ndarray of shape (iterations + 1,)
        Of M, with min(m, n) singular values; the condition number is infinite where sigma_min is 0.
    step : numpy.ndarray of shape (iterations + 1,)
        The length, in units of the gradient, of the step that led to the iterate; NaN at the first.
    """

    reported: Floats
    true: Floats
    sigma_max: Floats
    sigma_min: Floats
    condition: Floats
    step: Floats


def minimize_penalty(
    kernel: ArrayLike,
    image_shape: Sequence[int],
    *,
    alpha: float = 1.0,
    learning_rate: float = 0.01,
    iterations: int,
    tracker: str = "power",
    power_iterations: int = 2,
    block: int = 4,
    block_steps: int = 20,
    gram: str = "input",
    step: str = "fixed",
    cluster_rtol: float | None = None,
    tolerance: float = 0.0,
    patience: int = 10,
    measure: bool | None = None,
    callback: Callback | None = None,
    padding: Padding = "same",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
) -> PenaltyDescent:
    """Steer the singular values of a convolution towards the root of alpha by gradient descent on its kernel.

    The defaults are Algorithm 2.1 as printed: two triplets by the power method, a fixed step. Where it lags or
    oscillates, use ``tracker="block", step="backtracking", cluster_rtol=0.01``.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        Where the descent starts; integers become float64.
    image_shape : sequence of int
        The sizes of the image without its channels.
    alpha : float
        The wanted square of every singular value, positive.
    learning_rate : float
        The step, positive; with "backtracking" the first one tried.
    iterations : int
        How many steps at most.
    tracker : {"power", "block", "exact"}
        How singular triplets are followed: two of ``M^T M - alpha I`` by the power method, each on its own, as printed;
        both ends of the spectrum, each by a block; or the decomposition of the whole matrix at every step.
    power_iterations : int
        Of the power method in each step.
    block, block_steps : int
        Vectors at each end, and steps of the block iteration in each step of the descent; fewer once it has settled.
    gram : {"input", "smaller"}
        Of ``M^T M``, as printed, or of the smaller of ``M^T M`` and ``M M^T``: with more input than output channels the
        first cannot go below alpha, and does nothing for sigma_min.
    step : {"fixed", "backtracking"}
        The learning rate throughout; or halved until the penalty decreases enough, and doubled after.
    cluster_rtol : float, optional
        How close to the leading eigenvalues others count as active, whose gradients are averaged; see
        `penalty_gradient`. Not used by "power".
    tolerance, patience : float, int
        The descent has converged when `patience` steps together lowered the least reported penalty by at most
        ``tolerance`` times it. With 0 it goes on.
    measure : bool, optional
        Whether to compute all singular values at every iterate, for the trace; by default where the matrix has at most
        2**20 entries.
    callback : callable, optional
        Called with the `PenaltyDescent` after every step, to show progress, to save it, or to stop it by returning
        True.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.

    Returns
    -------
    PenaltyDescent
        With the kernel, the trace and the status; it can be saved, loaded and run on.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is wrong in type, shape or value.
    OverflowError
        If fourth powers of the singular values can be beyond the kernel's dtype.

    Warns
    -----
    ConvergenceWarning
        If the descent diverges; the message and the result name the iteration.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Algorithm 2.1.
    J. Nocedal and S. J. Wright, Numerical Optimization, 2nd ed., Springer, 2006, Section 3.1 (backtracking).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import minimize_penalty
    >>> kernel = np.random.default_rng(0).random((3, 1, 3, 3))
    >>> descent = minimize_penalty(kernel, (8, 8), iterations=20)
    >>> descent.status, descent.iteration
    ('iterations', 20)
    >>> bool(descent.trace.true[-1] < 0.1 * descent.trace.true[0])
    True
    """
    options = Options(
        alpha=alpha,
        gram=gram,
        tracker=tracker,
        power_iterations=power_iterations,
        block=block,
        block_steps=block_steps,
        cluster_rtol=cluster_rtol,
        learning_rate=learning_rate,
        step=step,
        tolerance=tolerance,
        patience=patience,
        measure=measure,
    )
    check_integer("iterations", iterations, minimum=0)
    xp = namespace(kernel)
    operator = ConvOperator(
        check_kernel(kernel, xp),
        image_shape,
        padding=padding,
        stride=stride,
        dilation=dilation,
        groups=groups,
        boundary=boundary,
    )
    operator = floating(operator)
    check_not_followed("kernel", operator.kernel, "a descent")
    check_alpha(alpha, operator)
    if not fourth_powers_fit(operator):
        raise OverflowError(
            f"kernel is too large for a descent in {operator.dtype}, which takes fourth powers of its singular values: "
            "scale the kernel, and alpha by the square of the factor"
        )
    return PenaltyDescent(operator, options).run(iterations, callback)


class PenaltyDescent:
    """A descent on the penalty: where it is, how it came there, and how to go on; made by `minimize_penalty`.

    Attributes
    ----------
    operator : ConvOperator
        Of the current kernel.
    iteration : int
        How many steps were taken.
    status : {"iterations", "converged", "stationary", "stalled", "stopped", "diverged"}
        Why the last run ended: all iterations were done; the penalty no longer decreased; its gradient vanished; no
        step along it decreased the penalty; the callback asked for it; the kernel grew without bound.
    """

    def __init__(self, operator: ConvOperator, options: Options) -> None:
        self.operator = operator
        self.options = options
        self.status = "iterations"
        self.iteration = 0
        self._estimator = ESTIMATORS[options.tracker](options)
        self._first_norm = float(np.linalg.norm(to_numpy(operator.kernel)))
        self._pairs: ActivePairs | None = None
        self._step = options.learning_rate
        self._rows: list[tuple[float, ...]] = []

    @property
    def kernel(self) -> Array:
        """The current kernel: the last finite one where the descent diverged."""
        return self.operator.kernel

    @property
    def accuracy(self) -> Status | None:
        """What supports the last reported penalty: None before the first run."""
        return None if self._pairs is None else self._pairs.status

    @property
    def trace(self) -> Trace:
        """What was recorded at every iterate."""
        return Trace(*np.array(self._rows, dtype=np.float64).reshape(-1, len(fields(Trace))).T)

    @property
    def message(self) -> str:
        """The status in words, with the iteration."""
        reasons = {
            "iterations": "all iterations done",
            "converged": f"{self.options.patience} steps lowered the penalty by no more than the tolerance",
            "stationary": "the gradient vanished",
            "stalled": "no step along the gradient lowers the penalty",
            "stopped": "stopped by the callback",
            "diverged": "diverged: the kernel grew without bound, try a smaller learning rate",
        }
        return f"iteration {self.iteration}: {reasons[self.status]}"

    @blas_on_one_thread()
    def run(self, iterations: int, callback: Callback | None = None) -> PenaltyDescent:
        """Take up to so many more steps, and return self.

        Parameters
        ----------
        iterations : int
        callback : callable, optional
            As for `minimize_penalty`.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import minimize_penalty
        >>> descent = minimize_penalty(np.ones((1, 1, 3)), (8,), iterations=5)
        >>> descent.run(5).iteration
        10
        """
        check_integer("iterations", iterations, minimum=0)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        if self.status == "diverged":
            return self
        if self._pairs is None:
            self._pairs, measured = self._estimator.estimate(self.operator), None
            if self.options.step == "backtracking":
                self._pairs, measured = self._confirmed(self.operator, self._pairs)
            if not self._rows:
                self._record(math.nan, measured)
        self.status = "iterations"
        for _ in range(iterations):
            self.status = self._advance(self._pairs)
            if self.status == "iterations" and callback is not None and callback(self) is True:
                self.status = "stopped"
            if self.status != "iterations":
                break
        if self.status == "diverged":
            warnings.warn(self.message, ConvergenceWarning, stacklevel=4)
        return self

    def _advance(self, pairs: ActivePairs) -> str:
        """Take one step and return the status after it."""
        gradient = pair_gradient(self.operator, self.options.gram, pairs)
        xp = namespace(gradient)
        square = float(xp.sum(gradient * gradient))
        # The gradient is of the order of sigma, and its rounding errors with it: below them it carries no information.
        if math.sqrt(square) <= float(xp.finfo(gradient.dtype).eps) * math.sqrt(pairs.value + self.options.alpha):
            return "stationary"
        if self.options.step == "backtracking":
            return self._backtrack(pairs, gradient, square)
        return self._move(self._step, gradient)

    def _move(self, step: float, gradient: Array) -> str:
        """Do steps 5 to 7 of Algorithm 2.1: change the kernel and update the triplets."""
        self.iteration += 1
        operator = self._ahead(step, gradient)
        if operator is None:
            return "diverged"
        self.operator = operator
        self._pairs = self._estimator.estimate(operator)
        self._record(step)
        return "converged" if self._has_settled() else "iterations"

    def _ahead(self, step: float, gradient: Array) -> ConvOperator | None:
        """Return the operator after a step, or None where its kernel grew without bound."""
        xp = namespace(gradient)
        with np.errstate(over="ignore", invalid="ignore"):
            kernel = self.kernel - step * gradient
            norm = float(xp.linalg.vector_norm(kernel))
        if not (all_finite(kernel, xp) and norm <= self._limit):
            return None
        operator = self.operator.with_kernel(kernel)
        return operator if fourth_powers_fit(operator) else None

    @property
    def _limit(self) -> float:
        """The norm of a kernel from which on the descent has diverged."""
        return GROWTH * (self._first_norm + math.sqrt(self.options.alpha))

    def _backtrack(self, pairs: ActivePairs, gradient: Array, square: float) -> str:
        before = self._estimator.state()
        # From a longer step the kernel would be out of bounds, and the halvings would be spent on coming back.
        step = min(self._step, self._limit / math.sqrt(square))
        rounding = float(namespace(gradient).finfo(gradient.dtype).eps) * (pairs.value + self.options.alpha)
        for _ in range(HALVINGS):
            if ARMIJO * step * square <= rounding:
                break
            operator = self._ahead(step, gradient)
            if operator is not None:
                found, bar = self._estimator.estimate(operator), pairs.value - ARMIJO * step * square
                measured = None
                if found.value <= bar:
                    found, measured = self._confirmed(operator, found)
                if found.value + found.error <= bar:
                    self.iteration += 1
                    self.operator, self._pairs, self._step = operator, found, 2.0 * step
                    self._record(step, measured)
                    return "converged" if self._has_settled() else "iterations"
                self._estimator.restore(before, self.kernel)
            step /= 2.0
        return "stalled"

    def _confirmed(self, operator: ConvOperator, found: ActivePairs) -> tuple[ActivePairs, Spectrum | None]:
        """Hold an estimate against all singular values of a small matrix, or against another search of a large one."""
        if math.prod(operator.shape) > DENSE_ENTRIES:
            return self._estimator.challenge(operator, found), None
        measured = measure_spectrum(operator, self.options.alpha, self.options.gram)
        if abs(measured[0] - found.value) > LOST * max(measured[0], self.options.alpha):
            found = self._estimator.restart(operator)
        return replace(found, value=measured[0], error=0.0, status=Status.EXACT), measured

    def _has_settled(self) -> bool:
        if self.options.tolerance == 0.0 or len(self._rows) <= self.options.patience:
            return False
        least = np.minimum.accumulate([row[0] for row in self._rows])
        return bool(least[-1 - self.options.patience] - least[-1] <= self.options.tolerance * least[-1])

    def _record(self, step: float, measured: Spectrum | None = None) -> None:
        wanted = self.options.measure
        if wanted is False:
            measured = None
        elif measured is None and (wanted or math.prod(self.operator.shape) <= DENSE_ENTRIES):
            measured = measure_spectrum(self.operator, self.options.alpha, self.options.gram)
        value = self._pairs.value if self._pairs is not None else math.nan
        self._rows.append((value, *(measured or (math.nan,) * 4), step))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the descent to an ``.npz`` file, from which `load` goes on with the same numbers.

        The file is written beside its place and moved there, so an interrupted save leaves the earlier one whole.
        """
        arrays: dict[str, Any] = {f"estimator_{key}": value for key, value in self._estimator.state().items()}
        if self._pairs is not None:
            pairs = {f.name: getattr(self._pairs, f.name) for f in fields(ActivePairs)}
            arrays |= {
                f"pairs_{name}": to_numpy(value) for name, value in (pairs | {"status": str(pairs["status"])}).items()
            }
        geometry = self.operator.geometry
        header = {
            "options": asdict(self.options),
            "geometry": {
                name: getattr(geometry, name)
                for name in ("image_shape", "padding", "stride", "dilation", "groups", "boundary")
            },
            "status": self.status,
            "iteration": self.iteration,
            "numbers": [self._first_norm, self._step],
        }
        buffer = io.BytesIO()
        np.savez(buffer, header=np.array(json.dumps(header)), rows=self._rows, kernel=to_numpy(self.kernel), **arrays)
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(buffer.getvalue())
        os.replace(part, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str], like: Array | None = None) -> PenaltyDescent:
        """Return a saved descent, ready to `run` on.

        Parameters
        ----------
        path : path-like
        like : array, optional
            The descent goes on with arrays of its library and on its device; with NumPy's by default.

        Raises
        ------
        ConvlaError
            If the file is not one that `save` wrote.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> import numpy as np
        >>> from convla import minimize_penalty
        >>> from convla.penalties.minimize import PenaltyDescent
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "descent.npz"
        ...     descent = minimize_penalty(np.ones((1, 1, 3)), (8,), iterations=5)
        ...     descent.save(path)
        ...     resumed = PenaltyDescent.load(path).run(5)
        >>> bool(np.all(resumed.kernel == descent.run(5).kernel))
        True
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                data = dict(file)
            header = json.loads(str(data["header"]))
            like = data["kernel"] if like is None else like
            xp = namespace(like)
            kernel = on_device_of(data["kernel"], like, xp)
            descent = cls(ConvOperator(kernel, **header["geometry"]), Options(**header["options"]))
            descent.status, descent.iteration = header["status"], header["iteration"]
            descent._first_norm, descent._step = header["numbers"]
            descent._rows = [tuple(map(float, row)) for row in data["rows"]]
            state = {k.removeprefix("estimator_"): v for k, v in data.items() if k.startswith("estimator_")}
            descent._estimator.restore(state, like)
            value, *arrays, nulls, spread, status = (data[f"pairs_{f.name}"] for f in fields(ActivePairs))
        except (ValueError, KeyError, TypeError) as error:
            raise ConvlaError(f"{path} is not a saved descent ({error})") from error
        signs, vectors, images = (on_device_of(array, like, xp) for array in arrays)
        descent._pairs = ActivePairs(
            float(value), signs, vectors, images, int(nulls), float(spread), Status(str(status))
        )
        return descent
