"""Rows of a report: what is to be measured on each layer of a network, and on each run of them, one at a time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from convla._array import available_memory
from convla._convergence import unheard
from convla._threads import blas_on_one_thread, in_order, thread_limit
from convla.networks.certificate import Certificate, certify
from convla.networks.effort import BARE, FULL, ITERATION, QUICK, Effort, Pace, Work, work_of
from convla.networks.gains import outward
from convla.networks.graph import Network
from convla.networks.layers import Layer
from convla.networks.measures import OF_MAPS, Column, Subject, columns_of
from convla.networks.report import LayerReport
from convla.networks.runs import folded, product_of
from convla.networks.spectrum import Spectrum
from convla.spectra import SpectralDensity
from convla.spectra.status import Status

__all__ = ["Inspector", "Task", "check_memory", "tasks_of"]

_DOUBT = 1.5
"""How much longer a row may take than is expected, before a budget is exceeded."""

_JACOBIAN = 10.0
"""Products that the power method on a network's Jacobian takes for each of the network's own, as was measured."""

VECTORS = 6
"""The least number of images and features that the iteration for the largest singular value holds."""


class Task(NamedTuple):
    """A row to be made: of one layer, or of several that stand together."""

    name: str
    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    dtype: str
    notes: tuple[str, ...] = ()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape of the matrix on the image."""
        return self.layers[-1].shape[0], self.layers[0].shape[1]

    @property
    def is_run(self) -> bool:
        """Whether it is of several layers."""
        return len(self.layers) > 1


def tasks_of(network: Network, *, runs: bool = True) -> list[Task]:
    """Return the rows of a network's report: its layers, and behind each run of linear maps the run.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.graph import Network, Node
    >>> from convla.networks.rows import tasks_of
    >>> from convla.networks.layers import dense_layer
    >>> nodes = [Node("x", "input"), Node("a", "layer", ("x",), layer=dense_layer(np.ones((3, 3))))]
    >>> [task.name for task in tasks_of(Network({node.name: node for node in nodes}, ("a",)))]
    ['a']
    """
    chains = {chain[-1]: chain for chain in network.runs()} if runs else {}
    tasks = []
    for name, layer in network.layers.items():
        axes = {"linear": 2, "normalization": 1}.get(layer.kind)  # without those that only make it a convolution
        tasks.append(
            Task(name, (layer,), layer.kernel.shape[:axes], str(layer.kernel.dtype), network.nodes[name].notes)
        )
        if name in chains:
            members = tuple(network.layers[one] for one in chains[name])
            tasks.append(
                Task(" + ".join(chains[name]), members, (members[-1].shape[0], members[0].shape[1]), "float64")
            )
    return tasks


def check_memory(task: Task) -> None:
    """Raise `ValueError` if an image of a layer and its features do not fit the memory."""
    for layer in task.layers:
        needed = VECTORS * layer.kernel.itemsize * sum(layer.operator.shape)
        available = available_memory(layer.kernel)
        if available is not None and needed > available:
            raise ValueError(
                f"layer {task.name}: singular values on images of {'x'.join(map(str, layer.geometry.image_shape))} "
                f"take {needed} bytes at least, more than the {available} bytes of free memory"
            )


@dataclass(frozen=True)
class _Found:
    """What is measured of a map: all of a row that equal maps share."""

    quantities: dict[str, float | None]
    status: dict[str, str]
    errors: dict[str, float]
    deficiency: int | None
    dead: int
    density: SpectralDensity | None
    notes: tuple[str, ...]


