"""Rows of a report: what is to be measured on each layer of a network, and on each run of them, one at a time."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from convla._array import available_memory
from convla._threads import blas_on_one_thread, in_order, thread_limit
from convla.errors import ConvergenceWarning
from convla.networks.certificate import Certificate, certify
from convla.networks.effort import FULL, QUICK, Effort, Pace, work_of
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
        self._deadline = time.monotonic() + budget
        self._spectra: dict[Any, Spectrum] = {}
        self._found: dict[Any, _Found] = {}
        self._lock = threading.Lock()
        self._works = {task: work_of(task.layers) if self.is_spectral else _kernel_work(task) for task in self.tasks}
        self.pace = Pace(list(self._works.values()), min(thread_limit(), max(1, len(self.tasks))))

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
        # The status of a value says it; filters are of the whole process, and rows are made by several threads.
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            yield from in_order(self._row, self.tasks)

    def certificate(self, network: Network) -> Certificate:
        """Bound the network by the enclosures of its layers and runs."""

        def norm(name: str) -> float:
            return self._norm(self._spectrum((network.layers[name],)))

        runs = {}
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # of what is no row
            for chain in network.runs():
                members = tuple(network.layers[one] for one in chain)
                runs[chain] = self._norm(self._spectrum(members))
            return certify(network, norm, runs=runs)

    @staticmethod
    def _norm(spectrum: Spectrum) -> float:
        return outward(spectrum.bounds[1])

    def _effort_of(self, layers: tuple[Layer, ...]) -> Effort:
        """Return what may go into a map: little, where the budget is used up, or would be by this one."""
        left = self._deadline - time.monotonic()
        late = left <= 0.0 or (left < math.inf and self.pace.expected(work_of(layers)) > left)
        return QUICK if late else self._effort

    def _spectrum(self, layers: tuple[Layer, ...]) -> Spectrum:
        key = tuple(layer.key for layer in layers)
        with self._lock:
            if key in self._spectra:
                return self._spectra[key]
        spectrum = self._new_spectrum(layers)
        with self._lock:
            return self._spectra.setdefault(key, spectrum)

    def _new_spectrum(self, layers: tuple[Layer, ...]) -> Spectrum:
        parts = folded(layers)
        effort = self._effort_of(layers)
        if len(parts) == 1:
            (part,) = parts
            copies = math.prod(part.image) if part.pointwise else 1
            near = [layer for layer in layers if layer.kind != "normalization"]
            start = self._spectrum((near[0],)) if len(layers) > 1 and near else None
            return Spectrum(part.operator, rounding=part.rounding, copies=copies, start=start, effort=effort)
        norms = [self._norm(self._spectrum((part,))) for part in parts]
        upper = outward(math.prod(norms), len(parts))
        # What the factors lack of those that are meant, which the bound of each has in it.
        exact = math.prod(norm - part.rounding for norm, part in zip(norms, parts, strict=True))
        rounding = outward(upper - exact, len(parts))
        return Spectrum(product_of(parts), rounding=rounding, upper=upper, effort=effort)

    def _row(self, task: Task) -> LayerReport:
        began = time.perf_counter()
        layer = None if task.is_run else task.layers[0]
        key = tuple(one.key for one in task.layers), None if layer is None else layer.kind
        with self._lock:
            known = self._found.get(key)
        found = self._measured(task, layer) if known is None else known
        with self._lock:
            self._found[key] = found
        seconds = time.perf_counter() - began
        self.pace.note(self._works[task], seconds if known is None else None)
        return LayerReport(
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

    # The decompositions of a row are small: to wake the BLAS's threads for them takes longer than they do.
    @blas_on_one_thread()
    def _measured(self, task: Task, layer: Layer | None) -> _Found:
        spectrum = self._spectrum(task.layers)
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
        if spectrum.effort is QUICK and self.is_spectral:
            notes.append(
                "estimated to save time; the enclosure is by the moduli of the entries, where no other is cheap"
            )
        notes += [f"{', '.join(headings)}: {reason}" for reason, headings in reasons.items()]
        density = spectrum.density if self._with_density else None
        return _Found(quantities, status, errors, deficiency, dead, density, tuple(notes))


def _kernel_work(task: Task) -> float:
    """Estimate the products that the measures of a kernel take."""
    return float(sum(layer.kernel.size * layer.all_filters.shape[0] for layer in task.layers))


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
