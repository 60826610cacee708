"""Gradient descent on the penalty sigma_max(M^T M - alpha I): Algorithm 2.1 of Guo and Ye, and descents that settle."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Generic, TypeVar, cast

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla._convergence import warn
from convla._threads import blas_on_one_thread
from convla._validate import check_integer, check_real
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.penalties.iterate import Course, Iterate
from convla.penalties.pairs import DENSE_ENTRIES, ActivePairs, Gram, Shifted, shifted
from convla.penalties.saved import read, write
from convla.penalties.spectrum import fourth_powers_fit, measure_spectrum
from convla.penalties.steps import Step, StepName
from convla.penalties.tracker import Tracker, TrackerName
from convla.spectra.status import Status
from convla.typing import AnyArray, Array

__all__ = ["DescentStatus", "PenaltyDescent", "Settled", "Trace", "minimize_penalty"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Callback = Callable[["PenaltyDescent[Any]"], object]
Map = TypeVar("Map", bound=LinearMap)


class DescentStatus(StrEnum):
    """Why a descent ended; each member is the string of its value, and `sentence` says what it means."""

    ITERATIONS = "iterations"
    CONVERGED = "converged"
    STATIONARY = "stationary"
    STALLED = "stalled"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    DIVERGED = "diverged"

    @property
    def sentence(self) -> str:
        """The status in words."""
        return _SENTENCES[self]


_SENTENCES = {
    DescentStatus.ITERATIONS: "all iterations done",
    DescentStatus.CONVERGED: "the last steps lowered the penalty by no more than the tolerance",
    DescentStatus.STATIONARY: "the gradient vanished",
    DescentStatus.STALLED: "no step along the gradient lowers the penalty",
    DescentStatus.STOPPED: "stopped by the callback",
    DescentStatus.INTERRUPTED: "an exception, as of Ctrl-C, ended the run; what the last whole step left is kept",
    DescentStatus.DIVERGED: "diverged: the kernel grew without bound, try a smaller learning rate",
}


@dataclass(frozen=True)
class Settled:
    """When a descent has converged: when `patience` steps lowered the least penalty by `tolerance` times it at most.

    Parameters
    ----------
    tolerance : float
        Positive.
    patience : int
    """

    tolerance: float
    patience: int = 10

    def __post_init__(self) -> None:
        check_real("tolerance", self.tolerance, positive=True)
        check_integer("patience", self.patience, minimum=1)

    def holds(self, penalties: list[float]) -> bool:
        """Tell whether a descent with these penalties has converged."""
        if len(penalties) <= self.patience:
            return False
        least = np.minimum.accumulate(penalties)
        return bool(least[-1 - self.patience] - least[-1] <= self.tolerance * least[-1])


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        last = len(self.reported) - 1
        return f"<Trace of {last} iterations: penalty {self.reported[0]:.6g} to {self.reported[last]:.6g}, as reported>"


def minimize_penalty(
    operator: Map,
    alpha: float = 1.0,
    *,
    iterations: int,
    tracker: TrackerName | Tracker = "power",
    step: StepName | Step = "fixed",
    gram: Gram = "input",
    stop: Settled | None = None,
    measure: bool | None = None,
    callback: Callback | None = None,
) -> PenaltyDescent[Map]:
    """Steer the singular values of a map towards the root of alpha by gradient descent on its kernels.

    Parameters
    ----------
    operator : LinearMap
        Where the descent starts: a `ConvOperator`, its transpose, or any other map that has `kernels`. Integers become
        float64.
    alpha : float
        The wanted square of every singular value, positive.
    iterations : int
        How many steps at most.
    tracker : {"power", "block", "exact"} or Tracker
        How singular triplets are followed: two of ``M^T M - alpha I`` by the power method, each on its own, as printed;
        both ends of the spectrum, each by a block; or the decomposition of the whole matrix at every step. `Power`,
        `Block` and `Exact` of `convla.penalties` have their settings.
    step : {"fixed", "backtracking"} or Step
        The learning rate throughout; or halved until the penalty decreases enough, and doubled after. `FixedStep` and
        `Backtracking` have it: ``FixedStep(0.1)``; 0.01 by default.
    gram : {"input", "smaller"}
        Of ``M^T M``, as printed, or of the smaller of ``M^T M`` and ``M M^T``: with more input than output channels the
        first cannot go below alpha, and does nothing for sigma_min.
    stop : Settled, optional
        When the descent has converged: ``Settled(tolerance=1e-3, patience=10)``. By default it goes on.
    measure : bool, optional
        Whether to compute all singular values at every iterate, for the trace; by default where the matrix has at most
        2**20 entries.
    callback : callable, optional
        Called with the `PenaltyDescent` after every step, to show progress, to save it, or to stop it by returning
        True.

    Returns
    -------
    PenaltyDescent
        With the operator, the trace and the status; it can be saved, loaded and run on. Where an exception ends the
        call, as Ctrl-C does, nothing is returned: ``descent = PenaltyDescent(operator)``, then ``descent.run(100)``,
        keeps what the last whole step left.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong in type or value, or autograd follows a kernel.
    OverflowError
        If fourth powers of the singular values can be beyond the kernel's dtype.

    Warns
    -----
    ConvergenceWarning
        If the descent diverges; the message and the result name the iteration.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Algorithm 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, minimize_penalty
    >>> from convla.penalties import Backtracking, Block
    >>> layer = ConvOperator(np.random.default_rng(0).random((3, 1, 3, 3)), (8, 8))
    >>> descent = minimize_penalty(layer, iterations=20)
    >>> str(descent.status), descent.iteration
    ('iterations', 20)
    >>> bool(descent.trace.true[-1] < 0.1 * descent.trace.true[0])
    True
    >>> settling = minimize_penalty(
    ...     layer, iterations=20, tracker=Block(cluster_rtol=0.01), step=Backtracking(learning_rate=0.1)
    ... )
    >>> bool(settling.value < descent.value)
    True
    """
    check_integer("iterations", iterations, minimum=0)
    descent = PenaltyDescent(operator, alpha, tracker=tracker, step=step, gram=gram, stop=stop, measure=measure)
    return descent.run(iterations, callback)


class PenaltyDescent(Generic[Map]):
    """A descent on the penalty: where it is, how it came there, and how to go on; see `minimize_penalty`.

    Attributes
    ----------
    iteration : int
        How many steps were taken.
    status : DescentStatus
        Why the last run ended, a string: "iterations", "converged", "stationary", "stalled", "stopped", "interrupted"
        or "diverged": all iterations were done; the penalty no longer decreased; its gradient vanished; no step along
        it decreased the penalty; the callback asked for it; an exception came; the kernel grew without bound.
    """

    def __init__(
        self,
        operator: Map,
        alpha: float = 1.0,
        *,
        tracker: TrackerName | Tracker = "power",
        step: StepName | Step = "fixed",
        gram: Gram = "input",
        stop: Settled | None = None,
        measure: bool | None = None,
    ) -> None:
        self.tracker, self.step = Tracker.of("tracker", tracker), Step.of("step", step)
        self.step.check(self.tracker)
        if stop is not None and not isinstance(stop, Settled):
            raise TypeError(f"stop must be a Settled object or None, got {stop!r}")
        if measure is not None and not isinstance(measure, bool):
            raise TypeError(f"measure must be True, False or None, got {measure!r}")
        self.stop, self.measure = stop, measure
        target = shifted(operator, alpha, gram)
        self._operator = target.operator
        if not self._operator.kernels:
            raise TypeError(f"operator must be made of convolutions to descend on, got {type(operator).__name__}")
        if not fourth_powers_fit(self._operator):
            raise OverflowError(
                f"kernel is too large for a descent in {self._operator.dtype}, which takes fourth powers of its "
                "singular values: scale the kernel, and alpha by the square of the factor"
            )
        self._course = Course.of(self._operator, target.alpha, gram, self.tracker)
        self._at: Iterate | None = None
        self._rows: list[tuple[float, ...]] = []
        self.status, self.iteration = DescentStatus.ITERATIONS, 0

    def __repr__(self) -> str:
        return f"<PenaltyDescent at {self.message}>"

    @property
    def operator(self) -> Map:
        """The current map: the last finite one where the descent diverged."""
        return cast(Map, self._operator if self._at is None else self._at.operator)

    @property
    def kernel(self) -> AnyArray:
        """The current kernel; of a map that is made of several convolutions, see ``operator.kernels``."""
        (kernel,) = self.operator.kernels
        return kernel

    @property
    def value(self) -> float:
        """The last reported penalty; NaN before the first run."""
        return math.nan if self._at is None else self._at.pairs.value

    def __float__(self) -> float:
        return self.value

    @property
    def error(self) -> float:
        """How much larger the penalty can be than its value if no triplet was missed; NaN before the first run."""
        return math.nan if self._at is None else self._at.pairs.error

    @property
    def accuracy(self) -> Status | None:
        """What supports the last reported penalty: None before the first run."""
        return None if self._at is None else self._at.pairs.status

    @property
    def trace(self) -> Trace:
        """What was recorded at every iterate."""
        return Trace(*np.array(self._rows, dtype=np.float64).reshape(-1, len(fields(Trace))).T)

    @property
    def message(self) -> str:
        """The status in words, with the iteration."""
        return f"iteration {self.iteration}: {self.status.sentence}"

    @blas_on_one_thread()
    def run(self, iterations: int, callback: Callback | None = None) -> PenaltyDescent[Map]:
        """Take up to so many more steps, and return self.

        Parameters
        ----------
        iterations : int
        callback : callable, optional
            As for `minimize_penalty`.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator, minimize_penalty
        >>> descent = minimize_penalty(ConvOperator(np.ones((1, 1, 3)), (8,)), iterations=5)
        >>> descent.run(5).iteration
        10
        """
        check_integer("iterations", iterations, minimum=0)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        if self.status == DescentStatus.DIVERGED:
            return self
        try:
            status = self._run(iterations, callback)
        except BaseException:
            self.status = DescentStatus.INTERRUPTED
            raise
        if status == DescentStatus.DIVERGED:
            warn(self.message, stacklevel=4)
        return self

    def _run(self, iterations: int, callback: Callback | None) -> DescentStatus:
        if self._at is None:
            self._record(self._course.begin(self._operator, confirmed=self.step.judges))
        self.status = DescentStatus.ITERATIONS
        for _ in range(iterations):
            self.status = self._advance(cast(Iterate, self._at))
            going = self.status == DescentStatus.ITERATIONS
            if going and callback is not None and callback(self) is True:
                self.status = DescentStatus.STOPPED
            if self.status != DescentStatus.ITERATIONS:
                break
        return self.status

    def _advance(self, at: Iterate) -> DescentStatus:
        """Take one step and return the status after it."""
        gradient = self._course.gradient(at)
        # The gradient is of the order of sigma, and its rounding errors with it: below them it carries no information.
        if gradient.norm <= self._course.eps * math.sqrt(at.pairs.value + self._course.alpha):
            return DescentStatus.STATIONARY
        found = self.step.take(self._course, at, gradient)
        if found is None and self.step.judges:
            return DescentStatus.STALLED
        if found is None:
            self.iteration += 1
            return DescentStatus.DIVERGED
        self._record(found, steps=1)
        converged = self.stop is not None and self.stop.holds([row[0] for row in self._rows])
        return DescentStatus.CONVERGED if converged else DescentStatus.ITERATIONS

    def _record(self, found: Iterate, steps: int = 0) -> None:
        """Go on to an iterate, and write it into the trace."""
        spectrum = found.spectrum
        small = math.prod(found.operator.shape) <= DENSE_ENTRIES
        if self.measure is False:
            spectrum = None
        elif spectrum is None and (self.measure or small):
            spectrum = measure_spectrum(found.target)
        row = (found.pairs.value, *(spectrum or (math.nan,) * 4), found.length)
        # No call stands between these, so that Ctrl-C does not divide them.
        self._at, self.iteration = found, self.iteration + steps
        self._rows.append(row)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save a descent of one convolution to an ``.npz`` file, from which `load` goes on with the same numbers.

        The file is written beside its place and moved there, so an interrupted save leaves the earlier one whole.

        Raises
        ------
        TypeError
            If the map is no `ConvOperator`.
        """
        operator = self.operator
        if not isinstance(operator, ConvOperator):
            raise TypeError(f"a descent is saved of a ConvOperator, got one of {type(operator).__name__}")
        arrays: dict[str, Any] = {"rows": self._rows}
        numbers: dict[str, Any] = {"first_norm": self._course.first_norm}
        if self._at is not None:
            pairs = {f.name: getattr(self._at.pairs, f.name) for f in fields(ActivePairs)}
            arrays |= {f"pairs_{name}": to_numpy(pairs.pop(name)) for name in ("signs", "vectors", "images")}
            arrays |= {f"state_{name}": to_numpy(array) for name, array in self._at.state.items()}
            numbers |= {"pairs": pairs | {"status": str(pairs["status"])}, "first_length": self._at.first_length}
        settings = {"alpha": self._course.alpha, "gram": self._course.gram, "measure": self.measure}
        choices = {"tracker": self.tracker, "step": self.step, "stop": self.stop}
        progress = {"status": str(self.status), "iteration": self.iteration, "numbers": numbers}
        write(path, operator, {"settings": settings, **progress}, choices, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], like: Array | None = None) -> PenaltyDescent[ConvOperator]:
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
        >>> from convla import ConvOperator, PenaltyDescent, minimize_penalty
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "descent.npz"
        ...     descent = minimize_penalty(ConvOperator(np.ones((1, 1, 3)), (8,)), iterations=5)
        ...     descent.save(path)
        ...     resumed = PenaltyDescent.load(path).run(5)
        >>> bool(np.all(resumed.kernel == descent.run(5).kernel))
        True
        """
        return read(path, lambda saved: cls._from(saved, like), stop=Settled)

    @classmethod
    def _from(cls, saved: dict[str, Any], like: Array | None) -> PenaltyDescent[ConvOperator]:
        arrays = saved["arrays"]
        like = arrays["kernel"] if like is None else like
        xp = namespace(like)
        operator = ConvOperator(on_device_of(arrays["kernel"], like, xp), **saved["geometry"])
        descent: PenaltyDescent[ConvOperator] = PenaltyDescent(operator, **saved["settings"], **saved["choices"])
        descent.status, descent.iteration = DescentStatus(saved["status"]), saved["iteration"]
        numbers = saved["numbers"]
        descent._course = replace(descent._course, first_norm=numbers["first_norm"])
        descent._rows = [tuple(map(float, row)) for row in arrays["rows"]]
        if "pairs" in numbers:
            parts = {name: on_device_of(arrays[f"pairs_{name}"], like, xp) for name in ("signs", "vectors", "images")}
            pairs = ActivePairs(**numbers["pairs"] | parts | {"status": Status(numbers["pairs"]["status"])})
            state = {
                k.removeprefix("state_"): on_device_of(v, like, xp) for k, v in arrays.items() if k[:6] == "state_"
            }
            target = Shifted.of(operator, descent._course.alpha, descent._course.gram)
            descent._at = Iterate(target, pairs, state, first_length=numbers["first_length"])
        return descent