class Inspector:
    """Makes the rows of a report, as many at a time as there are threads; equal layers are worked on once.

    Parameters
    ----------
    tasks : sequence of Task
    measures : sequence of str, optional
        Names of groups in `MEASURES`; all by default, and then densities only where they take a tenth of a second.
    budget : float
        Seconds after which rows are only estimated, as those are that would take longer than what is left.

    Attributes
    ----------
    pace : Pace
        What the rows so far say of how long the others will take.
    """

    def __init__(
        self, tasks: Sequence[Task], *, measures: Sequence[str] | None = None, budget: float = math.inf
    ) -> None:
        self.tasks, self.columns = tuple(tasks), columns_of(measures)
        self._of_maps = {column.name for column in columns_of(OF_MAPS)}
        self._with_density = measures is None or "density" in measures
        self._effort = replace(FULL, density=math.inf) if measures is not None else FULL
        self._parts = self._wanted_parts()
        self._budget, self._deadline = budget, math.inf
        self._spectra: dict[Any, Spectrum] = {}
        self._found: dict[Any, tuple[Effort, _Found]] = {}
        self._lock = threading.Lock()
        self._works = [self._work(task, self._effort) for task in self.tasks]
        self.pace = Pace(self._works, min(thread_limit(), max(1, len(self.tasks))))

    def _wanted_parts(self) -> tuple[str, ...]:
        """Return the parts of a row's work that the measures ask for."""
        names = {column.name for column in self.columns}
        wanted = {
            "rest": True,
            "largest": self.is_spectral,
            "bounds": "at_most" in names,
            "smallest": "sigma_min" in names,
            "density": self._with_density,
        }
        return tuple(part for part, asked in wanted.items() if asked)

    def _work(self, task: Task, effort: Effort) -> Work:
        return work_of(task.layers, effort, self._parts)

    @property
    def is_spectral(self) -> bool:
        """Whether singular values are among the measures."""
        return self._with_density or any(column.name in self._of_maps for column in self.columns)

    @property
    def has_bounds(self) -> bool:
        """Whether the largest singular values are enclosed."""
        return any(column.name == "at_most" for column in self.columns)

    def rows(self) -> Iterator[LayerReport]:
        """Give the rows in order, as they are done."""
        self._deadline = time.monotonic() + self._budget
        numbers = range(len(self.tasks))
        if math.isinf(self._budget):
            yield from in_order(self._row, numbers)
        else:
            yield from self._rows_in_time(numbers)

    def _rows_in_time(self, numbers: Sequence[int]) -> Iterator[LayerReport]:
        """Look at all rows, and then work on as many as there is time for, those of little work first."""
        rows = dict(zip(numbers, in_order(self._first_look, numbers), strict=True))
        order = sorted(numbers, key=lambda number: self.pace.expected(self._works[number]))
        done: set[int] = set()
        following = 0
        try:
            for number, row in zip(order, in_order(self._second_look, order), strict=True):
                rows[number] = row or rows[number]
                done.add(number)
                while following in done:
                    yield rows[following]
                    following += 1
        except KeyboardInterrupt:  # every row is known by its first look at least
            yield from (rows[number] for number in numbers[following:])
            raise

    def _first_look(self, number: int) -> LayerReport:
        task = self.tasks[number]
        work = self._work(task, QUICK)
        # Half of the time is for the rows that can be worked on, and even a look at some networks takes long.
        if self.seconds_to_spare - self._budget / 2 < self.pace.expected(work):
            return self._made(task, BARE)[0]
        row, seconds = self._made(task, QUICK)
        if seconds is not None:
            self.pace.learn(work, seconds)
        return row

    def _second_look(self, number: int) -> LayerReport | None:
        effort = self._affordable(self._works[number])
        row, seconds = (None, None) if effort is None else self._made(self.tasks[number], effort)
        self.pace.note(self._works[number], seconds)
        return row

    def _affordable(self, work: Work) -> Effort | None:
        """Return what may go into a row in the time that is left; None where that is not even the largest value."""
        left, most = self.seconds_to_spare, self._effort.max_matvecs
        kept: set[str] = set()
        for part in self._parts:
            seconds = _DOUBT * self.pace.expected({part: work[part]})
            if seconds <= left:
                kept.add(part)
                # Where the largest values lie close, the iteration may take all of the time, but no more.
                most = min(most, int(ITERATION * left / seconds)) if part == "largest" else most
                left -= seconds
            elif part in ("rest", "largest"):
                return None
        smallest = self._effort if "smallest" in kept else QUICK
        return replace(
            self._effort,
            max_matvecs=most,
            direct=smallest.direct,
            bounding=smallest.bounding,
            enclosure="bounds" in kept,
            density=self._effort.density if "density" in kept else 0.0,
        )

    @property
    def seconds_to_spare(self) -> float:
        """What is left of the budget."""
        return self._deadline - time.monotonic()

    def has_time_for_jacobian(self, network: Network) -> bool:
        """Tell whether the budget allows a bound from below at an example, which nobody has asked for."""
        products = sum(layer.kernel.size * math.prod(layer.geometry.output_shape) for layer in network.layers.values())
        return self.pace.expected({"rest": _JACOBIAN * products}) <= self.seconds_to_spare

    @property
    def seconds_left(self) -> float:
        """The seconds that the rows to come are expected to take."""
        return max(0.0, min(self.pace.seconds_left, self.seconds_to_spare))

    def certificate(self, network: Network) -> Certificate:
        """Bound the network by the enclosures of its layers and runs."""

        def norm(name: str) -> float:
            return self._norm(self._spectrum((network.layers[name],)))

        runs = {}
        with unheard():  # of what is no row
            for chain in network.runs():
                members = tuple(network.layers[one] for one in chain)
                runs[chain] = self._norm(self._spectrum(members))
            return certify(network, norm, runs=runs)

    @staticmethod
    def _norm(spectrum: Spectrum) -> float:
        return outward(spectrum.bounds[1])

    def _spectrum(self, layers: tuple[Layer, ...], effort: Effort | None = None) -> Spectrum:
        """Return the spectrum of a map: one that is known, if not less went into it, or a new one."""
        key = tuple(layer.key for layer in layers)
        with self._lock:
            known = self._spectra.get(key)
        if known is not None and (effort is None or known.effort.max_matvecs >= effort.max_matvecs):
            return known
        spectrum = self._new_spectrum(layers, effort or self._effort_of_no_row(layers))
        with self._lock:
            if self._spectra.get(key) is known:
                self._spectra[key] = spectrum
            return self._spectra[key]

    def _effort_of_no_row(self, layers: tuple[Layer, ...]) -> Effort:
        """Return what may go into the enclosure of a map that only the network's bound asks for."""
        for effort in (self._effort, QUICK):
            if self.pace.expected(work_of(layers, effort, ("largest", "bounds"))) <= self.seconds_to_spare:
                return effort
        return BARE

    def _new_spectrum(self, layers: tuple[Layer, ...], effort: Effort) -> Spectrum:
        parts = folded(layers)
        if len(parts) == 1:
            (part,) = parts
            copies = math.prod(part.image) if part.pointwise else 1
            known = 0.0, math.inf
            if effort.quick:  # else better bounds come
                known = max(0.0, part.filter_norm - part.rounding), outward(part.moduli_bound + part.rounding)
            return Spectrum(part.operator, rounding=part.rounding, known=known, copies=copies, effort=effort)
        norms = [self._norm(self._spectrum((part,), BARE if effort.quick else None)) for part in parts]
        upper = outward(math.prod(norms), len(parts))
        # What the factors lack of those that are meant, which the bound of each has in it.
        exact = math.prod(norm - part.rounding for norm, part in zip(norms, parts, strict=True))
        rounding = outward(upper - exact, len(parts))
        return Spectrum(product_of(parts), rounding=rounding, known=(0.0, upper), effort=effort)

    def _row(self, number: int) -> LayerReport:
        row, seconds = self._made(self.tasks[number], self._effort)
        self.pace.note(self._works[number], seconds)
        return row

    @unheard()  # the status of a value says it
    def _made(self, task: Task, effort: Effort) -> tuple[LayerReport, dict[str, float] | None]:
        """Return a row, and the seconds of its parts, or None where they were known."""
        began = time.perf_counter()
        layer = None if task.is_run else task.layers[0]
        key = tuple(one.key for one in task.layers), None if layer is None else layer.kind
        parts: dict[str, float] | None = None
        with self._lock:
            spent, known = self._found.get(key, (None, None))
        if known is None or spent is None or spent.max_matvecs < effort.max_matvecs:
            spectrum = self._spectrum(task.layers, effort)
            before = dict(spectrum.seconds)
            found = self._measured(task, layer, spectrum)
            spectrum.release()
            parts = {part: spectrum.seconds.get(part, 0.0) - before.get(part, 0.0) for part in self._parts}
            with self._lock:
                self._found[key] = effort, found
        else:
            found = known
        seconds = time.perf_counter() - began
        if parts is not None:
            parts["rest"] = max(0.0, seconds - math.fsum(parts.values()))
        row = LayerReport(
            name=task.name,
            kind="run" if layer is None else layer.kind,
            shape=task.shape,
            dtype=task.dtype,
            geometry=_described(task.layers),
            assumed=() if layer is None else layer.assumed,
            quantities=found.quantities,
            status=found.status,
            errors=found.errors,
            deficiency=found.deficiency,
            dead=found.dead,
            notes=(*task.notes, *found.notes),
            seconds=seconds,
            density=found.density,
        )
        return row, parts

    # The decompositions of a row are small: to wake the BLAS's threads for them takes longer than they do.
    @blas_on_one_thread()
    def _measured(self, task: Task, layer: Layer | None, spectrum: Spectrum) -> _Found:
        # The factors of a normalisation are no filters.
        whole = layer is not None and layer.kind != "normalization"
        columns = [column for column in self.columns if whole or column.name in self._of_maps]
        quantities, reasons = _measured(Subject(spectrum, layer), columns)
        quantities = {column.name: quantities.get(column.name) for column in self.columns}
        status, errors = _support(spectrum, quantities)
        notes = []
        dead = int(np.count_nonzero(~layer.live)) if layer is not None and whole else 0
        if layer is not None and dead:
            notes.append(
                f"{dead} of {layer.live.size} filters are dead: their norms are 0, or at most 2^-20 (1e-6) of the "
                "largest, which is lost in rounding; scaled pairs and coherence are over the others"
            )
        deficiency = None
        if status.get("sigma_min") == Status.RANK_DEFICIENT:
            deficiency = spectrum.deficiency
            many = "at least one" if deficiency is None else str(deficiency)
            notes.append(f"rank deficient: {many} of {min(task.matrix_shape)} singular values are zero to rounding")
        if not spectrum.effort.enclosure and self.is_spectral:
            notes.append(
                "estimated to save time; the enclosure is by the moduli of the entries, where no other is cheap"
            )
        notes += [f"{', '.join(headings)}: {reason}" for reason, headings in reasons.items()]
        density = spectrum.density if self._with_density else None
        return _Found(quantities, status, errors, deficiency, dead, density, tuple(notes))


def _measured(subject: Subject, columns: Sequence[Column]) -> tuple[dict[str, float | None], dict[str, list[str]]]:
    """Return the quantities by name, and why some could not be found, with the headings of those."""
    quantities: dict[str, float | None] = {}
    reasons: dict[str, list[str]] = {}
    for column in columns:
        # What overflows comes out as infinity or NaN, and is told below.
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                value = column.compute(subject)
                if math.isnan(value):
                    raise ValueError("not a number: its parts leave the range of floating-point numbers")
                quantities[column.name] = value
            except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
                quantities[column.name] = None
                reasons.setdefault(str(error) or type(error).__name__, []).append(column.heading)
    return quantities, reasons


def _support(spectrum: Spectrum, quantities: dict[str, float | None]) -> tuple[dict[str, str], dict[str, float]]:
    """Return what the singular values promise, and what they may be off."""
    status, errors = {}, {}
    for name, kept in {"sigma_max": "largest", "sigma_min": "smallest"}.items():
        if quantities.get(name) is not None:
            found = getattr(spectrum, kept)
            status[name], errors[name] = str(found.status), float(found.errors[0])
    return status, errors


def _described(layers: Sequence[Layer]) -> dict[str, Any]:
    first, last = layers[0], layers[-1]
    if len(layers) > 1 or first.kind != "convolution":
        return {}
    geometry = first.geometry
    return {
        "image": first.image,
        "output": last.output,
        **{name: getattr(geometry, name) for name in ("padding", "stride", "dilation", "groups", "boundary")},
        "transposed": first.transposed,
    }
